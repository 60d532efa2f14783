"""Class folders: what is found, how it is decoded, and that batches are a function of the seed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from advtrain.data import ImageFolder
from advtrain.types import SettingError


def dataset(root: Path, **settings) -> ImageFolder:
    small = {"num_classes": 3, "validation_size": 6, "size": 16, "resize": 20, "workers": 0}
    return ImageFolder(root=str(root), **{**small, **settings})


def epoch_images(root: Path, epoch: int = 1, start_step: int = 0, batch_size: int = 4, **settings) -> Tensor:
    loader = dataset(root, **settings).train_loader(batch_size=batch_size, seed=0)
    return torch.cat([batch.x for batch in loader.epoch(epoch, start_step)])


def test_classes_are_numbered_by_name_and_val_is_the_test_split(class_folders: Path) -> None:
    folder = dataset(class_folders)
    folder.check()
    train, validation, test = (folder.split(name) for name in ("train", "validation", "test"))

    assert [len(split) for split in (train, validation, test)] == [12, 6, 12]
    assert test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [file.decode() for file in test.files[:5]] == [f"apple/0{i}.png" for i in range(4)] + ["bear/00.png"]
    on_disk = {str(path.relative_to(class_folders / "train")) for path in (class_folders / "train").glob("*/*.png")}
    ours = [file.decode() for split in (train, validation) for file in split.files]
    assert len(ours) == len(on_disk) and {*ours} == on_disk
    for split in (train, validation):
        assert [("apple", "bear", "crab").index(file.decode().split("/")[0]) for file in split.files] == [*split.labels]
    assert validation.labels.bincount().tolist() in ([3, 2, 1], [2, 2, 2])  # of 8, 6 and 4


def test_outside_training_an_image_is_scaled_and_its_centre_cut_out(class_folders: Path) -> None:
    x = dataset(class_folders).split("test").fetch(torch.tensor([7]), "cpu")
    image = Image.open(class_folders / "val" / "bear" / "03.png")
    width, height = (20 if side == min(image.size) else int(20 * side / min(image.size)) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    expected = scaled[top : top + 16, left : left + 16].transpose(2, 0, 1)

    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32 and x.is_contiguous()
    assert np.array_equal((x[0] * 255).round().numpy(), expected)


def test_threads_keep_the_order(class_folders: Path) -> None:
    indices = torch.tensor([11, 0, 5, 5, 3])
    one = dataset(class_folders, workers=0).split("test").fetch(indices, "cpu")
    assert torch.equal(dataset(class_folders, workers=3).split("test").fetch(indices, "cpu"), one)


def test_the_number_of_workers_changes_nothing(class_folders: Path) -> None:
    alone = [epoch_images(class_folders, epoch, workers=0) for epoch in (1, 2)]
    loader = dataset(class_folders, workers=2).train_loader(batch_size=4, seed=0)
    for epoch in (1, 2, 1):  # the same workers throughout
        assert torch.equal(torch.cat([batch.x for batch in loader.epoch(epoch)]), alone[epoch - 1])


def test_an_abandoned_epoch_does_not_leak_into_the_next(class_folders: Path) -> None:
    loader = dataset(class_folders, workers=2).train_loader(batch_size=2, seed=0)
    next(loader.epoch(1))
    assert torch.equal(torch.cat([batch.x for batch in loader.epoch(2)]), epoch_images(class_folders, 2, batch_size=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_entered_midway_continues_the_whole_one(class_folders: Path, workers: int) -> None:
    whole = epoch_images(class_folders)
    assert torch.equal(epoch_images(class_folders, start_step=2, workers=workers), whole[2 * 4 :])


def test_the_global_batch_does_not_depend_on_the_number_of_processes(class_folders: Path) -> None:
    folder = dataset(class_folders)
    alone = list(folder.train_loader(batch_size=4, seed=0).epoch(1))
    for world_size in (2, 4):
        loaders = [
            folder.train_loader(batch_size=4, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for batch, *parts in zip(alone, *(loader.epoch(1) for loader in loaders), strict=True):
            assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
            assert torch.equal(torch.cat([part.y for part in parts]), batch.y)
            assert all(torch.equal(batch.x[part.rows], part.x) for part in parts)


def test_augmentation_belongs_to_the_image_and_not_to_its_batch(class_folders: Path) -> None:
    assert torch.equal(epoch_images(class_folders, batch_size=3), epoch_images(class_folders, batch_size=4))


def test_augmentation_of_an_image_changes_from_epoch_to_epoch(class_folders: Path) -> None:
    epochs = [{x.numpy().tobytes() for x in epoch_images(class_folders, epoch, batch_size=12)} for epoch in (1, 2)]
    assert len(epochs[0]) == len(epochs[1]) == 12
    assert not epochs[0] & epochs[1]  # whatever their order


def test_labels_travel_with_their_images(class_folders: Path) -> None:
    folder = dataset(class_folders, augment="none")
    train = folder.split("train")
    known = {x.numpy().tobytes(): y for x, y in zip(train.fetch(torch.arange(12), "cpu"), train.labels, strict=True)}
    batches = list(folder.train_loader(batch_size=4, seed=0).epoch(1))
    seen = [(x.numpy().tobytes(), y) for batch in batches for x, y in zip(batch.x, batch.y, strict=True)]
    assert len({x for x, _ in seen}) == 12
    assert all(known[x] == y for x, y in seen)


def test_training_crops_vary_in_size_and_are_flipped_half_of_the_time(class_folders: Path) -> None:
    loader = dataset(class_folders, min_scale=0.25).train_loader(batch_size=4, seed=0)
    epochs = [torch.cat([batch.x for batch in loader.epoch(epoch)]) for epoch in range(1, 21)]
    assert not any(torch.equal(epochs[0], other) for other in epochs[1:])

    images = torch.cat(epochs)  # 240; red is the column and green the row that a pixel came from
    across, down = (images[:, 0, :, -1] - images[:, 0, :, 0]).mean(1), (images[:, 1, -1] - images[:, 1, 0]).mean(1)
    assert (down > 0).all()
    assert abs((across < 0).float().mean() - 0.5) < 4 * 0.5 / 240**0.5
    area = across.abs() * down  # share of the picture, a little less because pixels have a width
    assert area.min() > 0.25 * 0.7 and area.max() <= 1 and area.max() - area.min() > 0.5


def test_drawing_batches_leaves_the_global_generator_alone(class_folders: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_images(class_folders, workers=0)
    epoch_images(class_folders, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subset_of_the_test_split_holds_every_class(class_folders: Path) -> None:
    test = dataset(class_folders).split("test")
    assert test.labels[test.subset(6)].tolist() == [0, 0, 1, 1, 2, 2]


def test_missing_and_unequal_folders_are_named(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^data.root: expected a folder with train/ and val/, got no folder"):
        dataset(tmp_path).check()
    with pytest.raises(SettingError, match=r"; use data.num_classes=3$"):
        dataset(class_folders, num_classes=1000).check()

    copy = tmp_path / "copy"
    shutil.copytree(class_folders, copy)
    (copy / "val" / "crab").rename(copy / "val" / "cow")
    with pytest.raises(SettingError, match=r"got cow in one;"):
        dataset(copy).check()


def test_the_check_opens_no_image_and_an_empty_class_is_named(class_folders: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("apple", "bear", "crab"):
            (tmp_path / part / name).mkdir(parents=True)
    dataset(tmp_path).check()
    with pytest.raises(SettingError, match=r"^data.root: expected images .* in .*apple, got none"):
        dataset(tmp_path).split("test")


def test_grey_and_transparent_images_become_rgb(class_folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(class_folders, copy)
    Image.new("L", (30, 30), 51).save(copy / "val" / "apple" / "00.png")
    Image.new("RGBA", (30, 30), (51, 51, 51, 128)).save(copy / "val" / "apple" / "01.png")
    x = dataset(copy).split("test").fetch(torch.tensor([0, 1]), "cpu")
    assert torch.equal((x * 255).round(), torch.full((2, 3, 16, 16), 51.0))


@pytest.mark.parametrize(
    "setting", [{"resize": 15}, {"size": 0}, {"min_scale": 0}, {"augment": "crop_flip"}, {"workers": -1}]
)
def test_settings_out_of_range_are_named(setting: dict) -> None:
    with pytest.raises(SettingError, match=rf"^data.{next(iter(setting))}: expected .*, got .*; "):
        dataset(Path("anywhere"), **setting)


def test_a_real_folder(real_data: Path) -> None:
    root = real_data / "imagenet_small"
    folder = ImageFolder(root=str(root), num_classes=10, validation_size=100, size=64, resize=72, workers=0)
    folder.check()
    parts = {name: folder.split(name) for name in ("train", "validation", "test")}
    assert len(parts["train"]) + len(parts["validation"]) == len(list(root.glob("train/*/*.JPEG")))
    assert len(parts["test"]) == len(list(root.glob("val/*/*.JPEG")))
    batch = next(folder.train_loader(batch_size=8, seed=0).epoch(1))
    assert batch.x.shape == (8, 3, 64, 64) and batch.x.min() >= 0 and batch.x.max() <= 1


@pytest.mark.parametrize("word", ["autoaugment", "randaugment", "trivialaugment"])
def test_policies_follow_the_crop_and_are_named_by_epoch_and_image(class_folders: Path, word: str) -> None:
    plain = epoch_images(class_folders)
    changed = epoch_images(class_folders, augment=word)
    same = [torch.equal(*pair) for pair in zip(plain, changed, strict=True)]
    assert not all(same)  # the crop's draws come first, so an image that the policy leaves alone is the plain one
    assert torch.equal(epoch_images(class_folders, augment=word), changed)
    assert torch.equal(epoch_images(class_folders, augment=word, start_step=1), changed[4:])


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
def test_every_process_mixes_its_rows_of_the_global_batch(class_folders: Path, word: str) -> None:
    folder = dataset(class_folders, mix=word)
    alone = list(folder.train_loader(batch_size=4, seed=0).epoch(1))
    assert alone[0].y.shape == (4, 3) and torch.allclose(alone[0].y.sum(1), torch.ones(4))
    loaders = [folder.train_loader(batch_size=4, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(alone, *(loader.epoch(1) for loader in loaders), strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert torch.equal(torch.cat([part.y for part in parts]), batch.y)
    late = list(folder.train_loader(batch_size=4, seed=0).epoch(1, start_step=2))
    assert torch.equal(late[0].x, alone[2].x) and torch.equal(late[0].y, alone[2].y)
