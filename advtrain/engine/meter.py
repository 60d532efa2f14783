"""Means of what steps report, without waiting for the device at every step."""

import time

import torch
from torch import Tensor

from advtrain import distributed


class Meter:
    """Means of a step's terms over the steps since the last reading. Nothing leaves the device in between.

    Args:
        batch_size: images per step over all processes.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._reset()

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def read(self) -> dict[str, float]:
        """The means over steps and processes, and images per second; waits for the device once."""
        names = sorted(self._sums)
        sums = distributed.all_reduce_sum(torch.stack([self._sums[name] for name in names]))
        means = (sums / (self._steps * distributed.world_size())).tolist()
        speed = self.batch_size * self._steps / (time.perf_counter() - self._started)
        self._reset()
        return dict(zip(names, means, strict=True)) | {"images_per_second": round(speed, 1)}

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._started = time.perf_counter()
