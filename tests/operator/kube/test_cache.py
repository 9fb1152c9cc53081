"""What the cache does with watches that lag, repeat themselves and miss events."""

import copy
from typing import Any

import pytest

from tailorpo_operator.api import naming
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Job, Status
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.child_store import ChildStore, key_of
from tests.operator.stories import NOON, SPEC, at, begun, over

KEY = Key("team", "animals")


def meta(name: str, uid: str, version: int, **more: Any) -> dict[str, Any]:
    fields = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {"creationTimestamp": "2026-01-01T12:00:00Z", **fields, **more}


def raw_job(version: int = 1, uid: str = "job-uid", **more: Any) -> dict[str, Any]:
    return {"metadata": meta("animals", uid, version, **more), "spec": SPEC}


def owned(kind: str, uid: str, attempt: int) -> dict[str, Any]:
    reference = {"kind": kind, "uid": uid, "controller": True}
    return {"labels": naming.of_attempt("animals", attempt), "ownerReferences": [reference]}


def raw_attempt_job(version: int = 2, attempt: int = 1, owner: str = "job-uid", **more: Any) -> dict[str, Any]:
    fields = meta(f"animals-{attempt:04d}", f"gang-{attempt}", version, **owned("TailorPOJob", owner, attempt), **more)
    return {"metadata": fields, "spec": {"completions": 2}}


def raw_pod(version: int = 3, index: int = 0, attempt: int = 1, phase: str = "Running", **more: Any) -> dict[str, Any]:
    extra = {
        **owned("Job", f"gang-{attempt}", attempt),
        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        **more,
    }
    return {
        "metadata": meta(f"animals-{attempt:04d}-{index}", f"pod-{attempt}-{index}", version, **extra),
        "spec": {"containers": [{"name": naming.CONTAINER}], "nodeName": f"node-{index}"},
        "status": {"phase": phase, "podIP": "10.0.0.1"},
    }


def raw_ended_pod(version: int = 3, **fields: Any) -> dict[str, Any]:
    raw = raw_pod(version, phase="Failed", **fields)
    raw["status"]["containerStatuses"] = [{"name": naming.CONTAINER, "state": {"terminated": {"exitCode": 75}}}]
    return raw


@pytest.fixture
def cache() -> Cache:
    filled = Cache()
    filled.put_job(raw_job())
    return filled


def job(cache: Cache) -> Job:
    return Job.model_validate(cache.job(KEY))


def pods(cache: Cache) -> list[tuple[int, int, str]]:
    return [(pod.attempt, pod.index, pod.phase) for pod in cache.observe(job(cache)).pods]


def test_an_older_event_changes_nothing(cache: Cache) -> None:
    cache.put_pod(raw_pod(9, phase="Failed"), NOON)
    cache.put_pod(raw_pod(8), NOON)
    cache.put_attempt_job(raw_attempt_job(9, deletionTimestamp="2026-01-01T12:01:00Z"))
    cache.put_attempt_job(raw_attempt_job(8))
    cache.put_job(raw_job(9, generation=2))
    cache.put_job(raw_job(8, generation=1))
    assert pods(cache) == [(1, 0, "Failed")]
    assert cache.observe(job(cache)).attempt_jobs[0].deleting
    assert job(cache).generation == 2


def test_versions_are_numbers_and_no_texts(cache: Cache) -> None:
    cache.put_pod(raw_pod(9), NOON)
    cache.put_pod(raw_pod(10, phase="Failed"), NOON)
    assert pods(cache) == [(1, 0, "Failed")]


def test_pods_are_in_order(cache: Cache) -> None:
    for attempt, index in [(2, 0), (1, 10), (1, 9), (1, 0)]:
        cache.put_pod(raw_pod(index=index, attempt=attempt), NOON)
    assert [found[:2] for found in pods(cache)] == [(1, 0), (1, 9), (1, 10), (2, 0)]


def test_whether_all_there_is_of_a_job_waits(cache: Cache) -> None:
    assert not cache.awaits_pods(KEY), "it has no gang"
    cache.put_attempt_job(raw_attempt_job(2))
    assert cache.awaits_pods(KEY)
    cache.put_pod(raw_pod(3, 0, phase="Pending"), NOON)
    assert cache.awaits_pods(KEY)
    cache.put_pod(raw_pod(4, 1, phase="Running"), NOON)
    assert not cache.awaits_pods(KEY)
    cache.drop_pod(raw_pod(5, 1))
    cache.put_pod(raw_pod(6, 0, phase="Pending", deletionTimestamp="2026-11-24T12:00:00Z"), NOON)
    assert not cache.awaits_pods(KEY)


def test_a_list_finds_what_a_watch_has_missed(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job(2))
    cache.put_pod(raw_pod(3, 0), NOON)
    cache.put_pod(raw_pod(4, 1), NOON)
    assert cache.drop_unlisted_attempt_jobs(set(), 10, None) == [KEY]
    assert cache.drop_unlisted_pods({raw_pod(4, 1)["metadata"]["uid"]}, 10, None) == [KEY]
    assert cache.drop_unlisted_pods({raw_pod(4, 1)["metadata"]["uid"]}, 10, None) == []
    observed = cache.observe(job(cache))
    assert (observed.attempt_jobs, [pod.index for pod in observed.pods]) == ((), [1])


def test_pods_of_a_deleted_gang_whose_name_is_another_ones_now_are_not_its_own(cache: Cache) -> None:
    for index in (0, 1):
        cache.put_pod(raw_ended_pod(3, index=index), NOON)
    cache.drop_pod(raw_ended_pod(4, index=1))
    observed = cache.observe(job(cache))
    assert ([pod.index for pod in observed.pods], [pod.index for pod in observed.departed_pods]) == ([0], [1])
    again = raw_attempt_job(5)
    again["metadata"]["uid"] = "another-gang"
    cache.put_attempt_job(again)
    observed = cache.observe(job(cache))
    assert (observed.pods, [pod.index for pod in observed.foreign_pods], observed.departed_pods) == ((), [0], ())


def test_a_list_knows_nothing_of_what_is_newer(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job(11))
    cache.put_pod(raw_pod(12), NOON)
    cache.replace_children(KEY, [], [], 10, NOON)
    observed = cache.observe(job(cache))
    assert (len(observed.attempt_jobs), len(observed.pods)) == (1, 1)


def test_what_was_deleted_does_not_come_back_by_an_answer_that_is_older(cache: Cache) -> None:
    cache.put_pod(raw_pod(3), NOON)
    cache.drop_pod(raw_pod(5))
    cache.replace_children(KEY, [], [raw_pod(3)], 4, NOON)
    assert pods(cache) == []
    cache.drop_attempt_job(raw_attempt_job(5))
    cache.put_attempt_job(raw_attempt_job(2))
    assert cache.observe(job(cache)).attempt_jobs == ()


def test_a_list_of_one_job_or_namespace_leaves_the_others_alone(cache: Cache) -> None:
    other = raw_pod(3)
    other["metadata"].update(namespace="other", uid="u")
    cache.put_pod(other, NOON)
    cache.put_pod(raw_pod(4), NOON)
    cache.replace_children(KEY, [], [], 10, NOON)
    assert pods(cache) == []
    cache.drop_unlisted_pods(set(), 10, "team")
    other_job = Job.model_validate({"metadata": meta("animals", "v", 1) | {"namespace": "other"}, "spec": SPEC})
    assert len(cache.observe(other_job).pods) == 1
    cache.drop_unlisted_pods(set(), 10, None)
    assert cache.observe(other_job).pods == ()


def test_a_list_of_jobs_finds_those_that_are_gone(cache: Cache) -> None:
    new = {"metadata": meta("new", "n", 5), "spec": SPEC}
    cache.put_job(new)
    assert cache.drop_unlisted_jobs({"n"}, 10, None) == [KEY]
    assert list(cache.jobs) == [Key("team", "new")]
    assert cache.drop_unlisted_jobs(set(), 4, "team") == []
    assert list(cache.jobs) == [Key("team", "new")], "it is newer than the list"
    cache.drop_unlisted_jobs(set(), 10, "other")
    assert list(cache.jobs) == [Key("team", "new")], "the list was of another namespace"


def test_a_job_of_the_same_name_again(cache: Cache) -> None:
    """The remains of the earlier job may still write, and its deletion may be reported late."""
    cache.put_attempt_job(raw_attempt_job(2))
    cache.put_pod(raw_pod(3), NOON)
    cache.put_job(raw_job(20, "second", creationTimestamp="2026-01-01T13:00:00Z"))
    cache.drop_job(raw_job(19))
    observed = cache.observe(job(cache))
    assert job(cache).uid == "second"
    assert (observed.attempt_jobs, observed.pods) == ((), ())
    assert [pod.name for pod in observed.foreign_pods] == [pod.name for pod in observed.living] == ["animals-0001-0"]


