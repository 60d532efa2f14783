"""Signals that ask a run to stop: it ends the step under way, saves its state, and the same command continues."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from advtrain import distributed

# What Slurm's --signal and submitit send; Windows has neither.
USER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, signal.SIGTERM, *USER)

AGREE = 5.0  # seconds between two agreements of several processes, where that is more than a step and less than ten
ECHO = 3.0  # seconds within which a signal that comes again is the same request: from the terminal and from torchrun
LINGER = 60.0  # seconds in which the main process has put the job into the queue again


class Interrupted(Exception):
    """A signal asked the run to stop.

    Args:
        number: of the signal.
        left: what there is to go on from, for people.
    """

    def __init__(self, number: int, left: str = "the state is saved, and the same command continues") -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code, self.left = 128 + number, left


class StopRequest:
    """Whether a signal of `SIGNALS` came since `listening` began.

    Attributes:
        number: of the signal; 0 for none.
    """

    def __init__(self, device: torch.device) -> None:
        self.number = 0
        self._device = device
        self._came = self._agreed = time.monotonic()
        self._asked, self._interval = 0, 1  # the step of the last agreement, and how many steps later the next one is

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turns the signals into a request to stop after the step under way.

        Whoever listened to SIGUSR1 or SIGUSR2 before is called once the state is saved: submitit, which then puts its
        job into the queue again.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        # A handler that is not Python's (None) cannot be put back, and what is ignored is ignored for a reason.
        previous = {number: old for number, old in previous.items() if old not in (None, signal.SIG_IGN)}
        try:
            for number in previous:
                signal.signal(number, self._request)
            yield
        except Interrupted:
            self._hand_over(previous)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        again, self._came = time.monotonic() - self._came > ECHO, time.monotonic()
        if number == self.number == signal.SIGINT and again:  # asked twice: the person means it
            raise KeyboardInterrupt
        if self.number not in USER:  # SIGTERM beside it must not stop the hand-over
            self.number = number

    def _hand_over(self, previous: dict[signal.Signals, Callable[..., Any] | int | None]) -> None:
        handler = previous.get(signal.Signals(self.number))
        if self.number not in USER or not callable(handler):
            return
        handler(self.number, None)
        if not distributed.is_main():  # submitit's handler ends the main process; the job must live until then
            time.sleep(LINGER)

    def must_stop(self, step: int) -> bool:
        """Whether any process was asked to stop, after `step` of the epoch, for which all processes ask alike.

        Several processes agree only every few steps, to spare the wait, but about every `AGREE` seconds and at the
        start of an epoch: torchrun kills what has not ended 30 seconds after a signal.
        """
        if distributed.world_size() == 1:
            return bool(self.number)
        steps = step - self._asked
        if 0 < steps < self._interval:
            return False
        now = time.monotonic()
        mine = [float(self.number), (now - self._agreed) / max(steps, 1)]
        number, seconds = distributed.all_reduce_max(torch.tensor(mine, device=self._device)).tolist()
        self._asked, self._agreed, self._interval = step, now, max(1, min(10, int(AGREE / max(seconds, 1e-3))))
        self.number = int(number)
        return bool(self.number)
