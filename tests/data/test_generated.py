"""Batches mixed with generated images: which rows, in which order, from where, and what a wrong pool is told."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advtrain.data import CIFAR10Generated, CIFAR100Generated, Digits
from advtrain.data.base import Batch
from advtrain.data.cifar_generated import CIFARGenerated
from advtrain.data.convert import convert
from advtrain.data.generated import Generated
from advtrain.data.generated_loader import generated_rows
from advtrain.data.image_files import ImageFiles, Stretch
from advtrain.types import SettingError

POOL, BATCH, FRACTION = 300, 64, 0.7
GENERATED = 44  # of 64
OFFICIAL = 1437  # of the digits' training images
STEPS = 23  # ⌈1437 / 64⌉


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images with their number in the first two pixels and a colour in the third that no digit has.

    Class c has 10 + 10 · (c modulo 5) images more or less: they are not balanced.
    """
    folder = tmp_path_factory.mktemp("pool")
    images = np.zeros((POOL, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(POOL), 256)
    images[:, 0, 2, 0] = 7  # digits hold multiples of 255 / 16
    np.savez(folder / "pool.npz", image=images, label=labels_of_pool())
    return folder / "pool.npz"


def labels_of_pool() -> np.ndarray:
    weights = np.array([1, 2, 3, 4, 5, 1, 2, 3, 4, 5]) / 30
    return np.random.default_rng(0).permutation(np.repeat(np.arange(10), (weights * POOL).astype(int)))


def dataset(pool: Path, validation_size: int = 100, augment: str = "none", **changes: Any) -> Generated:
    settings = {"generated_fraction": FRACTION, "class_balanced": False, "verify_manifest": False, **changes}
    base = Digits(validation_size=validation_size, augment=augment)
    return Generated(base, generated=str(pool), **settings)


def batches(
    pool: Path, epoch: int = 1, start_step: int = 0, seed: int = 0, rank: int = 0, world_size: int = 1, **changes
):
    loader = dataset(pool, **changes).train_loader(batch_size=BATCH, seed=seed, rank=rank, world_size=world_size)
    return list(loader.epoch(epoch, start_step))


def is_generated(batch: Batch) -> Tensor:
    return (batch.x[:, 0, 0, 2] * 255).round() == 7


def numbers(batch: Batch) -> Tensor:
    """Which images of the pool the generated rows are."""
    levels = (batch.x[is_generated(batch)] * 255).round().long()
    return levels[:, 0, 0, 0] * 256 + levels[:, 0, 0, 1]


@pytest.fixture(scope="module")
def three_epochs(pool: Path) -> list[Batch]:
    loader = dataset(pool).train_loader(batch_size=BATCH, seed=0)
    assert loader.steps_per_epoch == STEPS
    return [batch for epoch in (1, 2, 3) for batch in loader.epoch(epoch)]


def test_an_epoch_is_as_many_steps_as_the_official_training_set_has_batches(three_epochs: list[Batch]) -> None:
    assert len(three_epochs) == 3 * STEPS == 3 * -(-OFFICIAL // BATCH)


def test_every_batch_has_its_part_of_generated_rows_spread_over_it(three_epochs: list[Batch]) -> None:
    for batch in three_epochs:
        rows = is_generated(batch)
        assert len(rows) == BATCH and rows.sum() == GENERATED
        for size in (2, 4, 8, 16, 32):
            parts = rows.view(-1, size).sum(1)
            assert parts.max() - parts.min() <= 1


def test_generated_images_come_with_their_stored_labels(three_epochs: list[Batch]) -> None:
    stored = torch.from_numpy(labels_of_pool())
    for batch in three_epochs:
        assert torch.equal(batch.y[is_generated(batch)], stored[numbers(batch)])


def test_every_generated_image_is_seen_once_before_any_is_seen_again(three_epochs: list[Batch]) -> None:
    seen = torch.cat([numbers(batch) for batch in three_epochs])
    passes = seen[: len(seen) // POOL * POOL].view(-1, POOL)
    assert len(passes) == 10
    for one in passes:
        assert torch.equal(one.sort().values, torch.arange(POOL))
    assert not torch.equal(passes[0], passes[1])


def test_real_images_are_the_training_ones_each_once_in_a_pass(pool: Path, three_epochs: list[Batch]) -> None:
    train = dataset(pool).split("train")
    stored = train.fetch(torch.arange(len(train)), "cpu")
    known: dict[bytes, list[int]] = {}
    for x, y in zip(stored, train.labels, strict=True):
        known.setdefault(x.numpy().tobytes(), []).append(int(y))
    real = [
        (x.numpy().tobytes(), int(y))
        for batch in three_epochs
        for x, y in zip(batch.x[~is_generated(batch)], batch.y[~is_generated(batch)], strict=True)
    ]
    assert len(real) == 3 * STEPS * (BATCH - GENERATED) > len(train)
    assert sorted(real[: len(train)]) == sorted((x, y) for x, ys in known.items() for y in ys)


def test_held_out_and_test_images_are_real(pool: Path) -> None:
    mixed, real = dataset(pool), Digits()
    for name in ("train", "validation", "test"):
        assert torch.equal(mixed.split(name).labels, real.split(name).labels)
        assert torch.equal(mixed.split(name).members, real.split(name).members)


@pytest.mark.parametrize("class_balanced", [False, True])
@pytest.mark.parametrize("world_size", [2, 8])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(
    pool: Path, world_size: int, class_balanced: bool
) -> None:
    options: dict[str, Any] = {"augment": "crop_flip", "class_balanced": class_balanced, "epoch": 2, "start_step": 20}
    alone = batches(pool, **options)
    ranks = [batches(pool, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    assert len(alone) == 3
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert torch.equal(torch.cat([part.y for part in parts]), batch.y)
        assert all(torch.equal(batch.x[part.rows], part.x) for part in parts)


def test_a_process_reads_its_own_rows_only(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, indices: read.append(len(indices)) or original(self, indices))
    batches(pool, rank=1, world_size=4)
    assert sum(read) == STEPS * GENERATED // 4


@pytest.mark.parametrize("start_step", [1, 12, STEPS])
@pytest.mark.parametrize("class_balanced", [False, True])
def test_an_epoch_entered_midway_continues_the_whole_one(pool: Path, start_step: int, class_balanced: bool) -> None:
    options: dict[str, Any] = {"augment": "crop_flip", "class_balanced": class_balanced, "epoch": 4}
    whole, rest = batches(pool, **options), batches(pool, start_step=start_step, **options)
    assert len(rest) == STEPS - start_step
    for one, other in zip(whole[start_step:], rest, strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_seeds_differ_in_order_and_in_augmentation(pool: Path) -> None:
    orders = [torch.cat([numbers(batch) for batch in batches(pool, seed=seed)]) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    plain, augmented = batches(pool)[0], batches(pool, augment="crop_flip")[0]
    assert torch.equal(plain.y, augmented.y) and not torch.equal(plain.x, augmented.x)


def test_balanced_classes_take_turns_and_each_goes_through_its_images(pool: Path) -> None:
    loader = dataset(pool, class_balanced=True).train_loader(batch_size=BATCH, seed=0)
    taken = [batch for epoch in (1, 2) for batch in loader.epoch(epoch)]
    for batch in taken:
        counts = batch.y[is_generated(batch)].bincount(minlength=10)
        assert counts.max() - counts.min() <= 1
    seen = torch.cat([numbers(batch) for batch in taken])
    labels = torch.from_numpy(labels_of_pool())
    counts = labels[seen].bincount(minlength=10)
    assert counts.max() - counts.min() <= 1
    for c in range(10):
        members = torch.nonzero(labels == c).flatten()
        of_class = seen[labels[seen] == c]
        passes = of_class[: len(of_class) // len(members) * len(members)].view(-1, len(members))
        assert len(passes) >= 2
        for one in passes:
            assert torch.equal(one.sort().values, members)


def test_a_converted_folder_gives_the_same_batches(pool: Path, tmp_path: Path, three_epochs: list[Batch]) -> None:
    with np.load(pool) as arrays:
        np.savez_compressed(tmp_path / "small.npz", **arrays)
    convert(tmp_path / "small.npz", tmp_path / "made", shard_images=37, report=lambda line: None)
    mixed = dataset(tmp_path / "made", verify_manifest=True)
    mixed.check()
    loader = mixed.train_loader(batch_size=BATCH, seed=0)
    for one, other in zip(loader.epoch(2), three_epochs[STEPS:], strict=False):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_an_abandoned_epoch_ends_its_threads(pool: Path) -> None:
    epoch: Iterator[Batch] = dataset(pool).train_loader(batch_size=BATCH, seed=0).epoch(1)
    next(epoch)
    del epoch
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("generated")]


def test_drawing_batches_leaves_the_global_generators_alone(pool: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before, drawn = torch.get_rng_state(), np.random.random()
    np.random.seed(0)
    batches(pool, augment="crop_flip")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.random() == drawn


def test_resident_memory_does_not_grow_with_the_images_that_are_read(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) * 1024

    images = 60_000
    with (tmp_path / "images").open("wb") as file:
        file.truncate(images * 3072)  # 184 MB
    store = ImageFiles([Stretch(tmp_path / "images", 0, images)], (32, 32, 3))
    store.read(np.arange(500))
    before = resident()
    for first in range(0, images, 500):
        store.read(np.arange(first, first + 500))
    assert resident() - before < images * 3072 // 8


def test_a_file_that_was_cut_short_is_an_error_and_no_noise(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(bytes(64 * 10))
    store = ImageFiles([Stretch(tmp_path / "images", 0, 11)], (8, 8, 1))
    store.read(np.array([9]))
    with pytest.raises(OSError, match=r"images: expected image 10, got the end of the file"):
        store.read(np.array([10]))


@pytest.mark.parametrize(
    ("fraction", "batch", "rows"), [(0.7, 512, 358), (0.29, 100, 29), (0.5, 3, 1), (0.8, 1024, 819)]
)
def test_the_part_of_a_batch_is_rounded_down(fraction: float, batch: int, rows: int) -> None:
    assert generated_rows(fraction, batch) == rows


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, "half"])
def test_fractions_out_of_range_are_named(pool: Path, fraction: object) -> None:
    with pytest.raises(SettingError, match=r"^data.generated_fraction: expected a number .*, got .*; "):
        dataset(pool, generated_fraction=fraction)


def test_batches_without_generated_or_real_rows_are_refused(pool: Path) -> None:
    for fraction, batch_size in ((0.01, 64), (0.99, 1)):
        with pytest.raises(SettingError, match=r"^trainer.batch_size: expected real and generated images"):
            dataset(pool, generated_fraction=fraction).train_loader(batch_size=batch_size, seed=0)
    with pytest.raises(SettingError, match=r"^trainer.batch_size: expected a multiple of the 3 processes"):
        dataset(pool).train_loader(batch_size=64, seed=0, world_size=3)


def write(path: Path, **changes: Any) -> Path:
    arrays = {"image": np.zeros((POOL, 8, 8, 1), np.uint8), "label": labels_of_pool(), **changes}
    np.savez(path, **arrays)
    return path


def test_too_few_images_are_named(tmp_path: Path) -> None:
    small = write(tmp_path / "a.npz", image=np.zeros((43, 8, 8, 1), np.uint8), label=np.arange(43) % 10)
    with pytest.raises(SettingError, match=r"^data.generated: expected at least the 44 generated images of a batch"):
        dataset(small).train_loader(batch_size=BATCH, seed=0)
    without = labels_of_pool()
    without[without == 3] = 4
    with pytest.raises(SettingError, match=r"^data.class_balanced: expected at least 5 .*, got 0 of class 3; "):
        dataset(write(tmp_path / "b.npz", label=without), class_balanced=True).train_loader(batch_size=BATCH, seed=0)
    dataset(tmp_path / "b.npz").train_loader(batch_size=BATCH, seed=0)


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": np.zeros((POOL, 8, 8, 1), np.float32)},
        {"image": np.zeros((POOL, 8, 8), np.uint8)},
        {"image": np.zeros((POOL, 32, 32, 3), np.uint8)},
        {"label": np.zeros(POOL - 1, np.int64)},
        {"label": np.zeros(POOL, np.float32)},
        {"label": np.full(POOL, 10)},
        {"label": np.full(POOL, -1)},
    ],
    ids=["floats", "no channels", "other size", "short labels", "real labels", "high", "negative"],
)
def test_a_pool_that_does_not_fit_is_named_by_the_check(tmp_path: Path, arrays: dict) -> None:
    with pytest.raises(SettingError, match=r"^data.generated: expected .*, got .*; "):
        dataset(write(tmp_path / "pool.npz", **arrays)).check()


def test_missing_compressed_and_unconverted_pools_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^data.generated: expected an .npz file, got no file"):
        dataset(tmp_path / "nowhere.npz").check()
    with pytest.raises(SettingError, match=r"^data.generated: .* a folder with manifest.json.* advtrain.data.convert"):
        dataset(tmp_path).check()
    np.savez_compressed(tmp_path / "small.npz", image=np.zeros((POOL, 8, 8, 1), np.uint8), label=labels_of_pool())
    with pytest.raises(SettingError, match=r"got a compressed one; convert it once with python -m advtrain.data.con"):
        dataset(tmp_path / "small.npz").check()


@pytest.fixture
def converted(pool: Path, tmp_path: Path) -> Path:
    convert(pool, tmp_path / "made", shard_images=100, report=lambda line: None)
    return tmp_path / "made"


def test_sizes_are_always_checked_and_contents_on_request(converted: Path) -> None:
    shard = converted / "images-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    dataset(converted).check()
    with pytest.raises(SettingError, match=r"images-00001.npy with SHA-256 .*, got .*; the file is damaged"):
        dataset(converted, verify_manifest=True).check()
    shard.write_bytes(content[:-1])
    with pytest.raises(SettingError, match=r"images-00001.npy with 6528 bytes, got 6527 bytes; "):
        dataset(converted).check()
    shard.unlink()
    with pytest.raises(SettingError, match=r"images-00001.npy .*, got no such file; "):
        dataset(converted).check()


def test_an_npz_file_is_verified_by_its_own_sums(pool: Path, tmp_path: Path) -> None:
    content = bytearray(pool.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "pool.npz").write_bytes(content)
    dataset(tmp_path / "pool.npz").check()
    dataset(pool, verify_manifest=True).check()
    with pytest.raises(SettingError, match=r"got a damaged image.npy; copy it again$"):
        dataset(tmp_path / "pool.npz", verify_manifest=True).check()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("advtrain-images-1", "another"),
        ('"images": 300', '"images": 299'),
        ("{", ""),
        ("labels.npy", "../labels.npy"),
        ('"image_shape"', '"shape"'),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(converted: Path, old: str, new: str) -> None:
    path = converted / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SettingError, match=r"^data.generated: expected a manifest of the form .*; convert the source"):
        dataset(converted).check()


def test_labels_that_are_not_those_of_the_manifest_are_refused(converted: Path) -> None:
    labels = np.load(converted / "labels.npy")
    np.save(converted / "labels.npy", np.roll(np.sort(labels), 1) * 0)
    with pytest.raises(SettingError, match=r"expected the class counts of the manifest in .*, got others; "):
        dataset(converted).check()


def test_the_opening_tells_what_is_mixed_in(pool: Path) -> None:
    (line,) = dataset(pool, class_balanced=True).remarks()
    assert line == "70% of each batch from 300 generated images, 10 to 50 per class, drawn equally"


def test_the_test_split_needs_no_generated_images(tmp_path: Path) -> None:
    Generated.check_test(dataset(tmp_path / "nowhere.npz"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).touch()
    CIFAR10Generated(generated="nowhere.npz", root=str(tmp_path), download=False).check_test()


@pytest.mark.parametrize(("cifar", "classes"), [(CIFAR10Generated, 10), (CIFAR100Generated, 100)])
def test_cifar_is_mixed_with_images_of_its_size(
    cifar: type[CIFARGenerated], classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8), torch.arange(50_000) % classes
    monkeypatch.setattr(cifar.real, "read", lambda self, train: official)
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (400, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", image=images, label=rng.integers(0, classes, 400))
    mixed = cifar(generated=str(tmp_path / "small.npz"), root=str(tmp_path))
    mixed.check()
    loader = mixed.train_loader(batch_size=512, seed=0)
    assert loader.steps_per_epoch == 98  # ⌈50000 / 512⌉
    batch = next(iter(loader.epoch(1)))
    assert batch.x.shape == (512, 3, 32, 32) and batch.x.is_contiguous() and batch.x.dtype == torch.float32
    assert (batch.x.flatten(1).max(1).values > 0).sum() == 358
