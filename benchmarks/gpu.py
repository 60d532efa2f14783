"""Everything that a GPU has to say about training speed, in one command that fits into its minutes.

    python -m benchmarks gpu results/benchmarks/gpu.json                       # 9 minutes on one GPU
    python -m benchmarks gpu OUT.json --minutes 2 --models preact_resnet_18 --block-seconds 0.4
    python -m benchmarks gpu OUT.json --warm-up                                # fills the compiler's caches
    python -m benchmarks gpu OUT.json --toy                                    # tiny networks: runs on a CPU, too

What it measures, in this order, each part with a share of the minutes (what a part leaves over, the next ones have):

    ceilings   rate of a large matrix product in float32, TF32 and bfloat16, and of a large copy; at the end once more
    ladders    per network and loss: the training step from float32, contiguous, as it is written, to bfloat16, compiled
               and replayed, beside the step written the published way; per rung parity with float32, images per second,
               useful TFLOP/s, share of the ceiling (MFU), memory, and a profile of the fastest
    classes    IKL against KL at C = 1000: time and memory of the loss

The rungs of a case are built one after the other, first those that the conclusion rests on. Each is looked at before it
is timed: gradient of the attack's objective at fixed images, direction of the attack's step there, gradient of the
weights, against those of float32. A rung that deviates too far is reported as failed: its time stands beside how far it
is off, and it is never the one that is recommended. The rungs take turns in random order, in turns of `--block-seconds`
at least, the fastest twice, which shows what of a ratio is noise. What is reported are medians with range.

The record is written after each rung and each round: whoever stops the script keeps what it had found. What did not fit
into the minutes, into the memory or through the compiler is in the record by name. On a CPU the same code runs with
process time; rungs that need CUDA are named as such.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from advtrain.engine.run_directory import git_commit, provenance
from benchmarks import gpu_cache, gpu_cases, gpu_classes, gpu_table
from benchmarks.gpu_machine import ceilings, machine, state
from benchmarks.gpu_race import Race
from benchmarks.gpu_timing import Budget, Clock, Effort, OutOfTime, clock_of, one_line

PARTS = ("ceilings", "ladders", "classes")
WEIGHTS = {"ceilings": 4.0, "classes": 3.0, "ceilings after": 2.0}  # of the minutes, beside the cases' own
SMALL = 32  # pixels
TOY_EFFORT = Effort(rounds=2, least_rounds=1, block_seconds=0.01)


class Script:
    """The parts of the measurement and the record that they fill.

    Args:
        arguments: of the command line.
        device: where it runs.
    """

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.arguments, self.device, self.toy = arguments, device, arguments.toy
        self.clock: Clock = clock_of(device)
        self.effort = TOY_EFFORT if arguments.toy else Effort(block_seconds=arguments.block_seconds)
        self.only = arguments.only.split(",")
        self.cases = gpu_cases.selected(arguments.models.split(","), arguments.toy) if "ladders" in self.only else []
        self.record: dict[str, Any] = {
            "command": _command(arguments.out),
            "git_commit": git_commit(),
            "seed": 0,
            "measured": f"{self.clock.measures}; rungs in random order, medians with range",
            "toy": self.toy,
            "hardware": machine(device),
            "versions": provenance()["versions"] | {"triton": _triton()},
            "state": {"start": state(device)},
            "ceilings": {},
        }

    def run(self) -> None:
        """All parts, in order."""
        self.record |= {"ceilings": {}, "cases": {}, "classes": {}, "recommendations": []}
        self.record["cases"] = {case.name: {"status": "left out: no time"} for case in self.cases}
        budget = Budget(self.arguments.minutes, self._weights())
        if "ceilings" in self.only:
            self._ceilings("before")
        for number, case in enumerate(self.cases):
            if number == self._small_cases():
                self._classes(budget)
            self._case(case, budget)
        self._classes(budget)
        if "ceilings" in self.only:
            self._ceilings("after")
        self.record["state"]["end"] = state(self.device)
        self.record["minutes_used"] = round(budget.used() / 60, 2)
        self.save()

    def warm_up(self) -> None:
        """Fills torch.compile's folders with what the cases' ladders compile."""
        deadline = Budget(self.arguments.minutes, {"all": 1.0}).deadline("all")
        found = self.record.setdefault("warm_up", {})
        how = {"toy": self.toy, "deadline": deadline, "record": found, "tell": self._tell}
        gpu_cache.warm_up(self.cases, self.device, **how)
        self.save()

    def save(self) -> None:
        """Writes the record in one piece."""
        cases = self.record.get("cases", {}).values()
        self.record["recommendations"] = [gpu_table.recommendation(case) for case in cases if "rungs" in case]
        out: Path = self.arguments.out
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        partial.replace(out)

    def _small_cases(self) -> int:
        """Those of small images come before the classes, the others after."""
        return sum(case.size <= SMALL for case in self.cases)

    def _weights(self) -> dict[str, float]:
        weights = {"ceilings": WEIGHTS["ceilings"]}
        for number, case in enumerate(self.cases):
            if number == self._small_cases():
                weights["classes"] = WEIGHTS["classes"]
            weights[case.name] = case.weight
        return weights | {name: WEIGHTS[name] for name in ("classes", "ceilings after")}

    def _ceilings(self, when: str) -> None:
        try:
            found = ceilings(self.device, self.clock, self.effort.block_seconds / 4, self.toy)
            self.record["ceilings"][when] = found
        except Exception as error:  # MFU is then left out
            self.record["ceilings"][when] = {"status": f"failed: {one_line(error)}"}
        self._tell(f"ceilings {when} measured")

    def _classes(self, budget: Budget) -> None:
        if "classes" not in self.only or self.record["classes"]:
            return
        found, how = self.record["classes"], {"toy": self.toy, "clock": self.clock, "effort": self.effort}
        try:
            gpu_classes.compare(self.device, **how, deadline=budget.deadline("classes"), record=found)
        except Exception as error:  # the rest goes on
            found["status"] = f"failed: {one_line(error)}"
        self._tell(f"IKL against KL: {found['status']}")

    def _case(self, case: gpu_cases.Case, budget: Budget) -> None:
        deadline, found = budget.deadline(case.name), self.record["cases"][case.name]
        if deadline.left() <= 0:
            return
        race = Race(
            case,
            self.device,
            toy=self.toy,
            clock=self.clock,
            effort=self.effort,
            record=found,
            save=lambda: self._tell(None),
        )
        try:
            race.run(deadline, self.record["ceilings"].get("before", {}), budget.deadline(self.cases[-1].name))
            found["status"] = "done"
        except (Exception, OutOfTime) as error:  # the other cases go on
            found["status"] = f"failed: {one_line(error)}"
        finally:
            race.close()
        self._tell(f"{case.name}: {found['status']}")

    def _tell(self, line: str | None) -> None:
        self.save()
        if line:
            print(line, flush=True)


def _command(out: Path) -> str:
    """As it was given, but for the folder of the record, which nobody else has."""
    words = [out.name if word == str(out) else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", "gpu", *words])


def _triton() -> str | None:
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return triton.__version__


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("out", type=Path, help="where the record goes")
    words.add_argument("--minutes", type=float, default=9.0, help="that it may take")
    words.add_argument("--block-seconds", type=float, default=1.0, help="that a rung's turn takes at least")
    words.add_argument("--warm-up", action="store_true", help="fill the compiler's caches for the ladders, and end")
    words.add_argument("--models", default=",".join(gpu_cases.MODELS), help="those that are run")
    words.add_argument("--only", default=",".join(PARTS), help="the parts that are run")
    words.add_argument("--toy", action="store_true", help="tiny networks and batches, to see that it runs")
    words.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return words


def checked(words: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, or its end with one line that says what was expected."""
    arguments = words.parse_args()
    for name, valid in (("models", tuple(gpu_cases.MODELS)), ("only", PARTS)):
        for word in getattr(arguments, name).split(","):
            if word not in valid:
                words.error(f"--{name}: expected some of {', '.join(valid)}, got {word!r}; choose among them")
    if arguments.minutes <= 0:
        words.error(f"--minutes: expected a number above 0, got {arguments.minutes:g}; 9 runs most of it")
    if arguments.block_seconds <= 0:
        words.error(
            f"--block-seconds: expected a number above 0, got {arguments.block_seconds:g}; 0.4 is the least usual"
        )
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device == "cuda" and not torch.cuda.is_available():
        words.error("--device cuda: expected a CUDA GPU, got none; use --toy --device cpu to see the script run")
    if arguments.device == "cpu" and not arguments.toy:
        words.error("expected a CUDA GPU, got none; --toy runs the script on a CPU, with tiny networks")
    return arguments


def main() -> None:
    arguments = checked(parser())
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    script = Script(arguments, device)
    if arguments.warm_up:
        script.warm_up()
        return
    script.run()
    console = Console()
    gpu_table.show(script.record, console if console.is_terminal else Console(width=160))
