"""A small simulated cluster, in which anything may happen to a job. Pure: time is a number.

It has a Job controller, kubelets, a queue, a quota, and an operator whose watches lag and that may be killed between
any two of its writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tailorpo_operator.api.conditions import condition, is_true
from tailorpo_operator.api.status_size import MAX_BYTES, size
from tailorpo_operator.api.types import Job, Status
from tailorpo_operator.planning.actions import CreateAttempt, DeleteJob, DeletePod, Plan, StopAttempt
from tailorpo_operator.planning.attempts import finished
from tailorpo_operator.planning.observed import AttemptJob, Exit, Observed, Pod, Reason
from tailorpo_operator.planning.plan import plan
from tailorpo_trainer.errors import ExitCode
from tests.operator.stories import RETRIES, at, attempt_job, job, pending, termination_message

TRAINS, WATCHDOG, TAINTED = 100.0, 600.0, 300.0
"""Seconds until a gang is done, until a worker misses its peers, until the pods of a lost node are deleted."""
QUOTA = Reason("Forbidden", "exceeded quota: jobs")


class KilledError(Exception):
    """The operator was killed between two writes."""


@dataclass
class Cluster:
    """The true state. Everything is read and written here; `changes` counts what a watch would send."""

    job: Job = field(default_factory=lambda: job(workers=2, terminationGracePeriodSeconds=60))
    now: float = 0.0
    skew: float = 0.0
    attempt_jobs: dict[int, AttemptJob] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    populated: set[int] = field(default_factory=set)
    lost: dict[str, float] = field(default_factory=dict)
    running_since: dict[str, float] = field(default_factory=dict)
    quota: bool = True
    queued: bool = False
    deleted: bool = False
    version: int = 1
    changes: int = 0
    counted: int = 0
    newest: int = 0

    # What is asked of the API server

    def create(self, number: int) -> AttemptJob:
        if number in self.attempt_jobs:
            return self.attempt_jobs[number]
        # A Job that was deleted before the status was written is not in the status.
        known = [self.newest - 1, *(each.number for each in self.job.status.attempts)]
        assert number > max(known), "attempt numbers only grow"
        assert not finished(self.job.status), "terminal stays terminal"
        assert not self.living, f"attempt {number} begins beside {self.living}"
        self.newest = number
        created = at(self.now + self.skew)
        self.attempt_jobs[number] = attempt_job(number, created=created, started=None, workers=self.job.spec.workers)
        self.attempt_jobs[number] = replace(self.attempt_jobs[number], suspended=self.queued)
        self.changes += 1
        return self.attempt_jobs[number]

    def write(self, status: Status, version: int) -> bool:
        if version != self.version:
            return False
        before = self.job.status
        assert size(status) <= MAX_BYTES
        assert Status.model_validate(status.to_dict()) == status
        numbers = [each.number for each in status.attempts]
        assert numbers == sorted(set(numbers))
        if finished(before):
            assert (status.phase, status.attempts) == (before.phase, before.attempts), "terminal stays terminal"
        known = {each.number for each in before.attempts if each.end is not None}
        for each in status.attempts:
            if each.end is not None and each.number not in known:
                pods = self.of(each.number)
                assert all(pod.done for pod in pods), "an attempt is judged when nothing of it can run any more"
                if any(pod.index == 0 and pod.succeeded for pod in pods):
                    assert each.reason == "Completed", "a result is a result"
                self.counted += bool(each.counted)
        assert status.failures == self.counted, "each counted end is counted once"
        if status != before:
            self.job = self.job.model_copy(update={"status": status})
            self.version += 1
            self.changes += 1
        return True

    def stop(self, number: int) -> None:
        """In the background: the Job goes at once, and its pods after it."""
        if self.attempt_jobs.pop(number, None) is not None:
            self.changes += 1

    def delete(self, name: str, *, force: bool = False) -> None:
        if name in self.pods and (force or self.pods[name].done):
            del self.pods[name]
        elif name in self.pods and self.pods[name].terminating is None:
            self.set(name, terminating=at(0))  # only a mark: the operator has its own clock
        else:
            return
        self.changes += 1

    def set(self, name: str, **fields: object) -> None:
        changed = replace(self.pods[name], **fields)  # type: ignore[arg-type]
        self.changes += changed != self.pods[name]
        self.pods[name] = changed

    def set_attempt_job(self, number: int, **fields: object) -> None:
        changed = replace(self.attempt_jobs[number], **fields)  # type: ignore[arg-type]
        self.changes += changed != self.attempt_jobs[number]
        self.attempt_jobs[number] = changed

    @property
    def living(self) -> list[Pod]:
        return [pod for pod in self.pods.values() if not pod.done]

    def of(self, number: int) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.attempt == number]

    # What happens without the operator

    def control(self) -> None:
        """The Job controller, and the garbage collector."""
        for number, each in list(self.attempt_jobs.items()):
            pods = self.of(number)
            if each.suspended:
                self.set_attempt_job(number, started=None)
                for pod in pods:
                    self.delete(pod.name)
                continue
            if each.started is None:
                self.set_attempt_job(number, started=at(self.now + self.skew))
            if any(pod.phase == "Failed" for pod in pods) or (number in self.populated and len(pods) < each.workers):
                self.set_attempt_job(number, failed=True)
            if self.attempt_jobs[number].failed:
                for pod in pods:
                    if not pod.done:
                        self.delete(pod.name)
            elif len(pods) == each.workers and all(pod.phase == "Succeeded" for pod in pods):
                self.set_attempt_job(number, complete=True)
            elif not each.complete:
                for index in sorted({*range(each.workers)} - {pod.index for pod in pods}):
                    made = pending(index, number, created=at(self.now + self.skew))
                    self.pods[made.name] = made
                    self.changes += 1
                self.populated.add(number)
        for pod in list(self.pods.values()):
            if pod.attempt not in self.attempt_jobs or (pod.done and pod.terminating is not None):
                self.delete(pod.name)

    def start(self, name: str) -> None:
        pod = self.pods[name]
        if pod.phase == "Pending" and pod.terminating is None:
            self.set(name, phase="Running", ready=True, node=f"node-{pod.index}")
            self.running_since[name] = self.now

    def end(self, name: str, code: int, reason: str = "Error") -> None:
        pod = self.pods[name]
        if pod.phase == "Running" and name not in self.lost:
            phase = "Succeeded" if code == 0 else "Failed"
            self.set(name, phase=phase, ready=False, exit=Exit(code, reason, termination_message(code)))

    def lose(self, name: str) -> None:
        """Its node has lost its power."""
        if self.pods[name].phase == "Running":
            self.lost.setdefault(name, self.now + TAINTED)
            self.set(name, ready=False)

    def live(self) -> None:
        """Every component does what it does in the end if nothing interferes."""
        self.control()
        self.queued = False
        for number in list(self.attempt_jobs):
            self.set_attempt_job(number, suspended=False)
        for name, pod in list(self.pods.items()):
            if name in self.lost:
                if self.now >= self.lost[name] and pod.terminating is None:
                    self.set(name, disruption=Reason("DeletionByTaintManager"))
                    self.delete(name)
            elif pod.terminating is not None and not pod.done:
                self.end(name, ExitCode.STOPPED) if pod.phase == "Running" else self.delete(name, force=True)
            elif pod.phase == "Pending":
                self.start(name)
            elif pod.phase == "Running":
                self.set(name, ready=True)
                whole = [each for each in self.of(pod.attempt) if each.phase in ("Running", "Succeeded")]
                lasted = self.now - self.running_since[name]
                if len(whole) == 2 and not any(each.name in self.lost for each in whole) and lasted >= TRAINS:
                    self.end(name, ExitCode.DONE)
                elif lasted >= WATCHDOG:
                    self.end(name, ExitCode.STALLED)
        self.control()

    @property
    def due(self) -> Iterator[float]:
        """When something will happen by itself."""
        for name, pod in self.pods.items():
            if name in self.lost:
                if pod.terminating is None:
                    yield self.lost[name]
            elif pod.phase == "Running":
                yield from (self.running_since[name] + span for span in (TRAINS, WATCHDOG))


@dataclass
class Operator:
    """A copy of `reconciler.py` and `cache.py` in small: it may forget what it has observed."""

    cluster: Cluster
    job: Job = field(init=False)
    version: int = 0
    attempt_jobs: dict[int, AttemptJob] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    terminating: dict[str, float] = field(default_factory=dict)
    requeue_at: float | None = 0.0
    dirty: bool = True
    writes_left: int | None = None
    recorded: set[str] = field(default_factory=set)
    reused: bool = False

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.terminating.clear()
        self.attempt_jobs, self.reused = {}, False
        self.dirty = True  # it reconciles all jobs at its start
        self.read()

    def read(self) -> None:
        self.watch_job()
        self.watch_attempt_jobs()
        self.watch_pods()

    def watch_job(self) -> None:
        self.dirty |= self.version != self.cluster.version
        self.job, self.version = self.cluster.job, self.cluster.version

    def watch_attempt_jobs(self) -> None:
        self.dirty |= self.attempt_jobs != self.cluster.attempt_jobs
        self.reused |= bool(self.attempt_jobs.keys() - self.cluster.attempt_jobs.keys())
        self.attempt_jobs = dict(self.cluster.attempt_jobs)

    def watch_pods(self) -> None:
        pods: dict[str, Pod] = {}
        for name, pod in self.cluster.pods.items():
            since = self.terminating.setdefault(name, self.cluster.now) if pod.terminating is not None else None
            pods[name] = replace(pod, terminating=None if since is None else at(since))
        self.dirty |= pods != self.pods
        self.pods = pods

    def children(self, *, fresh: bool = False, refused: Reason | None = None) -> Observed:
        attempt_jobs = tuple(sorted(self.attempt_jobs.values(), key=lambda each: each.attempt))
        pods = tuple(sorted(self.pods.values(), key=lambda each: (each.attempt, each.index)))
        return Observed(attempt_jobs, pods, fresh=fresh, refused=refused, reused=self.reused)

    def plan(self, *, fresh: bool = False, refused: Reason | None = None) -> Plan:
        return plan(self.job, self.children(fresh=fresh, refused=refused), at(self.cluster.now), RETRIES)

    def reconcile(self, writes: int | None = None) -> None:
        """Reconciles once. writes: the operator is killed after so many, and restarts."""
        if self.cluster.deleted:
            return
        self.writes_left, self.dirty, self.requeue_at = writes, False, None
        try:
            planned = self.plan()
            if planned.fresh:
                self.read()
                planned = self.plan(fresh=True)
                assert not planned.fresh
            self.carry_out(planned)
        except KilledError:
            self.restart()
            self.requeue_at = self.cluster.now

    def carry_out(self, planned: Plan) -> None:
        for creation in planned.create:
            self.write()
            if isinstance(creation, CreateAttempt):
                if not self.cluster.quota and creation.number not in self.cluster.attempt_jobs:
                    planned = self.plan(fresh=True, refused=QUOTA)
                    break
                self.attempt_jobs[creation.number] = self.cluster.create(creation.number)
        for event in planned.events:
            self.write()
            self.recorded.add(event.key)
        self.write()
        if not self.cluster.write(planned.status, self.version):
            self.watch_job()
            self.dirty = True
            return
        self.job, self.version = self.cluster.job, self.cluster.version
        for deletion in planned.delete:
            self.write()
            match deletion:
                case StopAttempt(each):
                    self.cluster.stop(each.attempt)
                case DeletePod(each, force):
                    self.cluster.delete(each.name, force=force)
                case DeleteJob():
                    self.cluster.deleted = True
        if planned.requeue_at is not None:
            self.requeue_at = (planned.requeue_at - at(0)).total_seconds()
        self.twice()

    def twice(self) -> None:
        """Planning again from the same observations changes nothing."""
        again = self.plan(fresh=True)
        if not again.create:
            job_then = self.job.model_copy(update={"status": again.status})
            third = plan(job_then, self.children(fresh=True), at(self.cluster.now), RETRIES)
            assert (third.status, third.create) == (again.status, ())

    def write(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise KilledError
            self.writes_left -= 1


def settle(cluster: Cluster, operator: Operator) -> None:
    """Lets everything take its course. Fails if the job waits for what never comes, or no requeue is due."""
    idle = 0
    for _ in range(600):
        if cluster.deleted:
            return
        before = cluster.changes
        cluster.live()
        operator.read()
        if operator.dirty or (operator.requeue_at is not None and operator.requeue_at <= cluster.now):
            operator.reconcile()
        if cluster.changes != before or operator.dirty:
            cluster.now += 1
            idle = 0
            continue
        if settled(cluster):
            return
        times = [time for time in cluster.due if time > cluster.now]
        times += [operator.requeue_at] if operator.requeue_at is not None else []
        assert times, f"no requeue is due: {cluster.job.status.to_dict()}"
        cluster.now = max(min(times), cluster.now + 1)
        idle += 1
        if idle > 20:
            break
    status = cluster.job.status
    waits = condition(status, "PodsReady")
    assert not cluster.quota, f"for ever {status.phase}: {status.message}"
    assert waits is not None
    assert waits.reason == "QuotaExceeded"
    assert "exceeded quota" in str(status.message)


def settled(cluster: Cluster) -> bool:
    status, suspend = cluster.job.status, cluster.job.spec.run_policy.suspend
    return not cluster.living and (finished(status) or (suspend and is_true(status, "Suspended")))
