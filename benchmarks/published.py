"""The published way of taking an adversarial training step: what advtrain's is compared with.

Our own writing of what the published codes do; the sources are the papers, and the codes that their authors released
(TRADES, TRADES-AWP, IKL) for how they go about it. What they share, and what costs them time:

    float32, contiguous layout, plain torch.optim.SGD
    the parameters take gradients during the attack, which eager autograd, but no compiler, then skips for
      `autograd.grad` with respect to the images
    TRADES and IKL compute the natural logits anew in every step of the attack, with a graph
    two forward passes of the training loss, adversarial images first
    IKL's wMSE over all pairs of classes, N × C × C numbers
    loss and accuracy are read by the host in each step (`.item()`, twice)
    AWP on a copy of the model, into which the weights are loaded in each step

In favour of the rivals we leave out what only some of them do: the third forward pass of TRADES and TRADES-AWP (natural
logits once for the cross-entropy, once for the divergence) and `loss.backward()` in the attack of PGD codes (weight
gradients in each step). Device, dtype, memory format, autocast, TF32 and cudnn.benchmark are the caller's affair.

    step = published.build("trades", model, optimizer, Ball(eps=8 / 255, steps=10, step_size=2 / 255))
    done = step(x, y)  # or step(x, y, start)
    start = published.same_start(attack, x, seed=0, epoch=1, step=0)  # where TrainingStep's attack would start

How the conventions differ from advtrain's, and why the step is the same (tests/benchmarks/test_published.py):

    The attack's loss is a sum over the batch (TRADES), or a mean (PGD-AT, IKL); ours is a sum. Only the sign is used.
    The Gaussian start is neither projected nor clipped; ours is. `same_start` lies inside, where both agree.
    wMSE over pairs is the closed form (`advtrain.losses.functional`), value and gradient.
    The codes' class prior has NaN rows for classes that an epoch lacks; ours keeps the old row.
    AWP: the optimiser steps on the perturbed weights, so that the weight decay acts on w + v, not on w: see
      `advtrain.engine.weight_perturbations.awp`. The gradient is the same.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advtrain.attacks import PGD, ascent
from advtrain.attacks.norms import norm_named
from advtrain.random import BatchRows, seeded_generator

STEPS = ("pgd_at", "trades", "ikl", "ikl_awp")


@dataclass(frozen=True)
class Ball:
    """A Linf attack: radius, number and length of its steps, in units of pixels in [0, 1]."""

    eps: float
    steps: int
    step_size: float


@dataclass(frozen=True)
class Done:
    """The adversarial images, and what the host read. The gradient is in the parameters' `.grad`."""

    x_adv: Tensor
    loss: float
    accuracy: float


Step = Callable[..., Done]  # (x, y, start=None)


class ClassMeans:
    """IKL's class prior, of C classes and temperature τ: the rows in force and those being gathered."""

    def __init__(self, num_classes: int, temperature: float, like: Tensor) -> None:
        self.temperature = temperature
        self.weights = torch.full((num_classes,) * 2, 1 / num_classes, device=like.device, dtype=like.dtype)
        self.gathered = torch.zeros_like(self.weights)

    @torch.no_grad()
    def rows(self, y: Tensor) -> Tensor:
        return self.onehot(y) @ self.weights

    @torch.no_grad()
    def gather(self, natural_logits: Tensor, y: Tensor) -> None:
        predictions = F.softmax(natural_logits.detach() / self.temperature, dim=1)
        self.gathered = self.gathered + self.onehot(y).t() @ predictions.to(self.weights.dtype)

    def end_epoch(self) -> None:
        self.weights = self.gathered / self.gathered.sum(dim=1, keepdim=True)
        self.gathered = torch.zeros_like(self.weights)

    def onehot(self, y: Tensor) -> Tensor:
        # Not F.one_hot, which waits for the labels on a CPU only: what is counted here stands for a GPU.
        return (y[:, None] == torch.arange(len(self.weights), device=y.device)).to(self.weights.dtype)


class Proxy:
    """AWP by a copy of the model that takes one plain SGD step up the loss (arXiv:2004.05884).

    Args:
        model: the network being trained.
        lr: of the proxy's step; it cancels.
        gamma: relative size of the perturbation.
    """

    def __init__(self, model: nn.Module, lr: float = 0.1, gamma: float = 0.005) -> None:
        self.gamma = gamma
        self.proxy = copy.deepcopy(model)
        self.optimizer = torch.optim.SGD(self.proxy.parameters(), lr=lr)

    def directions(self, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
        """‖w‖/‖Δw‖ · Δw of each weight of more than one dimension, where Δw is the proxy's step up the loss."""
        self.proxy.load_state_dict(model.state_dict())
        self.proxy.train()
        self.optimizer.zero_grad()
        (-loss(self.proxy)).backward()
        self.optimizer.step()
        moved, found = self.proxy.state_dict(), {}
        for name, weight in model.state_dict().items():
            if weight.dim() > 1 and "weight" in name:
                difference = moved[name] - weight
                found[name] = weight.norm() / (difference.norm() + 1e-20) * difference
        return found

    @torch.no_grad()
    def move(self, model: nn.Module, directions: dict[str, Tensor], sign: float) -> None:
        for name, parameter in model.named_parameters():
            if name in directions:
                parameter.add_(sign * self.gamma * directions[name])


@dataclass(frozen=True)
class IKLSettings:
    """What an IKL step needs beside the model: prior, weights of the terms (as `advtrain.losses.IKL`), AWP's proxy."""

    prior: ClassMeans
    wmse_weight: float = 20.0
    ce_weight: float = 4.0
    proxy: Proxy | None = None


def build(
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ball: Ball,
    *,
    num_classes: int = 10,
    temperature: float = 4.0,
) -> Step:
    """The step of that name (one of STEPS) with the recipes' own weights, as a function of x, y and, if given, a start.

    Args:
        model: on its device, in its layout.
        optimizer: over the model's parameters.
        ball: the attack.
        num_classes, temperature: of IKL's class prior.
    """
    if name == "pgd_at":
        return lambda x, y, start=None: pgd_at_step(model, optimizer, ball, x, y, start)
    if name == "trades":
        return lambda x, y, start=None: trades_step(model, optimizer, ball, x, y, start)
    if name in ("ikl", "ikl_awp"):
        prior = ClassMeans(num_classes, temperature, next(model.parameters()))
        settings = IKLSettings(prior, proxy=Proxy(model) if name == "ikl_awp" else None)
        return lambda x, y, start=None: ikl_step(model, optimizer, ball, settings, x, y, start)
    raise ValueError(f"expected one of {', '.join(STEPS)}, got {name!r}")


def pgd_at_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, ball: Ball, x: Tensor, y: Tensor, start: Tensor | None = None
) -> Done:
    """PGD adversarial training (arXiv:1706.06083): cross-entropy inside and outside.

    Args:
        model, optimizer, ball: see `build`.
        x, y: a batch, images (n, c, h, w) in [0, 1] and labels (n,).
        start: where the attack starts; a uniform draw from the ball when None.
    """
    if start is None:
        start = (x + torch.empty_like(x).uniform_(-ball.eps, ball.eps)).clamp(0, 1)
    x_adv = climb(model, ball, x, start, lambda images: F.cross_entropy(model(images), y))
    model.train()
    logits = model(x_adv)
    return finish(optimizer, F.cross_entropy(logits, y), logits, x_adv, y)


def trades_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ball: Ball,
    x: Tensor,
    y: Tensor,
    start: Tensor | None = None,
    beta: float = 6.0,
) -> Done:
    """TRADES (arXiv:1901.08573): KL inside, cross-entropy + β KL outside. Arguments as `pgd_at_step`."""

    def divergence(images: Tensor) -> Tensor:  # the natural logits are part of it, each time
        return F.kl_div(F.log_softmax(model(images), 1), F.softmax(model(x), 1), reduction="sum")

    x_adv = climb(model, ball, x, gaussian_start(x) if start is None else start, divergence)
    model.train()
    adversarial_logits, natural_logits = model(x_adv), model(x)
    robust = F.kl_div(F.log_softmax(adversarial_logits, 1), F.softmax(natural_logits, 1), reduction="batchmean")
    return finish(optimizer, F.cross_entropy(natural_logits, y) + beta * robust, adversarial_logits, x_adv, y)


