"""Which axis holds the classes, which positions count: what all functional losses check and reduce alike.

A loss looks at one position at a time: an image (N, C), a pixel (N, C, H, W), a token (N, T, C). The classes are in
dimension 1, as PyTorch's own losses have it, or in the last one, as language models do.
"""

from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DenseLogits = Float[Tensor, "..."]  # (N, C), (N, C, …) or (N, …, C)
Mask = Bool[Tensor, "..."]  # the shape of the logits without their classes; True where a position counts

REDUCTIONS = ("mean", "sum", "none")


def prepared(*tensors: Tensor, class_dim: int = 1, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tensors in their common type, float32 or better, with zeros where `mask` is False, after a check of shapes.

    The zeros keep whatever stands at a masked position, NaN included, out of values and gradients. Without a mask
    nothing is copied but what must change its type.

    Raises:
        ValueError: the tensors differ in shape, the classes are in another dimension than 1 or the last, or the mask
            does not fit.
    """
    shapes = [tuple(t.shape) for t in tensors]
    ndim = len(shapes[0])
    if ndim < 2 or any(shape != shapes[0] for shape in shapes):
        got = ", ".join(map(str, shapes))
        raise ValueError(f"expected tensors of one shape (N, C), or with more positions to it, got {got}")
    if class_dim not in (1, -1, ndim - 1):
        raise ValueError(f"class_dim: expected 1 or -1 (the classes second or last), got {class_dim}; permute the axes")
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    tensors = tuple(t.to(dtype) for t in tensors)
    if mask is None:
        return tensors
    positions = list(shapes[0])
    del positions[class_dim]
    if mask.dtype != torch.bool or list(mask.shape) != positions:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(
            f"mask: expected torch.bool of shape {tuple(positions)} (the logits without classes), got {got}"
        )
    absent = ~mask.unsqueeze(class_dim)
    return tuple(t.masked_fill(absent, 0) for t in tensors)


def reduced(values: Tensor, mask: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """The mean or the sum of the positions that count, or all values with zeros at those that do not.

    The mean over no position is 0.

    Raises:
        ValueError: `reduction` is no known word.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}; choose one of them")
    if mask is not None:
        values = values.masked_fill(~mask, 0)
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.mean() if mask is None else values.sum() / mask.sum().clamp_min(1)


def hard_labels(y: Tensor, what: str) -> Tensor:
    """`y`, which `what` needs to be whole class numbers.

    Raises:
        ValueError: they are soft labels, one probability per class.
    """
    if y.is_floating_point():
        raise ValueError(
            f"y: expected whole class numbers, which {what} needs, got soft labels of shape {tuple(y.shape)}; "
            "train without mixing of images, or choose a loss that takes soft labels"
        )
    return y


def one_hot(y: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Zeros with a one at each class number, shape (…, C): `torch.nn.functional.one_hot`, which waits for the labels
    where it checks their range itself. Labels out of range are an error all the same.
    """
    zeros = torch.zeros(*y.shape, num_classes, dtype=dtype, device=y.device)
    return zeros.scatter(-1, y.unsqueeze(-1), 1)
