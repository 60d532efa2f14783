"""Records as they are met, evaluation.json of any version, metrics.jsonl, config.yaml; and numbers in words."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from advtrain.types import FileError

Z_95 = 1.959963984540054  # of a two-sided 95 % interval
MEASURED = ("clean", "pgd", "screen", "autoattack")
DATASETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "ImageNetLT": "imagenet_lt", "TinyImageNet": "tiny_imagenet"}


def wilson(correct: int, n_examples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction (Wilson 1927, JASA 22), as fractions."""
    p, z2 = correct / n_examples, Z_95**2
    centre = p + z2 / (2 * n_examples)
    half = Z_95 * math.sqrt(p * (1 - p) / n_examples + z2 / (4 * n_examples**2))
    scale = 1 + z2 / n_examples
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def interval_of(result: Mapping[str, Any]) -> tuple[float, float]:
    """The interval that a result states, or Wilson's where an older record has none."""
    stated = result.get("interval")
    if stated:
        return float(stated[0]), float(stated[1])
    return wilson(result["correct"], result["n_examples"])


def percent(fraction: float, digits: int = 2) -> str:
    """0.32 as "32.00 %"."""
    return f"{100 * fraction:.{digits}f} %"


def percent_range(interval: tuple[float, float]) -> str:
    """(0.301, 0.359) as "30.1–35.9 %"."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f} %"


def radius_text(eps: float, norm: str) -> str:
    """A radius as the field writes it: small ones of Linf in grey levels, 8/255, all others in decimals."""
    grey = round(255 * eps, 6)
    if norm == "linf" and grey == round(grey) and 0 < grey <= 32:
        return f"{round(grey)}/255"
    return f"{eps:.4g}"


def eps_of(written: Any) -> float:
    """A radius that a record holds as a number or as "8/255"."""
    if isinstance(written, str) and "/" in written:
        over, under = written.split("/")
        return float(over) / float(under)
    return float(written)


def dataset_of(record: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str | None:
    """The dataset's name as leaderboards write it, from the record or from the run's configuration."""
    source = record.get("source")
    stated = record.get("dataset") or (source.get("dataset") if isinstance(source, Mapping) else None)
    if isinstance(stated, Mapping):
        stated = stated.get("name")
    if stated:
        return str(stated)
    data = (config or {}).get("data") or {}
    name = str(data.get("_target_", "")).rpartition(".")[2].removesuffix("Generated")
    if name == "ImageFolder":  # any folder of images; ImageNet is the one with a thousand classes
        return "imagenet" if data.get("num_classes") == 1000 else "images"
    if name:
        return DATASETS.get(name, name.lower())
    found = re.search(r"(?<![a-z_])(cifar100|cifar10|imagenet)(?!\d|_lt)", str(record.get("command", "")))
    return found.group(1) if found else None


def read_record(path: Path) -> dict[str, Any]:
    """evaluation.json.

    Raises:
        FileError: there is none, or it is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"{path}: expected the record of an evaluation, got no file; run advtrain-eval first") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: expected JSON, got {error}; evaluate again") from error
    clean = record.get("clean") if isinstance(record, dict) else None
    if not isinstance(clean, dict) or "correct" not in clean or "threat" not in record:
        raise FileError(f"{path}: expected threat and clean in the record, got neither or half; evaluate again")
    return record


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run; empty where there is none."""
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that was cut off is left out, and no file is no lines."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def label_of(name: str, result: Mapping[str, Any]) -> str:
    """What measured a result, as people call it; only upstream's and the exact engine's are AutoAttack by name."""
    settings = result.get("settings") or {}
    if name == "pgd":
        return f"PGD-{settings.get('steps', '?')}, {settings.get('restarts', '?')} restarts"
    if name == "screen":
        return "Screen (APGD-CE + APGD-T)"
    if name == "autoattack":
        suffix = ", fast engine" if settings.get("engine") == "fast" else ""
        version = settings.get("version", "standard")
        attacks = f": {', '.join(settings.get('attacks') or [])}" if version == "custom" else ""
        return f"AutoAttack ({version}{attacks}{suffix})"
    return {"clean": "Clean"}.get(name, name)
