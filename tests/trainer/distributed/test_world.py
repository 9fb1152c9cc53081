"""What processes agree on, and what happens when one of them does not come."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tailorpo_trainer.distributed.signals import Stop, StopRequested
from tailorpo_trainer.distributed.world import World, announce_failure, join
from tailorpo_trainer.errors import ConfigurationError, ExitCode, StalledError, TailorPOError

RunAll = Callable[..., list[Any]]
Start = Callable[..., Any]


def in_world(work: Callable[[World], Any]) -> Callable[[int], Any]:
    def run(rank: int) -> Any:
        with Stop().listening() as stop, join(stop, 30, 30) as world:
            assert world.rank == rank
            return work(world)

    return run


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 7, 8])
def test_shares_are_whole_in_order_and_as_equal_as_can_be(size: int, count: int) -> None:
    shares = [World(Stop(), rank, size).share(count) for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_what_it_was() -> None:
    world, value = World(Stop()), torch.tensor([1.0, 2.0])
    world.sum([value])
    assert value.tolist() == [1, 2]
    assert world.gather(value) is value or torch.equal(world.gather(value), value)
    assert world.broadcast(b"x") == b"x"
    assert world.total({"a": 1.5}) == {"a": 1.5}
    world.same({"a": value})
    world.barrier()


def test_sums_rows_bytes_and_totals_are_the_same_everywhere(run_all: RunAll) -> None:
    def work(world: World) -> Any:
        vector, matrix = torch.full((3,), float(world.rank)), torch.full((2, 2), 10.0 * world.rank)
        world.sum([vector, matrix])
        rows = world.gather(torch.full((world.rank, 2), world.rank))  # the first has none
        sent = world.broadcast(b"first" if world.first else b"another")
        empty = world.broadcast(b"")
        world.same({"a": vector})
        return [vector.tolist(), matrix.tolist(), rows.tolist(), sent.decode(), len(empty), world.total({"n": 1})["n"]]

    expected = [[3.0] * 3, [[30.0] * 2] * 2, [[1, 1], [2, 2], [2, 2]], "first", 0, 3]
    assert run_all(3, in_world(work)) == [expected] * 3


def test_weights_that_went_apart_are_noticed_by_all(start: Start) -> None:
    def work(world: World) -> None:
        world.same({"weights": torch.full((2,), 1.0 + 1e-7 * world.rank)})

    ended = start(2, in_world(work)).wait()
    assert [each.code for each in ended] == [ExitCode.INTERNAL] * 2
    assert all("no longer the same" in each.stderr for each in ended)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_of_one_stops_all_wherever_they_are(run_all: RunAll, stopped: int) -> None:
    """One is between two denoiser calls, the other waits for it in a collective."""

    def work(world: World) -> Any:
        try:
            with world.end_together():
                if world.rank == stopped:
                    os.kill(os.getpid(), signal.SIGTERM)
                    world.check()
                world.gather(torch.zeros(1))
        except StopRequested:
            world.barrier()
            return [world.stop.requested, world.run_ended, world.collective_failed]
        return None

    requests = ["SIGTERM" if rank == stopped else f"SIGTERM at rank {stopped}" for rank in range(2)]
    assert run_all(2, in_world(work)) == [[request, True, False] for request in requests]


def test_a_stop_is_heard_between_two_denoiser_calls(run_all: RunAll) -> None:
    def work(world: World) -> Any:
        try:
            with world.end_together():
                if world.first:
                    world.stop.requested = "SIGTERM"
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    world.check()
        except StopRequested:
            return "stopped"
        return None

    assert run_all(2, in_world(work)) == ["stopped"] * 2


def test_a_stop_waits_while_something_is_half_made(run_all: RunAll) -> None:
    def work(world: World) -> Any:
        world.stop.requested = "SIGTERM" if world.first else None
        with world.defer_stop():
            world.check()
            rows = world.gather(torch.ones(1))
        try:
            with world.end_together():
                world.gather(torch.ones(1))
        except StopRequested:
            return rows.tolist()
        return None

    assert run_all(2, in_world(work)) == [[1, 1]] * 2


def test_a_failure_of_one_is_told_to_all_with_its_rank(start: Start) -> None:
    def work(world: World) -> None:
        with world.end_together():
            if not world.first:
                raise ConfigurationError("the colour is wrong")
            world.gather(torch.zeros(1))

    ended = start(2, in_world(work)).wait()
    assert [each.code for each in ended] == [ExitCode.STALLED, ExitCode.CONFIGURATION]
    assert "rank 1 ended the run: the colour is wrong" in ended[0].stderr


def test_a_peer_that_is_gone_is_noticed_by_who_waits(start: Start) -> None:
    def work(world: World) -> str:
        world.barrier()
        if not world.first:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            with world.end_together():
                while True:
                    world.gather(torch.zeros(1))
        except StalledError:
            world.barrier()
            return f"failed: {world.collective_failed}"

    first, second = start(2, in_world(work)).wait()
    assert (first.value, second.code) == ("failed: True", -signal.SIGKILL)


def test_a_launcher_speaks_for_who_died_far_from_any_exchange(start: Start) -> None:
    def work(world: World) -> None:
        world.barrier()
        if not world.first:
            os.kill(os.getpid(), signal.SIGKILL)
        with world.end_together():
            while True:  # a long rollout
                world.check()

    processes = start(2, in_world(work))
    assert os.waitstatus_to_exitcode(os.waitpid(processes.pids[1], 0)[1]) == -signal.SIGKILL
    announce_failure("127.0.0.1", processes.port, 1, "it was killed by SIGKILL")
    announce_failure("127.0.0.1", processes.port, 1, "too late")
    del processes.pids[1]
    [first] = processes.wait()
    assert first.code == ExitCode.STALLED
    assert "rank 1 ended the run: it was killed by SIGKILL" in first.stderr
    announce_failure("127.0.0.1", processes.port, 1, "nobody is there", timeout=0.1)


def test_who_does_not_come_is_not_waited_for_for_ever(start: Start) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            return
        with join(Stop(), 1, 1):
            raise AssertionError("nobody came")

    first, _ = start(2, work).wait()
    assert first.code == ExitCode.STALLED
    assert isinstance(StalledError("x"), TailorPOError)
