"""Which errors of torch mean that a peer is lost, and which that memory is exhausted or that there is a bug."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist

from tailorpo_trainer.distributed.signals import Stop
from tailorpo_trainer.distributed.torch_errors import translated
from tailorpo_trainer.distributed.world import join
from tailorpo_trainer.errors import ExitCode, StalledError, TailorPOError, status

Start = Callable[..., Any]

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
ADVICE = "This is typically caused by a remote worker crashing. Check the logs of the remote worker before reporting"


@pytest.mark.parametrize("error", [
    dist.DistError("something of torch.distributed"),
    dist.DistBackendError("NCCL error in: NCCLUtils.cpp:1\nncclRemoteError: remote process exited"),
    dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    dist.DistStoreError("wait timeout after 2000ms, keys: /0//cpu//0/1"),
    # What gloo raised when processes were killed, hung, left or did not come.
    RuntimeError(f"{GLOO}pair.cc:561] Connection closed by peer [127.0.0.1]:46801. {ADVICE}"),
    RuntimeError(f"{GLOO}pair.cc:545] Read error [127.0.0.1]:11178: Connection reset by peer. {ADVICE}"),
    RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"),
    RuntimeError(f"{GLOO}unbound_buffer.cc:129] Timed out waiting 2000ms for send operation to complete"),
    RuntimeError(f"{GLOO}pair.cc:1] Application timeout caused pair closure"),
    RuntimeError("Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] no error"),
], ids=lambda error: str(error)[-40:])  # fmt: skip
def test_a_lost_peer_is_74(error: RuntimeError) -> None:
    with (
        pytest.raises(TailorPOError, match=r"^another process of this run is lost \([^\[].+\)$") as caught,
        translated(),
    ):
        raise error
    assert caught.value.exit_code == ExitCode.STALLED


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    dist.DistBackendError("NCCL error\nncclUnhandledCudaError: a call failed.\nCuda failure 2 'out of memory'"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_exhausted_memory_is_71_and_no_lost_peer(error: Exception) -> None:
    with pytest.raises(Exception) as caught, translated():  # noqa: PT011 (whichever it is, its exit status counts)
        raise error
    assert status(caught.value) == ExitCode.OUT_OF_RESOURCES


def test_torch_s_own_allocation_is_71() -> None:
    with pytest.raises(TailorPOError, match="out of memory") as caught, translated():
        torch.empty(10**16)
    assert caught.value.exit_code == ExitCode.OUT_OF_RESOURCES


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:464] op.preamble.length <= op.nbytes. 1000 vs 8."),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
    ValueError("ProcessGroupGloo: invalid root rank"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_any_other_error_stays_a_bug(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error
    assert status(error) == ExitCode.INTERNAL


FAILURES = pytest.mark.parametrize(("error", "code"), [
    (torch.OutOfMemoryError("CUDA out of memory"), ExitCode.OUT_OF_RESOURCES),
    (RuntimeError("a bug"), ExitCode.INTERNAL),
])  # fmt: skip


@FAILURES
def test_a_process_that_fails_in_a_collective_ends_with_its_own_code(
    start: Start, error: Exception, code: ExitCode
) -> None:
    """Its peer waits in the second half of the exchange; a vote would meet that, and gloo would abort both (134)."""

    def work(rank: int) -> None:
        with join(Stop(), 30, 30) as world, world.end_together():
            world.barrier()
            with patch("torch.empty_like", side_effect=error) if rank else nullcontext():
                world.gather(torch.zeros(1000))

    first, second = start(2, work).wait()
    assert (first.code, second.code) == (ExitCode.STALLED, code), first.stderr + second.stderr
    assert "another process of this run is lost" in first.stderr


@FAILURES
def test_its_peers_read_the_cause_between_two_denoiser_calls(start: Start, error: Exception, code: ExitCode) -> None:
    def work(rank: int) -> Any:
        with join(Stop(), 30, 30) as world:
            world.barrier()
            if rank:
                with pytest.raises(Exception, match=str(error)), patch.object(dist, "all_reduce", side_effect=error):
                    world.sum([torch.zeros(1000)])
                return [world.run_ended, world.collective_failed]
            try:
                while True:  # a long rollout
                    world.check()
            except StalledError as ended:
                return [world.peer_exit_code, str(ended).startswith("rank 1 ended the run: "), str(error) in str(ended)]

    first, second = start(2, work).wait()
    assert (first.value, second.value) == ([code, True, True], [True, True]), first.stderr + second.stderr
