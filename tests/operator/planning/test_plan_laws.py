"""Laws that hold for every plan: in a small cluster where anything may happen, and for any observation at all."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailorpo_operator.api.conditions import ORDER
from tailorpo_operator.api.status_size import MAX_BYTES, shrink, size
from tailorpo_operator.api.types import Attempt, Checkpoint, Condition, Job, Metrics, Progress, Status
from tailorpo_operator.planning.attempts import finished
from tailorpo_operator.planning.causes import DISRUPTIONS
from tailorpo_operator.planning.observed import AttemptJob, Exit, Observed, Pod, Reason, Report
from tailorpo_operator.planning.plan import plan
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec import progress as trainer
from tests.operator.planning.simulated import Cluster, Operator, settle
from tests.operator.stories import job, termination_message

# What may happen

Step = Callable[[Cluster, Operator], None]
CODES = [*ExitCode, 1, 137]


def edit(cluster: Cluster, **policy: Any) -> None:
    spec = cluster.job.spec
    spec = spec.model_copy(update={"run_policy": spec.run_policy.model_copy(update=policy)})
    metadata = {**cluster.job.metadata, "generation": cluster.job.generation + 1}
    cluster.job = cluster.job.model_copy(update={"spec": spec, "metadata": metadata})
    cluster.version += 1
    cluster.changes += 1


def to_pod(which: int, act: Callable[[Cluster, str], None]) -> Step:
    def step(cluster: Cluster, _: Operator) -> None:
        names = sorted(cluster.pods, reverse=True)
        if names:
            act(cluster, names[which % len(names)])

    return step


def to_attempt_job(act: Callable[[Cluster, int], None]) -> Step:
    def step(cluster: Cluster, _: Operator) -> None:
        if cluster.attempt_jobs:
            act(cluster, max(cluster.attempt_jobs))

    return step


def start_all(cluster: Cluster, _: Operator) -> None:
    cluster.control()
    for name in cluster.pods:
        cluster.start(name)


def later(seconds: float) -> Step:
    def step(cluster: Cluster, _: Operator) -> None:
        cluster.now += seconds

    return step


def queue(cluster: Cluster, _: Operator) -> None:
    cluster.queued = not cluster.queued
    if cluster.attempt_jobs:
        cluster.set_attempt_job(max(cluster.attempt_jobs), suspended=cluster.queued)


def quota(cluster: Cluster, _: Operator) -> None:
    cluster.quota = not cluster.quota


def disrupt(reason: str) -> Callable[[Cluster, str], None]:
    def act(cluster: Cluster, name: str) -> None:
        if not cluster.pods[name].done:
            cluster.set(name, disruption=Reason(reason, ""))
            cluster.delete(name)

    return act


def user(**policy: Any) -> Step:
    return lambda cluster, _: edit(cluster, **policy)


def _force(cluster: Cluster, name: str) -> None:
    cluster.delete(name, force=True)


def _delete(cluster: Cluster, name: str) -> None:
    cluster.delete(name)


def _unready(cluster: Cluster, name: str) -> None:
    cluster.set(name, ready=False)


def _ends(code: int, reason: str = "Error") -> Callable[[Cluster, str], None]:
    return lambda cluster, name: cluster.end(name, code, reason)


whole_reconciles: st.SearchStrategy[Step] = st.sampled_from(
    [lambda _, operator: (operator.read(), operator.reconcile()), lambda _, operator: operator.reconcile()]
)
killed_reconciles: st.SearchStrategy[Step] = st.integers(0, 6).map(lambda writes: lambda _, op: op.reconcile(writes))
watches: st.SearchStrategy[Step] = st.sampled_from(
    [
        lambda _, operator: operator.watch_attempt_jobs(),
        lambda _, operator: operator.watch_pods(),
        lambda _, operator: operator.watch_job(),
        lambda _, operator: operator.read(),
        lambda _, operator: operator.restart(),
    ]
)
pod_ends: st.SearchStrategy[Step] = st.builds(
    to_pod,
    st.integers(0, 3),
    st.one_of(
        st.sampled_from(CODES).map(_ends),
        st.sampled_from([_force, _delete, _unready, Cluster.lose, Cluster.start, _ends(137, "OOMKilled")]),
        st.sampled_from([*DISRUPTIONS, "Unheard"]).map(disrupt),
    ),
)
others: st.SearchStrategy[Step] = st.sampled_from(
    [
        lambda cluster, _: cluster.control(),
        lambda cluster, _: cluster.live(),
        start_all,
        start_all,
        *map(later, (1, 30, 200, 700)),
        to_attempt_job(Cluster.stop),
        queue,
        quota,
        user(suspend=True),
        user(suspend=False),
        user(active_deadline_seconds=500),
        user(start_deadline_seconds=100),
        user(start_deadline_seconds=None),
        user(backoff_limit=0),
        user(ttl_seconds_after_finished=50),
    ]
)
steps = st.lists(st.one_of(whole_reconciles, killed_reconciles, watches, pod_ends, others, others), max_size=50)
skews = st.sampled_from([0.0, -100.0, 100.0])


def live_through(taken: list[Step], skew: float) -> None:
    cluster = Cluster(skew=skew)
    operator = Operator(cluster)
    for step in taken:
        step(cluster, operator)
        attempts = {pod.attempt for pod in cluster.living}
        assert len(attempts) <= 1, "two attempts at a time"
    settle(cluster, operator)


# Derandomised, so that a change does not fail by chance. `make soak` draws new examples.
@settings(deadline=None, max_examples=500, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps, skews)
def test_whatever_happens_a_job_comes_to_an_end(taken: list[Step], skew: float) -> None:
    live_through(taken, skew)


@pytest.mark.soak
@pytest.mark.timeout(3600)  # thousands of examples, also on a busy machine
@settings(deadline=None, max_examples=10_000, suppress_health_check=[HealthCheck.too_slow])
@given(steps, skews)
def test_whatever_happens_a_job_comes_to_an_end_at_length(taken: list[Step], skew: float) -> None:
    live_through(taken, skew)


def test_a_gang_that_is_deleted_before_it_was_written_down_leaves_pods_that_no_watch_has_shown() -> None:
    """Found by the law above: its pods are waited for, though the status knows of no attempt."""
    cluster = Cluster()
    operator = Operator(cluster)
    operator.reconcile(2)
    cluster.control()
    cluster.stop(1)
    operator.watch_attempt_jobs()
    assert cluster.living
    assert not operator.pods
    operator.reconcile()
    assert not cluster.attempt_jobs
    settle(cluster, operator)
    assert cluster.job.status.phase == "Succeeded"


def test_a_cluster_in_which_nothing_happens() -> None:
    cluster = Cluster()
    settle(cluster, Operator(cluster))
    assert (cluster.job.status.phase, cluster.newest) == ("Succeeded", 1)


# Whatever can be observed

times = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
near = st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2), timezones=st.just(UTC)) | times
words = st.sampled_from(["", "Evicted", "Drained", "DeadlineExceeded", "ContainerStatusUnknown", "a\n\u2028é" * 20])
texts = st.sampled_from(
    ["", "exceeded quota", "x" * 5000, "é<&>" * 300, termination_message(0), termination_message(70), '{"step": -1}']
)
reasons = st.builds(Reason, words, texts)
numbers = st.integers(1, 4)
REASONS = [
    *("InternalError", "Completed", "Suspended", "Extended", "NodeLost", "PodDeleted", "JobDeleted", "NoProgress"),
    *("DeadlineExceeded", "Requeued", "Unheard", ""),
]
attempts = st.builds(
    Attempt,
    number=numbers,
    start=st.none() | near,
    end=st.none() | near,
    reason=st.none() | st.sampled_from(REASONS),
    message=st.none() | texts,
    counted=st.none() | st.booleans(),
)
conditions = st.builds(
    Condition,
    type=st.sampled_from(ORDER),
    status=st.sampled_from(["True", "False", "Unknown"]),
    lastTransitionTime=near,
    reason=st.sampled_from(["Queued", "Starting", "x"]),
    message=texts,
)
checkpoints = st.builds(Checkpoint, uri=st.text(max_size=2176), step=st.integers(0, 9), time=near)
statuses = st.builds(
    Status,
    phase=st.sampled_from(["Pending", "Running", "Restarting"]),
    message=st.none() | texts,
    start_time=st.none() | near,
    completion_time=st.none() | near,
    next_attempt_time=st.none() | near,
    restarts=st.integers(0, 9),
    failures=st.integers(0, 9),
    progress=st.none() | st.builds(Progress, step=st.integers(0, 200), of=st.none() | st.integers(0, 200)),
    metrics=st.none() | st.builds(Metrics, reward=st.floats()),
    checkpoint=st.none() | checkpoints,
    adapter=st.none() | st.text(max_size=2176),
    conditions=st.lists(conditions, max_size=8),
    attempts=st.lists(attempts, max_size=10),
)
attempt_jobs = st.builds(
    AttemptJob,
    name=st.just("g"),
    uid=st.just("g"),
    attempt=numbers,
    workers=st.integers(1, 3),
    created=near,
    started=st.none() | near,
    suspended=st.booleans(),
    deleting=st.booleans(),
    complete=st.booleans(),
    failed=st.booleans(),
)
pods = st.builds(
    Pod,
    name=st.sampled_from(["p", "q"]),
    uid=st.just("p"),
    attempt=numbers,
    index=st.integers(0, 2),
    created=near,
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown", ""]),
    node=st.none() | st.text(max_size=300),
    ready=st.booleans(),
    terminating=st.none() | near,
    grace=st.sampled_from([0.0, 120.0]),
    disruption=st.none() | reasons,
    unscheduled=st.none() | reasons,
    waiting=st.none() | reasons,
    ended=st.none() | reasons,
    exit=st.none() | st.builds(Exit, st.integers(-1, 300), words, texts),
    warning=st.none() | reasons,
)
reports = st.builds(
    Report,
    attempt=numbers,
    progress=st.builds(
        trainer.Progress,
        phase=st.sampled_from(["Starting", "Running"]),
        step=st.integers(-1, 2**40),
        updated=st.sampled_from(["2026-01-01T12:00:00Z", "now"]),
    ),
    advanced_at=near,
    received_at=near,
)
observations = st.builds(
    Observed,
    attempt_jobs=st.lists(attempt_jobs, max_size=4).map(tuple),
    pods=st.lists(pods, max_size=4).map(lambda found: tuple(sorted(found, key=lambda pod: (pod.attempt, pod.index)))),
    foreign_pods=st.lists(pods, max_size=1).map(tuple),
    departed_pods=st.lists(pods, max_size=1).map(tuple),
    report=st.none() | reports,
    warning=st.none() | reasons,
    refused=st.none() | reasons,
    fresh=st.booleans(),
)
jobs = st.builds(
    lambda status, policy: job(shrink(status), **policy),
    statuses,
    st.fixed_dictionaries(
        {},
        optional={
            "suspend": st.booleans(),
            "activeDeadlineSeconds": st.integers(1, 2**31 - 1),
            "startDeadlineSeconds": st.integers(1, 2**31 - 1),
            "stallTimeoutSeconds": st.integers(1, 604_800),
            "backoffLimit": st.integers(0, 5),
            "ttlSecondsAfterFinished": st.integers(0, 2**31 - 1),
        },
    ),
)


def outcome(status: Status) -> tuple[Any, ...]:
    held = {each.type for each in status.conditions if each.status == "True"}
    return status.phase, status.completion_time, status.failures, held


def check_plan(subject: Job, found: Observed, now: datetime) -> None:
    planned = plan(subject, found, now)
    if planned.fresh:
        assert not found.fresh
        assert (planned.create, planned.events, planned.delete, planned.status) == ((), (), (), subject.status)
        planned = plan(subject, replace(found, fresh=True), now)
    status = planned.status
    assert not planned.fresh
    assert size(status) <= MAX_BYTES
    assert Status.model_validate(status.to_dict()) == status
    assert planned.requeue_at is None or planned.requeue_at >= now
    assert all(each.reason and each.message for each in planned.events)
    assert all(each.reason for each in status.conditions)
    if finished(subject.status):
        assert not planned.create
        assert outcome(status) == outcome(subject.status)
    assert status.failures - subject.status.failures in (0, 1)
    suspended = subject.spec.run_policy.suspend and not found.living
    acts = planned.create or planned.delete or planned.requeue_at
    waits = found.living or any(not (each.failed or each.complete or each.deleting) for each in found.attempt_jobs)
    assert acts or waits or finished(status) or suspended or status != subject.status


@settings(deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(jobs, observations, near)
def test_a_plan_is_total(subject: Job, found: Observed, now: datetime) -> None:
    check_plan(subject, found, now)


@pytest.mark.soak
@pytest.mark.timeout(3600)  # thousands of examples, also on a busy machine
@settings(deadline=None, max_examples=5_000, suppress_health_check=[HealthCheck.too_slow])
@given(jobs, observations, near)
def test_a_plan_is_total_at_length(subject: Job, found: Observed, now: datetime) -> None:
    check_plan(subject, found, now)
