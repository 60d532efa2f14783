"""Whatever the file, the pixels are Pillow's; a damaged file gets one line."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from advtrain.data import ImageFolder, decoding
from advtrain.data.decoding import read_rgb
from advtrain.types import FileError


def picture(mode: str = "RGB", size: tuple[int, int] = (45, 37)) -> Image.Image:
    """Smooth colours with some noise, as in a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-8, 9, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def exif(orientation: int) -> bytes:
    content = Image.Exif()
    content[0x0112] = orientation
    return content.tobytes()


def encoded(file_format: str, mode: str = "RGB", **settings) -> bytes:
    content = io.BytesIO()
    picture(mode).save(content, file_format, **settings)
    return content.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "4:2:0": lambda: encoded("JPEG", quality=90),
    "4:4:4": lambda: encoded("JPEG", quality=90, subsampling=0),
    "progressive": lambda: encoded("JPEG", progressive=True),
    "grey": lambda: encoded("JPEG", "L"),
    "four inks": lambda: encoded("JPEG", "CMYK"),
    "turned by EXIF": lambda: encoded("JPEG", exif=exif(6)),
    "damaged EXIF": lambda: encoded("JPEG", exif=exif(6)[:9] + b"\xff" * 12),
    "no JFIF header": lambda: encoded("JPEG").replace(b"JFIF", b"ODD!"),
    "PNG": lambda: encoded("PNG"),
    "PNG with palette": lambda: encoded("PNG", "P"),
    "PNG with alpha": lambda: encoded("PNG", "RGBA"),
    "WebP": lambda: encoded("WEBP", lossless=True),
    "BMP": lambda: encoded("BMP"),
}
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "half a JPEG": lambda: encoded("JPEG")[:600],
    "half a PNG": lambda: encoded("PNG")[:600],
    "only the start of a JPEG": lambda: decoding.JPEG_START,
    "a page": lambda: b"<html>404</html>",
}


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_those_of_pillow(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.JPEG"  # the content tells what it is, not the name
    path.write_bytes(FILES[name]())
    image = read_rgb(path)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    assert image.dtype == torch.uint8 and image.shape == (3, 37, 45)
    assert np.array_equal(image.numpy(), expected)


@pytest.mark.parametrize("name", ("4:2:0", "progressive", "grey"))
def test_usual_jpegs_do_not_pass_through_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(FILES[name]())
    monkeypatch.delattr(decoding.Image, "open")
    assert read_rgb(path).shape == (3, 37, 45)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_gets_one_line_with_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "broken.JPEG"
    path.write_bytes(DAMAGED[name]())
    with pytest.raises(
        FileError, match=r"^data.root: expected an image in .*broken.JPEG, got .+; replace .*$"
    ) as error:
        read_rgb(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileError, match=r"expected an image in .*gone.JPEG, got .*No such file"):
        read_rgb(tmp_path / "gone.JPEG")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_raises_that_line(tmp_path: Path, workers: int) -> None:
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                picture().save(tmp_path / part / name / f"{i}.jpg")
    folder = ImageFolder(
        root=str(tmp_path), num_classes=2, validation_size=2, size=16, resize=20, augment="none", workers=workers
    )
    damaged = folder.split("train").files[3].decode()
    (tmp_path / "train" / damaged).write_bytes(DAMAGED["half a JPEG"]())
    with pytest.raises(FileError, match=rf"^data.root: expected an image in .*{damaged}, got .*$"):
        list(folder.train_loader(batch_size=2, seed=0).epoch(1))
    with pytest.raises(FileError, match=rf"^data.root: expected an image in .*{damaged}, got .*$"):
        folder.split("train").fetch(torch.tensor([0, 3]), "cpu")


def test_training_crops_are_those_of_pillow_but_for_rounding(tmp_path: Path) -> None:
    """The same boxes and flips from the same seed; torchvision's and Pillow's bilinear filters round differently."""
    path = tmp_path / "image.jpg"
    picture(size=(200, 150)).save(path, quality=95)
    folder = ImageFolder(root=str(tmp_path), num_classes=2, size=32, resize=36)
    transform = folder._train_transform()
    with Image.open(path) as opened:
        through_pillow = opened.convert("RGB")

    def crops(image: Tensor | Image.Image) -> Tensor:
        drawn = []
        for seed in range(100):
            torch.manual_seed(seed)
            drawn.append(pil_to_tensor(transform(image)) if isinstance(image, Image.Image) else transform(image))
        return torch.stack(drawn).int()

    ours, reference = crops(read_rgb(path)), crops(through_pillow)
    assert (ours - reference).abs().max() <= 2
    assert (ours != reference).float().mean() < 0.01
    assert (ours[0] - ours[1]).abs().float().mean() > 10  # the crops differ from each other
