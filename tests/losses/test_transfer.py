"""What a student's logits are held to: value and gradient against float64 loops over images, classes and pairs."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.losses import functional, transfer
from tests.losses import loops

CLASSES = 5


def logits(n: int = 6, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's, the student's to be differentiated, and labels."""
    generator = torch.Generator().manual_seed(3)
    teacher = scale * torch.randn(n, CLASSES, dtype=torch.float64, generator=generator)
    student = scale * torch.randn(n, CLASSES, dtype=torch.float64, generator=generator)
    return teacher, student.requires_grad_(), torch.arange(n) % (CLASSES - 1)


def weights(n: int = 6) -> Tensor:
    return torch.rand(n, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).softmax(1)


def assert_same(actual: Tensor, expected: Tensor, student: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(actual, student), torch.autograd.grad(expected, student), rtol=1e-9, atol=1e-12
    )


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


@pytest.mark.parametrize("temperature", (1.0, 4.0))
def test_kd_equals_the_loop(temperature: float) -> None:
    m, n, _ = logits()
    expected = mean([loops.kd(*rows, temperature) for rows in zip(m, n, strict=True)])
    assert_same(transfer.kd(m, n, temperature=temperature), expected, n)


def test_kd_is_the_soft_cross_entropy_times_t_squared_up_to_the_teachers_entropy() -> None:
    m, n, _ = logits()
    kd = transfer.kd(m, n, temperature=3.0)
    ce = 9 * mean([loops.soft_ce(*(row / 3 for row in rows)) for rows in zip(m, n, strict=True)])
    entropy = -sum(p * math.log(p) for row in m for p in (v.item() for v in loops.softmax(row / 3))) / 6
    assert (ce - kd).item() == pytest.approx(9 * entropy, rel=1e-12) and entropy > 0.5
    torch.testing.assert_close(torch.autograd.grad(kd, n), torch.autograd.grad(ce, n), rtol=1e-10, atol=1e-13)


def test_the_gradient_of_kd_hardly_depends_on_a_high_temperature() -> None:
    """Why it has the factor T² (arXiv:1503.02531, section 2): for zero-mean logits it tends to (o_n - o_m) / C."""
    m, n, _ = logits()
    (gradient,) = torch.autograd.grad(transfer.kd(m, n, temperature=1e4), n)
    centred = [o - o.mean(1, keepdim=True) for o in (n.detach(), m)]
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / CLASSES / 6, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("temperature", (1.0, 4.0))
@pytest.mark.parametrize(("alpha", "beta"), ((1.0, 8.0), (0.5, 0.0), (0.0, 2.0)))
def test_dkd_equals_the_loop(alpha: float, beta: float, temperature: float) -> None:
    m, n, y = logits()
    expected = mean(
        [loops.dkd(*rows, label, alpha, beta, temperature) for *rows, label in zip(m, n, y.tolist(), strict=True)]
    )
    assert_same(transfer.dkd(m, n, y, alpha=alpha, beta=beta, temperature=temperature), expected, n)


def test_dkd_is_kd_where_beta_is_what_the_teacher_leaves_to_the_other_classes() -> None:
    """Equation 5 of arXiv:2203.08679, image by image."""
    m, n, y = logits()
    for i in range(6):
        rows = slice(i, i + 1)
        left = sum(p.item() for j, p in enumerate(loops.softmax(m[i] / 4)) if j != y[i])
        dkd = transfer.dkd(m[rows], n[rows], y[rows], alpha=1.0, beta=left, temperature=4.0)
        assert_same(dkd, loops.kd(m[i], n[i], 4.0), n)


