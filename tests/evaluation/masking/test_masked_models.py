"""Honest models pass every check; masked ones are caught, each by the checks that are made for it."""

import pytest
import torch.nn.functional as F

from advtrain.attacks import PGD
from advtrain.data import Digits
from advtrain.evaluation import MaskingSettings
from advtrain.evaluation.masking import masking_report, train_surrogate
from tests.evaluation.masking import models

# What each mask does, and by which checks it must be caught. Others may fail, too.
#
# mask                 what a user would quote        the truth                      caught by
# temperature          PGD: 97 %, its gradient is 0   that of the model without it   zero_gradients, pgd_gap,
#                                                                                    logit_scale, larger_eps
# quantised input      any gradient attack: 90 %      Square breaks two thirds       zero_gradients, black_box,
#                                                                                    larger_eps
# shattered gradients  PGD: 97 %, its steps are noise about the standard model's     pgd_gap, black_box, larger_eps
# noise                PGD: by the draw               every image broken sometimes   flags, random_starts
# overfitted to FGSM   FGSM: 58 %                     PGD: 1 %                       single_step
MASKED = {
    "temperature": (
        lambda: models.hot(models.robust()),
        models.EPS,
        {"zero_gradients", "pgd_gap", "logit_scale", "larger_eps"},
    ),
    "quantised": (
        lambda: models.quantised(models.standard()),
        models.EPS,
        {"zero_gradients", "black_box", "larger_eps"},
    ),
    "shattered": (lambda: models.shattered(models.standard()), models.EPS, {"pgd_gap", "black_box", "larger_eps"}),
    "noisy": (lambda: models.noisy(models.standard()), models.EPS, {"flags", "random_starts"}),
    "fgsm_overfitted": (models.fgsm_overfitted, models.FGSM_EPS, {"single_step"}),
}
NAMES = [
    "flags",
    "zero_gradients",
    "pgd_gap",
    "more_steps",
    "single_step",
    "larger_eps",
    "black_box",
    "transfer",
    "precision",
    "random_starts",
    "logit_scale",
]


@pytest.fixture(scope="module")
def surrogate():
    return train_surrogate(Digits().split("train"), 10, steps=100)


def checked(model, surrogate, *, norm="linf", eps=models.EPS):
    _, _, x, y = models.digits()
    return masking_report(model, x, y, norm=norm, eps=eps, settings=MaskingSettings(), surrogate=surrogate)


def passing(report):
    return [check.name for check in report.checks if check.passed]


@pytest.mark.parametrize(("norm", "eps"), [("linf", models.EPS), ("l2", 0.8), ("l1", 2.0)])
def test_robust_model_passes_every_check(surrogate, norm, eps):
    report = checked(models.robust(), surrogate, norm=norm, eps=eps)
    assert passing(report) == NAMES, report.lines()
    assert report.verdict == "believable"


@pytest.mark.parametrize("eps", [models.EPS, models.FGSM_EPS])
def test_standard_model_masks_nothing(surrogate, eps):
    report = checked(models.standard(), surrogate, eps=eps)
    assert passing(report) == NAMES, report.lines()
    if eps == models.FGSM_EPS:  # its robust accuracy there is none, and that is to be believed
        gap = next(check for check in report.checks if check.name == "pgd_gap")
        assert "APGD-T 0 of 128" in gap.reason


@pytest.mark.parametrize("name", MASKED)
def test_masked_model_is_caught(surrogate, name):
    make, eps, expected = MASKED[name]
    report = checked(make(), surrogate, eps=eps)
    assert report.verdict == "doubtful"
    assert expected <= set(report.failed), report.lines()


def test_overfitted_to_fgsm_is_what_it_says():
    """The model that single_step must catch: FGSM leaves about half of the images or more, PGD next to none."""
    _, _, x, y = models.digits()
    model, eps = models.fgsm_overfitted(), models.FGSM_EPS

    def left(steps, **settings):
        attack = PGD(eps=eps, steps=steps, **settings)
        x_adv = attack(lambda images: F.cross_entropy(model(images), y, reduction="none"), x)
        return int((model(x_adv).argmax(1) == y).sum())

    assert left(1, relative_step_size=1, init="none") > 0.45 * models.IMAGES
    assert left(50) < 0.05 * models.IMAGES
