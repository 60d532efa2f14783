"""Crop and flip of an epoch: the array that lives on the device against torchvision's transforms of PIL images."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional

from advtrain.data.arrays import ArrayLoader, Presentation, whole
from advtrain.data.augmentations import augmentation
from advtrain.data.augmentations.placement import draws
from advtrain.random import BatchRows, seeded_generator
from benchmarks.timing import Work, compared, interleaved, significant

PIL, OURS = "PIL", "device"
PADDING, SEED = 4, 0


class PILImages(Dataset):
    """As torchvision's CIFAR-10: an array of which each item becomes a PIL image that goes through the transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        side = images.shape[-1]
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [transforms.RandomCrop(side, PADDING), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(functional.to_pil_image(self.images[index])), int(self.labels[index])


def our_loader(images: Tensor, labels: Tensor, batch_size: int) -> ArrayLoader:
    return ArrayLoader(
        whole(images, labels),
        presentation=Presentation(augmentation("crop_flip", padding=PADDING)),
        batch_size=batch_size,
        seed=SEED,
        rank=0,
        world_size=1,
        device="cpu",
    )


def measured(images: Tensor, labels: Tensor, *, batch_size: int, rounds: int) -> dict[str, Any]:
    """Times of an epoch, from uint8 images to float32 batches, in this process, and the ratio to PIL.

    Args:
        images: uint8, shape (n, 3, h, w), a whole number of batches of them.
        labels: int64, shape (n,).
        batch_size: images per batch.
        rounds: of one epoch each.
    """
    theirs = DataLoader(PILImages(images, labels), batch_size=batch_size, shuffle=True, drop_last=True)
    ours = our_loader(images, labels, batch_size)
    ways: dict[str, Work] = {
        PIL: lambda: sum(len(x) for x, _ in theirs),
        OURS: lambda: sum(len(batch.y) for batch in ours.epoch(1)),
    }
    found = compared(interleaved(ways, rounds=rounds, seed=0), PIL)
    for figures in found.values():
        figures["images_per_second"] = significant(1e3 * len(images) / figures["milliseconds"])
    found[OURS]["parity"] = {"pixels_equal": pixels_equal(images[:batch_size])}
    return {"images": len(images), "ways": found}


def pixels_equal(images: Tensor) -> float:
    """The share of pixels that agree where PIL is told the places and flips that ours draws."""
    n, _, height, width = images.shape
    ours = augmentation("crop_flip", padding=PADDING)(images, _source(n)).float() / 255
    drawn = draws(n, 3, _source(n))
    expected = []
    for image, (down, right, side) in zip(images, drawn.tolist(), strict=True):
        padded = functional.pad(functional.to_pil_image(image), [PADDING])
        top, left = int(down * (2 * PADDING + 1)), int(right * (2 * PADDING + 1))
        crop = functional.crop(padded, top, left, height, width)
        expected.append(functional.to_tensor(functional.hflip(crop) if side < 0.5 else crop))
    return (ours == torch.stack(expected)).double().mean().item()


def _source(n: int) -> BatchRows:
    return BatchRows(seeded_generator(SEED, "augment", 1, 0), n, slice(0, n))
