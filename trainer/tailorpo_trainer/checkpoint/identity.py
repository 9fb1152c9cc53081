"""Which fields of a document define the experiment, and in which of them two experiments differ."""

import hashlib
import json
from typing import Any, NamedTuple

from pydantic import ValidationError

from tailorpo_trainer.checkpoint.format import RunRecord
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import NOT_IN_EXPERIMENT, Spec


class Difference(NamedTuple):
    """A field with different values in two experiments; None stands for a field that is not set."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return self.between("there", "here")

    def between(self, old: str, new: str) -> str:
        """One line with both values and where they are."""
        return f"{self.path}: {_show(self.old)} {old}, {_show(self.new)} {new}"


def defining(spec: Spec) -> dict[str, Any]:
    """The fields of a resolved document that define the experiment, under their YAML names."""
    value = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=NOT_IN_EXPERIMENT)
    fields: dict[str, Any] = _whole_numbers(value)
    return fields


def hash_of(fields: dict[str, Any]) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def experiment_hash(spec: Spec) -> str:
    """The hash of the fields of a resolved document that define its experiment."""
    return hash_of(defining(spec))


def differences(old: Any, new: Any, path: str = "spec") -> list[Difference]:
    """Every leaf that differs, with its path as in the document, such as `spec.rewards[0].weight`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [(f"{path}.{key}", old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list):
        count = max(len(old), len(new))
        padded = ([*side, *[None] * (count - len(side))] for side in (old, new))
        keys = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(*padded, strict=True))]
    else:
        return [] if old == new else [Difference(path, old, new)]
    return [difference for key, one, other in keys for difference in differences(one, other, key)]


def check(stored: RunRecord, job: RunRecord, where: str) -> None:
    """Raise `ConfigurationError` with the differences, unless a storage belongs to this job and this experiment."""
    found = []
    if stored.name != job.name:
        found.append(Difference("metadata.name", stored.name, job.name))
    # A document on a laptop often names no namespace: then the name alone decides who owns the storage.
    if stored.namespace != job.namespace and stored.namespace is not None and job.namespace is not None:
        found.append(Difference("metadata.namespace", stored.namespace, job.namespace))
    owner = "job" if found else "experiment"
    if stored.experiment != job.experiment:
        found += differences(_with_new_defaults(stored.defines), job.defines)
    if found:
        lines = "\n".join(f"  {difference}" for difference in found)
        raise ConfigurationError(
            f"{where}: holds the checkpoints of another {owner}:\n{lines}\n"
            "Give this one its own storage (--output, or spec.checkpoint.storage), or take the change back."
        )


def _with_new_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that an older tailorpo wrote, with the defaults of fields that did not exist then."""
    try:
        return defining(rules.resolve(Spec.model_validate(fields)))
    except (ValidationError, KeyError):
        return fields


def _whole_numbers(value: Any) -> Any:
    """The same with 8.0 as 8: a default and a number in a document must give the same hash."""
    if isinstance(value, dict):
        return {key: _whole_numbers(value) for key, value in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(value) for value in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _show(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
