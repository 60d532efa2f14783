"""Every YAML of a published architecture has the number of parameters that was published."""

import functools
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf

from advtrain.config import build, config_dir

# Of github.com/kuangliu/pytorch-cifar's classes with 10 classes, as torchsummary prints them. Its PreActResNets have no
# BatchNorm before the last layer (two numbers per channel), and RobustBench's have the same keys as ours.
CIFAR_10 = {
    "resnet_18": 11_173_962,
    "resnet_34": 21_282_122,
    "resnet_50_cifar": 23_520_842,
    "preact_resnet_18": 11_171_146 + 2 * 512,
    "wrn_28_10": 36_479_194,  # 36.5 M in Zagoruyko & Komodakis (2016)
}
# Millions, with 100 classes: Tian et al., "Contrastive Representation Distillation", ICLR 2020, and Zhao et al. (DKD).
CIFAR_100 = {
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
    "resnet_50_cifar": 23.7,
    "resnet8": 0.08,
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "vgg8": 3.97,
    "vgg13": 9.46,
    "mobilenet_v2": 0.81,
    "shufflenet_v1": 0.95,
    "shufflenet_v2": 1.36,
}
# Millions, with 1000 classes: timm's results tables (param_count) and torchvision's documentation. The ConvStem models
# have RobustBench's shapes: see test_zoo_compatibility.
IMAGENET = {
    "imagenet_resnet_18": 11.69,
    "imagenet_resnet_34": 21.80,
    "resnet_50": 25.56,
    "resnext_101_32x4d": 44.18,
    "vit_small": 22.05,
    "vit_base": 86.57,
    "deit_small": 22.05,
    "convnext_tiny": 28.59,
    "convnext_small": 50.22,
    "convnext_base": 88.59,
    "xcit_small": 26.25,
    "mobilenet_v1": 4.23,
}


def count(word: str, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # timm reads its values
    path = config_dir() / "model" / f"{word}.yaml"
    merged = OmegaConf.create({"data": {"num_classes": num_classes}, "model": OmegaConf.load(path)})
    config = cast(dict[str, Any], OmegaConf.to_container(merged.model, resolve=True))
    if config["_target_"].endswith(("timm_model", "conv_stem_model")):
        pytest.importorskip("timm")
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(config).parameters())


@pytest.mark.parametrize("word", CIFAR_10)
def test_cifar_10(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(word, 10, monkeypatch) == CIFAR_10[word]


@pytest.mark.parametrize(
    ("word", "classes", "millions"),
    [(word, 100, millions) for word, millions in CIFAR_100.items()]
    + [(word, 1000, millions) for word, millions in IMAGENET.items()],
)
def test_published_millions(word: str, classes: int, millions: float, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(count(word, classes, monkeypatch) / 1e6, digits) == millions
