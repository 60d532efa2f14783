"""Settings out of range stop with the setting's name, what was expected and what came."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from advtrain import models

SIZES = {
    models.PreActResNet: ("num_classes",),
    models.ResNet: ("num_classes",),
    models.ThinResNet: ("num_classes",),
    models.VGG: ("num_classes",),
    models.WideResNet: ("num_classes", "widen_factor"),
    models.DMWideResNet: ("num_classes", "width"),
    models.SmallPreActResNet: ("num_classes", "width", "blocks", "in_channels"),
    models.SmallCNN: ("num_classes", "in_channels", "image_size", "width", "hidden"),
    models.MobileNetV1: ("num_classes",),
    models.MobileNetV2: ("num_classes", "expansion"),
    models.ShuffleNetV1: ("num_classes",),
    models.ShuffleNetV2: ("num_classes",),
    models.resnet_50: ("num_classes",),
}
CASES = [
    (models.PreActResNet, "depth", 20, "18 or 34"),
    (models.PreActResNet, "depth", 18.0, "18 or 34"),
    (models.ResNet, "depth", 20, "18, 34, 50, 101 or 152"),
    (models.ResNet, "depth", "18", "18, 34, 50, 101 or 152"),
    (models.PreActResNet, "bn_before_fc", "no", "true or false"),
    (models.PreActResNet, "out_shortcut", 1, "true or false"),
    (models.ThinResNet, "depth", 18, "6 k"),
    (models.ThinResNet, "depth", 2, "6 k"),
    (models.ThinResNet, "width", 2, "1 or 4"),
    (models.VGG, "depth", 12, "8, 11, 13, 16 or 19"),
    (models.WideResNet, "depth", 30, "6 k"),
    (models.WideResNet, "depth", 4, "6 k"),
    (models.WideResNet, "depth", "28", "6 k"),
    (models.WideResNet, "activation", "gelu", "relu or silu"),
    (models.DMWideResNet, "depth", 27, "6 k"),
    (models.DMWideResNet, "depth", 4, "6 k"),
    (models.DMWideResNet, "activation", "swish", "relu or silu"),
    (models.DMWideResNet, "mean", (0.5, 0.5), "three of each"),
    (models.DMWideResNet, "std", (0.5, 0.5, 0.0), "std above 0"),
    (models.MobileNetV1, "mean", (0.5, 0.5), "three of each"),
    (models.MobileNetV1, "std", (0.5, 0.5, 0.0), "std above 0"),
    (models.MobileNetV2, "width", 0.05, "from 0.1 to 4"),
    (models.MobileNetV2, "width", 4.5, "from 0.1 to 4"),
    (models.MobileNetV2, "width", float("nan"), "from 0.1 to 4"),
    (models.MobileNetV2, "width", True, "from 0.1 to 4"),
    (models.MobileNetV2, "width", "0.5", "from 0.1 to 4"),
    (models.SmallPreActResNet, "activation", "tanh", "relu or silu"),
    (models.SmallCNN, "image_size", 7, "even"),
    (models.resnet_50, "std", (0.2, 0.2), "one of each per channel"),
    (models.resnet_50, "std", (0.2, 0.2, -0.2), "std above 0"),
]


@pytest.mark.parametrize(
    ("model", "name"),
    [(model, name) for model, names in SIZES.items() for name in names],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
@pytest.mark.parametrize("value", [0, -1, 2.5, "many", None, True])
def test_sizes_are_positive_integers(model: Callable[..., nn.Module], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"model\.{name}: expected an integer of at least 1, got "):
        model(**{name: value})


@pytest.mark.parametrize(("model", "name", "value", "expected"), CASES)
def test_other_settings(model: Callable[..., nn.Module], name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{name}.*: expected .*{expected}.*got ") as caught:
        model(**{name: value})
    assert "\n" not in str(caught.value)
    shown = list(value) if isinstance(value, tuple) else value
    assert str(shown) in str(caught.value)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (models.WideResNet, {"depth": 10, "widen_factor": 1, "num_classes": 1, "activation": "silu"}),
        (models.DMWideResNet, {"depth": 10, "width": 1, "num_classes": 1}),
        (models.SmallPreActResNet, {"width": 1, "blocks": 1, "in_channels": 1, "activation": "silu"}),
        (models.MobileNetV2, {"width": 0.1, "expansion": 1, "num_classes": 1}),
        (models.SmallCNN, {"image_size": 2, "width": 1, "hidden": 1}),
    ],
)
def test_the_smallest_sizes_build(model: Callable[..., nn.Module], settings: dict[str, Any]) -> None:
    assert isinstance(model(**settings), nn.Module)
