"""Mixing images in pairs, labels in the same proportion: MixUp and CutMix, as torchvision does them.

The partner of a row is the row before it in the global batch (that of row 0 the last one), and λ and the rectangle are
the same for the whole batch. A process therefore makes one row more than it keeps, and sees what every other process
sees. An epoch's order is random, so neighbours are random pairs.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from advtrain import checks
from advtrain.random import stream_seed
from advtrain.types import Images, Labels, SettingError, Targets

WORDS = ("none", "mixup", "cutmix")


class NoMixing:
    """Images and labels as they are."""

    def parts(self, rows: slice, batch_size: int) -> list[slice]:
        """The rows of the global batch that have to be made in order to have `rows`."""
        return [rows]

    def __call__(self, x: Images, y: Labels, seed: int, epoch: int, step: int) -> tuple[Images, Targets]:
        """The rows to keep, from those of `parts`."""
        return x, y


@dataclass(frozen=True)
class Mixing:
    """MixUp (Zhang et al., arXiv:1710.09412) or CutMix (Yun et al., arXiv:1905.04899).

    Attributes:
        word: "mixup" or "cutmix".
        alpha: λ is drawn from Beta(alpha, alpha), once per batch.
        num_classes: C.
    """

    word: str
    alpha: float
    num_classes: int

    @cached_property
    def _transform(self):
        from torchvision.transforms import v2

        transform = v2.MixUp if self.word == "mixup" else v2.CutMix
        return transform(alpha=self.alpha, num_classes=self.num_classes)

    def parts(self, rows: slice, batch_size: int) -> list[slice]:
        """The partner of the first row, then `rows`."""
        before = (rows.start - 1) % batch_size
        return [slice(before, before + 1), rows]

    def __call__(self, x: Images, y: Labels, seed: int, epoch: int, step: int) -> tuple[Images, Targets]:
        """Mixes every row with the one before it, and drops the first, which has none.

        Args:
            x: float32 in [0, 1], shape (1 + n, c, h, w).
            y: int64, shape (1 + n,).
            seed, epoch, step: name the draw.

        Returns:
            Images of shape (n, c, h, w) and class probabilities, float32, shape (n, C).
        """
        # torchvision draws from the global CPU generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "mix", epoch, step))
            mixed, labels = self._transform(x, y)
        return mixed[1:].clamp_(0, 1), labels[1:]  # λ + (1 - λ) may be above 1 by its last bit


def mixing(word: str, alpha: float, num_classes: int | None) -> NoMixing | Mixing:
    """What `data.mix=word` means.

    Raises:
        SettingError: the word or alpha cannot be used, or the number of classes is not known.
    """
    checks.choice("data.mix", word, WORDS)
    alpha = checks.number("data.mix_alpha", alpha, above=0)
    if word == "none":
        return NoMixing()
    if num_classes is None:
        raise SettingError(
            f"data.mix={word}: expected data.num_classes, since mixed labels are probabilities of the classes, got "
            "null; give it, or use data.mix=none"
        )
    return Mixing(word, alpha, num_classes)
