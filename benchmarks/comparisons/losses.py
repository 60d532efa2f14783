"""IKL from logits to gradients: ours in O(N·C) against the published sum over pairs, and against plain KL.

Memory is the peak of what forward and backward pass allocate, counted by the storages that exist: an allocator is not
asked, so the figure is exact and the same everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.data.base import Batch
from advtrain.engine import NoPerturbation
from advtrain.engine.memory import LiveBytes
from advtrain.engine.numerics import Numerics
from advtrain.engine.step import TrainingStep
from advtrain.losses import IKL, TRADES, Loss, functional
from benchmarks import published
from benchmarks.comparisons.parity import apart
from benchmarks.timing import Work, compared, interleaved, significant

PAIRWISE, OURS, COMPILED, KL = "pairwise", "ikl", "ikl, compiled", "kl"
WEIGHTS = {"wmse_weight": 20.0, "ce_weight": 4.0}


@dataclass(frozen=True)
class Batched:
    """Logits of both sides and the class prior's rows, shape (n, classes)."""

    natural: Tensor
    adversarial: Tensor
    prior: Tensor

    @classmethod
    def random(cls, n: int, classes: int) -> "Batched":
        generator = torch.Generator().manual_seed(0)
        natural = 3 * torch.randn(n, classes, generator=generator)
        adversarial = natural + torch.randn(n, classes, generator=generator)
        prior = torch.randn(n, classes, generator=generator).softmax(1)
        return cls(natural.requires_grad_(), adversarial.requires_grad_(), prior)

    def gradients(self, loss: str) -> tuple[Tensor, ...]:
        """The value of the loss of that name and its gradients with respect to both logits."""
        value = LOSSES[loss](self.natural, self.adversarial, self.prior)
        return value.detach(), *torch.autograd.grad(value, (self.natural, self.adversarial))

    def peak_bytes(self, loss: str) -> int:
        """The most that is alive at a time while `gradients` runs, without the logits and the prior."""
        with LiveBytes() as counter:
            self.gradients(loss)
        return counter.peak


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    PAIRWISE: lambda o_m, o_n, p: published.pairwise_ikl(o_m, o_n, p, **WEIGHTS),
    OURS: lambda o_m, o_n, p: functional.ikl(o_m, o_n, p, **WEIGHTS),
    COMPILED: lambda o_m, o_n, p: compiled()(o_m, o_n, p, **WEIGHTS),
    KL: lambda o_m, o_n, p: functional.kl(o_m, o_n),
}


@cache
def compiled() -> Callable[..., Tensor]:
    """`functional.ikl` by torch.compile, once per process."""
    return torch.compile(functional.ikl)


def against_pairs(
    n: int, classes: int, *, rounds: int, least: float, ours: tuple[str, ...] = (OURS, COMPILED)
) -> dict[str, Any]:
    """Times, ratios to the published form, peak bytes, and how far value and gradients lie apart.

    Args:
        n: images; the pairs take 4·n·C² bytes for each intermediate tensor.
        classes: C.
        rounds, least: see `benchmarks.timing.interleaved`.
        ours: ways of computing our loss. What compiled code allocates inside of a kernel no counter sees, so that its
            memory is not told.
    """
    logits = Batched.random(n, classes)
    expected = logits.gradients(PAIRWISE)
    ways: dict[str, Work] = {name: partial(logits.gradients, name) for name in (PAIRWISE, *ours)}
    found = compared(interleaved(ways, rounds=rounds, seed=0, least=least), PAIRWISE)
    for name in ours:
        distances = (apart(one, other) for one, other in zip(logits.gradients(name), expected, strict=True))
        found[name]["parity"] = dict(zip(("loss", "natural_gradient", "adversarial_gradient"), distances, strict=True))
    for name in (PAIRWISE, OURS):
        found[name]["peak_bytes"] = logits.peak_bytes(name)
    found[OURS]["memory_ratio"] = significant(found[PAIRWISE]["peak_bytes"] / found[OURS]["peak_bytes"])
    return {"images": n, "ways": found}


def against_kl(n: int, classes: int, *, rounds: int, least: float) -> dict[str, Any]:
    """Times and ratios of IKL to KL alone, from logits to gradients, and peak bytes."""
    logits = Batched.random(n, classes)
    ways: dict[str, Work] = {name: partial(logits.gradients, name) for name in (KL, OURS)}
    found = compared(interleaved(ways, rounds=rounds, seed=0, least=least), KL)
    for name, figures in found.items():
        figures["peak_bytes"] = logits.peak_bytes(name)
    return {"images": n, "ways": found}


def steps_against_kl(
    network: Callable[[], nn.Module], x: Tensor, classes: int, *, steps: int, rounds: int
) -> dict[str, Any]:
    """A whole training step with IKL against one with KL (TRADES), which moreover stands against itself.

    The ratio of TRADES to TRADES is the noise that the other ratio is to be held against.
    """
    y = torch.arange(len(x)) % classes
    losses: dict[str, Callable[[], Loss]] = {
        KL: TRADES,
        "kl again": TRADES,
        OURS: lambda: IKL(num_classes=classes),
    }
    ways: dict[str, Work] = {name: _step(network(), loss(), x, y, steps) for name, loss in losses.items()}
    found = compared(interleaved(ways, rounds=rounds, seed=0), KL)
    for name, figures in found.items():
        with LiveBytes() as counter:
            ways[name]()
        figures["peak_bytes"] = counter.peak
    return {"images": len(x), "ways": found}


def _step(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, steps: int) -> Work:
    model = model.train().to(memory_format=torch.channels_last)
    step = TrainingStep(
        model,
        loss.train(),
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        numerics=Numerics(torch.device("cpu"), memory_format=torch.channels_last),
        batch_size=len(x),
        accumulation=1,
        attack_batchnorm="eval",
        clip_norm=None,
        seed=0,
    )
    attack = PGD(eps=8 / 255, steps=steps, step_size=2 / 255, init="gaussian")
    batch = Batch(x, y, slice(0, len(x)))
    return lambda: step(batch, attack, NoPerturbation(), 1, 0)
