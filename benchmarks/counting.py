"""Counts what a benchmark's code asks of the device."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONV, CONV_BACK = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
SCALARS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Counter(TorchDispatchMode):
    """Counts convolutions, forward and backward, and moments at which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"forward": 0, "input_gradient": 0, "weight_gradient": 0, "host_syncs": 0, "operations": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["operations"] += 1
        if func is CONV:
            self.counts["forward"] += 1
        elif func is CONV_BACK:
            wanted = args[-1]
            self.counts["input_gradient"] += bool(wanted[0])
            self.counts["weight_gradient"] += bool(wanted[1])
        elif func in SCALARS or self._indexes_by_mask(func, args):
            self.counts["host_syncs"] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _indexes_by_mask(func: Any, args: Any) -> bool:
        """Indexing by a mask asks the device how many elements it selects."""
        if func.overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            return False
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
