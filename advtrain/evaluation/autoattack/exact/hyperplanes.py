"""Points, hyperplanes and the box: what the projections of all norms start from and end with."""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.ordering import sums_are_doubles

BLOCK = 400_000  # numbers handled at once on a CPU: a few such arrays stay in its cache


class Projection(Protocol):
    def __call__(self, points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor: ...


class Turned(NamedTuple):
    """The hyperplanes with w turned so that ⟨w, t⟩ ≥ b: moving by `way` = −`side`·`room` takes ⟨w, t⟩ down.

    Attributes:
        excess: ⟨w, t⟩ − b ≥ 0, shape (rows,).
        side: sign of w.
        weights: |w|.
        room: how far the coordinate can move until it is 0 or 1.
        way: to there; the further way, to 0, where w = 0.
    """

    excess: Tensor
    side: Tensor
    weights: Tensor
    room: Tensor
    way: Tensor


def turned(points: Tensor, normals: Tensor, offsets: Tensor) -> Turned:
    excess = (normals * points).sum(1) - offsets
    side = normals.sign().mul_((2 * (excess >= 0) - 1).unsqueeze(1))
    way = side.clamp_max(0).add_(points).neg_()  # 1 − t where w < 0, else −t
    return Turned(excess.abs(), side, normals.abs(), way.abs(), way)


def in_blocks_of_rows(project: Projection) -> Projection:
    """Block by block on a CPU, of two rows or more: PyTorch may add up a single one in another order."""

    @wraps(project)
    def in_blocks(points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor:
        rows, n = points.shape
        blocks = max(1, rows // max(2, BLOCK // n)) if host_looks(points) else 1
        if blocks == 1:
            return project(points, normals, offsets, same_bits=same_bits)
        parts = zip(*(given.tensor_split(blocks) for given in (points, normals, offsets)), strict=True)
        return torch.cat([project(*part, same_bits=same_bits) for part in parts])

    return in_blocks


def fast(points: Tensor) -> bool:
    return host_looks(points) and points.dtype == torch.float32 and sums_are_doubles()


def host_looks(values: Tensor) -> bool:
    """Whether the host may look at results: on a CPU. On a GPU that would make it wait for all work before."""
    return values.is_cpu


def with_rows(d: Tensor, mask: Tensor, make: Callable[[Tensor | slice], Tensor]) -> Tensor:
    """`d` with the rows of `mask` (shape (rows,)) from `make`, which is given which rows to make."""
    if not host_looks(d):
        return torch.where(mask.unsqueeze(1), make(slice(None)), d)
    rows = mask.nonzero().squeeze(1)
    if len(rows):
        d[rows] = make(rows)
    return d


def without(d: Tensor, weights: Tensor, flat: float) -> Tensor:
    """`d` with zeros where a weight is at most `flat`."""
    if host_looks(d) and float(weights.amin()) > flat:
        return d
    return d.masked_fill_(weights <= flat, 0)
