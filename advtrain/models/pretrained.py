"""Networks that come trained: what torchvision and timm say of their own weights, without fetching them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from advtrain.models.libraries import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VARIANTS,
    check_timm_name,
    torchvision_builder,
)
from advtrain.models.normalize import Normalize


@dataclass(frozen=True)
class LibraryModel:
    """What a library says of one of its networks.

    Attributes:
        mean, std: per channel, what its own weights expect images in [0, 1] to be standardised by.
        num_classes: of its own weights; None where there are none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int | None


def of_torchvision(name: str) -> LibraryModel:
    """A classifier of torchvision.

    Raises:
        SettingError: torchvision has none of that name.
    """
    torchvision_builder(name)
    if name in VARIANTS:
        return LibraryModel(IMAGENET_MEAN, IMAGENET_STD, None)
    from torchvision.models import get_model_weights

    weights: Any = getattr(get_model_weights(name), "DEFAULT", None)
    if weights is None:
        return LibraryModel(IMAGENET_MEAN, IMAGENET_STD, None)
    presented = weights.transforms()
    return LibraryModel(tuple(presented.mean), tuple(presented.std), len(weights.meta["categories"]))


def of_timm(name: str) -> LibraryModel:
    """A network of timm.

    Raises:
        SettingError: timm is not installed or has none of that name.
    """
    check_timm_name(name)
    import timm

    stated: Any = timm.get_pretrained_cfg(name)
    # Weights without a head (0 classes) know nothing of classes.
    num_classes = (stated.num_classes or None) if stated.has_weights else None
    return LibraryModel(tuple(stated.mean), tuple(stated.std), num_classes)


def trained_torchvision_model(name: str) -> Normalize:
    """A classifier of torchvision with the weights that torchvision prefers; downloads them.

    Raises:
        OSError, RuntimeError: they cannot be fetched.
    """
    from torchvision.models import get_model

    known = of_torchvision(name)
    return standardised(get_model(name, weights="DEFAULT"), known.mean, known.std)


def standardised(model: Any, mean: Sequence[float], std: Sequence[float]) -> Normalize:
    """The network with such a normalisation inside, in place of the `Normalize` that it may have."""
    return Normalize(model.model if isinstance(model, Normalize) else model, mean=mean, std=std)
