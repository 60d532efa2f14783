"""torchvision's and timm's models take images in [0, 1] and standardise them inside."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from advtrain.models import Normalize, conv_stem_model, resnet_50, timm_model, torchvision_model
from advtrain.models.conv_stem import ChannelNorm, ConvStem
from advtrain.types import SettingError


def test_normalize_standardises_each_channel() -> None:
    x = torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    got = Normalize(nn.Identity(), mean=(0.25, 0.0, 0.5), std=(0.5, 0.25, 2))(x)
    assert_close(got[:, :, 0, 0], torch.tensor([[0.0, 2.0, 0.25]] * 2))


def test_normalize_keeps_the_statistics_out_of_the_state_dict() -> None:
    model = Normalize(nn.Linear(2, 2), mean=(0.5,), std=(0.5,))
    assert set(model.state_dict()) == {"model.weight", "model.bias"}
    assert model.double().mean.dtype == torch.float64  # they move with the model


def test_normalize_takes_whole_numbers() -> None:
    assert Normalize(nn.Identity(), mean=(0,), std=(1,)).half().mean.dtype == torch.float16


def test_resnet_50_sees_standardised_images() -> None:
    model, x = resnet_50(num_classes=3).eval(), torch.rand(1, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert_close(model(x), model.model((x - mean) / std))


def test_resnet_50_is_torchvisions() -> None:
    with torch.device("meta"):
        ours, theirs = resnet_50(num_classes=3).state_dict(), torchvision.models.resnet50(num_classes=3).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        f"model.{name}": value.shape for name, value in theirs.items()
    }


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "ResNet18_Weights"),
        ("resnet34", "ResNet34_Weights"),
        ("resnext101_64x4d", "ResNeXt101_64X4D_Weights"),
    ],
)
def test_torchvisions_models_are_those_of_its_weights(name: str, weights: str) -> None:
    with torch.device("meta"):
        model = torchvision_model(name=name, weights=None)
    published = getattr(torchvision.models, weights).IMAGENET1K_V1.meta["num_params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_resnext_101_32x4d_is_timms() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = torchvision_model(name="resnext101_32x4d").model, timm.create_model("resnext101_32x4d")
        layers = [[m for m in model.modules() if isinstance(m, nn.Conv2d)] for model in (ours, theirs)]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    settings = [[(m.weight.shape, m.stride, m.padding, m.groups) for m in part] for part in layers]
    assert sorted(settings[0]) == sorted(settings[1])
    assert {m.groups for m in layers[0]} == {1, 32}


def test_torchvision_starts_from_a_file(tmp_path: Path) -> None:
    original = torchvision.models.resnet18(num_classes=5)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    model = torchvision_model(name="resnet18", num_classes=7, weights=str(tmp_path / "weights.pth"), new_head=True)
    started = model.model.state_dict()
    assert all(torch.equal(v, started[k]) for k, v in original.state_dict().items() if not k.startswith("fc."))
    assert started["fc.weight"].shape == (7, 512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": None}, r"model\.name: expected a model of torchvision, got none; add model\.name="),
        ({"name": "resnet81"}, r"model\.name: .*got 'resnet81'; did you mean .*resnet18"),
        ({"name": ["resnet18"]}, r"model\.name: .*got \['resnet18'\]"),
        ({"name": "%%%"}, r"model\.name: .*got '%%%'; see torchvision\.models\.list_models"),
        ({"name": "googlenet"}, r"model\.name: expected .* whose output is logits alone, got 'googlenet'"),
        ({"name": "fasterrcnn_resnet50_fpn"}, r"model\.name: .*got 'fasterrcnn"),
        ({"name": "resnet18", "num_classes": 0}, r"model\.num_classes: expected an integer"),
        ({"name": "resnet18", "std": (0.2, 0.2)}, r"model\.std: expected one of each per channel"),
        ({"name": "resnet18", "new_head": True}, r"model\.new_head=true: expected model\.weights, got none"),
    ],
)
def test_torchvision_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_model(**settings)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])  # of different statistics
def test_timm_models_bring_their_statistics(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm_model(name=name, num_classes=3)
    assert isinstance(model, Normalize)
    config = timm.get_pretrained_cfg(name).to_dict()
    assert model.mean.flatten().tolist() == pytest.approx(config["mean"])
    assert model.std.flatten().tolist() == pytest.approx(config["std"])
    assert model.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 3)


@pytest.mark.parametrize("name", ["convnext_tiny", "deit_small_patch16_224"])
def test_a_conv_stem_takes_the_place_of_the_patches(name: str) -> None:
    pytest.importorskip("timm")
    model = conv_stem_model(name=name, num_classes=3).eval()
    side = 224 if "224" in name else 64
    stem = next(module for module in model.modules() if isinstance(module, ConvStem))
    assert stem(torch.rand(1, 3, side, side)).shape[2] == side // (16 if "224" in name else 4)
    assert not [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.stride != (2, 2)]
    x = torch.rand(1, 3, side, side)
    assert torch.equal(model(x), model.model(x))  # no normalisation unless it is asked for


def test_channel_norm_standardises_each_pixel() -> None:
    norm, x = ChannelNorm(6).double(), torch.rand(2, 6, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, 7))
        norm.bias.copy_(torch.arange(6))
    for n, i, j in ((0, 0, 0), (1, 2, 1)):
        pixel = x[n, :, i, j]
        z = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-6).sqrt()
        assert_close(norm(x)[n, :, i, j], z * torch.arange(1, 7) + torch.arange(6))


def test_conv_stems_exist_for_some_bodies_only() -> None:
    with pytest.raises(SettingError, match=r"model\.name: expected one of convnext_tiny, .*got 'resnet18'"):
        conv_stem_model(name="resnet18")


def test_timm_starts_from_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    original = timm.create_model("resnet10t", num_classes=5)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    model = timm_model(name="resnet10t", num_classes=5, weights=str(tmp_path / "weights.pth"))
    started = model.model.state_dict()
    assert all(torch.equal(value, started[name]) for name, value in original.state_dict().items())


def test_timm_absent_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingError, match=r"model=timm: expected the package timm.*pip install 'advtrain\[timm\]'"):
        timm_model(name="resnet18")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": None}, r"model\.name: expected a model of timm, got none; add model\.name="),
        ({"name": "resnet81"}, r"model\.name: .*got 'resnet81'; did you mean .*resnet18"),
        ({"name": 18}, r"model\.name: .*got 18"),
        ({"name": "%%%"}, r"model\.name: .*got '%%%'; see timm\.list_models"),
        ({"name": "resnet18", "num_classes": 0}, r"model\.num_classes: expected an integer"),
        (
            {"name": "resnet18", "pretrained": True, "weights": "a.pt"},
            r"model\.pretrained=true: expected no model\.weights",
        ),
        ({"name": "resnet18", "new_head": True}, r"model\.new_head=true: expected model\.weights, got none"),
        ({"name": "resnet18", "weights": "nowhere.pt"}, r"model\.weights: .*got 'nowhere\.pt'; no such file"),
        ({"name": "resnet18", "gradient_checkpointing": 1}, r"model\.gradient_checkpointing: expected true or false"),
        ({"name": "resnet18", "pretrained": "no"}, r"model\.pretrained: expected true or false"),
    ],
)
def test_timm_settings(settings: dict[str, Any], message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(SettingError, match=message):
        timm_model(**settings)
