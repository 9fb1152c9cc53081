"""The API of the operator: the names under which a `TailorPOJob` is served, and its status.

What a user writes is the trainer's `Spec`. The status is written by the operator alone, and read back by it: what a
decision needs must be in here or in the children, for the operator keeps nothing else.
"""

import math
import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

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

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "tailorpojobs"
SINGULAR = "tailorpojob"
SHORT_NAMES = ("tpj",)
CATEGORIES = ("all",)

KEPT_ATTEMPTS = 10
MAX_URI = 2176
"""Characters of the longest `storage` with a checkpoint's path in it."""
DIGITS = 5
"""Significant digits of a figure: a status that differs in none of them is not worth a write."""

Phase = Literal["Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed"]
ConditionType = Literal["Suspended", "PodsReady", "Running", "Restarting", "Succeeded", "Failed"]


def _words(length: int) -> BeforeValidator:
    """One line that is cut to a length: a long error must never make the API server refuse a status."""
    return BeforeValidator(lambda value: trainer.line(value, length) if isinstance(value, str) else value)


def _plain(length: int) -> BeforeValidator:
    """A name of ours or of Kubernetes': ASCII that JSON writes as it is."""
    unusual = re.compile(r'[^ -~]|[<>&"\\]')
    return BeforeValidator(lambda value: unusual.sub("?", value[:length]) if isinstance(value, str) else value)


def _newest(value: Any) -> Any:
    return value[-KEPT_ATTEMPTS:] if isinstance(value, list) else value


def _figure(value: Any) -> Any:
    """Finite, for JSON knows nothing else, and short enough for a column."""
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


