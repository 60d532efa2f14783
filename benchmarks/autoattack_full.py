"""The second form of the benchmark of AutoAttack's engines: each runs it as it is, and verdicts are compared."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.engine.run_directory import git_commit
from advtrain.evaluation.autoattack import run_autoattack
from advtrain.evaluation.autoattack.outcome import ROBUST
from advtrain.evaluation.settings import AutoAttackSettings
from benchmarks.gpu_machine import arithmetic

EPS = 8 / 255


class Clock:
    """Seconds of work: the process's on a CPU, the wall's on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def taking_gradients(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        model.zero_grad()


def alone(model: nn.Module, x: Tensor, y: Tensor, engine: str, clock: Clock, batch: int) -> dict[str, Any]:
    """AutoAttack as it is by one engine: seconds of work, verdicts and images."""
    settings = AutoAttackSettings(engine=engine.split("_")[0], batch_size=batch)
    how: Any = {"norm": "linf", "eps": EPS, "settings": settings, "device": clock.device, "report": print}
    with ExitStack() as ways:
        if engine in ("upstream", "upstream_defaults"):
            ways.enter_context(taking_gradients(model))
        if engine == "upstream_defaults":
            ways.enter_context(defaults())
        _warm_up(model, x[:batch].to(clock.device))
        wall, started = time.perf_counter(), clock.now()
        outcome = run_autoattack(model, x, y, **how)
        work = clock.now() - started
    figures: dict[str, Any] = {
        "git_commit": git_commit(),
        "work_seconds": round(work, 1),
        "seconds": round(time.perf_counter() - wall, 1),
        "robust": int(outcome.robust.sum()),
        "n_examples": len(x),
        "settings": outcome.settings,
        "after": outcome.after,
        "flags": outcome.flags,
    }
    return {"figures": figures, "broken_by": outcome.broken_by, "x_adv": outcome.x_adv}


@contextmanager
def defaults() -> Iterator[None]:
    """As PyTorch computes when nothing is said."""
    deterministic = torch.backends.cudnn.deterministic
    try:
        torch.backends.cudnn.deterministic = False
        with arithmetic("defaults"):
            yield
    finally:
        torch.backends.cudnn.deterministic = deterministic


def _warm_up(model: nn.Module, x: Tensor) -> None:
    """On a GPU, whose libraries load what they need when it is first asked for."""
    if x.device.type == "cuda":
        leaf = x.requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)


def full(
    arguments: argparse.Namespace, engines: list[str], one: Callable[[str], dict[str, Any]], save: Callable[[Any], None]
) -> None:
    """AutoAttack by each engine, and what differs.

    Args:
        arguments: of the command line.
        engines: their words; what is compared is compared with the first one.
        one: runs an engine here.
        save: takes what is known after each engine.
    """
    if arguments.keep:
        Path(arguments.keep).mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    if arguments.device == "cuda":
        for engine in engines:
            found[engine] = _kept(arguments.keep, engine, one)
            torch.cuda.empty_cache()
            save(_compared(found))
        return
    # In a process of its own, because what one leaves behind in the allocator would help the next.
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.jobs) as pool:
        files = {engine: Path(arguments.keep or temporary) / f"{engine}.pt" for engine in engines}

        def work(engine: str) -> None:
            if files[engine].is_file():
                return
            words = [arguments.bundle, arguments.data, str(files[engine]), "--full", str(arguments.full)]
            words += ["--batch", str(arguments.batch), "--one", engine]
            subprocess.run([sys.executable, "-m", "benchmarks", "autoattack", *words], check=True)

        list(pool.map(work, engines))
        save(_compared({engine: torch.load(file, weights_only=True) for engine, file in files.items()}))


def _kept(folder: str | None, engine: str, one: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What the engine found, in an earlier call where the folder has it."""
    if folder is None:
        return one(engine)
    file = Path(folder) / f"{engine}.pt"
    if not file.is_file():
        torch.save(one(engine), file)
    return torch.load(file, weights_only=True)


def _compared(found: dict[str, Any]) -> dict[str, Any]:
    """What each engine found, beside the first; its time beside that of each kind of upstream, too."""
    base, *_ = found
    first, result = found[base], {}
    for engine, one in found.items():
        verdicts = (one["broken_by"] != first["broken_by"]).nonzero().flatten().tolist()
        robust = ((one["broken_by"] == ROBUST) != (first["broken_by"] == ROBUST)).nonzero().flatten().tolist()
        seconds = one["figures"]["work_seconds"]
        times = {
            f"work_to_{other}": round(seconds / found[other]["figures"]["work_seconds"], 3)
            for other in found
            if other == base or other.startswith("upstream")
        }
        result[engine] = (
            one["figures"]
            | times
            | {
                f"robust_unlike_{base}": robust,
                f"robust_or_attack_unlike_{base}": verdicts,
                f"adversarial_images_unlike_{base}": int((one["x_adv"] != first["x_adv"]).flatten(1).any(1).sum()),
            }
        )
    return result
