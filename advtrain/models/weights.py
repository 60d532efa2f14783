"""Weights from a file: a model that was trained before, here or elsewhere."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.types import SettingError

CONTAINERS = ("averaged", "state_dict", "model")  # our checkpoints hold the model twice: the average is the product
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
SHOWN = 5


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Gives `model` the weights of a file, all of them or none.

    The file is a state dict (.safetensors, or what torch.save wrote), alone or under `state_dict` or `model`, or one of
    our checkpoints, whose averaged model is taken. No code in it is run (weights_only=True). Prefixes of
    DistributedDataParallel and torch.compile come off; the prefix `model.` of a model with its normalisation inside may
    be there or not.

    Args:
        model: gets the weights in its own dtype, on its own device.
        path: of the file.
        new_head: leaves the last linear layer as it is, for another number of classes; what the file has of it is
            ignored.

    Raises:
        SettingError: the file cannot be read, or its names or shapes are not the model's.
    """
    found, own = _with_names_of(model, read_state_dict(path)), model.state_dict()
    head = _head(model)
    if new_head:
        if not head:
            raise SettingError("model.new_head: expected a model with a linear layer, got none; set it to false")
        found = {name: value for name, value in found.items() if name not in head}
        own = {name: value for name, value in own.items() if name not in head}
    # Files from before 2018 lack this counter, which nothing reads.
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in own]
    shapes = [name for name in own if name in found and own[name].shape != found[name].shape]
    if missing or unexpected or shapes:
        differences = [
            _listed("missing", missing),
            _listed("not in the model", unexpected),
            _listed("of another shape", [f"{n} {_shape(found[n])} instead of {_shape(own[n])}" for n in shapes]),
        ]
        only_head = set(missing + unexpected + shapes) <= head
        remedy = "add model.new_head=true for a new last layer" if only_head else "choose the model it was trained as"
        got = "; ".join(text for text in differences if text)
        raise SettingError(f"model.weights: expected the tensors of the model, got {path} with {got}; {remedy}")
    model.load_state_dict(found, strict=False)  # what may be absent was settled above


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without wrappers' prefixes, on the CPU.

    Raises:
        SettingError: there is no such file, or it holds something else.
    """
    file = check_weights_file(path)
    content = _read(file)
    if isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return {_bare(str(name)): value for name, value in inner.items()}
    keys = (
        f"the keys {', '.join(map(str, list(content)[:SHOWN]))}" if isinstance(content, Mapping) else "something else"
    )
    raise SettingError(f"model.weights: expected tensors by name in {path}, got {keys}; save the state dict alone")


def check_weights_file(path: Any) -> Path:
    """The path, when there is a file.

    Raises:
        SettingError: there is none.
    """
    if not isinstance(path, str | Path) or not Path(path).expanduser().is_file():
        raise SettingError(f"model.weights: expected the path of a state dict, got {path!r}; no such file")
    return Path(path).expanduser()


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise SettingError("model.weights: expected the package safetensors, got none; pip install it") from error
    except pickle.UnpicklingError as error:
        raise SettingError(
            f"model.weights: expected nothing but tensors in {file}, got other objects, whose loading could run "
            "foreign code; save its state dict alone"
        ) from error
    except Exception as error:  # a damaged file raises whatever its parser stumbles over
        reason = str(error).split("\n")[0]
        raise SettingError(f"model.weights: expected a state dict in {file}, got an error ({reason})") from error


def _with_names_of(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found` with the prefix `model.` put before every name, or taken off, where that is the whole difference."""
    own = list(model.state_dict())
    if _all_start(own) and not any(name.startswith("model.") for name in found):
        return {f"model.{name}": value for name, value in found.items()}
    if _all_start(list(found)) and not any(name.startswith("model.") for name in own):
        return {name.removeprefix("model."): value for name, value in found.items()}
    return dict(found)


def _all_start(names: Sequence[str]) -> bool:
    return all(name.startswith("model.") for name in names)


def _bare(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _head(model: nn.Module) -> set[str]:
    """The names of the last linear layer's tensors."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    return {f"{name}.{leaf}" for name in last for leaf in ("weight", "bias")}


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", …" if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})" if names else ""


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "scalar"
