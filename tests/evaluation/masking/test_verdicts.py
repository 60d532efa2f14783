"""Checks that only compare verdicts, on verdicts made by hand: each passes at its threshold and fails one image on."""

import pytest
import torch

from advtrain.evaluation.masking import iterative
from advtrain.evaluation.masking.statistics import LEVEL, allowed, mcnemar
from advtrain.evaluation.masking.whitebox import RESTARTS, STEPS, WhiteBox

N = 128


def first(count):
    """The first `count` images are correct."""
    return torch.arange(N) < count


def verdicts(**changes):
    """Every attack leaves the first 60 images."""
    same = {
        "fgsm": first(60),
        "iterates": first(60).unsqueeze(1).repeat(1, len(STEPS)),
        "starts": first(60).unsqueeze(1).repeat(1, RESTARTS),
        "rescaled": first(60),
        "targeted": first(60),
        "robust": first(60),
        "found": torch.zeros(N, 1, 1, 1),
    }
    return WhiteBox(**(same | changes))


def some_starts(count):
    starts = first(60).unsqueeze(1).repeat(1, RESTARTS)
    starts[:count, 2] = False
    return starts


ONE_MORE = [
    ("pgd_gap", iterative.GAP, lambda k: verdicts(targeted=first(60 - k))),
    ("logit_scale", iterative.GAP, lambda k: verdicts(rescaled=first(60 - k))),
    ("single_step", iterative.SINGLE_STEP, lambda k: verdicts(fgsm=first(60 + k))),
    ("random_starts", iterative.STARTS, lambda k: verdicts(starts=some_starts(k))),
]


@pytest.mark.parametrize(("name", "rate", "make"), ONE_MORE, ids=[case[0] for case in ONE_MORE])
def test_passes_up_to_the_binomial_threshold(name, rate, make):
    limit = allowed(N, rate)
    check = getattr(iterative, name)
    for count, passed in [(0, True), (limit, True), (limit + 1, False)]:
        result = check(make(count))
        assert (result.name, result.passed) == (name, passed)
        assert result.value == count / N
        assert result.threshold == limit / N


def test_attacks_the_other_way_round_are_no_gap():
    """Weaker APGD-T, FGSM or standardised logits say nothing against the model."""
    weaker = verdicts(targeted=first(60), rescaled=first(120), fgsm=first(10))
    for check in (iterative.pgd_gap, iterative.logit_scale, iterative.single_step):
        assert check(weaker).value == 0


def test_falling_accuracy_passes_more_steps():
    falling = torch.stack([first(100 - 10 * i) for i in range(len(STEPS))], 1)
    check = iterative.more_steps(verdicts(fgsm=first(61), iterates=falling))
    assert check.passed
    assert "FGSM 61, PGD-1 100, PGD-5 90, PGD-10 80, PGD-20 70, PGD-50 60" in check.reason


def test_rising_accuracy_fails_more_steps_beyond_mcnemar():
    pairs = 11
    least = next(k for k in range(N) if mcnemar(k, 0) <= LEVEL / pairs)  # 14 images, all one way
    for gained, passed in [(least - 1, True), (least, False)]:
        rising = first(60).unsqueeze(1).repeat(1, len(STEPS))
        rising[60 : 60 + gained, 3:] = True
        check = iterative.more_steps(verdicts(iterates=rising, fgsm=first(120)))
        assert check.passed is passed
        assert check.value == gained / N
        assert "from PGD-1 to PGD-20" in check.reason


def test_chance_in_both_directions_passes_more_steps():
    mixed = first(60).unsqueeze(1).repeat(1, len(STEPS))
    mixed[60:80, 4] = True  # 20 gained, 15 lost
    mixed[:15, 4] = False
    assert iterative.more_steps(verdicts(iterates=mixed, fgsm=first(120))).passed


def test_fgsm_must_not_beat_pgd():
    check = iterative.more_steps(verdicts(fgsm=first(30)))
    assert not check.passed
    assert "from FGSM to PGD-50: 30" in check.reason
