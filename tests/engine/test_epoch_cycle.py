"""Epochs that come again: the same batches of every dataset, while what an attack draws goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advtrain.attacks import Free
from advtrain.config import TrainerSettings
from advtrain.data import CIFAR100Generated, ImageFolder
from advtrain.data.base import Batch, Dataset
from advtrain.engine.epoch_cycle import EpochCycle, remarks
from advtrain.losses import PGDAT, TRADES
from advtrain.types import SettingError
from tests.engine.toy import Toy, trainer


def image_folder(folder: Path) -> Dataset:
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 9), ("val", 1)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
                image.save(folder / part / name / f"{i}.png")
    return ImageFolder(root=str(folder), num_classes=2, validation_size=4, size=8, resize=10, workers=0)


DATA: dict[str, Callable[[Path], Dataset]] = {
    "augmented": lambda folder: Toy(),
    "as stored": lambda folder: Toy(augment="none"),
    "two views": lambda folder: Toy(second_view="autoaugment"),
    "mixup": lambda folder: Toy(mix="mixup"),
    "cutmix": lambda folder: Toy(mix="cutmix"),
    "folders": image_folder,
}


def same(a: Batch, b: Batch) -> bool:
    views = [torch.equal(x, z) for x, z in zip(a.views, b.views, strict=True)]
    assert a.indices is not None and b.indices is not None
    return all(views) and torch.equal(a.y, b.y) and torch.equal(a.indices, b.indices) and a.rows == b.rows


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("rank", (0, 1))
def test_epochs_come_again(name: str, rank: int, tmp_path: Path) -> None:
    data = DATA[name](tmp_path)
    loader = data.train_loader(batch_size=6, seed=0, rank=rank, world_size=2)
    cycle = EpochCycle(loader, 3)
    assert cycle.steps_per_epoch == loader.steps_per_epoch
    for epoch, shown in ((1, 1), (3, 3), (4, 1), (5, 2), (9, 3), (10, 1)):
        for start in (0, 1):
            found, expected = list(cycle.epoch(epoch, start)), list(loader.epoch(shown, start))
            assert len(found) == loader.steps_per_epoch - start > 0
            assert all(map(same, found, expected))
    first, second, again = (next(iter(cycle.epoch(epoch))) for epoch in (1, 2, 4))
    assert not same(first, second) and same(first, again)


@pytest.mark.parametrize("name", ("as stored", "folders"))
def test_a_batch_says_which_images_it_holds(name: str, tmp_path: Path) -> None:
    data = DATA[name](tmp_path)
    split = data.split("train")
    for rank in (0, 1):
        loader = data.train_loader(batch_size=6, seed=0, rank=rank, world_size=2)
        for start, batch in ((0, next(iter(loader.epoch(2)))), (1, next(iter(loader.epoch(2, 1))))):
            assert torch.equal(split.labels[batch.indices], batch.y), (rank, start)
            if data.shows_stored_images:
                assert torch.equal(split.fetch(batch.indices, "cpu"), batch.x)


def test_folders_as_stored_are_those_of_the_split(tmp_path: Path) -> None:
    image_folder(tmp_path)
    settings: dict[str, Any] = {"num_classes": 2, "validation_size": 4, "size": 8, "resize": 10, "workers": 0}
    data = ImageFolder(root=str(tmp_path), augment="none", **settings)
    batch = next(iter(data.train_loader(batch_size=6, seed=0).epoch(1)))
    assert data.shows_stored_images and torch.equal(data.split("train").fetch(batch.indices, "cpu"), batch.x)
    assert not ImageFolder(root=str(tmp_path), augment="none", mix="mixup", **settings).shows_stored_images
    assert not ImageFolder(root=str(tmp_path), **settings).shows_stored_images


def test_which_images_are_shown_as_stored() -> None:
    assert Toy(augment="none").shows_stored_images
    for moving in ({}, {"augment": "none", "mix": "mixup"}, {"augment": "none", "second_view": "cutout"}):
        assert not Toy(**moving).shows_stored_images
    generated = CIFAR100Generated(root="nowhere", generated="nowhere.npz", augment="none")
    assert not generated.shows_stored_images


def losses(folder: Path, **changes: Any) -> list[dict[str, float]]:
    """What a run logs whose weights do not move."""
    run = trainer(folder, loss=TRADES(), epochs=4, replay_epochs=2, **changes)
    run.optimizer.param_groups[0]["lr"] = 0.0
    run._set_learning_rate = lambda: None
    run.fit()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in line]


def test_attacks_start_anew_on_images_that_come_again(tmp_path: Path) -> None:
    found = losses(tmp_path)
    steps = len(found) // 4
    natural = [record["ce"] for record in found]
    assert natural[: 2 * steps] == natural[2 * steps :]
    differing = [a["loss"] != b["loss"] for a, b in zip(found[: 2 * steps], found[2 * steps :], strict=True)]
    assert all(differing)


def test_free_training_replays_steps_of_epochs_that_come_again(tmp_path: Path) -> None:
    run = trainer(tmp_path, loss=PGDAT(), attack=Free(eps=0.05, replays=3), replay_epochs=2, epochs=4)
    assert run.train_loader.steps_per_epoch == 12
    assert all(map(same, run.train_loader.epoch(3), run.train_loader.epoch(1)))
    assert not all(map(same, run.train_loader.epoch(2), run.train_loader.epoch(1)))


def test_the_opening_lines_say_what_it_costs() -> None:
    assert remarks(TrainerSettings()) == []
    replay, warning = remarks(TrainerSettings(epochs=9, replay_epochs=3))
    assert "mod 3" in replay and "after epoch 3 of 9" in warning
    (line,) = remarks(TrainerSettings(epochs=9, replay_epochs=9))
    assert "no epoch comes again" in line


@pytest.mark.parametrize("value", (0, -1, 1.5))
def test_a_cycle_has_at_least_one_epoch(value: Any) -> None:
    with pytest.raises(SettingError, match=r"trainer.replay_epochs: expected an integer"):
        TrainerSettings(replay_epochs=value)
