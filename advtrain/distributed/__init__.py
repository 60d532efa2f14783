"""Several processes, one run. Only this package imports torch.distributed; all here works in a single process too."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from advtrain.launchers import agreed_name

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 24 * 3600.0  # seconds that a process waits for the others to finish their share of an evaluation
DRAINING = 0.1  # seconds before a group is left
_store: dist.Store | None = None  # of the group that this process is in


def launched() -> bool:
    """Whether torchrun (or an equivalent) started this process."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the group that torchrun describes in the environment (NCCL on GPUs, gloo on CPUs) and leaves it at exit."""
    if not launched():
        yield
        return
    global _store
    timeout = timedelta(minutes=30)
    shared, rank_, world = next(dist.rendezvous("env://", timeout=timeout))
    _store = dist.PrefixStore(agreed_name(shared, rank_, world, timeout.total_seconds()), shared)
    backend, gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)  # NCCL guesses the GPU otherwise
    dist.init_process_group(backend, store=_store, rank=rank_, world_size=world, timeout=timeout, device_id=gpu)
    try:
        yield
    finally:
        _dissolve()


def leave() -> None:
    """Leaves the group early, when all have come so far, so that the main process can work on alone."""
    if dist.is_initialized():
        wait_for_all()
        dist.barrier()
        _dissolve()


def _dissolve() -> None:
    global _store
    if dist.is_initialized():
        # Whoever frees the group's last reference waits, holding the GIL, for Gloo's threads, and these may want the
        # GIL to let go of their last tensors (PyTorch 2.11): asleep, this thread leaves it to them before.
        time.sleep(DRAINING)
        dist.destroy_process_group()
    _store = None  # its threads must have ended before the interpreter does, or the process aborts


class SharedCounter:
    """A number that all processes add to, from 0.

    Every process makes its counters in the same order: that is how they find each other.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._sum = 0
        self._key = f"advtrain/counter-{next(self._numbers)}" if dist.is_initialized() else None

    def add(self, amount: int) -> int:
        """Adds `amount` and returns the sum so far, over all processes."""
        if self._key is None or _store is None:
            self._sum += amount
            return self._sum
        return _store.add(self._key, amount)


def wait_for_all() -> None:
    """A barrier for processes that may come hours apart, when a collective would have given up.

    Raises:
        TimeoutError: some process has not come within a day.
    """
    here, start = SharedCounter(), time.monotonic()
    here.add(1)
    while here.add(0) < world_size():
        if time.monotonic() - start > PATIENCE:
            raise TimeoutError(f"expected {world_size()} processes, got {here.add(0)} within a day; is one stuck?")
        time.sleep(0.05)


def share(tasks: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`[work(task) for task in tasks]` on every process, each task done by whichever process is free.

    All processes must call it alike, and come whenever they like. The results travel by pickle.
    """
    tickets, mine = SharedCounter(), {}
    while (ticket := tickets.add(1) - 1) < len(tasks):
        mine[ticket] = work(tasks[ticket])
    done: dict[int, R] = {}
    for part in _gather(mine):
        done |= part
    return [done[i] for i in range(len(tasks))]


def on_main(compute: Callable[[], T]) -> T:
    """What the main process computes, on every process; the others wait for as long as it takes."""
    if not dist.is_initialized():
        return compute()
    value = compute() if is_main() else None
    wait_for_all()
    return broadcast_object(value)  # pyright: ignore[reportReturnType]


def _gather(value: T) -> list[T]:
    if not dist.is_initialized():
        return [value]
    wait_for_all()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def launched_processes() -> int:
    """How many processes torchrun started: `world_size` before the group is joined."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and talks to the terminal. True before the group is joined on rank 0 only."""
    return rank() == 0 if dist.is_initialized() else int(os.environ.get("RANK", "0")) == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sums `tensor` over all processes, in place, and returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The elementwise largest of `tensor` over all processes, in place, and returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def broadcast_object(value: object) -> object:
    """The main process's `value`, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(module: nn.Module) -> None:
    """Gives every process the main one's buffers of `module`."""
    if dist.is_initialized():
        buffers = list(module.buffers())
        for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
            alike = [buffer for buffer in buffers if buffer.dtype == dtype]
            together = torch.cat([buffer.flatten() for buffer in alike])  # one message, not hundreds of tiny ones
            dist.broadcast(together, src=0)
            with torch.no_grad():
                for buffer, sent in zip(alike, together.split([b.numel() for b in alike]), strict=True):
                    buffer.copy_(sent.view_as(buffer))


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor (the same memory); any other tensor as it is."""
    local = getattr(tensor, "to_local", None)  # not isinstance: importing DTensor would slow down every start
    return tensor if local is None else local()


def replicate(module: nn.Module, device: torch.device, bucket_mb: float | None = None) -> nn.Module:
    """Wraps `module` for gradient averaging when there are several processes; the module itself otherwise.

    Each bucket of gradients is averaged as soon as it is full, while the backward pass goes on. Gradients are views
    into the buckets: nothing is copied back and no second copy of them stays. Buffers are the main process's at the
    first pass of each step (DDP's default, `broadcast_buffers`): without synchronised BatchNorm the running statistics
    of all processes are those of the main one's images. `static_graph` is off: it delays the first step's averaging to
    the end of the backward pass, and it must not meet `no_sync` or a graph that changes, as that of a loss may.

    Args:
        module: its forward pass is the loss.
        device: of the module.
        bucket_mb: gradient per message in MiB; None for DDP's 25 (1 for the first, so that it starts early).
    """
    if not dist.is_initialized():
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        bucket_cap_mb=bucket_mb,
        gradient_as_bucket_view=True,
    )


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with BatchNorm statistics over the batches of all processes; the same state dict.

    PyTorch's own SyncBatchNorm on GPUs; elsewhere, where it does not run, one of ours.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(model, name, _SyncBatchNorm.of(child))
        else:
            synchronise_batchnorm(child, device)
    return model


class _SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose sums travel through an all-reduce that autograd knows: forward and backward of the whole batch.

    All processes must hold the same number of images.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "_SyncBatchNorm":
        """Takes over the parameters, statistics and settings of `norm`."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters, new._buffers, new.training = norm._parameters, norm._buffers, norm.training
        return new

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        count = input.numel() / input.shape[1] * world_size()
        mean = _AllReduceSum.apply(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance = _AllReduceSum.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            momentum = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        normal = centred * (variance + self.eps).rsqrt()[:, None, None]
        return normal if not self.affine else normal * self.weight[:, None, None] + self.bias[:, None, None]


class _AllReduceSum(torch.autograd.Function):
    """Σ over processes; its gradient is Σ over processes too."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.clone())

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients[0].clone())


@contextmanager
def local_gradients(module: nn.Module, active: bool) -> Iterator[None]:
    """Skips the gradient all-reduce of a replicated `module` while `active`: all but the last accumulation pass."""
    if active and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield
