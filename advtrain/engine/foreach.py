"""Operations on many tensors at once: a few launches where a loop takes one for each tensor."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from advtrain.distributed import all_reduce_sum, own_part


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """targets[i] ← sources[i], for tensors of whatever kind; one operation for each dtype and device.

    Of tensors that are sharded over processes, the source like the target, each process copies its part.
    """
    kinds: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(map(own_part, targets), map(own_part, sources), strict=True):
        pair = kinds.setdefault((target.dtype, target.device), ([], []))
        pair[0].append(target)
        pair[1].append(source)
    for alike in kinds.values():
        torch._foreach_copy_(*alike)


@torch.no_grad()
def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies with the same values and layouts, outside of any graph."""
    originals = list(tensors)
    fresh = [torch.empty_like(tensor) for tensor in originals]
    copy_all(fresh, originals)
    return fresh


def add_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """tensors[i] ← tensors[i] + others[i]."""
    if tensors:
        torch._foreach_add_(tensors, others)


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each tensor, a number on its device; of one that is sharded over processes, that of the whole."""
    own = torch._foreach_norm([own_part(tensor) for tensor in tensors])
    if not tensors or own_part(tensors[0]) is tensors[0]:
        return list(own)
    squares = all_reduce_sum(torch.stack(list(own)).double().square())  # one message for all
    return list(squares.sqrt().to(own[0].dtype).unbind())


def scale_all(tensors: Iterable[Tensor], factor: Tensor) -> None:
    """tensors[i] ← factor · tensors[i], with a number that is on the device already."""
    if chosen := list(tensors):
        torch._foreach_mul_(chosen, factor)
