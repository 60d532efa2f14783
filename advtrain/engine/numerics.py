"""Where and in which numbers training happens."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.types import Images, SettingError


@dataclass(frozen=True)
class Numerics:
    """How numbers are represented during training.

    Attributes:
        device: where the model is.
        dtype: of weights and images.
        autocast: whether the passes of the model run in bfloat16 where that is safe.
        memory_format: of the model and of images.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    memory_format: torch.memory_format = torch.contiguous_format

    def casting(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def images(self, x: Images) -> Images:
        return x.to(dtype=self.dtype, memory_format=self.memory_format)


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


def numerics(settings: TrainerSettings, device: torch.device, channels: int) -> Numerics:
    """What `trainer.precision` and `trainer.channels_last` mean on this device."""
    autocast = settings.precision == "bf16"
    if settings.precision == "auto":
        autocast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    last = channels == 3 if settings.channels_last is None else settings.channels_last
    return Numerics(
        device=device,
        dtype=torch.float64 if settings.precision == "fp64" else torch.float32,
        autocast=autocast,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
