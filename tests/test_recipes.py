"""Every experiment composes, says what it is, and takes two real optimisation steps."""

from pathlib import Path

import pytest
import torch

from advtrain.composition import choices, compose
from advtrain.runs import check_training, make_trainer

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = choices("experiment")
PAPER = [f"cifar{n}_ikl_{model}" for n in (10, 100) for model in ("wrn_34_10", "preact_resnet_18")]


def test_the_papers_recipes_exist() -> None:
    assert set(PAPER) <= set(EXPERIMENTS)


@pytest.mark.parametrize("group", sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir()))
def test_every_choice_composes(group: str) -> None:
    mandatory = {"npz": ["data.train=a", "data.test=b"], "imagenet": ["data.root=c"]}
    for choice in choices(group):
        config = compose("train", [f"{group}={choice}", *mandatory.get(choice, [])])
        assert config["seed"] == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_command_needs_and_origin(name: str) -> None:
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert header[0] == "# @package _global_"
    assert any("command:" in line and "advtrain" in line for line in header)
    assert any("needs:" in line for line in header)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    """Section 2 of the recipe: optimiser, schedule, batch, AWP, averaging, τ and the weights."""
    config = compose("train", [f"experiment={name}"])
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


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_real_steps(name: str, real_data: Path, tmp_path: Path) -> None:
    """The recipe as it is but for the batch, in its first epoch and in the first one with weight perturbation."""
    words = [f"experiment={name}", "trainer.batch_size=4", "trainer.precision=fp32"]
    if name.startswith("imagenet"):
        small = ("num_classes=10", "validation_size=100", "size=64", "resize=64", "workers=0")
        words += [f"data.root={real_data / 'imagenet_small'}", *(f"data.{setting}" for setting in small)]
    elif name != "quickstart":
        words += [f"data.root={real_data}", "data.download=false"]
    config = compose("train", words)
    parts = check_training(config)
    trainer = make_trainer(config, parts, tmp_path)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    losses = []
    trainer.model.train()
    for epoch, batch in zip((1, 10), trainer.train_loader.epoch(1), strict=False):
        attack = parts["attack"].for_epoch(epoch, 200)
        perturbation = parts["weight_perturbation"].for_epoch(epoch)
        losses.append(trainer.step(batch, attack, perturbation, epoch, 0)["loss"])
    assert all(torch.isfinite(loss) for loss in losses) and len(losses) == 2
    moved = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) == len(before)  # every weight and statistic
