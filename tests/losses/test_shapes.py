"""Dense and sequence logits: the same as the positions one by one as rows (N, C), and masked positions are nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.losses import ClassPrior, functional
from advtrain.losses.divergences import js, reverse_kl, squared

LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": lambda m, n, p, **kw: functional.kl(m, n, **kw),
    "dkl": lambda m, n, p, **kw: functional.dkl(m, n, wmse_weight=5, ce_weight=3, **kw),
    "ikl": lambda m, n, p, **kw: functional.ikl(m, n, p, wmse_weight=5, ce_weight=3, **kw),
    "ikl-asymmetric": lambda m, n, p, **kw: functional.ikl(m, n, p, break_asymmetry=False, **kw),
    "gkl": lambda m, n, p, **kw: functional.gkl(m, n, p, gamma=0.4, wmse_weight=5, ce_weight=3, **kw),
    "gkl-uniform": lambda m, n, p, **kw: functional.gkl(m, n, p, gamma=0.0, **kw),
    "reverse_kl": lambda m, n, p, **kw: reverse_kl(m, n, **kw),
    "js": lambda m, n, p, **kw: js(m, n, **kw),
    "squared": lambda m, n, p, **kw: squared(m, n, **kw),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
LAYOUTS = {"second": ((2, 5, 3, 2), 1), "last": ((2, 6, 5), -1), "last, by number": ((2, 6, 5), 2)}
each_layout = pytest.mark.parametrize(("shape", "class_dim"), LAYOUTS.values(), ids=LAYOUTS)


def inputs(shape: tuple[int, ...], class_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    m, n, p = 2 * torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    return m.requires_grad_(), n.requires_grad_(), p.softmax(class_dim)


def rows(t: Tensor, class_dim: int) -> Tensor:
    return t.movedim(class_dim, -1).reshape(-1, t.shape[class_dim])


@each_loss
@each_layout
@pytest.mark.parametrize("masked", (False, True))
def test_positions_are_rows(name: str, shape: tuple[int, ...], class_dim: int, masked: bool) -> None:
    loss, (m, n, p) = LOSSES[name], inputs(shape, class_dim)
    positions = m.select(class_dim, 0).shape
    mask = torch.rand(positions.numel(), generator=torch.Generator().manual_seed(1)) < 0.6
    settings: dict[str, Any] = {"class_dim": class_dim, "mask": mask.reshape(positions) if masked else None}
    assert 0 < mask.sum() < len(mask)
    for reduction in ("mean", "sum"):
        kept = [rows(t, class_dim)[mask if masked else slice(None)] for t in (m, n, p)]
        actual, expected = loss(m, n, p, reduction=reduction, **settings), loss(*kept, reduction=reduction)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
        gradients = torch.autograd.grad(actual, (m, n)), torch.autograd.grad(expected, (m, n))
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)
    each = loss(m, n, p, reduction="none", **settings)
    assert each.shape == positions
    torch.testing.assert_close(each.flatten()[mask] if masked else each.flatten(), loss(*kept, reduction="none"))
    assert not masked or not each.flatten()[~mask].any()


@each_loss
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_what_stands_at_masked_positions_is_nothing(name: str, dtype: torch.dtype) -> None:
    clean = [t.detach().to(dtype) for t in inputs((2, 5, 3, 2), 1)]
    mask = torch.ones(2, 3, 2, dtype=torch.bool)
    mask[0, 1], mask[1, :, 0] = False, False
    found = []
    for rubbish in (0.0, torch.nan, torch.inf):
        m, n, p = (t.masked_fill(~mask[:, None], rubbish) for t in clean)
        value = LOSSES[name](m.requires_grad_(), n.requires_grad_(), p, mask=mask)
        gradients = torch.autograd.grad(value, (m, n))
        assert not any(g.movedim(1, -1)[~mask].any() for g in gradients)
        found.append((value, *gradients))
    assert all(t.isfinite().all() for t in found[0])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@each_loss
def test_where_no_position_counts_the_loss_is_zero(name: str) -> None:
    m, n, p = inputs((2, 6, 5), -1)
    value = LOSSES[name](m, n, p, class_dim=-1, mask=torch.zeros(2, 6, dtype=torch.bool))
    assert value == 0 and not any(g.any() for g in torch.autograd.grad(value, (m, n)))


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
        self.names.append(function.__name__.partition(".")[0])
        return function(*arguments, **(keywords or {}))


@each_loss
def test_plain_logits_are_never_copied(name: str) -> None:
    m, n, p = inputs((6, 5), 1)
    with Operations() as forward:
        LOSSES[name](m, n, p)
    copies = {"_to_copy", "clone", "copy_", "contiguous", "permute", "masked_fill", "where", "expand", "index", "cat"}
    assert forward.names and not copies & set(forward.names)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("settings", "line"),
    (
        ({"class_dim": 2}, r"class_dim: expected 1 or -1 \(the classes second or last\), got 2; permute the axes"),
        ({"class_dim": 0}, "class_dim: expected 1 or -1"),
        ({"mask": torch.ones(2, 3)}, r"mask: expected torch.bool of shape \(2, 3, 2\) .*got torch.float32"),
        ({"mask": torch.ones(2, 5, 3, dtype=torch.bool)}, r"mask: expected torch.bool of shape \(2, 3, 2\)"),
        ({"mask": torch.ones(2, 1, 2, dtype=torch.bool)}, r"mask: expected torch.bool of shape \(2, 3, 2\)"),
        ({"reduction": "batchmean"}, "reduction: expected one of mean, sum, none, got 'batchmean'"),
    ),
)
@each_loss
def test_what_does_not_fit_is_named(name: str, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        LOSSES[name](*inputs((2, 5, 3, 2), 1), **settings)


@each_layout
@pytest.mark.parametrize("masked", (False, True))
def test_the_class_prior_of_dense_outputs(shape: tuple[int, ...], class_dim: int, masked: bool) -> None:
    m, n, _ = inputs(shape, class_dim)
    positions = m.select(class_dim, 0).shape
    y = torch.arange(positions.numel()).reshape(positions) % 5
    mask = torch.rand(positions, generator=torch.Generator().manual_seed(2)) < 0.6 if masked else None
    labels = y if mask is None else y.masked_fill(~mask, 255)  # as segmentation sets mark pixels without a label
    dense, plain = ClassPrior(num_classes=5), ClassPrior(num_classes=5)
    dense.update(m, labels, class_dim, mask)
    kept = slice(None) if mask is None else mask.flatten()
    plain.update(rows(m, class_dim)[kept], y.flatten()[kept])
    dense.end_epoch(), plain.end_epoch()
    torch.testing.assert_close(dense.weights, plain.weights, rtol=1e-7, atol=0)
    class_weights = dense(labels if mask is None else labels.where(mask, 0), class_dim)
    assert class_weights.shape == m.shape
    torch.testing.assert_close(rows(class_weights, class_dim)[kept], plain(y.flatten())[kept], rtol=1e-7, atol=0)
    value = functional.ikl(m, n, class_weights, class_dim=class_dim, mask=mask)
    expected = functional.ikl(*(rows(t, class_dim)[kept] for t in (m, n)), plain(y.flatten())[kept])
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
