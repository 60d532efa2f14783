"""The cost model against published counts and against passes that are counted, and what it says of the time left."""

import dataclasses

import pytest
import torch
from torch import nn

from advtrain.evaluation.autoattack.estimate import Estimate, forward_equivalents
from advtrain.evaluation.autoattack.plan import plans
from advtrain.evaluation.autoattack.stages import clock
from advtrain.evaluation.autoattack.upstream import perturb


def test_the_standard_version_costs_what_was_counted():
    """Forward equivalents per robust point, counted in upstream's code: 204, 1,829, 3,629 and 5,002."""
    planned, _ = plans("standard", [], norm="linf", eps=8 / 255, num_classes=10)
    assert [forward_equivalents(plan) for plan in planned] == [204, 1829, 3629, 5002]


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-dlr", "apgd-t", "square"])
@pytest.mark.parametrize("iterations", [5, 12])
def test_passes_of_a_robust_image(attack, iterations):
    """Images per forward pass; an input gradient, which goes with a pass that tracks gradients, counts as one more.

    The model leaves out up to two passes per start, which choose what is attacked.
    """
    planned, _ = plans("custom", [attack], norm="linf", eps=1e-6, num_classes=10)
    plan = dataclasses.replace(planned[0], iterations=iterations)
    cost = 0

    class Counts(nn.Module):
        def forward(self, x):
            nonlocal cost
            cost += len(x) * (2 if x.requires_grad else 1)
            return 5 - (x.flatten(1).mean(1, keepdim=True) - torch.arange(10) / 10).abs()

    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Counts()
    y = model(x).argmax(1)
    cost = 0
    assert torch.equal(perturb(model, x, y, plan, 0), x)
    verdict = len(x)
    starts = plan.restarts * max(plan.target_classes, 1)
    assert 0 <= (cost + verdict) / len(x) - forward_equivalents(plan) <= 2 * starts


def test_time_left_is_cost_left_at_the_measured_speed():
    planned, _ = plans("custom", ["apgd-ce", "square"], norm="linf", eps=0.1, num_classes=10)
    first, second = (forward_equivalents(plan) for plan in planned)
    estimate = Estimate(planned, 10)
    assert estimate.left(0, 100, 100) == 0  # nothing is known yet
    estimate.worked(0, 10, seconds=10 * first / 1000)  # 1000 equivalents a second
    assert estimate.left(0, 20, 25) == pytest.approx((20 * first + 25 * second) / 1000)
    assert estimate.left(1, 5, 25) == pytest.approx(5 * second / 1000)
    four = Estimate(planned, 10, processes=4)
    four.worked(0, 10, seconds=10 * first / 1000)
    assert four.left(1, 5, 25) == pytest.approx(5 * second / 4000)


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3599, 36_061)] == ["0:00:00", "0:01:00", "0:59:59", "10:01:01"]
