"""Plans for a job, as short stories; `test_plan_laws.py` has what holds in all of them."""

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest

from tailorpo_operator.api.types import Progress, Status
from tailorpo_operator.children.indexed_job import template_hash
from tailorpo_operator.planning.actions import CreateService, DeleteJob
from tailorpo_operator.planning.observed import Exit, Pod, Reason, Report
from tailorpo_operator.planning.plan import plan
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec import progress as trainer
from tailorpo_trainer.spec.pod_template import Resources, Template
from tests.operator.stories import (
    GRACE,
    NOON,
    RETRIES,
    Story,
    at,
    attempt_job,
    begun,
    children,
    conditions,
    exited,
    finished,
    job,
    keys,
    over,
    pending,
    pod,
    report,
    running,
    terminating,
    termination_message,
)

LOST = GRACE + RETRIES.lost
STOPPED = ExitCode.STOPPED


def running_story(**policy: Any) -> Story:
    """A gang of two that runs since noon."""
    return Story(running(), **policy)


# A spec of a newer definition


def test_a_field_that_is_not_known_holds_the_next_attempt_and_nothing_else() -> None:
    unknown = Reason("NotUnderstood", "spec.training.newKnob: 8: not known")
    story = Story(startDeadlineSeconds=60)
    story.reconcile(0, unknown=unknown)
    assert (story.phase, story.status.reason, story.begins) == ("Pending", "NotUnderstood", [])
    assert "newKnob" in str(story.status.message)
    assert story.events == [("Warning", "NotUnderstood")]
    story.reconcile(10)
    assert story.begins == [1]

    story = running_story()
    story.reconcile(0, attempt_job(), pod(), pod(1), unknown=unknown)
    assert story.phase == "Running"
    assert str(story.status.message).endswith("; spec.training.newKnob: 8: not known")
    story.reconcile(10, attempt_job(), pod(), unknown=unknown)
    assert (story.last.reason, story.stops) == ("PodDeleted", [1])
    story.reconcile(20, unknown=unknown)
    story.reconcile(60, unknown=unknown)
    assert (story.phase, story.status.reason, story.begins) == ("Restarting", "NotUnderstood", [])
    story.reconcile(70)
    assert story.begins == [2]


# A life


def test_a_whole_life() -> None:
    story = Story()
    story.reconcile(0)
    assert story.begins == [1]
    assert CreateService() in story.planned.create
    assert story.events == [("Normal", "AttemptStarted")]
    assert (story.phase, story.status.message) == ("Starting", "attempt 1: 2 pods starting")
    assert story.planned.requeue_at == at(2)

    story.reconcile(2, attempt_job(), pending(), pending(1))
    assert (story.phase, story.events) == ("Starting", [])
    story.reconcile(4, attempt_job(), pod(), pending(1))
    assert story.status.start_time == at(4), "the deadline counts from the first pod"
    assert story.phase == "Starting"
    story.reconcile(5, attempt_job(), pod(), pod(1))
    assert (story.phase, story.status.message) == ("Running", "attempt 1: 2 pods running")
    assert story.events == [("Normal", "Running")]
    assert story.status.start_time == at(4)

    story.reconcile(50, attempt_job(), pod(), pod(1), report=report(10))
    assert story.status.progress is not None
    assert story.status.progress.steps == "10/100"

    story.reconcile(100, attempt_job(), exited(0), pod(1))
    assert (story.phase, story.last.end, story.begins, story.stops) == ("Running", None, [], [])
    story.reconcile(101, attempt_job(complete=True), exited(0), exited(0, 1))
    assert story.phase == "Succeeded"
    assert story.status.message == "done: 100/100 iterations"
    assert story.status.completion_time == at(101)
    assert story.status.adapter == "s3://models/animals/adapter"
    assert (story.last.reason, story.last.exit_code, story.last.counted) == ("Completed", 0, False)
    assert (story.last.step_to, story.status.failures, story.status.restarts) == (100, 0, 0)
    assert story.events == [("Normal", "Succeeded")]
    assert story.stops == [], "its log can still be read"


def test_one_worker_has_no_service() -> None:
    story = Story(workers=1)
    story.reconcile(0)
    assert [type(each).__name__ for each in story.planned.create] == ["CreateAttempt"]


def test_the_conditions_along_the_way() -> None:
    story = Story()
    story.reconcile(0)
    assert [story.condition_of("PodsReady"), story.condition_of("Running")] == [("False", "Starting")] * 2
    story.reconcile(5, attempt_job(), pod(), pod(1))
    assert [story.condition_of("PodsReady"), story.condition_of("Running")] == [
        ("True", "PodsReady"),
        ("True", "Running"),
    ]
    assert story.condition_of("Restarting") == ("False", "Running")
    story.reconcile(9, attempt_job(failed=True), pod(), exited(ExitCode.INTERNAL, 1))
    assert story.condition_of("Restarting") == ("True", "InternalError")
    assert story.condition_of("Running") == story.condition_of("PodsReady") == ("False", "InternalError")
    story.reconcile(10, attempt_job(failed=True), exited(STOPPED), exited(ExitCode.INTERNAL, 1))
    story.reconcile(30, attempt_job(failed=True), exited(STOPPED), exited(ExitCode.INTERNAL, 1))
    assert story.begins == [2]
    assert story.condition_of("Restarting") == ("True", "InternalError"), "until it runs again"
    story.reconcile(40, attempt_job(failed=True), attempt_job(2), pod(0, 2), pod(1, 2))
    assert story.condition_of("Restarting") == ("False", "Running")
    story.reconcile(50, attempt_job(2), exited(0, 0, 2), exited(0, 1, 2))
    assert story.condition_of("Succeeded") == ("True", "Completed")
    assert story.condition_of("Running") == ("False", "Succeeded")
    assert story.condition_of("Failed") is None
    assert {each.observed_generation for each in story.status.conditions} == {1}


# How attempts end


@pytest.mark.parametrize("code", [ExitCode.CONFIGURATION, ExitCode.BAD_DATA, ExitCode.NOT_FINITE, ExitCode.USAGE])
def test_what_would_fail_again_fails_at_once(code: int) -> None:
    story = running_story()
    story.reconcile(10, attempt_job(failed=True), exited(code), exited(STOPPED, 1))
    assert (story.phase, story.status.message) == ("Failed", f"the trainer says {code}")
    assert story.status.completion_time == at(10)
    assert story.events == [("Warning", "Failed")]
    story.reconcile(9999, attempt_job(failed=True), exited(code), exited(STOPPED, 1))
    assert (story.begins, story.stops) == ([], []), "its log can still be read"


@pytest.mark.parametrize(
    "code", [ExitCode.OUT_OF_RESOURCES, ExitCode.INTERNAL, ExitCode.UNAVAILABLE, ExitCode.STALLED, 1, 137]
)
def test_a_failure_is_tried_again_as_often_as_allowed(code: int) -> None:
    story = Story(workers=1, backoffLimit=1)
    for number in (1, 2):
        story.reconcile(100 * number, fresh=True)
        assert story.begins == [number]
        story.reconcile(100 * number + 1, attempt_job(number, workers=1), pod(0, number))
        story.reconcile(100 * number + 2, attempt_job(number, workers=1, failed=True), exited(code, 0, number))
        assert (story.last.counted, story.status.failures) == (True, number)
    assert story.phase == "Failed"
    assert story.condition_of("Failed") == ("True", "BackoffLimitExceeded")
    assert story.status.reason == "BackoffLimitExceeded"
    assert str(story.status.message).endswith(f"runPolicy.backoffLimit is 1: the trainer says {code}")


