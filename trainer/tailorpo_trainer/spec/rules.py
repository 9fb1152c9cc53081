"""Rules of the document that span several fields, and the defaults that depend on the method.

Each rule yields violations: the field, the other fields that it read, and what would be right. A violation is not
reported if one of these fields is already wrong, so that one mistake is reported once.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from tailorpo_trainer.spec import pod_template_rules
from tailorpo_trainer.spec.job import (
    Checkpoint,
    LoRA,
    Method,
    MethodName,
    Model,
    Prompts,
    Reward,
    RewardGuidance,
    Sampling,
    ScoringDecoder,
    Spec,
    TrainedSteps,
    TrainingSpec,
)
from tailorpo_trainer.spec.types import SpecModel
from tailorpo_trainer.spec.violations import Path, Violation, alias, and_list, or_list

STEP_WISE = ("tailorpo", "tailorpo-g", "spo")
"""Methods that rank several candidates drawn from one latent."""

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    # For SPO, D3PO and DDPO these are the values of the official code.
    "tailorpo": {"beta": 0.1, "continue_from": "winner"},
    "tailorpo-g": {"beta": 0.1, "continue_from": "guided-winner"},
    "spo": {"beta": 10.0, "continue_from": "random", "candidates": 4, "threshold": 0.3, "clamp_ratio": 0.1},
    "d3po": {"beta": 0.1, "clamp_ratio": 0.1},
    "ddpo": {"clip_range": 1e-4, "advantage_clip": 5.0},
}
EXTRA_PARAMETERS = {"tailorpo-g": {"reward_guidance"}}
METHOD_PARAMETERS = {
    name: frozenset(defaults) | EXTRA_PARAMETERS.get(name, set()) for name, defaults in METHOD_DEFAULTS.items()
}
"""The parameters of each method; the other fields of `Method` belong to all methods."""

REWARD_PARAMETERS = {
    "clip-score": {"model", "batch_size"},
    "http": {"endpoints", "timeout_seconds", "retries", "batch_size"},
    "colourfulness": set[str](),
    "jpeg-compressibility": set[str](),
    "jpeg-incompressibility": set[str](),
}
PLUGIN_PARAMETERS = {"parameters", "model", "batch_size"}

SCHEME = "^[A-Za-z][A-Za-z0-9+.-]*://"
"""How a URL begins."""
_S3 = "s3://"
SCHEMES: dict[type[SpecModel], dict[str, tuple[tuple[str, ...], str]]] = {
    Model: {"name": ((_S3,), "a folder, a hub id, or s3://bucket/prefix")},
    ScoringDecoder: {"name": ((_S3,), "a folder, a hub id, or s3://bucket/prefix")},
    LoRA: {"initial": ((_S3,), "a file, a folder, a hub id, or s3://bucket/prefix")},
    Prompts: {"file": ((_S3,), "a path, or s3://bucket/key")},
    Checkpoint: {
        "storage": ((_S3, "file://"), "a folder, or s3://bucket/prefix"),
        "ca_file": ((), "a path"),
    },
}
"""Fields that name a place: how those begin that are URLs, and what else may be given."""

S3_SETTINGS = ("endpoint", "region", "path_style", "ca_file", "checksums", "sse_kms_key_id")
"""Fields of `Checkpoint` that only S3 servers use."""


def violations(spec: Spec) -> Iterator[Violation]:
    """All broken rules of a document whose fields are valid on their own."""
    for rule in RULES:
        yield from rule(spec)


def method_parameters(spec: Spec) -> Iterator[Violation]:
    """A parameter of another method would be silently ignored: refuse it."""
    method = spec.method
    owned = set[str]().union(*METHOD_PARAMETERS.values())
    for field in Method.model_fields:
        if field in owned - METHOD_PARAMETERS[method.name] and getattr(method, field) is not None:
            owners = [name for name in METHOD_PARAMETERS if field in METHOD_PARAMETERS[name]]
            yield Violation(
                ("spec", "method", alias(Method, field)),
                (("spec", "method", "name"),),
                f"does not belong to method {method.name!r}: leave it out, or choose {or_list(owners)}",
            )


def guided_winner(spec: Spec) -> Iterator[Violation]:
    """Only `tailorpo-g` has one; `method_parameters` refuses methods without `continueFrom`."""
    if spec.method.continue_from == "guided-winner" and spec.method.name in {*STEP_WISE} - {"tailorpo-g"}:
        yield Violation(
            ("spec", "method", "continueFrom"),
            (("spec", "method", "name"),),
            f"{spec.method.name!r} has no guided winner: use 'winner' or 'random', or method 'tailorpo-g'",
        )


def guidance_target(spec: Spec) -> Iterator[Violation]:
    """`strength` scales the distance to `target`: without a target it has no meaning."""
    guidance = spec.method.reward_guidance
    if guidance is not None and guidance.strength is not None and guidance.target is None:
        yield Violation(
            ("spec", "method", "rewardGuidance", "strength"),
            (("spec", "method", "rewardGuidance", "target"),),
            "needs spec.method.rewardGuidance.target, the reward to push towards; or use `fraction` instead",
        )


def one_prompt_source(spec: Spec) -> Iterator[Violation]:
    """With several sources all but one would be silently ignored."""
    sources: list[tuple[Path, Prompts]] = [(("spec", "prompts"), spec.prompts)]
    if spec.evaluation.prompts is not None:
        sources.append((("spec", "evaluation", "prompts"), spec.evaluation.prompts))
    names = [alias(Prompts, field) for field in Prompts.model_fields]
    for path, prompts in sources:
        given = [alias(Prompts, field) for field in Prompts.model_fields if getattr(prompts, field) is not None]
        if len(given) != 1:
            message = f"needs exactly one of {or_list(names)}, has {and_list(given) or 'none'}"
            yield Violation(path, (), message, exclusive=len(given) > 1)


def trained_steps(spec: Spec) -> Iterator[Violation]:
    """There are not more steps to train than steps of sampling."""
    count, steps = spec.sampling.trained_steps.count, spec.sampling.steps
    if count is not None and count > steps:
        yield Violation(
            ("spec", "sampling", "trainedSteps", "count"),
            (("spec", "sampling", "steps"),),
            f"{count} is more than spec.sampling.steps: at most {steps}",
        )


def reward_parameters(spec: Spec) -> Iterator[Violation]:
    """As for methods; a plug-in checks its parameters itself."""
    rewards: list[tuple[Path, Reward]] = [(("spec", "rewards", n), reward) for n, reward in enumerate(spec.rewards)]
    rewards += [(("spec", "evaluation", "rewards", n), reward) for n, reward in enumerate(spec.evaluation.rewards)]
    for path, reward in rewards:
        allowed = REWARD_PARAMETERS.get(reward.name, PLUGIN_PARAMETERS)
        for field in Reward.model_fields:
            if field not in allowed | {"name", "weight"} and getattr(reward, field) is not None:
                yield Violation(
                    (*path, alias(Reward, field)),
                    ((*path, "name"),),
                    f"does not belong to reward {reward.name!r}",
                )
        if reward.name == "http" and not reward.endpoints:
            yield Violation(
                (*path, "endpoints"),
                ((*path, "name"),),
                "reward 'http' needs at least one URL, such as http://host:8080",
            )


def maximise_something(spec: Spec) -> Iterator[Violation]:
    """A sum that is always 0 cannot rank anything."""
    if all(reward.weight == 0 for reward in spec.rewards):
        reads = tuple(("spec", "rewards", n, "weight") for n in range(len(spec.rewards)))
        yield Violation(("spec", "rewards"), reads, "all weights are 0: at least one must differ from 0")


def enough_updates(spec: Spec) -> Iterator[Violation]:
    """Each update needs at least one row."""
    rows = spec.training.prompts_per_iteration * spec.training.samples_per_prompt * _trained_step_count(spec)
    if spec.training.updates_per_iteration > rows:
        yield Violation(
            ("spec", "training", "updatesPerIteration"),
            (
                ("spec", "method", "name"),
                ("spec", "sampling"),
                ("spec", "training", "promptsPerIteration"),
                ("spec", "training", "samplesPerPrompt"),
            ),
            f"{spec.training.updates_per_iteration} updates cannot be made from {rows} rows (prompts x "
            f"samples x trained steps): at most {rows}",
        )


def scoring_decoder(spec: Spec) -> Iterator[Violation]:
    """Methods that score only finished pictures would never use it."""
    if spec.model.scoring_decoder is not None and spec.method.name not in STEP_WISE:
        yield Violation(
            ("spec", "model", "scoringDecoder"),
            (("spec", "method", "name"),),
            f"does not belong to method {spec.method.name!r}, which scores finished pictures alone: leave it out, or "
            f"choose {or_list(list(STEP_WISE))}",
        )


def equal_shares(spec: Spec) -> Iterator[Violation]:
    """All processes take the same number of samples."""
    message = shares_problem(spec, spec.workers * spec.processes_per_worker)
    if message:
        yield Violation(
            ("spec", "training", "promptsPerIteration"),
            (("spec", "training", "samplesPerPrompt"), ("spec", "workers"), ("spec", "processesPerWorker")),
            message,
        )


def shares_problem(spec: TrainingSpec, processes: int) -> str | None:
    """Why so many processes cannot share an iteration's samples equally; None if they can."""
    samples = spec.training.prompts_per_iteration * spec.training.samples_per_prompt
    if samples % processes == 0:
        return None
    return (
        f"{samples} samples an iteration (promptsPerIteration x samplesPerPrompt) cannot be shared equally by "
        f"{processes} processes: use a multiple of {processes}"
    )


