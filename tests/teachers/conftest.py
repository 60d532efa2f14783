"""A folder in which runs have been trained: a good teacher, and one that knows nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.composition import compose
from advtrain.engine import checkpoints
from advtrain.runs import train_run

SHORT = ("experiment=quickstart", "eval=none", "trainer.batch_size=128", "trainer.threads=1")
TEACHER = (*SHORT, "loss=standard", "trainer.epochs=3")
STUDENT = (*SHORT, "loss=kd", "trainer.epochs=1")

Train = Callable[..., dict[str, Any]]


def trained(name: str, *words: str) -> dict[str, Any]:
    """Trains runs/<name> below the working directory; returns its configuration."""
    config = compose("train", words)
    train_run(config, name)
    return config


@pytest.fixture(scope="session")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/t, a teacher; runs/dunce, the same network with its last layer at zero; t.pth, the teacher's weights."""
    folder = tmp_path_factory.mktemp("school")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained("t", *TEACHER)
    shutil.copytree(folder / "runs" / "t", folder / "runs" / "dunce")
    spoil(folder / "runs" / "dunce", lambda weights: weights * 0)
    state = checkpoints.load(folder / "runs" / "t" / "checkpoints" / "best.pt")
    torch.save({"epoch": 3, "model": state["averaged"]}, folder / "t.pth")  # as CRD's files are
    return folder


def spoil(run: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes the last layer of a run's averaged model."""
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.pt"
        state = checkpoints.load(path)
        for key in list(state["averaged"])[-2:]:
            state["averaged"][key] = change(state["averaged"][key])
        checkpoints.save(path, state)


@pytest.fixture
def classroom(school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the school, as the working directory."""
    shutil.copytree(school, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
