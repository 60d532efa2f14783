"""Where and in which numbers training happens."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.types import Images, SettingError

AMPERE = 8  # compute capability of the first GPUs with TF32


@dataclass(frozen=True)
class Numerics:
    """How numbers are represented during training.

    Attributes:
        device: where the model is.
        dtype: of weights and images.
        autocast: whether the passes of the model run in bfloat16 where that is safe. Images, the ball around them,
            losses, BatchNorm's statistics and the weights stay in `dtype`.
        memory_format: of the model and of images.
        tf32: whether float32 matrix products and convolutions on GPUs round their factors to TF32's 10 bits.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    memory_format: torch.memory_format = torch.contiguous_format
    tf32: bool = False

    @property
    def word(self) -> str:
        """The value of `trainer.precision` that means this."""
        if self.dtype == torch.float64:
            return "fp64"
        return "bf16" if self.autocast else "tf32" if self.tf32 else "fp32"

    def exact(self) -> "Numerics":
        """What these numerics are judged by: the same weights, images and layout without anything coarser."""
        return replace(self, autocast=False, tf32=False)

    def casting(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def images(self, x: Images) -> Images:
        return x.to(dtype=self.dtype, memory_format=self.memory_format)

    @contextmanager
    def products(self) -> Iterator[None]:
        """Whether products use TF32, for the whole process: backward passes run outside of `casting`.

        PyTorch lets cuDNN's convolutions use TF32 unless told otherwise; here float32 means IEEE float32.
        """
        # By the names that evaluation.modes.exact_float32 and PyTorch's own tools read, too: a state that is set by
        # the newer fp32_precision makes reading the older names an error.
        cudnn: Any = torch.backends.cudnn
        matmul = torch.backends.cuda.matmul
        before = (cudnn.allow_tf32, matmul.allow_tf32)
        try:
            cudnn.allow_tf32 = matmul.allow_tf32 = self.tf32
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory format by its name: pickle itself would note whichever module happened to import torch first.
        fields = (self.device, self.dtype, self.autocast, str(self.memory_format).removeprefix("torch."), self.tf32)
        return _numerics_of, fields

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        products = " with TF32 products" if self.tf32 else ""
        return name + (" with bfloat16 autocast" if self.autocast else products)


def _numerics_of(device: torch.device, dtype: torch.dtype, autocast: bool, layout: str, tf32: bool) -> Numerics:
    return Numerics(device, dtype, autocast, getattr(torch, layout), tf32)


@contextmanager
def untried_kernels() -> Iterator[None]:
    """cuDNN takes its kernels by rule of thumb, for shapes that are met once.

    `torch.backends.cudnn.benchmark` times all of them at the first pass of each shape, in each direction: seconds that
    pay off over thousands of steps.
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    try:
        cudnn.benchmark = False
        yield
    finally:
        cudnn.benchmark = before


def device_named(word: str) -> torch.device:
    """The device of this process: `auto` prefers a GPU.

    Raises:
        SettingError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if word == "cuda" and not available:
        raise SettingError("trainer.device: expected a CUDA GPU, got none; use trainer.device=cpu")
    if word == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", distributed.local_rank())


def check_numerics(settings: TrainerSettings, device: torch.device) -> None:
    """Confirms that the device has what the settings ask for by name.

    Raises:
        SettingError: it has not.
    """
    where = "a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    if settings.precision == "tf32" and not _has_tf32(device):
        raise SettingError(
            f"trainer.precision=tf32: expected a GPU of the Ampere generation or later, got {where}; "
            "use trainer.precision=fp32"
        )
    if settings.precision == "bf16" and device.type == "cuda" and not _multiplies_in_bfloat16(device):
        raise SettingError(
            f"trainer.precision=bf16: expected a GPU that multiplies in bfloat16, got {where}; "
            "use trainer.precision=fp32"
        )
    if settings.cuda_graph and device.type != "cuda":
        raise SettingError(f"trainer.cuda_graph=true: expected a CUDA GPU, got {where}; use trainer.cuda_graph=null")


def numerics(settings: TrainerSettings, device: torch.device, channels: int) -> Numerics:
    """What `trainer.precision` and `trainer.channels_last` mean on this device, before anything is judged."""
    autocast = settings.precision == "bf16"
    if settings.precision == "auto":
        autocast = _multiplies_in_bfloat16(device)
    last = channels == 3 if settings.channels_last is None else settings.channels_last
    return Numerics(
        device=device,
        dtype=torch.float64 if settings.precision == "fp64" else torch.float32,
        autocast=autocast,
        memory_format=torch.channels_last if last else torch.contiguous_format,
        tf32=settings.precision == "tf32",
    )


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= AMPERE


def _multiplies_in_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= AMPERE
