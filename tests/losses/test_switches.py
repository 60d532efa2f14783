"""The two changes of IKL as switches: every cell against slow loops with the stop-gradients written out."""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.composition import compose
from advtrain.config import build
from advtrain.engine.step import TrainingStep
from advtrain.losses import DKL, GKL, KL, functional
from advtrain.runs import check_training
from advtrain.types import SettingError
from tests.losses.toy import identity, images, made

CELLS = tuple(product((False, True), repeat=2))  # (break_asymmetry, global_weights)
each_cell = pytest.mark.parametrize(("ba", "gi"), CELLS)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return torch.stack([row.exp().sum().log() - row[label] for row, label in zip(logits, y, strict=True)]).mean()


def regulariser(
    m: Tensor,
    n: Tensor,
    prior: Tensor | None,
    *,
    ba: bool,
    wmse: float = 20,
    ce: float = 4,
    gamma: float = 1,
    normaliser: str = "",
) -> Tensor:
    """wMSE and soft cross-entropy, image by image and pair by pair; `prior` has one row per image, None is GI off."""
    pair_sums, entropies, totals = [], [], []
    for i in range(len(m)):
        s_m = m[i].exp() / m[i].exp().sum()
        log_s_n = n[i] - n[i].exp().sum().log()
        q = [float(p) ** gamma for p in (s_m.detach() if prior is None else prior[i])]
        target = n[i] if ba else n[i].detach()
        pairs = torch.zeros((), dtype=torch.float64)
        for j, k in product(range(len(q)), repeat=2):
            pairs = pairs + q[j] * q[k] * ((m[i][j] - m[i][k]) - (target[j] - target[k])) ** 2 / 4
        pair_sums.append(pairs / sum(q) ** 2 if normaliser == "sample" else pairs)
        entropies.append(-(s_m.detach() * log_s_n).sum())
        totals.append(sum(q) ** 2 if normaliser == "batch" else 1)
    return wmse * sum(pair_sums) / sum(totals) + ce * sum(entropies) / len(m)


def assert_same(actual: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@each_cell
def test_every_cell_of_ikl_equals_the_loop(ba: bool, gi: bool) -> None:
    x, x_adv, y = images()
    loss = made("ikl", break_asymmetry=ba, global_weights=gi)
    prior = loss.prior.weights.double()[y] if gi else None
    expected = cross_entropy(identity(x), y) + regulariser(identity(x), identity(x_adv), prior, ba=ba)
    assert_same(loss.outer(identity, x, x_adv, y)[0], expected, (x, x_adv))


@each_cell
@pytest.mark.parametrize("normaliser", ("batch", "sample"))
@pytest.mark.parametrize("gamma", (0.0, 0.4, 1.0))
def test_every_cell_of_gkl_equals_the_loop(ba: bool, gi: bool, normaliser: str, gamma: float) -> None:
    x, x_adv, y = images()
    settings = {"gamma": gamma, "normaliser": normaliser}
    loss = made("gkl", break_asymmetry=ba, global_weights=gi, **settings)
    prior = loss.prior.weights.double()[y] if gi else None
    robust = regulariser(identity(x), identity(x_adv), prior, ba=ba, **settings)
    expected = cross_entropy(identity(x), y) + robust
    assert_same(loss.outer(identity, x, x_adv, y)[0], expected, (x, x_adv))


def test_both_off_is_kl_times_the_weight_on_both_sides() -> None:
    x, x_adv, y = images()
    switched = made("ikl", break_asymmetry=False, global_weights=False, wmse_weight=9.0, ce_weight=9.0)
    losses = switched, DKL(wmse_weight=9, ce_weight=9), KL(kl_weight=9)
    first, *others = (torch.autograd.grad(loss.outer(identity, x, x_adv, y)[0], (x, x_adv)) for loss in losses)
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-10, atol=1e-13)


@each_cell
def test_what_the_switches_change_for_the_adversarial_side(ba: bool, gi: bool) -> None:
    """With the asymmetry kept it gets the soft cross-entropy alone, which is KL's own gradient."""
    x, x_adv, y = images()
    loss = made("ikl", break_asymmetry=ba, global_weights=gi)
    (actual,) = torch.autograd.grad(loss.outer(identity, x, x_adv, y)[0], x_adv)
    (kl,) = torch.autograd.grad(functional.kl(identity(x), identity(x_adv)), x_adv)
    assert torch.allclose(actual, 4 * kl, rtol=1e-10, atol=1e-13) != ba


@each_cell
def test_gkl_at_gamma_one_is_ikl_in_every_cell(ba: bool, gi: bool) -> None:
    x, x_adv, y = images()
    switches = {"break_asymmetry": ba, "global_weights": gi}
    first = made("gkl", gamma=1.0, **switches).outer(identity, x, x_adv, y)[0]
    torch.testing.assert_close(first, made("ikl", **switches).outer(identity, x, x_adv, y)[0], rtol=1e-7, atol=0)


