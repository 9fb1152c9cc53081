"""What `tailorpo validate --here` looks at: all that a document names and this machine can find or ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tailorpo_trainer import models, prompts
from tailorpo_trainer.errors import ConfigurationError, TailorPOError
from tailorpo_trainer.results import locations
from tailorpo_trainer.rewards import registry
from tailorpo_trainer.spec.job import Reward, TailorPOJob

Check = Callable[[], object]


def problems(job: TailorPOJob, base: Path) -> Iterator[str]:
    """One sentence for each thing that would end the run on this machine before its first iteration.

    No weights of the model are loaded. base: the folder that relative paths of the document start from.
    """
    for field, check in checks(job, base):
        try:
            check()
        except TailorPOError as error:
            text = str(error)
            yield text if text.startswith("spec.") else f"{field}: {text}"


def checks(job: TailorPOJob, base: Path) -> Iterator[tuple[str, Check]]:
    """The field that each check is about, and the check, which raises a `TailorPOError`."""
    spec = job.spec
    yield "spec.model.name", partial(models.check_source, spec.model)
    if (decoder := spec.model.scoring_decoder) is not None:
        yield "spec.model.scoringDecoder.name", partial(models.read_config, decoder)
    if (initial := spec.lora.initial) is not None:
        yield "spec.lora.initial", partial(models.lora_files.read, initial)
    for field, source in (("spec.prompts", spec.prompts), ("spec.evaluation.prompts", spec.evaluation.prompts)):
        if source is not None and source.config_map_key_ref is None:
            yield field, partial(prompts.load, source, base)
    for field, terms in (("spec.rewards", spec.rewards), ("spec.evaluation.rewards", spec.evaluation.rewards)):
        for index, reward in enumerate(terms):
            yield from _checks_of_reward(reward, f"{field}[{index}]")
    yield "spec.checkpoint.storage", partial(_check_storage, job, base)


def _checks_of_reward(reward: Reward, path: str) -> Iterator[tuple[str, Check]]:
    yield f"{path}.name", partial(registry.find, reward.name)
    if reward.name == "clip-score" and (model := reward.model) is not None:
        from tailorpo_trainer.rewards import clip_score

        yield path, partial(_below, path, clip_score.check_model, model)
    if reward.name == "http":
        from tailorpo_trainer.rewards import http

        for number, url in enumerate(reward.endpoints or ()):
            yield f"{path}.endpoints[{number}]", partial(http.check_reachable, url)


def _below(path: str, check: Callable[[str], object], value: str) -> None:
    """A check whose message begins with a field of the object at `path`."""
    try:
        check(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}.{error}") from None


def _check_storage(job: TailorPOJob, base: Path) -> None:
    """Read the list of what is in a bucket; a folder need not exist yet, but somebody must be able to make it."""
    chosen = locations.choose(job, None, base)
    if chosen.in_s3:
        chosen.open().names("attempt-")
        return
    folder = chosen.output.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "may not be written to" if existing.is_dir() else "is no folder"
        raise ConfigurationError(f"{str(folder)!r} cannot be used: {existing} {reason}")
