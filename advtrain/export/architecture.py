"""How somebody without advtrain builds the network: RobustBench's class where it has one, else our own file."""

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from advtrain.models import Normalize, preact_resnet, resnet
from advtrain.models.conv_stem import ConvStem
from advtrain.models.libraries import IMAGENET_MEAN, IMAGENET_STD, torchvision_builder
from advtrain.types import SettingError

ZOO = "robustbench.model_zoo.architectures"
LIBRARIES = {
    "advtrain.models.resnet_50": "torchvision",
    "advtrain.models.torchvision_model": "torchvision",
    "advtrain.models.timm_model": "timm",
}


@dataclass(frozen=True)
class Architecture:
    """A network as text.

    Attributes:
        name: as leaderboards write it, e.g. WideResNet-28-10.
        source: of architecture.py, which imports nothing of advtrain.
        build: the callable in it.
        arguments: its keyword arguments.
        zoo_import, zoo_call: what a RobustBench zoo entry imports and calls.
        library: robustbench, torchvision or timm when the class comes from there; None when only `source` has it.
        loads_in_robustbench: whether RobustBench's load_model can read the weights' names.
    """

    name: str
    source: str
    build: str
    arguments: Mapping[str, Any]
    zoo_import: str
    zoo_call: str
    library: str | None
    loads_in_robustbench: bool

    @property
    def carries_source(self) -> bool:
        """Whether a bundle needs architecture.py: RobustBench lacks the class, or has no place for its weights."""
        missing = self.library is None or "from architecture import" in self.zoo_import
        return missing or not self.loads_in_robustbench

    @property
    def needs(self) -> str | None:
        """The package besides PyTorch that builds the network from a bundle."""
        if not self.carries_source:
            return "robustbench"
        return next((name for name in ("timm", "torchvision") if name in _imports(self.source)), None)


def describe(target: str, arguments: Mapping[str, Any], model: nn.Module, dataset: str | None) -> Architecture:
    """Says how to build `target(**arguments)` without advtrain.

    Args:
        target: dotted path of the class or function.
        arguments: what it was called with; defaults are filled in.
        model: what it returned, maybe wrapped.
        dataset: of RobustBench, None for data off the leaderboard.

    Raises:
        SettingError: the target is not found, does not take the arguments, or its file imports advtrain.
    """
    factory = _find(target)
    try:
        bound = inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise SettingError(f"{target}: expected its own arguments, got {dict(arguments)}; {error}") from error
    bound.apply_defaults()
    if target in LIBRARIES:
        return _from_library(LIBRARIES[target], bound.arguments, model, dataset)
    if target == "advtrain.models.conv_stem_model":
        return _conv_stem(bound.arguments, model, dataset)
    return _from_source(target, factory, bound.arguments, dataset)


def _find(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"expected the dotted path of a model class, got {target}; {error}") from error


def _from_source(target: str, factory: Any, arguments: Mapping[str, Any], dataset: str | None) -> Architecture:
    word = factory.__name__
    source = _source_of(factory)
    _check_standalone(target, source)
    ours = target == f"advtrain.models.{word}"
    loads = dataset in ("cifar10", "cifar100")  # its ImageNet loader puts `model.` in front of every name
    in_zoo = ZOO_CLASSES[word](**arguments) if ours and loads and word in ZOO_CLASSES else None
    call = f"{word}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    zoo_import, zoo_call = in_zoo or (f"from architecture import {word}", call)
    name = NAMES[word].format(**arguments) if ours and word in NAMES else word
    library = "robustbench" if in_zoo else None
    return Architecture(name, source, word, arguments, zoo_import, zoo_call, library, loads)


def _from_library(library: str, arguments: Mapping[str, Any], model: nn.Module, dataset: str | None) -> Architecture:
    classes = arguments["num_classes"]
    if library == "torchvision":
        word: str = arguments.get("name", "resnet50")
        builder, settings = torchvision_builder(word)
        given = "".join(f", {key}={value}" for key, value in settings.items())
        name = TORCHVISION_NAMES.get(word, word)
        imported, call = f"from torchvision.models import {builder}", f"{builder}(num_classes={classes}{given})"
    else:
        name = arguments["name"]
        imported, call = "import timm", f"timm.create_model({name!r}, num_classes={classes})"
    mean, std = _statistics(model)
    source = _source_of(Normalize) + _build(imported, call, mean, std)
    zoo_import = f"{imported}\nfrom {ZOO}.utils_architectures import normalize_model"
    zoo_call = f"normalize_model({call}, {mean}, {std})"
    # Of RobustBench's loaders only the one for ImageNet puts back the `model.` that it cuts off.
    return Architecture(name, source, "build", {}, zoo_import, zoo_call, library, dataset == "imagenet")


