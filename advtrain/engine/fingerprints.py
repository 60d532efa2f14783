"""SHA-256 sums that say which network and which images something was computed with."""

import hashlib

import torch
from torch import nn

from advtrain.data.base import Dataset

SAMPLE = 16  # training images whose pixels stand for those of all


def of_network(model: nn.Module) -> str:
    """The SHA-256 of a network's weights and buffers, those outside of its state dict (a mean, a deviation) included.

    Wherever they lie and in whichever precision they are used: as float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous()
        digest.update((plain.float() if plain.is_floating_point() else plain).numpy().tobytes())
    return digest.hexdigest()


def of_images(data: Dataset) -> str:
    """The SHA-256 of the labels of all training images and the pixels of some."""
    split = data.split("train")
    n = len(split)
    pixels = split.fetch(torch.arange(min(n, SAMPLE)) * n // min(n, SAMPLE), "cpu")
    return hashlib.sha256(split.labels.numpy().tobytes() + pixels.numpy().tobytes()).hexdigest()
