"""Why an attempt ended, from how its pods did: which one explains the others, and what follows."""

from dataclasses import replace
from datetime import timedelta
from itertools import combinations_with_replacement, permutations, product

import pytest

from tailorpo_operator.planning import causes
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.end_cause import noted
from tailorpo_operator.planning.events import event
from tailorpo_operator.planning.observed import Exit, Pod, Reason
from tailorpo_trainer.errors import ExitCode, end_cause
from tailorpo_trainer.training.launch import decide
from tests.operator.stories import NOON, Story, attempt_job, begun, exited, pending, pod, running, termination_message
from tools import reason_tables

FATAL, COUNTED, FREE, DONE = Verdict.FATAL, Verdict.COUNTED, Verdict.FREE, Verdict.DONE
UNKNOWN = "ContainerStatusUnknown"


def of(found: Pod) -> Cause:
    cause = causes.of_pod(found)
    assert cause is not None
    return cause


def disrupted(reason: str, found: Pod | None = None) -> Pod:
    return replace(found or pod(), disruption=Reason(reason, "by somebody"))


def rejected(reason: str) -> Pod:
    return pending(phase="Failed", ended=Reason(reason, "Node has no room"))


@pytest.mark.parametrize(
    ("code", "reason", "verdict"),
    [
        (ExitCode.DONE, "Completed", DONE),
        (1, "Error", COUNTED),
        (ExitCode.USAGE, "UsageError", FATAL),
        (ExitCode.BAD_DATA, "DataError", FATAL),
        (ExitCode.UNAVAILABLE, "Unavailable", COUNTED),
        (ExitCode.INTERNAL, "InternalError", COUNTED),
        (ExitCode.OUT_OF_RESOURCES, "OutOfResources", COUNTED),
        (ExitCode.STALLED, "Stalled", COUNTED),
        (ExitCode.STOPPED, "Stopped", FREE),
        (ExitCode.NOT_FINITE, "NotFinite", FATAL),
        (ExitCode.CONFIGURATION, "ConfigurationError", FATAL),
        (ExitCode.INTERRUPTED, "Interrupted", COUNTED),
        (128, "Error", COUNTED),
        (137, "Killed", COUNTED),
        (134, "Killed", COUNTED),
        (139, "Killed", COUNTED),
        (143, "Stopped", FREE),
        (255, "Error", COUNTED),
    ],
)
def test_every_exit_code(code: int, reason: str, verdict: Verdict) -> None:
    cause = of(exited(code, index=3))
    assert (cause.reason, cause.verdict, cause.exit_code, cause.rank, cause.node) == (
        reason,
        verdict,
        code,
        3,
        "node-3",
    )
    if verdict is not DONE:
        assert cause.message == f"the trainer says {code}"


def test_no_exit_code_is_forgotten() -> None:
    assert {code for code in ExitCode if of(exited(code)).reason == "Error"} == set()


@pytest.mark.parametrize(
    ("ended", "reason", "verdict"),
    [
        (disrupted("PreemptionByScheduler"), "Preempted", FREE),
        (disrupted("DeletionByTaintManager"), "NodeLost", FREE),
        (disrupted("DeletionByPodGC"), "NodeLost", FREE),
        (disrupted("EvictionByEvictionAPI"), "Drained", FREE),
        (disrupted("TerminationByKubelet"), "Evicted", FREE),
        (disrupted("SomethingNew"), "Disrupted", FREE),
        (disrupted("EvictionByEvictionAPI", exited(ExitCode.STOPPED)), "Drained", FREE),
        (disrupted("EvictionByEvictionAPI", exited(137)), "Drained", FREE),
        (disrupted("EvictionByEvictionAPI", exited(ExitCode.DONE)), "Completed", DONE),
        (exited(137, reason="OOMKilled"), "OOMKilled", COUNTED),
        (exited(137, terminating=NOON), "Stopped", FREE),
        (exited(137, reason="OOMKilled", terminating=NOON), "OOMKilled", COUNTED),
        (exited(137, reason=UNKNOWN), "NodeLost", FREE),
        (exited(137, reason=UNKNOWN, terminating=NOON), "PodDeleted", FREE),
        (rejected("UnexpectedAdmissionError"), "UnexpectedAdmissionError", FREE),
        (rejected("Evicted"), "Evicted", FREE),
        (pod(phase="Failed"), "NodeLost", FREE),
        (pending(phase="Failed", terminating=NOON), "PodDeleted", FREE),
        (pending(phase="Failed", waiting=Reason("PodInitializing")), "NotStarted", COUNTED),
        (pod(terminating=NOON), "PodDeleted", FREE),
        (exited(ExitCode.CONFIGURATION, phase="Running"), "ConfigurationError", FATAL),
        (exited(ExitCode.DONE, phase="Running"), "Completed", DONE),
        (exited(ExitCode.DONE, phase="Failed"), "Completed", DONE),
    ],
)
def test_every_other_end_of_a_pod(ended: Pod, reason: str, verdict: Verdict) -> None:
    cause = of(ended)
    assert (cause.reason, cause.verdict) == (reason, verdict)
    assert cause.message


