"""Predicts what training by a configuration costs, in floating-point operations (FLOP).

    cost = F · batch_size · ⌊images_per_epoch / batch_size⌋ · Σ over epochs of passes(epoch)

F is the cost of one forward pass of one image: 2 FLOP per multiply-add of every convolution and matrix product, as
PyTorch's own counter has it. passes(epoch) is what one optimiser step of that epoch does to an image, in units of F:
each forward pass is 1, the gradient of a layer's input 1 and that of its weights 1. So a gradient for the images alone
is 2 with its forward pass, a gradient for the weights 3. PGD training with K steps is 2K + 3, TRADES and IKL are
2K + 7, weight perturbation adds the outer passes once more.

The passes are counted, not declared: a real step of the recipe's attack, loss and weight perturbation is taken on a
probe of two layers that counts what reaches it. Left out: normalisation, activations, the losses themselves, data
augmentation, validation and the evaluation at the end. The first layer is charged an input gradient that it need not
compute.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain.composition import compose
from advtrain.config import TrainerSettings, build
from advtrain.data.base import Batch
from advtrain.engine.numerics import numerics
from advtrain.engine.step import TrainingStep
from advtrain.recipes.evidence import evidence_of
from advtrain.runs import dataset
from advtrain.types import SettingError

IMAGES = 2  # in the batch of the probe
SIZE = 8  # pixels


def predicted_pflop(experiment: str) -> float:
    """The cost of an experiment in 10¹⁵ FLOP, for the images per epoch that its evidence states."""
    config = compose("train", [f"experiment={experiment}"])
    images = evidence_of(experiment).images_per_epoch
    return training_flop(config, dataset(config["data"]).image_shape, images) / 1e15


def training_flop(config: Mapping[str, Any], image_shape: tuple[int, int, int], images_per_epoch: int) -> float:
    """The cost of training in FLOP; see above for the formula.

    Args:
        config: composed; its model, attack, loss, weight perturbation, epochs and batch size count.
        image_shape: (channels, height, width) of what the model sees.
        images_per_epoch: of which whole batches are taken.
    """
    epochs, batch = config["trainer"]["epochs"], config["trainer"]["batch_size"]
    images = images_per_epoch // batch * batch
    return forward_flop(config["model"], image_shape) * images * _sum_over_epochs(config, image_shape[0], epochs)


def forward_flop(model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> int:
    """FLOP of one forward pass of one image, counted without computing anything.

    Args:
        model: config of the model.
        image_shape: (channels, height, width).
    """
    config = {**model, "pretrained": False} if "pretrained" in model else model
    network = _on_meta(config).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.device("meta"):
        network(torch.zeros(1, *image_shape))
    return counter.get_total_flops()


def _on_meta(model: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(model)
    except SettingError:  # timm's ConvNeXt reads tensors while it is built
        return build(model).to("meta")


def passes_of_epoch(config: Mapping[str, Any], epoch: int, channels: int = 3) -> float:
    """What an optimiser step of that epoch does to each image, in forward passes.

    Args:
        config: composed.
        epoch: from 1.
        channels: of the images.
    """
    classes = config["data"]["num_classes"]
    probe = Probe(channels * SIZE**2, classes)
    loss = build(config["loss"])
    settings = TrainerSettings(precision="fp32", device="cpu", channels_last=False)
    step = TrainingStep(
        probe,
        loss,
        torch.optim.SGD(probe.parameters(), lr=0.0),
        numerics=numerics(settings, torch.device("cpu"), channels),
        batch_size=IMAGES,
        accumulation=1,
        attack_batchnorm="eval",
        clip_norm=None,
        seed=0,
    )
    attack = None
    if loss.needs_attack:
        attack = build(config["attack"]).for_epoch(epoch, config["trainer"]["epochs"])
    perturbation = build(config["weight_perturbation"]).for_epoch(epoch)
    x = torch.rand(IMAGES, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.arange(IMAGES) % classes, slice(0, IMAGES))
    step(batch, attack, perturbation, epoch, 0)
    return probe.images / IMAGES


def _sum_over_epochs(config: Mapping[str, Any], channels: int, epochs: int) -> float:
    """Σ passes over all epochs, from few of them: between two epochs that are alike all are taken to be."""

    @cache
    def passes(epoch: int) -> float:
        return passes_of_epoch(config, epoch, channels)

    def between(first: int, last: int) -> float:  # the sum over first … last
        if passes(first) == passes(last):
            return passes(first) * (last - first + 1)
        middle = (first + last) // 2
        return between(first, middle) + between(middle + 1, last)

    return between(1, epochs)


class Probe(nn.Module):
    """Two linear layers, of which the second counts the images that pass it: forward, and backward to each operand.

    Attributes:
        images: counted so far.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, 4)
        self.second = nn.Linear(4, classes)
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        def count(gradient: Tensor | None = None) -> None:
            self.images += len(x)

        hidden = self.first(x.flatten(1))
        weight = self.second.weight * 1  # of this pass alone, so that its gradient is told from that of another pass
        count()
        for operand in (hidden, weight):
            if operand.requires_grad:
                operand.register_hook(count)
        return F.linear(hidden, weight, self.second.bias)
