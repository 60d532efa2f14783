"""Whether a network takes the images of a dataset and answers with its classes."""

import torch
from torch import nn

from advtrain.types import SettingError


def check_fit(
    model: nn.Module, image_shape: tuple[int, int, int], num_classes: int | None, *, what: str, remedy: str
) -> None:
    """Confirms with one black image that the model takes such images and answers with so many logits.

    Args:
        model: on the CPU.
        image_shape: (channels, height, width).
        num_classes: logits per image.
        what: the setting that named the model, for the message.
        remedy: what to do, for the message.

    Raises:
        SettingError: it does not.
    """
    shape = "×".join(map(str, image_shape))
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, *image_shape))
    except (RuntimeError, AssertionError) as error:  # timm asserts its image size
        reason = str(error).split("\n")[0]
        raise SettingError(
            f"{what}: expected one that takes {shape} images, got an error ({reason}); {remedy}"
        ) from error
    finally:
        model.train(was_training)
    if tuple(logits.shape) != (1, num_classes):
        got = f"{tuple(logits.shape)} for one image"
        raise SettingError(f"{what}: expected {num_classes} logits per image, got {got}; {remedy}")
