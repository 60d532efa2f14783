"""How much memory there is, and how much a computation takes."""

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from advtrain.types import SettingError

# Of a cgroup: its limit, its use, its statistics, and the name there of what only holds files. Versions 2 and 1.
CGROUPS = {
    "": ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
}

SAME_SLOPE = 0.02  # relative difference of two slopes that counts as none
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "unable to find an engine to execute")  # in messages of CUDA, cuDNN


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that PyTorch's operations allocate while it is entered.

    Exact, and the same on every machine, since no allocator is asked. What an operation takes for itself while it runs
    (a convolution's workspace) is not seen.

    Attributes:
        live: of the storages that are still there.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}  # older ones may be among them
        for storage in _storages(result):
            if storage._cdata not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:  # PyTorch keeps a storage's Python object for as long as the storage lives
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))


def host_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take on the host: what the system has, within the limits of its cgroups.

    Memory that only holds files which can be read again counts as available. Where there is no /proc (macOS) it is
    half of the machine's memory.

    Args:
        root: of the file system.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    left = [_cgroup_memory(folder, *CGROUPS[kind]) for kind, folder in _cgroups(root)]
    return min([_numbers(meminfo)["MemAvailable:"] * 1024, *(number for number in left if number is not None)])


def _cgroups(root: Path) -> Iterator[tuple[str, Path]]:
    """The cgroups that limit the memory of this process, from its own upwards, each with its kind."""
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)  # version 2 names no controllers
        if not controllers or "memory" in controllers.split(","):
            kind = "memory" if controllers else ""
            top = root / "sys/fs/cgroup" / kind
            # In a container the path may be that of the host; its own group is then the top one.
            yield from ((kind, top / part) for part in (path[1:], *map(str, PurePosixPath(path[1:]).parents)))


def _cgroup_memory(folder: Path, limit: str, use: str, statistics: str, files: str) -> int | None:
    """What a cgroup leaves of its limit; None where it has none or is not to be seen."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        dropped = _numbers(folder / statistics).get(files, 0)
        return max(0, int(most) - int((folder / use).read_text()) + dropped)
    except OSError:
        return None


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the line's first word."""
    words = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def fits_on_gpu(trial: Callable[[int], None], device: torch.device, share: float) -> Callable[[int], bool]:
    """Whether a trial of so many rows runs in a share of the memory that is free on the GPU."""

    def fits(rows: int) -> bool:
        torch.cuda.empty_cache()
        room = share * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)
        enough = runs(trial, rows)
        peak = torch.cuda.max_memory_reserved(device)
        gc.collect()  # the frames of an error hold tensors
        torch.cuda.empty_cache()
        return enough and peak <= room

    return fits


def runs(trial: Callable[[int], None], rows: int) -> bool:
    """Whether the trial comes through; False where memory runs out."""
    try:
        trial(rows)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; cuDNN and cuBLAS have words of their own
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return False
    return True


@dataclass(frozen=True)
class Line:
    """Bytes of a step as a function of its rows."""

    constant: float
    per_row: float

    def __str__(self) -> str:
        return f"a step takes {self.constant / 2**20:,.0f} MiB and {self.per_row / 2**20:,.2f} MiB an image"

    def within(self, room: float) -> Callable[[int], bool]:
        return lambda rows: self.constant + self.per_row * rows <= room


def bytes_per_row(trial: Callable[[int], None], first: int, most: int) -> Line:
    """The line on which the bytes of larger steps lie, from steps of `first` rows, twice as many, and so on.

    The peak of a step is the largest of several peaks, each on a line of its own: with few rows that of the update,
    where weights and gradients are, with many that of the passes. So the slope rises until it stays. Before it has
    risen, what grows with the rows is less than the gradients, which are at most half of the rest.

    Args:
        trial: takes a step with so many rows and leaves nothing behind.
        first: rows of the smallest step.
        most: rows of any step.

    Raises:
        SettingError: there is no such line up to `most` rows.
    """
    rows, peak, slope = first, peak_bytes(trial, first), 0.0
    while 2 * rows <= most:
        higher = peak_bytes(trial, 2 * rows)
        before, slope = slope, (higher - peak) / rows
        rows, peak = 2 * rows, higher
        constant = peak - slope * rows
        if abs(slope - before) <= SAME_SLOPE * slope and slope * rows >= constant / 2:
            return Line(constant, slope)
    raise SettingError(
        f"trainer.batch_size=auto: expected memory in proportion to the batch by {rows} images, got another course; "
        "give a number"
    )


def peak_bytes(trial: Callable[[int], None], rows: int) -> int:
    """The most bytes that are alive at a time in a trial, the model's among them."""
    gc.collect()
    with LiveBytes() as memory:
        trial(rows)
    return memory.peak
