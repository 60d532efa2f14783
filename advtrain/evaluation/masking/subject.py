"""The model under examination with its images, and how attacks are run on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advtrain.random import seeded_generator, stream_seed
from advtrain.types import Images, Labels, Logits, Objective

# (images, labels, generator) on the device → images
BatchAttack = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model and images.

    Attributes:
        model: images to logits, eager, frozen, in eval mode, on `device`.
        x: images in [0, 1], shape (n, c, h, w), on the CPU.
        y: labels, there too.
        norm, eps: the threat model.
        seed: of all draws.
        batch_size: images per pass.
        device: where the model is.
        clean: which images are classified correctly, bool (n,), on the CPU.
        num_classes: logits of the model.
    """

    model: nn.Module
    x: Images
    y: Labels
    norm: str
    eps: float
    seed: int
    batch_size: int
    device: torch.device | str
    clean: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.y)

    def correct(self, images: Images, rows: Tensor) -> Tensor:
        """Which of these images, of the examples `rows`, are classified correctly; bool, on the CPU."""
        return logits_of(self.model, images, self.batch_size, self.device).argmax(1) == self.y[rows]

    def attack(self, name: str, attack: BatchAttack, among: Tensor) -> tuple[Images, Tensor]:
        """Runs an attack on the images where `among`, bool (n,), is true.

        Args:
            name: of the random stream.
            attack: on one batch.
            among: which images.

        Returns:
            Images, on the CPU, the clean one where there was no attack; and which of all are correct then, bool (n,).
        """
        found, correct = self.x.clone(), self.clean.clone()
        for rows, images, labels, generator in self.batches(name, among):
            adversarial = attack(images, labels, generator).detach().cpu()
            found[rows], correct[rows] = adversarial, self.correct(adversarial, rows)
        return found, correct

    def batches(self, name: str, among: Tensor) -> Iterator[tuple[Tensor, Images, Labels, torch.Generator]]:
        """The images where `among` is true: their indices, themselves and labels on the device, a random stream."""
        for batch, rows in enumerate(among.nonzero().flatten().split(self.batch_size)):
            if len(rows):
                generator = seeded_generator(self.seed, "masking", name, batch, device=self.device)
                yield rows, self.x[rows].to(self.device), self.y[rows].to(self.device), generator


def objective_of(model: nn.Module, measure: Callable[[Logits], Tensor]) -> Objective:
    """Images → measure of the model's logits."""
    return lambda images: measure(model(images))


@torch.no_grad()
def logits_of(model: nn.Module, images: Images, batch_size: int, device: torch.device | str) -> Logits:
    """Logits, float32, on the CPU."""
    return torch.cat([model(part.to(device)).float().cpu() for part in images.split(batch_size)])


@contextmanager
def own_draws(seed: int, device: torch.device | str) -> Iterator[None]:
    """Randomised models draw from torch's global generators: seeded here, and on exit as they were before."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, "masking"))
        yield