def test_a_copy_of_a_pod_for_debugging_is_no_worker(cache: Cache) -> None:
    cache.put_pod(raw_pod(3), NOON)
    copy = raw_pod(4, ownerReferences=[])
    copy["metadata"].update(uid="copy", name="animals-debug")
    cache.put_pod(copy, NOON)
    observed = cache.observe(job(cache))
    assert [pod.name for pod in observed.pods_of(1)] == ["animals-0001-0"]
    assert [pod.name for pod in observed.living] == ["animals-debug", "animals-0001-0"], "it may write, too"
    leader = cache.rank_zero_pod(KEY)
    assert leader is not None
    assert leader.name == "animals-0001-0"


def test_deletions(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job())
    cache.put_pod(raw_pod(), NOON)
    assert cache.drop_pod(raw_pod()) == cache.drop_attempt_job(raw_attempt_job()) == KEY
    assert cache.drop_pod(raw_pod()) == KEY, "twice is no error"
    observed = cache.observe(job(cache))
    assert (observed.attempt_jobs, observed.pods) == ((), ())
    assert cache.drop_job(raw_job()) == KEY
    assert cache.job(KEY) is None


def test_a_pod_that_goes_at_once_when_it_has_ended(cache: Cache) -> None:
    """For example by a drain: there may have been no reconcile meanwhile."""

    def codes() -> list[tuple[int, int | None]]:
        return [(pod.index, pod.exit.code if pod.exit else None) for pod in cache.observe(job(cache)).departed_pods]

    cache.drop_pod(raw_pod(4, index=0))
    assert codes() == [], "nothing is known of its end"
    for index in (1, 2):
        cache.put_pod(raw_ended_pod(5, index=index), NOON)
    cache.drop_pod(raw_pod(6, index=1))
    cache.drop_pod(raw_pod(6, index=1))
    assert codes() == [(1, 75)]
    cache.replace_children(KEY, [], [], 7, NOON)
    assert codes() == [(1, 75), (2, 75)]

    cache.drop_job(raw_job())
    cache.put_job(raw_job(uid="another"))
    assert codes() == [], "they belonged to the earlier job"


def test_how_pods_ended_is_known_until_their_attempt_is_judged(cache: Cache) -> None:
    for attempt in (2, 3, 1):
        cache.put_pod(raw_ended_pod(attempt=attempt), NOON)
        cache.drop_pod(raw_ended_pod(attempt=attempt))
    before = job(cache)
    assert [pod.attempt for pod in cache.observe(before).departed_pods] == [2, 3, 1]
    ended_status = Status(attempts=[over(2), begun(3)])
    after = before.model_copy(update={"status": ended_status})
    assert [pod.attempt for pod in cache.observe(after).departed_pods] == [3]
    cache.forget_departed_pods(after)
    assert [pod.attempt for pod in cache.observe(before).departed_pods] == [3], "the others take no memory any more"


def test_to_observe_changes_nothing(cache: Cache) -> None:
    """A query has no side effect, even where it leaves out departed pods that nothing needs any more."""
    cache.put_attempt_job(raw_attempt_job(attempt=3))
    for attempt in (1, 2, 3):
        cache.put_pod(raw_ended_pod(attempt=attempt), NOON)
        cache.put_pod(raw_pod(index=1, attempt=attempt), NOON)
        cache.drop_pod(raw_ended_pod(attempt=attempt))
    now = job(cache).model_copy(update={"status": Status(attempts=[over(2), begun(3)])})
    unknown = now.model_copy(update={"metadata": meta("unknown", "unknown", 1)})
    before = state(cache)
    first = cache.observe(now)
    assert cache.observe(now) == first
    assert [pod.attempt for pod in first.departed_pods] == [3]
    assert cache.observe(unknown).pods == ()
    for key in (KEY, Key("team", "unknown")):
        cache.awaits_pods(key), cache.needs_rendezvous(key), cache.rank_zero_pod(key)
    assert state(cache) == before
    cache.forget_departed_pods(now)
    assert state(cache) != before
    assert cache.observe(now) == first


def state(value: object) -> object:
    """All that an object holds, as a copy that can be compared."""
    if isinstance(value, Cache | ChildStore):
        return {name: state(inner) for name, inner in vars(value).items() if not callable(inner)}
    return copy.deepcopy(value)