def exact_dkd(m: list[float], n: list[float], label: int) -> tuple[float, float]:
    """TCKD and NCKD at T = 1 with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        s, q = ([Decimal(o).exp() for o in row] for row in (m, n))
        s, q = ([e / sum(row) for e in row] for row in (s, q))
        other_s, other_q = (sum(p for j, p in enumerate(row) if j != label) for row in (s, q))
        target = s[label] * (s[label] / q[label]).ln() + other_s * (other_s / other_q).ln()
        others = [
            a / other_s * (a / other_s / (b / other_q)).ln()
            for j, (a, b) in enumerate(zip(s, q, strict=True))
            if j != label
        ]
        return float(target), float(sum(others))


def test_dkd_of_a_certain_teacher_is_exact_in_float32() -> None:
    """1 - s^y is 1e-17 here: formed from s^y it would be 0, and the divergence of the other classes 0/0."""
    m, n = [40.0, 0.5, -1.0, 0.25], [3.0, 1.0, 0.5, -2.0]
    for label in (0, 2):
        target, others = exact_dkd(m, n, label)
        rows = torch.tensor([m]), torch.tensor([n]), torch.tensor([label])
        for alpha, beta, expected in ((1.0, 0.0, target), (0.0, 1.0, others)):
            value = transfer.dkd(*rows, alpha=alpha, beta=beta, temperature=1.0)
            assert value.dtype == torch.float32 and value.item() == pytest.approx(expected, rel=1e-5)


def test_what_the_other_classes_say_among_themselves_knows_nothing_of_the_true_one() -> None:
    m, n, y = logits()
    value = transfer.dkd(m, n, y, alpha=0.0, beta=1.0)
    (gradient,) = torch.autograd.grad(value, n)
    own = torch.nn.functional.one_hot(y, CLASSES).bool()
    assert not gradient[own].any() and gradient[~own].all()
    raised = n + 20000 * own
    torch.testing.assert_close(transfer.dkd(m + 9000 * own, raised, y, alpha=0.0, beta=1.0), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("ba", (True, False))
@pytest.mark.parametrize("temperature", (1.0, 4.0))
def test_ikl_kd_equals_the_loop(ba: bool, temperature: float) -> None:
    m, n, _ = logits()
    p = weights()
    terms = [
        8 * loops.pairs(p[i].tolist(), m[i], n[i] if ba else n[i].detach())
        + 3 * loops.soft_ce(m[i] / temperature, n[i] / temperature)
        for i in range(6)
    ]
    settings = {"wmse_weight": 8.0, "ce_weight": 3.0, "temperature": temperature, "break_asymmetry": ba}
    assert_same(transfer.ikl_kd(m, n, p, **settings), mean(terms), n)


@pytest.mark.parametrize("ba", (True, False))
@pytest.mark.parametrize("gamma", (0.0, 0.3, 1.0))
def test_gkl_kd_equals_the_loop(ba: bool, gamma: float) -> None:
    m, n, _ = logits()
    q = [[v**gamma for v in row] for row in weights().tolist()]
    pairs = sum(loops.pairs(q[i], m[i], n[i] if ba else n[i].detach()) for i in range(6))
    normalised = pairs / sum(sum(row) ** 2 for row in q)
    expected = 8 * normalised + 3 * mean([loops.soft_ce(m[i] / 4, n[i] / 4) for i in range(6)])
    settings = {"wmse_weight": 8.0, "ce_weight": 3.0, "temperature": 4.0, "break_asymmetry": ba}
    assert_same(transfer.gkl_kd(m, n, weights(), gamma=gamma, **settings), expected, n)


def test_gkl_kd_between_ikl_kd_and_uniform_weights() -> None:
    m, n, _ = logits()
    uniform = torch.full_like(m, 1 / CLASSES)
    settings = {"wmse_weight": 8.0, "ce_weight": 3.0, "temperature": 4.0}
    for gamma, p in ((1.0, weights()), (0.0, uniform)):
        assert_same(transfer.gkl_kd(m, n, weights(), gamma=gamma, **settings), transfer.ikl_kd(m, n, p, **settings), n)


def test_gkl_kd_of_parts_with_the_mean_weight_of_the_whole() -> None:
    m, n, _ = logits()
    p = weights()
    mean_weight = functional.pair_weights(p.pow(0.3)).mean()
    parts = [
        transfer.gkl_kd(m[rows], n[rows], p[rows], gamma=0.3, mean_weight=mean_weight) * len(m[rows]) / 6
        for rows in (slice(0, 2), slice(2, 6))
    ]
    assert_same(sum(parts), transfer.gkl_kd(m, n, p, gamma=0.3), n)
    alone = transfer.gkl_kd(m[:2], n[:2], p[:2], gamma=0.3) / 3 + transfer.gkl_kd(m[2:], n[2:], p[2:], gamma=0.3) / 1.5
    assert abs(alone - sum(parts)) > 1e-6


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "kd": transfer.kd,
    "dkd": lambda m, n: transfer.dkd(m, n, torch.arange(len(m)) % CLASSES),
    "ikl_kd": lambda m, n: transfer.ikl_kd(m, n, m.detach().softmax(1)),
    "gkl_kd": lambda m, n: transfer.gkl_kd(m, n, m.detach().softmax(1), gamma=0.3),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@each_function
def test_the_teacher_is_a_constant(name: str) -> None:
    m, n, _ = logits()
    m.requires_grad_()
    FUNCTIONS[name](m, n).backward()
    assert m.grad is None and n.grad is not None and n.grad.any()


@each_function
def test_a_common_offset_of_either_side_changes_nothing(name: str) -> None:
    m, n, _ = logits()
    moved = FUNCTIONS[name](m + 7, n - 3)
    torch.testing.assert_close(moved, FUNCTIONS[name](m, n), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "line"),
    (
        (lambda m, n, y: transfer.kd(m, n[:, 1:]), r"expected tensors of one shape \(N, C\)"),
        (lambda m, n, y: transfer.dkd(m, n[1:], y), r"expected tensors of one shape \(N, C\)"),
        (lambda m, n, y: transfer.ikl_kd(m, n, m[:1]), r"expected tensors of one shape \(N, C\)"),
        (lambda m, n, y: transfer.gkl_kd(m, n, m[:, :1]), r"expected tensors of one shape \(N, C\)"),
        (lambda m, n, y: transfer.gkl_kd(m, n, m.softmax(1), gamma=-1), "gamma: expected a number of at least 0"),
        (lambda m, n, y: transfer.dkd(m, n, m.softmax(1)), "whole class numbers, which decoupled distillation needs"),
        (lambda m, n, y: transfer.dkd(m[:, :1], n[:, :1], 0 * y), r"at least 2 classes, got shape \(6, 1\)"),
    ),
)
def test_what_does_not_fit_is_named(call: Callable[..., Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        call(*logits())
