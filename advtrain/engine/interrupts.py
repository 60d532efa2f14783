"""Signals that ask a run to stop: it ends the step under way, saves its state, and the same command continues."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from advtrain import distributed


class Interrupted(Exception):
    """A signal asked the run to stop, and its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """Whether SIGINT or SIGTERM came since `listening` began.

    Attributes:
        number: of the signal; 0 for none.
    """

    def __init__(self, device: torch.device) -> None:
        self.number = 0
        self._device = device

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a request to stop after the step under way."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def request(number: int, frame: object) -> None:
            if self.number:  # asked twice: the person means it
                raise KeyboardInterrupt
            self.number = number

        try:
            for number in previous:
                signal.signal(number, request)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def must_stop(self, step: int) -> bool:
        """Whether any process was asked to stop. Several processes agree only every few steps, to spare the wait."""
        if distributed.world_size() == 1:
            return bool(self.number)
        if step % 10:
            return False
        flag = torch.tensor([self.number], device=self._device)
        self.number = int(distributed.all_reduce_max(flag).item())
        return bool(self.number)
