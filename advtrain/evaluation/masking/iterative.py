"""What the gradient attacks say of each other: steps, starts, objectives."""

from collections.abc import Mapping
from typing import Any

import torch

from advtrain.evaluation.masking.check import Check
from advtrain.evaluation.masking.statistics import LEVEL, allowed, allowed_excess
from advtrain.evaluation.masking.whitebox import RESTART_STEPS, RESTARTS, STEPS, WhiteBox

GAP = 0.10
SINGLE_STEP = 1 / 3
STARTS = 0.10
MORE_STEPS = 0.02

GAP_SOURCE = (
    "Croce & Hein, arXiv:2003.01690: AutoAttack lowered published robust accuracies often by more than 10 points, "
    "which identified broken defences; passes up to 10 points and what a binomial test at 0.001 adds"
)
SCALE_SOURCE = (
    "Carlini & Wagner, arXiv:1608.04644, and Croce & Hein, arXiv:2003.01690, section 4: cross-entropy's gradient "
    "vanishes with the scale of the logits; passes up to 10 points, as pgd_gap, and what a binomial test at 0.001 adds"
)
MORE_STEPS_SOURCE = (
    "Athalye, Carlini & Wagner, arXiv:1802.00420, section 3.1: one-step attacks must not beat iterative ones; Carlini "
    "et al., arXiv:1902.06705: more iterations must not help the defender; passes up to 2 points and what McNemar's "
    "test at 0.001 over all pairs adds"
)
SINGLE_STEP_SOURCE = (
    "Wong et al., arXiv:2001.03994, and Andriushchenko & Flammarion, arXiv:2007.02617: FGSM high, PGD near zero; Madry "
    "et al., arXiv:1706.06083, figure 4: on CIFAR-10 FGSM is 8 to 29 points above PGD after PGD or standard training, "
    "91 to 95 after FGSM training; passes up to a third and what a binomial test at 0.001 adds"
)
STARTS_SOURCE = (
    "Mosbach et al., arXiv:1810.12042: where gradients are masked, more random starts break much more; Pintor et al., "
    "arXiv:2106.09947; the 10 points are ours; passes up to 10 points and what a binomial test at 0.001 adds"
)


def pgd_gap(white: WhiteBox) -> Check:
    """Images that PGD leaves and APGD-T breaks: by so much PGD's number overstates the robustness."""
    gap, n = int((white.pgd & ~white.targeted).sum()), len(white.pgd)
    reason = f"PGD-{STEPS[-1]} leaves {_of(white.pgd)}, APGD-T {_of(white.targeted)}"
    return share("pgd_gap", gap, n, GAP, reason, GAP_SOURCE)


def logit_scale(white: WhiteBox) -> Check:
    """Images that PGD on the cross-entropy leaves and the same PGD on standardised logits breaks.

    Logits times 1000 change no class, but the cross-entropy's gradient underflows to zero.
    """
    plain = white.starts[:, 0]
    gap = int((plain & ~white.rescaled).sum())
    reason = f"PGD-{RESTART_STEPS} leaves {_of(plain)}, on standardised logits {_of(white.rescaled)}"
    return share("logit_scale", gap, len(plain), GAP, reason, SCALE_SOURCE)


def single_step(white: WhiteBox) -> Check:
    """Images that FGSM leaves and PGD breaks: many in a model that was overfitted to single-step attacks."""
    gap = int((white.fgsm & ~white.pgd).sum())
    reason = f"FGSM leaves {_of(white.fgsm)}, PGD-{STEPS[-1]} {_of(white.pgd)}"
    return share("single_step", gap, len(white.pgd), SINGLE_STEP, reason, SINGLE_STEP_SOURCE)


def random_starts(white: WhiteBox) -> Check:
    """Images that some random starts of PGD break and others do not."""
    count = white.starts.sum(1)
    some = int(((count > 0) & (count < RESTARTS)).sum())
    each = ", ".join(str(int(correct.sum())) for correct in white.starts.unbind(1))
    reason = f"PGD-{RESTART_STEPS} from {RESTARTS} starts leaves {each} of {len(count)}; {some} images depend on it"
    return share("random_starts", some, len(count), STARTS, reason, STARTS_SOURCE)


def more_steps(white: WhiteBox) -> Check:
    """The accuracy under fewer steps of PGD, or under FGSM, must not be below that under more steps."""
    names = ["FGSM", *(f"PGD-{steps}" for steps in STEPS)]
    columns = [white.fgsm, *white.iterates.unbind(1)]
    pairs = [(0, len(STEPS)), *((i, j) for i in range(1, len(STEPS)) for j in range(i + 1, len(STEPS) + 1))]
    n = len(white.pgd)
    worst = None
    for fewer, more in pairs:
        # Images on which the defender gains by more steps, and loses.
        gains, losses = (int(c.sum()) for c in (columns[more] & ~columns[fewer], columns[fewer] & ~columns[more]))
        excess = gains - losses
        limit = max(int(MORE_STEPS * n), allowed_excess(gains + losses, LEVEL / len(pairs)))
        if worst is None or (excess - limit) > (worst[0] - worst[1]):
            worst = (excess, limit, names[fewer], names[more])
    assert worst is not None
    excess, limit, fewer, more = worst
    each = ", ".join(f"{name} {int(column.sum())}" for name, column in zip(names, columns, strict=True))
    reason = f"correct of {n}: {each}; most gained from {fewer} to {more}: {excess}"
    return Check("more_steps", excess <= limit, excess / n, limit / n, reason, MORE_STEPS_SOURCE)


def share(
    name: str, count: int, n: int, rate: float, reason: str, source: str, details: Mapping[str, Any] | None = None
) -> Check:
    """Passes when `count` of `n` images agree with a true share of at most `rate`."""
    limit = allowed(n, rate)
    counted = {"count": count, "rate": rate} | dict(details or {})
    return Check(name, count <= limit, count / n, limit / n, reason, source, counted)


def _of(correct: torch.Tensor) -> str:
    return f"{int(correct.sum())} of {len(correct)}"
