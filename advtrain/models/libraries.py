"""Models of torchvision and timm, with their normalisation inside."""

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from advtrain import checks
from advtrain.models.normalize import Normalize
from advtrain.types import SettingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resnet_50(
    *, num_classes: int = 1000, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Normalize:
    """torchvision's ResNet-50, randomly initialised, for images in [0, 1], shape (n, 3, h, w); logits, shape (n, C).

    Args:
        num_classes: C.
        mean, std: per channel; ImageNet's by default.

    Raises:
        ValueError: an argument is out of range.
    """
    from torchvision.models import resnet50

    model = resnet50(num_classes=checks.integer("model.num_classes", num_classes, low=1))
    return Normalize(model, mean=mean, std=std)


def timm_model(*, name: str | None, num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
    """Any model of timm for images in [0, 1], shape (n, c, h, w); logits, shape (n, C).

    Args:
        name: as timm.create_model takes it, e.g. "convnext_tiny".
        num_classes: C.
        pretrained: start from timm's weights (downloads them).

    Raises:
        SettingError: timm is not installed, or has no such model, or an argument is out of range.
    """
    try:
        import timm
    except ImportError as error:
        raise SettingError("model=timm: expected the package timm, got none; pip install 'advtrain[timm]'") from error
    checks.integer("model.num_classes", num_classes, low=1)
    checks.flag("model.pretrained", pretrained)
    if name is None:
        raise SettingError("model.name: expected a model of timm, got none; add model.name=convnext_tiny (say)")
    if not isinstance(name, str) or not timm.is_model(name):
        near = ", ".join(get_close_matches(str(name), timm.list_models(), n=3))
        remedy = f"did you mean {near}?" if near else "see timm.list_models()"
        raise SettingError(f"model.name: expected a model of timm, got {name!r}; {remedy}")
    model = timm.create_model(name, num_classes=num_classes, pretrained=pretrained)
    normalisation = model.pretrained_cfg
    return Normalize(model, mean=normalisation["mean"], std=normalisation["std"])