def ikl_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ball: Ball,
    settings: IKLSettings,
    x: Tensor,
    y: Tensor,
    start: Tensor | None = None,
) -> Done:
    """IKL (arXiv:2305.13948): IKL with both weights 1 inside, cross-entropy + IKL outside. Else as `pgd_at_step`.

    With `settings.proxy` it is the step of IKL with AWP: the loss is taken at perturbed weights; the optimiser steps on
    those, then the perturbation is taken off.
    """
    weights = settings.prior.rows(y)
    start = gaussian_start(x) if start is None else start
    x_adv = climb(model, ball, x, start, lambda images: pairwise_ikl(model(x), model(images), weights, 1, 1))
    model.train()
    directions = {}
    if settings.proxy is not None:
        directions = settings.proxy.directions(model, lambda other: ikl_loss(other, settings, weights, x, x_adv, y)[0])
        settings.proxy.move(model, directions, 1)
    loss, adversarial_logits, natural_logits = ikl_loss(model, settings, weights, x, x_adv, y)
    settings.prior.gather(natural_logits, y)
    done = finish(optimizer, loss, adversarial_logits, x_adv, y)
    if settings.proxy is not None:
        settings.proxy.move(model, directions, -1)
    return done


def ikl_loss(
    model: nn.Module, settings: IKLSettings, weights: Tensor, x: Tensor, x_adv: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the adversarial logits and the natural ones."""
    adversarial_logits, natural_logits = model(x_adv), model(x)
    robust = pairwise_ikl(natural_logits, adversarial_logits, weights, settings.wmse_weight, settings.ce_weight)
    return F.cross_entropy(natural_logits, y) + robust, adversarial_logits, natural_logits


def pairwise_ikl(
    natural_logits: Tensor, adversarial_logits: Tensor, weights: Tensor, wmse_weight: float, ce_weight: float
) -> Tensor:
    """IKL as the paper writes it: every pair of classes of every image, shape (N, C, C).

    Args:
        natural_logits, adversarial_logits: shape (N, C).
        weights: rows of the class prior, shape (N, C).
        wmse_weight, ce_weight: of the two terms.
    """
    natural_pairs = natural_logits[:, :, None] - natural_logits[:, None, :]
    adversarial_pairs = adversarial_logits[:, :, None] - adversarial_logits[:, None, :]
    pair_weights = weights[:, :, None] * weights[:, None, :]
    wmse = 0.25 * (pair_weights * (natural_pairs - adversarial_pairs) ** 2).sum() / len(weights)
    ce = -(F.softmax(natural_logits, 1).detach() * F.log_softmax(adversarial_logits, 1)).sum(1).mean()
    return wmse_weight * wmse + ce_weight * ce


def climb(model: nn.Module, ball: Ball, x: Tensor, start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Sign-gradient ascent in eval mode; the parameters stay as they are, taking gradients."""
    model.eval()
    x_adv = start.detach()
    for _ in range(ball.steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(x_adv), [x_adv])
        x_adv = x_adv.detach() + ball.step_size * torch.sign(gradient.detach())
        x_adv = torch.min(torch.max(x_adv, x - ball.eps), x + ball.eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    return x_adv


def finish(optimizer: torch.optim.Optimizer, loss: Tensor, logits: Tensor, x_adv: Tensor, y: Tensor) -> Done:
    """Logs, differentiates and steps."""
    read = loss.item(), (logits.argmax(1) == y).float().mean().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return Done(x_adv, *read)


def gaussian_start(x: Tensor) -> Tensor:
    """x + 0.001 · N(0, 1), as TRADES and IKL start."""
    return x.detach() + 0.001 * torch.randn_like(x)


def same_start(attack: PGD, x: Tensor, *, seed: int, epoch: int, step: int) -> Tensor:
    """Where the attack of `TrainingStep(..., seed=seed)` starts in that step: one process, no accumulation."""
    generator = seeded_generator(seed, "attack", epoch, step, device=x.device)
    rows = BatchRows(generator, len(x), slice(0, len(x)))
    return ascent.start(norm_named(attack.norm), x, attack.eps, attack.init, rows, attack.gaussian_scale)
