"""Square Attack's patterns in L2 and L1: two heaps of squares, one up, one down (arXiv:1912.00049, section 3.3)."""

import torch
from torch import Tensor


class Patterns:
    """Patterns by size, each computed once.

    Args:
        norm: l2 or l1; the norm of a pattern is 1.
        device: where they are.
    """

    def __init__(self, norm: str, device: torch.device) -> None:
        self.norm, self.device = norm, device
        self._known: dict[int, Tensor] = {}

    def get(self, size: int, *, upright: bool) -> Tensor:
        """The pattern of size × size pixels, or its transpose."""
        if size not in self._known:
            half = size // 2
            both = torch.cat((self._heap(half, size), -1.0 * self._heap(size - half, size)))
            self._known[size] = (both / self._norm_of(both)).to(self.device)
        pattern = self._known[size]
        return pattern if upright else pattern.T.contiguous()  # the rounding of sums depends on the layout

    def _heap(self, height: int, width: int) -> Tensor:
        """Squares of side 1, 3, 5 … around one centre, each adding 1/k² (L1: 1/k⁴)."""
        heap = torch.zeros(height, width)
        top, left = height // 2, width // 2
        for k in range(max(top, left) + 1):
            rows = slice(max(top - k, 0), min(top + k + 1, height))
            columns = slice(max(left - k, 0), min(left + k + 1, width))
            heap[rows, columns] += 1.0 / torch.tensor([k + 1.0]) ** (2 if self.norm == "l2" else 4)
        return heap / self._norm_of(heap)

    def _norm_of(self, pattern: Tensor) -> Tensor:
        return (pattern**2).sum((0, 1), keepdim=True).sqrt() if self.norm == "l2" else pattern.abs().sum()