@pytest.mark.parametrize("adapter", ["s3://models/animals/adapter", None])
def test_an_end_before_the_last_iteration_is_no_success(adapter: str | None) -> None:
    """Whatever phase and adapter its message claims, as where a library calls `exit(0)`."""
    words = trainer.Progress(attempt=1, phase="Succeeded", step=1, of=3, adapter=adapter)
    early = exited(0, text=words.model_dump_json(by_alias=True, exclude_none=True))
    story = running_story(backoffLimit=0)
    for seconds, complete in ((10, False), (20, True)):
        story.reconcile(seconds, attempt_job(complete=complete), early, pod(1) if not complete else exited(0, 1))
    assert (story.last.reason, story.last.counted, story.last.exit_code) == ("Unfinished", True, 0)
    assert story.condition_of("Failed") == ("True", "BackoffLimitExceeded")
    assert (story.status.adapter, story.condition_of("Succeeded")) == (None, None)
    assert "after step 1 of 3" in str(story.status.message)


def test_only_a_success_has_an_adapter() -> None:
    """A pod may say anything while it runs and when it fails."""
    said = trainer.Progress(attempt=1, phase="Succeeded", step=5, of=100, adapter="s3://models/animals/adapter")
    story = running_story()
    story.reconcile(5, attempt_job(), pod(), pod(1), report=Report(1, said, advanced_at=NOON, received_at=NOON))
    assert story.status.progress is not None
    assert (story.status.progress.step, story.status.adapter) == (5, None)
    lies = exited(70, text=said.model_dump_json(by_alias=True, exclude_none=True))
    planned = story.reconcile(10, attempt_job(failed=True), lies, pod(1, terminating=NOON), fresh=False)
    assert (story.last.reason, story.status.adapter) == ("InternalError", None)
    assert planned.requeue_at != at(10), "nothing is left to write"
    story.reconcile(20, attempt_job(failed=True), lies, exited(75, 1))
    assert (story.phase, story.status.adapter) == ("Restarting", None)
    story.reconcile(40)
    story.reconcile(50, attempt_job(2), exited(0, 0, 2), pod(1, 2))
    assert (story.last.reason, story.status.adapter) == ("Completed", "s3://models/animals/adapter")
    story.reconcile(60, attempt_job(2, complete=True), exited(0, 0, 2), exited(0, 1, 2))
    assert (story.phase, story.status.adapter) == ("Succeeded", "s3://models/animals/adapter")


def test_the_message_while_the_next_attempt_is_waited_for() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(failed=True), exited(ExitCode.UNAVAILABLE), exited(STOPPED, 1))
    assert story.status.message == "attempt 1 ended: the trainer says 69; the next begins at 12:00:20 UTC"
    assert (story.phase, story.status.next_attempt_time) == ("Restarting", at(20))
    assert story.planned.requeue_at == at(20)
    assert story.events == [("Warning", "Unavailable")]
    ended = (attempt_job(failed=True), exited(ExitCode.UNAVAILABLE), exited(STOPPED, 1))
    story.reconcile(19, *ended)
    assert story.begins == []
    story.reconcile(20, *ended)
    assert story.begins == [2]
    assert story.status.next_attempt_time is None
    assert story.stops == [], "the last failed attempt stays for its log"


def test_old_attempts_go_when_a_new_one_begins() -> None:
    story = Story(running(over(1), begun(2)))
    ended = (attempt_job(1, failed=True), attempt_job(2, failed=True), exited(70, 0, 2), exited(70, 1, 2))
    story.reconcile(10, *ended)
    story.reconcile(100, *ended)
    assert (story.begins, story.stops) == ([3], [1])


def test_backoff_grows_and_a_healthy_attempt_resets_it() -> None:
    waits, story, time = list[float](), Story(workers=1, backoffLimit=10), 0.0
    for number, lasts in enumerate([1, 1, 1, 600, 1], start=1):
        story.reconcile(time)
        assert story.begins == [number]
        time += lasts
        story.reconcile(time, attempt_job(number, workers=1, failed=True), exited(ExitCode.INTERNAL, 0, number))
        due = story.status.next_attempt_time
        assert due is not None
        waits.append((due - at(time)).total_seconds())
        time += waits[-1]
    assert waits == [10, 20, 40, 10, 20]


def test_a_gang_ends_at_the_first_failed_pod() -> None:
    """Its Job stops the others, for it has failed; so it need not be deleted, and its log stays."""
    story = running_story()
    story.reconcile(10, attempt_job(), exited(ExitCode.INTERNAL), pod(1))
    assert (story.last.reason, story.last.end, story.stops) == ("InternalError", None, [])
    assert story.status.message == "attempt 1 is ending: the trainer says 70"
    story.reconcile(11, attempt_job(failed=True), exited(ExitCode.INTERNAL), *terminating([pod(1)]))
    assert (story.begins, story.status.failures) == ([], 0)
    story.reconcile(12, attempt_job(failed=True), exited(ExitCode.INTERNAL))
    assert (story.last.reason, story.status.failures) == ("InternalError", 1)


def test_a_peer_that_is_told_to_stop_by_its_own_failing_gang_is_no_cause() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(), exited(ExitCode.STALLED), *terminating([pod(1)]))
    assert story.last.reason == "Stalled"


@pytest.mark.parametrize(
    ("reason", "reported"),
    [("PreemptionByScheduler", "Preempted"), ("EvictionByEvictionAPI", "Drained"), ("DeletionByPodGC", "NodeLost")],
)
def test_a_disruption_ends_the_gang_and_is_not_counted(reason: str, reported: str) -> None:
    story = running_story(backoffLimit=0)
    going = pod(1, disruption=Reason(reason), terminating=at(10))
    story.reconcile(10, attempt_job(), pod(), going)
    assert story.stops == [1]
    assert (story.last.reason, story.phase) == (reported, "Restarting")
    story.reconcile(
        11, attempt_job(deleting=True), pod(terminating=at(11)), exited(STOPPED, 1, disruption=Reason(reason))
    )
    assert story.last.end is None
    story.reconcile(12)
    assert (story.last.reason, story.last.counted, story.last.node) == (reported, False, "node-1")
    assert (story.status.failures, story.phase) == (0, "Restarting")
    story.reconcile(22)
    assert story.begins == [2]


def test_a_drained_pod_is_a_cause_before_it_has_ended() -> None:
    """Its termination message is known later, and perhaps only after it was deleted."""
    drained = Reason("EvictionByEvictionAPI")
    going = [pod(index, disruption=drained, terminating=at(10)) for index in (0, 1)]
    ended = [
        exited(
            STOPPED, index, text=termination_message(STOPPED, step=30 + index), disruption=drained, terminating=at(10)
        )
        for index in (0, 1)
    ]
    story = running_story()
    story.reconcile(10, attempt_job(), *going)
    assert (story.last.reason, story.last.rank, story.last.exit_code) == ("Drained", 0, None)
    story.reconcile(20, attempt_job(deleting=True), ended[0], going[1])
    assert (story.last.reason, story.last.exit_code, story.last.step_to) == ("Drained", STOPPED, 30)

    story = running_story()
    story.reconcile(10, attempt_job(), *going)
    story.reconcile(20, attempt_job(deleting=True), departed_pods=tuple(ended))
    assert (story.last.reason, story.last.exit_code, story.last.step_to) == ("Drained", STOPPED, 31)
    assert (story.last.counted, story.last.node, story.last.end) == (False, "node-0", at(20))


