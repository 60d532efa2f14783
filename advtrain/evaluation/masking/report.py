"""All checks of one model."""

import time
from collections.abc import Callable

import torch
from torch import nn

from advtrain import checks
from advtrain.evaluation.autoattack.upstream import NORM_WORDS
from advtrain.evaluation.masking import blackbox, gradients, iterative, precision, radius
from advtrain.evaluation.masking.check import Check, MaskingReport
from advtrain.evaluation.masking.evidence import AutoAttackEvidence
from advtrain.evaluation.masking.flags import flags
from advtrain.evaluation.masking.subject import Subject, logits_of, own_draws
from advtrain.evaluation.masking.whitebox import white_box
from advtrain.evaluation.modes import eager, exact_float32, frozen
from advtrain.evaluation.settings import MaskingSettings
from advtrain.types import Images, Labels


def masking_report(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    norm: str,
    eps: float,
    settings: MaskingSettings,
    device: torch.device | str = "cpu",
    autoattack: AutoAttackEvidence | None = None,
    surrogate: nn.Module | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> MaskingReport:
    """Asks whether the robust accuracy of `model` can be believed.

    Costs up to about 1,100 forward passes of each image (a gradient counts for two; AutoAttack takes 10,700), less
    where attacks find early what they look for, and about 400 where AutoAttack has run. The model's modes, its
    parameters' `requires_grad` and the global random generators are as before on return; the same settings give the
    same report.

    Args:
        model: images in [0, 1] to logits, on `device`.
        x: images, shape (n, c, h, w), on the CPU; the first `settings.n_examples` are used.
        y: labels, there too.
        norm, eps: the threat model.
        settings: how many images, seed and batch size.
        device: where the model is.
        autoattack: what AutoAttack found on these images, if it ran: its verdicts replace attacks of the checks.
        surrogate: an ordinary model for the same classes, on `device`; without one, transfer is not checked.
        report: takes lines of progress.

    Raises:
        SettingError: the norm or radius is none, there are no images, or a parameter is not float32.
    """
    started = time.monotonic()
    checks.choice("threat.norm", norm, tuple(NORM_WORDS))
    checks.number("threat.eps", checks.radius("threat.eps", eps, norm), above=0)
    checks.integer("number of images", len(x), low=1)
    model, n = eager(model), min(settings.n_examples, len(x))
    if autoattack is not None:
        checks.integer("images in autoattack.broken_by", len(autoattack.broken_by), low=n)
        autoattack = autoattack.first(n)
    x, y = x[:n].contiguous(), y[:n]
    with frozen(model), exact_float32(), own_draws(settings.seed, device):
        logits = logits_of(model, x, settings.batch_size, device)
        subject = Subject(
            model=model,
            x=x,
            y=y,
            norm=norm,
            eps=eps,
            seed=settings.seed,
            batch_size=settings.batch_size,
            device=device,
            clean=logits.argmax(1) == y,
            num_classes=logits.shape[1],
        )
        made = _checks(subject, autoattack, surrogate, report)
    return MaskingReport(made, n, time.monotonic() - started)


def _checks(
    subject: Subject,
    autoattack: AutoAttackEvidence | None,
    surrogate: nn.Module | None,
    report: Callable[[str], None],
) -> list[Check]:
    made: list[Check] = []

    def add(check: Check) -> None:
        made.append(check)
        report(f"masking: {check}")

    add(flags(subject, autoattack, report))
    add(gradients.zero_gradients(subject))
    white = white_box(subject, autoattack, report)
    for check in (iterative.pgd_gap, iterative.more_steps, iterative.single_step):
        add(check(white))
    add(radius.larger_eps(subject))
    add(blackbox.black_box(subject, white, autoattack))
    add(blackbox.transfer(subject, white, surrogate))
    add(precision.precision(subject, white))
    for check in (iterative.random_starts, iterative.logit_scale):
        add(check(white))
    return made
