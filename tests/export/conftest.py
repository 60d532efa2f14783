"""A tiny evaluated model: random weights, a slow and plain PGD, and the record that an evaluation would leave."""

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advtrain import models
from advtrain.export import Bundle, Evaluated, ExportMetadata, Trained, export_bundle, verify_script
from advtrain.export.leaderboard import BOARDS
from advtrain.export.verify_script import environment

EPS = {"8/255": 8 / 255, "0.02": 0.02, "0.5": 0.5, "4/255": 4 / 255}


@dataclass
class Run:
    """What is handed to export_bundle, and where to."""

    model: nn.Module
    model_target: str
    model_arguments: dict[str, Any]
    dataset: str
    eps_text: str
    record: dict[str, Any]
    arrays: dict[str, Any]
    folder: Path
    metadata: ExportMetadata = field(default_factory=ExportMetadata)
    recipe: dict[str, Any] | None = None
    training: dict[str, Any] | None = None

    def export(self) -> Bundle:
        arrays_path = self.folder / "adversarial.npz"
        np.savez(arrays_path, **self.arrays)
        recipe, training = self.recipe or {}, self.training or {}
        trained = Trained(self.model, self.model_target, self.model_arguments, self.dataset, recipe, training)
        evaluated = Evaluated(self.record, arrays_path, self.eps_text)
        return export_bundle(trained, evaluated, self.metadata, self.folder / "export")


Make = Callable[..., Run]


MASKING = {
    "verdict": "believable",
    "checks": [
        {"name": "zero_gradients", "passed": True, "value": 0.0, "threshold": 0.1, "reason": "none is 0", "source": "x"}
    ],
    "n_examples": 6,
    "seconds": 1.0,
}


@pytest.fixture
def board(evaluated: Make, monkeypatch: pytest.MonkeyPatch) -> Run:
    """What nothing stands in the way of, where the leaderboard's test set has six images."""
    for dataset, (_, radii) in BOARDS.items():
        monkeypatch.setitem(BOARDS, dataset, (6, radii))
    arguments = {"depth": 10, "widen_factor": 1, "num_classes": 10}
    run = evaluated(
        "advtrain.models.WideResNet", arguments, dataset="cifar10", eps_text="8/255", shape=(3, 32, 32), n=6
    )
    run.record["masking"] = json.loads(json.dumps(MASKING))
    run.record["autoattack"]["settings"]["engine"] = "exact"
    return run


@pytest.fixture
def evaluated(tmp_path: Path) -> Make:
    def make(
        target: str = "advtrain.models.SmallCNN",
        arguments: dict[str, Any] | None = None,
        *,
        dataset: str = "digits",
        eps_text: str = "0.02",
        shape: tuple[int, int, int] = (1, 8, 8),
        n: int = 9,
        model: nn.Module | None = None,
    ) -> Run:
        torch.manual_seed(0)
        arguments = arguments or {}
        model = (model or getattr(models, target.rpartition(".")[2])(**arguments)).eval()
        arrays, record = _evaluate(model, shape, n, EPS[eps_text])
        return Run(model, target, arguments, dataset, eps_text, record, arrays, tmp_path)

    return make


def _evaluate(model: nn.Module, shape: tuple[int, int, int], n: int, eps: float) -> tuple[dict[str, Any], dict]:
    """Labels are the predictions on the clean images but for the last image; batches of 4."""
    x = torch.randint(0, 256, (n, *shape)) / 255
    predictions = _predict(model, x)
    y = predictions.clone()
    y[-1] = (y[-1] + 1) % 10
    x_adv = _attack(model, x, y, eps)
    robust = _predict(model, x_adv) == y
    arrays = {
        "images": x.numpy(),
        "labels": y.numpy(),
        "clean_predictions": predictions.numpy(),
        "adversarial_images": x_adv.numpy(),
        "batch_size": 4,
    }
    return arrays, _record(eps, n, int((predictions == y).sum()), int(robust.sum()))


def _attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Six steps from each of two starts; the clean image where none is misclassified."""
    found = x.clone()
    for start in (-1, 1):
        x_adv = (x + start * eps * torch.rand_like(x)).clamp(0, 1)
        for _ in range(6):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
            x_adv = torch.minimum(torch.maximum(x_adv.detach() + eps / 4 * gradient.sign(), x - eps), x + eps)
            x_adv = x_adv.clamp(0, 1)
            broken = _predict(model, x_adv) != y
            found[broken] = x_adv[broken]
    return found


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(4)]).argmax(1)


def _record(eps: float, n: int, clean: int, robust: int) -> dict[str, Any]:
    def part(correct: int, **settings: Any) -> dict[str, Any]:
        return {"accuracy": correct / n, "correct": correct, "n_examples": n, "settings": settings, "seconds": 1.0}

    machine = environment("cpu")
    return {
        "threat": {"norm": "linf", "eps": eps},
        "n_examples": n,
        "clean": part(clean),
        "pgd": part(robust, steps=20, restarts=5),
        "autoattack": part(robust, version="standard", seed=0) | {"after": [{"attack": "apgd-ce", "correct": robust}]},
        "hardware": {"cpu": machine["cpu"], "gpu": None, "threads": torch.get_num_threads()},
        "versions": {"torch": machine["torch"], "python": platform.python_version(), "pyautoattack": "0.2.0"},
    }


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], dict]]:
    """The same check in this process: seconds faster than a fresh one, for what does not concern the isolation."""
    for name in ("architecture", "build", "zoo_entry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    threads = torch.get_num_threads()
    with torch.backends.cudnn.flags():
        yield verify_script.check
    torch.set_num_threads(threads)
