"""Measures the alternatives for `trainer.compile=auto`, in a process of its own.

Compilation can take longer than there is time, and cannot be interrupted from inside: so a child process measures,
which the run ends when the time is up, with whatever compiles for it. What it has reported by then counts, and what it
has compiled the run finds in the compiler's cache. A crash in an alternative is the end of the child alone.

    python -m advtrain.engine.acceleration.measuring TASK REPORT
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advtrain.engine.acceleration.parity import judge
from advtrain.engine.acceleration.passes import Acceleration
from advtrain.engine.acceleration.subject import Subject
from advtrain.engine.numerics import Numerics

Event = dict[str, Any]
Step = Callable[[], None]

FIRST_ROUNDS = 3  # of all that is ready, whenever something more is
ROUNDS = 9  # in all
BLOCK = 0.2  # seconds of steps that are timed together
# What torchrun says of a process is not true of its child.
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Refused(Exception):
    """An alternative that cannot be used, and why; with the gate's verdict where it was the gate."""

    def __init__(self, reason: str, gate: Event | None = None) -> None:
        super().__init__(reason)
        self.gate = gate


@dataclass(frozen=True)
class Task:
    """What the child measures."""

    subject: Subject
    numerics: Numerics
    alternatives: tuple[Acceleration, ...]
    threads: int


def measurement(task: Task, seconds: float) -> list[Event]:
    """What a child process reports of `task` before the time is up; the last event says how it ended, if not by that.

    Args:
        task: must be picklable, and its classes importable by name from `sys.path`.
        seconds: after which the child, and all that it started, is ended.
    """
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="advtrain-") as folder:
        paths = [Path(folder) / name for name in ("task", "report", "errors")]
        try:
            torch.save(task, paths[0], pickle_protocol=4)  # the default, 2, knows no memory formats
        except Exception as error:  # whatever a user's class does not let pickle do
            return [{"event": "ended", "reason": f"cannot be sent to a process that measures: {first_line(error)}"}]
        paths[1].touch()
        with paths[2].open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *map(str, paths[:2])],
                env={name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}
                | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # so that compilers which it started end with it
            )
            ended = _ended(child, until - time.monotonic())
        events = [json.loads(line) for line in paths[1].read_text().splitlines() if line.endswith("}")]
        if ended not in (0, None):
            words = [line for line in paths[2].read_text(errors="replace").splitlines() if line.strip()]
            events.append({"event": "ended", "reason": f"exit code {ended}: {words[-1] if words else 'no message'}"})
        return events


def _ended(child: subprocess.Popen, seconds: float) -> int | None:
    """The child's exit code; None where the time was up first. Nothing of it is left."""
    try:
        return child.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def events(
    alternatives: Sequence[Acceleration],
    prepared: Callable[[Acceleration], tuple[Step, Event]],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Prepares the alternatives one by one and times those that are ready in turns.

    Args:
        alternatives: in the order in which they are prepared; the first gives the length of a timed block.
        prepared: an alternative's step, compiled and run before, and what the gate says; raises `Refused`.
        clock: in seconds.
    """
    ready: dict[str, Step] = {}
    repeats, rounds = 0, 0
    for place, alternative in enumerate(alternatives):
        name = str(alternative)
        try:
            step, facts = prepared(alternative)
        except Refused as refusal:
            yield {"event": "refused", "name": name, "reason": str(refusal), "gate": refusal.gate}
            continue
        ready[name] = step
        yield {"event": "ready", "name": name, **facts}
        if not repeats:
            repeats = max(1, math.ceil(BLOCK / max(_timed(step, 1, clock), 1e-6)))
        last = place == len(alternatives) - 1
        for _ in range(max(FIRST_ROUNDS, ROUNDS - rounds) if last else FIRST_ROUNDS):
            rounds += 1
            for other in _turned(list(ready), rounds):
                yield {
                    "event": "timed",
                    "name": other,
                    "round": rounds,
                    "seconds": _timed(ready[other], repeats, clock),
                }


def _turned(names: list[str], by: int) -> list[str]:
    """Another one begins each round."""
    by %= len(names)
    return names[by:] + names[:by]


def _timed(step: Step, repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per step."""
    started = clock()
    for _ in range(repeats):
        step()
    return (clock() - started) / repeats


def prepare(task: Task, optimizer: torch.optim.Optimizer, alternative: Acceleration) -> tuple[Step, Event]:
    """The step of an alternative, warm, and the gate's verdict on its passes.

    Raises:
        Refused: it cannot be built, or does not pass.
    """
    subject, device = task.subject, task.numerics.device
    started = time.perf_counter()
    try:
        step = subject.step(optimizer, task.numerics, alternative)
        verdict = judge(subject.scene(task.numerics), step.passes, task.numerics)
        if not verdict.passed:
            raise Refused(verdict.reason(), verdict.record())

        def take() -> None:
            step(subject.batch, subject.attack, subject.perturbation, 1, 0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        take()
        take()
    except Refused:
        raise
    except Exception as error:  # whatever a compiler, a driver or a lack of memory may raise: this alternative is out
        raise Refused(first_line(error)) from error
    return take, {"gate": verdict.record(), "preparation_seconds": round(time.perf_counter() - started, 1)}


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def main(task_path: str, report_path: str) -> None:
    """What the child does."""
    task: Task = torch.load(task_path, weights_only=False)  # written by the process that waits for this one
    torch.set_num_threads(task.threads)
    settings, device = task.subject.settings, task.numerics.device
    torch.use_deterministic_algorithms(settings.deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not settings.deterministic
    task.subject.model.train()
    task.subject.loss.train()
    optimizer = task.subject.optimizer.build(task.subject.model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay those that the gate judges each alternative by
    with task.numerics.products(), Path(report_path).open("a") as report:
        for event in events(task.alternatives, lambda alternative: prepare(task, optimizer, alternative)):
            print(json.dumps(event), file=report, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
