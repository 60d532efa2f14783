"""Batches of arrays: a function of the seed, whatever the partition and wherever an epoch is entered."""

import pytest
import torch
from torch import Tensor

from advtrain.data.arrays import ArrayLoader, ArraySplit, Presentation, whole
from advtrain.data.augmentations import augmentation
from advtrain.types import SettingError

N, BATCH = 46, 8


@pytest.fixture
def split() -> ArraySplit:
    """46 of 50 images; the first pixel is the image's number, and its label that number modulo 7."""
    images = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.arange(50)
    return whole(images, torch.arange(50) % 7).part(torch.arange(4, 50))


def loader(split: ArraySplit, augment: str = "crop_flip", second: str | None = None, **changes: int) -> ArrayLoader:
    views = augmentation(augment, padding=2), augmentation(second, padding=2) if second else None
    options = {"batch_size": BATCH, "seed": 0, "rank": 0, "world_size": 1, **changes}
    return ArrayLoader(split, presentation=Presentation(*views), device="cpu", **options)


def images_of(loader: ArrayLoader, epoch: int = 1, start_step: int = 0) -> Tensor:
    return torch.cat([batch.x for batch in loader.epoch(epoch, start_step)])


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(split: ArraySplit, world_size: int) -> None:
    alone = list(loader(split).epoch(3))
    ranks = [list(loader(split, rank=rank, world_size=world_size).epoch(3)) for rank in range(world_size)]

    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank[step].x for rank in ranks]), batch.x)
        assert torch.equal(torch.cat([rank[step].y for rank in ranks]), batch.y)
        for rank in ranks:
            assert torch.equal(rank[step].x, batch.x[rank[step].rows])


@pytest.mark.parametrize("start_step", [1, 4])
def test_an_epoch_entered_midway_continues_the_whole_one(split: ArraySplit, start_step: int) -> None:
    assert torch.equal(images_of(loader(split), 2, start_step), images_of(loader(split), 2)[start_step * BATCH :])


def test_an_epoch_visits_each_image_at_most_once_and_drops_only_the_remainder(split: ArraySplit) -> None:
    batches = list(loader(split, augment="none").epoch(1))
    numbers = torch.cat([batch.x[:, 0, 0, 0] * 255 for batch in batches]).round().long()

    assert len(batches) == loader(split).steps_per_epoch == N // BATCH
    assert all(len(batch.y) == BATCH for batch in batches)
    assert len(numbers.unique()) == len(numbers) and numbers.min() >= 4
    assert torch.equal(torch.cat([batch.y for batch in batches]), numbers % 7)


def test_without_augmentation_pixels_are_the_stored_ones(split: ArraySplit) -> None:
    batch = next(loader(split, augment="none").epoch(1))
    numbers = (batch.x[:, 0, 0, 0] * 255).round().long()

    assert batch.x.dtype == torch.float32 and batch.x.is_contiguous()
    assert torch.equal((batch.x * 255).round().to(torch.uint8), split.images[numbers])


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(split: ArraySplit) -> None:
    plain = [images_of(loader(split, augment="none"), 1), images_of(loader(split, augment="none"), 2)]
    plain.append(images_of(loader(split, augment="none", seed=1), 1))
    assert not torch.equal(plain[0], plain[1]) and not torch.equal(plain[0], plain[2])

    same = whole(split.images[4:5].repeat(N, 1, 1, 1), split.labels)  # one image many times: only augmentation is left
    augmented = [images_of(loader(same), 1), images_of(loader(same), 2), images_of(loader(same, seed=1), 1)]
    assert not torch.equal(augmented[0], augmented[1]) and not torch.equal(augmented[0], augmented[2])
    assert not torch.equal(augmented[0][:BATCH], augmented[0][BATCH : 2 * BATCH])  # nor do steps repeat


def test_drawing_batches_leaves_the_global_generator_alone(split: ArraySplit) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images_of(loader(split))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch_size", "world_size"), [(N + 1, 1), (9, 2), (0, 1)])
def test_batches_that_cannot_be_made_are_refused(split: ArraySplit, batch_size: int, world_size: int) -> None:
    with pytest.raises(SettingError, match=r"^trainer.batch_size: expected .*, got .*; .*"):
        loader(split, batch_size=batch_size, world_size=world_size)


def test_a_batch_may_be_the_whole_set(split: ArraySplit) -> None:
    assert loader(split, batch_size=N).steps_per_epoch == 1


def test_a_second_view_shows_the_same_images_by_draws_of_its_own(split: ArraySplit) -> None:
    one, two = list(loader(split).epoch(1)), list(loader(split, second="crop_flip").epoch(1))
    for before, batch in zip(one, two, strict=True):
        assert before.second is None and before.views == [before.x]
        assert batch.second is not None and batch.views == [batch.x, batch.second]
        assert torch.equal(batch.x, before.x) and torch.equal(batch.y, before.y)  # view 1 is what it was
        assert batch.second.shape == batch.x.shape and batch.second.is_contiguous()
        assert not torch.equal(batch.second, batch.x)
    assert all(torch.equal(*batch.views) for batch in loader(split, "none", "none").epoch(1))


@pytest.mark.parametrize("word", ["crop_flip", "autoaugment"])
def test_second_views_do_not_depend_on_processes_or_on_where_an_epoch_is_entered(split: ArraySplit, word: str) -> None:
    alone = list(loader(split, second=word).epoch(3))
    ranks = [list(loader(split, second=word, rank=rank, world_size=2).epoch(3)) for rank in range(2)]
    late = list(loader(split, second=word).epoch(3, start_step=2))
    for step, batch in enumerate(alone):
        parts = [rank[step].second for rank in ranks]
        assert batch.second is not None and torch.equal(torch.cat(parts), batch.second)
        assert step < 2 or torch.equal(late[step - 2].views[1], batch.second)