def _conv_stem(arguments: Mapping[str, Any], model: nn.Module, dataset: str | None) -> Architecture:
    body, classes, (mean, std) = arguments["name"], arguments["num_classes"], _statistics(model)
    name, word = CONV_STEMS[body]
    call = f"with_conv_stem(timm.create_model({body!r}, num_classes={classes}), {body!r})"
    source = f"{_source_of(ConvStem)}\n\n{_source_of(Normalize)}" + _build("import timm", call, mean, std)
    zoo_import, zoo_call, library = "from architecture import build", "build()", "timm"
    inside = (IMAGENET_MEAN, IMAGENET_STD) if body.startswith("deit") else None  # what RobustBench's model has inside
    if classes == 1000 and inside in (None, (mean, std)):
        zoo_import, zoo_call = (
            f"from {ZOO}.convstem_models import get_convstem_models",
            f"get_convstem_models({word!r})",
        )
        library = "robustbench"
        if inside is None:
            zoo_import += f"\nfrom {ZOO}.utils_architectures import normalize_model"
            zoo_call = f"normalize_model({zoo_call}, {mean}, {std})"
    return Architecture(name, source, "build", {}, zoo_import, zoo_call, library, dataset == "imagenet")


def _build(imported: str, call: str, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    return f"\n\ndef build():\n    {imported}\n\n    return Normalize({call}, mean={mean}, std={std})\n"


def _source_of(part: Any) -> str:
    return Path(inspect.getfile(part)).read_text(encoding="utf-8")


def _statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    wrapper = next(module for module in model.modules() if isinstance(module, Normalize))
    return _floats(wrapper.mean), _floats(wrapper.std)


def _floats(values: Any) -> tuple[float, ...]:
    """The shortest decimals that give the same float32 values."""
    return tuple(float(str(np.float32(value))) for value in values.flatten().tolist())


def _check_standalone(target: str, source: str) -> None:
    for module in _imports(source).values():
        if module.split(".")[0] in ("", "advtrain"):
            raise SettingError(
                f"{target}: expected a model file that needs only PyTorch, got an import of {module}; put what "
                "it needs into the same file"
            )


def _imports(source: str) -> dict[str, str]:
    """What a file imports, by the first part of its name; relative imports as "."."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append("." if node.level else str(node.module))
    return {module.split(".")[0]: module for module in modules}


# What RobustBench's class of the same name is called with; None where it lacks the variant. Each takes every argument
# of our class, so that a new one cannot be forgotten.
def _preact_resnet(*, num_classes: int, depth: int, bn_before_fc: bool, out_shortcut: bool) -> tuple[str, str] | None:
    flags = f"bn_before_fc={bn_before_fc}, out_shortcut={out_shortcut}"
    call = f"PreActResNet(PreActBlock, {list(preact_resnet.BLOCKS[depth])}, num_classes={num_classes}, {flags})"
    return f"from {ZOO}.resnet import PreActBlock, PreActResNet", call


def _resnet(*, num_classes: int, depth: int) -> tuple[str, str] | None:
    block = "BasicBlock" if depth < 50 else "Bottleneck"
    call = f"ResNet({block}, {list(resnet.BLOCKS[depth])}, num_classes={num_classes})"
    return f"from {ZOO}.resnet import {block}, ResNet", call


def _wide_resnet(*, num_classes: int, depth: int, widen_factor: int, activation: str) -> tuple[str, str] | None:
    if activation != "relu":
        return None
    call = f"WideResNet(depth={depth}, widen_factor={widen_factor}, num_classes={num_classes})"
    return f"from {ZOO}.wide_resnet import WideResNet", call


def _dm_wide_resnet(
    *, num_classes: int, depth: int, width: int, activation: str, mean: Any, std: Any
) -> tuple[str, str] | None:
    function, imported = {"silu": ("Swish", "DMWideResNet, Swish"), "relu": ("nn.ReLU", "DMWideResNet")}[activation]
    first = "from torch import nn\n" if activation == "relu" else ""
    call = (
        f"DMWideResNet(num_classes={num_classes}, depth={depth}, width={width}, activation_fn={function}, "
        f"mean={tuple(mean)}, std={tuple(std)})"
    )
    return f"{first}from {ZOO}.dm_wide_resnet import {imported}", call


ZOO_CLASSES = {
    "PreActResNet": _preact_resnet,
    "ResNet": _resnet,
    "WideResNet": _wide_resnet,
    "DMWideResNet": _dm_wide_resnet,
}
NAMES = {
    "PreActResNet": "PreActResNet-{depth}",
    "ResNet": "ResNet-{depth}",
    "WideResNet": "WideResNet-{depth}-{widen_factor}",
    "DMWideResNet": "WideResNet-{depth}-{width}",
    "ThinResNet": "ResNet-{depth}x{width}",
    "VGG": "VGG-{depth}",
    "MobileNetV2": "MobileNetV2x{width}",
}
TORCHVISION_NAMES = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnext101_32x4d": "ResNeXt-101-32x4d",
}
# By the body's name in timm: how leaderboards write it, and RobustBench's word.
CONV_STEMS = {
    "convnext_tiny": ("ConvNeXt-T + ConvStem", "convnext_t_cvst"),
    "convnext_small": ("ConvNeXt-S + ConvStem", "convnext_s_cvst"),
    "convnext_base": ("ConvNeXt-B + ConvStem", "convnext_b_cvst"),
    "convnext_large": ("ConvNeXt-L + ConvStem", "convnext_l_cvst"),
    "deit_small_patch16_224": ("ViT-S + ConvStem", "vit_s_cvst"),
    "vit_base_patch16_224": ("ViT-B + ConvStem", "vit_b_cvst"),
}
