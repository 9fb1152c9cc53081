"""The operator's log: one JSON object on each line, with job and attempt; plain lines on a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime

FIELDS = ("job", "attempt", "namespace")


class JsonFormatter(logging.Formatter):
    """For log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        data |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False)


class PlainFormatter(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        subject = getattr(record, "job", None) or getattr(record, "namespace", None)
        line = (
            f"{datetime.now():%H:%M:%S} {record.levelname:7} {f'{subject}: ' if subject else ''}{record.getMessage()}"
        )
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def configure(*, verbose: bool, as_json: bool | None = None) -> None:
    """Logs to standard error. as_json: None for JSON unless standard error is a terminal."""
    plain = sys.stderr.isatty() if as_json is None else not as_json
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter() if plain else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tailorpo_operator").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("kopf").setLevel(logging.INFO if verbose else logging.WARNING)
    # kopf warns that it does not handle signals, and logs each failed request, and its own end with two tracebacks. The
    # operator logs each problem once instead, however long it lasts.
    for name in ("_core.reactor.running", "_core.reactor.orchestration", "_cogs.clients"):
        logging.getLogger(f"kopf.{name}").setLevel(logging.CRITICAL)
