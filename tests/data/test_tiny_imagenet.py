"""Tiny-ImageNet in the layout of its official zip file, with two training images of each class."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advtrain.data import Npz, TinyImageNet
from advtrain.types import SettingError

WNIDS = [f"n{number:08}" for number in np.random.default_rng(0).choice(10**8, 200, replace=False)]  # in no order
TEST_CLASSES = [7, 3, 3, 199, 0]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny-imagenet-200/; images are of one colour, which tells their class."""
    root = tmp_path_factory.mktemp("tiny")
    folder = root / "tiny-imagenet-200"
    by_name = sorted(WNIDS)
    for wnid in WNIDS:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").touch()
        for i in range(2):
            image = Image.new("RGB", (64, 64), (by_name.index(wnid), 40 * i, 100))
            image.save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", quality=95)
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for i, label in enumerate(TEST_CLASSES):
        Image.new("L", (64, 64), label).save(folder / "val" / "images" / f"val_{i}.JPEG", quality=95)
        lines.append(f"val_{i}.JPEG\t{by_name[label]}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return root


def dataset(root: Path, **settings: int | str) -> TinyImageNet:
    return TinyImageNet(root=str(root), validation_size=50, workers=2, **settings)  # pyright: ignore[reportArgumentType]


def test_images_and_labels_belong_together_and_are_kept_decoded(official: Path) -> None:
    tiny = dataset(official)
    tiny.check()
    train, validation, test = (tiny.split(name) for name in ("train", "validation", "test"))
    assert [len(split) for split in (train, validation, test)] == [350, 50, 5]
    assert torch.cat([train.labels, validation.labels]).bincount().tolist() == [2] * 200
    for split in (train, validation):
        red = (split.fetch(torch.arange(len(split)), "cpu") * 255)[:, 0].flatten(1).mean(1)
        assert (red - split.labels).abs().max() < 3  # JPEG's rounding
    assert test.labels.tolist() == TEST_CLASSES
    grey = test.fetch(torch.arange(5), "cpu") * 255
    assert grey.shape == (5, 3, 64, 64) and torch.equal(grey[:, 0], grey[:, 2])
    assert (grey.flatten(1).mean(1) - torch.tensor(TEST_CLASSES)).abs().max() < 2

    folder = official / "tiny-imagenet-200"
    assert {path.name for path in folder.glob("*.npz*")} == {"train.npz", "val.npz"}
    again = Npz(train=str(folder / "train.npz"), test=str(folder / "val.npz"), num_classes=200, validation_size=50)
    again.check()
    assert torch.equal(again.split("train").images, train.images)


def test_kept_images_are_read_without_the_files(official: Path, tmp_path: Path) -> None:
    for part in ("test", "train"):
        dataset(official).split(part)
    (tmp_path / "tiny-imagenet-200").mkdir()
    for name in ("train.npz", "val.npz"):
        shutil.copy(official / "tiny-imagenet-200" / name, tmp_path / "tiny-imagenet-200")
    alone = dataset(tmp_path)
    alone.check()
    assert torch.equal(alone.split("train").images, dataset(official).split("train").images)
    (batch, *_) = alone.train_loader(batch_size=32, seed=0).epoch(1)
    assert batch.x.shape == (32, 3, 64, 64)


def test_a_folder_that_cannot_be_written_is_decoded_every_time(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "tiny-imagenet-200"
    shutil.copytree(official / "tiny-imagenet-200", copy, ignore=shutil.ignore_patterns("*.npz"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert dataset(tmp_path).split("test").labels.tolist() == TEST_CLASSES
    assert not list(copy.glob("*.npz"))


def test_what_is_missing_is_named(official: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^data.root: expected tiny-imagenet-200/ with .*, got no .*; unpack"):
        dataset(tmp_path).check()
    copy = tmp_path / "tiny-imagenet-200"
    shutil.copytree(official / "tiny-imagenet-200", copy, ignore=shutil.ignore_patterns("*.npz"))
    with (copy / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(SettingError, match=r"^data.root: expected a file and a class of train/ .*n99999999.*; unpack"):
        dataset(tmp_path).split("test")
    shutil.rmtree(copy / "train" / WNIDS[0] / "images")
    with pytest.raises(SettingError, match=rf"^data.root: expected images in .*{WNIDS[0]}.*, got none; unpack"):
        dataset(tmp_path).split("train")
    shutil.rmtree(copy / "train" / WNIDS[0])
    with pytest.raises(SettingError, match=r"^data.root: expected 200 class folders in .*, got 199; unpack"):
        dataset(tmp_path).check()
    with pytest.raises(SettingError, match=r"^data.num_classes: expected 200, got 100; "):
        dataset(tmp_path, num_classes=100)


def test_an_image_of_another_size_is_named(official: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny-imagenet-200"
    shutil.copytree(official / "tiny-imagenet-200", copy, ignore=shutil.ignore_patterns("*.npz"))
    Image.new("RGB", (65, 64)).save(copy / "val" / "images" / "val_2.JPEG")
    with pytest.raises(SettingError, match=r"^data.root: expected .*val_2.JPEG of 64×64, got 65×64; "):
        dataset(tmp_path).split("test")
    assert not list(copy.glob("val.npz*"))
