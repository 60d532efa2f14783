"""From an image file to RGB pixels: JPEGs by torchvision's libjpeg-turbo, everything else by Pillow.

Both call libjpeg-turbo with the same settings and give the same bits; torchvision's way is shorter, and what follows
then works on tensors, whose resizing is vectorised (benchmarks/decoding.py). A rotation in the EXIF data is not
applied, as usual for ImageNet.
"""

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import pil_to_tensor

from advtrain.types import FileError

JPEG_START = b"\xff\xd8\xff"  # a file's first bytes tell; ImageNet has a PNG that is called .JPEG


def read_rgb(path: Path) -> Tensor:
    """The image in a file as uint8, shape (3, h, w).

    Raises:
        FileError: the file cannot be read or holds no whole image.
    """
    try:
        content = path.read_bytes()
        if content.startswith(JPEG_START):
            image = _jpeg(content)
            if image is not None:
                return image
        with Image.open(path) as opened:
            return pil_to_tensor(opened.convert("RGB"))
    # Pillow answers a damaged file with any of these.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise FileError(
            f"data.root: expected an image in {path}, got {' '.join(reason.split())}; replace the file or remove it"
        ) from error


def _jpeg(content: bytes) -> Tensor | None:
    """A grey or RGB JPEG, shape (3, h, w); None for one of four inks (left to Pillow, which mixes them) or damaged."""
    try:
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    except RuntimeError:
        return None
    return image.expand(3, -1, -1) if len(image) in (1, 3) else None
