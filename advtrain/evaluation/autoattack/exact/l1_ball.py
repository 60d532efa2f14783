"""Projection onto the part of an L1 ball that lies in the box [0, 1]: Croce & Hein (arXiv:2103.01208), Proposition 2.1.

The projection moves each coordinate of the perturbation y towards zero by clamp(λ, w, |y|), with w what brings x + y
into the box and one λ per image. The sum of the moves is piecewise linear in λ with its corners at all w and |y|; λ is
found by bisection over the sorted corners.
"""

import numpy as np
import torch
from torch import Tensor


def l1_correction(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """What to add to a perturbation so that its L1 norm is at most `radius` and x + y + correction is in [0, 1].

    Gives upstream's bits, save for the sign of zeros. No host synchronisation on a GPU.

    Args:
        x: images in [0, 1], shape (n, c, h, w), contiguous.
        y: perturbations, same shape.
        radius: of the ball.

    Returns:
        The correction, same shape.
    """
    centre, shift = x.flatten(1), y.flatten(1)
    outside = (1 - centre).sub_(shift)
    outside = 0 - torch.minimum(outside, centre + shift, out=outside).clamp_(max=0)  # w, without negative zeros
    size = shift.abs()
    spare = radius - size.sum(1)
    total = outside.sum(1)
    too_long = (total + spare < 0)[:, None]

    corners, slopes = _corners(outside, size)
    gaps = torch.empty_like(corners)
    torch.sub(corners[:, 1:], corners[:, :-1], out=gaps[:, :-1])
    torch.neg(corners[:, -1], out=gaps[:, -1])
    moved = gaps.mul_(slopes).cumsum(1).add_(total[:, None])
    corner = _bisect(moved, spare)
    level = (-moved.gather(1, corner) - spare[:, None]) / slopes.gather(1, corner + 1)
    level += corners[:, 1:].gather(1, corner)
    moves = torch.minimum(torch.maximum(outside, level), size)
    moves = torch.where(too_long, moves, outside)
    return moves.mul_(shift.sign()).neg_().view(x.shape)


def _corners(outside: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The corners in ascending order, and how many coordinates move with λ right of each; both (n, 2 d), float.

    A coordinate starts to move at w and stops at |y|. NumPy sorts integers several times faster than torch.sort sorts
    floats with their indices: a non-negative float, read as an integer, keeps its order and leaves one bit for the
    kind of the corner. The order among equal corners differs from upstream's; the gaps between them are zero.
    """
    both = torch.cat((outside, size), 1)
    by = _sorted_by_numpy if both.device.type == "cpu" else _sorted_by_torch
    corners, kinds = by(both, outside.shape[1])
    return corners, kinds.cumsum(1, dtype=torch.float32)


def _sorted_by_torch(both: Tensor, n_outside: int) -> tuple[Tensor, Tensor]:
    """Each row in ascending order, and 1 for those of its first `n_outside` numbers, -1 for the others."""
    corners, order = both.sort(1)
    return corners, 2 * (order < n_outside).int() - 1


def _sorted_by_numpy(both: Tensor, n_outside: int) -> tuple[Tensor, Tensor]:
    """The same, in place, for numbers that are not negative."""
    keys = both.view(torch.int32)
    keys <<= 1
    keys[:, n_outside:] |= 1
    keys.numpy().view(np.uint32).sort(axis=1)
    kinds = 1 - 2 * (keys & 1)
    keys >>= 1
    keys &= 0x7FFFFFFF  # the shift to the right has copied the highest bit
    return keys.view(torch.float32), kinds


def _bisect(moved: Tensor, spare: Tensor) -> Tensor:
    """Index of the last corner at which the moves are still too small, shape (n, 1)."""
    corners = moved.shape[1]
    low = torch.zeros(len(moved), 1, dtype=torch.int64, device=moved.device)
    high = low + corners - 1
    for _ in range((corners - 1).bit_length()):
        middle = (low + high) // 2
        small = moved.gather(1, middle) + spare[:, None] < 0
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return low
