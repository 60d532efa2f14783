"""Rows in order, with what belongs to each key carried along; sums along the order and searches in them.

On a CPU `torch.argsort` is most of the time of FAB's projections. NumPy sorts integers with vector instructions, many
times as fast, so a key and its value travel as the two halves of one integer. Equal keys come in the order of their
values then, where upstream has them as `torch.argsort` leaves them (which is not stable). The projections find the rows
where that could show in a result, and do them again in upstream's order.
"""

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

HIGH = 1 if sys.byteorder == "little" else 0  # the half of an int64 that decides comparisons
WORTH_THREADS = 1 << 16  # numbers to sort; below, one thread is as fast


def as_argsort(keys: Tensor, values: Tensor, *, descending: bool = False) -> tuple[Tensor, Tensor]:
    """`keys` in ascending order along dimension 1, and `values` in the same: the order of `torch.argsort`.

    Descending is the ascending order backwards, as in upstream's projection; among equal keys it is another one than
    that of a descending sort.
    """
    order = torch.argsort(keys, dim=1)
    if descending:
        order = order.flip(1)
    return keys.gather(1, order), values.gather(1, order)


def as_integers(keys: Tensor, values: Tensor, *, descending: bool = False) -> tuple[Tensor, Tensor]:
    """As `as_argsort`, in any order among equal keys, and several times as fast.

    Args:
        keys, values: float32 on the CPU, shape (rows, n), not negative, no −0.0 (whose bits are those of no number ≥ 0).
    """
    pairs = np.empty((*keys.shape, 2), np.int32)
    bits = keys.contiguous().numpy().view(np.int32)  # of floats ≥ 0: ordered as the floats are
    if descending:
        np.invert(bits, out=pairs[..., HIGH])
    else:
        pairs[..., HIGH] = bits
    pairs[..., 1 - HIGH] = values.contiguous().numpy().view(np.int32)
    _sort_rows(pairs.view(np.int64)[..., 0])
    high = np.invert(pairs[..., HIGH]) if descending else np.ascontiguousarray(pairs[..., HIGH])
    low = np.ascontiguousarray(pairs[..., 1 - HIGH])
    return torch.from_numpy(high.view(np.float32)), torch.from_numpy(low.view(np.float32))


def _sort_rows(rows: np.ndarray) -> None:
    threads = min(torch.get_num_threads(), len(rows))
    if threads == 1 or rows.size < WORTH_THREADS:
        rows.sort(axis=1)
        return
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of the interpreter while it sorts
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(rows, threads)))


def running_sums(values: Tensor) -> Tensor:
    """Sums along dimension 1, in doubles on a CPU: rounded to float32 they are `torch.cumsum`'s, which adds in doubles
    there. On other devices `torch.cumsum` itself."""
    return (values.double() if values.is_cpu else values).cumsum(1)


@cache
def sums_are_doubles() -> bool:
    """Whether `torch.cumsum` adds float32 in doubles on a CPU, as it does in every version so far."""
    numbers = torch.full((1, 1000), 2.0**-24)
    numbers[0, 0] = 1  # in floats, every further sum would round back to 1
    return bool(numbers.cumsum(1)[0, -1] == numbers.double().sum().float())


def depends_on_order(sums: Tensor, n: int | Tensor, scale: Tensor | None = None) -> Tensor:
    """Where another order of its up to `n` addends could change a sum in doubles, rounded to float32.

    Each order is within n·2⁻⁵³ of the true sum, relative to `scale`, the sum of the addends' magnitudes (default: the
    sums themselves, of addends ≥ 0).
    """
    error = (sums if scale is None else scale) * (n * 2.0**-51)
    return (sums - error).float() != (sums + error).float()


def bisect(holds: Callable[[Tensor], Tensor], rows: int, high: int, n: int, device: torch.device) -> Tensor:
    """The last place of 0 … `high` − 1 where `holds`, or 0, for each of `rows`, in upstream's ⌈log₂ n⌉ steps.

    `holds` maps places, int64 of shape (rows, 1), to bool of that shape; from some place on it must be false.
    """
    low, above = torch.zeros(rows, 1, dtype=torch.long, device=device), torch.full((rows, 1), high, device=device)
    for _ in range(math.ceil(math.log2(n))):
        middle = (low + above) >> 1
        found = holds(middle)
        low, above = torch.where(found, middle, low), torch.where(found, above, middle)
    return low
