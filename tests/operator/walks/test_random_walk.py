"""Whatever happens to a job on a real control plane, in any order: some laws hold, and its status tells the truth.

`make test` takes 15 walks, the same each time: whether a change may land is no matter of luck. `make soak` takes 200
new ones. Each failure comes with its story; `TAILORPO_WALK_SEED` is the seed that it names, for the same walks again.
`walking/` has the laws, what is true, the world, and who watches it.

Walks have noticed operators that begin an attempt beside another, judge one that runs, count a failure twice or an
eviction, miss by one when they compare with `backoffLimit`, call the weaker cause, go on after the end, write over what
others wrote, and do not write that pods run or that a job is suspended.
"""

import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tailorpo_trainer.errors import ExitCode
from tests.cluster.control_plane import ControlPlane
from tests.cluster.proxy import DEAF, DROP
from tests.operator.walks.laws import CODES, DISRUPTIONS, FATAL
from tests.operator.walks.world import NODES, Stage, World

SEED, STEPS = "TAILORPO_WALK_SEED", 24
THE_SAME = 1
"""The seed of a run that must be reproducible."""
BATCH = 8
"""After ten walks hypothesis prefers variations of earlier walks, which repeat one step again and again."""
LAST_CODES = [0, *(int(code) for code in ExitCode if CODES.get(code) in FATAL)]
"""Exit codes after which a job fails; after the others it restarts, within its limit of restarts."""
OTHER_CODES = sorted({1, *CODES} - set(LAST_CODES))
LARGEST = 3

workers, nodes, again = st.integers(0, LARGEST - 1), st.integers(0, NODES - 1), st.booleans()
edits: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        *({"workers": count} for count in (1, 2, LARGEST)),
        *({"runPolicy": {"backoffLimit": limit}} for limit in (0, 1, 3)),
        *({"runPolicy": {"activeDeadlineSeconds": limit}} for limit in (1, 3600, None)),
        *({"runPolicy": {"startDeadlineSeconds": limit}} for limit in (1, 3600, None)),
        {"runPolicy": {"ttlSecondsAfterFinished": 1}},
        {"template": {"labels": {"team": "research"}}},
    ]
)


