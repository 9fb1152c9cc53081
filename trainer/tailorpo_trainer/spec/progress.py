"""How far a run is and how it ended, in one schema: `progress.json`, `/progress` and the termination message.

`docs/progress.md` describes it. No torch. Credentials are removed from all texts here, and nowhere else. The operator
parses texts of pods on its event loop: each pattern below takes time in proportion to the length of its text.
"""

import math
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tailorpo_trainer import errors
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.versions import now

MESSAGE_LENGTH = 256
TEXT_LENGTH = 8192
SEARCHED_LENGTH, SEARCHED_END = 4 * TEXT_LENGTH, TEXT_LENGTH
"""Characters that are searched for credentials: at the beginning of a longer text, and at its end."""
MAX_BYTES = 16 * 1024
"""Limit for the progress of another process; our own needs two addresses of the greatest length, and a little more."""

Phase = Literal["Starting", "Running", "Succeeded", "Stopped", "Failed"]

# A pattern that begins with a repetition is tried only where a word begins, not at each letter of a long word. And no
# pattern fails far behind its beginning, or each of many beginnings would be followed to the end of the text.
_USER = re.compile(r"://[^/\s]*@")
_UNFINISHED = re.compile(r"://[^/\s]*\Z")
_QUERY = re.compile(r"(://[^\s?#'\"]*)(\?[^\s#'\"]+)?")
_NAMES = (
    r"SECRET|TOKEN(?!IZ)|PASSW|PASSPHRASE|CREDENTIAL|(?:ACCESS|API)[_-]?KEY|[_.-](?:KEY|PWD)(?![A-Z0-9])"
    r"|(?<![A-Z0-9])(?:PASS|AUTH)(?![A-Z0-9])"
)
_SECRET = re.compile(_NAMES, re.IGNORECASE)
# Not in a path, where `=` is an ordinary character. A value in quotes may contain spaces.
_ASSIGNED = re.compile(
    rf"(?<![\w./-])(?=[\w.-]*(?:{_NAMES}))([\w.-]+ ?=(?!=) ?)(?=\S)"
    r"""(?:"[^"\\\n]*(?:\\.[^"\\\n]*)*"?|'[^'\\\n]*(?:\\.[^'\\\n]*)*'?)?\S*""",
    re.IGNORECASE,
)
_UNPRINTABLE = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
_CONTROL = re.compile(f"[{_UNPRINTABLE}]+")
_CONTROL_OR_BREAK = re.compile(f"[{_UNPRINTABLE}\t\n]+")


def redact(text: str) -> str:
    """Remove users, passwords and queries of URLs, values with a secret's name, and secrets of the environment.

    Characters that move a terminal's cursor or reverse its text are removed as well. A text longer than
    `SEARCHED_LENGTH` loses its middle.
    """
    for secret in _own_secrets():  # before the text is cut: half of a secret would not be recognised
        text = text.replace(secret, "***")
    # Names of files may contain bytes that are not text, which JSON cannot represent.
    text = _searched_text(text).encode("utf-8", "backslashreplace").decode()
    text = _QUERY.sub(lambda url: url[1] + ("?…" if url[2] else ""), _USER.sub("://", text))
    return _CONTROL.sub(" ", _ASSIGNED.sub(r"\1***", text))


def _own_secrets() -> list[str]:
    """The secrets of this process' environment, the longest first, because one may contain another."""
    named = {secret for name, secret in os.environ.items() if len(secret) >= 8 and _SECRET.search(name)}
    return sorted(named, key=len, reverse=True)


