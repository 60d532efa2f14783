"""ε curves against linear models, whose robust accuracy at every radius is known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks.norms import norm_named
from advtrain.evaluation import CurveSettings
from advtrain.evaluation.climbing import TargetMargin, sparse_ascent
from advtrain.evaluation.curve import Curve, Sweep, curve_result, radii
from advtrain.types import SettingError

NORMS = ("linf", "l2", "l1")
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
CLEAR = 0.02  # logits; nearer to the boundary an attack of a few steps may end on either side


def worst_margins(problem, eps: float) -> Tensor:
    """min over j≠y of the margin less eps times the dual norm of w_y - w_j: exact while no pixel reaches 0 or 1."""
    weight, x, y = problem.model.weight.detach(), problem.split.images, problem.split.labels
    logits = problem.model(x).detach()
    margin = logits.gather(1, y[:, None]) - logits
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[problem.norm]
    length = (weight[y].unsqueeze(1) - weight).norm(p=dual, dim=2)
    return (margin - eps * length).masked_fill(nn.functional.one_hot(y, len(weight)).bool(), torch.inf).amin(1)


def curve_of(problem, grid, **settings) -> Curve:
    chosen = CurveSettings(eps=[str(eps) for eps in grid], **settings)
    return curve_result(
        problem.model, problem.split.images, problem.split.labels, norm=problem.norm, eps=problem.eps, settings=chosen
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_models_curve_is_the_truth_at_every_radius(problem, norm: str) -> None:
    toy = problem(5, norm)
    grid = [factor * toy.eps for factor in FACTORS]
    curve = curve_of(toy, grid, batch_size=25)
    assert curve.clean == int(toy.clean.sum())
    for eps, correct in zip(curve.eps, curve.correct, strict=True):
        worst = worst_margins(toy, eps)
        assert (worst > 0).sum() <= correct <= (worst > -CLEAR).sum(), (norm, eps, correct)
    assert 0 < curve.correct[-1] < curve.correct[0], "the grid must be where something happens"
    assert curve.monotone


def test_the_warm_pass_is_never_weaker_than_a_fresh_attack_image_by_image(problem) -> None:
    toy = problem(4, "l2")
    grid = [factor * toy.eps for factor in FACTORS]
    x, y = toy.split.images, toy.split.labels
    warm = Sweep(toy.model, x, y, "l2", "cpu", seed=0, batch=0)
    for eps in grid:
        cold = Sweep(toy.model, x, y, "l2", "cpu", seed=0, batch=0)
        assert not (warm.advance(eps) & ~cold.advance(eps)).any()


def test_an_image_broken_at_a_radius_stays_broken_with_its_image(problem) -> None:
    toy = problem(5, "linf")
    x, y = toy.split.images, toy.split.labels
    sweep = Sweep(toy.model, x, y, "linf", "cpu", seed=0, batch=0)
    broken = torch.zeros(len(y), dtype=torch.bool)
    images = x
    for eps in (0.5 * toy.eps, toy.eps, 2 * toy.eps):
        robust = sweep.advance(eps)
        assert robust[broken].logical_not().all() and torch.equal(sweep.images[broken], images[broken])
        broken, images = ~robust, sweep.images
        distance = norm_named("linf").length(images.double() - x.double())
        assert distance.max() <= eps + 1e-6
        with torch.no_grad():
            assert torch.equal(toy.model(images).argmax(1) == y, robust)


def test_a_later_radius_starts_from_the_images_of_the_last(problem, monkeypatch) -> None:
    from advtrain.evaluation import curve as module

    toy, starts = problem(5, "linf"), []

    def halfway(model, objective, x, y, start, targets, **_) -> Tensor:
        starts.append((objective, start - x))
        return x + 0.5 * (start - x)

    monkeypatch.setattr(module, "climbed", halfway)
    sweep = Sweep(toy.model, toy.split.images, toy.split.labels, "linf", "cpu", seed=0, batch=0)
    sweep.advance(0.001)
    kept, left = sweep.images - toy.split.images, sweep.robust
    starts.clear()
    sweep.advance(0.003)
    objective, moved = starts[0]
    assert objective == "margin"
    torch.testing.assert_close(moved, 3 * kept[left], atol=1e-6, rtol=1e-4)


def test_a_model_that_never_yields_is_found_out() -> None:
    """A constant model is 'robust' at every radius, which no classifier that looks at its input can be."""

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :3]

    x, y = torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)
    curve = curve_result(Deaf(), x, y, norm="linf", eps=0.1, settings=CurveSettings(eps=["0.1", "0.5"]))
    assert curve.correct == (6, 6) and curve.reaches_zero is False
    assert any("masked" in line for line in curve.lines())
    small = curve_result(Deaf(), x, y, norm="linf", eps=0.1, settings=CurveSettings(eps=["0.1", "0.4"]))
    assert small.reaches_zero is None


@pytest.mark.parametrize(("norm", "boundless"), [("linf", 0.5), ("l2", 0.5 * 36**0.5), ("l1", 18.0)])
def test_accuracy_reaches_zero_where_every_ball_holds_the_grey_image(problem, norm: str, boundless: float) -> None:
    toy = problem(4, norm)
    curve = curve_of(toy, [toy.eps, 1.01 * boundless])
    assert curve.boundless == pytest.approx(boundless, rel=1e-6)
    assert curve.correct[-1] == 0 and curve.reaches_zero is True


def test_two_classes_and_the_models_state(problem) -> None:
    toy = problem(2, "linf")
    toy.model.train()
    curve = curve_of(toy, [toy.eps])
    assert abs(curve.correct[0] - int(toy.robust.sum())) == 0
    assert toy.model.training and all(parameter.requires_grad for parameter in toy.model.parameters())


def test_the_record_has_an_entry_per_radius(problem) -> None:
    toy = problem(4, "l2")
    record = curve_of(toy, [2 * toy.eps, toy.eps]).record()
    assert record["eps"] == [toy.eps, 2 * toy.eps], "ascending"
    assert record["accuracy"] == [count / record["n_examples"] for count in record["correct"]]
    for accuracy, (low, high) in zip(record["accuracy"], record["interval"], strict=True):
        assert low <= accuracy <= high
    assert record["monotone"] is True and record["norm"] == "l2"
    assert {"attack", "steps", "seed", "batch_size"} <= set(record["settings"])


def test_grids() -> None:
    assert radii(CurveSettings(), "linf", 8 / 255) == pytest.approx([k / 255 for k in (2, 4, 6, 8, 10, 12, 16)])
    assert radii(CurveSettings(eps=["8/255", "2/255", "8/255"]), "linf", 0.1) == (2 / 255, 8 / 255)
    assert max(radii(CurveSettings(), "linf", 0.7)) == 1.0, "no Linf ball is larger than the box"
    with pytest.raises(SettingError, match="8/255"):
        radii(CurveSettings(eps=["8"]), "linf", 0.1)


def test_sparse_ascent_finds_the_best_corner_of_an_l1_ball() -> None:
    """Of <g, x'> over ball and box: fill up the pixels of largest slope one after the other; here three of them."""
    x = torch.full((1, 1, 4, 4), 0.2)
    slope = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    found = sparse_ascent(lambda z: (slope * z).flatten(1).sum(1), x, x, eps=2.0, steps=60)
    best = 16 * 0.8 + 15 * 0.8 + 14 * 0.4
    assert (slope * (found - x)).sum() >= 0.98 * best
    assert (found - x).abs().sum() <= 2.0 + 1e-5 and found.min() >= 0 and found.max() <= 1


def test_the_targeted_margin_is_positive_where_the_target_wins() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [4.0, 0.0, 1.0]])
    y, target = torch.tensor([0, 0]), torch.tensor([2, 1])
    assert TargetMargin(y, target)(logits).tolist() == [1.0, -4.0]
