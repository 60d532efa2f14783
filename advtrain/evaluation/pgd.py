"""PGD with restarts, as an evaluation: an image is broken when any restart ends on a misclassified image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advtrain import checks
from advtrain.attacks import PGD
from advtrain.evaluation.settings import PGDSettings
from advtrain.random import seeded_generator
from advtrain.types import Images, Labels


def pgd_attack(settings: PGDSettings, norm: str, eps: float) -> PGD:
    """One restart of the attack that `settings` describe, for the ball of radius `eps`."""
    step_size = eps / 4 if settings.step_size is None else checks.number("eval.pgd.step_size", settings.step_size)
    return PGD(norm=norm, eps=eps, steps=settings.steps, step_size=max(step_size, 1e-12), init="uniform")


def attack_batch(
    model: nn.Module, x: Images, y: Labels, attack: PGD, restarts: int, *, seed: int, batch: int
) -> tuple[Images, Tensor, Tensor]:
    """Attacks one batch on the cross-entropy; what is misclassified already is left alone.

    Args:
        model: images to logits.
        x, y: clean images and labels, on the model's device.
        attack: one restart.
        restarts: how many there are. Each attacks the images that are still classified correctly.
        seed, batch: name the random stream, with the restart.

    Returns:
        The adversarial images (the clean image where none was found), and whether each image is classified correctly
        without the attack and with it, bool (n,) both.
    """
    x_adv = x.clone()
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    robust = clean.clone()
    for restart in range(restarts):
        left = robust.nonzero().flatten()
        if not len(left):
            break
        generator = seeded_generator(seed, "pgd", batch, restart, device=x.device)
        labels = y[left]
        candidates = attack(
            lambda images, labels=labels: F.cross_entropy(model(images), labels, reduction="none"),
            x[left],
            generator=generator,
        )
        with torch.no_grad():
            broken = model(candidates).argmax(1) != labels
        x_adv[left[broken]] = candidates[broken]
        robust[left[broken]] = False
    return x_adv, clean, robust
