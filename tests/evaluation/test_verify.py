"""No verdict without its image."""

import pytest
import torch
from torch import nn

from advtrain.evaluation import EvaluationError
from advtrain.evaluation.verify import judge


class Brightness(nn.Module):
    """Class 1 where the image is brighter than 1/2, by that much."""

    def forward(self, x):
        brightness = x.flatten(1).mean(1)
        return torch.stack([0.5 - brightness, brightness - 0.5], 1)


X = torch.tensor([0.4, 0.45, 0.6]).view(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
Y = torch.tensor([0, 0, 1])
BROKEN = X + torch.tensor([0.0, 0.1, 0.0]).view(3, 1, 1, 1)  # the second image turns into class 1


def check(x_adv=BROKEN, claimed=(True, False, True), norm="linf", eps=0.1, model=None):
    claim = torch.tensor(claimed)
    return judge(model or Brightness(), X, x_adv, Y, claim, norm=norm, eps=eps, batch_size=2, device="cpu")


def test_backed_verdicts():
    verdicts = check()
    assert verdicts.robust.tolist() == [True, False, True]
    assert (verdicts.ties, verdicts.unstable, verdicts.near) == (0, 0, 0)
    # The margin of class 0 is 1 - 2 · brightness.
    assert verdicts.margins.tolist() == pytest.approx([0.2, -0.1, 0.2], abs=1e-6)


@pytest.mark.parametrize("claimed", [(True, True, True), (False, False, True)])
def test_a_contradicted_verdict_is_an_error(claimed):
    with pytest.raises(EvaluationError, match="expected the attack's verdicts"):
        check(claimed=claimed)


def test_outside_the_ball_is_an_error():
    with pytest.raises(EvaluationError, match=r"within 0\.0999"):
        check(eps=0.0999)
    with pytest.raises(EvaluationError, match=r"\(l2\), got 0.4"):  # 16 pixels by 0.1 each
        check(norm="l2", eps=0.39)
    check(norm="l2", eps=0.4)


@pytest.mark.parametrize("shift", [0.5, -0.5, float("nan")])
def test_outside_the_box_is_an_error(shift):
    with pytest.raises(EvaluationError, match=r"pixels in \[0, 1\]"):
        check(BROKEN + shift, eps=1)


def test_a_tie_is_settled_by_the_image_and_counted():
    x_adv = BROKEN.clone()
    x_adv[1] = 0.5
    x_adv[1, 0, 0, 0] += 2e-7
    verdicts = check(x_adv, model=nn.Sequential(Brightness(), Offset()))
    assert verdicts.robust.tolist() == [True, True, True]
    assert (verdicts.ties, verdicts.near) == (1, 1)


class Offset(nn.Module):
    def forward(self, logits):
        return logits + 10


def test_infinite_logits_are_an_error():
    class Overflow(nn.Module):
        def forward(self, x):
            return Brightness()(x) * 1e38 * 1e38

    with pytest.raises(EvaluationError, match="finite logits"):
        check(model=Overflow())


def test_a_randomised_model_keeps_the_attacks_verdicts_and_the_differences_are_counted():
    class Noisy(nn.Module):
        def forward(self, logits):
            return logits + torch.tensor([0.0, 4.0]) * torch.randint(0, 2, (1,)) + 0.1 * torch.randn_like(logits)

    model = nn.Sequential(Brightness(), Noisy())
    claimed = (False, False, False)
    torch.manual_seed(0)
    verdicts = check(claimed=claimed, model=model)
    assert verdicts.robust.tolist() == list(claimed)
    assert verdicts.unstable > 0 and verdicts.ties == 0
