"""The loss classes: the outer loss against formulas written out, the inner objectives, the configs."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain import losses
from advtrain.composition import choices, compose
from advtrain.config import build
from advtrain.losses import GKL, IKL, PGDAT, TRADES, Loss
from advtrain.types import SettingError
from tests.losses.toy import of_kind

LOSSES = choices("loss")


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 10)).double()


def batch(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(n, 3, 2, 2, dtype=torch.float64, generator=generator)
    noise = torch.rand(n, 3, 2, 2, dtype=torch.float64, generator=generator)
    return x, (x + 0.2 * noise).clamp(0, 1), torch.tensor([0, 1, 2, 9, 1, 0][:n])


def configured(name: str) -> Loss:
    return build(compose("train", [f"loss={name}", "data=cifar10"])["loss"])


def expected(name: str, m: Tensor, n: Tensor, y: Tensor, prior: Tensor) -> Tensor:
    """The whole loss of each recipe, image by image, with pairs written out."""
    total = torch.zeros((), dtype=torch.float64)
    weights = [float(row.pow(0.2).sum() ** 2) for row in prior]
    for i in range(len(y)):
        s_m, log_n = m[i].softmax(0), n[i].log_softmax(0)
        ce = -m[i].log_softmax(0)[y[i]]
        kl = (s_m * (s_m.log() - log_n)).sum()
        soft = -(s_m.detach() * log_n).sum()

        def pairs(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
            d = a - b
            return 0.25 * (p[:, None] * p[None, :] * (d[:, None] - d[None, :]) ** 2).sum()

        if name == "standard":
            total = total + ce
        elif name == "pgd_at":
            total = total - log_n[y[i]]
        elif name in ("trades", "kl"):
            total = total + ce + (6 if name == "trades" else 9) * kl
        elif name == "mart":
            rest = 1 - log_n.exp()[torch.arange(10) != y[i]].max()
            total = total - log_n[y[i]] - rest.log() + 5 * kl * (1 - s_m[y[i]])
        elif name == "dkl":
            total = total + ce + 20 * pairs(s_m.detach(), m[i], n[i].detach()) + 4 * soft
        elif name == "ikl":
            total = total + ce + 20 * pairs(prior[i], m[i], n[i]) + 4 * soft
        elif name == "gkl":
            normalised = 20 * pairs(prior[i].pow(0.2), m[i], n[i]) * len(y) / sum(weights)
            total = total + ce + normalised + 4 * soft
        else:
            raise KeyError(name)
    return total / len(y)


@pytest.mark.parametrize("name", of_kind(lambda loss: not loss.needs_teacher))
def test_outer_equals_the_formula(name: str) -> None:
    model, (x, x_adv, y) = network(), batch()
    loss = configured(name)
    prior = torch.full((6, 10), 0.1, dtype=torch.float64)
    if loss.has_prior:
        rows = torch.rand(10, 10, generator=torch.Generator().manual_seed(8)).softmax(1)
        loss.prior.weights.copy_(rows)
        prior = rows.double()[y]
    total, parts = loss.outer(model, x, x_adv, y)
    reference = expected(name, model(x), model(x_adv), y, prior)
    torch.testing.assert_close(total, reference, rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(total, list(model.parameters()))
    torch.testing.assert_close(
        gradients, torch.autograd.grad(reference, list(model.parameters())), rtol=1e-8, atol=1e-11
    )
    assert parts["loss"] == total.detach() and not any(value.requires_grad for value in parts.values())
    for key, images in (("clean_accuracy", x), ("robust_accuracy", x_adv)):
        if key in parts:
            assert parts[key] == (model(images).argmax(1) == y).double().mean().float()


@pytest.mark.parametrize("inner", ("ce", "kl", "margin", "ikl"))
def test_inner_objectives(inner: str) -> None:
    model, (x, x_adv, y) = network(), batch()
    loss = IKL(num_classes=10, inner=inner)
    values = loss.inner(model, x, y)(x_adv)
    m, n = model(x).detach(), model(x_adv)
    s_m = m.softmax(1)
    d = m - n
    pairs = 0.25 * 0.01 * ((d[:, :, None] - d[:, None, :]) ** 2).sum((1, 2))
    soft = -(s_m * n.log_softmax(1)).sum(1)
    others = n.clone()
    others[torch.arange(6), y] = -torch.inf
    reference = {
        "ce": -n.log_softmax(1)[torch.arange(6), y],
        "kl": soft + (s_m * m.log_softmax(1)).sum(1),
        "margin": others.amax(1) - n[torch.arange(6), y],
        "ikl": pairs + soft,
    }[inner]
    # the prior is float32: its 0.1 is 1.5e-9 away from ours
    torch.testing.assert_close(values, reference, rtol=1e-7, atol=1e-9)


def test_the_prior_takes_natural_logits_in_training_only() -> None:
    model, (x, x_adv, y) = network(), batch()
    loss = IKL(num_classes=10)
    loss.eval().outer(model, x, x_adv, y)
    assert not loss.prior.counts.any()
    loss.train().outer(model, x, x_adv, y)
    means = (model(x) / 4).softmax(1)
    assert loss.prior.counts.tolist() == [2, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    torch.testing.assert_close(loss.prior.sums[1], (means[1] + means[4]).detach())
    assert torch.equal(loss.prior.weights, torch.full((10, 10), 0.1))  # one epoch behind
    loss.end_epoch()
    torch.testing.assert_close(loss.prior.weights[1].double(), (means[1] + means[4]).detach() / 2, rtol=1e-6, atol=1e-8)
    assert torch.equal(loss.prior.weights[5], torch.full((10,), 0.1))  # a class that was absent


def test_gkl_normalises_over_the_announced_batch() -> None:
    model, (x, x_adv, y) = network(), batch()
    loss = GKL(num_classes=10, gamma=0.5)
    loss.prior.weights.copy_(torch.rand(10, 10).softmax(1))
    loss.prior.weights[0] *= 3
    whole, _ = loss.outer(model, x, x_adv, y)
    loss.start_batch(y)
    halves = [loss.outer(model, x[s], x_adv[s], y[s])[0] / 2 for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves), whole, rtol=1e-9, atol=0)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: TRADES(inner="ikl"), "keeps no class prior"),
        (lambda: PGDAT(inner="cw"), "loss.inner: expected one of ce, kl, margin, dlr, ikl, got 'cw'"),
        (lambda: TRADES(beta=-1), "loss.beta: expected a number of at least 0, got -1"),
        (lambda: IKL(num_classes=1), "loss.num_classes: expected an integer of at least 2, got 1"),
        (lambda: IKL(num_classes=10, temperature=0), "loss.temperature: expected a number above 0, got 0"),
        (lambda: GKL(num_classes=10, gamma="x"), "loss.gamma"),
    ),
)
def test_bad_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize("name", LOSSES)
def test_one_word_four_places(name: str) -> None:
    """CLI word = YAML stem = module; the class is exported; the formula is one line for people.

    A second YAML of a class, for what was published beside the paper, has a word more.
    """
    loss = configured(name)
    assert type(loss).__module__ == f"advtrain.losses.{name.removesuffix('_code')}"
    assert getattr(losses, type(loss).__name__) is type(loss)
    assert "\n" not in loss.formula() and ("CE" in loss.formula() or "KL(" in loss.formula())
    json.dumps(loss.formula())
