"""IKL against KL at C = 1000: time and memory of the loss alone, and of a training step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advtrain.losses import functional
from benchmarks import gpu_cases, published
from benchmarks.gpu_cases import Case
from benchmarks.gpu_machine import peak_memory, reserved
from benchmarks.gpu_rungs import LADDER, Entrant
from benchmarks.gpu_timing import Clock, Deadline, Effort, Entrants, one_line, ratio, spread, take_turns

CLASSES = 1000
STEP = Case("preact_resnet_18", "trades", 10, 128, 32, CLASSES, weight=0)
TOY_STEP = Case("preact_resnet_18", "trades", 2, 4, 8, CLASSES, weight=0)
Works = dict[str, Callable[[], None]]


def losses(device: torch.device, batch: int) -> Works:
    """Value and gradient of each loss on the same random logits."""
    generator = torch.Generator(device).manual_seed(0)

    def logits() -> Tensor:
        return torch.randn(batch, CLASSES, generator=generator, device=device).requires_grad_()

    natural, adversarial = logits(), logits()
    weights = torch.rand(batch, CLASSES, generator=generator, device=device).softmax(1)
    values: dict[str, Callable[[], Tensor]] = {
        "kl": lambda: functional.kl(natural, adversarial),
        "ikl": lambda: functional.ikl(natural, adversarial, weights, wmse_weight=20.0, ce_weight=4.0),
        "ikl, published (pairs of classes)": lambda: published.pairwise_ikl(natural, adversarial, weights, 20.0, 4.0),
    }

    def work(value: Callable[[], Tensor]) -> Callable[[], None]:
        def differentiate() -> None:
            natural.grad = adversarial.grad = None
            value().backward()

        return differentiate

    return {name: work(value) for name, value in values.items()}


def steps(device: torch.device, toy: bool) -> Works:
    """A training step of TRADES, which is KL, and of IKL, in bfloat16, as written."""
    rung = next(rung for rung in LADDER if rung.name == "+ bf16")
    found: Works = {}
    for name, word in (("kl", "trades"), ("ikl", "ikl")):
        case = replace(TOY_STEP if toy else STEP, loss=word)
        data = gpu_cases.batches(case, device)
        found[name] = Entrant(rung, case, data, gpu_cases.network(case, toy, device).state_dict(), toy)
    return found


def compare(
    device: torch.device, *, toy: bool, clock: Clock, effort: Effort, deadline: Deadline, record: dict[str, Any]
) -> None:
    """Fills `record`: seconds and memory of each loss and of a step with it, and the ratio to KL."""
    if deadline.left() <= 0:
        record["status"] = "left out: no time"
        return
    case = TOY_STEP if toy else STEP
    record |= {"num_classes": CLASSES, "batch": case.batch, "attack_steps": case.steps, "losses": {}, "steps": {}}
    short = Effort(effort.rounds, effort.least_rounds, effort.block_seconds / 4)
    for kind, works in (("losses", losses(device, case.batch)), ("steps", steps(device, toy))):
        record[kind] = _compared(works, device, clock=clock, effort=short, deadline=deadline)
    record["status"] = "done"


def _compared(
    works: Works, device: torch.device, *, clock: Clock, effort: Effort, deadline: Deadline
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in works}
    estimates = {}
    for name, work in list(works.items()):
        try:
            base = reserved(device)
            for _ in range(2):
                work()
            estimates[name] = max(clock.seconds(work, 3), 1e-6)
            found[name] |= peak_memory(work, device, base)
        except Exception as error:  # the pairs may not fit
            found[name]["status"] = f"failed: {one_line(error)}"
            del works[name]
    entrants = Entrants(works, estimates)
    take_turns(entrants, clock, effort, deadline, lambda number: None)
    for name, times in entrants.times.items():
        found[name]["seconds"] = spread(times)
        if "kl" in entrants.times:
            found[name]["times_kl"] = ratio(times, entrants.times["kl"])
    return found
