"""CIFAR: what is missing is said before anything is read; the real sets against their own pickles."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from advtrain import distributed
from advtrain.data import CIFAR10, CIFAR100
from advtrain.types import SettingError

BOTH = pytest.mark.parametrize("cifar", [CIFAR10, CIFAR100])


def pickled(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 3072 bytes and labels, as published."""
    batches = [pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in names]
    labels = [batch.get("labels", batch.get("fine_labels")) for batch in batches]
    return np.concatenate([batch["data"] for batch in batches]), np.concatenate(labels)


FILES = {CIFAR10: ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]), CIFAR100: (["train"], ["test"])}


@pytest.fixture(scope="module", params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def loaded(request: pytest.FixtureRequest, real_data: Path) -> CIFAR10 | CIFAR100:
    dataset = request.param(root=str(real_data), download=False)
    dataset.check()
    return dataset


def test_train_and_validation_are_the_official_training_set(loaded: CIFAR10 | CIFAR100, real_data: Path) -> None:
    train, validation = loaded.split("train"), loaded.split("validation")
    assert not {*train.members.tolist()} & {*validation.members.tolist()}
    members = torch.cat([train.members, validation.members])
    assert torch.equal(members.sort().values, torch.arange(50_000))
    assert validation.labels.bincount().unique().tolist() == [1000 // loaded.classes]

    images, labels = pickled(real_data / loaded.folder, FILES[type(loaded)][0])
    for split in (train, validation):
        some = torch.arange(0, len(split), 97)
        x = (split.fetch(some, "cpu") * 255).round().to(torch.uint8)
        published = split.members[some].numpy()
        assert np.array_equal(x.flatten(1).numpy(), images[published])
        assert np.array_equal(split.labels.numpy(), labels[split.members.numpy()])


def test_the_test_split_is_the_official_one_in_order(loaded: CIFAR10 | CIFAR100, real_data: Path) -> None:
    images, labels = pickled(real_data / loaded.folder, FILES[type(loaded)][1])
    split = loaded.split("test")
    assert np.array_equal(split.labels.numpy(), labels)
    assert np.array_equal(split.images.flatten(1).numpy(), images)
    x = split.fetch(split.subset(5), "cpu")
    assert np.array_equal((x * 255).round().flatten(1).numpy(), images[:5])


def test_an_epoch_of_the_real_set_is_augmented_training_images(loaded: CIFAR10 | CIFAR100) -> None:
    loader = loaded.train_loader(batch_size=128, seed=0)
    assert loader.steps_per_epoch == 49_000 // 128
    batch = next(loader.epoch(1))
    assert batch.x.shape == (128, *loaded.image_shape) and batch.x.dtype == torch.float32
    assert batch.x.min() >= 0 and batch.x.max() <= 1


@BOTH
def test_missing_files_are_named_without_download(cifar: type, tmp_path: Path) -> None:
    dataset = cifar(root=str(tmp_path), download=False)
    with pytest.raises(
        SettingError,
        match=rf"^data.root: expected .*{cifar.folder}/ with .*, got no such folder; .*data.download=true$",
    ):
        dataset.check()

    (tmp_path / cifar.folder).mkdir()
    for name in cifar.files[1:]:
        (tmp_path / cifar.folder / name).touch()
    with pytest.raises(SettingError, match=rf"got no {cifar.files[0]};"):
        dataset.check()
    (tmp_path / cifar.folder / cifar.files[0]).touch()
    dataset.check()


@BOTH
def test_the_check_passes_where_files_can_be_fetched(cifar: type, tmp_path: Path) -> None:
    cifar(root=str(tmp_path)).check()
    assert not list(tmp_path.iterdir())


@BOTH
def test_files_that_are_not_the_official_ones_are_refused(cifar: type, tmp_path: Path) -> None:
    (tmp_path / cifar.folder).mkdir()
    for name in cifar.files:
        (tmp_path / cifar.folder / name).write_bytes(b"something else")
    with pytest.raises(SettingError, match="expected the official files"):
        cifar(root=str(tmp_path), download=False).split("train")


@pytest.mark.parametrize(("local_rank", "fetches"), [(0, [True]), (1, [])])
def test_only_the_first_process_of_a_node_fetches(
    local_rank: int, fetches: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    class Official:
        data = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        targets = [*range(10)] * 2

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            events.append(download)

    monkeypatch.setattr(datasets, "CIFAR10", Official)
    monkeypatch.setattr(distributed, "local_rank", lambda: local_rank)
    monkeypatch.setattr(distributed, "barrier", lambda: events.append("barrier"))
    split = CIFAR10(root=str(tmp_path), validation_size=10).split("train")
    assert events == [*fetches, "barrier", False]
    x = split.fetch(torch.arange(10), "cpu")
    assert np.array_equal((x * 255).round().numpy(), Official.data[split.members].transpose(0, 3, 1, 2))

    (tmp_path / CIFAR10.folder).mkdir()
    for name in CIFAR10.files:
        (tmp_path / CIFAR10.folder / name).touch()
    events.clear()
    CIFAR10(root=str(tmp_path), validation_size=10).split("train")
    assert events == ["barrier", False]  # nothing is missing


def test_a_failed_fetch_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(root: Path, train: bool, download: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    with pytest.raises(SettingError, match=r"^data.download: expected to fetch CIFAR10 .* got no network; "):
        CIFAR10(root=str(tmp_path)).split("train")


@BOTH
def test_the_number_of_classes_is_fixed(cifar: type) -> None:
    assert cifar(num_classes=cifar.classes).num_classes == cifar.classes
    with pytest.raises(SettingError, match=r"^data.num_classes: expected"):
        cifar(num_classes=cifar.classes + 1)