def s3_settings(spec: Spec) -> Iterator[Violation]:
    """Settings of a server that is not used would be silently ignored."""
    kept = spec.checkpoint
    if kept.storage is None or not kept.storage.startswith("s3://"):
        for field in S3_SETTINGS:
            if getattr(kept, field) is not None:
                yield Violation(
                    ("spec", "checkpoint", alias(Checkpoint, field)),
                    (("spec", "checkpoint", "storage"),),
                    "needs spec.checkpoint.storage to be in S3, as s3://bucket/prefix",
                )


_SCHEME = re.compile(SCHEME)


def known_schemes(spec: Spec) -> Iterator[Violation]:
    """Whatever else looks like a URL would be taken for a folder of that name, or for a model's id on the hub."""
    places: list[tuple[Path, Any]] = [(("spec", "model"), spec.model), (("spec", "lora"), spec.lora)]
    places += [(("spec", "model", "scoringDecoder"), spec.model.scoring_decoder), (("spec", "prompts"), spec.prompts)]
    places += [(("spec", "evaluation", "prompts"), spec.evaluation.prompts), (("spec", "checkpoint"), spec.checkpoint)]
    for path, model in places:
        for field, (schemes, way_out) in (SCHEMES[type(model)] if model is not None else {}).items():
            value = getattr(model, field)
            if value is not None and _SCHEME.search(value) and not value.startswith(schemes):
                yield Violation(
                    (*path, alias(model, field)), (), f"has a scheme that is not known here: give {way_out}"
                )


