"""Each check that runs an attack of its own, on models whose truth is known: it passes one and fails another."""

import pytest
import torch
from torch import nn

from advtrain.evaluation.masking import AutoAttackEvidence, blackbox
from advtrain.evaluation.masking.flags import flags
from advtrain.evaluation.masking.gradients import zero_gradients
from advtrain.evaluation.masking.precision import precision
from advtrain.evaluation.masking.radius import grey_radius, larger_eps
from advtrain.evaluation.masking.subject import Subject, logits_of
from advtrain.evaluation.masking.whitebox import white_box
from tests.evaluation.conftest import linear_problem
from tests.evaluation.masking.models import Wrapped, noisy


def silent(line):
    pass


def examined(model, problem, labels=None):
    y = problem.split.labels if labels is None else labels
    model = model.eval().requires_grad_(False)
    logits = logits_of(model, problem.split.images, 25, "cpu")
    return Subject(
        model=model,
        x=problem.split.images,
        y=y,
        norm=problem.norm,
        eps=problem.eps,
        seed=0,
        batch_size=25,
        device="cpu",
        clean=logits.argmax(1) == y,
        num_classes=logits.shape[1],
    )


@pytest.fixture
def linear():
    problem = linear_problem(5)
    return problem, examined(problem.model, problem)


def rounding(problem):
    """The linear model behind fine grey levels: nearly its function, without its gradient."""
    return examined(Wrapped(problem.model, before=lambda x: (x * 500).round() / 500), problem)


class Uphill(torch.autograd.Function):
    """The identity, whose gradient points the wrong way."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_zero_gradients(linear):
    problem, subject = linear
    honest = zero_gradients(subject)
    assert honest.passed
    assert (honest.value, honest.details["pixels"]) == (0, 0)
    masked = zero_gradients(rounding(problem))
    correct = int(rounding(problem).clean.sum())
    assert masked.passed is False
    assert masked.details["ce"] == masked.details["dlr"] == correct


@pytest.mark.parametrize(("columns", "passed"), [(3, True), (4, False)])  # of six: half of the pixels, two thirds
def test_pixels_without_gradient(linear, columns, passed):
    problem, _ = linear

    def stop(x):
        return torch.cat([x[..., :columns].detach(), x[..., columns:]], 3)

    check = zero_gradients(examined(Wrapped(problem.model, before=stop), problem))
    assert check.details["pixels"] == columns / 6
    assert check.passed is passed
    assert check.value == 0


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.5), ("l2", 3.0), ("l1", 18.0)])
def test_larger_eps(norm, radius):
    problem = linear_problem(5, norm)
    assert grey_radius(norm, 36) == radius
    assert ((problem.split.images - 0.5).abs() <= 0.5).all()
    honest = larger_eps(examined(problem.model, problem))
    assert (honest.passed, honest.value) == (True, 0)
    masked = examined(Wrapped(problem.model, before=Uphill.apply), problem)
    check = larger_eps(masked)
    assert check.passed is False
    assert check.value == masked.clean.float().mean()


def test_black_box(linear):
    _, subject = linear
    assert blackbox.black_box(subject, white_box(subject, None, silent), None).passed
    masked = rounding(linear_problem(5, n=150))
    check = blackbox.black_box(masked, white_box(masked, None, silent), None)
    assert check.passed is False
    assert "Square with 300 queries" in check.reason


def test_black_box_takes_the_verdicts_of_autoattack(linear):
    """Square of AutoAttack counts in place of another Square, and not for images that white-box attacks break."""
    _, subject = linear
    white = white_box(subject, None, silent)
    broken_by = torch.full((len(subject),), -1)
    broken_by[white.robust.nonzero().flatten()[:12]] = 1
    broken_by[(subject.clean & ~white.robust).nonzero().flatten()] = 1
    autoattack = AutoAttackEvidence([], broken_by, ["apgd-ce", "square"])
    check = blackbox.black_box(subject, white, autoattack)
    assert (check.passed, check.value) == (False, 12 / len(subject))
    assert "AutoAttack's Square" in check.reason
    without = AutoAttackEvidence([], broken_by, ["apgd-ce"])
    assert blackbox.black_box(subject, white, without).passed  # Square runs, and finds nothing


def test_transfer(linear):
    problem, subject = linear
    white = white_box(subject, None, silent)
    assert blackbox.transfer(subject, white, None).passed is None
    assert blackbox.transfer(subject, white, problem.model).passed
    masked = rounding(problem)
    check = blackbox.transfer(masked, white_box(masked, None, silent), problem.model)
    assert check.passed is False


def test_precision(linear):
    """A constant of 1e4 in every logit changes nothing but the digits that are left for their differences."""
    problem, subject = linear
    honest = precision(subject, white_box(subject, None, silent))
    assert honest.passed

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(36, 5)
            self.last.weight.data, self.last.bias.data = problem.model.weight.data, problem.model.bias.data + 1e4

        def forward(self, x):
            return self.last(x.flatten(1))

    masked = examined(Offset(), problem)
    check = precision(masked, white_box(masked, None, silent))
    assert check.passed is False


def test_precision_rounds_the_images(linear):
    """A model that reads a digit of the pixels far below half a grey level of 255."""
    problem, _ = linear
    model = Wrapped(problem.model, before=lambda x: x + 0.3 * ((4096 * x).floor() % 2))
    masked = examined(model, problem, labels=model(problem.split.images).argmax(1))
    assert precision(masked, white_box(masked, None, silent)).passed is False


def test_precision_is_not_checked_where_it_cannot_be(linear):
    problem, subject = linear

    class Picky(nn.Module):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("float32 only")
            return problem.model(x)

    check = precision(examined(Picky(), problem), white_box(subject, None, silent))
    assert check.passed is None
    assert "float32 only" in check.reason
    wrong = examined(problem.model, problem, labels=(problem.model(problem.split.images).argmax(1) + 1) % 5)
    assert precision(wrong, white_box(wrong, None, silent)).passed is None


class Optimises(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (step,) = torch.autograd.grad(leaf.square().sum(), leaf)
        return x - 0.01 * step.detach()


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        (None, lambda model: model),
        ("randomized", noisy),
        ("probabilities", lambda model: nn.Sequential(model, nn.Softmax(1))),
        ("dynamic", lambda model: nn.Sequential(Optimises(), model)),
    ],
)
def test_flags(linear, name, mask):
    problem, _ = linear
    check = flags(examined(mask(problem.model), problem), None, silent)
    assert check.details["raised"] == ([] if name is None else [name])
    assert check.passed is (name is None)


@pytest.mark.parametrize(("alone", "n_examples", "passed"), [(3, 128, True), (4, 128, False), (21, 10_000, False)])
def test_flags_of_autoattack(linear, alone, n_examples, passed):
    """Square's flag means more than 0.2 points; of few images at least four. The other flags count as they are."""
    _, subject = linear
    nothing = torch.full((len(subject),), -1)
    square = {"name": "square", "message": "Square Attack has decreased the robust accuracy"}
    autoattack = AutoAttackEvidence([square], nothing, ["apgd-ce", "square"], n_examples, alone)
    assert flags(subject, autoattack, silent).passed is passed
    zero = {"name": "zero_gradients", "message": "there are 3 points with zero gradient!"}
    check = flags(subject, AutoAttackEvidence([zero], nothing, ["apgd-t"]), silent)
    assert check.details["raised"] == ["zero_gradients"]
    assert not check.passed
