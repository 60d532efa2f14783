"""Every configs/model/*.yaml: builds, and maps images in [0, 1] to finite logits, the same ones each time."""

import functools
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.testing import assert_close

from advtrain.config import build, config_dir

PATHS = sorted(config_dir().glob("model/*.yaml"))
NEEDED = {"timm": {"name": "resnet18"}, "torchvision": {"name": "resnet18"}}
SMALLER = {"depth": 10, "widen_factor": 1, "width": 1}  # for the Wide ResNets
SIBLINGS = {  # of timm's families, and of the bodies for which there is a ConvStem
    "advtrain.models.timm_model": {"vit": "vit_tiny_patch16_224", "deit": "deit_tiny_patch16_224"}
    | {"convnext": "convnext_atto", "xcit": "xcit_nano_12_p16_224"},
    "advtrain.models.torchvision_model": {"imagenet_resnet": "resnet18", "resnext": "resnext50_32x4d"},
    "advtrain.models.conv_stem_model": {"vit": "deit_small_patch16_224", "convnext": "convnext_tiny"},
}
NUM_CLASSES = 7

each_config = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def config_of(path: Path) -> dict[str, Any]:
    merged = OmegaConf.create({"data": {"num_classes": NUM_CLASSES}, "model": OmegaConf.load(path)})
    config = cast(dict[str, Any], OmegaConf.to_container(merged.model, resolve=True))
    if config["_target_"].endswith(("timm_model", "conv_stem_model")):
        pytest.importorskip("timm")
    return config | NEEDED.get(path.stem, {})


def images_for(path: Path, n: int, device: str = "cpu") -> torch.Tensor:
    shape = (1, 8, 8) if path.stem == "small_cnn" else (3, 32, 32)
    if OmegaConf.load(path).get("weights", "") is None:  # the models of the libraries
        side = 224 if path.stem.startswith(("vit", "deit")) else 64
        shape = (3, side, side)
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)).to(device)


def small_model(path: Path) -> nn.Module:
    config = config_of(path)
    if "WideResNet" in config["_target_"]:
        config |= {key: value for key, value in SMALLER.items() if key in config}
    for family, sibling in SIBLINGS.get(config["_target_"], {}).items():
        if path.stem.startswith(family):
            config["name"] = sibling
    torch.manual_seed(0)
    model = build(config)
    if path.stem == "mobilenet_v2":
        return model  # its blocks depend on one another, and it is small
    for module in model.modules():
        for stage in ("blocks", "layer1", "layer2", "layer3", "layer4"):
            if isinstance(blocks := getattr(module, stage, None), nn.Sequential | nn.ModuleList):
                setattr(module, stage, blocks[:1])
    return model


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Gives each BatchNorm the statistics of these images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images)


def test_the_choices_are_found() -> None:
    assert {"preact_resnet_18", "wrn_28_10", "wrn_34_10_silu", "small_cnn"} <= {path.stem for path in PATHS}


@each_config
def test_full_size_maps_images_to_one_logit_per_class(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # timm reads the rates of its stochastic depth off a tensor, which has to have values.
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        model = build(config_of(path))
    assert model.eval()(images_for(path, 2, "meta")).shape == (2, NUM_CLASSES)


@each_config
def test_logits_are_finite_deterministic_and_per_image(path: Path) -> None:
    model, images = small_model(path), images_for(path, 4)
    if path.stem == "mobilenet_v1":
        settle(model, images)  # PyTorch's initial weights shrink the outputs of its 27 layers below float32's precision
    model.eval()
    with torch.no_grad():
        logits = model(images)
        assert logits.isfinite().all()
        assert logits.std(dim=0).max() > 0, "the logits do not depend on the image"
        assert torch.equal(logits, model(images))
        assert_close(model(images[1:2]), logits[1:2], atol=1e-5, rtol=1e-4)


@each_config
def test_input_gradients_flow_and_every_parameter_learns(path: Path) -> None:
    model, images = small_model(path).train(), images_for(path, 4).requires_grad_()
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
    assert images.grad is not None and images.grad.flatten(1).abs().sum(1).min() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


@each_config
def test_yaml_names_every_argument(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    module, _, name = config.pop("_target_").rpartition(".")
    assert set(config) == set(inspect.signature(getattr(import_module(module), name)).parameters)
    assert config["num_classes"] == "${data.num_classes}"
