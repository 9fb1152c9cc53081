"""The API of the operator: the names under which a `TailorPOJob` is served, and its status.

A user writes the trainer's `Spec`. Only the operator writes the status, and reads it back: what a decision needs must
be in the status or in the children, because the operator stores nothing else.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from tailorpo_trainer.spec import progress as trainer
from tailorpo_trainer.spec.job import API_VERSION, Spec
from tailorpo_trainer.spec.pod_template_rules import RESERVED_LABELS

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "tailorpojobs"
SINGULAR = "tailorpojob"
SHORT_NAMES = ("tpj",)
CATEGORIES = ("all",)

KEPT_ATTEMPTS = 10
MAX_URI = 2176
"""Characters of the longest `storage` with a checkpoint's path in it."""
MAX_TOTAL = 2**53 - 1
DIGITS = 5
"""Significant digits of a number: a status that differs in none of them is not worth a write."""

Phase = Literal["Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed"]
ConditionType = Literal["Suspended", "PodsReady", "Running", "Restarting", "Succeeded", "Failed"]


def _one_line(length: int) -> BeforeValidator:
    """Text as one line of limited length: a long error must never make the API server refuse a status."""
    return BeforeValidator(lambda value: trainer.line(value, length) if isinstance(value, str) else value)


def _ascii(length: int) -> BeforeValidator:
    """Text of limited length in ASCII characters that JSON does not escape."""
    unusual = re.compile(r'[^ -~]|[<>&"\\]')
    return BeforeValidator(lambda value: unusual.sub("?", value[:length]) if isinstance(value, str) else value)


def _known_phase(value: Any) -> Any:
    """A phase of another version is as good as none: it follows from the conditions."""
    return value if value in get_args(Phase) or not isinstance(value, str) else "Pending"


def _known_conditions(value: Any) -> Any:
    """Conditions of another version are left out, as nobody would keep them current."""
    if not isinstance(value, list):
        return value
    known = get_args(ConditionType)
    return [each for each in value if not isinstance(each, dict) or each.get("type") in (None, *known)]


def _newest(value: Any) -> Any:
    return value[-KEPT_ATTEMPTS:] if isinstance(value, list) else value


def _rounded(value: Any) -> Any:
    """A float that is short enough for a column; None if it is not finite, which JSON cannot express."""
    if not isinstance(value, float):
        return value
    short = float(f"{value:.{DIGITS}g}")
    return short if math.isfinite(short) else None


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:  # as in year 1 east of Greenwich
        raise ValueError("there is no such instant in UTC") from None


def _timestamp(value: datetime) -> str:
    return value.isoformat(timespec="seconds").replace("+00:00", "Z")


