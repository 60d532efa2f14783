"""Arrays in .npz files are found where they lie."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from advtrain.data.npz_member import member
from advtrain.types import SettingError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(40)


def test_an_uncompressed_array_starts_where_it_says(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", label=LABELS, image=IMAGES)
    for key, array in (("image", IMAGES), ("label", LABELS)):
        found = member("x", tmp_path / "set.npz", key)
        assert (found.shape, found.dtype, found.by_rows) == (array.shape, array.dtype, True)
        assert found.start is not None
        mapped = np.memmap(tmp_path / "set.npz", array.dtype, "r", found.start, array.shape)
        assert np.array_equal(mapped, array)


def test_an_archive_written_by_another_tool_is_understood(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", IMAGES)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        info = zipfile.ZipInfo("image.npy")
        info.extra = b"\x99\x99\x04\x00abcd"  # a field nobody knows, between the name and the content
        archive.writestr("first.npy", b"something else")
        archive.writestr(info, (tmp_path / "image.npy").read_bytes())
    found = member("x", tmp_path / "set.npz", "image")
    assert found.start is not None
    assert np.array_equal(np.memmap(found.path, np.uint8, "r", found.start, found.shape), IMAGES)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_elements_are_streamed_from_any_row_on(tmp_path: Path, save) -> None:
    save(tmp_path / "set.npz", image=IMAGES)
    found = member("x", tmp_path / "set.npz", "image")
    assert (found.start is None) == (save is np.savez_compressed)
    for first in (0, 1, 39, 40):
        with found.elements(first) as file:
            assert file.read() == IMAGES[first:].tobytes()


def test_arrays_stored_by_columns_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", image=np.asfortranarray(IMAGES))
    assert not member("x", tmp_path / "set.npz", "image").by_rows


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_noticed(tmp_path: Path, save) -> None:
    path = tmp_path / "set.npz"
    save(path, image=IMAGES)
    found = member("x", path, "image")
    damaged = bytearray(path.read_bytes())
    damaged[path.stat().st_size // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(SettingError, match=r"set.npz: expected image .*, got damaged bytes"), found.elements() as file:
        file.read()
