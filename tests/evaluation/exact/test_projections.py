"""Projections onto hyperplanes within the box: upstream's to the bit, and right by other algorithms in doubles."""

import numpy as np
import pytest
import torch
from pyautoattack import fab_projections
from scipy.optimize import linprog

from advtrain.evaluation.autoattack.exact import hyperplanes, ordering, projections
from advtrain.evaluation.autoattack.exact.projections import PROJECTIONS

UPSTREAM = {
    "linf": fab_projections.projection_linf,
    "l2": fab_projections.projection_l2,
    "l1": fab_projections.projection_l1,
}
SHAPES = [(30, 1), (30, 2), (30, 36), (30, 64), (1, 3072), (20, 3072), (3, 40_000)]
pytestmark = pytest.mark.parametrize("norm", sorted(PROJECTIONS))


def hyperplane_problem(rows, n, kind, seed=0):
    """Points, normals and offsets; some hyperplanes near, some beyond the box."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    points, normals = uniform(rows, n), torch.randn(rows, n, generator=generator)
    if "saturated" in kind:
        points = (1.6 * points - 0.3).clamp(0, 1)
    if "grey" in kind:
        points = (points * 255).round() / 255
    if "zeros" in kind:
        normals[uniform(rows, n) < 0.3] = 0
        normals[0] = 0
    if "steps" in kind:
        normals = (normals * 3).round() / 64
    normals *= 10 ** (8 * uniform(rows, 1) - 7)
    distance = torch.randn(rows, generator=generator) * 10 ** (6 * uniform(rows) - 4)
    return points, normals, (normals * points).sum(1) + distance * normals.norm(dim=1)


KINDS = ["plain", "grey", "saturated", "grey saturated", "zeros", "steps", "grey saturated steps zeros"]


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_upstreams(norm, kind):
    for rows, n in SHAPES:
        given = hyperplane_problem(rows, n, kind)
        ours = PROJECTIONS[norm](*given)
        assert torch.equal(ours, UPSTREAM[norm](*(part.clone() for part in given))), (rows, n)
        assert all(torch.equal(a, b) for a, b in zip(given, hyperplane_problem(rows, n, kind), strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_of_many_rows_and_large_images(norm, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows, n in [(1, 40_000), (2, 150_528), (270, 3072)]:
            given = hyperplane_problem(rows, n, "grey saturated")
            assert torch.equal(PROJECTIONS[norm](*given), UPSTREAM[norm](*(part.clone() for part in given)))
    finally:
        torch.set_num_threads(before)


def at_a_breakpoint(rows=600, n=48):
    """Few levels of grey, and offsets that the Linf projection reaches exactly at one of the levels: whether sums pass
    there is a matter of rounding, and with it of the order of equal keys."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randint(0, 6, (rows, n), generator=generator) / 5
    normals = torch.randn(rows, n, generator=generator)
    room = (points - (normals < 0).float()).abs()
    level = torch.randint(1, 5, (rows, 1), generator=generator) / 5
    return points, normals, (normals * points).sum(1) - (normals.abs() * room.minimum(level)).sum(1)


def test_rows_that_depend_on_the_order_are_upstreams(norm):
    given = at_a_breakpoint()
    upstream = UPSTREAM[norm](*(part.clone() for part in given))
    assert torch.equal(PROJECTIONS[norm](*given), upstream)
    unchecked = PROJECTIONS[norm](*given, same_bits=False)
    points, normals, offsets = (part.double() for part in given)
    assert ((normals * (points + unchecked)).sum(1) - offsets).abs().max() < 5e-5  # of sums around 20
    if norm != "l1":  # there ties of points do not matter
        assert not torch.equal(unchecked, upstream)