RULES: tuple[Callable[[Spec], Iterator[Violation]], ...] = (
    method_parameters,
    scoring_decoder,
    guided_winner,
    guidance_target,
    one_prompt_source,
    trained_steps,
    reward_parameters,
    maximise_something,
    enough_updates,
    equal_shares,
    s3_settings,
    known_schemes,
    *pod_template_rules.RULES,
)


def unresolve(spec: Spec) -> Spec:
    """The inverse of `resolve`: the same document without what it would fill in."""
    defaults = _method_defaults(spec)
    same = {field: None for field, value in defaults.items() if getattr(spec.method, field) == value}
    bare = spec.model_copy(update={"sampling": spec.sampling.model_copy(update={"trained_steps": TrainedSteps()})})
    steps, usual = spec.sampling.trained_steps, resolve(bare).sampling.trained_steps
    kept = {field: getattr(steps, field) for field in TrainedSteps.model_fields}
    steps = TrainedSteps(**{field: value for field, value in kept.items() if value != getattr(usual, field)})
    return spec.model_copy(
        update={
            "method": spec.method.model_copy(update=same),
            "sampling": spec.sampling.model_copy(update={"trained_steps": steps}),
        }
    )


def _method_defaults(spec: Spec) -> dict[str, Any]:
    defaults = dict(METHOD_DEFAULTS[spec.method.name])
    return defaults | ({"reward_guidance": RewardGuidance()} if spec.method.name == "tailorpo-g" else {})


def resolve(spec: Spec) -> Spec:
    """The same document with all defaults that depend on the method filled in."""
    defaults = _method_defaults(spec)
    missing = {field: value for field, value in defaults.items() if getattr(spec.method, field) is None}
    method = spec.method.model_copy(update=missing)
    steps = TrainedSteps(count=_trained_step_count(spec), choose=_trained_steps_choice(spec))
    sampling: Sampling = spec.sampling.model_copy(update={"trained_steps": steps})
    return spec.model_copy(update={"method": method, "sampling": sampling})


def _trained_step_count(spec: Spec) -> int:
    """How many denoising steps are trained; the default depends on the method."""
    count, steps = spec.sampling.trained_steps.count, spec.sampling.steps
    if count is not None:
        return count
    share = {"tailorpo": min(5, steps), "tailorpo-g": min(5, steps), "spo": max(1, steps * 4 // 5)}
    return share.get(spec.method.name, steps)


def _trained_steps_choice(spec: Spec) -> Any:
    return spec.sampling.trained_steps.choose or ("late" if spec.method.name == "spo" else "spread")


assert set(METHOD_DEFAULTS) == set(get_args(MethodName))