def test_the_checkpoint_is_what_the_first_worker_says_though_its_pod_is_gone() -> None:
    """No other worker hears of checkpoints; one may have come farther, and then the checkpoint stays."""

    def saved(attempt: int, step: int) -> trainer.Checkpoint:
        time = "2026-01-01T12:00:00Z"
        return trainer.Checkpoint(uri=f"s3://models/animals/attempt-{attempt:04d}/step-{step}", step=step, time=time)

    def stopped(index: int, step: int, checkpoint: trainer.Checkpoint | None = None) -> Pod:
        reported = trainer.Progress(attempt=2, phase="Stopped", step=step, of=100, checkpoint=checkpoint)
        return exited(STOPPED, index, attempt=2, text=reported.model_dump_json(by_alias=True, exclude_none=True))

    for step, old in ((30, None), (30, saved(1, 10)), (31, None)):
        story = Story(running(begun(2)))
        other = stopped(1, step, old)
        story.reconcile(10, attempt_job(2, failed=True), other, departed_pods=(stopped(0, 30, saved(2, 30)),))
        assert (story.last.end, story.last.step_to) == (at(10), step)
        found = story.status.checkpoint
        assert found is not None
        assert (found.uri, found.step) == ("s3://models/animals/attempt-0002/step-30", 30)


def test_a_node_that_has_lost_sight_of_a_pod_tells_no_exit_code() -> None:
    lost = Reason("DeletionByTaintManager")
    story = running_story()
    story.reconcile(10, attempt_job(), pod(), pod(1, disruption=lost, terminating=at(10)))
    unseen = exited(137, 1, reason="ContainerStatusUnknown", disruption=lost, terminating=at(10))
    story.reconcile(20, attempt_job(deleting=True), departed_pods=(exited(STOPPED), unseen))
    assert (story.last.reason, story.last.rank, story.last.exit_code) == ("NodeLost", 1, None)


def test_a_failure_whose_pod_is_gone_is_the_cause() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(failed=True), pod(1), departed_pods=(exited(ExitCode.BAD_DATA),))
    story.reconcile(20, attempt_job(failed=True), exited(STOPPED, 1))
    assert (story.last.reason, story.phase) == ("DataError", "Failed")


def test_a_lost_node_is_waited_for_and_then_given_up() -> None:
    """A power cut: a peer misses it long before it is called lost, and its pod never confirms that it ended."""
    story = running_story(backoffLimit=0)
    story.reconcile(10, attempt_job(failed=True), exited(ExitCode.STALLED), pod(1, ready=False))
    assert story.last.reason == "Stalled"
    gone = pod(1, ready=False, terminating=at(40))
    story.reconcile(40, attempt_job(failed=True), exited(ExitCode.STALLED), gone)
    assert story.deletes(force=True) == []
    assert story.planned.requeue_at == at(40 + LOST)
    story.reconcile(40 + LOST, attempt_job(failed=True), exited(ExitCode.STALLED), gone)
    assert story.deletes(force=True) == [gone.name]
    assert (story.last.reason, story.last.node, story.begins) == ("NodeLost", "node-1", [])
    story.reconcile(41 + LOST, attempt_job(failed=True), exited(ExitCode.STALLED))
    assert (story.last.reason, story.last.counted, story.phase) == ("NodeLost", False, "Restarting")


def test_a_pod_that_goes_while_the_others_stay() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(), pod(), *terminating([pod(1)]))
    assert (story.last.reason, story.stops) == ("PodDeleted", [1])
    story.reconcile(11, attempt_job(deleting=True), *terminating([pod()]))
    story.reconcile(12, attempt_job(deleting=True), exited(ExitCode.STALLED, terminating=NOON))
    assert (story.last.reason, story.last.counted) == ("PodDeleted", False)


@pytest.mark.parametrize("left", [(pod(),), (pod(), pending(1, phase="Pending"))])
def test_a_pod_that_is_gone_or_replaced_while_the_others_go_on(left: tuple[Pod, ...]) -> None:
    story = running_story()
    story.reconcile(10, attempt_job(), *left)
    assert (story.last.reason, story.last.message, story.stops) == (
        "PodDeleted",
        "the pod of worker 1 was deleted",
        [1],
    )


def test_a_pod_that_is_gone_is_named_and_not_those_that_are_stopped_after_it() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(failed=True), *terminating([pod()]))
    assert story.last.message == "the pod of worker 1 was deleted"


def test_all_pods_deleted_while_the_operator_was_down() -> None:
    story = Story(Status(attempts=[begun()]))
    story.reconcile(900, attempt_job(failed=True))
    assert (story.last.reason, story.last.counted) == ("PodDeleted", False)


def test_a_gang_deleted_by_hand() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(deleting=True), *terminating([pod(), pod(1)]))
    assert story.last.reason == "JobDeleted"
    story.reconcile(20)
    assert (story.last.reason, story.last.counted, story.last.end) == ("JobDeleted", False, at(20))


def test_pods_whose_gang_is_gone_are_stopped() -> None:
    """The garbage collector does so, too, if it is allowed to."""
    story = running_story()
    story.reconcile(10, pod(), *terminating([pod(1)]))
    assert (story.last.reason, story.deletes(force=False)) == ("JobDeleted", [pod().name])


def test_the_last_word_of_a_pod_is_kept_before_the_pod_goes() -> None:
    """A suspended gang is deleted, and its pods with it; what they said is what the run goes on from."""
    story = Story(running(progress=Progress(step=50, of=100)), workers=1)
    story.edit(suspend=True)
    story.reconcile(10, attempt_job(workers=1), pod(), fresh=False)
    word = termination_message(STOPPED, step=52)
    story.reconcile(
        20, attempt_job(workers=1, deleting=True), exited(STOPPED, text=word, terminating=at(10)), fresh=False
    )
    assert not story.planned.fresh
    assert story.planned.requeue_at == at(20), "and then it is judged"
    story.reconcile(20, report=report(50), fresh=True)
    assert story.last.step_to == 52
    assert story.phase == "Suspended"


def test_each_attempt_says_what_it_goes_on_from() -> None:
    def saved(step: int) -> Any:
        return trainer.Checkpoint(uri="s3://models/animals", step=step, time="2026-01-01T12:00:00Z")

    def reported(step: int, number: int, resumed: int | None) -> Report:
        progress = trainer.Progress(
            attempt=number,
            phase="Running",
            step=step,
            eta_seconds=90,
            checkpoint=saved(step - 1),
            resumed_from=saved(resumed) if resumed else None,
        )
        return Report(number, progress, advanced_at=NOON, received_at=NOON)

    story = running_story()
    story.reconcile(10, attempt_job(), pod(), pod(1), report=reported(12, 1, None))
    assert story.status.progress is not None
    assert story.status.progress.eta == "1m30s"
    story.reconcile(20, attempt_job(failed=True), exited(137), exited(STOPPED, 1))
    assert not {"eta", "etaSeconds"} & set(story.status.to_dict()["progress"])
    story.reconcile(40, attempt_job(failed=True), exited(137), exited(STOPPED, 1))
    assert story.begins == [2]
    assert story.last.step_from == 11
    assert "resumedFrom" not in story.status.to_dict()
    story.reconcile(50, attempt_job(2), pod(0, 2), pod(1, 2), report=reported(10, 2, 9))
    assert story.status.resumed_from is not None
    assert story.status.resumed_from.step == 9
    story.reconcile(60, attempt_job(2, failed=True), exited(137, 0, 2), exited(STOPPED, 1, 2))
    assert story.last.step_from == 9
    story.reconcile(100, attempt_job(2, failed=True), exited(137, 0, 2), exited(STOPPED, 1, 2))
    assert story.begins == [3]
    assert "resumedFrom" not in story.status.to_dict()


