"""Random draws that do not depend on how a batch is cut up.

Every draw of a run comes from a stream named by (seed, purpose, epoch, step). A process that holds some rows of a
batch draws for the whole batch and keeps its own rows (`BatchRows`), so one process with 128 images, two with 64 and
gradient accumulation over 4 × 32 see the same numbers, bit for bit, and a resumed run needs no stored state.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def stream_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for the stream named by `keys`; unrelated for any two different names."""
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeded_generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for the stream named by `keys`, e.g. `seeded_generator(0, "attack", epoch, step)`."""
    generator = torch.Generator(device)
    generator.manual_seed(stream_seed(seed, *keys))
    return generator


def seed_layers(seed: int, device: torch.device) -> None:
    """Seeds what layers such as dropout draw from: PyTorch's global generators, of the CPU and of the current GPU.

    As torch.manual_seed, which without a started GPU takes longer than a small network's step: it takes notes, with a
    trace of its callers, for the day that one is started.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@dataclass(frozen=True)
class BatchRows:
    """The rows of a global batch that this process holds; draws are made for all rows and cut to these.

    With several views of each image, a tensor holds the rows of the first view, then those of the second, and so on.
    """

    generator: torch.Generator
    batch_size: int  # of the whole batch
    rows: slice
    views: int = 1

    def part(self, rows: slice) -> "BatchRows":
        """The same stream, cut to `rows` (of every view) counted from this part's first row."""
        first = self.rows.start
        return BatchRows(self.generator, self.batch_size, slice(first + rows.start, first + rows.stop), self.views)


Source = torch.Generator | BatchRows | None  # None: torch's global generator


def uniform_like(x: Tensor, low: float, high: float, source: Source = None) -> Tensor:
    """Uniform draws from [low, high) with the shape, dtype and device of `x`."""
    return _draw(torch.rand, x, source) * (high - low) + low


def normal_like(x: Tensor, source: Source = None) -> Tensor:
    """Standard normal draws with the shape, dtype and device of `x`."""
    return _draw(torch.randn, x, source)


def _draw(distribution, x: Tensor, source: Source) -> Tensor:
    if not isinstance(source, BatchRows):
        return distribution(x.shape, generator=source, dtype=x.dtype, device=x.device)
    views = source.views
    if len(x) != views * (source.rows.stop - source.rows.start):
        raise ValueError(
            f"expected {source.rows} of the batch, got {len(x)} images in {views} view(s); cut with BatchRows.part"
        )
    whole = (views, source.batch_size, *x.shape[1:])
    drawn = distribution(whole, generator=source.generator, dtype=x.dtype, device=x.device)
    return drawn[:, source.rows].flatten(0, 1)