def test_few_rows_take_the_slow_way(norm, monkeypatch):
    """Without equal keys, only the rows whose sums round to either of two floats: about 1 in 10,000, in L1 1 in 100."""
    if norm == "l2":
        pytest.skip("any two equal keys send a row of L2 the slow way")
    slow = []
    argsort = torch.argsort

    def counted(keys, dim):
        slow.append(len(keys))
        return argsort(keys, dim=dim)

    monkeypatch.setattr(torch, "argsort", counted)
    PROJECTIONS[norm](*hyperplane_problem(250, 3072, "grey saturated"))
    assert sum(slow) <= 25


def slow_linf(t, w, b):
    """By bisection on λ of d = −sign(w)·min(λ, room), which lowers ⟨w, t⟩ more the larger λ is."""
    return slow_clipped(t, w, b, np.ones_like(w))


def slow_clipped(t, w, b, speed):
    if w @ t < b:
        w, b = -w, -b
    room = np.where(w < 0, 1 - t, t) * (w != 0)

    def way(step):
        return -np.sign(w) * np.minimum(step * speed, room)

    low, high = 0.0, 2 / np.min(np.abs(speed)[speed != 0])
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if w @ (t + way(middle)) > b else (low, middle)
    return way(high)


def slow_l1(t, w, b):
    """By linear programming: min Σ(u + v) with t + u − v on the hyperplane and in the box."""
    if w @ t < b:
        w, b = -w, -b
    nearest = w @ np.where(w < 0, 1.0, 0.0)
    if nearest >= b:
        return np.where(w == 0, 0, np.where(w < 0, 1.0, 0.0) - t)
    n = len(t)
    bounds = [(0, 1 - value) for value in t] + [(0, value) for value in t]
    solution = linprog(np.ones(2 * n), A_eq=np.concatenate((w, -w))[None], b_eq=[b - w @ t], bounds=bounds)
    return solution.x[:n] - solution.x[n:]


SLOW = {"linf": slow_linf, "l2": lambda t, w, b: slow_clipped(t, w, b, np.abs(w)), "l1": slow_l1}
LENGTHS = {"linf": lambda d: np.abs(d).max(), "l2": np.linalg.norm, "l1": lambda d: np.abs(d).sum()}


@pytest.mark.parametrize("same_bits", [True, False])
@pytest.mark.parametrize("kind", ["plain", "grey saturated", "zeros", "grey saturated steps"])
def test_against_a_slow_reference_in_doubles(norm, kind, same_bits):
    points, normals, _ = hyperplane_problem(60, 12, kind)
    normals = torch.nn.functional.normalize(normals)
    offsets = (normals * points).sum(1) + torch.linspace(-2, 2, 60)  # from within reach to out of it, on both sides
    found = PROJECTIONS[norm](points, normals, offsets, same_bits=same_bits).double().numpy()
    for d, t, w, b in zip(
        found, points.double().numpy(), normals.double().numpy(), offsets.double().numpy(), strict=True
    ):
        if not w.any():
            assert not d.any()
            continue
        best = SLOW[norm](t, w, b)
        assert (t + d).min() > -1e-6
        assert (t + d).max() < 1 + 1e-6
        assert abs(w @ (t + d) - w @ (t + best)) < 1e-5  # on the hyperplane, or at the corner next to it
        assert abs(LENGTHS[norm](d) - LENGTHS[norm](best)) < 3e-5
        if norm != "l1":  # whose shortest way need not be the only one
            assert np.abs(d - best).max() < 3e-5


def test_without_looking_at_results(norm, monkeypatch):
    """The way of a GPU, here on a CPU: the same results, and no value leaves the device."""
    given = hyperplane_problem(40, 300, "grey saturated zeros")
    expected = PROJECTIONS[norm](*given)
    monkeypatch.setattr(hyperplanes, "host_looks", lambda values: False)
    assert not projections.fast(given[0])

    def refuse(self):
        raise AssertionError("a wait for the device")

    for method in ("__bool__", "__len__", "nonzero", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    assert ordering.sums_are_doubles()
    ours = PROJECTIONS[norm](*given)
    monkeypatch.undo()
    assert torch.allclose(ours, expected, atol=1e-6)