def test_a_mesh_keeps_no_gang_from_ending() -> None:
    """Another container stays when the trainer has ended."""
    done = [exited(0, index, phase="Running") for index in range(2)]
    story = running_story(terminationGracePeriodSeconds=60)
    story.reconcile(10, attempt_job(), *done)
    assert story.deletes(force=False) == []
    story.reconcile(70, attempt_job(), *done)
    assert story.deletes(force=False) == [each.name for each in done]
    story.reconcile(71, attempt_job(failed=True))
    assert story.phase == "Succeeded"
    failed = exited(ExitCode.CONFIGURATION, phase="Running")
    story = running_story(terminationGracePeriodSeconds=60)
    story.reconcile(10, attempt_job(), failed, pod(1))
    story.reconcile(70, attempt_job(), failed, pod(1))
    assert (story.deletes(force=False), story.stops) == ([failed.name], [])


# A result is a result


def test_a_leader_that_succeeded_beside_a_failing_other() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(failed=True), exited(0), exited(ExitCode.INTERNAL, 1))
    assert story.phase == "Succeeded"


def test_a_leader_that_succeeded_while_it_was_being_drained() -> None:
    story = running_story()
    drained = Reason("EvictionByEvictionAPI")
    story.reconcile(10, attempt_job(), exited(0, disruption=drained, terminating=NOON), exited(0, 1))
    assert story.phase == "Succeeded"


def test_a_pod_that_is_forced_before_it_ran_is_let_go_by_its_job() -> None:
    """The leader is done, another never began, on a lost node: the Job controller would wait for it for ever."""
    story = running_story()
    dying = pending(1, terminating=at(10), grace=GRACE)
    story.reconcile(10, attempt_job(), exited(0), dying)
    story.reconcile(10 + LOST, attempt_job(), exited(0), dying)
    assert (story.deletes(force=True), story.stops) == ([dying.name], [])
    story.reconcile(11 + LOST, attempt_job(), exited(0), replace(dying, grace=0.0))
    assert (story.stops, story.last.reason) == ([1], "Completed")
    story.reconcile(12 + LOST)
    assert (story.phase, story.last.reason) == ("Succeeded", "Completed")


def test_workers_that_run_on_after_the_leader_is_done_are_stopped() -> None:
    story = running_story(terminationGracePeriodSeconds=60)
    story.reconcile(10, attempt_job(), exited(0), pod(1))
    assert (story.deletes(force=False), story.stops) == ([], [])
    assert story.planned.requeue_at == at(70)
    story.reconcile(70, attempt_job(), exited(0), pod(1))
    assert story.deletes(force=False) == [pod(1).name]
    dying = pod(1, terminating=at(70))
    story.reconcile(70 + LOST, attempt_job(failed=True), exited(0), dying)
    assert story.deletes(force=True) == [dying.name]
    assert story.last.reason == "Completed", "a node that is lost now spoils no result"
    story.reconcile(71 + LOST, attempt_job(failed=True), exited(0))
    assert story.phase == "Succeeded"


def test_a_result_outlives_its_pod() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(), exited(0), pod(1))
    story.reconcile(11, attempt_job(), pod(1))
    assert story.last.reason == "Completed"
    story.reconcile(12, attempt_job(failed=True), exited(ExitCode.STALLED, 1))
    assert story.phase == "Succeeded"


@pytest.mark.parametrize("status", [running(), Status(attempts=[begun()])])
def test_a_complete_gang_without_pods_is_done(status: Status) -> None:
    """Somebody cleaned up while the operator was down."""
    story = Story(status)
    story.reconcile(10, attempt_job(complete=True))
    assert story.phase == "Succeeded"


def test_iterations_that_grew_while_the_last_ones_ran() -> None:
    story = running_story()
    training = story.job.spec.training.model_copy(update={"iterations": 200})
    story.respec(training=training)
    story.reconcile(10, attempt_job(complete=True), exited(0), exited(0, 1))
    ended, new = story.status.attempts
    assert (ended.reason, ended.counted, new.number, new.step_from) == ("Extended", False, 2, 100)
    assert story.begins == [2]
    assert story.phase == "Restarting"
    story.reconcile(20, attempt_job(2), pod(0, 2), pod(1, 2))
    assert story.phase == "Running"


# While it does not run


