"""Index files choose and label the images of a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.data import ImageNetLT
from advtrain.losses.class_prior import ClassPrior
from advtrain.types import SettingError

TRAIN = [("train/apple", 8), ("train/bear", 3), ("train/crab", 1)]  # images of each class, in the order of their names
TEST = [("val/crab", 4), ("val/apple", 4)]


def write_index(path: Path, parts: Sequence[tuple[str, int]]) -> str:
    classes = {"apple": 0, "bear": 1, "crab": 2}
    lines = [f"{part}/{i:02}.png {classes[part.split('/')[1]]}" for part, count in parts for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def dataset(folder: Path, tmp_path: Path, train: Sequence[tuple[str, int]] = TRAIN, **settings: Any) -> ImageNetLT:
    small = {"num_classes": 4, "validation_size": 3, "size": 16, "resize": 20, "workers": 0}
    index, test_index = write_index(tmp_path / "train.txt", train), write_index(tmp_path / "test.txt", TEST)
    return ImageNetLT(**{"root": str(folder), "index": index, "test_index": test_index, **small, **settings})


def names(split: Any) -> list[str]:
    return [file.decode() for file in split.files]


def test_splits_hold_the_images_of_their_index(class_folders: Path, tmp_path: Path) -> None:
    listed = dataset(class_folders, tmp_path)
    listed.check()
    train, validation, test = (listed.split(name) for name in ("train", "validation", "test"))
    expected = [f"{part}/{i:02}.png" for part, count in TRAIN for i in range(count)]
    assert sorted(names(train) + names(validation)) == expected and len(validation) == 3
    assert names(test) == [f"{part}/{i:02}.png" for part, count in TEST for i in range(count)]  # in the index's order
    assert test.labels.tolist() == [2] * 4 + [0] * 4
    for split in (train, validation):
        assert [("apple", "bear", "crab").index(name.split("/")[1]) for name in names(split)] == split.labels.tolist()
    assert test.fetch(torch.tensor([0, 7]), "cpu").shape == (2, 3, 16, 16)


def test_a_validation_index_leaves_the_training_index_whole(class_folders: Path, tmp_path: Path) -> None:
    held = write_index(tmp_path / "held.txt", [("val/bear", 2), ("val/apple", 2)])
    listed = dataset(class_folders, tmp_path, validation_index=held)
    listed.check()
    assert len(listed.split("train")) == 12
    assert names(listed.split("validation")) == [
        "val/bear/00.png",
        "val/bear/01.png",
        "val/apple/00.png",
        "val/apple/01.png",
    ]


def test_a_class_may_be_rare_or_absent(class_folders: Path, tmp_path: Path) -> None:
    """The fourth class of the four has no training image, and the loss's class prior stays uniform for it."""
    listed = dataset(class_folders, tmp_path, validation_size=1)
    assert listed.remarks() == ["classes of 0 to 7 training images"]
    prior = ClassPrior(num_classes=4)
    for batch in listed.train_loader(batch_size=2, seed=0).epoch(1):
        prior.update(torch.randn(len(batch.y), 4, generator=torch.Generator().manual_seed(0)), batch.y)
    prior.end_epoch()
    assert torch.isfinite(prior.weights).all()
    assert torch.allclose(prior.weights.sum(1), torch.ones(4))
    assert torch.equal(prior.weights[3], torch.full((4,), 0.25))


@pytest.mark.parametrize("line", ["train/apple/00.png", "train/apple/00.png one", "train/apple/00.png 4", "7"])
def test_a_line_that_is_none_is_shown(class_folders: Path, tmp_path: Path, line: str) -> None:
    listed = dataset(class_folders, tmp_path)
    with (tmp_path / "train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SettingError, match=rf"^data.index: expected lines of a path .* got '{line}' in .*; "):
        listed.check()


def test_missing_and_empty_files_are_named(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^data.test_index: expected an index file, got no file"):
        dataset(class_folders, tmp_path, test_index=str(tmp_path / "nowhere.txt")).check()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SettingError, match=r"^data.validation_index: expected lines .*, got none"):
        dataset(class_folders, tmp_path, validation_index=str(tmp_path / "empty.txt")).check()
    with pytest.raises(SettingError, match=r"^data.root: expected the folder that the paths in .* got no .*; "):
        dataset(class_folders / "train", tmp_path).check()


def test_the_test_split_needs_no_other_index(class_folders: Path, tmp_path: Path) -> None:
    listed = dataset(class_folders, tmp_path, index=str(tmp_path / "nowhere.txt"))
    listed.check_test()
    assert len(listed.split("test")) == 8
