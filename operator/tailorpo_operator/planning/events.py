"""Events, which `kubectl describe` shows as the history of a job.

They are of `v1` instead of `events.k8s.io/v1`: kubectl sorts them by `lastTimestamp`, which the latter refuses.
"""

from datetime import UTC, datetime
from hashlib import blake2s
from typing import Any

from tailorpo_operator.api.types import Job
from tailorpo_operator.planning.actions import RecordEvent
from tailorpo_trainer.spec.progress import line

REPORTER = "tailorpo.dev/operator"
MAX_NOTE, MAX_REASON = 1024, 128
FIRST = ("Resumed", "AttemptStarted", "Running")
"""The first events of a second, for kubectl sorts events of one second by name."""


def event(job: Job, record: RecordEvent, now: datetime) -> dict[str, Any]:
    """The event as a raw object. Its name is a function of the key, so that creating it again is refused."""
    digest = blake2s(record.key.encode(), digest_size=8).hexdigest()
    place = FIRST.index(record.reason) if record.reason in FIRST else len(FIRST)
    second = _timestamp(now, "seconds")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{place}{digest}", "namespace": job.namespace},
        "eventTime": _timestamp(now, "microseconds"),
        "firstTimestamp": second,
        "lastTimestamp": second,
        "count": 1,
        "source": {"component": REPORTER},
        "reportingComponent": REPORTER,
        "reportingInstance": "tailorpo-operator",
        "action": "Reconcile",
        "type": record.kind,
        "reason": record.reason[:MAX_REASON],
        "message": line(record.message, MAX_NOTE),
        "involvedObject": {
            "apiVersion": job.api_version,
            "kind": job.kind,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
    }


def _timestamp(now: datetime, precision: str) -> str:
    return now.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
