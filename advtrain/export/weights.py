"""The weights files: float32 tensors under names that RobustBench's loader leaves as they are."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from advtrain.types import SettingError

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def export_state_dict(model: nn.Module, dataset: str | None) -> dict[str, Tensor]:
    """The model's state dict on the CPU: no wrapper prefix, floating tensors as contiguous float32, all of them finite.

    Args:
        model: bare, or wrapped in DistributedDataParallel or torch.compile.
        dataset: whose RobustBench loader must be able to read the names; None for data off the leaderboard.

    Raises:
        SettingError: a value is not finite, or RobustBench's loader would change a name.
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not torch.isfinite(tensor).all():
                raise SettingError(
                    f"weights: expected finite values, got inf or nan in {name}; export another checkpoint"
                )
        state[_bare(name)] = tensor.contiguous().clone()
    if dataset is not None:
        _check_names(list(state), dataset)
    return state


def save_weights(state: Mapping[str, Tensor], path: Path, safetensors_path: Path) -> None:
    """Writes the tensors twice: as RobustBench's load_model reads them, and as safetensors, which hold no pickle."""
    torch.save({"state_dict": dict(state)}, path)
    save_file(dict(state), safetensors_path, metadata={"format": "pt"})


def loader_names(names: list[str], dataset: str) -> list[str]:
    """The names as RobustBench's load_model sees them: it cuts off the length of `module.`, then of `model.`, wherever
    a name merely contains the word, and puts `model.` in front of every name on ImageNet."""
    for word in ("module.", "model."):
        names = [name[len(word) :] if word in name else name for name in names]
    return [f"model.{name}" for name in names] if dataset == "imagenet" else names


def _bare(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _check_names(names: list[str], dataset: str) -> None:
    wrapped = [name for name in names if "_orig_mod." in name]
    changed = [(a, b) for a, b in zip(names, loader_names(names, dataset), strict=True) if a != b]
    if wrapped:
        raise SettingError(f"weights: expected names without _orig_mod., got {wrapped[0]}; export the uncompiled model")
    if changed:
        before, after = changed[0]
        raise SettingError(
            f"weights: expected names that RobustBench's {dataset} loader keeps, got {before}, which it turns into "
            f"{after}; rename that attribute of the model"
        )
