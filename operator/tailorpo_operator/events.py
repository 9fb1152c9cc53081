"""Events as the API has them (events.k8s.io/v1): what `kubectl describe` tells as the story of a job."""

from datetime import UTC, datetime
from hashlib import blake2s
from typing import Any

from tailorpo_operator.actions import Announce
from tailorpo_operator.api import Job
from tailorpo_trainer.progress import shorten

REPORTER = "tailorpo.dev/operator"
MAX_NOTE, MAX_REASON = 1024, 128


def event(job: Job, announcement: Announce, now: datetime) -> dict[str, Any]:
    """Its name is a function of what it says of whom: who sends it again is told that it exists."""
    digest = blake2s(announcement.key.encode(), digest_size=8).hexdigest()
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
        "eventTime": now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "reportingController": REPORTER,
        "reportingInstance": "tailorpo-operator",
        "action": "Reconcile",
        "type": announcement.kind,
        "reason": announcement.reason[:MAX_REASON],
        "note": shorten(announcement.message, MAX_NOTE),
        "regarding": {
            "apiVersion": job.api_version,
            "kind": job.kind,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
    }
