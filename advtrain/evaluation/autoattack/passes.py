"""Cheaper ways of calling a frozen model: folded, in another precision and layout, in few shapes, compiled."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.fx.experimental.optimization import fuse

from advtrain.evaluation.autoattack.exact import Forward
from advtrain.types import Images, Logits

BUCKET = 64  # compiled passes take batches of multiples of it, so that few shapes are compiled and recorded


@contextmanager
def tf32() -> Iterator[None]:
    """Products of float32 numbers from their first 11 bits, on GPUs that can; their sums stay float32.

    PyTorch computes convolutions so unless it is told not to, but no matrix products. Algorithms are chosen as before,
    in `exact_float32` always the same ones. Concerns GPUs.
    """
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32)
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = True
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def passes(
    model: nn.Module, device: torch.device, dtype: torch.dtype, *, channels_last: bool, compiled: bool
) -> Forward:
    """Images to float32 logits through a copy of `model` that computes in `dtype`.

    Args:
        model: frozen, in eval mode, float32.
        device: of the model.
        dtype: float32, or what autocast shall compute in.
        channels_last: memory layout of weights and images.
        compiled: whether the copy is compiled, on GPUs with CUDA graphs. A graph keeps the arithmetic that was allowed
            when it was recorded: passes with and without TF32 need copies of their own.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    body: Any = folded(model).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    if dtype == torch.float16:
        finish_in_float32(body)
    gpu = device.type == "cuda"

    def through(call: Callable[[nn.Module, Images], Logits], x: Images) -> Logits:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return call(body, x.contiguous(memory_format=layout)).float()

    if compiled:
        return in_buckets(Compiled(through, graphs=gpu), multiple)
    if gpu:  # a convolution library prepares itself for every new shape
        return in_buckets(lambda x: through(_call, x), sixteenth)
    return lambda x: through(_call, x)


def _call(model: nn.Module, x: Images) -> Logits:
    return model(x)


class Compiled:
    """A forward pass behind torch.compile, with a graph for each shape.

    torch.compile counts its graphs against a limit of 8 per code object, and goes on without a word in eager mode
    behind it. Each shape therefore has a code object of its own, with one graph for passes that will be differentiated
    and one for the others.

    Args:
        through: calls what it is given with the model and the images.
        graphs: whether the passes are recorded as CUDA graphs.
    """

    def __init__(self, through: Callable[[Callable[[nn.Module, Images], Logits], Images], Logits], *, graphs: bool):
        self._through, self._graphs = through, graphs
        self._calls: dict[torch.Size, Callable[[nn.Module, Images], Logits]] = {}

    def __call__(self, x: Images) -> Logits:
        if x.shape not in self._calls:
            own = FunctionType(_call.__code__.replace(), _call.__globals__, _call.__name__)
            mode = "reduce-overhead" if self._graphs else None
            self._calls[x.shape] = torch.compile(own, dynamic=False, mode=mode)
        if self._graphs:  # whoever has the last pass's logits or gradient has a copy: see `in_buckets`
            torch.compiler.cudagraph_mark_step_begin()
        # FAB differentiates a pass once for every class, which buffers given away would not outlast.
        with functorch.patch("donated_buffer", False), _without_warnings_of_the_compiler():
            return self._through(self._calls[x.shape], x)


@contextmanager
def _without_warnings_of_the_compiler() -> Iterator[None]:
    """It asks what it is given for a `.grad`, which the images of an attack in the midst of a graph do not have,
    advises TF32, and tells which softmax is computed in the ordinary way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # verdicts are of exact float32
        warnings.filterwarnings("ignore", message=r"\s*Online softmax is disabled on the fly")
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
        yield


def folded(model: nn.Module) -> nn.Module:
    """A copy of a frozen model in eval mode, in which every BatchNorm behind a convolution is part of its weights. A
    plain copy of models that cannot be traced."""
    try:
        return fuse(model).eval().requires_grad_(False)
    except Exception:  # whatever tracing meets in foreign code; the copy computes the same
        return copy.deepcopy(model)


def finish_in_float32(model: nn.Module) -> None:
    """Takes the last linear layer of `model` out of autocast, in place: its logits are then not rounded to float16,
    whose steps can be larger than what a query of Square gains."""
    linear: list[Any] = [part for part in model.modules() if isinstance(part, nn.Linear)]
    for last in linear[-1:]:
        last.forward = partial(_in_float32, last.forward)


def _in_float32(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def multiple(n: int) -> int:
    """The next multiple of BUCKET."""
    return n + -n % BUCKET


def sixteenth(n: int) -> int:
    """`n` or up to a sixteenth more: 16 numbers from one power of two to the next, and all of them up to 32."""
    return n + -n % max(1, 2 ** (n.bit_length() - 5))


def in_buckets(forward: Forward, size: Callable[[int], int]) -> Forward:
    """`forward` on batches filled up to `size` of their size with copies of the first image.

    The product and the copy at the ends keep what a CUDA graph wrote: the next replay overwrites its logits and its
    gradient, while an attack holds on to both.
    """

    def padded(x: Images) -> Tensor:
        n = len(x)
        missing = size(n) - n
        filled = torch.cat((x, x[:1].expand(missing, *x.shape[1:]))) if missing else x
        return forward(filled * 1.0)[:n].clone()

    return padded
