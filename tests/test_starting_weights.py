"""A run starts from model.weights once: resuming, evaluation and export do without the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advtrain.composition import compose
from advtrain.config import architecture_of
from advtrain.models import timm_model
from advtrain.runs import check_training, make_trainer, train_run
from advtrain.sources import averaged_model
from advtrain.types import SettingError

NAME = "test_byobnet"  # half a million parameters


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("timm")
    rng = np.random.default_rng(0)
    for part, n in (("train", 16), ("test", 4)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", image=images, label=np.arange(n) % 4)
    torch.save(timm_model(name=NAME, num_classes=7).state_dict(), tmp_path / "weights.pt")
    words = [f"data.{part}={tmp_path}/{part}.npz" for part in ("train", "test")]
    words += [
        f"model.name={NAME}",
        f"model.weights={tmp_path}/weights.pt",
        "model.new_head=true",
        "data.num_classes=4",
        "data.validation_size=4",
    ]
    words += ["model.gradient_checkpointing=true", "trainer.batch_size=4", "trainer.epochs=1", f"run_root={tmp_path}"]
    return compose("train", ["data=npz", "model=timm", "loss=standard", "attack=none", "eval=none", *words])


def test_training_starts_from_the_file_and_needs_it_once(config: dict[str, Any], tmp_path: Path) -> None:
    given = torch.load(tmp_path / "weights.pt", weights_only=True)
    model = make_trainer(config, check_training(config), tmp_path / "run").model
    assert all(torch.equal(v, given[k]) for k, v in model.state_dict().items() if ".head." not in k)
    train_run(config, "run")
    (tmp_path / "weights.pt").unlink()
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    trained = averaged_model(config, last, torch.device("cpu"), trusted=True)
    assert any(not torch.equal(v, given[k]) for k, v in trained.state_dict().items() if ".head." not in k)
    resumed = make_trainer(config, check_training(config), tmp_path / "run").model
    assert any("forward" in vars(module) for module in resumed.modules()), "no longer checkpointed"
    train_run(config, "run")


def test_a_missing_file_leaves_no_run_behind(config: dict[str, Any], tmp_path: Path) -> None:
    config["model"]["weights"] = "nowhere.pt"
    with pytest.raises(SettingError, match=r"model\.weights: expected the path of a state dict, got 'nowhere\.pt'"):
        train_run(config, "run")
    assert not (tmp_path / "run").exists()


def test_other_peoples_settings_of_the_same_name_are_theirs() -> None:
    ours = {
        "_target_": "advtrain.models.resnet_50",
        "num_classes": 3,
        "weights": "a.pt",
        "gradient_checkpointing": True,
    }
    bare = {"num_classes": 3, "weights": None, "gradient_checkpointing": False}
    assert architecture_of(ours) == {"_target_": "advtrain.models.resnet_50", **bare}
    theirs = {"_target_": "mine.Model", "weights": "a.pt"}
    assert architecture_of(theirs) == theirs
