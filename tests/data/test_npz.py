"""Image arrays in .npz files: content, and every way in which a file can be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advtrain.data import Npz
from advtrain.types import SettingError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 6, 8, 3), dtype=np.uint8)
LABELS = np.arange(60) % 4


def write(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def test_file(tmp_path: Path) -> str:
    return write(tmp_path / "test.npz", image=IMAGES[:12], label=LABELS[:12])


def dataset(tmp_path: Path, test_file: str, image: np.ndarray = IMAGES, label: np.ndarray = LABELS, **settings) -> Npz:
    train = write(tmp_path / "train.npz", image=image, label=label)
    return Npz(train=train, test=test_file, **{"num_classes": 4, "validation_size": 12, **settings})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_arrive_as_written(tmp_path: Path, dtype: type, save) -> None:
    save(tmp_path / "both.npz", image=IMAGES, label=LABELS.astype(dtype))
    npz = Npz(train=str(tmp_path / "both.npz"), test=str(tmp_path / "both.npz"), num_classes=4, validation_size=12)
    npz.check()
    split = npz.split("test")

    assert npz.image_shape == (3, 6, 8)
    assert split.labels.dtype == torch.int64 and split.labels.tolist() == LABELS.tolist()
    x = split.fetch(torch.tensor([5, 2]), "cpu")
    assert x.is_contiguous()
    assert np.array_equal((x * 255).round().numpy(), IMAGES[[5, 2]].transpose(0, 3, 1, 2))


def test_training_batches_are_crops_of_the_images_that_are_not_held_out(tmp_path: Path, test_file: str) -> None:
    npz = dataset(tmp_path, test_file, augment="none")
    loader = npz.train_loader(batch_size=48, seed=0)
    (batch,) = loader.epoch(1)
    seen = {image.tobytes() for image in (batch.x * 255).round().to(torch.uint8).numpy()}
    held = npz.split("validation").members.numpy()
    assert seen == {IMAGES[i].transpose(2, 0, 1).tobytes() for i in set(range(60)) - set(held.tolist())}


def test_splits_share_one_array(tmp_path: Path, test_file: str) -> None:
    npz = dataset(tmp_path, test_file)
    assert npz.split("train").images is npz.split("validation").images


def test_the_number_of_classes_may_stay_open(tmp_path: Path, test_file: str) -> None:
    npz = dataset(tmp_path, test_file, num_classes=None)
    npz.check()
    assert npz.num_classes is None


def test_images_are_not_read_by_the_check(tmp_path: Path, test_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    npz, read = dataset(tmp_path, test_file), []
    archive = type(np.load(test_file))
    original = archive.__getitem__
    monkeypatch.setattr(archive, "__getitem__", lambda self, key: read.append(key) or original(self, key))
    npz.check()
    assert set(read) == {"label"}
    npz.split("train")
    assert "image" in read


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": IMAGES / 255},
        {"image": IMAGES.transpose(0, 3, 1, 2)},
        {"image": IMAGES[..., 0]},
        {"image": IMAGES[:0], "label": LABELS[:0]},
        {"label": LABELS[:-1]},
        {"label": LABELS / 2},
        {"label": LABELS + 1},
        {"label": LABELS - 1},
        {"image": IMAGES[:, :, :6]},
    ],
    ids=[
        "floats",
        "channels first",
        "no channels",
        "empty",
        "short labels",
        "real labels",
        "high",
        "low",
        "other size",
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, test_file: str, arrays: dict) -> None:
    with pytest.raises(SettingError, match=r"^data.(train|test): expected .*, got .*; "):
        dataset(tmp_path, test_file, **arrays).check()


def test_a_remedy_for_too_many_classes(tmp_path: Path, test_file: str) -> None:
    with pytest.raises(SettingError, match=r"use data.num_classes=4"):
        dataset(tmp_path, test_file, num_classes=3).check()


def test_files_that_are_missing_or_something_else_are_named(tmp_path: Path, test_file: str) -> None:
    with pytest.raises(SettingError, match=r"^data.train: expected an .npz file, got no file"):
        Npz(train=str(tmp_path / "nowhere.npz"), test=test_file).check()
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(SettingError, match=r"^data.train: .* without a readable image"):
        Npz(train=str(tmp_path / "text.npz"), test=test_file).check()
    with pytest.raises(SettingError, match=r"^data.test: .* without a readable label"):
        Npz(train=test_file, test=write(tmp_path / "bare.npz", image=IMAGES)).check()
