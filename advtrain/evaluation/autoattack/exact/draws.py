"""Upstream's random numbers, drawn without a trace in the global generators."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """The stream of random numbers of one attack on one batch.

    Upstream seeds the global generators and draws from them: from the CPU's, also for images on a GPU, but for the
    noise of APGD's large-ε starts. Generators of our own with the same seed give the same numbers.

    Args:
        seed: of the stream.
        device: where the images are.
        shared: seeds and uses the global generators instead, as randomised models draw from them too. Whoever wants
            them as they were saves and restores them.
    """

    def __init__(self, seed: int, device: torch.device, *, shared: bool = False) -> None:
        self.device = device
        self.shared = shared
        self._host = self._local = None
        if shared:
            torch.manual_seed(seed)
        else:
            self._host = torch.Generator("cpu").manual_seed(seed)
            on_host = device.type == "cpu"
            self._local = self._host if on_host else torch.Generator(device).manual_seed(seed)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """From [0, 1), on the CPU. Drawing twice n numbers or once 2n numbers gives the same ones."""
        return torch.rand(tuple(shape), generator=self._host)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, on the CPU."""
        return torch.randn(tuple(shape), generator=self._host)

    def normal_on_device(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, by the generator of the images' device."""
        return torch.randn(tuple(shape), generator=self._local, device=self.device)

    def skip_normal(self, shape: Sequence[int]) -> None:
        """Numbers that upstream draws on the CPU and does not use; nothing to do where nobody draws there later."""
        if self.shared or self.device.type == "cpu":
            self.normal(shape)

    def position(self) -> Tensor:
        """Where the CPU's stream is; for `rewind`."""
        return torch.get_rng_state() if self._host is None else self._host.get_state()

    def rewind(self, position: Tensor) -> None:
        """Puts the CPU's stream back to an earlier position."""
        if self._host is None:
            torch.set_rng_state(position)
        else:
            self._host.set_state(position)
