"""One operator, or two that elect a leader, each behind a proxy that can refuse and delay its requests."""

import signal
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.proxy import DEAF, DROP, ApiProxy, Asked, Rule, through
from tests.cluster.waiting import until
from tests.operator.operating import WarmOperator

ELECT = ("--leader-elect", "--lease-namespace=tailorpo-system")
LEASE, DEADLINE, RETRY = 4, 3, 0.5
"""Seconds of an election in a walk; the defaults would take too long."""


class Replicas:
    """The processes are reused by the next walk, unless it wants others or they were killed."""

    def __init__(self, user: Path, folder: Path, forget_lease: Callable[[], None]) -> None:
        self._folder, self._forget_lease = folder, forget_lease
        for name in ("one", "other"):
            (folder / name).mkdir()
        self._proxies = [ApiProxy(user, folder / name) for name in ("one", "other")]
        self._paused: set[int] = set()
        self._kind: tuple[int, float] | None = None
        self._operators: list[WarmOperator] = []

    def __enter__(self) -> Self:
        for proxy in self._proxies:
            proxy.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        for proxy in self._proxies:
            proxy.__exit__(kind, error, trace)

    def begin(self, count: int, skew: float) -> None:
        """Runs so many operators, whose clocks are wrong by `skew` seconds, without faults."""
        if self._kind != (count, skew):
            self._end()
            self._forget_lease()
            self._kind = (count, skew)
            self._operators = [
                WarmOperator(
                    proxy.kubeconfig,
                    self._folder / f"log-{count}-{skew:.0f}-{number}",
                    *(ELECT if count > 1 else ()),
                    prepare=partial(prepare, skew),
                )
                for number, proxy in enumerate(self._proxies[:count])
            ]
        self.heal()

    def heal(self) -> None:
        """Starts all operators, without faults."""
        self.undisturb()
        for number in range(len(self._operators)):
            self.start(number)

    def undisturb(self) -> None:
        for proxy in self._proxies:
            proxy.rule, proxy.delay = through, 0.0
            proxy.release_watches()
            proxy.wait()  # a rule that is being evaluated may kill an operator

    def __len__(self) -> int:
        return len(self._operators)

    # Faults of one operator

    @property
    def acting(self) -> int | None:
        """The operator that leads: of two the one whose last log line about it says so; None if none leads."""
        running = [number for number, each in enumerate(self._operators) if each.running and number not in self._paused]
        if len(self) == 1:
            return running[0] if running else None
        return next((number for number in running if _leads(self._operators[number])), None)

    def start(self, number: int) -> None:
        operator = self._operators[number]
        if number in self._paused:
            self.wake(number)
        if not operator.running:
            self._proxies[number].rule = through
            operator.start()

    def kill(self, number: int) -> None:
        self._paused.discard(number)
        self._operators[number].kill()

    def stop(self, number: int) -> None:
        """Stops it as a kubelet would."""
        if self._operators[number].running and number not in self._paused:
            self._operators[number].stop()

    def pause(self, number: int) -> None:
        if self._operators[number].running:
            self._operators[number].signal(signal.SIGSTOP)
            self._paused.add(number)

    def wake(self, number: int) -> None:
        self._paused.discard(number)
        if self._operators[number].running:
            self._operators[number].signal(signal.SIGCONT)

    def kill_at_write(self, number: int, left: int, *, received: bool) -> None:
        """Kills it when it sends a write, after `left` further ones. received: by the server."""
        operator = self._operators[number]
        if operator.running:
            self._proxies[number].rule = _dies(operator, left, received)

    # Faults of their requests

    def answer(self, verdict: int, writes: int) -> None:
        """Answers the next `writes` writes of each operator with this verdict."""
        for proxy in self._proxies:
            proxy.rule = _answers(verdict, writes)

    def delay(self, seconds: float) -> None:
        for proxy in self._proxies:
            proxy.delay = seconds

    def cut(self) -> None:
        for proxy in self._proxies:
            proxy.cut()

    def hold(self) -> None:
        """Holds back the events of their watches."""
        for proxy in self._proxies:
            proxy.hold_watches()

    def release(self) -> None:
        for proxy in self._proxies:
            proxy.release_watches()

    def leading(self) -> int:
        """Waits until one of them leads; returns its number."""

        def check() -> int | None:
            number = self.acting
            return None if number is None else number + 1

        return until(check, "an operator leads") - 1

    def _end(self) -> None:
        for number in range(len(self._operators)):
            self.kill(number)
        self._operators = []


def prepare(skew: float) -> None:
    """Runs in the operator's process: shifts its clock by so many seconds, and makes elections quick."""
    from tailorpo_operator.controller import progress_poller, reconciler
    from tailorpo_operator.kube import leader_election

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=skew)

    for module in (leader_election, progress_poller, reconciler):
        assert getattr(module, "datetime", None) is datetime, f"{module.__name__} does not use datetime any more"
        module.datetime = Skewed  # type: ignore[attr-defined]
    leader_election.LEASE_DURATION, leader_election.RENEW_DEADLINE = LEASE, DEADLINE
    leader_election.RETRY_PERIOD = leader_election.ACQUIRE_PERIOD = RETRY  # type: ignore[assignment]


def _leads(operator: WarmOperator) -> bool:
    lines = [line for line in operator.logged() if line == "leading" or "serving" in line or "not leading" in line]
    return lines[-1:] == ["leading"]


def _writes(asked: Asked) -> bool:
    return asked.writes and "/leases" not in asked.path


def _dies(operator: WarmOperator, left: int, received: bool) -> Rule:
    pid = operator.pid

    def rule(asked: Asked) -> int:
        nonlocal left
        if not _writes(asked):
            return 0
        left -= 1
        if left == -1:
            operator.kill_soon(pid)
        return 0 if left >= 0 else DEAF if received and left == -1 else DROP

    return rule


def _answers(verdict: int, writes: int) -> Rule:
    def rule(asked: Asked) -> int:
        nonlocal writes
        if not _writes(asked) or writes == 0:
            return 0
        writes -= 1
        return verdict

    return rule