def _searched_text(text: str) -> str:
    """The beginning and the end of a long text, cut so that no secret stays unrecognised.

    A secret is recognised by the text before it, except the user of a URL. So the beginning is safe without an
    unfinished URL, and the end is safe from its first new line on.
    """
    if len(text) <= SEARCHED_LENGTH:
        return text
    end = text[-SEARCHED_END:].partition("\n")[2]
    return f"{_UNFINISHED.sub('://', text[:SEARCHED_LENGTH])} … {end}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters: most of the beginning of a text, and a little of its end."""
    if len(text) <= length:
        return text
    head = max(0, length - length // 4 - 3)
    return f"{text[:head]} … {text[len(text) - length // 4 :]}"[:length]


def line(text: str, length: int) -> str:
    """The same in one line, without characters that move a terminal's cursor or reverse its text."""
    return _CONTROL_OR_BREAK.sub(" ", shorten(text, length))


def _cleaned(clean: Callable[[str], str]) -> BeforeValidator:
    return BeforeValidator(lambda value: clean(value) if isinstance(value, str) else value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Text = Annotated[str, _cleaned(lambda text: shorten(redact(text), TEXT_LENGTH))]
Message = Annotated[str, _cleaned(lambda text: line(redact(text), MESSAGE_LENGTH))]
ShortText = Annotated[str, _cleaned(lambda text: line(text, 63))]
Number = Annotated[float | None, AfterValidator(_finite)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ProgressModel(BaseModel):
    """Base of the schema: camelCase in JSON; unknown keys are ignored, unknown values left out."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class Rates(ProgressModel):
    """How fast it goes, over the last iterations."""

    images_per_second: Number = Field(None, description="Training pictures a second.")


class Metrics(ProgressModel):
    """The last figures."""

    reward: Number = Field(None, description="Mean weighted sum of the rewards in the last iteration.")
    evaluation: Number = Field(None, description="The same on held-out noise, in the last evaluation.")
    gap: Number = Field(None, description="Mean reward of the winner minus the loser's, in the last iteration.")
    loss: Number = Field(None, description="Loss of the last iteration.")


class Checkpoint(ProgressModel):
    """A complete checkpoint."""

    uri: Text = Field(description="Where it is.")
    step: Whole = Field(description="Iterations it holds.")
    time: ShortText = Field(description="When it was taken (RFC 3339).")


class Error(ProgressModel):
    """Why a run ended, if not because it was done."""

    class_: ShortText = Field(alias="class", description="Class of the error, such as `ConfigurationError`.")
    text: Text = Field(description="The whole message.")
    exit_code: Whole = Field(description="Exit status of the process (`docs/exit-codes.md`).")
    rank: Whole | None = Field(None, description="Global rank of the process, where there are several.")


class Progress(ProgressModel):
    """One moment of a run."""

    # Keys may be added within a version, for readers ignore what they do not know. Anything else is a new version.
    schema_version: Literal[1] = Field(1, description="Of this schema.")
    name: ShortText | None = Field(None, description="Name of the job; missing if its document could not be read.")
    namespace: ShortText | None = Field(None, description="Its namespace, on a cluster.")
    attempt: Whole | None = Field(None, description="Which attempt this is, from 1; missing before it has begun.")
    phase: Phase = Field("Starting", description="`Starting` until the first iteration may begin.")
    step: Whole = Field(0, description="Iterations done, over all attempts.")
    of: Whole | None = Field(None, description="Iterations asked for.")
    percent: Number = Field(None, description="100 step / of.")
    eta_seconds: Number = Field(None, description="Seconds to the end, evaluations included; while Running only.")
    rates: Rates = Rates()
    metrics: Metrics = Metrics()
    checkpoint: Checkpoint | None = Field(None, description="The newest one, from which a resume would go on.")
    resumed_from: Checkpoint | None = Field(None, description="The one that this attempt went on from.")
    adapter: Text | None = Field(None, description="Where the result is, once Succeeded.")
    error: Error | None = Field(None, description="Why it ended; missing while it runs and once Succeeded.")
    message: Message | None = Field(None, description="One line for a person.")
    updated: ShortText = Field(default_factory=now, description="When this was true (RFC 3339).")

    @classmethod
    def read(cls, data: bytes | str) -> Self | None:
        """The progress of another process; None if the data is invalid, or longer than `MAX_BYTES`.

        Never raises, and takes a few milliseconds at most, so that an event loop may call it.
        """
        if len(data) > MAX_BYTES:
            return None
        try:
            return cls.model_validate_json(data)
        except Exception:  # untrusted bytes may cause any error: they are not progress
            return None

    def replace(self, **changes: Any) -> Self:
        """The same with some fields changed and the current time."""
        return type(self)(**{**dict(self), "updated": now(), **changes})

    def ended(self, error: BaseException, code: int | None = None) -> Self:
        """The final progress of a run that ends with this error. code: the exit status, if not the error's own."""
        code = errors.status(error) if code is None else code
        known = errors.as_user_error(error) or error
        text = str(known) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            text = "interrupted: stopped at once, without a checkpoint"
        rank = os.environ.get("RANK", "")
        number = int(rank) if rank.isdecimal() else None
        return self.ended_by(Error(class_=type(known).__name__, text=text, exit_code=code, rank=number))

    def ended_by(self, error: Error) -> Self:
        """The final progress of a run that ended with this error."""
        asked = error.exit_code in (ExitCode.STOPPED, ExitCode.INTERRUPTED)
        message = next(iter(error.text.splitlines()), "")
        return self.replace(phase="Stopped" if asked else "Failed", eta_seconds=None, error=error, message=message)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