def test_how_the_pods_of_another_job_of_that_name_ended_is_not_told(cache: Cache) -> None:
    """The job was deleted and created again while its pods were still ending."""
    cache.put_pod(raw_ended_pod(attempt=2), NOON)
    cache.drop_job(raw_job())
    cache.put_job(raw_job(9, "another", creationTimestamp="2026-01-01T12:01:00Z"))
    cache.drop_pod(raw_ended_pod(attempt=2))
    cache.put_attempt_job(raw_attempt_job(attempt=1, owner="another"))
    assert cache.observe(job(cache)).departed_pods == ()


def test_what_is_not_ours_is_not_kept(cache: Cache) -> None:
    raw = raw_pod()
    raw["metadata"]["labels"] = {}
    assert key_of(raw) is None
    assert cache.put_pod(raw, NOON) is cache.drop_pod(raw) is None
    assert cache.put_attempt_job({"metadata": meta("x", "x", 1), "spec": {}}) is None
    assert pods(cache) == []


def test_a_gang_of_another_owner_is_not_ours(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job(owner="somebody"))
    assert cache.observe(job(cache)).attempt_jobs == ()


def test_a_deletion_is_timed_by_our_own_clock_from_when_it_was_first_seen(cache: Cache) -> None:
    deleted: dict[str, Any] = {"deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 120}
    cache.put_pod(raw_pod(3), NOON)
    assert cache.observe(job(cache)).pods[0].terminating is None
    cache.put_pod(raw_pod(4, **deleted), at(10))
    cache.put_pod(raw_pod(5, **deleted), at(20))
    cache.replace_children(KEY, [], [raw_pod(5, **deleted)], 9, at(30))
    [pod] = cache.observe(job(cache)).pods
    assert (pod.terminating, pod.grace) == (at(10), 120.0)


def test_what_we_have_deleted_is_known_before_a_watch_says_so(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job(2))
    [attempt_job] = cache.observe(job(cache)).attempt_jobs
    newer = raw_attempt_job(3)
    newer["status"] = {"conditions": [{"type": "FailureTarget", "status": "True"}]}
    cache.put_attempt_job(newer)  # while the request was in flight
    cache.mark_deleting(KEY, attempt_job)
    [attempt_job] = cache.observe(job(cache)).attempt_jobs
    assert (attempt_job.deleting, attempt_job.failed) == (True, True)
    cache.mark_deleting(Key("other", "job"), attempt_job)


def test_whom_to_ask(cache: Cache) -> None:
    assert cache.rank_zero_pod(KEY) is None
    cache.put_pod(raw_pod(3, 1), NOON)
    assert cache.rank_zero_pod(KEY) is None, "that is not rank 0"
    cache.put_pod(raw_pod(4, 0), NOON)
    leader = cache.rank_zero_pod(KEY)
    assert leader is not None
    assert (leader.index, leader.address) == (0, "10.0.0.1")
    cache.put_pod(raw_pod(5, 0, attempt=2, phase="Pending"), NOON)
    assert cache.rank_zero_pod(KEY) is None, "a newer attempt is starting"


def test_what_takes_memory_and_nobody_reads_is_not_kept(cache: Cache) -> None:
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    cache.put_job(raw_job(2, managedFields=[{}], annotations={"a": "b", applied: "{}"}))
    kept = cache.job(KEY)
    assert kept is not None
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {"a": "b"}


def reused(cache: Cache) -> bool:
    return cache.observe(job(cache)).reused


def test_a_name_that_another_job_had_is_known(cache: Cache) -> None:
    assert not reused(cache)
    cache.put_job(raw_job(2))
    assert not reused(cache)
    cache.put_job(raw_job(3, uid="other"))
    assert reused(cache)


def test_a_name_whose_job_or_gang_has_gone_is_known(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job())
    assert not reused(cache)
    cache.drop_attempt_job(raw_attempt_job())
    assert reused(cache), "for example of a job that was deleted while no operator ran"


@pytest.mark.parametrize("by", ["watch", "list", "get"])
def test_a_name_is_reused_however_its_last_went(cache: Cache, by: str) -> None:
    if by == "watch":
        cache.drop_job(raw_job())
    elif by == "list":
        cache.drop_unlisted_jobs(set(), 9, None)
    else:
        cache.forget_job(KEY)
    cache.put_job(raw_job(10, uid="other"))
    assert reused(cache)


def test_a_gang_that_a_list_misses_is_known(cache: Cache) -> None:
    cache.put_attempt_job(raw_attempt_job())
    assert cache.drop_unlisted_attempt_jobs(set(), 9, None) == [KEY]
    assert reused(cache)