class Event(NamedTuple):
    """A method of `Walk`, and its arguments."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments.items())})"


def _event(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    return st.fixed_dictionaries(arguments).map(lambda given: Event(name, given))


# One rule for all events: of several rules hypothesis would leave out most in a walk.
events = st.one_of(
    *[_event("pods_run")] * 3,
    _event("a_pod_runs", worker=workers),
    *[_event("a_worker_ends", worker=workers, code=st.sampled_from(OTHER_CODES))] * 3,
    _event("a_worker_ends_for_good", worker=workers, code=st.sampled_from(LAST_CODES)),
    _event("all_are_done"),
    _event("out_of_memory", worker=workers),
    _event("edit", change=edits),
    _event("train_longer"),
    _event("suspend"),
    _event("resume"),
    _event("delete_pod", worker=workers, force=st.booleans()),
    _event(
        "delete_attempt_job", back=st.integers(0, 1), policy=st.sampled_from(["Background", "Foreground", "Orphan"])
    ),
    _event("delete_service"),
    _event("delete_and_apply"),
    _event("disrupt", worker=workers, reason=st.sampled_from([*DISRUPTIONS, "Unheard"])),
    _event("drain", worker=workers),
    _event("a_node_runs_short", worker=workers),
    _event("a_node_is_lost", node=nodes),
    _event("a_node_is_not_ready", node=nodes),
    _event("a_node_is_back", node=nodes),
    _event("kill", again=again),
    _event("stop", again=again),
    _event("pause", again=again),
    _event("kill_at_write", left=st.integers(0, 4), received=st.booleans()),
    *[_event("start")] * 2,
    _event("spoil_writes", verdict=st.sampled_from([409, 429, 500, DROP, DEAF]), writes=st.integers(1, 6)),
    _event("delay", seconds=st.sampled_from([0.05, 0.5])),
    _event("cut"),
    _event("hold"),
    *[_event("undisturb")] * 2,
    *[_event("wait")] * 2,
    _event("settle"),
)


class Walk(RuleBasedStateMachine):
    """Drawn without reading the cluster: an event that is impossible at its time is skipped."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.pace = 0

    @initialize(
        some=st.integers(0, 1000),
        replicas=st.sampled_from([1, 1, 2]),
        operators_skew=st.sampled_from([0.0, 0.0, -90.0, 90.0]),
        nodes_skew=st.sampled_from([0, 0, -300, 300]),
        workers=st.integers(1, LARGEST),
        limit=st.sampled_from([0, 1, 10]),
        stopped=st.sampled_from([ExitCode.STOPPED, 143, 137]),
        pace=st.sampled_from([0, 1, 5]),
    )
    def begin(
        self,
        some: int,
        replicas: int,
        operators_skew: float,
        nodes_skew: int,
        workers: int,
        limit: int,
        stopped: int,
        pace: int,
    ) -> None:
        """some: 0 in the simplest walk, with which hypothesis begins. pace: changes that each step is followed by."""
        assume(some)
        self.pace = pace
        policy = {"terminationGracePeriodSeconds": 1, "backoffLimit": limit}
        training = {"iterations": 100, "promptsPerIteration": 4 * LARGEST}
        spec = {"workers": workers, "runPolicy": policy, "training": training}
        self.world = World(self.stage, replicas, operators_skew, spec)
        self.world.driver.sigterm_exit = stopped
        self.world.driver.skew = timedelta(seconds=nodes_skew)

    @rule(event=events)
    def step(self, event: Event) -> None:
        getattr(self, event.name)(**event.arguments)

    # Pods

    def pods_run(self) -> None:
        self.there.run()

    def a_pod_runs(self, worker: int) -> None:
        self.there.run_one(worker)

    def a_worker_ends(self, worker: int, code: int) -> None:
        self.there.end(worker, code)

    def a_worker_ends_for_good(self, worker: int, code: int) -> None:
        self.there.end(worker, code)

    def all_are_done(self) -> None:
        self.there.succeed()

    def out_of_memory(self, worker: int) -> None:
        self.there.oom(worker)

    # People

    def edit(self, change: dict[str, Any]) -> None:
        self.there.edit(change)

    def train_longer(self) -> None:
        self.there.train_longer()

    def suspend(self) -> None:
        self.there.suspend(True)

    def resume(self) -> None:
        self.there.suspend(False)

    def delete_pod(self, worker: int, force: bool) -> None:
        self.there.delete_pod(worker, force=force)

    def delete_attempt_job(self, back: int, policy: str) -> None:
        self.there.delete_attempt_job(back, policy)

    def delete_service(self) -> None:
        self.there.delete_service()

    def delete_and_apply(self) -> None:
        self.there.delete_job()
        self.there.apply()

    # The cluster

    def disrupt(self, worker: int, reason: str) -> None:
        self.there.disrupt(worker, reason)

    def drain(self, worker: int) -> None:
        self.there.evict(worker)

    def a_node_runs_short(self, worker: int) -> None:
        self.there.run_short(worker)

    def a_node_is_lost(self, node: int) -> None:
        self.there.lose(self.there.nodes[node])

    def a_node_is_not_ready(self, node: int) -> None:
        self.there.not_ready(self.there.nodes[node])

    def a_node_is_back(self, node: int) -> None:
        self.there.recover(self.there.nodes[node])

    # The operator, and the answers to its requests

    def kill(self, again: bool) -> None:
        """The operator that leads."""
        self._to_the_acting("kill -9", self.stage.replicas.kill, again)

    def stop(self, again: bool) -> None:
        self._to_the_acting("stop", self.stage.replicas.stop, again)

    def pause(self, again: bool) -> None:
        self._to_the_acting("SIGSTOP", self.stage.replicas.pause, again)

    def kill_at_write(self, left: int, received: bool) -> None:
        if (number := self.stage.replicas.acting) is not None:
            self._act(f"kill -9 of operator {number} after {left} writes, at the next ({received=})")
            self.stage.replicas.kill_at_write(number, left, received=received)

    def start(self) -> None:
        self._act("all operators start")
        for number in range(len(self.stage.replicas)):
            self.stage.replicas.start(number)

    def spoil_writes(self, verdict: int, writes: int) -> None:
        self._act(f"the next {writes} writes get {verdict}")
        self.stage.replicas.answer(verdict, writes)

    def delay(self, seconds: float) -> None:
        self._act(f"requests wait {seconds} s")
        self.stage.replicas.delay(seconds)

    def cut(self) -> None:
        self._act("connections are cut")
        self.stage.replicas.cut()

    def hold(self) -> None:
        self._act("watches lag")
        self.stage.replicas.hold()

    def undisturb(self) -> None:
        self._act("requests go through")
        self.stage.replicas.undisturb()

    def wait(self) -> None:
        """Waits while there are changes."""
        self.there.wait(20, 2.0)

    def settle(self) -> None:
        self._act("all operators run, undisturbed")
        self.there.settle()

    # The end

    @invariant()
    def lawful(self) -> None:
        if self.world is not None:
            self.world.wait(self.pace, 0.4)
            self.world.check()

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if sys.exception() is None:  # otherwise the walk has failed already
                self._act("the end")
                self.world.settle()
                self.world.finish()
        finally:
            if sys.exception() is not None:
                print(self.world.story())
            self.stage.replicas.heal()
            self.world.close()

    @property
    def there(self) -> World:
        assert self.world is not None
        return self.world

    def _act(self, text: str) -> None:
        self.there.witness.act(text)

    def _to_the_acting(self, text: str, act: Callable[[int], None], again: bool) -> None:
        if (number := self.stage.replicas.acting) is not None:
            self._act(f"{text} of operator {number}" + (", and start again" if again else ""))
            act(number)
            if again:
                self.stage.replicas.start(number)


@pytest.fixture(scope="module")
def stage(
    control_plane: ControlPlane, operator_user: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with Stage.of(control_plane, operator_user, tmp_path_factory.mktemp("walks")) as stage:
        yield stage


def walk(on: Stage, times: int, otherwise: int, *phases: Phase) -> None:
    """otherwise: the seed, unless one is named."""
    first = int(os.environ.get(SEED) or otherwise)

    class Here(Walk):
        stage = on

    for number in range(math.ceil(times / BATCH)):
        print(f"{SEED}={first + number}")
        run_state_machine_as_test(
            seed(first + number)(Here),
            settings=settings(
                max_examples=min(BATCH, times - number * BATCH),
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=(Phase.generate, *phases),
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("alone")
def test_random_walks(stage: Stage) -> None:
    walk(stage, 15, THE_SAME)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.usefixtures("alone")
def test_random_walks_at_length(stage: Stage) -> None:
    walk(stage, 200, secrets.randbelow(2**32), Phase.shrink)