@pytest.mark.parametrize(
    ("stuck", "reason"),
    [
        (pending(1, unscheduled=Reason("Unschedulable", "0/3 nodes are available")), "Unschedulable"),
        (pending(1, node="n", waiting=Reason("ImagePullBackOff", "no such image")), "ImagePullBackOff"),
        (pending(1, node="n", waiting=Reason("CreateContainerConfigError", "no secret")), "CreateContainerConfigError"),
    ],
)
def test_pending_says_why_and_looks_again_and_fails_after_its_deadline(stuck: Pod, reason: str) -> None:
    story = Story(startDeadlineSeconds=60)
    story.reconcile(0)
    story.reconcile(10, attempt_job(), pod(), stuck)
    assert story.phase == "Pending"
    assert story.condition_of("PodsReady") == ("False", reason)
    assert story.status.reason == reason
    assert stuck.name in str(story.status.message)
    assert story.events == [("Warning", reason)]
    assert story.planned.requeue_at == (at(60) if stuck.node is None else at(20)), "events of nodes are not watched"
    story.reconcile(50, attempt_job(), pod(), stuck)
    assert story.planned.requeue_at == at(60), "the deadline"
    story.reconcile(60, attempt_job(), pod(), stuck)
    assert (story.last.reason, story.stops) == ("StartDeadlineExceeded", [1])
    story.reconcile(70)
    assert (story.phase, story.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert str(story.status.message).startswith("runPolicy.startDeadlineSeconds: not all pods run after 60 s: pod ")


def test_the_reason_is_that_of_the_present() -> None:
    """None while all is well; after an end its cause, until the next attempt has a reason of its own."""
    story = running_story()
    story.reconcile(0, attempt_job(), pod(), pod(1))
    assert (story.phase, story.status.reason) == ("Running", None)
    story.reconcile(10, attempt_job(), pod(), pod(1, ready=False))
    assert (story.phase, story.status.reason) == ("Running", "NotReady")
    story.reconcile(20, attempt_job(failed=True), exited(70), exited(STOPPED, 1))
    assert (story.phase, story.status.reason) == ("Restarting", "InternalError")
    story.reconcile(40)
    assert (story.phase, story.status.reason, story.begins) == ("Restarting", "InternalError", [2])
    full = pending(0, 2, unscheduled=Reason("Unschedulable", "0/3 nodes are available"))
    story.reconcile(50, attempt_job(2), full, pending(1, 2))
    assert (story.phase, story.status.reason) == ("Restarting", "Unschedulable")
    story.reconcile(60, attempt_job(2), pod(0, 2), pod(1, 2))
    assert (story.phase, story.status.reason) == ("Running", None)
    story.reconcile(70, attempt_job(2, complete=True), exited(0, 0, 2), exited(0, 1, 2))
    assert (story.phase, story.status.reason) == ("Succeeded", None)


def test_a_queue_that_nobody_serves() -> None:
    story = Story()
    story.reconcile(0)
    for seconds in (1, 2):
        story.reconcile(seconds, attempt_job(passed_over=True), pod(), pod(1))
        assert "did not wait in its queue" in str(story.status.message)
        assert ("Warning", "NotQueued") in story.events
    assert (story.phase, story.status.reason) == ("Running", None)


def test_pods_that_are_refused() -> None:
    story = Story()
    story.reconcile(0)
    story.reconcile(10, attempt_job(), warning=Reason("FailedCreate", 'pods "x" is forbidden: exceeded quota: gpus'))
    assert story.condition_of("PodsReady") == ("False", "QuotaExceeded")


def test_a_job_that_is_invalid_waits_for_an_edit() -> None:
    """And for its deadline."""
    story = Story()
    story.reconcile(0, refused=Reason("Invalid", 'Job.batch "animals-0001" is invalid: spec.template: no'))
    assert (story.phase, story.status.reason, story.planned.requeue_at) == ("Pending", "Invalid", None)
    story.edit(start_deadline_seconds=60)
    story.reconcile(1, refused=Reason("BadRequest", "strict decoding error: unknown field"))
    assert (story.status.reason, story.planned.requeue_at) == ("Invalid", at(60))


def test_a_creation_that_is_refused() -> None:
    """It is tried again, and told with its reason; who plans replans with what was said."""
    story = Story(startDeadlineSeconds=60)
    refused = Reason("Forbidden", 'jobs.batch "animals-0001" is forbidden: exceeded quota: jobs')
    for seconds, requeue in [(0, 2), (2, 4), (10, 20), (50, 60)]:
        before = story.job
        story.reconcile(seconds)
        assert story.begins == [1], "each reconcile tries"
        story.job = before
        story.reconcile(seconds, refused=refused)
        assert (story.begins, story.status.attempts) == ([], [])
        assert (story.phase, story.condition_of("PodsReady")) == ("Pending", ("False", "QuotaExceeded"))
        assert story.events == [("Warning", "QuotaExceeded")]
        assert story.planned.requeue_at == at(requeue)
    story.reconcile(60, refused=refused)
    assert story.phase == "Failed"
    assert "exceeded quota: jobs" in str(story.status.message)


def test_a_name_that_is_taken() -> None:
    story = Story()
    story.reconcile(0, refused=Reason("NameTaken", "Job animals-0001 exists and is not of this TailorPOJob"))
    assert story.condition_of("PodsReady") == ("False", "NameTaken")
    assert "animals-0001 exists" in str(story.status.message)


def test_a_document_that_no_pod_has_room_for_fails_at_once() -> None:
    story = Story()
    story.reconcile(0, refused=Reason("TooLarge", "the document has 70,000 bytes"))
    assert (story.phase, story.status.message) == ("Failed", "the document has 70,000 bytes")


def test_a_start_deadline_passes_only_while_somebody_tries() -> None:
    """The operator was down when the next attempt was due."""
    story = Story(startDeadlineSeconds=60)
    story.job = job(running(over(1), next_attempt_time=at(70)), startDeadlineSeconds=60)
    story.reconcile(9000)
    assert story.begins == [2]


def test_stragglers_of_a_deleted_job_are_waited_for() -> None:
    story, straggler = Story(), pod(created=at(-60))
    story.reconcile(0, foreign_pods=(straggler,))
    assert story.begins == []
    assert story.status.message == "waits until animals-0001-0 have ended"
    story.reconcile(1, foreign_pods=(replace(straggler, phase="Succeeded"),))
    assert story.begins == [1]
    lost = replace(straggler, terminating=NOON)
    story = Story()
    story.reconcile(LOST, foreign_pods=(lost,))
    assert (story.deletes(force=True), story.begins) == ([straggler.name], [])


def test_a_straggler_that_comes_late_does_not_stay() -> None:
    """A deleted Job's controller created one more pod, on a node that is lost."""
    story = running_story()
    late = pod(2, created=at(1), terminating=at(1))
    story.reconcile(LOST, attempt_job(), pod(), pod(1), foreign_pods=(late,))
    assert (story.deletes(force=True), story.planned.requeue_at) == ([], at(1 + LOST))
    story.reconcile(1 + LOST, attempt_job(), pod(), pod(1), foreign_pods=(late,))
    assert (story.deletes(force=True), story.phase) == ([late.name], "Running")


def test_pods_that_turn_unready_without_ending_are_told() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(), pod(), pod(1, ready=False))
    assert story.condition_of("Running") == ("True", "Running"), "nothing has ended"
    assert story.condition_of("PodsReady") == ("False", "NotReady")
    assert story.status.message == "attempt 1: 2 pods running, 1 of 2 pods not ready: animals-0001-1 on node-1"
    assert story.events == []
    story.reconcile(20, attempt_job(), pod(), pod(1))
    assert story.condition_of("PodsReady") == ("True", "PodsReady")
    story.reconcile(30, attempt_job(), pod(), exited(0, 1))
    assert story.condition_of("PodsReady") == ("True", "PodsReady"), "one that is done lacks nothing"


# Suspend and resume


def test_suspend_and_resume() -> None:
    story = running_story(activeDeadlineSeconds=1000)
    story.edit(suspend=True)
    story.reconcile(100, attempt_job(), pod(), pod(1))
    assert (story.last.reason, story.stops, story.phase) == ("Suspended", [1], "Running")
    assert story.status.message == "attempt 1 is ending: runPolicy.suspend is true"
    story.reconcile(110, attempt_job(deleting=True), *terminating([pod(), pod(1)]))
    assert story.phase == "Running"
    story.reconcile(120)
    assert (story.phase, story.last.counted, story.status.failures) == ("Suspended", False, 0)
    assert [story.condition_of("Suspended"), story.condition_of("Running")] == [
        ("True", "Suspended"),
        ("False", "Suspended"),
    ]
    assert story.status.next_attempt_time is None
    assert story.planned.requeue_at is None
    story.reconcile(5000)
    assert (story.begins, story.phase) == ([], "Suspended")
    story.edit(suspend=False)
    story.reconcile(5120)
    assert story.begins == [2]
    assert story.events == [("Normal", "Resumed"), ("Normal", "AttemptStarted")]
    assert story.status.start_time == at(5000), "the time in which it was suspended does not count"
    assert (story.phase, story.condition_of("Suspended")) == ("Starting", ("False", "NotSuspended"))


def test_a_job_that_is_suspended_from_the_start_makes_nothing() -> None:
    story = Story(suspend=True)
    story.reconcile(0)
    assert (story.planned.create, story.phase, story.status.attempts) == ((), "Suspended", [])


def test_suspend_while_pending() -> None:
    story = Story()
    story.reconcile(0)
    story.edit(suspend=True)
    story.reconcile(10, attempt_job(), pending(), pending(1))
    assert (story.last.reason, story.stops) == ("Suspended", [1])
    story.reconcile(20)
    assert (story.phase, story.status.start_time) == ("Suspended", None)
    story.edit(suspend=False)
    story.reconcile(30)
    assert (story.begins, story.status.start_time) == ([2], None)


@pytest.mark.parametrize("policy", [{"suspend": True}, {"active_deadline_seconds": 100}])
def test_a_worker_that_is_done_before_the_others_does_not_keep_them_from_being_stopped(policy: dict[str, Any]) -> None:
    story = Story(running(start_time=NOON))
    story.edit(**policy)
    story.reconcile(200, attempt_job(), pod(0), exited(0, index=1))
    assert story.stops == [1]


def test_suspend_while_an_attempt_ends_or_the_next_is_waited_for() -> None:
    story = running_story()
    story.reconcile(10, attempt_job(), exited(ExitCode.INTERNAL), pod(1))
    story.edit(suspend=True)
    story.reconcile(20, attempt_job(failed=True), exited(ExitCode.INTERNAL), exited(STOPPED, 1))
    assert (story.last.reason, story.last.counted, story.status.failures) == ("InternalError", True, 1)
    assert (story.phase, story.condition_of("Restarting")) == ("Suspended", ("False", "Suspended"))
    story.edit(suspend=False)
    story.reconcile(25, attempt_job(failed=True), exited(ExitCode.INTERNAL), exited(STOPPED, 1))
    assert story.begins == [2]


