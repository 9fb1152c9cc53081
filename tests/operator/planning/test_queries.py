"""A query has no side effect: it returns what it found, and the caller acts on it."""

import inspect
from copy import deepcopy
from datetime import datetime
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings

from tailorpo_operator.api.types import Job
from tailorpo_operator.planning import attempts, causes, end_cause, ending, observed, pending_reason, stopping
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.deadline import Deadline, earliest
from tailorpo_operator.planning.end_cause import Decision
from tailorpo_operator.planning.observed import Observed
from tailorpo_operator.planning.plan import plan
from tests.operator.planning.test_plan_laws import jobs, near, observations
from tests.operator.stories import NOON, RETRIES, at, attempt_job, children, job, pod, report, running


def ask(job: Job, observed: Observed, now: datetime) -> list[object]:
    """The answer of each query of the phases."""
    attempt, builder = attempts.present(job.status), PlanBuilder(job, observed, now, RETRIES)
    before = dict(vars(builder))
    answers: list[object] = [stopping.overdue(observed.living, builder.now, builder.retries)]
    if attempt is not None:
        answers += [
            end_cause.why(builder.job, builder.status, builder.observed, builder.now, attempt),
            pending_reason.why(builder.observed, builder.observed.attempt_job(attempt.number)),
            ending.last_words(builder.observed, builder.status, attempt),
        ]
    assert vars(builder) == before
    return answers


@settings(deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(jobs, observations, near)
def test_asking_twice_gives_equal_answers_and_changes_nothing(job: Job, found: Observed, now: datetime) -> None:
    before = deepcopy((job, found))
    assert ask(job, found, now) == ask(job, found, now)
    assert plan(job, found, now, RETRIES) == plan(job, found, now, RETRIES)
    assert (job, found) == before


@pytest.mark.parametrize("module", [causes, end_cause, observed, pending_reason])
def test_modules_of_queries_do_not_know_the_builder(module: ModuleType) -> None:
    assert PlanBuilder not in vars(module).values()
    for _, function in inspect.getmembers(module, inspect.isfunction):
        assert "builder" not in inspect.signature(function).parameters


def test_a_decision_says_when_the_answer_changes() -> None:
    def why(seconds: float, found: Observed) -> Decision:
        limited = job(running(), activeDeadlineSeconds=1000, stallTimeoutSeconds=60)
        return end_cause.why(limited, limited.status, found, at(seconds), limited.status.attempts[-1])

    runs = (attempt_job(), pod(), pod(1))
    assert why(10, children(*runs)) == Decision(due=at(1000))
    assert why(10, children(*runs, report=report(1))) == Decision(due=at(120))
    assert why(400, children(*runs, report=report(1))) == Decision(due=at(430)), "out of reach: it is polled again"
    late = why(1000, children(*runs, report=report(1)))
    assert (late.cause and late.cause.reason, late.due) == ("DeadlineExceeded", None)
    missing = why(10, children(attempt_job(), pod(), fresh=False))
    assert (missing.cause and missing.cause.reason, missing.needs_fresh, missing.due) == ("PodDeleted", True, at(1000))


def test_a_deadline() -> None:
    deadline = Deadline(NOON, 60)
    assert (deadline.due, deadline.passed(at(59)), deadline.passed(at(60))) == (at(60), False, True)
    assert earliest(None, at(2), at(1)) == at(1)
    assert earliest(None) is None
