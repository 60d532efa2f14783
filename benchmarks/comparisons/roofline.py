"""What this core can do, and what the convolutions of a network and the passes of an attack make of it.

Ceilings are measured, not looked up: matrix products, the fastest convolution, and a copy of an array much larger than
the caches. Bytes are counted: of a convolution its input, weights and output once; of passes what every operation reads
and writes, which is what eager execution asks of the memory (caches serve part of it).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from advtrain.attacks import PGD
from advtrain.losses import TRADES
from benchmarks import published
from benchmarks.comparisons.inputs import image_like, labels
from benchmarks.timing import interleaved, significant

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    """One kind of convolution in a network: channels, side of the kernel, stride, padding, side of its input."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int
    padding: int
    side: int

    def __str__(self) -> str:
        stride = f" / {self.stride}" if self.stride > 1 else ""
        return f"{self.channels_in} → {self.channels_out}, {self.kernel}×{self.kernel}{stride} at {self.side}"

    @property
    def side_out(self) -> int:
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1

    def flops(self, n: int) -> int:
        """Of one pass over n images; a multiplication and an addition are two."""
        return 2 * n * self.channels_in * self.channels_out * self.kernel**2 * self.side_out**2

    def bytes(self, n: int) -> int:
        """Input, weights and output in float32, once each."""
        images = self.channels_in * self.side**2 + self.channels_out * self.side_out**2
        return 4 * (n * images + self.channels_in * self.channels_out * self.kernel**2)


def convolutions(model: nn.Module, side: int) -> Counter[Shape]:
    """The kinds of convolutions of a network for images of that side, and how many there are of each."""
    found: Counter[Shape] = Counter()

    def note(module: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        (kernel, _), (stride, _), (padding, _) = module.kernel_size, module.stride, module.padding
        found[Shape(module.in_channels, module.out_channels, kernel, stride, padding, inputs[0].shape[-1])] += 1

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(torch.rand(2, 3, side, side))
    for handle in handles:
        handle.remove()
    return found


def passes(shape: Shape, n: int, layout: torch.memory_format) -> dict[str, Callable[[], object]]:
    """The three passes of a convolution: forward, gradient of the input, gradient of the weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, shape.channels_in, shape.side, shape.side, generator=generator).to(memory_format=layout)
    weight = torch.randn(shape.channels_out, shape.channels_in, shape.kernel, shape.kernel, generator=generator)
    weight = (weight / shape.channels_in).to(memory_format=layout)
    above = torch.randn(n, shape.channels_out, shape.side_out, shape.side_out, generator=generator)
    above = above.to(memory_format=layout)
    pair = ([shape.stride] * 2, [shape.padding] * 2, [1, 1])

    def backward(*mask: bool) -> Callable[[], object]:
        def work() -> object:
            return torch.ops.aten.convolution_backward(above, x, weight, None, *pair, False, [0, 0], 1, [*mask, False])

        return work

    return {
        "forward": lambda: F.conv2d(x, weight, None, *pair[:2]),
        "input_gradient": backward(True, False),
        "weight_gradient": backward(False, True),
    }


def layers(model: nn.Module, n: int, side: int, *, rounds: int, least: float) -> list[dict[str, Any]]:
    """GFLOP/s and milliseconds of every kind of convolution, pass and layout, medians over the rounds."""
    found = []
    for shape, count in convolutions(model, side).items():
        ways = {
            (layout, name): work for layout, word in LAYOUTS.items() for name, work in passes(shape, n, word).items()
        }
        times = {key: median(values) for key, values in _interleaved(ways, rounds, least).items()}
        entry: dict[str, Any] = {"shape": str(shape), "count": count, "flops": shape.flops(n), "bytes": shape.bytes(n)}
        for layout in LAYOUTS:
            entry[layout] = {
                name: {
                    "milliseconds": significant(1e3 * times[layout, name]),
                    "gflops": significant(shape.flops(n) / times[layout, name] / 1e9),
                }
                for name in ("forward", "input_gradient", "weight_gradient")
            }
        found.append(entry)
    return found


def _interleaved(ways: dict[tuple[str, str], Any], rounds: int, least: float) -> dict[tuple[str, str], list[float]]:
    named = {"/".join(key): work for key, work in ways.items()}
    times = interleaved(named, rounds=rounds, seed=0, least=least)
    return {key: times["/".join(key)] for key in ways}


def step_milliseconds(found: list[dict[str, Any]], layout: str, counts: dict[str, int]) -> float:
    """What the convolutions alone of so many passes of each kind through the network take."""
    return significant(
        sum(
            entry["count"] * count * entry[layout][name]["milliseconds"]
            for entry in found
            for name, count in counts.items()
        )
    )


def ceilings(size: int, copied: int, *, rounds: int, least: float) -> dict[str, float]:
    """GFLOP/s of matrix products of that size in float32 and bfloat16, GB/s of a copy of so many floats."""
    a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    low_a, low_b = a.bfloat16(), b.bfloat16()
    source, target = torch.rand(copied), torch.empty(copied)
    ways = {"float32": lambda: a @ b, "bfloat16": lambda: low_a @ low_b, "copy": lambda: target.copy_(source)}
    best = {name: min(values) for name, values in interleaved(ways, rounds=rounds, seed=0, least=least).items()}
    return {
        "matrix_float32_gflops": significant(2 * size**3 / best["float32"] / 1e9),
        "matrix_bfloat16_gflops": significant(2 * size**3 / best["bfloat16"] / 1e9),
        "copy_gbytes": significant(2 * source.nbytes / best["copy"] / 1e9),
    }


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write. Views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        if not view:
            read = {id(t): t.nbytes for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            self.bytes += sum(read.values()) + sum(t.nbytes for t in tree_iter(result) if isinstance(t, Tensor))
        return result


def attack_steps(network: Callable[[], nn.Module], n: int, side: int, classes: int, *, rounds: int) -> dict[str, Any]:
    """One step of a TRADES attack, the published way and ours in eager mode: FLOPs of convolutions, bytes, GFLOP/s."""
    once = sum(count * shape.flops(n) for shape, count in convolutions(network(), side).items())
    flops = {"published": 3 * once, "ours, eager": 2 * once}  # the published way computes the natural logits anew
    ways = _attack_steps(network, image_like(n, side, 0), labels(n, classes, 0))
    found: dict[str, Any] = {}
    for name, work in ways.items():
        with Traffic() as traffic:
            work()
        found[name] = {"flops": flops[name], "bytes": traffic.bytes}
    for name, values in interleaved(ways, rounds=rounds, seed=0).items():
        found[name]["gflops"] = significant(flops[name] / median(values) / 1e9)
    return found


def _attack_steps(network: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    theirs, model = network().eval(), network().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    ball, start = published.Ball(8 / 255, 1, 2 / 255), published.gaussian_start(x)
    x_last = x.to(memory_format=torch.channels_last)
    objective, attack = TRADES().inner(model, x_last, y), PGD(eps=8 / 255, steps=1, step_size=2 / 255)

    def divergence(images: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(theirs(images), 1), F.softmax(theirs(x), 1), reduction="sum")

    return {
        "published": lambda: published.climb(theirs, ball, x, start, divergence),
        "ours, eager": lambda: attack(objective, x_last, start=start.to(memory_format=torch.channels_last)),
    }
