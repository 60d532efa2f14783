"""Conversion into shards: content, sums, what is left of a stopped one, and what is refused."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from advtrain.data import convert as conversion
from advtrain.data.convert import convert
from advtrain.data.generated_set import open_generated
from advtrain.types import SettingError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 70)
SHAPE = (1, 8, 8)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "set.npz", image=IMAGES, label=LABELS)
    return tmp_path / "set.npz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same images in three files, one of them uncompressed."""
    made = tmp_path / "parts"
    made.mkdir()
    for i, (save, part) in enumerate(
        [(np.savez, slice(0, 9)), (np.savez_compressed, slice(9, 50)), (np.savez_compressed, slice(50, 70))]
    ):
        save(made / f"{i}.npz", image=IMAGES[part], label=LABELS[part])
    return made


@pytest.mark.parametrize("kind", ["source", "folder"])
@pytest.mark.parametrize(("shard_images", "block_images"), [(70, 1000), (20, 7), (7, 20), (100, 9)])
def test_images_and_labels_arrive_in_order(
    kind: str,
    shard_images: int,
    block_images: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "BLOCK_BYTES", block_images * 64)
    target = tmp_path / "made"
    manifest = convert(request.getfixturevalue(kind), target, shard_images=shard_images, report=quiet)

    shards = [np.load(target / shard.name) for shard in manifest.shards]
    assert [len(shard) for shard in shards[:-1]] == [shard_images] * (len(shards) - 1)
    assert np.array_equal(np.concatenate(shards), IMAGES)
    assert np.array_equal(np.load(target / "labels.npy"), LABELS)
    pool = open_generated(target, image_shape=SHAPE, num_classes=10)
    some = RNG.integers(0, 70, 200)
    assert np.array_equal(pool.images.read(some), IMAGES[some])


def test_the_manifest_tells_sums_counts_and_shape(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "made", shard_images=30, report=quiet)
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())

    assert manifest["images"] == 70 and manifest["image_shape"] == [8, 8, 1]
    assert manifest["class_counts"] == np.bincount(LABELS, minlength=10).tolist()
    files = [manifest["labels"], *manifest["shards"]]
    for file in files:
        content = (tmp_path / "made" / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert made == {"manifest.json", *(file["name"] for file in files)}


@pytest.mark.parametrize("kind", ["source", "folder"])
def test_a_stopped_conversion_continues_and_ends_with_the_same_files(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    origin = request.getfixturevalue(kind)
    convert(origin, tmp_path / "whole", shard_images=15, report=quiet)

    target, lines = tmp_path / "made", []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(origin, target, shard_images=15, report=stop)
    assert not (target / "manifest.json").exists()
    (target / "images-00002.npy").write_bytes(b"half a shard")  # it was not finished
    before = (target / "images-00001.npy").stat().st_mtime_ns
    convert(origin, target, shard_images=15, report=quiet)

    assert (target / "images-00001.npy").stat().st_mtime_ns == before
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == whole


def test_a_finished_shard_that_was_lost_is_made_again(source: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "made", shard_images=20, report=stop)
    (tmp_path / "made" / "images-00001.npy").unlink()
    convert(source, tmp_path / "made", shard_images=20, report=quiet)
    pool = open_generated(tmp_path / "made", image_shape=SHAPE, num_classes=10)
    assert np.array_equal(pool.images.read(np.arange(70)), IMAGES)


def test_a_finished_conversion_is_left_as_it_is(source: Path, tmp_path: Path) -> None:
    first = convert(source, tmp_path / "made", report=quiet)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert convert(source, tmp_path / "made", report=quiet) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()} == times


def test_a_target_with_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(SettingError, match=r"^target: expected an empty folder or an earlier .*; "):
        convert(source, tmp_path / "home", report=quiet)

    convert(source, tmp_path / "made", report=quiet)
    np.savez(tmp_path / "other.npz", image=IMAGES[:60], label=LABELS[:60])
    with pytest.raises(SettingError, match=r"^target: expected an empty folder or an earlier .*; "):
        convert(tmp_path / "other.npz", tmp_path / "made", report=quiet)


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": IMAGES / 255},
        {"image": IMAGES[..., 0]},
        {"image": np.asfortranarray(IMAGES)},
        {"label": LABELS[:-1]},
        {"label": LABELS / 2},
        {"label": LABELS - 5},
        {"label": LABELS + 70_000},
    ],
    ids=["floats", "no channels", "by columns", "short labels", "real labels", "negative", "high"],
)
def test_a_source_that_cannot_be_used_is_named(arrays: dict, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **{"image": IMAGES, "label": LABELS, **arrays})
    with pytest.raises(SettingError, match=r"^source: expected .*, got .*; "):
        convert(tmp_path / "set.npz", tmp_path / "made", report=quiet)


def test_files_of_different_sizes_or_none_are_refused(folder: Path, tmp_path: Path) -> None:
    np.savez(folder / "9.npz", image=IMAGES[:, :4], label=LABELS)
    with pytest.raises(SettingError, match=r"expected images of 8×8×1 .*, got 4×8×1 in .*9.npz; "):
        convert(folder, tmp_path / "made", report=quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"^source: expected .npz files in .*, got none; "):
        convert(tmp_path / "empty", tmp_path / "made", report=quiet)


def test_a_damaged_source_leaves_no_manifest(source: Path, tmp_path: Path) -> None:
    damaged = bytearray(source.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    source.write_bytes(damaged)
    with pytest.raises(SettingError, match=r"got damaged bytes"):
        convert(source, tmp_path / "made", report=quiet)
    assert not (tmp_path / "made" / "manifest.json").exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(SettingError, match=r"^target: expected 0.0 GB of free disk"):
        convert(source, tmp_path / "made", report=quiet)
    assert not list((tmp_path / "made").glob("images-*"))


def test_the_command_converts_and_says_what_is_wrong_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", str(source), str(tmp_path / "made"), "--shard-images", "40"])
    conversion.main()
    assert {path.name for path in (tmp_path / "made").glob("images-*")} == {"images-00000.npy", "images-00001.npy"}

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "nowhere.npz"), str(tmp_path / "other")])
    with pytest.raises(SystemExit) as ended:
        conversion.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("advtrain: error: source: expected") and error.count("\n") == 1
