"""Parsing of Jobs and pods, whose fields the API server sets one after the other."""

from typing import Any

import pytest

from tailorpo_operator.api import naming
from tailorpo_operator.planning import observed
from tailorpo_operator.planning.observed import Exit, Reason
from tailorpo_trainer.spec.progress import MAX_BYTES
from tests.operator.stories import NOON, at, termination_message

META = {
    "name": "animals-0002-1-x",
    "uid": "u",
    "creationTimestamp": "2026-01-01T12:00:00Z",
    "labels": naming.of_attempt("animals", 2),
    "annotations": {"batch.kubernetes.io/job-completion-index": "1"},
}
TRAINER = {"name": naming.CONTAINER, "resources": {"limits": {"memory": "16Gi"}}}


def pod(meta: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **status: Any) -> observed.Pod:
    raw = {"metadata": {**META, **(meta or {})}, "spec": {"containers": [TRAINER], **(spec or {})}, "status": status}
    return observed.pod(raw, terminating=at(5))


def attempt_job(spec: dict[str, Any] | None = None, *conditions: str, **status: Any) -> observed.AttemptJob:
    held = [{"type": kind.strip("!"), "status": "False" if "!" in kind else "True"} for kind in conditions]
    raw = {"metadata": META, "spec": {"completions": 2, **(spec or {})}, "status": {"conditions": held, **status}}
    return observed.attempt_job(raw)


def state(**container: Any) -> list[dict[str, Any]]:
    """Of the trainer's container, beside another's."""
    other = {"name": "mesh", "state": {"terminated": {"exitCode": 9, "reason": "Error"}}}
    return [other, {"name": naming.CONTAINER, "state": container}]


QUEUED = {"labels": {naming.QUEUE: "research"}}
WRITTEN: dict[str, Any] = {"fieldsV1": {"f:spec": {}}}


@pytest.mark.parametrize(
    ("metadata", "spec", "status", "passed_over"),
    [
        ({}, {}, {}, False),
        (QUEUED, {}, {}, True),
        (QUEUED, {"suspend": False}, {"conditions": [{"type": "Failed", "status": "True"}]}, True),
        (QUEUED, {"suspend": True}, {}, False),
        (QUEUED, {"suspend": False}, {"conditions": [{"type": "Suspended", "status": "False"}]}, False),
        ({**QUEUED, "managedFields": [WRITTEN]}, {}, {}, True),
        ({**QUEUED, "managedFields": [WRITTEN, {**WRITTEN, "subresource": "status"}]}, {}, {}, True),
        ({**QUEUED, "managedFields": [WRITTEN, WRITTEN]}, {}, {}, False),
    ],
)
def test_a_queue_that_holds_nothing(
    metadata: dict[str, Any], spec: dict[str, Any], status: dict[str, Any], passed_over: bool
) -> None:
    made = {"metadata": {**META, **metadata}, "spec": spec, "status": status}
    assert observed.attempt_job(made).passed_over is passed_over


def test_a_pod_of_which_nothing_is_known_yet() -> None:
    found = observed.pod({"metadata": META, "spec": {"containers": [{"name": naming.CONTAINER}]}})
    assert (found.attempt, found.index, found.created) == (2, 1, NOON)
    assert (found.phase, found.node, found.ready, found.terminating) == ("Pending", None, False, None)
    assert (found.exit, found.waiting, found.disruption, found.unscheduled, found.ended) == (None,) * 5
    assert (found.done, found.ran, found.succeeded) == (False, False, False)


def test_a_pod_that_runs() -> None:
    found = pod(
        spec={"nodeName": "n"},
        phase="Running",
        podIP="10.0.0.1",
        conditions=[{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        containerStatuses=state(running={}),
    )
    assert (found.node, found.address, found.ready, found.memory) == ("n", "10.0.0.1", True, "16Gi")
    assert (found.unscheduled, found.exit, found.ran, found.done) == (None, None, True, False)


def test_of_a_message_that_no_kubelet_writes_the_end_is_kept() -> None:
    ended = {"exitCode": 70, "reason": "Error", "message": "x" * 100_000 + termination_message(70)}
    found = pod(phase="Failed", containerStatuses=state(terminated=ended))
    assert found.exit is not None
    assert len(found.exit.text) == MAX_BYTES
    assert found.exit.progress is None


def test_only_the_trainers_container_counts() -> None:
    ended = {"exitCode": 70, "reason": "Error", "message": termination_message(70)}
    found = pod(phase="Failed", containerStatuses=state(terminated=ended))
    assert found.exit == Exit(70, "Error", termination_message(70))
    assert found.exit.progress is not None
    assert found.exit.progress.step == 10
    waits = {"reason": "ImagePullBackOff", "message": "no"}
    assert pod(containerStatuses=state(waiting=waits)).waiting == Reason("ImagePullBackOff", "no")


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"step": "many"}', '{"schemaVersion": 2}'])
def test_what_is_no_last_word(text: str) -> None:
    assert Exit(1, text=text).progress is None


def test_conditions_hold_when_they_are_true() -> None:
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    assert pod(conditions=[target]).disruption == Reason("PreemptionByScheduler", "")
    assert pod(conditions=[{**target, "status": "False"}]).disruption is None
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}
    assert pod(conditions=[unscheduled]).unscheduled == Reason("Unschedulable", "0/3")


def test_a_pod_that_goes() -> None:
    found = pod({"deletionTimestamp": "2026-01-01T12:00:00Z", "deletionGracePeriodSeconds": 30}, phase="Running")
    assert (found.terminating, found.grace) == (at(5), 30.0)
    assert pod().terminating is None
    assert pod(phase="Failed", reason="Evicted", message="low on memory").ended == Reason("Evicted", "low on memory")


def test_a_gang() -> None:
    found = attempt_job()
    assert (found.attempt, found.workers, found.created, found.started) == (2, 2, NOON, None)
    assert (found.suspended, found.deleting, found.complete, found.failed) == (False,) * 4
    assert attempt_job({"suspend": True}).suspended
    assert attempt_job(startTime="2026-01-01T12:00:05Z").started == at(5)


@pytest.mark.parametrize(
    ("condition", "complete", "failed"),
    [
        ("Complete", True, False),
        ("SuccessCriteriaMet", True, False),
        ("Failed", False, True),
        ("FailureTarget", False, True),
        ("!Failed", False, False),
        ("Suspended", False, False),
    ],
)
def test_how_a_gang_ended(condition: str, complete: bool, failed: bool) -> None:
    found = attempt_job(None, condition)
    assert (found.complete, found.failed) == (complete, failed)


@pytest.mark.parametrize(("label", "attempt"), [("7", 7), ("", 0), ("-1", 0), ("x", 0), ("1.5", 0), ("²", 0)])
def test_numbers_of_attempts(label: str, attempt: int) -> None:
    assert observed.attempt_of({"labels": {naming.ATTEMPT: label}}) == attempt
    assert observed.attempt_of({}) == 0


def test_owners() -> None:
    references = [{"kind": "Job", "uid": "a"}, {"kind": "Job", "uid": "b", "controller": True}]
    raw = {"metadata": {"ownerReferences": references}}
    assert observed.owner(raw, "Job") == "b"
    assert observed.owner({"metadata": {"ownerReferences": references[:1]}}, "Job") == "a"
    assert observed.owner(raw, "TailorPOJob") is None
    assert observed.owner({"metadata": {}}, "Job") is None