@pytest.mark.parametrize("found", [pod(), pending(), pod(ready=False), pod(phase="Unknown")])
def test_a_pod_that_goes_on_says_nothing(found: Pod) -> None:
    assert causes.of_pod(found) is None


ORDER = [
    [disrupted("PreemptionByScheduler")],
    [exited(137, reason="OOMKilled")],
    [exited(ExitCode.CONFIGURATION), exited(ExitCode.BAD_DATA), exited(ExitCode.NOT_FINITE)],
    [exited(137)],
    [exited(139), exited(134)],
    [exited(ExitCode.OUT_OF_RESOURCES)],
    [exited(ExitCode.INTERNAL)],
    [exited(1), exited(255)],
    [exited(ExitCode.UNAVAILABLE)],
    [exited(ExitCode.STALLED)],
    [pod(terminating=NOON)],
    [exited(ExitCode.STOPPED), exited(143), exited(137, terminating=NOON)],
    [exited(ExitCode.DONE)],
]
"""What explains the others first: design, and the failure table in `docs/`."""


@pytest.mark.parametrize("place", range(len(ORDER) - 1))
def test_who_explains_whom(place: int) -> None:
    for better in ORDER[place]:
        for worse in [each for group in ORDER[place + 1 :] for each in group]:
            pair = [of(worse), of(better)]
            assert causes.decisive(pair) == causes.decisive(reversed(pair)) == of(better)


def decided(codes: tuple[int, ...]) -> tuple[str, int | None, int | None]:
    """Which cause the launcher names for ranks that end with these codes, and the operator for such pods."""
    rank, code, _ = decide(dict(enumerate(codes)), {})
    cause = causes.decisive(ENDED[code, index] for index, code in enumerate(codes))
    assert cause is not None
    assert (end_cause(code).reason, code, rank) == (cause.reason, cause.exit_code, cause.rank), codes
    return cause.reason, code, rank


ENDED = {(code, index): of(exited(code, index)) for code in range(256) for index in range(3)}
EACH_ROW = [*(code for code in ExitCode), 1, 255, 134, 137, 139, 143]


def test_the_launcher_and_the_operator_name_the_same_cause() -> None:
    for pair in product(range(256), repeat=2):
        decided(pair)
    for three in combinations_with_replacement(EACH_ROW, 3):
        reasons = {decided(codes)[0] for codes in permutations(three)}
        assert len(reasons) == 1, three


@pytest.mark.parametrize(("codes", "reason"), [
    ((1, 71), "OutOfResources"),
    ((71, 139), "Killed"),
    ((134, 137), "Killed"),
    ((78, 137), "ConfigurationError"),
    ((74, 1), "Error"),
    ((143, 130), "Interrupted"),
    ((0, 75), "Stopped"),
])  # fmt: skip
def test_the_order_of_causes(codes: tuple[int, int], reason: str) -> None:
    assert decided(codes)[0] == decided(codes[::-1])[0] == reason


def test_the_documentation_lists_every_reason_and_is_current() -> None:
    for page, content in reason_tables.pages().items():
        assert page.read_text() == content, "run python -m tools.reason_tables"
        assert content.count("tools.reason_tables") == 1
    listed = {each.reason for each in causes.REASONS}
    assert {reason for reason, _ in causes.DISRUPTIONS.values()} | {each.reason for each in ENDED.values()} <= listed


def test_of_equals_the_lowest_index_explains() -> None:
    three = [of(exited(ExitCode.INTERNAL, index)) for index in range(3)]
    assert causes.decisive(three) == three[0]
    assert causes.decisive([]) is None


def test_a_peer_that_was_stopped_before_it_began_hides_no_error() -> None:
    """The Job controller deletes a pod whose image is still being pulled; the kubelet finds no container of it."""
    early = exited(137, 1, reason=UNKNOWN, terminating=NOON)
    assert causes.decisive([of(early), of(exited(ExitCode.CONFIGURATION))]) == of(exited(ExitCode.CONFIGURATION))


