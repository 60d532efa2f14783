"""Our classes and RobustBench's of the same name: one state dict, the same logits, in both directions."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import resnet50

from advtrain import models
from advtrain.config import config_dir
from advtrain.export.architecture import CONV_STEMS
from advtrain.models.conv_stem import STEMS

Arguments = Mapping[str, Any]


def zoo(name: str) -> ModuleType:
    """One file of RobustBench's architectures; importing the package itself would pull in what its wheel lacks."""
    package = find_spec("robustbench")
    assert package is not None and package.submodule_search_locations, "pip install 'advtrain[test]'"
    path = Path(package.submodule_search_locations[0], "model_zoo", "architectures", f"{name}.py")
    spec = spec_from_file_location(f"zoo_{name}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


def zoo_preact(a: Arguments) -> nn.Module:
    resnet = zoo("resnet")
    switches = {name: a[name] for name in ("bn_before_fc", "out_shortcut")}
    return resnet.PreActResNet(resnet.PreActBlock, BLOCKS[a["depth"]], num_classes=a["num_classes"], **switches)


def zoo_resnet(a: Arguments) -> nn.Module:
    resnet = zoo("resnet")
    block = resnet.BasicBlock if a["depth"] < 50 else resnet.Bottleneck
    return resnet.ResNet(block, BLOCKS[a["depth"]], num_classes=a["num_classes"])


def zoo_wide(a: Arguments) -> nn.Module:
    assert a["activation"] == "relu", "RobustBench's class has no other"
    sizes = {name: a[name] for name in ("depth", "widen_factor", "num_classes")}
    return zoo("wide_resnet").WideResNet(**sizes)


def zoo_dm(a: Arguments) -> nn.Module:
    others = {name: a[name] for name in ("depth", "width", "num_classes", "mean", "std")}
    file = zoo("dm_wide_resnet")
    return file.DMWideResNet(activation_fn={"relu": nn.ReLU, "silu": file.Swish}[a["activation"]], **others)


ZOO: dict[str, Callable[[Arguments], nn.Module]] = {
    "PreActResNet": zoo_preact,
    "ResNet": zoo_resnet,
    "WideResNet": zoo_wide,
    "DMWideResNet": zoo_dm,
}
SMALL = {"WideResNet": {"depth": 16, "widen_factor": 2}, "DMWideResNet": {"depth": 16, "width": 2}}


def compatible() -> Iterator[Any]:
    """(class, arguments) of each YAML file of a class that RobustBench has."""
    for path in sorted(config_dir().glob("model/*.yaml")):
        config = OmegaConf.create({"data": {"num_classes": 7}, "model": OmegaConf.load(path)})
        arguments = cast(dict[str, Any], OmegaConf.to_container(config.model, resolve=True))
        name = arguments.pop("_target_").rpartition(".")[2]
        if name in ZOO:
            yield pytest.param(name, arguments, id=path.stem)


STATISTICS = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.7, 0.5)}
VARIANTS = [  # the first is the zoo's own default
    ("PreActResNet", {"num_classes": 4, "depth": 18, "bn_before_fc": False, "out_shortcut": False}),
    ("PreActResNet", {"num_classes": 4, "depth": 34, "bn_before_fc": True, "out_shortcut": False}),
    ("DMWideResNet", {"num_classes": 4, "depth": 10, "width": 1, "activation": "relu", **STATISTICS}),
]


def randomise(model: nn.Module, seed: int) -> None:
    """Weights as they are initialised, and everything of BatchNorm away from its neutral values."""
    generator = torch.Generator().manual_seed(seed)

    def fill(values: Tensor, low: float, high: float) -> None:
        values.copy_(torch.rand(values.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.Linear):
                fill(module.weight, -0.2, 0.2)
                fill(module.bias, -1, 1)
            elif isinstance(module, nn.BatchNorm2d):
                fill(module.weight, 0.5, 1.5)
                fill(module.bias, -0.5, 0.5)
                assert module.running_mean is not None and module.running_var is not None
                fill(module.running_mean, -0.5, 0.5)
                fill(module.running_var, 0.5, 2)


def logits(model: nn.Module) -> Tensor:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.eval()(images)


def assert_same_logits(one: nn.Module, other: nn.Module) -> None:
    got, expected = logits(one), logits(other)
    assert (expected[0] - expected[1]).abs().max() > 1e-2, "the logits do not depend on the image"
    scale = expected.abs().max().clamp(min=1)
    assert_close(got / scale, expected / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "arguments"), [*compatible(), *VARIANTS])
