"""Short constructors for the operator's pure tests: a job, what was observed of it, and the plan for it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tailorpo_operator.api.conditions import condition
from tailorpo_operator.api.types import Attempt, Condition, ConditionType, Job, Status
from tailorpo_operator.planning.actions import CreateAttempt, DeletePod, Plan, RecordEvent, StopAttempt
from tailorpo_operator.planning.backoff import Retries
from tailorpo_operator.planning.observed import AttemptJob, Exit, Observed, Pod, Report
from tailorpo_operator.planning.plan import plan
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec.progress import Error, Progress

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RETRIES = Retries()
GRACE = 120.0
SPEC: dict[str, Any] = {
    "prompts": {"builtin": "animals"},
    "rewards": [{"name": "colourfulness"}],
    "method": {"name": "tailorpo"},
    "checkpoint": {"storage": "s3://models/animals"},
    "training": {"iterations": 100},
}


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def job(status: Status | None = None, *, workers: int = 2, generation: int = 1, **run_policy: Any) -> Job:
    """A job that was created at noon; keyword arguments are fields of `runPolicy` under their YAML names."""
    spec = {**SPEC, "workers": workers, "runPolicy": run_policy}
    metadata = {
        "name": "animals",
        "namespace": "team",
        "uid": "job-uid",
        "generation": generation,
        "creationTimestamp": "2026-01-01T12:00:00Z",
    }
    return Job(metadata=metadata, spec=spec, status=status or Status())


def attempt_job(attempt: int = 1, *, workers: int = 2, **fields: Any) -> AttemptJob:
    fields = {"created": NOON, "started": NOON, **fields}
    return AttemptJob(f"animals-{attempt:04d}", f"gang-{attempt}", attempt, workers, **fields)


def pod(index: int = 0, attempt: int = 1, **fields: Any) -> Pod:
    """A pod that runs on a node of its own, unless fields change that."""
    name = f"animals-{attempt:04d}-{index}"
    given = {"phase": "Running", "ready": True, "node": f"node-{index}", "grace": GRACE, "created": NOON, **fields}
    return Pod(name, f"{name}-uid", attempt, index, **given)


def pending(index: int = 0, attempt: int = 1, **fields: Any) -> Pod:
    return pod(index, attempt, **{"phase": "Pending", "ready": False, "node": None, **fields})


def exited(code: int, index: int = 0, attempt: int = 1, *, reason: str = "", text: str = "", **fields: Any) -> Pod:
    """A pod whose trainer has ended."""
    phase = "Succeeded" if code == 0 else "Failed"
    how = Exit(code, reason or ("Completed" if code == 0 else "Error"), text or termination_message(code))
    return pod(index, attempt, **{"phase": phase, "ready": False, "exit": how, **fields})


def termination_message(code: int, *, step: int = 10, of: int = 100, **error: Any) -> str:
    """A termination message."""
    if code == 0:
        progress = Progress(attempt=1, phase="Succeeded", step=of, of=of, adapter="s3://models/animals/adapter")
    else:
        reported = {"text": f"the trainer says {code}", **error}
        phase: Any = "Stopped" if code == ExitCode.STOPPED else "Failed"
        progress = Progress(
            attempt=1, phase=phase, step=step, of=of, error=Error(class_="E", exit_code=code, **reported)
        )
    return progress.model_dump_json(by_alias=True, exclude_none=True)


def report(
    step: int, *, attempt: int = 1, of: int = 100, advanced_at: datetime = NOON, received_at: datetime = NOON
) -> Report:
    progress = Progress(attempt=attempt, phase="Running", step=step, of=of, updated="2026-01-01T12:00:00Z")
    return Report(attempt, progress, advanced_at=advanced_at, received_at=received_at)


def children(*objects: AttemptJob | Pod, fresh: bool = True, **more: Any) -> Observed:
    """What was read from the API server just now, unless `fresh` is False."""
    attempt_jobs = tuple(each for each in objects if isinstance(each, AttemptJob))
    pods = tuple(each for each in objects if isinstance(each, Pod))
    return Observed(attempt_jobs=attempt_jobs, pods=pods, fresh=fresh, **more)


def begun(number: int = 1, **fields: Any) -> Attempt:
    """An attempt that is open."""
    return Attempt(number=number, **{"start": NOON, **fields})


def over(number: int, reason: str = "InternalError", **fields: Any) -> Attempt:
    """An attempt that was judged a minute after its start."""
    given = {"start": NOON, "end": at(60), "counted": reason == "InternalError", "message": "why", **fields}
    return Attempt(number=number, reason=reason, **given)


def conditions(**states: str) -> list[Condition]:
    """Conditions since noon, as `Running="True"`."""
    given: list[tuple[Any, Any]] = list(states.items())
    return [Condition(type=kind, status=value, reason="Before", last_transition_time=NOON) for kind, value in given]


def running(*attempts: Attempt, **fields: Any) -> Status:
    """The status of a job whose last attempt has run since noon."""
    made = {
        "phase": "Running",
        "start_time": NOON,
        "attempts": list(attempts) or [begun()],
        "conditions": conditions(Suspended="False", PodsReady="True", Running="True", Restarting="False"),
        **fields,
    }
    made.setdefault("restarts", made["attempts"][-1].number - 1)
    return Status(**made)


def finished(kind: ConditionType = "Succeeded", **fields: Any) -> Status:
    """The status of a job that finished at noon."""
    made = {
        "phase": kind,
        "completion_time": NOON,
        "attempts": [over(1, "Completed")],
        "conditions": conditions(PodsReady="False", Running="False", **{kind: "True"}),
        **fields,
    }
    return Status(**made)


class Story:
    """The life of a job: what is observed at a time, the plan for it, and the status that follows."""

    def __init__(self, status: Status | None = None, *, workers: int = 2, **run_policy: Any) -> None:
        self.job = job(status, workers=workers, **run_policy)
        self.planned = Plan(self.job.status)

    @property
    def status(self) -> Status:
        return self.job.status

    @property
    def phase(self) -> str:
        return self.status.phase

    def reconcile(self, seconds: float, *objects: AttemptJob | Pod, **more: Any) -> Plan:
        """Plans, and updates the status; planning again from the same observations must change nothing more."""
        found = children(*objects, **more)
        self.planned = plan(self.job, found, at(seconds), RETRIES)
        self.job = self.job.model_copy(update={"status": self.planned.status})
        if not self.planned.create and not self.planned.fresh:
            again = plan(self.job, found, at(seconds), RETRIES)
            assert again.status == self.planned.status, "a second plan differs"
        return self.planned

    def edit(self, **run_policy: Any) -> None:
        """Changes fields of `runPolicy`, under their Python names."""
        spec = self.job.spec
        self.respec(run_policy=spec.run_policy.model_copy(update=run_policy))

    def respec(self, **fields: Any) -> None:
        generation = self.job.generation + 1
        self.job = self.job.model_copy(
            update={
                "spec": self.job.spec.model_copy(update=fields),
                "metadata": {**self.job.metadata, "generation": generation},
            }
        )

    def condition_of(self, kind: ConditionType) -> tuple[str, str] | None:
        """Status and reason of a condition."""
        found = condition(self.status, kind)
        return None if found is None else (found.status, found.reason)

    @property
    def begins(self) -> list[int]:
        """Attempts that the last plan creates."""
        return [each.number for each in self.planned.create if isinstance(each, CreateAttempt)]

    @property
    def stops(self) -> list[int]:
        """Attempts whose Job the last plan deletes."""
        return [each.attempt_job.attempt for each in self.planned.delete if isinstance(each, StopAttempt)]

    def deletes(self, *, force: bool) -> list[str]:
        """Pods that the last plan deletes."""
        return [each.pod.name for each in self.planned.delete if isinstance(each, DeletePod) and each.force == force]

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(each.kind, each.reason) for each in self.planned.events]

    @property
    def last(self) -> Attempt:
        return self.status.attempts[-1]


def terminating(pods: Iterable[Pod], since: datetime = NOON) -> list[Pod]:
    return [replace(each, terminating=since) for each in pods]


def keys(events: Iterable[RecordEvent]) -> set[str]:
    return {each.key for each in events}
