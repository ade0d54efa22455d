"""The device and arithmetic to compute with, and the processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from m2dprep.artifacts.errors import UserError, first_line
from m2dprep.artifacts.process import BF16_CAPABILITY, stop_without_parent

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes a GPU if there is one. Raises `UserError` if ``cuda`` is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device that this PyTorch can use; --device cpu computes without one.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_amp(amp: str, device: torch.device) -> str:
    """Resolve ``auto``: bf16 on a GPU from Ampere on, fp16 on older ones, which only emulate bf16; float32 on a CPU."""
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "none"
    return "bf16" if torch.cuda.get_device_capability(device) >= BF16_CAPABILITY else "fp16"


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context in which matrix products are computed in the arithmetic that ``amp`` names."""
    dtype = AMP_DTYPES[resolve_amp(amp, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


Value = TypeVar("Value")
AnyError = TypeVar("AnyError", bound=Exception)
# Validation and probes run in the first process; the others wait for it for this long at most.
PATIENCE = timedelta(hours=2)
# How long processes wait for each other at the start. If the launcher of one is gone by then, the others never come.
MEETING = timedelta(minutes=5)
# A process whose launcher is gone is told to stop, and then has this long to save.
ORPHAN_SECONDS = 60.0
# If the last DistributedDataParallel frees the group, it joins the group's thread while it holds Python's lock, and
# that thread may be waiting for the lock: the process never ends (seen with PyTorch 2.13 and Gloo after a stop
# signal). This reference outlives the models, and Python's own way of freeing a group releases the lock first.
_kept_groups: list[Any] = []


@dataclass(frozen=True)
class DistributedContext:
    """This process among all processes of a run; rank 0 opens the data, writes files and validates."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast_from_main(self, make: Callable[[], Value]) -> Value:
        """Return the value of ``make`` in rank 0 in every process, or raise its `UserError` or `OSError` there."""
        if self.size == 1:
            return make()
        message: list[Any] = [None]
        if self.is_main:
            try:
                message = [(make(), None)]
            except (UserError, OSError) as error:
                message = [(None, error)]
        dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        made, failure = message[0]
        if failure is not None:
            raise raised_on_all(failure)
        value: Value = made
        return value

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any process has set it. The flags pass through the CPU, so no device is waited for."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def raise_any(self, failure: Exception | None) -> None:
        """Raise one process's failure in all of them. Each process calls this with its own failure, or None."""
        if not self.any([failure is not None])[0]:
            return
        failures = [failure]
        if self.size > 1:
            failures = [None] * self.size
            dist.all_gather_object(failures, failure)
        raise raised_on_all(next(one for one in failures if one is not None))

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A block that only some processes work in; a `UserError` or `OSError` in one of them is raised in all."""
        failure: Exception | None = None
        try:
            yield
        except (UserError, OSError) as error:
            failure = error
        self.raise_any(failure)

    def averaging(self, module: nn.Module, *, leaves_unused: bool = False) -> nn.Module:
        """``module`` itself, or with several processes a wrapper that averages gradients as they are computed."""
        return module if self.size == 1 else averaging(module, self.device, leaves_unused=leaves_unused)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The average of ``values`` over all processes, on the CPU."""
        values = values.cpu()
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values


def averaging(module: nn.Module, device: torch.device, *, leaves_unused: bool = False) -> nn.Module:
    """Wrap ``module`` so that its gradients are averaged over all processes; ``device`` is this process's.

    If it ``leaves_unused`` some parameters that are trained, they get no gradient, instead of being waited for.
    """
    parallel: Any = nn.parallel.DistributedDataParallel
    device_ids = [device.index] if device.type == "cuda" else None
    # Buffers are constants here, equal in all processes; torch 2.13 renamed the option that leaves them alone.
    names = inspect.signature(parallel).parameters
    leave_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    wrapped: nn.Module = parallel(
        module,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        find_unused_parameters=leaves_unused,
        **{leave_buffers: False},
    )
    return wrapped


def raised_on_all(error: AnyError) -> AnyError:
    """Mark ``error`` as one that every process raises at the same point, so that the group can be left cleanly."""
    error.raised_on_all = True  # type: ignore[attr-defined]
    return error


@contextmanager
def join_processes(device_name: str, told_to_stop: Callable[[], bool]) -> Iterator[DistributedContext]:
    """The processes that torchrun's environment variables describe; without these variables, a single process.

    Nested calls join the same group, as processes can meet only once under torchrun. The group is left at the end, and
    after an error that all processes raise (`raised_on_all`). A process whose launcher is gone is told to stop, unless
    ``told_to_stop`` says that it already was. Raises `UserError` if this machine has fewer GPUs than processes.
    """
    size, rank, local_rank = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    device = pick_device(device_name)
    if size <= 1:
        yield DistributedContext(0, 1, device)
        return
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs (torchrun --nproc-per-node)."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield DistributedContext(rank, size, device)
        return
    stop_without_parent(ORPHAN_SECONDS, told_to_stop)
    _meet(rank, size, device)
    _kept_groups.append(dist.group.WORLD)
    try:
        yield DistributedContext(rank, size, device)
    except BaseException as error:
        # With NCCL, leaving the group waits for the others, which may be waiting for this process in a sum. A process
        # that fails alone just ends; torchrun notices and ends the others.
        if getattr(error, "raised_on_all", False):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def backend_of(device: torch.device) -> str:
    """Gloo beside NCCL: data that passes through the CPU needs no device, so no device has to be waited for."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _meet(rank: int, size: int, device: torch.device) -> None:
    """Form the group of all processes. Raises `UserError` if they do not arrive."""
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=MEETING))
    except (RuntimeError, ValueError) as error:  # also if the store does not answer
        raise UserError(
            f"process {rank} did not meet the {size - 1} others at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} within {MEETING.seconds // 60} minutes: {first_line(error)}"
        ) from error
    store = dist.PrefixStore("m2dprep", store)
    dist.init_process_group(backend_of(device), store=store, rank=rank, world_size=size, timeout=PATIENCE)


class _Gather(torch.autograd.Function):
    """Rows of all processes; a row's gradient is the sum of the gradients that all processes give it."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor) -> torch.Tensor:
        context.rows, context.rank = len(rows), dist.get_rank()
        gathered = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed[context.rank * context.rows : (context.rank + 1) * context.rows]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, …) rows in each of W processes → (W · n, …) in the order of ranks, with the gradients of all of them."""
    gathered: torch.Tensor = _Gather.apply(rows)
    return gathered