def test_suspend_that_is_taken_back_before_the_pods_have_ended() -> None:
    story = running_story()
    story.edit(suspend=True)
    story.reconcile(10, attempt_job(), pod(), pod(1))
    story.edit(suspend=False)
    story.reconcile(20, attempt_job(deleting=True), *terminating([pod(), pod(1)]))
    assert story.begins == []
    story.reconcile(30)
    assert ([each.reason for each in story.status.attempts], story.begins) == (["Suspended", None], [2])


@pytest.mark.parametrize(
    ("code", "reason", "phase"),
    [(ExitCode.CONFIGURATION, "ConfigurationError", "Failed"), (ExitCode.INTERNAL, "InternalError", "Suspended")],
)
def test_a_failure_that_is_there_when_suspension_is_asked_for_counts(code: int, reason: str, phase: str) -> None:
    """As for JobSets: what has failed has failed before it could be stopped."""
    story = running_story()
    story.edit(suspend=True)
    story.reconcile(10, attempt_job(failed=True), exited(code), exited(STOPPED, 1))
    assert (story.last.reason, story.last.counted, story.phase) == (reason, True, phase)


def test_a_failure_of_pods_that_are_being_suspended_does_not() -> None:
    story = running_story()
    story.edit(suspend=True)
    story.reconcile(10, attempt_job(), pod(), pod(1))
    story.reconcile(20, attempt_job(deleting=True), exited(ExitCode.INTERNAL, terminating=at(10)), exited(137, 1))
    assert (story.last.reason, story.status.failures, story.phase) == ("Suspended", 0, "Suspended")


def test_each_suspension_is_told() -> None:
    story, reported = Story(), set[str]()
    for seconds in (10, 20, 30):
        story.edit(suspend=True)
        reported |= keys(story.reconcile(seconds).events)
        story.edit(suspend=False)
        reported |= keys(story.reconcile(seconds + 5, refused=Reason("Forbidden", "no")).events)
    assert len(reported) == 7, "three times suspended and resumed, and refused once"


# Queues


def test_a_queue_holds_the_gang_and_no_deadline_passes() -> None:
    story = Story(startDeadlineSeconds=60, activeDeadlineSeconds=1000)
    story.reconcile(0)
    story.reconcile(500, attempt_job(suspended=True, started=None))
    assert (story.phase, story.condition_of("PodsReady")) == ("Pending", ("False", "Queued"))
    assert story.events == []
    story.reconcile(501, attempt_job(started=None))
    assert story.last.reason is None, "let go by its queue, not yet started"
    story.reconcile(510, attempt_job(started=at(505)), pending(), pending(1))
    story.reconcile(564, attempt_job(started=at(505)), pending(), pending(1))
    assert story.last.reason is None
    story.reconcile(565, attempt_job(started=at(505)), pending(), pending(1))
    assert story.last.reason == "StartDeadlineExceeded"


def test_time_in_a_queue_does_not_count_against_the_active_deadline() -> None:
    attempts = [over(1, "Requeued"), begun(2, start=at(100))]
    story = Story(
        running(*attempts, conditions=conditions(PodsReady="False", Running="False")),
        activeDeadlineSeconds=1000,
    )
    story.reconcile(2000, attempt_job(2, suspended=True, started=None))
    assert story.last.reason is None
    story.reconcile(5100, attempt_job(2, started=at(5099)), pending(0, 2), pending(1, 2))
    assert (story.status.start_time, story.last.reason) == (at(5000), None)
    story.reconcile(5101, attempt_job(2, started=at(5099)), pod(0, 2), pod(1, 2))
    assert story.status.start_time == at(5000)
    story.reconcile(6000, attempt_job(2, started=at(5099)), pod(0, 2), pod(1, 2))
    assert story.last.reason == "DeadlineExceeded"


def test_a_queue_takes_back_the_place_of_a_gang_that_runs() -> None:
    story = running_story(backoffLimit=0)
    story.reconcile(10, attempt_job(suspended=True), *terminating([pod(), pod(1)]))
    assert (story.last.reason, story.stops) == ("Requeued", [1])
    story.reconcile(20, attempt_job(deleting=True), exited(ExitCode.INTERNAL, terminating=NOON), exited(STOPPED, 1))
    assert (story.last.reason, story.last.counted, story.phase) == ("Requeued", False, "Restarting")


def test_a_queue_may_take_back_pods_that_never_ran() -> None:
    story = Story()
    story.reconcile(0)
    story.reconcile(10, attempt_job(suspended=True), *terminating([pending(), pending(1)]))
    assert (story.last.reason, story.stops) == (None, [])
    story.reconcile(20, attempt_job(suspended=True))
    story.reconcile(30, attempt_job(), pod(), pod(1))
    assert (story.phase, len(story.status.attempts)) == ("Running", 1)


# Deadlines


def test_the_active_deadline() -> None:
    story = running_story(activeDeadlineSeconds=60)
    story.reconcile(30, attempt_job(), pod(), pod(1))
    assert story.planned.requeue_at == at(60)
    story.reconcile(60, attempt_job(), pod(), pod(1))
    assert (story.last.reason, story.stops) == ("DeadlineExceeded", [1])
    story.reconcile(70)
    assert story.condition_of("Failed") == ("True", "DeadlineExceeded")


def test_the_active_deadline_between_attempts_and_with_the_operator_down() -> None:
    story = running_story(activeDeadlineSeconds=60)
    story.reconcile(9000, attempt_job(failed=True), exited(ExitCode.INTERNAL), exited(STOPPED, 1))
    assert story.last.reason == "InternalError"
    assert (story.phase, story.begins) == ("Failed", [])


def test_a_result_is_worth_more_than_a_deadline_that_passed_meanwhile() -> None:
    story = running_story(activeDeadlineSeconds=60)
    story.reconcile(9000, attempt_job(complete=True), exited(0), exited(0, 1))
    assert story.phase == "Succeeded"


def test_a_deadline_that_is_set_or_moved_while_it_runs_counts_at_once() -> None:
    story = running_story()
    story.reconcile(100, attempt_job(), pod(), pod(1))
    story.edit(active_deadline_seconds=50)
    story.reconcile(101, attempt_job(), pod(), pod(1))
    assert story.last.reason == "DeadlineExceeded"


def test_clocks_that_differ() -> None:
    """Of the API server, an hour behind or ahead of ours: no start deadline passes early, nothing is in the past."""
    for skew in (-3600, 3600):
        story = Story(startDeadlineSeconds=60)
        story.reconcile(0)
        there = attempt_job(created=at(skew), started=at(skew))
        story.reconcile(59, there, pending(created=at(skew)), pending(1, created=at(skew)))
        assert story.last.reason is None
        adopted = Story()
        adopted.reconcile(10, there)
        assert adopted.last.start == min(at(10), at(skew))


# Stalls


def test_a_trainer_that_answers_and_makes_no_step() -> None:
    story = running_story(stallTimeoutSeconds=60)
    story.reconcile(60, attempt_job(), pod(), pod(1), report=report(10, advanced_at=at(20), received_at=at(55)))
    assert (story.last.reason, story.planned.requeue_at) == (None, at(140))
    story.reconcile(140, attempt_job(), pod(), pod(1), report=report(10, advanced_at=at(20), received_at=at(140)))
    assert (story.last.reason, story.last.counted, story.stops) == ("NoProgress", True, [1])
    story.reconcile(
        300, attempt_job(deleting=True), exited(STOPPED, terminating=at(140)), exited(137, 1, terminating=at(140))
    )
    assert (story.last.reason, story.status.failures) == ("NoProgress", 1)
    assert story.phase == "Restarting"


