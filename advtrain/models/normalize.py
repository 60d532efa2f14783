"""Mean and standard deviation inside the model, so that ε means the same everywhere."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """A model that expects standardised images, made to take images in [0, 1].

    The wrapped model's keys get the prefix `model.`, as in RobustBench's `normalize_model`, whose loader takes it off
    and, for ImageNet, puts it back; mean and deviation are not in the state dict.

    Args:
        model: takes standardised images, shape (n, c, h, w).
        mean, std: per channel, in units of pixels in [0, 1].

    Raises:
        ValueError: not one mean and one positive deviation per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not len(mean) == len(std) > 0 or min(std) <= 0:
            got = f"{list(mean)} and {list(std)}"
            raise ValueError(
                f"model.mean, model.std: expected one of each per channel, std above 0, got {got}; fix them"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)
