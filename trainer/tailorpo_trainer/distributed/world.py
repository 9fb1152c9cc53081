"""The processes of one run: they continue together or end together.

Every collective begins with a vote, so that no process waits in one for a peer that has given the iteration up. A
process that wants to stop or has failed announces it in the rendezvous store, which the others read between two
denoiser calls. It then takes part in the next vote, wherever that is; from there on all are at the same iteration.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from enum import IntEnum
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # public, but in no `__all__`
from torch.distributed.rendezvous import rendezvous as rendezvous_by

from tailorpo_trainer.distributed.signals import Stop, StopRequested
from tailorpo_trainer.distributed.torch_errors import translated
from tailorpo_trainer.distributed.watchdog import LOADING_SECONDS
from tailorpo_trainer.errors import StalledError, TailorPOError, status

PREFIX, END = "tailorpo", "end"
"""Prefix and key in the store under which the first process that ends early announces why."""

CHECK_SECONDS = 0.5
"""Seconds between two reads of that key."""

MARGIN_SECONDS = 60
"""A process that hangs is ended first, by its own watchdog, which logs where it hangs; its peers wait longer."""


class Vote(IntEnum):
    """What a process wants to happen next; the greatest of all wins."""

    GO_ON = 0
    STOP = 1
    FAIL = 2


class World:
    """This process among its peers; alone, every collective returns its argument.

    Attributes:
        rank, size: this process' number, from 0, and how many there are.
        run_ended: whether a vote ended the common run; from then on only `barrier` and `same` may be called.
        collective_failed: whether one failed, as when a peer is lost: no other can follow, and no peer is waited for.
        peer_exit_code: exit code of the peer that ended the run, if it announced one.
    """

    def __init__(self, stop: Stop, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.stop, self.rank, self.size, self._store = stop, rank, size, store
        self.beat: Callable[[], None] = lambda: None
        self.run_ended = self.collective_failed = False
        self.peer_exit_code: int | None = None
        self._stop_deferred = False
        self._announced = Vote.GO_ON
        self._last_check = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process' share of `count` items: shares are in rank order, and their lengths differ by at most one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def check(self) -> None:
        """Raise `StopRequested` or `StalledError` if this process or a peer has to end: at each denoiser call."""
        self.beat()
        if self._stop_deferred or self.run_ended:
            return
        if self.stop.requested:
            self._announce(Vote.STOP, self.stop.requested)
            raise StopRequested
        if self.size > 1 and time.monotonic() - self._last_check > CHECK_SECONDS:
            self._last_check = time.monotonic()
            with self._communicating():
                announced = self._store.check([END])
            if announced:
                self._raise_announced()

    @contextmanager
    def defer_stop(self, on: bool = True) -> Iterator[None]:
        """Inside, a request to stop waits: an exit in the middle would lose work that is half done."""
        before, self._stop_deferred = self._stop_deferred, self._stop_deferred or on
        try:
            yield
        finally:
            self._stop_deferred = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a request to stop is heard at once, not only at the next `check`; nothing in it may be a collective.

        For what may take long and changes nothing that is kept: a reward, or loading a model.
        """
        if self._stop_deferred or self.run_ended:
            yield
            return
        try:
            with self.stop.at_once():
                yield
        except StopRequested:
            self._announce(Vote.STOP, self.stop.requested or "")
            raise

    @contextmanager
    def end_together(self) -> Iterator[None]:
        """If the body stops or fails in one process, it ends in all of them, between the same two iterations."""
        try:
            yield
        except StopRequested:
            self._end(Vote.STOP, self.stop.requested or "")
            raise
        except TailorPOError as error:
            self._end(Vote.FAIL, str(error), error.exit_code)
            raise

    def _end(self, vote: Vote, text: str, code: int | None = None) -> None:
        """The last vote; a process that learned of the end from a vote does not vote again."""
        if not self.run_ended and self.size > 1:
            with suppress(TailorPOError):  # no connection: there is no peer to vote with
                self._announce(vote, text, code)
                self._vote(vote)
        self.run_ended = True

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, equally shaped everywhere, by their sums over all processes, the same bits everywhere."""
        self._vote_to_continue()
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._communicating():
            dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def gather(self, rows: Tensor) -> Tensor:
        """[n, ...] of each process (n may differ) -> all of them [sum of n, ...], in rank order, everywhere."""
        self._vote_to_continue()
        return torch.cat(self._gather(rows))

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Numbers under equal names, summed over all processes."""
        summed = torch.tensor(list(values.values()), dtype=torch.float64)
        self.sum([summed])
        return dict(zip(values, summed.tolist(), strict=True))

    def broadcast(self, data: bytes) -> bytes:
        """The first process' bytes, everywhere."""
        self._vote_to_continue()
        if self.size == 1:
            return data
        with self._communicating():
            length = torch.tensor([len(data)])
            dist.broadcast(length, 0)
            buffer = torch.empty(int(length), dtype=torch.uint8)
            if self.first:
                buffer.copy_(torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)])
            dist.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def everyone(self, data: bytes) -> list[bytes]:
        """The bytes of each process, in rank order, everywhere."""
        self._vote_to_continue()
        rows = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return [each.numpy().tobytes() for each in self._gather(rows)]

    def same(self, tensors: Mapping[str, Tensor]) -> None:
        """Assert that all processes hold the same bits.

        Raises `TailorPOError` if not: their weights have diverged, and none of them can be trusted.
        """
        if not self.run_ended:
            self._vote_to_continue()
        if self.size == 1 or self.collective_failed:
            return
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode())
            digest.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
        others = [rank for rank, theirs in enumerate(self._gather(mine)) if not torch.equal(theirs, mine)]
        if others:
            raise TailorPOError(
                f"the weights of rank {self.rank} and of rank {others[0]} are no longer the same: please report it"
            )

    def barrier(self) -> None:
        """Wait for all, as when no process may leave before the first has committed a checkpoint."""
        if self.size > 1 and not self.collective_failed:
            with self._communicating():
                dist.barrier()

    def _vote_to_continue(self) -> None:
        """All processes continue, or none does."""
        assert not self.run_ended, "the run has ended: no process waits in a collective any more"
        if self.size == 1:
            self.check()
            return
        wanted = Vote.STOP if self.stop.requested and not self._stop_deferred else Vote.GO_ON
        if wanted is Vote.STOP:
            self._announce(wanted, self.stop.requested or "")
        if self._vote(wanted) is not Vote.GO_ON:
            self.run_ended = True
            self._raise_announced()
        self.beat()

    @contextmanager
    def _communicating(self) -> Iterator[None]:
        """Around collectives and uses of the store. After an error there is no vote, but an announcement in the store.

        The peers may wait in a collective of another kind, and gloo aborts processes whose collectives do not match.
        """
        try:
            with translated():
                yield
        except StalledError:
            self.run_ended = self.collective_failed = True
            raise
        except Exception as error:
            self.run_ended = self.collective_failed = True
            if self._announced < Vote.FAIL:
                self._announced = Vote.FAIL
                with suppress(RuntimeError):
                    _write_end(self._store, Vote.FAIL, self.rank, str(error), status(error))
            raise

    def _vote(self, mine: Vote) -> Vote:
        votes = torch.tensor([int(mine)])
        with self._communicating():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return Vote(int(votes))

    def _gather(self, rows: Tensor) -> list[Tensor]:
        if self.size == 1:
            return [rows]
        with self._communicating():
            counts = torch.empty(self.size, dtype=torch.int64)
            dist.all_gather_into_tensor(counts, torch.tensor([len(rows)]))
            longest = int(counts.max())
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
            gathered = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(gathered, padded)
        return [each[:count] for each, count in zip(gathered, counts.tolist(), strict=True)]

    def _announce(self, vote: Vote, text: str, code: int | None = None) -> None:
        """Let the peers know why this process ends, unless one of them ended first."""
        if self.size == 1 or self._announced >= vote:
            return
        self._announced = vote
        with self._communicating():
            _write_end(self._store, vote, self.rank, text, code)

    def _raise_announced(self) -> NoReturn:
        with self._communicating():
            end = json.loads(self._store.get(END))
        if end["vote"] == Vote.STOP:
            if not self.stop.requested:
                self.stop.requested = f"{end['text']} at rank {end['rank']}"
            self._announced = Vote.STOP
            raise StopRequested
        self.peer_exit_code = end["code"]
        raise StalledError(f"rank {end['rank']} ended the run: {end['text']}")


