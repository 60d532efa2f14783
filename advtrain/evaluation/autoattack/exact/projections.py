"""The nearest point of a hyperplane within the box [0, 1]ⁿ, in Linf, L2 and L1: upstream's bits, and less work.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (arXiv:1907.02044),
section 2.2. With t a point and {z: ⟨w, z⟩ = b} the hyperplane,

    d(t) = argmin ‖d‖ₚ  such that  ⟨w, t + d⟩ = b  and  0 ≤ t + d ≤ 1,

and where the hyperplane misses the box, the way to the corner that comes nearest to it. Every norm's solution sorts the
coordinates, adds along the order and looks for the place where the sum reaches b; `ordering` has these three.

    d = project_linf(points, normals, offsets)     # also project_l2, project_l1, and PROJECTIONS by the norm's name
"""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.ordering import (
    as_argsort,
    as_integers,
    bisect,
    depends_on_order,
    running_sums,
    sums_are_doubles,
)

# Of ⟨w, d⟩ as upstream computes it at a place and as it is computed here, relative to the magnitudes that enter: twice
# four roundings of 2⁻²⁴, doubled to be safe.
DIFFERENCE = 2.0**-20
FAR = 1e12  # upstream's bound of what it sorts by in L2 and L1
FLAT = 1e-8  # |w| below which L2 and L1 leave a coordinate where it is


BLOCK = 400_000  # numbers handled at once on a CPU: a few such arrays stay in its cache


