"""Where the time of a step goes: the longest kernels, and the shares of products, pointwise work and waiting."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_timing import significant

LONGEST = 12
STEPS = 2
# Words in the names of kernels (and, on a CPU, of operations). The first kind that fits is it.
POINTWISE = "pointwise work and reductions"  # and whatever else fits nowhere
KINDS = {
    # First, since the names that Inductor gives tell all that went into a kernel, and cuDNN has BatchNorm, too.
    POINTWISE: ("triton_poi", "triton_red", "triton_per", "batch_norm", "batchnorm", "bn_fw", "bn_bw"),
    "copies": ("memcpy", "memset", "copy", "nchwtonhwc", "nhwctonchw", "aten::clone", "aten::zero_", "aten::fill_"),
    "matrix products and convolutions": (
        *("conv", "gemm", "gemv", "xmma", "cutlass", "wgrad", "dgrad", "fprop", "nvjet", "cudnn", "winograd", "mma_"),
        *("mkldnn", "aten::addmm", "aten::mm", "aten::bmm"),
    ),
    "optimiser": ("multi_tensor", "foreach", "fused_sgd"),
}
GAPS = "gaps between kernels"
NEXT = {
    "copies": "copies: something changes layout, device or dtype in each step",
    "matrix products and convolutions": "matrix products and convolutions: their own kernels are the limit",
    "optimiser": "the optimiser: fuse it",
    POINTWISE: "pointwise work, bound by memory: fuse more of it",
    GAPS: "gaps between kernels: launches do not keep up; replay graphs or take larger batches",
}


def profiled(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """The longest kernels of a few steps and the share of each kind; on a CPU of operations in place of kernels."""
    gpu = device.type == "cuda"
    # Kernels alone on a GPU: tens of thousands of operations on the host would take seconds to read and slow it down.
    activities = [ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]
    step()
    seconds = _elapsed(step, device) if gpu else None
    with profile(activities=activities, acc_events=True) as found:  # torch 2.11 warns without
        for _ in range(STEPS):
            step()
        if gpu:
            torch.cuda.synchronize(device)
    rows = []
    for event in found.key_averages():
        on_device = str(getattr(event, "device_type", "")).endswith("CUDA")
        named = getattr(event, "is_user_annotation", False) or event.key.startswith(("ProfilerStep", "Optimizer."))
        if gpu != on_device or (gpu and named):  # a named stretch of the timeline holds kernels that are counted
            continue
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        rows.append((microseconds / STEPS, event.count / STEPS, event.key))
    return summary(rows, None if seconds is None else 1e6 * seconds)


def _elapsed(step: Callable[[], None], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(STEPS):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / STEPS


def summary(rows: list[tuple[float, float, str]], step_microseconds: float | None) -> dict[str, Any]:
    """From (microseconds per step, calls per step, name): the longest, the shares, and what to do next.

    Args:
        rows: of kernels, which run one after the other.
        step_microseconds: of a step without the profiler; what the kernels do not fill of it are gaps. None where
            nothing is known of gaps.
    """
    busy = sum(time for time, _, _ in rows)
    if not busy:
        return {"status": "failed: the profiler saw nothing"}
    whole = busy if step_microseconds is None else max(step_microseconds, busy)
    shares: dict[str, float] = {}
    for time, _, name in rows:
        shares[kind_of(name)] = shares.get(kind_of(name), 0.0) + time / whole
    if step_microseconds is not None:
        shares[GAPS] = 1 - busy / whole
    largest = max(shares, key=lambda kind: shares[kind])
    return {
        "milliseconds_per_step": significant(whole / 1e3),
        "kernels_per_step": round(sum(calls for _, calls, _ in rows)),
        "shares": {kind: round(share, 3) for kind, share in sorted(shares.items(), key=lambda item: -item[1])},
        "next_bottleneck": NEXT[largest],
        "longest": [
            {"name": name[:120], "share": round(time / whole, 4), "calls": round(calls, 1)}
            for time, calls, name in sorted(rows, reverse=True)[:LONGEST]
        ],
    }


def kind_of(name: str) -> str:
    """The kind of work that a kernel of this name does."""
    lowered = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lowered for word in words)), POINTWISE)