ShortText = Annotated[str, _ascii(63), Field(max_length=63)]
NodeName = Annotated[str, _ascii(253), Field(max_length=253)]
Message = Annotated[str, _one_line(512), Field(max_length=512)]
ShortMessage = Annotated[str, _one_line(256), Field(max_length=256)]
URI = Annotated[str, Field(max_length=MAX_URI)]
Number = Annotated[float | None, BeforeValidator(_rounded)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Total = Annotated[int, Field(ge=0, le=MAX_TOTAL)]
"""A sum over the life of a job."""
Time = Annotated[
    AwareDatetime,
    BeforeValidator(lambda value: value.replace(microsecond=0) if isinstance(value, datetime) else value),
    AfterValidator(_utc),
    PlainSerializer(_timestamp, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""An instant, in whole seconds, as metav1.Time."""


class StatusModel(BaseModel):
    """Base of the status models: camelCase in JSON; keys of another version are ignored, and None is left out."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self)(**{**dict(self), **changes})


class Condition(StatusModel):
    """As `metav1.Condition`."""

    type: ConditionType = Field(description="What it is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that it was judged from.")
    last_transition_time: Time = Field(description="When its status last changed.")
    reason: ShortText = Field(description="Why, in one CamelCase word.")
    message: Message = Field("", description="Why, for people.")


class Attempt(StatusModel):
    """One gang of pods, from its creation to its end."""

    number: int = Field(ge=1, le=2**31 - 1, description="From 1; its checkpoints are below `attempt-NUMBER`.")
    start: Time | None = Field(None, description="When its Job was made.")
    ready: Time | None = Field(None, description="When all its pods ran.")
    end: Time | None = Field(None, description="When it was judged.")
    reason: ShortText | None = Field(None, description="How it ended, in one CamelCase word.")
    message: ShortMessage | None = Field(None, description="How it ended, for people.")
    counted: bool | None = Field(None, description="Whether its end counts against `backoffLimit`.")
    exit_code: int | None = Field(None, ge=0, le=255, description="Exit code of the first cause.")
    rank: Count | None = Field(None, description="Global rank of the process that it came from.")
    node: NodeName | None = Field(None, description="Node where that happened.")
    accelerators: Count | None = Field(None, description="Accelerators that the limits of its pods give it.")
    step_from: Count | None = Field(None, description="Iterations that were done when it began.")
    step_to: Count | None = Field(None, description="Iterations that were done when it ended.")


class Progress(StatusModel):
    """How far the run is."""

    step: Count = Field(0, description="Iterations done, over all attempts.")
    of: Count | None = Field(None, description="Iterations asked for.")
    steps: ShortText | None = Field(None, description="Both, for people, such as `12/100`.")
    percent: Number = Field(None, description="100 step / of.")
    eta_seconds: Number = Field(None, description="Seconds to the end, evaluations included; while Running.")
    eta: ShortText | None = Field(None, description="The same for people, such as `1h12m`.")
    images_per_second: Number = Field(None, description="Training pictures a second.")
    updated: Time | None = Field(None, description="When the trainer reported it.")


class Metrics(StatusModel):
    """The last metrics of training."""

    reward: Number = Field(None, description="Mean weighted sum of the rewards in the last iteration.")
    evaluation: Number = Field(None, description="The same on held-out noise, in the last evaluation.")
    gap: Number = Field(None, description="Mean reward of the winner minus the loser's, in the last iteration.")
    loss: Number = Field(None, description="Loss of the last iteration.")


class Checkpoint(StatusModel):
    """A complete checkpoint."""

    uri: URI = Field(description="Where it is.")
    step: Count = Field(description="Iterations it holds.")
    time: Time = Field(description="When it was taken.")


class Status(StatusModel):
    """What the operator has observed of a job."""

    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this status is about.")
    phase: Annotated[Phase, BeforeValidator(_known_phase)] = Field("Pending", description="The conditions in one word.")
    reason: ShortText | None = Field(
        None, description="Why it does not run, in one CamelCase word; missing while all is well."
    )
    message: Message | None = Field(None, description="What happens and why, for people.")
    start_time: Time | None = Field(None, description="When the first pod ran; `activeDeadlineSeconds` counts from it.")
    completion_time: Time | None = Field(None, description="When it ended; `ttlSecondsAfterFinished` counts from it.")
    next_attempt_time: Time | None = Field(None, description="When the next attempt may begin.")
    restarts: Count = Field(0, description="Attempts after the first.")
    failures: Count = Field(0, description="Attempts whose end counted against `backoffLimit`.")
    accelerator_seconds: Total | None = Field(
        None, description="Accelerators times the seconds from `ready` to `end`, of all attempts that have ended."
    )
    progress: Progress | None = Field(None, description="How far the run is.")
    metrics: Metrics | None = Field(None, description="The last figures of training.")
    checkpoint: Checkpoint | None = Field(None, description="The newest one: what a restart would resume from.")
    resumed_from: Checkpoint | None = Field(None, description="The one that the present attempt resumed from.")
    adapter: URI | None = Field(None, description="Where the trained adapter is, once Succeeded.")
    conditions: Annotated[list[Condition], BeforeValidator(_known_conditions)] = Field(
        [], max_length=8, description="What holds, and since when."
    )
    attempts: Annotated[list[Attempt], BeforeValidator(_newest)] = Field(
        [], max_length=KEPT_ATTEMPTS, description=f"The last {KEPT_ATTEMPTS}, oldest first."
    )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def with_progress(self, reported: trainer.Progress) -> Self:
        """A copy with the progress that the trainer reported; fields that it left out stay. Raises `ValueError`."""
        raw = reported.to_dict()
        metrics = {**(self.metrics.model_dump(by_alias=True) if self.metrics else {}), **raw["metrics"]}
        progress = Progress(
            step=reported.step,
            of=reported.of,
            steps=None if reported.of is None else f"{reported.step}/{reported.of}",
            percent=reported.percent,
            eta_seconds=reported.eta_seconds,
            eta=None if reported.eta_seconds is None else duration(reported.eta_seconds),
            images_per_second=reported.rates.images_per_second,
            updated=raw["updated"],
        )
        if (
            reported.attempt is None and self.progress is not None
        ):  # it still loads its checkpoint: step 0 is no loss of progress
            progress = self.progress
        return self.replace(
            progress=progress,
            metrics=Metrics(**metrics) if metrics else None,
            checkpoint=_checkpoint(raw.get("checkpoint")) or self.checkpoint,
            resumed_from=_checkpoint(raw.get("resumedFrom")) or self.resumed_from,
            adapter=_valid_uri(raw.get("adapter")) or self.adapter,
        )


class Job(BaseModel):
    """A `TailorPOJob` as the API server serves it."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, alias_generator=to_camel)

    api_version: Literal["tailorpo.dev/v1alpha1"] = "tailorpo.dev/v1alpha1"
    kind: Literal["TailorPOJob"] = "TailorPOJob"
    metadata: dict[str, Any]
    spec: Spec
    status: Status = Status()
    copied_labels: dict[str, str] = {}
    copied_annotations: dict[str, str] = {}
    """Of the job itself, to be copied to its Jobs and pods; see `copying`."""

    def copying(self, prefixes: Sequence[str]) -> Self:
        """The job, whose labels and annotations with these prefixes reach its Jobs and pods."""

        def chosen(field: str) -> dict[str, str]:
            found: Mapping[str, str] = self.metadata.get(field) or {}
            taken = (key for key in found if key.startswith(tuple(prefixes)) and not key.startswith(RESERVED_LABELS))
            return {key: found[key] for key in sorted(taken)}

        return self.model_copy(update={"copied_labels": chosen("labels"), "copied_annotations": chosen("annotations")})

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        return str(self.metadata.get("namespace", "default"))

    @property
    def uid(self) -> str:
        return str(self.metadata["uid"])

    @property
    def generation(self) -> int:
        return int(self.metadata.get("generation", 1))

    @property
    def deleting(self) -> bool:
        return "deletionTimestamp" in self.metadata


def duration(seconds: float) -> str:
    """A time span in its two largest units, such as `1h12m`; at most five characters for less than 100 days."""
    total = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    for (name, size), (small, part) in pairwise(units):
        if total >= size:
            rest = total % size // part
            return f"{total // size}{name}{rest}{small}" if rest else f"{total // size}{name}"
    return f"{total}s"


def _checkpoint(raw: dict[str, Any] | None) -> Checkpoint | None:
    return Checkpoint(**raw) if raw is not None and _valid_uri(raw["uri"]) else None


def _valid_uri(uri: str | None) -> str | None:
    """The URI; None if it is too long for a status, or has a line break or a tab: another text would be wrong."""
    return uri if uri is not None and len(uri) <= MAX_URI and trainer.line(uri, MAX_URI) == uri else None
