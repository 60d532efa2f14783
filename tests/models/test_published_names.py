"""State dicts of CRD's and mdistiller's networks, which have these names, load strictly.

Their WRNs and ResNet-50 have the names of RobustBench's: see test_zoo_compatibility.
"""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from advtrain.models import VGG, MobileNetV2, ShuffleNetV1, ShuffleNetV2, ThinResNet

BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def layers(prefix: str, convolutions: Iterable[object], norms: Iterable[object], *, bias: bool = False) -> set[str]:
    kinds = ("weight", "bias") if bias else ("weight",)
    found = {f"{prefix}{name}.{kind}" for name in convolutions for kind in kinds}
    return found | {f"{prefix}{name}.{kind}" for name in norms for kind in BATCHNORM}


def numbered(prefix: str, count: int) -> set[str]:
    """conv1, bn1, conv2, bn2, …"""
    numbers = range(1, count + 1)
    return layers(prefix, [f"conv{n}" for n in numbers], [f"bn{n}" for n in numbers])


def head(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


def shufflenet(first: int) -> set[str]:
    """`first` is the number of convolutions in a stage's first unit; the others have three."""
    units = [(stage, i) for stage, count in ((1, 4), (2, 8), (3, 4)) for i in range(count)]
    return set().union(
        numbered("", 1), head("linear"), *[numbered(f"layer{s}.{i}.", 3 if i else first) for s, i in units]
    )


def mobilenet_v2() -> set[str]:
    blocks = [(stage, i) for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(count)]
    return set().union(
        layers("conv1.", [0], [1]),
        layers("conv2.", [0], [1]),
        head("classifier.0"),
        *[layers(f"blocks.{s}.{i}.conv.", [0, 3, 6], [1, 4, 7]) for s, i in blocks],
    )


def thin_resnet(blocks: int, first_stage: int) -> set[str]:
    """`first_stage` is the first whose first block has a convolution in its shortcut: 1 for the "x4" ones."""
    names = numbered("", 1) | head("fc")
    for stage in (1, 2, 3):
        names |= layers(f"layer{stage}.0.downsample.", [0], [1]) if stage >= first_stage else set()
        names |= set().union(*[numbered(f"layer{stage}.{i}.", 2) for i in range(blocks)])
    return names


def vgg(convolutions: int) -> set[str]:
    """A sequence of convolution, BatchNorm and ReLU, `convolutions` times per stage, without the last ReLU."""
    places = range(0, 3 * convolutions, 3)
    stages = [layers(f"block{s}.", places, [place + 1 for place in places], bias=True) for s in range(5)]
    return set().union(head("classifier"), *stages)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: ThinResNet(depth=20), thin_resnet(3, 2)),
        (lambda: ThinResNet(depth=8, width=4), thin_resnet(1, 1)),
        (lambda: VGG(depth=8), vgg(1)),
        (lambda: VGG(depth=13), vgg(2)),
        (MobileNetV2, mobilenet_v2()),
        (ShuffleNetV1, shufflenet(3)),
        (ShuffleNetV2, shufflenet(5) | layers("", ["conv2"], ["bn2"])),
    ],
    ids=["resnet20", "resnet8x4", "vgg8", "vgg13", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"],
)
def test_the_state_dict_has_the_published_names(build: Callable[[], nn.Module], names: set[str]) -> None:
    with torch.device("meta"):
        assert set(build().state_dict()) == names
