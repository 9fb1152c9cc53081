"""Logs of the operator: one JSON object a line, with job and attempt; plain lines on a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime

FIELDS = ("job", "attempt", "namespace")


class JSON(logging.Formatter):
    """As log collectors read them."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        tree = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        tree |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            tree["exception"] = self.formatException(record.exc_info)
        return json.dumps(tree, ensure_ascii=False)


class Plain(logging.Formatter):
    """As people read them."""

    def format(self, record: logging.LogRecord) -> str:
        about = getattr(record, "job", None) or getattr(record, "namespace", None)
        line = f"{datetime.now():%H:%M:%S} {record.levelname:7} {f'{about}: ' if about else ''}{record.getMessage()}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def begin(*, verbose: bool, as_json: bool | None = None) -> None:
    """Logs to standard error. as_json: None leaves it to whether that is a terminal."""
    plain = sys.stderr.isatty() if as_json is None else not as_json
    handler = logging.StreamHandler()
    handler.setFormatter(Plain() if plain else JSON())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tailorpo_operator").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("kopf").setLevel(logging.INFO if verbose else logging.WARNING)
    # It warns that signals are not its own, and tells each request that fails, and its end with two tracebacks: we tell
    # once what is wrong, however long it lasts.
    for name in ("_core.reactor.running", "_core.reactor.orchestration", "_cogs.clients"):
        logging.getLogger(f"kopf.{name}").setLevel(logging.CRITICAL)
