"""Means of what steps report, without waiting for the device."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from advtrain import distributed


class Delivery(Protocol):
    """Numbers on their way to the host."""

    def arrived(self) -> bool: ...

    def values(self) -> list[float]:
        """Waits for them."""
        ...


class Sent:
    """The numbers of a tensor, on their way to the host. From a GPU the device sends them when it gets there."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._event = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def arrived(self) -> bool:
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


@dataclass(frozen=True)
class Reading:
    """Means that were asked for.

    Attributes:
        step: at which.
        names: of the means, in the order of the delivery.
        steps: over which they are.
        delivery: of the means.
    """

    step: int
    names: list[str]
    steps: int
    delivery: Delivery


class Meter:
    """Means of a step's terms over the steps since they were last asked for.

    Nothing waits for the device: means are asked for after one step and read after a later one, when they have come.

    Args:
        batch_size: images per step over all processes.
        send: tensor → delivery.
    """

    def __init__(self, batch_size: int, send: Callable[[Tensor], Delivery] = Sent) -> None:
        self.batch_size, self._send = batch_size, send
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._pending: deque[Reading] = deque()
        self._since = time.perf_counter()

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1

    def request(self, step: int) -> None:
        """Asks for the means over steps and processes, on every process; `step` comes back with them."""
        names = sorted(self._sums)
        sums = distributed.all_reduce_sum(torch.stack([self._sums[name] for name in names]))
        means = sums / (self._steps * distributed.world_size())
        self._pending.append(Reading(step, names, self._steps, self._send(means)))
        self._sums, self._steps = {}, 0

    def readings(self, *, wait: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """What has come, in the order of asking: the step, the means, and images per second since the last reading.

        Args:
            wait: for all that was asked for.
        """
        while self._pending and (wait or self._pending[0].delivery.arrived()):
            reading = self._pending.popleft()
            means = dict(zip(reading.names, reading.delivery.values(), strict=True))
            now = time.perf_counter()
            speed, self._since = self.batch_size * reading.steps / (now - self._since), now
            yield reading.step, means | {"images_per_second": round(speed, 1)}