@contextmanager
def join(stop: Stop, rendezvous: float, stall: float) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    Args:
        rendezvous: seconds to wait for the others at the beginning.
        stall: seconds after which a process that makes no progress ends; a collective waits longer.
    Raises:
        StalledError: when the others do not come.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(stop)
        return
    with translated():
        store, rank, size = next(iter(rendezvous_by("env://", timeout=timedelta(seconds=rendezvous))))
        store.set_timeout(timedelta(seconds=rendezvous))
        dist.init_process_group(
            _backend(),
            store=PrefixStore("c10d", store),
            rank=rank,
            world_size=size,
            # Long enough for a peer that is still loading; whoever hangs or waits later ends by its own watchdog.
            timeout=timedelta(seconds=max(stall, LOADING_SECONDS) + MARGIN_SECONDS),
        )
    try:
        yield World(stop, rank, size, PrefixStore(PREFIX, store))
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def announce_failure(host: str, port: int, rank: int, text: str, timeout: float = 10.0) -> None:
    """Announce that a process has ended the run, for one that could not do so itself. Called by the launcher.

    Its peers read it between two denoiser calls. Does nothing if the store is lost, or an end is announced already.
    """
    with suppress(RuntimeError):
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))
        _write_end(PrefixStore(PREFIX, store), Vote.FAIL, rank, text)


def _write_end(store: Any, vote: Vote, rank: int, text: str, code: int | None = None) -> None:
    store.compare_set(END, "", json.dumps({"vote": int(vote), "rank": rank, "text": text[:2000], "code": code}))


def _backend() -> str:
    """gloo for tensors on the CPU, the accelerator's own for those on it (NCCL on CUDA)."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return "gloo"
    return f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"
