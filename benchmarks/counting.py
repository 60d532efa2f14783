"""Counts what code asks of the device: convolutions, waits, operations, FLOPs, bytes kept for backward."""

import traceback
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = f"{Path(__file__).resolve().parents[1]}/"
aten = torch.ops.aten
CONV, CONV_BACK = aten.convolution.default, aten.convolution_backward.default
# What cannot answer, or cannot tell the size of its answer, before the device has computed it.
WAITING = (
    aten._local_scalar_dense,  # .item(), bool(tensor), float(tensor)
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
)
INDEXING = (aten.index, aten.index_put, aten.index_put_)
# Matrix products, by where the two factors stand among the arguments.
PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.addmm_: 1, aten.baddbmm: 1}


class Counter(TorchDispatchMode):
    """Counts convolutions, forward and backward, and moments at which the host waits for the device.

    Copies between devices are seen where there are two: on a CPU, `.cpu()` and `.tolist()` of more than one number
    pass unnoticed, and so does everywhere a scalar that torch.tensor puts onto a device.

    Attributes:
        counts: `forward`, `input_gradient`, `weight_gradient` (convolutions), `host_syncs`, `operations`.
        flops: of `convolution` and `matrix` products, 2 for each multiplication with its addition. Attention kernels
            that are one operation are not among them.
        waits: how often each line waited, by "file:line".
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"forward": 0, "input_gradient": 0, "weight_gradient": 0, "host_syncs": 0, "operations": 0}
        self.flops = {"convolution": 0, "matrix": 0}
        self.waits: Tally[str] = Tally()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.counts["operations"] += 1
        result = func(*args, **kwargs)
        if func is CONV:
            self.counts["forward"] += 1
            self.flops["convolution"] += convolution_flops(args[0], args[1], result, transposed=args[6])
        elif func is CONV_BACK:
            self._count_gradients(args)
        elif func.overloadpacket in PRODUCTS:
            first, second = args[PRODUCTS[func.overloadpacket] :][:2]
            self.flops["matrix"] += 2 * first.numel() * second.shape[-1]
        elif func.overloadpacket in WAITING or _indexes_by_mask(func, args) or _crosses(func, args, kwargs):
            self.counts["host_syncs"] += 1
            self.waits[_caller()] += 1
        return result

    def _count_gradients(self, args: Any) -> None:
        grad_output, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[-1]
        for gradient, wanted in zip(("input_gradient", "weight_gradient"), mask[:2], strict=True):
            if wanted:  # each costs as many products as the forward pass
                self.counts[gradient] += 1
                self.flops["convolution"] += convolution_flops(x, weight, grad_output, transposed=transposed)


def convolution_flops(x: Tensor, weight: Tensor, output: Tensor, *, transposed: bool) -> int:
    """2 · positions · kernel size · channels in and out of each group.

    Args:
        x, output: shape (n, channels, …).
        weight: shape (channels of the output, those of x in a group, …), of a transposed one the other way around.
    """
    return 2 * (x if transposed else output).numel() * weight[0].numel()


def _indexes_by_mask(func: Any, args: Any) -> bool:
    """Indexing by a mask asks the device how many elements it selects."""
    if func.overloadpacket not in INDEXING:
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def _crosses(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether this copies between devices and waits for it."""
    if func is aten._to_copy.default:
        there, blocking = kwargs.get("device") or args[0].device, not kwargs.get("non_blocking", False)
        return blocking and torch.device(there).type != args[0].device.type
    if func is aten.copy_.default:
        return args[0].device.type != args[1].device.type and not (len(args) > 2 and args[2])
    return False


def _caller() -> str:
    """The innermost line outside of torch and of this file, as "file:line", in this repository from its root."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{frame.filename.removeprefix(ROOT)}:{frame.lineno}"
    return "unknown"


class SavedForBackward(saved_tensors_hooks):
    """Bytes that autograd keeps for backward passes: of different storages, without those of the parameters.

    Attributes:
        passes: the largest number of bytes that were kept at a time, of each pass: from nothing to nothing.
    """

    def __init__(self) -> None:
        super().__init__(self._keep, lambda kept: kept.tensor)
        self._holders: Tally[int] = Tally()  # by storage
        self._bytes = 0
        self.passes: list[int] = []

    def __enter__(self) -> "SavedForBackward":
        super().__enter__()
        return self

    def _keep(self, tensor: Tensor) -> "_Kept":
        storage = tensor.untyped_storage()
        counted = not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter)
        if counted:
            if not self._holders:
                self.passes.append(0)
            if storage.data_ptr() not in self._holders:
                self._bytes += storage.nbytes()
                self.passes[-1] = max(self.passes[-1], self._bytes)
            self._holders[storage.data_ptr()] += 1
        # Detached, since a graph that holds a tensor that holds the graph would never end.
        return _Kept(tensor.detach(), self if counted else None)

    def release(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._holders[storage.data_ptr()] -= 1
        if not self._holders[storage.data_ptr()]:
            del self._holders[storage.data_ptr()]
            self._bytes -= storage.nbytes()


class _Kept:
    """Tells the ledger when the graph lets go of a tensor."""

    def __init__(self, tensor: Tensor, ledger: SavedForBackward | None) -> None:
        self.tensor, self._ledger = tensor, ledger

    def __del__(self) -> None:
        if self._ledger is not None:
            self._ledger.release(self.tensor)
