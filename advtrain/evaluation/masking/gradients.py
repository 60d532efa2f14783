"""Gradients that are exactly zero."""

from dataclasses import replace

import torch

from advtrain.attacks import ascent
from advtrain.attacks.norms import norm_named
from advtrain.evaluation.masking.check import Check
from advtrain.evaluation.masking.iterative import share
from advtrain.evaluation.masking.subject import Subject, objective_of
from advtrain.losses.objectives import CLASSES_NEEDED, DLR, CrossEntropy, Margin

IMAGES = 0.02
PIXELS = 0.5
SOURCE = (
    "Athalye, Carlini & Wagner, arXiv:1802.00420, section 3 (shattered and vanishing gradients); flags_doc.md of "
    "AutoAttack (any zero DLR gradient); passes up to 2 % of the images and what a binomial test at 0.001 adds, and "
    "while at most half of the remaining images' pixels have none (both ours)"
)


def zero_gradients(subject: Subject) -> Check:
    """Correct images without any gradient: of the cross-entropy at the image, or of DLR at a random start.

    DLR is what AutoAttack looks at; with two classes it is the margin. The share of single pixels without a gradient
    is measured on the images that have one.
    """
    geometry = norm_named(subject.norm)
    dlr = DLR if subject.num_classes >= CLASSES_NEEDED["dlr"] else Margin
    counts = {"ce": 0, "dlr": 0}
    zero, pixels, without = 0, 0, 0
    for _, x, y, generator in subject.batches("gradients", subject.clean):
        start = ascent.start(geometry, x, subject.eps, "uniform", generator)
        _, at_image = ascent.value_and_gradient(objective_of(subject.model, CrossEntropy(y)), x)
        _, at_start = ascent.value_and_gradient(objective_of(subject.model, dlr(y)), start)
        absent = {"ce": _absent(at_image), "dlr": _absent(at_start)}
        for name, images in absent.items():
            counts[name] += int(images.sum())
        without += int((absent["ce"] | absent["dlr"]).sum())
        present = at_image[~absent["ce"]]
        zero, pixels = zero + int((present == 0).sum()), pixels + present.numel()
    share_of_pixels = zero / pixels if pixels else 0.0
    reason = (
        f"no gradient at all: {counts['ce']} (cross-entropy), {counts['dlr']} (DLR) of {len(subject)} images; "
        f"{share_of_pixels:.1%} of the others' pixels"
    )
    details = {"ce": counts["ce"], "dlr": counts["dlr"], "pixels": share_of_pixels}
    check = share("zero_gradients", without, len(subject), IMAGES, reason, SOURCE, details)
    return replace(check, passed=bool(check.passed) and share_of_pixels <= PIXELS)


def _absent(gradient: torch.Tensor) -> torch.Tensor:
    return (gradient.flatten(1) == 0).all(1)
