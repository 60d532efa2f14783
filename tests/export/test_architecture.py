"""How others build the networks that RobustBench or a library has."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from advtrain import models
from advtrain.export.architecture import Architecture, describe
from advtrain.export.weights import loader_names


def built_from_text(architecture: Architecture) -> nn.Module:
    """What architecture.py makes, in a module of its own."""
    module = ModuleType("architecture")
    exec(compile(architecture.source, "architecture.py", "exec"), vars(module))
    return getattr(module, architecture.build)(**architecture.arguments)


@pytest.mark.parametrize(
    ("target", "arguments", "name", "call"),
    [
        (
            "PreActResNet",
            {"depth": 18, "bn_before_fc": True, "out_shortcut": True},
            "PreActResNet-18",
            "PreActResNet(PreActBlock, [2, 2, 2, 2], num_classes=10, bn_before_fc=True, out_shortcut=True)",
        ),
        (
            "PreActResNet",
            {"depth": 34, "num_classes": 100},
            "PreActResNet-34",
            "PreActResNet(PreActBlock, [3, 4, 6, 3], num_classes=100, bn_before_fc=True, out_shortcut=True)",
        ),
        ("ResNet", {"depth": 34}, "ResNet-34", "ResNet(BasicBlock, [3, 4, 6, 3], num_classes=10)"),
        ("ResNet", {"depth": 50}, "ResNet-50", "ResNet(Bottleneck, [3, 4, 6, 3], num_classes=10)"),
        (
            "WideResNet",
            {"depth": 34, "widen_factor": 10, "num_classes": 100},
            "WideResNet-34-10",
            "WideResNet(depth=34, widen_factor=10, num_classes=100)",
        ),
        (
            "DMWideResNet",
            {"depth": 70, "width": 16, "activation": "silu", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
            "WideResNet-70-16",
            "DMWideResNet(num_classes=10, depth=70, width=16, activation_fn=Swish, mean=(0.5, 0.5, 0.5), "
            "std=(0.2, 0.2, 0.2))",
        ),
        (
            "DMWideResNet",
            {"activation": "relu"},
            "WideResNet-28-10",
            "DMWideResNet(num_classes=10, depth=28, width=10, activation_fn=nn.ReLU, "
            "mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))",
        ),
    ],
)
def test_robustbench_classes(target: str, arguments: dict, name: str, call: str) -> None:
    found = describe(f"advtrain.models.{target}", arguments, nn.Identity(), "cifar10")
    assert (found.name, found.zoo_call, found.library, found.loads_in_robustbench) == (name, call, "robustbench", True)


def test_a_variant_that_robustbench_lacks() -> None:
    found = describe("advtrain.models.WideResNet", {"activation": "silu"}, nn.Identity(), "cifar10")
    assert found.library is None
    assert found.zoo_import == "from architecture import WideResNet"
    assert found.zoo_call == "WideResNet(num_classes=10, depth=28, widen_factor=10, activation='silu')"


def test_other_data_needs_no_robustbench() -> None:
    found = describe("advtrain.models.WideResNet", {}, nn.Identity(), None)
    assert (found.library, found.loads_in_robustbench) == (None, False)


def test_libraries() -> None:
    pytest.importorskip("timm")
    arguments = {"name": "resnet10t", "num_classes": 7}
    model = models.timm_model(**arguments).eval()
    found = describe("advtrain.models.timm_model", arguments, model, "imagenet")
    assert (found.name, found.library, found.loads_in_robustbench) == ("resnet10t", "timm", True)
    assert found.zoo_call == (
        "normalize_model(timm.create_model('resnet10t', num_classes=7), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"
    )
    assert "advtrain" not in found.source
    other = built_from_text(found).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), other(x))
    assert not describe("advtrain.models.timm_model", arguments, model, "cifar10").loads_in_robustbench


@pytest.mark.parametrize(
    ("body", "statistics", "classes", "name", "call"),
    [
        (
            "convnext_tiny",
            {},
            1000,
            "ConvNeXt-T + ConvStem",
            "normalize_model(get_convstem_models('convnext_t_cvst'), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))",
        ),
        (
            "deit_small_patch16_224",
            {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            1000,
            "ViT-S + ConvStem",
            "get_convstem_models('vit_s_cvst')",
        ),
        ("deit_small_patch16_224", {}, 1000, "ViT-S + ConvStem", "build()"),
        ("convnext_tiny", {}, 7, "ConvNeXt-T + ConvStem", "build()"),
    ],
)
def test_conv_stems(body: str, statistics: dict, classes: int, name: str, call: str) -> None:
    arguments = {"name": body, "num_classes": classes, **statistics}
    mean, std = statistics.get("mean", (0, 0, 0)), statistics.get("std", (1, 1, 1))
    model = models.Normalize(nn.Identity(), mean=mean, std=std)
    found = describe("advtrain.models.conv_stem_model", arguments, model, "imagenet")
    library = "timm" if call == "build()" else "robustbench"
    assert (found.name, found.zoo_call, found.library, found.loads_in_robustbench) == (name, call, library, True)
    assert ("from architecture import build" in found.zoo_import) == (call == "build()")
    assert "advtrain" not in found.source


def test_a_conv_stems_text_builds_it() -> None:
    pytest.importorskip("timm")
    arguments = {"name": "convnext_tiny", "num_classes": 7}
    model = models.conv_stem_model(**arguments).eval()
    other = built_from_text(describe("advtrain.models.conv_stem_model", arguments, model, "imagenet")).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), other(x))


def test_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "architecture", raising=False)  # which another test may have left there
    wrapper = models.Normalize(nn.Identity(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    found = describe("advtrain.models.resnet_50", {"num_classes": 3}, wrapper, "imagenet")
    assert (found.name, found.library) == ("ResNet-50", "torchvision")
    assert found.zoo_call == "normalize_model(resnet50(num_classes=3), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))"
    assert "from torchvision.models import resnet50\nfrom robustbench" in found.zoo_import
    assert "architecture" not in sys.modules


@pytest.mark.parametrize(
    ("word", "name", "call"),
    [
        ("resnet18", "ResNet-18", "resnet18(num_classes=3)"),
        ("resnext101_32x4d", "ResNeXt-101-32x4d", "resnet101(num_classes=3, groups=32, width_per_group=4)"),
        ("mnasnet0_5", "mnasnet0_5", "mnasnet0_5(num_classes=3)"),
    ],
)
def test_torchvision_by_name(word: str, name: str, call: str) -> None:
    wrapper = models.Normalize(nn.Identity(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    arguments = {"name": word, "num_classes": 3}
    found = describe("advtrain.models.torchvision_model", arguments, wrapper, "imagenet")
    assert (found.name, found.library, found.loads_in_robustbench) == (name, "torchvision", True)
    assert found.zoo_call == f"normalize_model({call}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))"
    with torch.device("meta"):
        ours, other = (
            models.torchvision_model(name=word, num_classes=3).state_dict(),
            built_from_text(found).state_dict(),
        )
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in other.items()}


@pytest.mark.parametrize(
    ("name", "dataset", "seen"),
    [
        ("conv1.weight", "cifar10", "conv1.weight"),
        ("model.conv1.weight", "cifar10", "conv1.weight"),
        ("module.model.conv1.weight", "cifar100", "conv1.weight"),
        ("backbone.model.weight", "cifar10", "ne.model.weight"),
        ("model.conv1.weight", "imagenet", "model.conv1.weight"),
        ("conv1.weight", "imagenet", "model.conv1.weight"),
    ],
)
def test_names_as_robustbench_reads_them(name: str, dataset: str, seen: str) -> None:
    assert loader_names([name], dataset) == [seen]
