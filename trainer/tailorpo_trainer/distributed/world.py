"""The processes of one run: they go on together or not at all.

Every collective begins with a vote, so that no process waits in one for a peer that has given the iteration up. Who
wants to stop or has failed says so in the rendezvous store, which the others read between two denoiser calls, and then
takes part in the next vote, wherever that is; from there on all are at the same iteration.
"""

import hashlib
import json
import os
import re
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
from tailorpo_trainer.errors import StalledError, TailorPOError

SPACE, END = "tailorpo", "end"
"""Part and key of the store under which the first process that ends early says why."""

ASK_SECONDS = 0.5
"""Seconds between two looks at that key."""

MARGIN_SECONDS = 60
"""Who hangs ends first, by its own watchdog, and says where; only then do those who wait for it."""


class Vote(IntEnum):
    """What a process wants to happen next; the greatest of all wins."""

    GO_ON = 0
    STOP = 1
    FAIL = 2


class World:
    """This process among its peers; alone, every collective returns what it was given.

    Attributes:
        rank, size: this process' number, from 0, and how many there are.
        parted: whether a vote ended the common run; from then on only `barrier` and `same` are left.
        broken: whether a peer is gone, so that there is nobody to wait for.
        cause: exit code of the peer that ended the run, if one said that it did.
    """

    def __init__(self, stop: Stop, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.stop, self.rank, self.size, self._store = stop, rank, size, store
        self.beat: Callable[[], None] = lambda: None
        self.parted = self.broken = False
        self.cause: int | None = None
        self._held = False
        self._told = Vote.GO_ON
        self._asked = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process' part of `count` things: the parts are in rank order and differ by at most one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def check(self) -> None:
        """Raise `StopRequested` or `StalledError` if this process or a peer has to end: asked at each denoiser call."""
        self.beat()
        if self._held or self.parted:
            return
        if self.stop.requested:
            self._tell(Vote.STOP, self.stop.requested)
            raise StopRequested
        if self.size > 1 and time.monotonic() - self._asked > ASK_SECONDS:
            self._asked = time.monotonic()
            with self._peers():
                ended = self._store.check([END])
            if ended:
                self._end_as_told()

    @contextmanager
    def held(self, on: bool = True) -> Iterator[None]:
        """Inside, a request to stop waits: giving up now would lose what is half made."""
        before, self._held = self._held, self._held or on
        try:
            yield
        finally:
            self._held = before

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, who stops or fails takes the others along, so that all end between the same two iterations."""
        try:
            yield
        except StopRequested:
            self._part(Vote.STOP, self.stop.requested or "")
            raise
        except TailorPOError as error:
            self._part(Vote.FAIL, str(error), error.exit_code)
            raise

    def _part(self, vote: Vote, text: str, code: int | None = None) -> None:
        """The last vote; who learned the end from a vote has parted already."""
        if not self.parted and self.size > 1:
            with suppress(StalledError):  # then nobody is left to tell
                self._tell(vote, text, code)
                self._vote(vote)
        self.parted = True

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, equally shaped everywhere, by their sums over all processes, the same bits everywhere."""
        self._meet()
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._peers():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, rows: Tensor) -> Tensor:
        """[n, ...] of each process (n may differ) -> all of them [sum of n, ...], in rank order, everywhere."""
        self._meet()
        return torch.cat(self._gather(rows))

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Numbers under equal names, summed over all processes."""
        summed = torch.tensor(list(values.values()), dtype=torch.float64)
        self.sum([summed])
        return dict(zip(values, summed.tolist(), strict=True))

    def broadcast(self, data: bytes) -> bytes:
        """The first process' bytes, everywhere."""
        self._meet()
        if self.size == 1:
            return data
        with self._peers():
            length = torch.tensor([len(data)])
            dist.broadcast(length, 0)
            buffer = torch.empty(int(length), dtype=torch.uint8)
            if self.first:
                buffer.copy_(torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)])
            dist.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def same(self, tensors: Mapping[str, Tensor]) -> None:
        """Assert that all processes hold the same bits.

        Raises `TailorPOError` if not: then their weights went apart, and none of them can be believed.
        """
        if not self.parted:
            self._meet()
        if self.size == 1 or self.broken:
            return
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode())
            digest.update(tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
        others = [rank for rank, found in enumerate(self._gather(mine)) if not torch.equal(found, mine)]
        if others:
            raise TailorPOError(
                f"the weights of rank {self.rank} and of rank {others[0]} are no longer the same: please report it"
            )

    def barrier(self) -> None:
        """Wait for all: as when the first process has committed what the others must not leave before."""
        if self.size > 1 and not self.broken:
            with self._peers():
                dist.barrier()

    def _meet(self) -> None:
        """All processes go on together, or none does."""
        assert not self.parted, "the processes have parted: nobody waits in a collective any more"
        if self.size == 1:
            self.check()
            return
        wanted = Vote.STOP if self.stop.requested and not self._held else Vote.GO_ON
        if wanted is Vote.STOP:
            self._tell(wanted, self.stop.requested or "")
        if self._vote(wanted) is not Vote.GO_ON:
            self.parted = True
            self._end_as_told()
        self.beat()

    @contextmanager
    def _peers(self) -> Iterator[None]:
        try:
            with _met():
                yield
        except StalledError:
            self.broken = self.parted = True
            raise

    def _vote(self, mine: Vote) -> Vote:
        votes = torch.tensor([int(mine)])
        with self._peers():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return Vote(int(votes))

    def _gather(self, rows: Tensor) -> list[Tensor]:
        if self.size == 1:
            return [rows]
        with self._peers():
            counts = torch.empty(self.size, dtype=torch.int64)
            dist.all_gather_into_tensor(counts, torch.tensor([len(rows)]))
            longest = int(counts.max())
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
        return [part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]

    def _tell(self, vote: Vote, text: str, code: int | None = None) -> None:
        """Let the peers know, unless one of them was first."""
        if self.size == 1 or self._told >= vote:
            return
        self._told = vote
        with self._peers():
            _say(self._store, vote, self.rank, text, code)

    def _end_as_told(self) -> NoReturn:
        with self._peers():
            told = json.loads(self._store.get(END))
        if told["vote"] == Vote.STOP:
            if not self.stop.requested:
                self.stop.requested = f"{told['text']} at rank {told['rank']}"
            self._told = Vote.STOP
            raise StopRequested
        self.cause = told["code"]
        raise StalledError(f"rank {told['rank']} ended the run: {told['text']}")


@contextmanager
def join(stop: Stop, rendezvous: float, stall: float) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    Args:
        rendezvous: seconds to wait for the others at the beginning.
        stall: seconds after which a process that makes no progress ends; a collective waits a little longer.
    Raises:
        StalledError: when the others do not come.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(stop)
        return
    with _met():
        store, rank, size = next(iter(rendezvous_by("env://", timeout=timedelta(seconds=rendezvous))))
        store.set_timeout(timedelta(seconds=rendezvous))
        dist.init_process_group(
            _backend(),
            store=PrefixStore("c10d", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=stall + MARGIN_SECONDS),
        )
    try:
        yield World(stop, rank, size, PrefixStore(SPACE, store))
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def tell(host: str, port: int, rank: int, text: str, timeout: float = 10.0) -> None:
    """Say for a process that cannot any more that it ended the run: its peers hear it between two denoiser calls.

    For the launcher. Nothing happens if the store is gone, or an end is told already.
    """
    with suppress(RuntimeError):
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))
        _say(PrefixStore(SPACE, store), Vote.FAIL, rank, text)


def _say(store: Any, vote: Vote, rank: int, text: str, code: int | None = None) -> None:
    store.compare_set(END, "", json.dumps({"vote": int(vote), "rank": rank, "text": text[:2000], "code": code}))


def _backend() -> str:
    """gloo for what is on the CPU, the accelerator's own for what is there (NCCL on CUDA)."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return "gloo"
    return f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"


@contextmanager
def _met() -> Iterator[None]:
    """A broken connection means that a peer is gone: it knows why, this process does not."""
    try:
        yield
    except RuntimeError as error:  # torch raises several of its subclasses
        raise StalledError(f"another process of this run is gone ({reason(error)})") from None


def reason(error: RuntimeError) -> str:
    """What torch says first, without where in its sources and without its advice."""
    text = next(iter(str(error).splitlines()), "")
    return re.sub(r"^\[[^\]]*\] ?", "", text).split(". ")[0][:200]
