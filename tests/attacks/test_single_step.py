"""FGSM, FGSM-RS and N-FGSM against their papers' formulas, pixel by pixel."""

import pytest
import torch
from torch import Tensor

from advtrain.attacks import NFGSM
from advtrain.attacks.norms import norm_named
from advtrain.composition import compose
from advtrain.config import build
from advtrain.types import Attack

EPS = 0.1


def bent(x: Tensor) -> Tensor:
    """An objective whose gradient changes sign over the ball."""
    return torch.cos(12 * x).flatten(1).sum(1)


def brightness(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def sign_of_slope(value: float) -> int:
    """Of d/dv cos(12 v) = -12 sin(12 v)."""
    slope = -torch.sin(torch.tensor(12 * value, dtype=torch.float64)).item()
    return (slope > 0) - (slope < 0)


def clip(value: float, low: float = 0.0, high: float = 1.0) -> float:
    return min(max(value, low), high)


def configured(name: str) -> Attack:
    return build(compose("train", [f"attack={name}", "data=digits", "model=small_cnn", f"attack.eps={EPS}"])["attack"])


def images() -> Tensor:
    return torch.rand(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def uniform(x: Tensor, radius: float) -> Tensor:
    return radius * (2 * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5)) - 1)


def fgsm(v: float, noise: float) -> float:
    """Goodfellow et al.: v + ε sign(slope at v)."""
    return clip(v + EPS * sign_of_slope(v))


def fgsm_rs(v: float, noise: float) -> float:
    """Wong et al.: δ ~ U(-ε, ε), δ + 1.25 ε sign(slope at v + δ), back into the ball, then into [0, 1]."""
    start = clip(v + EPS * noise)
    return clip(clip(start + 1.25 * EPS * sign_of_slope(start), v - EPS, v + EPS))


def n_fgsm(v: float, noise: float) -> float:
    """de Jorge et al.: η ~ U(-2ε, 2ε), v + η + ε sign(slope at v + η), only into [0, 1]."""
    start = clip(v + 2 * EPS * noise)
    return clip(start + EPS * sign_of_slope(start))


@pytest.mark.parametrize("formula", (fgsm, fgsm_rs, n_fgsm))
def test_the_papers_formulas(formula) -> None:
    x = images()
    noise = uniform(x, 1.0)
    pixels = zip(x.flatten().tolist(), noise.flatten().tolist(), strict=True)
    expected = torch.tensor([formula(value, draw) for value, draw in pixels], dtype=x.dtype).view_as(x)
    found = configured(formula.__name__)(bent, x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_n_fgsm_leaves_the_eps_ball_and_says_how_far() -> None:
    x = torch.full((200, 1, 3, 3), 0.5, dtype=torch.float64)
    attack = NFGSM(eps=EPS, noise=2.0)
    far = norm_named("linf").length(attack(brightness, x, generator=torch.Generator().manual_seed(1)) - x).max()
    assert attack.radius == pytest.approx(3 * EPS)
    assert 2.5 * EPS < far <= attack.radius + 1e-12
    assert f"≤ {3 * EPS:.5g}" in attack.describe() and "unprojected" in attack.describe()


@pytest.mark.parametrize(
    ("name", "single"),
    (
        ("fgsm", True),
        ("fgsm_rs", True),
        ("fgsm_rs_ramp", True),
        ("n_fgsm", True),
        ("free", True),
        ("pgd", False),
        ("pgd_ramp", False),
        ("apgd", False),
        ("ikl_2345", False),
    ),
)
def test_attacks_know_whether_one_gradient_decides(name: str, single: bool) -> None:
    assert configured(name).single_step is single


def test_one_phase_of_one_step_is_enough_to_be_prone() -> None:
    words = ["attack=ikl_2345", "data=cifar10", "attack.steps=[2,1,4,5]"]
    assert build(compose("train", words)["attack"]).single_step
    assert build(compose("train", ["attack=pgd", "data=cifar10", "attack.steps=1"])["attack"]).single_step
