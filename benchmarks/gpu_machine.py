"""What the machine of the GPU script can do, matrix and copy rates, and how it is: clocks, temperature, power."""

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from advtrain.engine.run_directory import hardware
from benchmarks.gpu_timing import Clock, spread

PRECISIONS = ("fp32", "tf32", "bf16")
QUERY = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit", "utilization.gpu")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """How float32 products are computed on a GPU: exactly for fp32, with inputs of 10 bits for tf32.

    "bf16" concerns autocast, which the caller turns on; what it leaves in float32 is computed exactly. "defaults" is
    what PyTorch does when nothing is said, and most published code says nothing: TF32 in convolutions alone, cuDNN's
    first choice of algorithm. Everywhere else cuDNN tries its algorithms.
    """
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)
    try:
        cudnn.allow_tf32 = precision in ("tf32", "defaults")
        matmul.allow_tf32 = precision == "tf32"
        cudnn.benchmark = precision != "defaults"
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def ceilings(device: torch.device, clock: Clock, block_seconds: float, toy: bool) -> dict[str, Any]:
    """TFLOP/s of a large matrix product per precision and TB/s of a large copy (bytes read plus bytes written).

    Of each, five blocks of about `block_seconds`.
    """
    side, numbers = (256, 2**20) if toy else (8192, 2**30)
    found: dict[str, Any] = {"matrix": f"{side} × {side} × {side}, normal random numbers", "matrix_tflops": {}}
    for precision in PRECISIONS:
        if precision == "tf32" and device.type != "cuda":
            found["matrix_tflops"][precision] = None
            continue
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        with arithmetic(precision):
            seconds = _blocks(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), clock, block_seconds)
        found["matrix_tflops"][precision] = spread([2 * side**3 / s / 1e12 for s in seconds])
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    seconds = _blocks(lambda: target.copy_(source), clock, block_seconds)
    found["copy"] = f"{source.nbytes / 2**20:g} MiB"
    found["copy_tb_per_s"] = spread([2 * source.nbytes / s / 1e12 for s in seconds])
    return found


def _blocks(work: Any, clock: Clock, block_seconds: float) -> list[float]:
    """Seconds per call, in five blocks."""
    work()
    once = clock.seconds(work, 3)
    calls = max(1, round(block_seconds / max(once, 1e-9)))
    return [max(clock.seconds(work, calls), 1e-12) for _ in range(5)]


def rate(ceilings: dict[str, Any], precision: str) -> float | None:
    """The median matrix rate in FLOP/s; None where it was not measured."""
    found = ceilings.get("matrix_tflops", {}).get(precision)
    return None if found is None else found["median"] * 1e12


def reserved(device: torch.device) -> int:
    """Bytes that the allocator holds for what is alive; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def peak_memory(work: Callable[[], object], device: torch.device, base: int = 0) -> dict[str, float]:
    """What the allocator holds at most while `work` runs, pools of CUDA graphs included, beyond `base` bytes."""
    if device.type != "cuda":
        work()
        return {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return {"peak_memory_gib": round((torch.cuda.max_memory_reserved(device) - base) / 2**30, 3)}


def state(device: torch.device) -> dict[str, Any]:
    """Clocks (MHz), temperature (°C) and power (W) as nvidia-smi tells them; nothing is ever set."""
    if device.type != "cuda":
        return {"nvidia_smi": "not asked: no GPU"}
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"nvidia_smi": "not found"}
    index = device.index or 0
    words = [program, f"--id={index}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia_smi": f"no answer: {type(error).__name__}"}
    return dict(zip(QUERY, (value.strip() for value in done.stdout.split(",")), strict=False))


def machine(device: torch.device) -> dict[str, Any]:
    """What it is, for the record."""
    found: dict[str, Any] = {**hardware(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": state(device).get("driver_version"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