class Projection(Protocol):
    def __call__(self, points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor: ...


class _Turned(NamedTuple):
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


def _turned(points: Tensor, normals: Tensor, offsets: Tensor) -> _Turned:
    excess = (normals * points).sum(1) - offsets
    side = normals.sign().mul_((2 * (excess >= 0) - 1).unsqueeze(1))
    way = side.clamp_max(0).add_(points).neg_()  # 1 − t where w < 0, else −t
    return _Turned(excess.abs(), side, normals.abs(), way.abs(), way)


def _in_blocks(project: Projection) -> Projection:
    """Block by block on a CPU, of two rows or more: PyTorch may add up a single one in another order."""

    @wraps(project)
    def in_blocks(points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor:
        rows, n = points.shape
        blocks = max(1, rows // max(2, BLOCK // n)) if points.is_cpu else 1
        if blocks == 1:
            return project(points, normals, offsets, same_bits=same_bits)
        parts = zip(*(given.tensor_split(blocks) for given in (points, normals, offsets)), strict=True)
        return torch.cat([project(*part, same_bits=same_bits) for part in parts])

    return in_blocks


@_in_blocks
def project_linf(points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor:
    """The shortest way in Linf to the hyperplane within the box (arXiv:1907.02044, eq. 7).

    d = −sign(w)·min(λ, room): every coordinate moves by λ or as far as it can.

    Args:
        points: t, in [0, 1], shape (rows, n), float32.
        normals: w, shape (rows, n).
        offsets: b, shape (rows,).
        same_bits: whether the result is upstream's to the bit on a CPU. Without, it is as accurate, and takes less
            time on some inputs.

    Returns:
        d, shape (rows, n); 0 where w is.
    """
    excess, side, weights, room, way = _turned(points, normals, offsets)
    reach = -(weights * room).sum(1)
    if _fast(points):
        ordered = as_integers(room, weights, descending=True)
        step, everything, unsure = _linf_step(-excess, reach, *ordered, doubt=same_bits)
        rows = unsure.nonzero().squeeze(1)
        if len(rows):
            ordered = as_argsort(room[rows], weights[rows], descending=True)
            step[rows], everything[rows], _ = _linf_step(-excess[rows], reach[rows], *ordered, doubt=False)
    else:
        ordered = as_argsort(room, weights, descending=True)
        step, everything, _ = _linf_step(-excess, reach, *ordered, doubt=False)
    step.unsqueeze_(1)
    d = torch.maximum(torch.minimum(way, step), -step)
    d = _with_rows(d, everything, lambda rows: side[rows] * -step[rows])
    return _without(d, weights, 0.0)


def _linf_step(
    target: Tensor, reach: Tensor, room: Tensor, weights: Tensor, *, doubt: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """λ for each row, ∞ where the hyperplane is out of reach.

    With the first i coordinates of the order moving as far as they can and all others by the room of the i-th,
    ⟨w, d⟩ is room_i·Σweights, less what these i lack.

    Args:
        target: ⟨w, d⟩ asked for, ≤ 0, shape (rows,).
        reach: ⟨w, d⟩ of the corner.
        room, weights: sorted by falling room, shape (rows, n).
        doubt: whether to look for rows in which another order of equal rooms could show.

    Returns:
        λ; where all coordinates move by λ, which is less than any room; where the order could show. Shape (rows,).
    """
    rows, n = room.shape
    target, reach = target.unsqueeze(1), reach.unsqueeze(1)
    weight_sums, sums = running_sums(weights), running_sums(weights * room)
    reachable = target - reach > 0
    unsure = torch.zeros_like(reachable)
    bound = DIFFERENCE * (sums[:, -1:] - reach + weight_sums[:, -1:] * room[:, :1])

    def delicate(at: Tensor) -> Tensor:
        split = (at < n - 1) & (room.gather(1, at) == room.gather(1, (at + 1).clamp_max(n - 1)))
        return split | depends_on_order(weight_sums.gather(1, at), n) | depends_on_order(sums.gather(1, at), n)

    def above(at: Tensor) -> Tensor:
        weight, moved = weight_sums.gather(1, at).float(), sums.gather(1, at).float()
        gap = target - (moved + reach - weight * room.gather(1, at))
        if doubt:
            near = gap.abs() <= bound
            if bool(near.any()):
                unsure.logical_or_(near & delicate(at))
        return gap > 0

    last = torch.full((rows, 1), n - 1, device=room.device)
    everything = above(last)
    at = torch.where(everything, last, bisect(above, rows, n - 1, n, room.device))
    step = (target - (sums.gather(1, at).float() + reach)) / -weight_sums.gather(1, at).float()
    counts = everything | reachable
    if doubt:
        unsure |= counts & delicate(at)
    step = torch.where(counts, step.clamp_min(0), torch.inf)
    return step.squeeze(1), everything.squeeze(1), unsure.squeeze(1)


@_in_blocks
def project_l2(points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor:
    """The shortest way in L2 to the hyperplane within the box.

    d = −w·min(α, room/|w|): along the normal, every coordinate until it is 0 or 1. Arguments and result as for
    `project_linf`; coordinates with |w| ≤ 1e-8 stay.
    """
    excess, side, weights, room, _ = _turned(points, normals, offsets)
    turned = side.mul_(weights)
    ratios = (room / weights).clamp_max_(FAR)
    if _any(weights < FLAT):
        ratios.masked_fill_(weights < FLAT, FAR)
    corner = _without(-(ratios * turned), weights, FLAT)
    reach = (corner * turned).sum(1)
    step, everything = _l2_step(
        excess.unsqueeze(1), reach.unsqueeze(1), *_upstream_order(ratios, weights**2, same_bits)
    )
    d = -(torch.minimum(step, ratios) * turned)
    d = _with_rows(d, everything, lambda rows: turned[rows] * -step[rows])
    return _without(d, weights, FLAT)


def _upstream_order(keys: Tensor, values: Tensor, same_bits: bool) -> tuple[Tensor, Tensor]:
    """Ascending keys and their values, with equal keys as upstream has them if the bits are to be the same.

    In L2 their order shows nearly always, in a sum of floats. Several saturated pixels are the usual case of it.
    """
    if not _fast(keys):
        return as_argsort(keys, values)
    if not same_bits:
        return as_integers(keys, values)
    tied = (keys == 0).sum(1) > 1
    first, other = tied.nonzero().squeeze(1), (~tied).nonzero().squeeze(1)
    if not len(other):
        return as_argsort(keys, values)
    ordered = as_integers(keys[other], values[other])
    equal = ((ordered[0][:, 1:] == ordered[0][:, :-1]) & (ordered[1][:, 1:] > 0)).any(1)
    rows = torch.cat((first, other[equal]))
    keys_in_order, values_in_order = torch.empty_like(keys), torch.empty_like(values)
    keys_in_order[other], values_in_order[other] = ordered
    keys_in_order[rows], values_in_order[rows] = as_argsort(keys[rows], values[rows])
    return keys_in_order, values_in_order


def _l2_step(excess: Tensor, reach: Tensor, ratios: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """α for each row, ∞ where the hyperplane is out of reach, and the rows where all coordinates move by α·w.

    Args:
        excess: ⟨w, t⟩ − b, shape (rows, 1).
        reach: ⟨w, d⟩ of the corner, shape (rows, 1).
        ratios, squares: room/|w| in ascending order, and w² in the same, shape (rows, n).
    """
    rows, n = ratios.shape
    following = torch.cat((ratios[:, 1:], ratios.new_zeros(rows, 1)), 1)
    ratios, following = (part.masked_fill(part == FAR, 0) for part in (ratios, following))
    total = squares.sum(1, keepdim=True)
    left = total - squares.cumsum(1)
    base = total * ratios[:, :1]
    falls = ((ratios - following) * left).cumsum(1)

    def moved(at: Tensor) -> Tensor:  # ⟨w, d⟩ with α at the ratio of this place
        return torch.where(at == 0, -base, falls.gather(1, (at - 1).clamp_min(0)) - base)

    everything = excess - base < 0
    at = bisect(lambda at: moved(at) + excess > 0, rows, n - 1, n, ratios.device)
    weight = left.gather(1, at)
    step = (moved(at) + excess) / weight + ratios.gather(1, at)
    step.masked_fill_(weight == 0, 0).masked_fill_(reach + excess > 0, torch.inf)
    return torch.where(everything, excess / total, step), everything.squeeze(1)


@_in_blocks
def project_l1(points: Tensor, normals: Tensor, offsets: Tensor, *, same_bits: bool = True) -> Tensor:
    """The shortest way in L1 to the hyperplane within the box.

    The coordinates with the largest |w| move as far as they can, the next one by what is left. Arguments and result as
    for `project_linf`; coordinates with |w| ≤ 1e-8 stay.
    """
    excess, side, weights, room, way = _turned(points, normals, offsets)
    places, falls = weights.reciprocal().clamp_max_(FAR), weights * room  # places: any numbers in the order of moving
    if _fast(points):
        keys, ordered = as_integers(places, falls)
        at, left, unsure = _l1_place(excess, ordered, keys)
        here = keys.gather(1, at)
        rows = unsure.nonzero().squeeze(1)
        if len(rows):
            places[rows], ordered = _l1_ranks(places[rows], falls[rows])
            again, left[rows], _ = _l1_place(excess[rows], ordered, None)
            here[rows] = again.float()
    else:
        places, ordered = _l1_ranks(places, falls)
        at, left, _ = _l1_place(excess, ordered, None)
        here = at.float()
    reached = left > -torch.inf
    last = (places - here).abs_().argmin(1, keepdim=True)
    rest = -left / (side.gather(1, last) * weights.gather(1, last))
    d = _with_rows(way, reached.squeeze(1), lambda rows: way[rows] * (places[rows] < here[rows]))
    d.scatter_(1, last, torch.where(reached, rest, d.gather(1, last)))
    return _without(d, weights, FLAT)


def _l1_ranks(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Each key's place in upstream's order, and the values in that order."""
    order = torch.argsort(keys, dim=1)
    places = torch.arange(keys.shape[1], device=keys.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).to(keys.dtype), values.gather(1, order)


def _l1_place(excess: Tensor, falls: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Where along the order the sum of `falls` passes `excess`.

    Args:
        excess: ⟨w, t⟩ − b, shape (rows,).
        falls: |w|·room in the order of moving, shape (rows, n).
        keys: what they are ordered by, to look for rows in which another order of equal keys could show; or None where
            the order is upstream's.

    Returns:
        Place; what the coordinate there has to make up for, −∞ where the hyperplane is out of reach; shape (rows, 1).
        Where the order could show, shape (rows,).
    """
    rows, n = falls.shape
    sums = running_sums(torch.cat((excess.unsqueeze(1), -falls), 1))
    reached = sums[:, -1:].float() < 0
    at = bisect(lambda at: sums.gather(1, at).float() > 0, rows, n + 1, n, falls.device).clamp_max_(n - 1)
    left = sums.gather(1, at)
    unsure = torch.zeros_like(reached)
    if keys is not None:
        key = keys.gather(1, at)
        unsure = (at > 0) & (key == keys.gather(1, (at - 1).clamp_min(0)))
        unsure |= (at < n - 1) & (key == keys.gather(1, (at + 1).clamp_max(n - 1)))
        # What was added up to each place is as much as the sum fell from its start.
        start, following, end = excess.double().unsqueeze(1), sums.gather(1, at + 1), sums[:, -1:]
        unsure |= depends_on_order(left, at, 2 * start) | (following >= (following - 2 * start) * (n * 2.0**-51))
        unsure = (reached & unsure) | (end.abs() <= (2 * start - end) * (n * 2.0**-51))
    return at, torch.where(reached, left.float(), -torch.inf), unsure.squeeze(1)


def _fast(points: Tensor) -> bool:
    return points.is_cpu and points.dtype == torch.float32 and sums_are_doubles()


def _any(mask: Tensor) -> bool:
    """Whether a mask is worth applying: on a GPU it is, since looking costs more."""
    return not mask.is_cpu or bool(mask.any())


def _with_rows(d: Tensor, mask: Tensor, make: Callable[[Tensor | slice], Tensor]) -> Tensor:
    """`d` with the rows of `mask` (shape (rows,)) from `make`, which is given which rows to make."""
    if not d.is_cpu:
        return torch.where(mask.unsqueeze(1), make(slice(None)), d)
    rows = mask.nonzero().squeeze(1)
    if len(rows):
        d[rows] = make(rows)
    return d


def _without(d: Tensor, weights: Tensor, flat: float) -> Tensor:
    """`d` with zeros where a weight is at most `flat`."""
    if d.is_cpu and float(weights.amin()) > flat:
        return d
    return d.masked_fill_(weights <= flat, 0)


PROJECTIONS: dict[str, Projection] = {"linf": project_linf, "l2": project_l2, "l1": project_l1}
