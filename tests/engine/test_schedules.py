"""Learning-rate schedules against their formulas and PyTorch's own."""

import math

import pytest
import torch

from advtrain.engine import Constant, Cosine, OneCycle, Step
from advtrain.types import SettingError


def test_the_published_cosine() -> None:
    """lr_e = ½ (1 + cos(π e / (E + 1))), e = 1 … E, held within an epoch (losses of arXiv:2305.13948)."""
    schedule = Cosine(per_epoch=True)
    for epoch in range(1, 201):
        value = 0.5 * (1 + math.cos(math.pi * epoch / 201))
        for inside in (0.0, 0.4, 0.999):
            assert schedule.factor(epoch - 1 + inside, 200) == pytest.approx(value, rel=1e-12)


def test_cosine_equals_pytorchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert Cosine(final_factor=0.1).factor(step / 10, 5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_one_cycle_rises_and_falls_linearly() -> None:
    schedule = OneCycle(peak_at=0.25, start_factor=0.1, final_factor=0.02)
    assert [schedule.factor(p, 8) for p in (0, 1, 2, 5, 8)] == pytest.approx([0.1, 0.55, 1.0, 0.51, 0.02])


def test_steps() -> None:
    schedule = Step(milestones=[0.5, 0.75], gamma=0.1)
    assert [schedule.factor(p, 100) for p in (0, 49.9, 50, 74.9, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    with pytest.raises(SettingError, match="rising"):
        Step(milestones=[0.75, 0.5])


def test_warm_up_is_linear() -> None:
    schedule = Constant(warmup_epochs=2)
    assert [schedule.factor(p, 10) for p in (0, 0.5, 1, 2, 9)] == pytest.approx([0, 0.25, 0.5, 1, 1])
