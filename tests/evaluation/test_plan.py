"""What a version runs, against the numbers in upstream's own objects."""

import pytest
from pyautoattack import AutoAttack
from torch import nn

from advtrain.evaluation.autoattack.plan import plans, screen_plans
from advtrain.evaluation.autoattack.upstream import NORM_WORDS

ALL = ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand", "custom"])
def test_numbers_are_upstreams(version, norm):
    attacks = ALL if version == "custom" else []
    planned, fallback = plans(version, attacks, norm=norm, eps=0.1, num_classes=10)
    theirs = AutoAttack(nn.Identity(), norm=NORM_WORDS[norm], eps=0.1, version=version, attacks=attacks or None)
    assert fallback is None
    assert [plan.name for plan in planned] == theirs.attacks_to_run
    for plan in planned:
        if plan.name == "square":
            assert (plan.iterations, plan.restarts) == (theirs.square.n_queries, theirs.square.n_restarts)
            continue
        part = {"fab": theirs.fab, "fab-t": theirs.fab, "apgd-t": theirs.apgd_targeted}.get(plan.name, theirs.apgd)
        restarts = 1 if plan.name == "fab-t" else part.n_restarts  # upstream sets it when the attack begins
        assert (plan.iterations, plan.restarts) == (part.n_iter, restarts)
        assert plan.target_classes == (part.n_target_classes if plan.name.endswith("-t") else 0)
        if plan.name.startswith("apgd"):
            assert (plan.eot, plan.large_eps) == (part.eot_iter, part.use_largereps)


def test_the_screen_is_the_first_two_attacks_of_the_standard_version():
    standard, _ = plans("standard", [], norm="l2", eps=0.5, num_classes=10)
    assert screen_plans(norm="l2", eps=0.5, num_classes=10) == standard[:2]
    assert [plan.name for plan in screen_plans(norm="l2", eps=0.5, num_classes=3)] == ["apgd-ce", "apgd-dlr"]