def test_a_trainer_out_of_reach_is_not_stalled() -> None:
    story = running_story(stallTimeoutSeconds=60)
    story.reconcile(9000, attempt_job(), pod(), pod(1), report=report(10, advanced_at=at(20), received_at=at(30)))
    assert story.last.reason is None
    assert story.planned.requeue_at == at(9030)


@pytest.mark.parametrize("phase", ["Starting", "Succeeded"])
def test_only_training_stalls(phase: Any) -> None:
    story = running_story(stallTimeoutSeconds=60)
    reported = report(0, advanced_at=NOON, received_at=at(9000))
    reported = replace(reported, progress=reported.progress.replace(phase=phase))
    story.reconcile(9000, attempt_job(), pod(), pod(1), report=reported)
    assert story.last.reason is None


# The end


def test_time_to_live() -> None:
    story = Story(finished(), ttlSecondsAfterFinished=60)
    story.reconcile(10)
    assert DeleteJob() not in story.planned.delete
    assert story.planned.requeue_at == at(60)
    story.reconcile(60)
    assert DeleteJob() in story.planned.delete


def test_time_to_live_that_passed_with_the_operator_down_or_is_set_later() -> None:
    story = Story(finished("Failed"))
    story.reconcile(9000)
    assert DeleteJob() not in story.planned.delete
    story.edit(ttl_seconds_after_finished=60)
    story.reconcile(9001)
    assert DeleteJob() in story.planned.delete
    assert story.status.observed_generation == 2, "an edit has been observed, though nothing follows"


def test_no_job_goes_before_its_pods_that_may_hang_on_a_lost_node() -> None:
    story = Story(finished(), ttlSecondsAfterFinished=0)
    story.reconcile(10, attempt_job(), pod())
    assert (story.stops, DeleteJob() in story.planned.delete) == ([1], False)
    story.reconcile(20, attempt_job(deleting=True), *terminating([pod()]))
    assert DeleteJob() not in story.planned.delete
    assert story.planned.requeue_at == at(LOST)
    story.reconcile(LOST, attempt_job(deleting=True), *terminating([pod()]))
    assert story.deletes(force=True) == [pod().name]
    assert DeleteJob() not in story.planned.delete
    story.reconcile(LOST + 1, attempt_job(deleting=True))
    assert DeleteJob() in story.planned.delete


def test_the_time_to_live_counts_from_the_end_on() -> None:
    story = running_story(ttlSecondsAfterFinished=60)
    story.reconcile(10, attempt_job(complete=True), exited(0), exited(0, 1))
    assert story.planned.requeue_at == at(70)


@pytest.mark.parametrize("kind", ["Succeeded", "Failed"])
def test_terminal_stays_terminal_and_leaves_no_pods(kind: Any) -> None:
    story = Story(finished(kind))
    before = story.status
    story.reconcile(10, attempt_job(), pod(), pod(1))
    assert (story.stops, story.begins) == ([1], [])
    story.reconcile(20, attempt_job(deleting=True), *terminating([pod()]))
    assert story.planned.requeue_at == at(LOST)
    story.reconcile(LOST, attempt_job(deleting=True), *terminating([pod()]))
    assert story.deletes(force=True) == [pod().name]
    story.reconcile(LOST + 1, attempt_job(2, suspended=True))
    assert story.stops == [2], "one that a queue would start some day"
    assert story.status.replace(observed_generation=None, reason=None) == before