Word = Annotated[str, _plain(63), Field(max_length=63)]
NodeName = Annotated[str, _plain(253), Field(max_length=253)]
Message = Annotated[str, _words(512), Field(max_length=512)]
Note = Annotated[str, _words(256), Field(max_length=256)]
URI = Annotated[str, Field(max_length=MAX_URI)]
Figure = Annotated[float | None, BeforeValidator(_figure)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Time = Annotated[
    AwareDatetime,
    BeforeValidator(lambda value: value.replace(microsecond=0) if isinstance(value, datetime) else value),
    AfterValidator(_utc),
    PlainSerializer(_timestamp, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""An instant, in whole seconds, as metav1.Time."""


class StatusModel(BaseModel):
    """Base of the status: camelCase outside; keys of another version are ignored, what is not known is left out."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    def replace(self, **changes: Any) -> Self:
        """The same with some fields changed, under the same checks."""
        return type(self)(**{**dict(self), **changes})


class Condition(StatusModel):
    """As `metav1.Condition`."""

    type: ConditionType = Field(description="What it is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that it was judged from.")
    last_transition_time: Time = Field(description="When its status last changed.")
    reason: Word = Field(description="Why, in one CamelCase word.")
    message: Message = Field("", description="Why, for people.")


class Attempt(StatusModel):
    """One gang of pods, from its first to its end."""

    number: int = Field(ge=1, le=2**31 - 1, description="From 1; its checkpoints are below `attempt-NUMBER`.")
    start: Time | None = Field(None, description="When its Job was made.")
    end: Time | None = Field(None, description="When it was judged.")
    reason: Word | None = Field(None, description="How it ended, in one CamelCase word.")
    message: Note | None = Field(None, description="How it ended, for people.")
    counted: bool | None = Field(None, description="Whether its end counts against `backoffLimit`.")
    exit_code: int | None = Field(None, ge=0, le=255, description="Exit code of the first cause.")
    rank: Count | None = Field(None, description="Global rank of the process that it came from.")
    node: NodeName | None = Field(None, description="Node where that happened.")
    step_from: Count | None = Field(None, description="Iterations that were done when it began.")
    step_to: Count | None = Field(None, description="Iterations that were done when it ended.")


class Progress(StatusModel):
    """How far the run is."""

    step: Count = Field(0, description="Iterations done, over all attempts.")
    of: Count | None = Field(None, description="Iterations asked for.")
    steps: Word | None = Field(None, description="Both, for people, such as `12/100`.")
    percent: Figure = Field(None, description="100 step / of.")
    eta_seconds: Figure = Field(None, description="Seconds to the end, evaluations included; while Running.")
    eta: Word | None = Field(None, description="The same for people, such as `1h12m`.")
    images_per_second: Figure = Field(None, description="Training pictures a second.")
    updated: Time | None = Field(None, description="When the trainer said so.")


class Metrics(StatusModel):
    """The last figures of training."""

    reward: Figure = Field(None, description="Mean weighted sum of the rewards in the last iteration.")
    evaluation: Figure = Field(None, description="The same on held-out noise, in the last evaluation.")
    gap: Figure = Field(None, description="Mean reward of the winner minus the loser's, in the last iteration.")
    loss: Figure = Field(None, description="Loss of the last iteration.")


class Checkpoint(StatusModel):
    """A complete checkpoint."""

    uri: URI = Field(description="Where it is.")
    step: Count = Field(description="Iterations it holds.")
    time: Time = Field(description="When it was taken.")


class Status(StatusModel):
    """What the operator has seen of a job."""

    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this status is about.")
    phase: Phase = Field("Pending", description="The conditions in one word.")
    message: Message | None = Field(None, description="What happens and why, for people.")
    start_time: Time | None = Field(None, description="When the first pod ran; `activeDeadlineSeconds` counts from it.")
    completion_time: Time | None = Field(None, description="When it ended; `ttlSecondsAfterFinished` counts from it.")
    next_attempt_time: Time | None = Field(None, description="When the next attempt may begin.")
    restarts: Count = Field(0, description="Attempts after the first.")
    failures: Count = Field(0, description="Attempts whose end counted against `backoffLimit`.")
    progress: Progress | None = Field(None, description="How far the run is.")
    metrics: Metrics | None = Field(None, description="The last figures of training.")
    checkpoint: Checkpoint | None = Field(None, description="The newest one: what a restart would resume from.")
    resumed_from: Checkpoint | None = Field(None, description="The one that the present attempt went on from.")
    adapter: URI | None = Field(None, description="Where the trained adapter is, once Succeeded.")
    conditions: list[Condition] = Field([], max_length=8, description="What holds, and since when.")
    attempts: Annotated[list[Attempt], BeforeValidator(_newest)] = Field(
        [], max_length=KEPT_ATTEMPTS, description=f"The last {KEPT_ATTEMPTS}, oldest first."
    )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without what is not known."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def with_progress(self, seen: trainer.Progress) -> Self:
        """The same with what the trainer says of itself; what it does not say stays."""
        told = seen.to_dict()
        metrics = {**(self.metrics.model_dump(by_alias=True) if self.metrics else {}), **told["metrics"]}
        progress = Progress(
            step=seen.step,
            of=seen.of,
            steps=None if seen.of is None else f"{seen.step}/{seen.of}",
            percent=seen.percent,
            eta_seconds=seen.eta_seconds,
            eta=None if seen.eta_seconds is None else duration(seen.eta_seconds),
            images_per_second=seen.rates.images_per_second,
            updated=told["updated"],
        )
        if seen.attempt is None and self.progress is not None:  # it loads: its step 0 does not mean that all is lost
            progress = self.progress
        return self.replace(
            progress=progress,
            metrics=Metrics(**metrics) if metrics else None,
            checkpoint=_checkpoint(told.get("checkpoint")) or self.checkpoint,
            resumed_from=_checkpoint(told.get("resumedFrom")) or self.resumed_from,
            adapter=_fitting(told.get("adapter")) or self.adapter,
        )


class Job(BaseModel):
    """A `TailorPOJob` as the API server serves it."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, alias_generator=to_camel)

    api_version: Literal["tailorpo.dev/v1alpha1"] = "tailorpo.dev/v1alpha1"
    kind: Literal["TailorPOJob"] = "TailorPOJob"
    metadata: dict[str, Any]
    spec: Spec
    status: Status = Status()

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


def _checkpoint(told: dict[str, Any] | None) -> Checkpoint | None:
    return Checkpoint(**told) if told is not None and _fitting(told["uri"]) else None


def _fitting(uri: str | None) -> str | None:
    """A URI that a status can hold: a cut one would be a wrong one."""
    return uri if uri is not None and len(uri) <= MAX_URI else None
