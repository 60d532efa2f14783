"""How somebody without advtrain builds the network: RobustBench's class where it has one, and our own file always."""

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from advtrain.models import Normalize
from advtrain.types import SettingError

ZOO = "robustbench.model_zoo.architectures"
LIBRARIES = {"advtrain.models.resnet_50": "torchvision", "advtrain.models.timm_model": "timm"}


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
    return _from_source(target, factory, bound.arguments, dataset)


def _find(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"expected the dotted path of a model class, got {target}; {error}") from error


def _from_source(target: str, factory: Any, arguments: Mapping[str, Any], dataset: str | None) -> Architecture:
    word = factory.__name__
    source = Path(inspect.getfile(factory)).read_text(encoding="utf-8")
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
        name, imported, call = (
            "ResNet-50",
            "from torchvision.models import resnet50",
            f"resnet50(num_classes={classes})",
        )
    else:
        name = arguments["name"]
        imported, call = "import timm", f"timm.create_model({name!r}, num_classes={classes})"
    wrapper = next(module for module in model.modules() if isinstance(module, Normalize))
    mean, std = _floats(wrapper.mean), _floats(wrapper.std)
    source = Path(inspect.getfile(Normalize)).read_text(encoding="utf-8")
    source += f"\n\ndef build():\n    {imported}\n\n    return Normalize({call}, mean={mean}, std={std})\n"
    zoo_import = f"{imported}\nfrom {ZOO}.utils_architectures import normalize_model"
    zoo_call = f"normalize_model({call}, {mean}, {std})"
    # Of RobustBench's loaders only the one for ImageNet puts back the `model.` that it cuts off.
    return Architecture(name, source, "build", {}, zoo_import, zoo_call, library, dataset == "imagenet")


def _floats(values: Any) -> tuple[float, ...]:
    """The shortest decimals that give the same float32 values."""
    return tuple(float(str(np.float32(value))) for value in values.flatten().tolist())


def _check_standalone(target: str, source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = ["." if node.level else str(node.module)]
        for module in modules:
            if module.split(".")[0] in ("", "advtrain"):
                raise SettingError(
                    f"{target}: expected a model file that needs only PyTorch, got an import of {module}; put what "
                    "it needs into the same file"
                )


# What RobustBench's class of the same name is called with; None where it lacks the variant. Each takes every argument
# of our class, so that a new one cannot be forgotten.
def _preact_resnet(*, num_classes: int, depth: int, bn_before_fc: bool, out_shortcut: bool) -> tuple[str, str] | None:
    blocks = {18: "[2, 2, 2, 2]", 34: "[3, 4, 6, 3]"}[depth]
    flags = f"bn_before_fc={bn_before_fc}, out_shortcut={out_shortcut}"
    call = f"PreActResNet(PreActBlock, {blocks}, num_classes={num_classes}, {flags})"
    return f"from {ZOO}.resnet import PreActBlock, PreActResNet", call


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


ZOO_CLASSES = {"PreActResNet": _preact_resnet, "WideResNet": _wide_resnet, "DMWideResNet": _dm_wide_resnet}
NAMES = {
    "PreActResNet": "PreActResNet-{depth}",
    "WideResNet": "WideResNet-{depth}-{widen_factor}",
    "DMWideResNet": "WideResNet-{depth}-{width}",
}
