"""ARD, RSLAD, AdaAD and IAD against loops over images, classes and pairs; their limits and theorems."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.composition import compose
from advtrain.config import build
from advtrain.losses import ARD, IAD, RSLAD, AdaAD, Loss, RobustDistillation, Teacher, functional
from advtrain.types import SettingError
from tests.losses.loops import kl, pairs, soft_ce, softmax
from tests.losses.toy import CLASSES, identity, images, made

METHODS = ("ard", "rslad", "adaad", "iad")
DIVERGENCES: dict[str, dict[str, Any]] = {
    "kl": {"kl_weight": 0.7},
    "prior": {"divergence": "ikl", "wmse_weight": 3.0, "ce_weight": 0.4},
    "own": {"divergence": "ikl", "wmse_weight": 3.0, "ce_weight": 0.4, "global_weights": False},
}
each_method = pytest.mark.parametrize("name", METHODS)
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def distance(loss: RobustDistillation, m: Tensor, n: Tensor, label: int, t: float) -> Tensor:
    """D of one image, as the head of `RobustDistillation` writes it."""
    if loss.divergence == "kl":
        return t**2 * loss.kl_weight * kl(m / t, n / t)
    if loss.prior is None:
        p = [s.item() for s in softmax(m.detach() / loss.prior_temperature)]
    else:
        p = loss.prior.weights[label].tolist()
    return loss.wmse_weight * pairs(p, m, n) + t**2 * loss.ce_weight * soft_ce(m / t, n / t)


def expected(name: str, loss: Any, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """The whole outer loss, image by image."""
    total = torch.zeros((), dtype=torch.float64)
    taught, taught_adv = loss.taught(x), loss.taught(x_adv)
    for t, t_adv, m, n, label in zip(taught, taught_adv, identity(x), identity(x_adv), y.tolist(), strict=True):
        ce = -softmax(m)[label].log()
        guidance = distance(loss, t, n, label, loss.temperature)
        if name == "ard":
            natural, robust = ce, guidance
        elif name == "rslad":
            natural, robust = distance(loss, t, m, label, 1), guidance
        elif name == "adaad":
            natural, robust = distance(loss, t, m, label, 1), distance(loss, t_adv, n, label, 1)
        else:
            w = softmax(t_adv)[label].item() ** loss.power
            robust = (w if loss.discount_teacher else 1) * guidance + (1 - w) * distance(loss, m, n, label, 1)
            natural = ce
        total = total + (1 - loss.alpha) * natural + loss.alpha * robust
    return total / len(y)


def settings(name: str, divergence: str, **more: Any) -> dict[str, Any]:
    hot = {"temperature": 2.5} if name in ("ard", "iad") else {}
    return {"alpha": 0.3, **hot, **DIVERGENCES[divergence], **more}


def assert_same(actual: Tensor, reference: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(total, inputs) for total in (actual, reference))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


@each_method
@each_divergence
def test_the_outer_loss_equals_the_loop(name: str, divergence: str) -> None:
    x, x_adv, y = images()
    loss = made(name, **settings(name, divergence))
    assert_same(loss.outer(identity, x, x_adv, y)[0], expected(name, loss, x, x_adv, y), x, x_adv)


@each_divergence
def test_iad_as_the_published_code_has_it(divergence: str) -> None:
    x, x_adv, y = images()
    loss = made("iad", **settings("iad", divergence, discount_teacher=False, power=0.5))
    assert_same(loss.outer(identity, x, x_adv, y)[0], expected("iad", loss, x, x_adv, y), x, x_adv)


@each_method
def test_given_answers_are_those_that_the_teacher_gives(name: str) -> None:
    x, x_adv, y = images()
    loss = made(name, alpha=0.5)
    answers = [loss.taught(x)] + ([loss.taught(x_adv)] if loss.needs_taught_adv else [])
    assert loss.outer(identity, x, x_adv, y, *answers)[0] == loss.outer(identity, x, x_adv, y)[0]
    other = loss.outer(identity, x, x_adv, y, *(answer.flip(1) for answer in answers))[0]
    assert abs(other - loss.outer(identity, x, x_adv, y)[0]) > 1e-3
    assert loss.needs_taught_adv == (name in ("adaad", "iad"))


def test_the_terms_in_the_log_add_up() -> None:
    x, x_adv, y = images()
    for name in METHODS:
        _, parts = made(name, alpha=0.4).outer(identity, x, x_adv, y)
        first, second = list(parts)[1:3]
        assert (first, second) == ({"rslad": "rslad_natural", "adaad": "adaad_natural"}.get(name, "ce"), name)
        torch.testing.assert_close(parts["loss"], parts[first] + parts[second])
        assert parts["teacher_accuracy"] == (made(name).taught(x).argmax(1) == y).float().mean()


# Limits and theorems.


@each_method
@each_divergence
def test_at_alpha_one_the_natural_term_is_gone(name: str, divergence: str) -> None:
    x, x_adv, y = images()
    loss = made(name, **settings(name, divergence, alpha=1.0))
    total, parts = loss.outer(identity, x, x_adv, y)
    reference = expected(name, loss, x, x_adv, y)
    torch.testing.assert_close(total, reference, rtol=1e-10, atol=0)
    assert list(parts.values())[1] == 0
    (natural,) = torch.autograd.grad(total, x, allow_unused=True)
    assert (natural is not None) == (name == "iad")  # whose introspection drives f(x), too


@each_method
def test_at_alpha_zero_nothing_depends_on_the_adversarial_images(name: str) -> None:
    x, x_adv, y = images()
    loss = made(name, alpha=0.0)
    total, _ = loss.outer(identity, x, x_adv, y)
    torch.testing.assert_close(total, expected(name, loss, x, x_adv, y), rtol=1e-10, atol=0)
    (adversarial,) = torch.autograd.grad(total, x_adv)
    assert not adversarial.any()


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    x, x_adv, y = images()
    for loss in (RSLAD(alpha=0.0), AdaAD(alpha=0.5), AdaAD(alpha=1.0)):
        total, _ = loss.hold(Teacher(identity)).outer(identity, x, x_adv, y)
        gradients = torch.autograd.grad(total, (x, x_adv), allow_unused=True)
        assert abs(total) < 1e-14 and all(g is None or g.abs().max() < 1e-14 for g in gradients)
    for inner in ("adaptive_kl", "teacher_kl"):
        values = RSLAD(inner=inner).hold(Teacher(identity)).inner(identity, x, y)(x)
        assert values.abs().max() < 1e-14
    entropy = -(identity(x).softmax(1) * identity(x).log_softmax(1)).sum(1).mean()
    ikl = RSLAD(alpha=0.0, divergence="ikl", global_weights=False).hold(Teacher(identity))
    torch.testing.assert_close(ikl.outer(identity, x, x_adv, y)[0], entropy)  # no wMSE, and of the soft CE its least


def test_iad_without_doubt_is_ard() -> None:
    """In the epochs of the warm-up, and with β = 0."""
    x, x_adv, y = images()
    rest = {"alpha": 0.6, "temperature": 3.0}
    ard = made("ard", **rest).outer(identity, x, x_adv, y)[0]
    loss = made("iad", **rest, warmup_epochs=2)
    for epoch in (1, 2, 3):
        loss.start_epoch(epoch)
        total = loss.outer(identity, x, x_adv, y)[0]
        assert (total == ard) == (epoch <= 2) == (not loss.needs_taught_adv)
    torch.testing.assert_close(made("iad", **rest, power=0.0).outer(identity, x, x_adv, y)[0], ard)


def test_iad_trusts_itself_where_the_teacher_fails() -> None:
    """A teacher that is certain of a wrong class has no say (β = 1); one that is right has the whole."""
    x, x_adv, y = images()
    certain = 60.0 * nn.functional.one_hot(y, CLASSES).double()
    loss = made("iad", power=1.0)
    right = loss.outer(identity, x, x_adv, y, loss.taught(x), certain)[0]
    wrong = loss.outer(identity, x, x_adv, y, loss.taught(x), certain.roll(1, 1))[0]
    torch.testing.assert_close(right, functional.kl(loss.taught(x), identity(x_adv)))
    torch.testing.assert_close(wrong, functional.kl(identity(x), identity(x_adv)))


@pytest.mark.parametrize("temperature", (1.0, 2.5))
def test_what_ikl_changes_for_the_student(temperature: float) -> None:
    """Theorem 1 of arXiv:2305.13948 with a constant teacher, p = softmax(t/T) and both weights 1: the soft
    cross-entropy is T² KL for the student; the wMSE adds minus what T² KL is for the teacher."""
    x, x_adv, y = images()
    whole, ce_alone, kl_itself = (
        made("ard", alpha=1.0, temperature=temperature, prior_temperature=temperature, global_weights=False, **s)
        for s in ({"divergence": "ikl"}, {"divergence": "ikl", "wmse_weight": 0.0}, {})
    )
    gradients = [
        torch.autograd.grad(loss.outer(identity, x, x_adv, y)[0], x_adv)[0].flatten(1)
        for loss in (whole, ce_alone, kl_itself)
    ]
    torch.testing.assert_close(gradients[1], gradients[2], rtol=1e-9, atol=1e-13)
    teacher = kl_itself.taught(x).requires_grad_()
    kl_of_both = temperature**2 * functional.kl(teacher / temperature, identity(x_adv).detach() / temperature)
    (for_teacher,) = torch.autograd.grad(kl_of_both, teacher)
    torch.testing.assert_close(gradients[0], gradients[2] - for_teacher, rtol=1e-9, atol=1e-13)
    assert for_teacher.norm() > 0.1 * gradients[2].norm()


def test_rslad_by_ikl_has_the_gradient_of_kl_in_its_soft_cross_entropies() -> None:
    x, x_adv, y = images()
    own = {"divergence": "ikl", "global_weights": False, "prior_temperature": 1.0}
    with_ikl, with_kl = made("rslad", **own, wmse_weight=0.0), made("rslad")
    totals = (loss.outer(identity, x, x_adv, y)[0] for loss in (with_ikl, with_kl))
    torch.testing.assert_close(*(torch.autograd.grad(t, (x, x_adv)) for t in totals), rtol=1e-9, atol=1e-13)


# What is remembered, and what the words of the configuration lead to.


def test_the_prior_learns_from_the_teacher_and_the_natural_images() -> None:
    x, x_adv, y = images()
    loss = made("adaad", divergence="ikl").train()
    loss.outer(identity, x, x_adv, y)
    rows = (loss.taught(x) / 4).softmax(1)
    torch.testing.assert_close(loss.prior.sums[0], rows[y == 0].sum(0))
    loss.eval().outer(identity, x, x_adv, y)
    assert loss.prior.counts.sum() == len(y)
    for without in (made("adaad"), made("adaad", divergence="ikl", global_weights=False)):
        assert not without.has_prior and not without.state_dict()


@pytest.mark.parametrize(
    ("make", "formula"),
    (
        (lambda: ARD(), "30² KL(t(x)/30 || f(x')/30)"),
        (lambda: ARD(alpha=0.9, temperature=1), "0.1 CE(f(x), y) + 0.9 KL(t(x) || f(x'))"),
        (lambda: RSLAD(), "0.1667 KL(t(x) || f(x)) + 0.8333 KL(t(x) || f(x'))"),
        (lambda: AdaAD(kl_weight=0.1), "0.1 KL(t(x') || f(x'))"),
        (
            lambda: AdaAD(divergence="ikl", global_weights=False),
            "[1 wMSE(t(x'), f(x'); softmax(t(x')/τ), τ=4) + 1 softCE(t(x'), f(x'))]",
        ),
        (
            lambda: ARD(divergence="ikl", num_classes=10, temperature=2),
            "[1 wMSE(t(x), f(x'); prior_y(t), τ=4) + 1 2² softCE(t(x)/2, f(x')/2)]",
        ),
        (
            lambda: IAD(),
            "(w KL(t(x) || f(x')) + (1 - w) KL(f(x) || f(x'))), w = softmax(t(x'))_y^0.1, w = 1 until epoch 60",
        ),
    ),
)
def test_the_formulas(make: Any, formula: str) -> None:
    assert make().formula() == formula


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "line"),
    (
        (lambda: RSLAD(alpha=1.5), "loss.alpha: expected a number from 0 to 1, got 1.5"),
        (lambda: ARD(temperature=0), "loss.temperature: expected a number above 0, got 0"),
        (lambda: ARD(divergence="js"), "loss.divergence: expected one of kl, ikl, got 'js'"),
        (lambda: ARD(divergence="ikl"), "loss.num_classes: expected an integer of at least 2, got None"),
        (lambda: AdaAD(kl_weight=-1), "loss.kl_weight: expected a number of at least 0, got -1"),
        (lambda: IAD(power=-1), "loss.power: expected a number of at least 0, got -1"),
        (lambda: IAD(warmup_epochs=0.5), "loss.warmup_epochs: expected an integer of at least 0, got 0.5"),
        (lambda: IAD(discount_teacher=1), "loss.discount_teacher: expected true or false, got 1"),
        (
            lambda: ARD(inner="fgsm"),
            "loss.inner: expected one of ce, kl, margin, dlr, teacher_kl, teacher_ikl, adaptive",
        ),
    ),
)
def test_impossible_settings_are_named(make: Any, line: str) -> None:
    with pytest.raises(SettingError) as error:
        make()
    assert str(error.value).startswith(line)


def test_a_loss_without_its_teacher_says_so() -> None:
    x, x_adv, y = images()
    for call in (lambda: AdaAD().inner(identity, x, y), lambda: RSLAD().outer(identity, x, x_adv, y)):
        with pytest.raises(RuntimeError, match=r"expected a teacher, got none; call \w+\.hold\(Teacher\(model\)\)"):
            call()


def test_alpha_is_read_as_a_fraction() -> None:
    configured: Loss = build(compose("train", ["loss=rslad", "data=cifar10"])["loss"])
    assert isinstance(configured, RSLAD) and configured.alpha == RSLAD().alpha == 5 / 6