def test_loads_strictly_in_both_directions_with_equal_logits(name: str, arguments: Arguments) -> None:
    small = {**arguments, **SMALL.get(name, {})}
    ours, theirs = getattr(models, name)(**small), ZOO[name](small)
    randomise(ours, seed=1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_logits(theirs, ours)
    randomise(theirs, seed=2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_logits(ours, theirs)
    if arguments.get("activation") != "silu":  # its class writes SiLU as a product, which rounds differently
        assert torch.equal(logits(ours), logits(theirs)), "verdicts at the decision boundary would not carry over"


@pytest.mark.parametrize(("name", "arguments"), [*compatible(), *VARIANTS])
def test_full_size_has_the_same_keys_shapes_and_parameters(name: str, arguments: Arguments) -> None:
    with torch.device("meta"):
        ours, theirs = getattr(models, name)(**arguments), ZOO[name](arguments)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert count(ours) == count(theirs)
    # RobustBench cuts these prefixes' length off every key that contains one anywhere.
    assert not [key for key in shapes[0] if "module." in key or "model." in key]


def test_wrn_28_10_with_silu_is_the_leaders_network() -> None:
    with torch.device("meta"):
        model = models.DMWideResNet(num_classes=10, depth=28, width=10, activation="silu")
    assert len(model.state_dict()) == 155  # the leaderboard's files
    assert count(model) == 36_479_194


def test_resnet_50_loads_where_robustbench_normalises() -> None:
    ours = models.resnet_50(num_classes=5)
    theirs = zoo("utils_architectures").normalize_model(
        resnet50(num_classes=5), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    randomise(ours, seed=3)
    difference = theirs.load_state_dict(ours.state_dict(), strict=False)  # as its ImageNet loader falls back to
    assert not difference.unexpected_keys
    assert set(difference.missing_keys) == {"normalize.mean", "normalize.std"}
    assert_same_logits(theirs, ours)


DEPTHS = {101: "ResNet101", 152: "ResNet152"}  # no YAML of ours, but model.depth takes them


@pytest.mark.parametrize("depth", DEPTHS)
def test_deeper_resnets_have_the_keys_of_robustbenchs(depth: int) -> None:
    with torch.device("meta"):
        ours, theirs = models.ResNet(depth=depth), getattr(zoo("resnet"), DEPTHS[depth])()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.fixture
def zoo_conv_stem(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """RobustBench's get_convstem_models, whose file imports one of its neighbours."""
    pytest.importorskip("timm")
    neighbour = "utils_architectures"
    monkeypatch.setitem(sys.modules, f"robustbench.model_zoo.architectures.{neighbour}", zoo(neighbour))
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # timm reads its values
    return zoo("convstem_models").get_convstem_models


def inner(model: nn.Module) -> nn.Module:
    """Without normalisation: of RobustBench's ConvStem models only the ViT-S has one."""
    return model.get_submodule("model") if isinstance(model, nn.Sequential | models.Normalize) else model


@pytest.mark.parametrize(("body", "side"), [("convnext_tiny", 64), ("deit_small_patch16_224", 224)])
def test_conv_stems_load_strictly_in_both_directions_with_equal_logits(
    body: str, side: int, zoo_conv_stem: Callable[[str], nn.Module]
) -> None:
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)} if side == 224 else {}
    theirs, ours = zoo_conv_stem(CONV_STEMS[body][1]).eval(), models.conv_stem_model(name=body, **statistics).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, side, side, generator=generator)
    with torch.no_grad():
        for parameter in ours.parameters():  # the zeros and ones of LayerNorm and layer scale, too
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        inner(theirs).load_state_dict(inner(ours).state_dict(), strict=True)
        assert_close(theirs(x), ours(x), atol=1e-4, rtol=1e-4)
        for parameter in theirs.parameters():
            parameter.mul_(0.9)
        inner(ours).load_state_dict(inner(theirs).state_dict(), strict=True)
        assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("body", STEMS)
def test_every_conv_stem_has_robustbenchs_keys_and_shapes(body: str, zoo_conv_stem: Callable[[str], nn.Module]) -> None:
    with torch.device("meta"):
        theirs, ours = inner(zoo_conv_stem(CONV_STEMS[body][1])), inner(models.conv_stem_model(name=body))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert not [key for key in shapes[0] if "module." in key or "model." in key]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
