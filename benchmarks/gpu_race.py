"""One case of the GPU script: builds the rungs, checks each against float32, lets them take turns."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from benchmarks import gpu_cases, gpu_table
from benchmarks.gpu_cache import caches_counted
from benchmarks.gpu_cases import Case
from benchmarks.gpu_machine import peak_memory, rate, reserved, state
from benchmarks.gpu_profile import profiled
from benchmarks.gpu_rungs import (
    LADDER,
    ORDER,
    PUBLISHED,
    REFERENCE,
    REPLAYED,
    RIVALS,
    SHORT_ORDER,
    STEP,
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
PROFILE_SECONDS = 5.0  # kept for the profile, on a GPU
SLOW = 0.2  # seconds per step from which the warm-up takes no step that it can do without


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
        self._failing: dict[str, str] = {}  # parity: timed with the others, and neither best nor recommended
        self._reference: Look | None = None
        self._profile_seconds = PROFILE_SECONDS if device.type == "cuda" and not case.short else 0.0

    def run(self, deadline: Deadline, ceilings: dict[str, Any], end: Deadline | None = None) -> None:
        """Everything about the case, within its time.

        Args:
            deadline: of the case.
            ceilings: matrix rates.
            end: until when what the conclusion rests on may be built and profiled, at the cost of later cases.
        """
        self._prepare()
        end = end or deadline
        by_name = {rung.name: rung for rung in LADDER if self._wanted(rung)}
        for name in by_name:  # in the order of the table
            self.rungs[name] = {"status": "left out: no time"}
        for name in SHORT_ORDER if self.case.short else ORDER:
            if name in by_name:
                self._enter(by_name[name], deadline, end)
                self.save()
        if not self._entrants:
            return
        best = self._fastest()
        self._time(best, deadline.before(self._profile_seconds), ceilings)
        fastest = gpu_table.fastest(self.rungs)
        if fastest is not None and end.left() > 0 and not self.case.short:
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

    def _wanted(self, rung: Rung) -> bool:
        return (rung.short or not self.case.short) and (self.case.rivals or not rung.rival)

    def _essential(self, rung: Rung) -> bool:
        """Whether the conclusion rests on it. In a short case the replayed rung stands for the compiled one, too."""
        return rung.short and not (self.case.short and rung.name == STEP and REPLAYED in self._entrants)

    def _enter(self, rung: Rung, deadline: Deadline, end: Deadline) -> None:
        """Builds a rung, looks at its gradients and warms it up, unless there is no CUDA, memory or time for it."""
        found = self.rungs[rung.name]
        if rung.needs_cuda and self.device.type != "cuda":
            found["status"] = "needs CUDA"
            return
        if rung.compiled and self.case.interpreted:
            found["status"] = "left out at toy size: one case shows that compiled rungs run"
            return
        essential = self._essential(rung)
        rounds = self.effort.least_rounds if essential or not rung.compiled else self.effort.rounds
        limit = (end if essential else deadline).left() - self._rounds_ahead(rounds)
        if limit <= 0:
            return
        started = time.monotonic()
        with _reported(found) as found, time_limit(limit), self._cache_noted(rung, found):
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
                if None in parity.values():
                    return
                self._failing[rung.name] = found["status"]
            found |= self._warm_up(entrant, base)
            found["status"] = self._failing.get(rung.name, "ready")
            self._entrants[rung.name], self._estimates[rung.name] = entrant, found["warm_step_seconds"]
        found["seconds_to_build"] = round(time.monotonic() - started, 1)

    def _cache_noted(self, rung: Rung, found: dict[str, Any]) -> AbstractContextManager[None]:
        """Seconds to build say little without: what was read from the disk was built in seconds."""
        return caches_counted(found) if rung.compiled else nullcontext()

    def _rounds_ahead(self, rounds: int) -> float:
        """Seconds that so many rounds of those entrants take which are ready, and the profile."""
        if not self._entrants:
            return 0.0
        turns = self._turns(self._fastest())
        return self._profile_seconds + sum(turns.seconds(number, self.effort) for number in range(rounds))

    def _warm_up(self, entrant: Entrant, base: int) -> dict[str, Any]:
        """One step that is timed and whose memory is read; the looks have run all its kernels."""
        if entrant.rung.acceleration.cuda_graph:
            entrant()  # records the steps of the attack
        seconds = []
        memory = peak_memory(lambda: seconds.append(self.clock.seconds(entrant)), self.device, base)
        if seconds[0] < SLOW:  # memory had to be asked of the driver, which counts in a short step
            seconds.append(self.clock.seconds(entrant))
        return {"warm_step_seconds": significant(max(min(seconds), 1e-6)), **memory}

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
        """Of ours that passed, by the warm-up."""
        return min(self._estimates, key=lambda name: (name in self._failing, name in RIVALS, self._estimates[name]))

    def _note(self, rung: Rung, times: dict[str, list[float]], matrix_rate: float | None) -> None:
        """Speed, operations per second, how far from the ceiling, and ratios to the others."""
        seconds, loss = spread(times[rung.name]), float(self._entrants[rung.name].last_loss)
        useful = self.case.forwards * self.flops * self.case.batch / seconds["median"]
        passed = self._failing.get(rung.name, "timed")
        others = [name for name in (*RIVALS, REFERENCE) if name in times]
        self.rungs[rung.name] |= {
            "status": passed if math.isfinite(loss) else "failed: the loss is no finite number",
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
