"""Square Attack's starts and proposals in the three norms; the order of operations is upstream's.

Upstream computes on whole images what a query changes in a window only. Outside of the window nothing changes:
clamping twice is clamping once.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from advtrain.evaluation.autoattack.exact.draws import Draws
from advtrain.evaluation.autoattack.exact.l1_ball import l1_correction
from advtrain.evaluation.autoattack.exact.patterns import Patterns
from advtrain.evaluation.autoattack.exact.per_image import TINY, PerImage, length, normalised, wide
from advtrain.types import SettingError

SHARE = 0.8  # of an image's pixels, in the first windows
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, at the last two also where there are fewer


class Moves(ABC, PerImage):
    """The current images of a batch and what random search tries next.

    Attributes:
        best: the images accepted last, shape (n, c, h, w).
        depends_on_rest: whether the random numbers depend on how many images are left.
    """

    depends_on_rest = True
    best: Tensor

    def __init__(self, x: Tensor, eps: float, draws: Draws) -> None:
        self.x, self.eps, self.draws = x, eps, draws

    @abstractmethod
    def draw(self, first: int, queries: int) -> None:
        """Draws for so many queries, from number `first` on."""

    @abstractmethod
    def drawn(self, queries: int) -> None:
        """Says how many of the queries count: the stream goes on behind them."""

    @abstractmethod
    def propose(self, query: int) -> Tensor:
        """The images to try, by number of the query since `draw`. Valid until `settle`."""

    @abstractmethod
    def settle(self, better: Tensor) -> None:
        """Accepts the proposal for the images of this mask, shape (n,)."""

    def _signs(self, numbers: Tensor) -> Tensor:
        return torch.sign(2 * numbers.to(self.x.device, non_blocking=True) - 1)


class Linf(Moves):
    depends_on_rest = False

    def __init__(self, x: Tensor, eps: float, draws: Draws) -> None:
        super().__init__(x, eps, draws)
        n, c, _, w = x.shape
        self.best = (x + eps * self._signs(draws.uniform((n, c, 1, w)))).clamp_(0.0, 1.0)
        self.low, self.high = (x - eps).clamp_(0.0, 1.0), (x + eps).clamp_(0.0, 1.0)

    def draw(self, first: int, queries: int) -> None:
        _, c, h, w = self.x.shape
        sizes = [side(first + query, h, w, smallest=1) for query in range(queries)]
        numbers = self.draws.uniform((queries, 2 + c))
        self.windows = _windows(numbers, sizes, h, w)
        # A tuple, as `select` takes every tensor for one with an entry per image.
        self.shifts = (2.0 * self.eps * self._signs(numbers[:, 2:])).view(queries, c, 1, 1).unbind()

    def drawn(self, queries: int) -> None:
        pass

    def propose(self, query: int) -> Tensor:
        window = self.windows[query]
        here = self.best[window]
        old = here.clone()
        new = (here + self.shifts[query]).clamp_(self.low[window], self.high[window])
        here.copy_(new)
        self.pending = (here, old, new)
        return self.best

    def settle(self, better: Tensor) -> None:
        here, old, new = self.pending
        here.copy_(torch.where(wide(better), new, old))


class _TwoWindows(Moves):
    """L2 and L1: a pattern in one window takes over the norm of two windows and what the budget has left."""

    norm: str

    def __init__(self, x: Tensor, eps: float, draws: Draws) -> None:
        super().__init__(x, eps, draws)
        self.patterns = Patterns(self.norm, x.device)
        self.scratch, self.candidate = torch.empty_like(x), torch.zeros_like(x)
        self._tiles(self.candidate)
        self.best = self._fit().clone()
        self.parts = torch.zeros_like(x)
        self._measure()

    def _tiles(self, delta: Tensor) -> None:
        n, c, h, w = delta.shape
        size = h // 5
        if not size:
            raise SettingError(f"square in {self.norm}: expected images of height 5 or more, got {h}; leave square out")
        corner = (h - size * 5) // 2
        if size > 1 and (corner + h // size * size > h or corner + w // size * size > w):
            raise SettingError(
                f"square in {self.norm}: expected images that the start's tiles of {size} pixels fit, got {h}×{w}; "
                "leave square out"
            )
        for tile in range((h // size) * (w // size)):
            row, column = divmod(tile, w // size)
            top, left = corner + row * size, corner + column * size
            numbers = self.draws.uniform((1 + n * c,))
            pattern = self.patterns.get(size, upright=bool(numbers[0] <= 0.5))
            delta[:, :, top : top + size, left : left + size] += pattern * self._signs(numbers[1:]).view(n, c, 1, 1)

    def draw(self, first: int, queries: int) -> None:
        n, c, h, w = self.x.shape
        self.position = (self.draws.position(),)
        sizes = [side(first + query, h, w, smallest=3) for query in range(queries)]
        numbers = self.draws.uniform((queries, 5 + n * c))
        self.windows = _windows(numbers, sizes, h, w)
        self.others = _windows(numbers[:, 2:], sizes, h, w)
        upright = (numbers[:, 4] <= 0.5).tolist()
        self.shapes = [self.patterns.get(size, upright=up) for size, up in zip(sizes, upright, strict=True)]
        self.signs = self._signs(numbers[:, 5:]).view(queries, n, c, 1, 1).unbind()

    def drawn(self, queries: int) -> None:
        n, c = self.x.shape[:2]
        if queries < len(self.windows):
            self.draws.rewind(self.position[0])
            self.draws.uniform((queries, 5 + n * c))

    def propose(self, query: int) -> Tensor:
        window, other = self.windows[query], self.others[query]
        old = self.delta[window]
        pattern = self.shapes[query] * self.signs[query] + old / (TINY + self._window_norm(self._powers(old)))
        both = self._norm_of_both(window, other)
        new = pattern / (TINY + self._window_norm(self._powers(pattern))) * self._budget(both)
        self.candidate.copy_(self.delta)
        self.candidate[other] = 0.0
        self.candidate[window] = self._last_factor(new)
        return self._fit()

    def settle(self, better: Tensor) -> None:
        torch.where(wide(better), self.candidate, self.best, out=self.best)
        self._measure()

    def _measure(self) -> None:
        self.delta = self.best - self.x
        self.size = length(self.delta, self.norm, self.scratch)

    def _norm_of_both(self, window: tuple[slice, ...], other: tuple[slice, ...]) -> Tensor:
        """Norm over the union of the windows, per channel: in a whole image of zeros, as the rounding of a sum depends
        on its length."""
        for part in (window, other):
            self.parts[part] = self._powers(self.delta[part])
        norms = self._window_norm(self.parts)
        for part in (window, other):
            self.parts[part] = 0.0
        return norms

    @abstractmethod
    def _powers(self, delta: Tensor) -> Tensor: ...

    @abstractmethod
    def _window_norm(self, powers: Tensor) -> Tensor:
        """Norm per image and channel, shape (n, c, 1, 1)."""

    @abstractmethod
    def _budget(self, both: Tensor) -> Tensor:
        """Norm that the new pattern may have."""

    @abstractmethod
    def _fit(self) -> Tensor:
        """Makes images in the ball of the perturbations in `candidate`, there."""

    def _last_factor(self, new: Tensor) -> Tensor:
        return new


class L2(_TwoWindows):
    norm = "l2"

    def _powers(self, delta: Tensor) -> Tensor:
        return delta * delta

    def _window_norm(self, powers: Tensor) -> Tensor:
        return powers.sum((-2, -1), keepdim=True).sqrt_()

    def _budget(self, both: Tensor) -> Tensor:
        squared = torch.full_like(self.size, self.eps) ** 2
        return ((squared - self.size**2).clamp_(min=0.0) / self.x.shape[1] + both**2).sqrt_()

    def _fit(self) -> Tensor:
        return normalised(self.candidate, "l2", self.scratch).mul_(self.eps).add_(self.x).clamp_(0.0, 1.0)


class L1(_TwoWindows):
    norm = "l1"

    def _powers(self, delta: Tensor) -> Tensor:
        return delta.abs()

    def _window_norm(self, powers: Tensor) -> Tensor:
        return powers.sum((-2, -1), keepdim=True)

    def _budget(self, both: Tensor) -> Tensor:
        return (self.eps - self.size).clamp_(min=0.0) / self.x.shape[1] + both

    def _last_factor(self, new: Tensor) -> Tensor:
        return new * self.x.shape[1]

    def _fit(self) -> Tensor:
        correction = l1_correction(self.x, self.candidate, self.eps * (1.0 - 1e-6))
        return self.candidate.add_(self.x).add_(correction)


MOVES: dict[str, type[Moves]] = {"linf": Linf, "l2": L2, "l1": L1}


def side(query: int, h: int, w: int, *, smallest: int) -> int:
    """Side of the windows of a query, in pixels; odd for L2 and L1, whose smallest one is 3."""
    share = SHARE / 2 ** sum(query > after for after in HALVED_AFTER)
    pixels = max(round(math.sqrt(share * h * w)), smallest)
    if smallest == 3 and pixels % 2 == 0:
        pixels += 1
    return min(pixels, h, w)


def _windows(numbers: Tensor, sizes: list[int], h: int, w: int) -> list[tuple[slice, ...]]:
    """One random window per row of `numbers`, from its first two columns."""
    room = torch.tensor([[h - size, w - size] for size in sizes], dtype=numbers.dtype)
    corners = (room * numbers[:, :2]).long().tolist()
    return [
        (slice(None), slice(None), slice(top, top + size), slice(left, left + size))
        for (top, left), size in zip(corners, sizes, strict=True)
    ]