@each_cell
@pytest.mark.parametrize(("normaliser", "gamma"), (("batch", 0.0), ("batch", 1.0), ("batch", 0.4), ("sample", 0.4)))
def test_the_cut_into_passes_changes_nothing_or_is_refused(ba: bool, gi: bool, normaliser: str, gamma: float) -> None:
    x, x_adv, y = images()
    loss = made("gkl", break_asymmetry=ba, global_weights=gi, normaliser=normaliser, gamma=gamma)
    whole, _ = loss.outer(identity, x, x_adv, y)
    loss.start_batch(y)
    bounds = [slice(*ends) for ends in pairwise((0, 2, 6))]
    parts = [loss.outer(identity, x[rows], x_adv[rows], y[rows])[0] * len(y[rows]) / 6 for rows in bounds]
    if loss.needs_whole_batch:
        assert not gi and normaliser == "batch" and gamma == 0.4
        assert abs(sum(parts) - whole) > 1e-4
        with pytest.raises(SettingError, match=r"trainer\.accumulation: expected 1 for GKL .*loss\.normaliser=sample"):
            loss.check_accumulation(2)
        loss.check_accumulation(1)
    else:
        torch.testing.assert_close(sum(parts), whole, rtol=1e-7 if gi else 1e-12, atol=0)  # the prior is float32
        loss.check_accumulation(2)


def test_a_run_that_cannot_normalise_is_refused_before_it_starts() -> None:
    words = ["experiment=quickstart", "loss=gkl", "loss.global_weights=false", "trainer.accumulation=2"]
    with pytest.raises(SettingError, match=r"^trainer\.accumulation: expected 1 for GKL"):
        check_training(compose("train", words))
    check_training(compose("train", [*words, "loss.normaliser=sample"]))
    check_training(compose("train", words[:3]))
    loss = GKL(num_classes=10, global_weights=False)
    with pytest.raises(SettingError, match=r"^trainer\.accumulation"):
        rest: Any = dict.fromkeys(("numerics", "clip_norm", "attack_batchnorm"))
        TrainingStep(identity, loss, None, batch_size=4, accumulation=2, seed=0, **rest)  # type: ignore[arg-type]


def test_the_ablation_is_one_sweep() -> None:
    """The words of the sweep in configs/loss/ikl.yaml, cell by cell as Hydra cuts it up."""
    formulas = []
    for ba, gi in CELLS:
        words = ["loss=ikl", f"loss.break_asymmetry={str(ba).lower()}", f"loss.global_weights={str(gi).lower()}"]
        loss = build(compose("train", ["data=cifar10", *words])["loss"])
        assert (loss.break_asymmetry, loss.has_prior) == (ba, gi)
        formulas.append(loss.formula())
    assert formulas == [
        "CE(f(x), y) + 20 wMSE(f(x), sg f(x'); softmax f(x)) + 4 softCE(sg f(x), f(x'))",
        "CE(f(x), y) + 20 wMSE(f(x), sg f(x'); prior_y, τ=4) + 4 softCE(sg f(x), f(x'))",
        "CE(f(x), y) + 20 wMSE(f(x), f(x'); softmax f(x)) + 4 softCE(sg f(x), f(x'))",
        "CE(f(x), y) + 20 wMSE(f(x), f(x'); prior_y, τ=4) + 4 softCE(sg f(x), f(x'))",
    ]


def test_the_formula_of_gkl() -> None:
    batch, sample = GKL(num_classes=5), GKL(num_classes=5, normaliser="sample", global_weights=False)
    assert "wMSE(f(x), f(x'); prior_y^0.2, τ=1, normalised over the batch)" in batch.formula()
    assert "wMSE(f(x), f(x'); softmax f(x)^0.2, normalised per sample)" in sample.formula()


@pytest.mark.parametrize("name", ("ikl", "gkl"))
def test_without_global_weights_there_is_nothing_to_remember(name: str) -> None:
    loss = made(name, global_weights=False).train()
    assert not loss.has_prior and not loss.state_dict()
    x, x_adv, y = images()
    before = loss.outer(identity, x, x_adv, y)[0]
    loss.synchronise(), loss.end_epoch(), loss.forget_gathered()
    assert loss.outer(identity, x, x_adv, y)[0] == before


def test_the_ikl_attack_weighs_as_the_loss_does() -> None:
    x, x_adv, y = images()
    m = identity(x).detach()
    for gi in (False, True):
        loss = made("ikl", global_weights=gi, inner="ikl")
        weights = loss.prior.weights.double()[y] if gi else m.softmax(1)
        expected = functional.ikl(m, identity(x_adv), weights, reduction="none")
        actual = loss.inner(identity, x, y)(x_adv)
        assert_same(actual.sum(), expected.sum(), (x_adv,))
    dkl = made("dkl", inner="ikl").inner(identity, x, y)(x_adv)
    torch.testing.assert_close(
        dkl, functional.ikl(m, identity(x_adv), m.softmax(1), reduction="none"), rtol=1e-12, atol=0
    )


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("settings", "line"),
    (
        ({"break_asymmetry": "no"}, "loss.break_asymmetry: expected true or false, got 'no'"),
        ({"global_weights": 1}, "loss.global_weights: expected true or false, got 1"),
        ({"label_smoothing": 1.5}, "loss.label_smoothing: expected a number from 0 to 1, got 1.5"),
        ({"second_view_weight": -1}, "loss.second_view_weight: expected a number of at least 0, got -1"),
        ({"normaliser": "image"}, "loss.normaliser: expected one of batch, sample, got 'image'"),
    ),
)
def test_impossible_settings_are_named(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as error:
        made("gkl", **settings)
    assert str(error.value).startswith(line)
