"""The gradient attacks that the checks share. Each runs once; the checks read their verdicts off it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advtrain.attacks import PGD, ascent
from advtrain.attacks.norms import norm_named
from advtrain.evaluation.autoattack.exact import perturb
from advtrain.evaluation.autoattack.plan import AttackPlan, attacks_for
from advtrain.evaluation.masking.evidence import AutoAttackEvidence
from advtrain.evaluation.masking.subject import Subject, objective_of
from advtrain.losses.objectives import CrossEntropy
from advtrain.types import Images, Labels, Objective

STEPS = (1, 5, 10, 20, 50)  # PGD's iterates that are looked at
RELATIVE_STEP = 0.25  # PGD's step as a fraction of ε
RESTARTS = 5  # starts of PGD in all; the first is the one of STEPS
RESTART_STEPS = 20
TARGETED_STEPS = 20  # of APGD-T per target class; AutoAttack's has 100


@dataclass(frozen=True)
class WhiteBox:
    """Which images each attack left correctly classified; all bool, on the CPU, False where the clean image is wrong.

    Attributes:
        fgsm: after FGSM, shape (n,).
        iterates: after each number of STEPS of one run of PGD, shape (n, 5).
        starts: after RESTART_STEPS of PGD from each start, shape (n, RESTARTS).
        rescaled: after RESTART_STEPS of PGD on standardised logits, shape (n,).
        targeted: after APGD-T, shape (n,); only images that PGD left were attacked.
        robust: after all of them and AutoAttack's attacks with gradients, shape (n,).
        found: an adversarial image where there is one, otherwise the clean one, (n, c, h, w).
    """

    fgsm: Tensor
    iterates: Tensor
    starts: Tensor
    rescaled: Tensor
    targeted: Tensor
    robust: Tensor
    found: Images

    @property
    def pgd(self) -> Tensor:
        """Which images are correct at the last iterate of PGD."""
        return self.iterates[:, -1]


class _Tally:
    """Collects adversarial images as attacks find them."""

    def __init__(self, subject: Subject) -> None:
        self.robust, self.found = subject.clean.clone(), subject.x.clone()

    def take(self, images: Images, rows: Tensor, correct: Tensor) -> None:
        new = self.robust[rows] & ~correct
        self.found[rows[new]] = images[new]
        self.robust[rows[new]] = False


def white_box(subject: Subject, autoattack: AutoAttackEvidence | None, report: Callable[[str], None]) -> WhiteBox:
    """Runs FGSM, PGD on the cross-entropy and on standardised logits, and APGD-T, or takes AutoAttack's verdicts."""
    tally = _Tally(subject)
    fgsm = _fgsm(subject, tally)
    iterates = _verdicts(subject, "start 0", STEPS, CrossEntropy, tally)
    report(f"masking: {_share(iterates[:, -1])} correct under PGD-{STEPS[-1]}, {_share(fgsm)} under FGSM")
    starts = [iterates[:, STEPS.index(RESTART_STEPS)]]
    for start in range(1, RESTARTS):
        starts.append(_verdicts(subject, f"start {start}", (RESTART_STEPS,), CrossEntropy, tally)[:, 0])
    rescaled = _verdicts(subject, "start 0", (RESTART_STEPS,), StandardisedCrossEntropy, tally)[:, 0]
    report(f"masking: {_share(tally.robust)} correct after {RESTARTS} starts and standardised logits")
    if autoattack is not None and autoattack.ran("apgd"):
        targeted = iterates[:, -1] & ~autoattack.broken("apgd")
    else:
        targeted = _targeted(subject, iterates[:, -1], tally)
    robust = tally.robust & targeted
    if autoattack is not None:
        robust &= ~autoattack.broken("apgd", "fab")
    report(f"masking: {_share(robust)} correct after APGD-T")
    return WhiteBox(fgsm, iterates, torch.stack(starts, 1), rescaled, targeted, robust, tally.found)


def climb(
    objective: Objective, x: Images, start: Images, *, norm: str, eps: float, step_size: float, steps: int
) -> Iterator[Images]:
    """The iterates of PGD (Madry et al., arXiv:1706.06083) from `start`, one after each step."""
    geometry, current = norm_named(norm), start
    for _ in range(steps):
        _, gradient = ascent.value_and_gradient(objective, current)
        current = geometry.inside(x, geometry.step(current, gradient, step_size), eps)
        yield current


@dataclass(frozen=True)
class StandardisedCrossEntropy:
    """Cross-entropy of each image's logits over their own standard deviation, so that no scale of them matters."""

    y: Labels

    def __call__(self, logits: Tensor) -> Tensor:
        scale = logits.detach().std(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
        return CrossEntropy(self.y)(logits / scale)


def _verdicts(subject: Subject, name: str, steps: tuple[int, ...], measure: type, tally: _Tally) -> Tensor:
    """PGD from one uniform start: which images are correct at the iterates `steps`, shape (n, len(steps))."""
    correct = subject.clean.unsqueeze(1).repeat(1, len(steps))
    geometry = norm_named(subject.norm)
    for rows, x, y, generator in subject.batches(name, subject.clean):
        start = ascent.start(geometry, x, subject.eps, "uniform", generator)
        objective = objective_of(subject.model, measure(y))
        walk = climb(
            objective,
            x,
            start,
            norm=subject.norm,
            eps=subject.eps,
            step_size=RELATIVE_STEP * subject.eps,
            steps=steps[-1],
        )
        for step, images in enumerate(walk, 1):
            if step in steps:
                images = images.cpu()
                verdict = subject.correct(images, rows)
                correct[rows, steps.index(step)] = verdict
                tally.take(images, rows, verdict)
    return correct


def _fgsm(subject: Subject, tally: _Tally) -> Tensor:
    """FGSM (Goodfellow et al., arXiv:1412.6572): which images are correct after it, shape (n,)."""
    step = PGD(norm=subject.norm, eps=subject.eps, steps=1, relative_step_size=1, init="none")

    def attack(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return step(objective_of(subject.model, CrossEntropy(y)), x)

    found, correct = subject.attack("fgsm", attack, subject.clean)
    tally.take(found, torch.arange(len(subject)), correct)
    return correct


def _targeted(subject: Subject, among: Tensor, tally: _Tally) -> Tensor:
    names = attacks_for(["apgd-t"], subject.num_classes) or ["apgd-ce"]
    targets = min(9, subject.num_classes - 1) if names == ["apgd-t"] else 0
    plan = AttackPlan(names[0], subject.norm, subject.eps, iterations=TARGETED_STEPS, target_classes=targets)
    found, correct = subject.attack("apgd-t", planned(subject, plan), among)
    tally.take(found, torch.arange(len(subject)), correct | ~among)
    return among & correct


def planned(subject: Subject, plan: AttackPlan) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """One attack of AutoAttack on one batch: the one place that says by which code."""
    return lambda x, y, generator: perturb(subject.model, x, y, plan, subject.seed).images


def _share(correct: Tensor) -> str:
    return f"{int(correct.sum())}/{len(correct)}"
