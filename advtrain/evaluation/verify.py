"""Is every verdict backed by its image? Checked in float32 before a robust accuracy is reported."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advtrain.attacks.norms import norm_named
from advtrain.types import Images, Labels, Logits

TOLERANCE = 1e-6  # of the ball, in units of pixels, per unit of radius where that is above 1: float32 rounding
TIE = 1e-4  # a gap between two logits, relative to the largest logit, that another batch size may turn around


class EvaluationError(RuntimeError):
    """The evaluation contradicts itself, so it has no number to report."""


class Verdicts(NamedTuple):
    """What a model says of adversarial images.

    Attributes:
        robust: bool, (n,): classified correctly.
        margins: float32, (n,): logit of the true class minus the largest other one.
        near: how many images lie within a hair of the boundary, |margin| ≤ TIE · largest |logit| on the adversarial
            image or somewhere in the search, so that another machine's rounding may turn their verdict.
        ties: of them, those whose verdict differs from the attack's.
        unstable: verdicts that differ from the attack's for another reason; of a randomised model only.
    """

    robust: Tensor
    margins: Tensor
    near: int
    ties: int
    unstable: int


def judge(
    model: nn.Module,
    x: Images,
    x_adv: Images,
    y: Labels,
    claimed: Tensor,
    *,
    norm: str,
    eps: float,
    batch_size: int,
    device: torch.device | str,
    closest: Tensor | None = None,
) -> Verdicts:
    """Which images are robust, judged from their adversarial images.

    The verdict that counts is the one from here: it can be had again from the images. A model that answers
    differently when it is asked twice has no such verdict; there the attack's own counts, and the differences are
    counted.

    Args:
        model: images to logits, on `device`.
        x: clean images, on the CPU.
        x_adv: what the attack made of them, on the CPU; the clean image itself where it found nothing.
        y: labels.
        claimed: the attack's own verdict, True where it found no adversarial image; shape (n,).
        norm, eps: the threat model.
        batch_size: images per pass.
        device: where the model is.
        closest: the smallest margin that the attack saw of each image, where it kept account of it; shape (n,).

    Raises:
        EvaluationError: an image leaves the ball or [0, 1], a logit is not finite, or a verdict is contradicted.
    """
    _check_inside(x, x_adv, norm, eps)
    logits = torch.cat([part.cpu() for part in logits_of(model, x_adv, batch_size, device)])
    if not logits.isfinite().all():
        raise EvaluationError("expected finite logits on adversarial images, got inf or nan; the model overflows")
    robust = logits.argmax(1) == y
    first, second = logits.topk(2, dim=1).values.unbind(1)
    near = first - second <= TIE * logits.abs().amax(1)
    contradicted = robust != claimed
    wrong = contradicted & ~near
    if randomised := bool(wrong.any()) and _randomised(model, x_adv[:batch_size], device):
        robust = claimed
    elif wrong.any():
        raise EvaluationError(
            f"expected the attack's verdicts from its adversarial images, got another on image(s) "
            f"{wrong.nonzero().flatten()[:5].tolist()}; does the model's answer depend on the other images of a batch?"
        )
    ties = 0 if randomised else int(contradicted.sum())
    unstable = int(contradicted.sum()) if randomised else 0
    if closest is not None:
        near = near | (closest.abs() <= TIE * logits.abs().amax(1))
    return Verdicts(robust, margins(logits, y), int(near.sum()), ties, unstable)


def margins(logits: Logits, y: Labels) -> Tensor:
    """Logit of the true class minus the largest other one, shape (n,): above 0 where the prediction is right."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return true - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def _randomised(model: nn.Module, x: Images, device: torch.device | str) -> bool:
    """Whether the model answers differently when asked again, by more than rounding."""
    (first,), (second,) = logits_of(model, x, len(x), device), logits_of(model, x, len(x), device)
    return bool(((first - second).abs() > TIE * first.abs().amax(1, keepdim=True)).any())


@torch.no_grad()
def logits_of(model: nn.Module, x: Images, batch_size: int, device: torch.device | str) -> Iterator[Logits]:
    for part in x.split(batch_size):
        yield model(part.to(device))


def _check_inside(x: Images, x_adv: Images, norm: str, eps: float) -> None:
    if not (x_adv.min() >= 0 and x_adv.max() <= 1):  # also refuses nan
        raise EvaluationError(f"expected adversarial pixels in [0, 1], got {x_adv.min():.7g} to {x_adv.max():.7g}")
    distance = max(norm_named(norm).length(b.double() - a.double()).max().item() for a, b in _parts(x, x_adv))
    if distance > eps + TOLERANCE * max(1.0, eps):
        raise EvaluationError(f"expected adversarial images within {eps:.7g} ({norm}), got {distance:.7g}")


def _parts(x: Images, x_adv: Images) -> Iterator[tuple[Images, Images]]:
    return zip(x.split(1000), x_adv.split(1000), strict=True)
