"""How far two results lie apart: a fast wrong step is worthless, so such a figure stands beside every time."""

from collections.abc import Iterable

from torch import Tensor

from benchmarks.timing import significant


def apart(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, in float64."""
    difference = (found.double() - expected.double()).norm()
    return significant((difference / expected.double().norm().clamp_min(1e-300)).item(), 2)


def all_apart(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The same of many tensors taken as one vector."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, expected, strict=True)]
    difference = sum((a - b).square().sum().item() for a, b in pairs)
    length = sum(b.square().sum().item() for _, b in pairs)
    return significant((difference / max(length, 1e-300)) ** 0.5, 2)


def same_sign(found: Tensor, expected: Tensor) -> float:
    """The share of entries whose sign is the same: what a sign step sees of a gradient."""
    return significant((found.sign() == expected.sign()).double().mean().item(), 6)
