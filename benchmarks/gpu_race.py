"""One case of the GPU script: builds the rungs, checks each against float32, lets those that pass take turns."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks import gpu_cases, gpu_table
from benchmarks.gpu_cases import Case
from benchmarks.gpu_machine import peak_memory, rate, reserved, state
from benchmarks.gpu_profile import profiled
from benchmarks.gpu_rungs import (
    LADDER,
    ORDER,
    PUBLISHED,
    REFERENCE,
    RIVALS,
    TUNED,
    Entrant,
    Look,
    Rung,
    compared,
    fixed_images,
    verdict,
)
from benchmarks.gpu_timing import (
    Clock,
    Deadline,
    Effort,
    Entrants,
    OutOfTime,
    one_line,
    ratio,
    significant,
    spread,
    take_turns,
    time_limit,
)

AGAIN = "the fastest once more"  # A against A: what of a ratio is noise
PROFILE_SECONDS = 8.0  # kept for the profile, on a GPU


class Race:
    """One case.

    Args:
        case: network and loss.
        device: where.
        toy: tiny networks in place of the case's.
        clock: of the device.
        effort: how much is timed.
        record: what is found, by rung; filled while the race goes on.
        save: writes the whole record.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        *,
        toy: bool,
        clock: Clock,
        effort: Effort,
        record: dict[str, Any],
        save: Callable[[], None],
    ) -> None:
        self.case, self.device, self.toy, self.clock, self.effort = case, device, toy, clock, effort
        self.record, self.save = record, save
        self.rungs: dict[str, dict[str, Any]] = record.setdefault("rungs", {})
        self._entrants: dict[str, Entrant] = {}
        self._estimates: dict[str, float] = {}
        self._reference: Look | None = None

    def run(self, deadline: Deadline, ceilings: dict[str, Any]) -> None:
        """Everything about the case, within its time."""
        self._prepare()
        by_name = {rung.name: rung for rung in LADDER if rung.short or not self.case.short}
        for name in by_name:  # in the order of the table
            self.rungs[name] = {"status": "left out: no time"}
        for name in ORDER:
            if name in by_name:
                self._enter(by_name[name], deadline)
                self.save()
        if not self._entrants:
            return
        best = self._fastest()
        self._time(best, deadline.before(PROFILE_SECONDS if self.device.type == "cuda" else 0), ceilings)
        fastest = gpu_table.fastest(self.rungs)
        if fastest is not None and deadline.left() > 0:
            with _reported(self.record.setdefault("profile", {"of": fastest})) as found:
                found |= profiled(self._entrants[fastest], self.device)
        self.record["machine_after"] = state(self.device)
        self.save()

    def close(self) -> None:
        """Lets go of every network, graph and compiled function."""
        self._entrants.clear()
        self._reference = None
        gc.collect()
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _prepare(self) -> None:
        case = self.case
        self.data = gpu_cases.batches(case, self.device)
        self.flops = gpu_cases.forward_flops(case, self.data, self.device, self.toy)
        self.start = gpu_cases.briefly_trained(case, self.data, self.device, self.toy)
        self.points = fixed_images(case, self.data, self.start, self.toy)
        self.record |= {"model": case.model, "loss": case.loss, "attack_steps": case.steps, "batch": case.batch}
        self.record |= {"image_size": case.size, "num_classes": case.num_classes}
        self.record |= gpu_cases.work(case, self.flops)

    def _enter(self, rung: Rung, deadline: Deadline) -> None:
        """Builds a rung, looks at its gradients and warms it up, unless there is no CUDA, memory or time for it."""
        found = self.rungs[rung.name]
        if rung.needs_cuda and self.device.type != "cuda":
            found["status"] = "needs CUDA"
            return
        if rung.compiled and self.case.interpreted:
            found["status"] = "left out at toy size: one case shows that compiled rungs run"
            return
        limit = deadline.left() - self._rounds_ahead()
        if limit <= 0:
            return
        started = time.monotonic()
        with _reported(found) as found, time_limit(limit):
            base = reserved(self.device)
            entrant = Entrant(rung, self.case, self.data, self.start, self.toy)
            look = entrant.look(self.points)
            self._reference = look if rung.name == REFERENCE else self._reference
            if self._reference is None:
                raise RuntimeError(f"no float32 reference: {self.rungs[REFERENCE]['status']}")
            parity = compared(look, self._reference)
            found["parity"] = parity
            reason = verdict(rung, parity)
            if reason is not None:
                found["status"] = f"failed parity: {reason}"
                return
            found |= self._warm_up(entrant, base)
            found["status"] = "ready"
            self._entrants[rung.name], self._estimates[rung.name] = entrant, found["warm_step_seconds"]
        found["seconds_to_build"] = round(time.monotonic() - started, 1)

    def _rounds_ahead(self) -> float:
        """Seconds that the rounds of those entrants take which are ready."""
        if not self._entrants:
            return 0.0
        turns = self._turns(self._fastest())
        return sum(turns.seconds(number, self.effort) for number in range(self.effort.rounds))

    def _warm_up(self, entrant: Entrant, base: int) -> dict[str, Any]:
        """One step, one that is timed, one whose memory is read; the looks have taken one, too."""
        entrant()
        seconds = max(self.clock.seconds(entrant), 1e-6)
        return {"warm_step_seconds": significant(seconds), **peak_memory(entrant, self.device, base)}

    def _time(self, best: str, deadline: Deadline, ceilings: dict[str, Any]) -> None:
        """The rounds, after each of which the record says all that follows from those so far."""
        turns = self._turns(best)

        def after_round(number: int) -> None:
            self.record["rounds"] = number
            for rung in LADDER:
                if rung.name in turns.times:
                    self._note(rung, turns.times, rate(ceilings, rung.rate))
            if best in turns.times and AGAIN in turns.times:
                self.record["noise"] = {"of": best, "a_to_a": ratio(turns.times[AGAIN], turns.times[best])}
            self.save()

        take_turns(turns, self.clock, self.effort, deadline, after_round)
        for name, reason in turns.fallen.items():
            self._entrants.pop(name, None)
            if name in self.rungs:
                self.rungs[name]["status"] = f"failed while timed: {reason}"

    def _turns(self, best: str) -> Entrants:
        """The conclusion rests on the fastest, twice, and on what it is compared with."""
        works = {**self._entrants, AGAIN: self._entrants[best]}
        lasting = frozenset({PUBLISHED, TUNED, best, AGAIN})
        return Entrants(works, {**self._estimates, AGAIN: self._estimates[best]}, lasting)

    def _fastest(self) -> str:
        """Of ours, by the warm-up."""
        return min(self._estimates, key=lambda name: (name in RIVALS, self._estimates[name]))

    def _note(self, rung: Rung, times: dict[str, list[float]], matrix_rate: float | None) -> None:
        """Speed, operations per second, how far from the ceiling, and ratios to the others."""
        seconds, loss = spread(times[rung.name]), float(self._entrants[rung.name].last_loss)
        useful = self.case.forwards * self.flops * self.case.batch / seconds["median"]
        others = [name for name in (*RIVALS, REFERENCE) if name in times]
        self.rungs[rung.name] |= {
            "status": "timed" if math.isfinite(loss) else "failed: the loss is no finite number",
            "seconds_per_step": seconds,
            "images_per_second": significant(self.case.batch / seconds["median"]),
            "useful_tflops": significant(useful / 1e12),
            "mfu": significant(useful / matrix_rate) if matrix_rate else None,
            "times_as_fast_as": {name: ratio(times[name], times[rung.name]) for name in others},
        }


@contextmanager
def _reported(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Notes what goes wrong in the block as the status of `found` and goes on after it."""
    try:
        yield found
    except OutOfTime:
        found["status"] = "left out: the time was over while it was being built"
    except Exception as error:  # whatever memory, kernels or a compiler may come up with
        found["status"] = f"failed: {one_line(error)}"
