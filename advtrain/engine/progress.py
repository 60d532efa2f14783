"""What a person sees while training runs: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from advtrain import distributed

# Everything people read goes here; processes other than the main one say nothing.
console = Console(quiet=not distributed.is_main(), highlight=False, soft_wrap=True)


class TrainingProgress:
    """Shows where training is, from numbers that the trainer has already fetched from the device."""

    def __init__(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.total = epochs * steps_per_epoch
        self._done, self._started, self._first = done, time.perf_counter(), done
        self._bar: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not console.is_terminal or console.quiet:
            yield
            return
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as self._bar:
            self._task = self._bar.add_task("", total=self.total, completed=self._done, epoch="", numbers="")
            try:
                yield
            finally:
                self._bar = None

    def step(self, done: int) -> None:
        """Moves the bar; costs nothing where there is none."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, epoch=self._epoch())

    def numbers(self, metrics: dict[str, float]) -> None:
        """Shows fresh metrics: in the bar, or as a line."""
        text = _text(metrics)
        if self._bar is not None:
            self._bar.update(self._task, numbers=text)
        else:
            console.print(f"epoch {self._epoch()}  step {self._done}/{self.total}  {text}  ETA {self._eta()}")

    def validation(self, epoch: int, clean: float, robust: float | None, best: bool) -> None:
        """Shows held-out accuracies; `robust` is None where no attack was run."""
        attacked = "" if robust is None else f"  robust {robust:.2%}"
        mark = "  best so far" if best else ""
        console.print(f"epoch {epoch}/{self.epochs}  held out: clean {clean:.2%}{attacked}{mark}")

    def _epoch(self) -> str:
        return f"{min((self._done - 1) // self.steps_per_epoch + 1, self.epochs)}/{self.epochs}"

    def _eta(self) -> str:
        seconds = time.perf_counter() - self._started
        left = seconds / max(self._done - self._first, 1) * (self.total - self._done)
        return duration(left)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _text(metrics: dict[str, float]) -> str:
    shown = [f"loss {metrics['loss']:.4f}"]
    for name, word in (("clean_accuracy", "clean"), ("robust_accuracy", "robust")):
        if name in metrics:
            shown.append(f"{word} {metrics[name]:.1%}")
    return "  ".join([*shown, f"{metrics['images_per_second']:.0f} images/s"])
