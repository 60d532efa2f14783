"""What holds for every loss YAML, as it is and with each of its options changed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from advtrain.losses import Loss, RobustDistillation
from tests.losses.toy import CLASSES, identity, images, made, variants

VARIANTS = [
    pytest.param(name, changes, id="-".join(map(str, (name, *changes.values())))) for name, changes in variants()
]
each_loss = pytest.mark.parametrize(("name", "changes"), VARIANTS)


def value_and_gradients(loss: Loss, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total, parts = loss.outer(identity, x, x_adv, y)
    assert parts["loss"] == total.detach() and not any(part.requires_grad for part in parts.values())
    gradients = torch.autograd.grad(total, (x, x_adv), allow_unused=True)
    natural, adversarial = (torch.zeros_like(x) if g is None else g for g in gradients)
    return total.detach(), natural, adversarial


@each_loss
@pytest.mark.parametrize(
    ("dtype", "value_error", "gradient_error"), ((torch.float32, 1e-6, 1e-5), (torch.bfloat16, 1e-6, 1e-2))
)
def test_low_precision_logits_cost_only_their_own_rounding(
    name: str, changes: dict[str, Any], dtype: torch.dtype, value_error: float, gradient_error: float
) -> None:
    """Value and gradient against float64 at the same logits; a bfloat16 gradient has 8 bits of its own."""
    x, x_adv, y = images(scale=4, dtype=dtype)
    loss = made(name, **changes)
    if isinstance(loss, RobustDistillation):  # T² KL(·/T) is a difference of numbers that are T times as large
        value_error *= loss.temperature
    value, *gradients = value_and_gradients(loss, x, x_adv, y)
    exact_x, exact_x_adv = (t.detach().double().requires_grad_() for t in (x, x_adv))
    exact, *references = value_and_gradients(made(name, **changes), exact_x, exact_x_adv, y)
    assert value.dtype == torch.float32 and abs(value - exact) < value_error * exact.abs()
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() <= gradient_error * reference.norm()


@each_loss
def test_certain_predictions_stay_finite(name: str, changes: dict[str, Any]) -> None:
    x, x_adv, y = images(scale=200, dtype=torch.bfloat16)
    assert all(result.isfinite().all() for result in value_and_gradients(made(name, **changes), x, x_adv, y))


@each_loss
def test_the_order_of_the_images_does_not_matter(name: str, changes: dict[str, Any]) -> None:
    loss = made(name, **changes)
    x, x_adv, y = images()
    n = len(x) // loss.views
    order = torch.cat([view * n + torch.tensor([2, 0, 1, 5, 3, 4])[:n] for view in range(loss.views)])
    assert sorted(order.tolist()) == list(range(6))
    value, *gradients = value_and_gradients(loss, x, x_adv, y)
    moved, *moved_gradients = value_and_gradients(
        loss, *(t[order].detach().requires_grad_() for t in (x, x_adv)), y[order]
    )
    torch.testing.assert_close(moved, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved_gradients, [g[order] for g in gradients], rtol=1e-9, atol=1e-14)


@each_loss
def test_the_names_of_the_classes_do_not_matter(name: str, changes: dict[str, Any]) -> None:
    loss, renamed = made(name, **changes), made(name, **changes)
    order = torch.tensor([3, 0, 4, 1, 2])
    if loss.has_prior:
        renamed.prior.weights.copy_(loss.prior.weights[order][:, order])
    x, x_adv, y = images()
    value, *gradients = value_and_gradients(loss, x, x_adv, y)
    columns = (t[:, order].detach().requires_grad_() for t in (x, x_adv))
    moved, *moved_gradients = value_and_gradients(renamed, *columns, order.argsort()[y])
    torch.testing.assert_close(moved, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved_gradients, [g[:, order] for g in gradients], rtol=1e-9, atol=1e-14)


def mixed_labels(y: Tensor) -> Tensor:
    hard = torch.nn.functional.one_hot(y, CLASSES).double()
    return 0.7 * hard + 0.3 * hard.flip(0)


@pytest.mark.usefixtures("without_type_checks")
@each_loss
def test_soft_labels_are_taken_or_refused_as_the_loss_says(name: str, changes: dict[str, Any]) -> None:
    loss = made(name, **changes)
    x, x_adv, y = images()
    soft = mixed_labels(y)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        assert loss.inner(identity, x, soft)(x_adv).shape == (6,)
        return value_and_gradients(loss, x, x_adv, soft)

    if loss.takes_soft_labels:
        assert all(result.isfinite().all() for result in step())
    else:
        with pytest.raises(ValueError, match=r"expected whole class numbers.*got soft labels of shape"):
            step()


@each_loss
def test_one_hot_labels_are_the_hard_ones(name: str, changes: dict[str, Any]) -> None:
    loss = made(name, **changes)
    if not loss.takes_soft_labels:
        return
    x, x_adv, y = images()
    one_hot = torch.nn.functional.one_hot(y, CLASSES).double()
    hard, soft = ((loss.inner(identity, x, t)(x_adv), *loss.outer(identity, x, x_adv, t)) for t in (y, one_hot))
    torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-14)


def test_which_losses_take_soft_labels() -> None:
    """What each can know about a mixed label, written down here once more."""
    taking = {name for name, changes in variants() if not changes and made(name).takes_soft_labels}
    adversarial = {"standard", "pgd_at", "trades", "kl", "dkl"}
    distilling = {"kd", "ikl_kd_code", "gkl_kd_code", "ard", "rslad", "adaad"}
    assert taking == adversarial | distilling
    assert made("ikl", global_weights=False).takes_soft_labels and made("gkl", global_weights=False).takes_soft_labels
    assert not any(made(name, inner="margin").takes_soft_labels for name in ("pgd_at", "trades", "dkl"))
    assert not made("mart").takes_soft_labels


@each_loss
def test_the_formula_tells_every_option(name: str, changes: dict[str, Any]) -> None:
    loss = made(name, **changes)
    formula = loss.formula()
    assert "\n" not in formula and ("CE" in formula or "KL(" in formula)
    assert (formula != made(name).formula()) == bool(changes.keys() - {"inner"})
    assert loss.inner_objective == changes.get("inner", made(name).inner_objective)
