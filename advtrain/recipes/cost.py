"""Predicts what training by a configuration costs, in floating-point operations (FLOP).

    cost = batch_size · ⌊images_per_epoch / batch_size⌋ · Σ over epochs of (F · passes(epoch) + F_t · passes_t(epoch))

(with batch_size=auto, of which nothing is known before it is found: images_per_epoch · Σ …)

F is the cost of one forward pass of one image: 2 FLOP per multiply-add of every convolution and matrix product, as
PyTorch's own counter has it. passes(epoch) is what one optimiser step of that epoch does to an image, in units of F:
each forward pass is 1, the gradient of a layer's input 1 and that of its weights 1. So a gradient for the images alone
is 2 with its forward pass, a gradient for the weights 3. PGD training with K steps is 2K + 3, TRADES and IKL are
2K + 7, weight perturbation adds the outer passes once more, a second view doubles all. F_t and passes_t are those of
the teacher of a loss that distils: 1 pass in each step, more where the attack asks it about x', too; with logits that
are stored (`teacher.logits`), 1 pass of every image of every epoch that is stored. That the teacher must have been
trained is not part of the cost.

The passes are counted, not declared: a real step of the recipe's attack, loss and weight perturbation is taken on a
probe of two layers that counts what reaches it, with a second one for the teacher. Left out: normalisation,
activations, the losses themselves, data augmentation, validation and the evaluation at the end. The first layer is
charged an input gradient that it need not compute.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advtrain.config import TrainerSettings, build
from advtrain.data.base import Batch
from advtrain.engine.numerics import numerics
from advtrain.engine.step import TrainingStep
from advtrain.evidence import Evidence
from advtrain.losses import Distillation, Teacher
from advtrain.recipes.teacher import teacher_model
from advtrain.runs import dataset
from advtrain.types import SettingError

IMAGES = 2  # in the batch of the probe
SIZE = 8  # pixels


def predicted_pflop(config: Mapping[str, Any], evidence: Evidence) -> float:
    """The cost in 10¹⁵ FLOP of a composed recipe, for the images per epoch and the teacher that its evidence states.

    Raises:
        SettingError: the evidence and the recipe do not name the same teacher.
    """
    teacher = teacher_model(evidence.teacher, config)
    return training_flop(config, dataset(config["data"]).image_shape, evidence.images_per_epoch, teacher) / 1e15


def training_flop(
    config: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    images_per_epoch: int,
    teacher: Mapping[str, Any] | None = None,
) -> float:
    """The cost of training in FLOP; see above for the formula.

    Args:
        config: composed; its model, attack, loss, weight perturbation, epochs and batch size count.
        image_shape: (channels, height, width) of what the model sees.
        images_per_epoch: of which whole batches are taken.
        teacher: config of the teacher's model, for a loss that distils.
    """
    epochs, batch = config["trainer"]["epochs"], config["trainer"]["batch_size"]
    images = images_per_epoch if batch == "auto" else images_per_epoch // batch * batch
    passes = passes_per_image(config, image_shape[0])
    flop = forward_flop(config["model"], image_shape) * sum_over(lambda epoch: passes(epoch).student, 1, epochs)
    if teacher is not None:
        stored = 0 if config["teacher"]["logits"] is None else config["trainer"]["replay_epochs"] or 1
        asked = sum_over(lambda epoch: passes(epoch).teacher, 1, epochs)
        flop += forward_flop(teacher, image_shape) * (stored + asked)
    return images * flop


def forward_flop(model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> int:
    """FLOP of one forward pass of one image, counted on shapes alone.

    Args:
        model: config of the model.
        image_shape: (channels, height, width).
    """
    config = {**model, "pretrained": False} if "pretrained" in model else model
    return _forward_flop(json.dumps(config, sort_keys=True), image_shape)


@cache
def _forward_flop(model: str, image_shape: tuple[int, int, int]) -> int:
    network = _on_meta(json.loads(model)).eval()
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


class Passes(NamedTuple):
    """What an optimiser step does to each image, in forward passes of the network trained and of its teacher.

    The teacher has none where the loss does not distil.
    """

    student: float
    teacher: float


def passes_per_image(config: Mapping[str, Any], channels: int = 3) -> Callable[[int], Passes]:
    """A function of the epoch, from 1: the passes of its steps.

    Args:
        config: composed.
        channels: of the images.
    """
    classes = config["data"]["num_classes"]
    probe, teacher = (Probe(channels * SIZE**2, classes) for _ in range(2))
    loss = build(config["loss"])
    if isinstance(loss, Distillation):
        loss.hold(Teacher(teacher))
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
    attack = build(config["attack"]) if loss.needs_attack else None
    perturbation = build(config["weight_perturbation"])
    x = torch.rand(IMAGES, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    second_view = x if loss.views == 2 else None
    stored = None if config["teacher"]["logits"] is None else torch.zeros(IMAGES, classes)
    batch = Batch(x, torch.arange(IMAGES) % classes, slice(0, IMAGES), second_view, taught=stored)

    @cache
    def passes(epoch: int) -> Passes:
        probe.images = teacher.images = 0
        of_epoch = attack and attack.for_epoch(epoch, config["trainer"]["epochs"])
        step(batch, of_epoch, perturbation.for_epoch(epoch), epoch, 0)
        return Passes(probe.images / IMAGES, teacher.images / IMAGES)

    return passes


def sum_over(passes: Callable[[int], float], first: int, last: int) -> float:
    """Σ passes(epoch) from `first` to `last`, from few of them: between two that are alike all are taken to be."""
    if passes(first) == passes(last):
        return passes(first) * (last - first + 1)
    middle = (first + last) // 2
    return sum_over(passes, first, middle) + sum_over(passes, middle + 1, last)


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