@pytest.mark.parametrize("status", [Status(), running(), finished()])
def test_a_job_that_is_being_deleted_is_left_alone(status: Status) -> None:
    made = job(status)
    made.metadata["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    planned = plan(made, children(attempt_job(), pod(), pod(1)), at(10))
    assert (planned.create, planned.delete, planned.events, planned.status) == ((), (), (), status)


# Nothing is lost by a crash


def test_an_attempt_whose_status_was_not_written_is_adopted() -> None:
    story = Story()
    story.reconcile(10, attempt_job(created=at(3)), pod(), pod(1))
    assert (story.last.number, story.last.start, story.phase) == (1, at(3), "Running")
    assert story.begins == []
    assert story.events == [("Normal", "AttemptStarted"), ("Normal", "Running")]


def test_an_attempt_after_others_is_adopted() -> None:
    story = Story(running(over(1), next_attempt_time=at(70)))
    story.reconcile(80, attempt_job(1, failed=True), attempt_job(2), exited(70), pending(0, 2), pending(1, 2))
    assert ([each.number for each in story.status.attempts], story.begins) == ([1, 2], [])
    assert (story.status.restarts, story.status.next_attempt_time) == (1, None)


def test_an_attempt_that_was_made_at_a_resume_is_adopted() -> None:
    """Nobody came to say that it was resumed; its deadline moves all the same."""
    status = running(over(1, "Suspended"), conditions=conditions(Suspended="True", Running="False", PodsReady="False"))
    story = Story(status)
    story.reconcile(1000, attempt_job(2), pending(0, 2), pending(1, 2))
    assert (story.condition_of("Suspended"), story.status.start_time) == (("False", "NotSuspended"), at(1000))


def test_what_is_to_be_stopped_is_stopped_though_nobody_came_to_do_it() -> None:
    story = running_story()
    story.edit(suspend=True)
    for seconds in (10, 500):
        story.reconcile(seconds, attempt_job(), pod(), pod(1))
        assert story.stops == [1]


# A watch may lag


@pytest.mark.parametrize(
    ("status", "objects"),
    [
        (Status(attempts=[begun()]), []),
        (running(), [attempt_job()]),
        (running(), [attempt_job(), pod()]),
        (running(), [attempt_job(), pod(), *terminating([pod(1)])]),
        (running(), [attempt_job(deleting=True), pod(), pod(1)]),
        (running(), [attempt_job(failed=True)]),
        (Status(attempts=[begun()]), [attempt_job(failed=True)]),
        (running(), [attempt_job(failed=True), exited(70), exited(70, 1)]),
        (running(), [attempt_job(), exited(0), exited(0, 1)]),
        (running(over(1)), []),
    ],
)
def test_nothing_is_decided_on_what_is_missing_until_it_was_read_afresh(status: Status, objects: list[Any]) -> None:
    made = plan(job(status), children(*objects, fresh=False), at(900))
    assert made.fresh
    assert (made.create, made.events, made.delete, made.status) == ((), (), (), status)
    again = plan(job(status), children(*objects, fresh=True), at(900))
    assert not again.fresh
    assert again.status != status


def test_a_name_that_another_had_is_read_afresh_before_it_begins() -> None:
    assert plan(job(Status()), children(fresh=False, reused=True), at(30)).fresh
    assert plan(job(Status()), children(fresh=True, reused=True), at(30)).create


@pytest.mark.parametrize(
    ("status", "objects"),
    [
        (Status(), []),
        (running(), [attempt_job(), pod(), pod(1)]),
        (running(), [attempt_job(), exited(70), pod(1)]),
        (running(), [attempt_job(), pod(), pod(1, disruption=Reason("PreemptionByScheduler"))]),
        (finished(), []),
    ],
)
def test_what_is_there_need_not_be_read_afresh(status: Status, objects: list[Any]) -> None:
    assert not plan(job(status), children(*objects, fresh=False), at(30)).fresh


# Edits while it runs


def test_workers_count_from_the_next_attempt() -> None:
    story = running_story()
    story.respec(workers=3)
    story.reconcile(10, attempt_job(), pod(), pod(1))
    assert (story.phase, story.status.observed_generation) == ("Running", 2)
    story.reconcile(20, attempt_job(failed=True), exited(70), exited(70, 1))
    story.reconcile(40, attempt_job(failed=True), exited(70), exited(70, 1))
    assert story.status.message == "attempt 2: 3 pods starting"


def test_the_backoff_limit_counts_at_once() -> None:
    story = Story(running(over(1), begun(2), failures=1), backoffLimit=3)
    story.edit(backoff_limit=1)
    story.reconcile(10, attempt_job(2, failed=True), exited(70, 0, 2), exited(70, 1, 2))
    assert story.condition_of("Failed") == ("True", "BackoffLimitExceeded")


# What pods say is theirs


@pytest.mark.parametrize(
    "text",
    [
        '{"schemaVersion": 1, "step": -5}',
        '{"schemaVersion": 1, "step": 1e300}',
        '{"step": 99999999999999, "updated": "yesterday"}',
        '{"step": 5, "checkpoint": {"uri": "s3://a/b", "step": 5, "time": "never"}}',
        '{"step": 5, "error": {"class": "E", "text": "t", "exitCode": 70, "rank": -1}}',
        "{}",
        "",
    ],
)
def test_a_last_word_that_makes_no_sense_spoils_nothing(text: str) -> None:
    story = running_story()
    how = Exit(ExitCode.INTERNAL, "Error", text)
    story.reconcile(10, attempt_job(failed=True), pod(phase="Failed", exit=how), exited(STOPPED, 1))
    assert (story.last.reason, story.phase) == ("InternalError", "Restarting")


def test_a_report_that_makes_no_sense_spoils_nothing() -> None:
    story = running_story()
    reported = report(10)
    story.reconcile(
        10, attempt_job(), pod(), pod(1), report=replace(reported, progress=reported.progress.replace(step=-1))
    )
    assert (story.phase, story.status.progress) == ("Running", None)


def test_a_report_of_another_attempt_is_not_its_own() -> None:
    story = Story(running(over(1), begun(2)))
    story.reconcile(10, attempt_job(2), pod(0, 2), pod(1, 2), report=report(50, attempt=1))
    assert story.status.progress is None


# Events


def test_each_refused_attempt_is_told() -> None:
    """A quota may refuse the first attempt for a while, and the second a day later."""
    refused = Reason("Forbidden", "exceeded quota: jobs")
    first, second = Story(), Story(running(over(1)))
    reported = keys(first.reconcile(0, refused=refused).events) | keys(second.reconcile(9000, refused=refused).events)
    assert len(reported) == 2


def test_a_trouble_is_told_once_in_an_attempt() -> None:
    reported = set[str]()
    story = Story()
    story.reconcile(0)
    for seconds in range(10, 100, 10):
        message = f"0/{seconds} nodes are available"
        reported |= keys(
            story.reconcile(seconds, attempt_job(), pending(unscheduled=Reason("Unschedulable", message))).events
        )
    assert len(reported) == 1


def test_two_jobs_of_the_same_name_tell_their_own() -> None:
    one, other = job(), job()
    other.metadata["uid"] = "another"
    assert not keys(plan(one, children(), NOON).events) & keys(plan(other, children(), NOON).events)


def test_a_time_zone_changes_nothing() -> None:
    there = timezone(timedelta(hours=2))
    story = Story(running(over(1), next_attempt_time=at(70).astimezone(there)))
    story.reconcile(60)
    assert str(story.status.message).endswith("the next begins at 12:01:10 UTC")


# Edits, and gangs that never were whole


def edited(template: str = "0" * 16, **fields: Any) -> Any:
    """The attempt's Job, made for generation 1 of another template."""
    return attempt_job(generation=1, template_hash=template, **fields)


def test_an_edit_replaces_an_attempt_that_never_ran_at_once() -> None:
    """As the correction of a wrong image: nobody waits for what can never start."""
    story = Story(Status(attempts=[begun()]), generation=2)
    waiting = pending(waiting=Reason("ImagePullBackOff", "no such image"))
    story.reconcile(30, edited(), waiting, pending(1))
    assert (story.last.reason, story.last.counted) == ("SpecChanged", False)
    assert story.stops == [1]
    story.reconcile(31, edited(deleting=True), fresh=True)
    assert [(each.number, each.reason) for each in story.status.attempts] == [(1, "SpecChanged"), (2, None)]
    assert story.status.failures == 0
    assert story.begins == [2], "without a delay"


def test_an_edit_of_an_attempt_that_runs_waits_and_the_status_says_so() -> None:
    story = Story(running(), generation=2)
    story.reconcile(30, edited(), pod(), pod(1))
    assert story.last.reason is None
    assert story.status.message == "attempt 1: 2 pods running; an edit of the job waits for the next attempt"


def test_an_edit_that_changes_no_pod_waits_for_nothing() -> None:
    own = job(generation=2)
    same = template_hash(own)
    story = Story(Status(attempts=[begun()]), generation=2)
    story.reconcile(30, edited(same), pending(), pending(1))
    assert story.last.reason is None
    assert "edit" not in (story.status.message or "")


@pytest.mark.parametrize("others", [(), (pending(1, unscheduled=Reason("Unschedulable", "0/2 nodes")),)])
def test_half_a_gang_ends_uncounted_under_the_reason_that_kept_the_others_away(others: tuple[Pod, ...]) -> None:
    """A quota of one pod: the first worker waits for its peer until the rendezvous is given up."""
    quota = Reason("FailedCreate", 'pods "x" is forbidden: exceeded quota: q')
    story = Story(Status(attempts=[begun()]))
    story.reconcile(10, attempt_job(), pod(), *others, warning=quota)
    story.reconcile(60, attempt_job(failed=True), exited(ExitCode.STALLED), *others, warning=quota)
    story.reconcile(61, attempt_job(failed=True), exited(ExitCode.STALLED), warning=quota, fresh=True)
    assert (story.last.reason, story.last.counted) == ("Unschedulable" if others else "QuotaExceeded", False)
    assert story.status.failures == 0
    assert story.status.next_attempt_time is not None, "the place is free until then"


def test_accelerator_time_is_that_of_attempts_whose_pods_all_ran() -> None:
    story = Story(workers=2)
    story.respec(template=Template(resources=Resources(limits={"nvidia.com/gpu": 4, "memory": "16Gi"})))
    story.reconcile(0)
    assert [story.last.accelerators, story.last.ready] == [8, None]
    story.reconcile(30, attempt_job(), pod(), pending(1))
    assert "ready" not in story.status.to_dict()["attempts"][0]
    story.reconcile(50, attempt_job(), pod(), pod(1))
    story.reconcile(70, attempt_job(), pod(), pod(1, ready=False))
    assert story.last.ready == at(50)
    assert "acceleratorSeconds" not in story.status.to_dict(), "it has not ended"
    story.respec(workers=1, template=Template())
    story.reconcile(
        110, attempt_job(failed=True), exited(ExitCode.OUT_OF_RESOURCES), exited(ExitCode.OUT_OF_RESOURCES, 1)
    )
    assert story.status.attempts[0].end == at(110)
    assert story.status.accelerator_seconds == 8 * 60, "by the limits that it had"
    story.reconcile(130)
    story.reconcile(140, attempt_job(2, workers=1), pod(attempt=2))
    story.reconcile(150, attempt_job(2, workers=1, complete=True), exited(0, attempt=2))
    assert (story.last.ready, story.last.end, story.last.accelerators) == (at(140), at(150), None)
    assert story.status.accelerator_seconds == 8 * 60
