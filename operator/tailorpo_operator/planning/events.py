"""Events: what `kubectl describe` tells as the story of a job.

Those of `v1`, not of `events.k8s.io/v1`: kubectl puts them in order by `lastTimestamp`, which the latter refuses.
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
"""What comes first within a second, in which kubectl keeps the order of names."""


def event(job: Job, announcement: RecordEvent, now: datetime) -> dict[str, Any]:
    """Its name is a function of what it says of whom: who sends it again is told that it exists."""
    digest = blake2s(announcement.key.encode(), digest_size=8).hexdigest()
    place = FIRST.index(announcement.reason) if announcement.reason in FIRST else len(FIRST)
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
        "type": announcement.kind,
        "reason": announcement.reason[:MAX_REASON],
        "message": line(announcement.message, MAX_NOTE),
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
