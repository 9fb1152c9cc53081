"""How far a run is and how it ended, in one schema: `progress.json`, `/progress` and the termination message.

`docs/progress.md` describes it. No torch. Whatever text enters is rid of credentials here, and nowhere else.
"""

import math
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tailorpo_trainer import errors
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.versions import now

MESSAGE_LENGTH = 256
TEXT_LENGTH = 8192

Phase = Literal["Starting", "Running", "Succeeded", "Stopped", "Failed"]

_USER = re.compile(r"([a-zA-Z][\w+.-]*://)[^/\s]*@")
_QUERY = re.compile(r"([a-zA-Z][\w+.-]*://[^\s?#'\"]*\?)[^\s#'\"]+")
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without users, passwords and queries of URLs, and without any secret of this process' environment."""
    text = _QUERY.sub(r"\1…", _USER.sub(r"\1", text))
    for name, secret in os.environ.items():
        if len(secret) >= 8 and _SECRET.search(name):
            text = text.replace(secret, "***")
    return text


def shorten(text: str, length: int) -> str:
    """At most `length` characters: what an error says first, and a little of how it ends."""
    if len(text) <= length:
        return text
    head = max(0, length - length // 4 - 3)
    return f"{text[:head]} … {text[len(text) - length // 4 :]}"[:length]


def _text(length: int) -> BeforeValidator:
    def clean(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # Names of files may hold bytes that are no text, which JSON cannot say.
        return shorten(redact(value.encode("utf-8", "backslashreplace").decode()), length)

    return BeforeValidator(clean)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Text = Annotated[str, _text(TEXT_LENGTH)]
Message = Annotated[str, _text(MESSAGE_LENGTH)]
Word = Annotated[str, BeforeValidator(lambda value: shorten(value, 63) if isinstance(value, str) else value)]
Number = Annotated[float | None, BeforeValidator(_finite)]


class Part(BaseModel):
    """Base of the schema: camelCase outside, unknown keys ignored, what is not known left out."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class Rates(Part):
    """How fast it goes, over the last iterations."""

    images_per_second: Number = Field(None, description="Training pictures a second.")


class Metrics(Part):
    """The last figures."""

    reward: Number = Field(None, description="Mean weighted sum of the rewards in the last iteration.")
    evaluation: Number = Field(None, description="The same on held-out noise, in the last evaluation.")
    gap: Number = Field(None, description="Mean reward of the winner minus the loser's, in the last iteration.")
    loss: Number = Field(None, description="Loss of the last iteration.")


class Checkpoint(Part):
    """A complete checkpoint."""

    uri: Text = Field(description="Where it is.")
    step: int = Field(description="Iterations it holds.")
    time: Word = Field(description="When it was taken (RFC 3339).")


class Error(Part):
    """Why a run ended, if not because it was done."""

    class_: Word = Field(alias="class", description="Class of the error, such as `ConfigurationError`.")
    text: Text = Field(description="The whole message.")
    exit_code: int = Field(description="Exit status of the process (`docs/exit-codes.md`).")
    rank: int | None = Field(None, description="Global rank of the process, where there are several.")


class Progress(Part):
    """One moment of a run."""

    # Keys may be added within a version, for readers ignore what they do not know. Anything else is a new version.
    schema_version: Literal[1] = Field(1, description="Of this schema.")
    name: Word | None = Field(None, description="Name of the job; missing if its document could not be read.")
    namespace: Word | None = Field(None, description="Its namespace, on a cluster.")
    attempt: int | None = Field(None, description="Which attempt this is, from 1; missing before it has begun.")
    phase: Phase = Field("Starting", description="`Starting` until the first iteration may begin.")
    step: int = Field(0, description="Iterations done, over all attempts.")
    of: int | None = Field(None, description="Iterations asked for.")
    percent: Number = Field(None, description="100 step / of.")
    eta_seconds: Number = Field(None, description="Seconds to the end, evaluations included; while Running only.")
    rates: Rates = Rates()
    metrics: Metrics = Metrics()
    checkpoint: Checkpoint | None = Field(None, description="The newest one, from which a resume would go on.")
    resumed_from: Checkpoint | None = Field(None, description="The one that this attempt went on from.")
    adapter: Text | None = Field(None, description="Where the result is, once Succeeded.")
    error: Error | None = Field(None, description="Why it ended; missing while it runs and once Succeeded.")
    message: Message | None = Field(None, description="One line for a person.")
    updated: str = Field(default_factory=now, description="When this was true (RFC 3339).")

    def having(self, **changes: Any) -> Self:
        """The same with some fields changed, as true now."""
        return type(self)(**{**dict(self), "updated": now(), **changes})

    def ended(self, error: BaseException, code: int | None = None) -> Self:
        """The last word of a run that this error ends. code: the exit status, if another than the error's own."""
        code = errors.status(error) if code is None else code
        known = errors.understood(error) or error
        text = str(known) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            text = "interrupted: stopped at once, without a checkpoint"
        rank = os.environ.get("RANK", "")
        number = int(rank) if rank.isdecimal() else None
        return self.ended_by(Error(class_=type(known).__name__, text=text, exit_code=code, rank=number))

    def ended_by(self, error: Error) -> Self:
        """The last word of a run that ended so."""
        asked = error.exit_code in (ExitCode.STOPPED, ExitCode.INTERRUPTED)
        message = next(iter(error.text.splitlines()), "")
        return self.having(phase="Stopped" if asked else "Failed", eta_seconds=None, error=error, message=message)

    def tree(self) -> dict[str, Any]:
        """As JSON values, without what is not known."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
