"""torch.compile's folders on the disk: filling them before the GPU script runs, and what it found there.

The second process that compiles a graph reads what the first one wrote (FxGraphCache, AOTAutogradCache and Triton's,
all on unless switched off), so that only tracing is left. TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR name the
folders; what lies there is for one version of PyTorch and one kind of GPU.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks import gpu_cases
from benchmarks.gpu_cases import Case
from benchmarks.gpu_rungs import LADDER, NUDGE, Entrant, FixedImages, Rung
from benchmarks.gpu_timing import Deadline, OutOfTime, one_line, time_limit

COUNTED = {
    "graphs_read": ("inductor", "fxgraph_cache_hit"),
    "graphs_built": ("inductor", "fxgraph_cache_miss"),
    "graphs_not_cacheable": ("inductor", "fxgraph_cache_bypass"),
    "traces_read": ("aot_autograd", "autograd_cache_hit"),
    "traces_built": ("aot_autograd", "autograd_cache_miss"),
    "traces_not_cacheable": ("aot_autograd", "autograd_cache_bypass"),
}


@contextmanager
def caches_counted(found: dict[str, Any]) -> Iterator[None]:
    """Notes in `found["compile_cache"]` what of the block's compiling was read from the disk and what was built."""
    before = _counts()
    try:
        yield
    finally:
        counted = {name: count - before[name] for name, count in _counts().items()}
        found["compile_cache"] = {name: count for name, count in counted.items() if count}


def _counts() -> dict[str, int]:
    return {name: counters[group][key] for name, (group, key) in COUNTED.items()}


def warm_up(
    cases: Sequence[Case],
    device: torch.device,
    *,
    toy: bool,
    deadline: Deadline,
    record: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """Compiles what the ladders of these cases compile, and times nothing. Notes what was built by case and rung.

    The replayed rung has the graphs of "+ compile=step", so that nothing is recorded here.
    """
    for case in cases:
        rungs = [rung for rung in LADDER if rung.compiled and not rung.acceleration.cuda_graph]
        for rung in rungs:
            if case.interpreted or (case.short and not rung.short):
                continue
            found = record.setdefault(f"{case.name}: {rung.name}", {"status": "left out: no time"})
            if deadline.left() > 0:
                _build(rung, case, device, toy=toy, deadline=deadline, found=found)
                read = found.get("compile_cache", {})
                tell(f"{case.name}: {rung.name}: {found['status']} in {found['seconds']} s, {read}")


def _build(
    rung: Rung, case: Case, device: torch.device, *, toy: bool, deadline: Deadline, found: dict[str, Any]
) -> None:
    """On random weights and images: what is compiled depends on neither."""
    started = time.monotonic()
    try:
        with caches_counted(found), time_limit(deadline.left()):
            data = gpu_cases.batches(case, device)
            state = gpu_cases.network(case, toy, device).state_dict()
            inside = data[0].x.clamp(2 * NUDGE, 1 - 2 * NUDGE)
            Entrant(rung, case, data, state, toy).look(FixedImages(inside, inside))
        found["status"] = "built"
    except (Exception, OutOfTime) as error:  # the others are worth having
        found["status"] = f"failed: {one_line(error)}"
    found["seconds"] = round(time.monotonic() - started, 1)
    torch._dynamo.reset()