def test_peers_miss_what_was_seen_to_be_deleted_first() -> None:
    known = causes.recorded(noted(begun(), of(pod(1, terminating=NOON))))
    assert known is not None
    assert causes.decisive([of(exited(ExitCode.STALLED)), known]) == known
    internal = of(exited(ExitCode.INTERNAL))
    assert causes.decisive([internal, known]) == internal


def test_out_of_memory_names_the_limit_and_the_way_out() -> None:
    cause = of(exited(137, reason="OOMKilled", memory="16Gi"))
    assert "its limit of 16Gi" in cause.message
    assert "training.microBatchSize" in cause.message
    assert "the memory of its node" in of(exited(137, reason="OOMKilled")).message


def test_the_rank_is_the_process_own() -> None:
    cause = of(exited(ExitCode.INTERNAL, 1, text=termination_message(ExitCode.INTERNAL, rank=5)))
    assert (cause.rank, cause.message) == (5, "the trainer says 70")


def test_what_is_no_termination_message_is_quoted_without_secrets() -> None:
    cause = of(exited(1, text="exec: s3://user:password@store/x: no such file"))
    assert cause.message == "pod animals-0001-0 ended with exit code 1: exec: s3://store/x: no such file"
    cause = of(exited(9, text=termination_message(0)))
    assert cause.message == "pod animals-0001-0 ended with exit code 9 after step 100"
    cause = of(exited(139, text=termination_message(0)))
    assert cause.message == "pod animals-0001-0 was killed by SIGSEGV after step 100"
    assert of(exited(137, text=" ")).message == "pod animals-0001-0 was killed by SIGKILL"


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x1b]0;x\x07\u202egnp\r\nTrue  Succeeded\u2028",
        termination_message(70, text="\x1b[2J\u202egnp\r\nTrue  Succeeded\x9b"),
    ],
    ids=["text", "progress"],
)
def test_what_a_pod_says_is_one_line_of_plain_characters(text: str) -> None:
    story = Story(running(), backoffLimit=0)
    story.reconcile(60, attempt_job(failed=True), exited(70, text=text), pod(1))
    messages = [story.last.message, story.status.message, *(each.message for each in story.status.conditions)]
    messages += [event(story.job, each, NOON)["message"] for each in story.planned.events]
    assert sum("Succeeded" in (each or "") for each in messages) >= 4
    for message in messages:
        assert (message or "").isprintable()


@pytest.mark.parametrize("text", ["[" * 4096, '{"a":' * 800, "1" * 4096, '{"step":' + "1" * 4000 + "}", "A" * 4096])
def test_a_hostile_last_word_is_no_progress(text: str) -> None:
    cause = of(exited(70, text=text))
    assert (cause.reason, cause.exit_code) == ("InternalError", 70)
    assert cause.message.startswith("pod animals-0001-0 ended with exit code 70: ")


@pytest.mark.parametrize(
    "found",
    [
        *(exited(code) for code in [*ExitCode, 1, 137, 143]),
        *(disrupted(reason) for reason in [*causes.DISRUPTIONS, "SomethingNew"]),
        *(rejected(reason) for reason in ["Evicted", "NodeAffinity", "DeadlineExceeded", "Error"]),
        pod(terminating=NOON),
        pending(phase="Failed", waiting=Reason("PodInitializing")),
        exited(137, reason="OOMKilled"),
    ],
)
def test_the_status_remembers_what_follows(found: Pod) -> None:
    """A kubelet's reasons may read like ours: DeadlineExceeded is that of a pod, and no deadline of the job's."""
    cause = of(found)
    known = causes.recorded(noted(begun(), cause))
    assert known is not None
    assert (known.reason, known.verdict, known.exit_code) == (cause.reason, cause.verdict, cause.exit_code)


def test_nothing_is_remembered_of_an_attempt_that_goes_on() -> None:
    assert causes.recorded(begun()) is None


def test_a_lost_pod_explains_what_its_peers_say() -> None:
    cause = causes.node_lost(pod(1, terminating=NOON - timedelta(hours=1)))
    assert (cause.reason, cause.verdict, cause.node) == ("NodeLost", FREE, "node-1")
    assert causes.decisive([of(exited(ExitCode.STALLED)), cause]) == cause


def test_an_exit_status_that_no_process_has_is_left_out() -> None:
    assert noted(begun(), of(pod(phase="Failed", exit=Exit(-1)))).exit_code is None
