"""Every experiment composes, says what it is, and takes two real optimisation steps."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from advtrain.composition import choices, compose, groups
from advtrain.data.cifar import CIFAR
from advtrain.models import ThinResNet
from advtrain.runs import check_training, make_trainer
from tests.composed import composed

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = choices("experiment")
PAPER = [f"cifar{n}_ikl_{model}" for n in (10, 100) for model in ("wrn_34_10", "preact_resnet_18")]


def test_the_papers_recipes_exist() -> None:
    assert set(PAPER) <= set(EXPERIMENTS)


@pytest.mark.parametrize("group", sorted(set(groups()) - {"experiment"}))  # of experiments see test_two_real_steps
def test_every_choice_composes(group: str) -> None:
    for choice in choices(group):
        content = yaml.safe_load((ROOT / "configs" / group / f"{choice}.yaml").read_text()) or {}
        mandatory = [f"{group}.{key}=a" for key, value in content.items() if value == "???"]
        config = compose("train", [f"{group}={choice}", *mandatory])
        assert config["seed"] == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_command_needs_and_origin(name: str) -> None:
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert header[0] == "# @package _global_"
    assert any("command:" in line and ("advtrain" in line or "scripts/" in line) for line in header)
    assert any("needs:" in line for line in header)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    """Section 2 of the recipe: optimiser, schedule, batch, AWP, averaging, τ and the weights."""
    config = composed(name)
    assert config["optimizer"] | {"lr": 0.2, "momentum": 0.9, "nesterov": False} == config["optimizer"]
    assert config["optimizer"]["weight_decay"] == 5e-4 and config["optimizer"]["decay_norms"]
    assert config["schedule"]["_target_"] == "advtrain.engine.Cosine" and config["schedule"]["per_epoch"]
    assert (config["trainer"]["epochs"], config["trainer"]["batch_size"]) == (200, 128)
    assert config["weight_perturbation"] == {"_target_": "advtrain.engine.AWP", "gamma": 0.005, "start_epoch": 10}
    average = {"_target_": "advtrain.engine.EpochEMA", "decay": 0.9, "batchnorm": "averaged"}
    assert config["averaging"] == config["averaging"] | average
    ce = 5.0 if "cifar100" in name else 4.0
    assert (config["loss"]["wmse_weight"], config["loss"]["ce_weight"], config["loss"]["temperature"]) == (
        20.0,
        ce,
        4.0,
    )
    assert config["loss"]["inner"] == ("ikl" if "cifar100" in name else "kl")


def drawn(n: int, classes: int, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """n random uint8 images and their labels."""
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return pixels, torch.arange(n) % classes


def class_folders(root: Path) -> Path:
    """train/ and val/ with two classes of eight images each, and the index files of a long-tailed part."""
    pixels = drawn(16, 2, (48, 48, 3))[0].numpy()
    for i, (part, name) in enumerate(itertools.product(("train", "val"), "ab")):
        (root / part / name).mkdir(parents=True)
        for j in range(8):
            Image.fromarray(pixels[(8 * i + j) % 16]).save(root / part / name / f"{j}.png")
    lists = {"train": ("train", 8), "val": ("val", 4), "test": ("val", 8)}
    for name, (part, n) in lists.items():
        lines = [f"{part}/{'ab'[label]}/{j}.png {label}\n" for label in (0, 1) for j in range(n)]
        (root / f"ImageNet_LT_{name}.txt").write_text("".join(lines))
    return root


def miniature(config: dict[str, Any], folder: Path) -> None:
    """Leaves of a recipe everything but images, network, teacher and batch."""
    # What a recipe compiles is the same step, and takes a minute to build.
    config["trainer"] |= {"batch_size": 4, "precision": "fp32", "compile": "off"}
    data = config["data"]
    data |= {"validation_size": 8} | ({"train_size": None} if "train_size" in data else {})
    if "generated" in data:
        pixels, labels = drawn(16, 10, (32, 32, 3))
        np.savez(folder / "generated.npz", image=pixels.numpy(), label=labels.numpy())
        data["generated"] = str(folder / "generated.npz")
    if "resize" in data:
        data |= {"root": str(class_folders(folder / "images")), "size": 32, "resize": 36, "workers": 0}
        data |= {key: f"{data['root']}/{Path(data[key]).name}" for key in data if key.endswith("index")}
        for group in ("data", "loss"):
            config[group] |= {"num_classes": 2} if "num_classes" in config[group] else {}
    if data["_target_"] == "advtrain.data.Digits":
        small = {"_target_": "advtrain.models.SmallCNN", "image_size": 8, "width": 4, "hidden": 8}
    else:
        small = {"_target_": "advtrain.models.SmallPreActResNet", "width": 4}
    config["model"] = small | {"num_classes": data["num_classes"]}
    if config["teacher"]["source"] is not None:
        torch.save(ThinResNet(num_classes=data["num_classes"], depth=8).state_dict(), folder / "teacher.pt")
        config["teacher"] |= {"source": "model:resnet8", "weights": str(folder / "teacher.pt")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_real_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe as it is but for images, network and batch, in its first and in its last epoch."""
    monkeypatch.setattr(CIFAR, "read", lambda data, train: drawn(32, data.classes, data.image_shape))
    config = composed(name)
    miniature(config, tmp_path)
    parts = check_training(config)
    trainer = make_trainer(config, parts, tmp_path)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    losses, epochs = [], config["trainer"]["epochs"]
    trainer.model.train()
    for epoch, batch in zip((1, epochs), trainer.train_loader.epoch(1), strict=False):
        attack = parts["attack"] and parts["attack"].for_epoch(epoch, epochs)
        perturbation = parts["weight_perturbation"].for_epoch(epoch)
        losses.append(trainer.step(batch, attack, perturbation, epoch, 0)["loss"])
    assert all(torch.isfinite(loss) for loss in losses) and len(losses) == 2
    moved = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) == len(before)  # every weight and statistic
