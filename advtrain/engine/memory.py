"""How much memory there is, and how much a computation takes."""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Of a cgroup: its limit, its use, its statistics, and the name there of what only holds files. Versions 2 and 1.
CGROUPS = {
    "": ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
}


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
