"""Choices of `trainer.compile=auto` that were measured before, in a file of the user's cache folder."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import advtrain
from advtrain.engine.checkpoints import write_text


def cache_path() -> Path:
    """The file: under XDG_CACHE_HOME where that is set, else under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advtrain" / "compile.json"


def machine(device: torch.device) -> dict[str, Any]:
    """What the speed of a step depends on, of the machine and what is installed."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "advtrain": advtrain.__version__,
    }


def key(facts: Mapping[str, Any]) -> str:
    """The name of a choice: the same for the same facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def remembered(name: str) -> dict[str, Any] | None:
    """The choice of that name; None where there is none or the file cannot be read."""
    entry = _content().get(name)
    return entry if isinstance(entry, dict) and {"compile", "cuda_graph", "table"} <= entry.keys() else None


def remember(name: str, entry: Mapping[str, Any]) -> None:
    """Adds a choice; where nothing can be written, the next run measures again."""
    with contextlib.suppress(OSError, RuntimeError):  # Path.home may find no home
        write_text(cache_path(), json.dumps(_content() | {name: dict(entry)}, indent=1))


def _content() -> dict[str, Any]:
    try:
        content = json.loads(cache_path().read_text())
    except (OSError, ValueError, RuntimeError):
        return {}
    return content if isinstance(content, dict) else {}


def _processor() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "cpu"
