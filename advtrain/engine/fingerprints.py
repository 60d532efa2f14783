"""SHA-256 sums that say which network and which images something was computed with."""

import hashlib

import torch
from torch import nn

from advtrain.data.base import Dataset

SAMPLE = 16  # training images whose pixels stand for those of all


def of_network(model: nn.Module) -> str:
    """SHA-256 of the state dict, tensor by tensor in the order of their names, and of the normalisation around it.

    Mean and deviation are no part of a state dict here, but of what the network says. Numbers with a point are taken as
    float32, so the dtype of a run does not matter.
    """
    tensors = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2] in ("mean", "std")}
    tensors |= model.state_dict()
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def of_images(data: Dataset) -> str:
    """The SHA-256 of the labels of all training images and the pixels of some."""
    split = data.split("train")
    n = len(split)
    pixels = split.fetch(torch.arange(min(n, SAMPLE)) * n // min(n, SAMPLE), "cpu")
    return hashlib.sha256(split.labels.numpy().tobytes() + pixels.numpy().tobytes()).hexdigest()
