"""An attack that may do anything must break everything."""

from math import sqrt

import torch

from advtrain.evaluation.masking.check import Check
from advtrain.evaluation.masking.iterative import share
from advtrain.evaluation.masking.subject import Subject, objective_of
from advtrain.evaluation.masking.whitebox import climb
from advtrain.losses.objectives import CrossEntropy

LEFT = 0.02
ROUNDS, STEPS = 4, 10  # images that a round broke are out of the next one
RELATIVE_STEP = 0.1
SOURCE = (
    "Athalye, Carlini & Wagner, arXiv:1802.00420, section 3.1, and Carlini et al., arXiv:1902.06705: an unbounded "
    "attack must reach 100 % success; passes while at most 2 % are left and what a binomial test at 0.001 adds"
)


def grey_radius(norm: str, dimensions: int) -> float:
    """The radius within which every image of [0, 1] can become the grey one: every pixel moves by up to ½."""
    return {"linf": 0.5, "l2": 0.5 * sqrt(dimensions), "l1": 0.5 * dimensions}[norm]


def larger_eps(subject: Subject) -> Check:
    """PGD from the image itself at the radius within which every image can become grey.

    A grey image has one class, so that adversarial images exist there for all images but those of that class; if the
    gradient does not lead to them, it does not show the way at the smaller radius, either.
    """
    radius = grey_radius(subject.norm, subject.x[0].numel())
    correct = subject.clean.clone()
    for rows, x, y, _ in subject.batches("radius", subject.clean):
        left, current = torch.arange(len(rows)), x
        for _ in range(ROUNDS):
            objective = objective_of(subject.model, CrossEntropy(y[left]))
            walk = climb(
                objective,
                x[left],
                current,
                norm=subject.norm,
                eps=radius,
                step_size=RELATIVE_STEP * radius,
                steps=STEPS,
            )
            *_, current = walk
            verdict = subject.correct(current.cpu(), rows[left])
            correct[rows[left]] = verdict
            left, current = left[verdict], current[verdict]
            if not len(left):
                break
    count = int(correct.sum())
    reason = f"PGD-{ROUNDS * STEPS} at {subject.norm} {radius:g} leaves {count} of {len(subject)}"
    return share("larger_eps", count, len(subject), LEFT, reason, SOURCE)
