"""Models of torchvision and timm, with their normalisation inside, and what a run may start from."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from advtrain import checks
from advtrain.models.conv_stem import STEMS, with_conv_stem
from advtrain.models.gradient_checkpointing import checkpoint_blocks
from advtrain.models.normalize import Normalize
from advtrain.models.weights import load_weights
from advtrain.types import SettingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What torchvision's classes can build but have no builder for, by the name in the literature.
VARIANTS = {"resnext101_32x4d": ("resnet101", {"groups": 32, "width_per_group": 4})}
SEVERAL_OUTPUTS = {"googlenet", "inception_v3"}  # auxiliary logits in training


def torchvision_model(
    *,
    name: str | None,
    num_classes: int = 1000,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    weights: str | None = None,
    new_head: bool = False,
    gradient_checkpointing: bool = False,
) -> Normalize:
    """A classifier of torchvision for images in [0, 1], shape (n, 3, h, w); logits, shape (n, C).

    Args:
        name: as torchvision.models.get_model takes it, e.g. "resnet18"; or "resnext101_32x4d", which torchvision can
            build but does not list.
        num_classes: C.
        mean, std: per channel; ImageNet's by default.
        weights: path of a state dict to start from, see `load_weights`; None for random weights.
        new_head: keeps the last layer random, where the weights are of another number of classes.
        gradient_checkpointing: less memory for more time, see `checkpoint_blocks`.

    Raises:
        ValueError: an argument is out of range.
        SettingError: torchvision has no such model, or its output is not logits alone, or the weights do not fit.
    """
    from torchvision import models

    builder, settings = torchvision_builder(name)
    classes = checks.integer("model.num_classes", num_classes, low=1)
    model = getattr(models, builder)(num_classes=classes, **settings)
    return _started(Normalize(model, mean=mean, std=std), weights, new_head, gradient_checkpointing)


def resnet_50(
    *,
    num_classes: int = 1000,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    weights: str | None = None,
    new_head: bool = False,
    gradient_checkpointing: bool = False,
) -> Normalize:
    """torchvision's ResNet-50 for images in [0, 1], shape (n, 3, h, w); logits, shape (n, C).

    Args and errors: as in `torchvision_model`.
    """
    return torchvision_model(
        name="resnet50",
        num_classes=num_classes,
        mean=mean,
        std=std,
        weights=weights,
        new_head=new_head,
        gradient_checkpointing=gradient_checkpointing,
    )


def timm_model(
    *,
    name: str | None,
    num_classes: int = 1000,
    pretrained: bool = False,
    weights: str | None = None,
    new_head: bool = False,
    gradient_checkpointing: bool = False,
) -> Normalize:
    """Any model of timm for images in [0, 1], shape (n, c, h, w); logits, shape (n, C).

    Mean and deviation are those that timm states for the model's own pretrained weights.

    Args:
        name: as timm.create_model takes it, e.g. "convnext_tiny" or "convnext_tiny.fb_in1k".
        num_classes: C.
        pretrained: start from timm's weights (downloads them; its last layer is new for C other than theirs).
        weights, new_head, gradient_checkpointing: as in `torchvision_model`.

    Raises:
        SettingError: timm is not installed, or has no such model, or an argument is out of range, or the weights do
            not fit.
    """
    model = _created(name, num_classes, pretrained, weights)
    normalisation: Any = model.pretrained_cfg
    standardised = Normalize(model, mean=normalisation["mean"], std=normalisation["std"])
    return _started(standardised, weights, new_head, gradient_checkpointing)


def conv_stem_model(
    *,
    name: str,
    num_classes: int = 1000,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    pretrained: bool = False,
    weights: str | None = None,
    new_head: bool = False,
    gradient_checkpointing: bool = False,
) -> Normalize:
    """A ConvNeXt or ViT of timm that starts with convolutions, as in arXiv:2303.01870; images in [0, 1], logits.

    Args:
        name: timm's name of the body: convnext_tiny, convnext_small, convnext_base, convnext_large,
            deit_small_patch16_224 (the paper's ViT-S) or vit_base_patch16_224 (ViT-B).
        num_classes: C.
        mean, std: per channel. The paper standardises for its ViT-S only, with ImageNet's.
        pretrained: start the body from timm's weights (downloads them); the stem is random.
        weights, new_head, gradient_checkpointing: as in `torchvision_model`.

    Raises:
        ValueError, SettingError: as in `timm_model`.
    """
    checks.choice("model.name", name, tuple(STEMS))
    body = with_conv_stem(_created(name, num_classes, pretrained, weights), name)
    return _started(Normalize(body, mean=mean, std=std), weights, new_head, gradient_checkpointing)


def torchvision_builder(name: object) -> tuple[str, dict[str, int]]:
    """The function of torchvision.models that builds `name`, and its arguments besides num_classes.

    Raises:
        SettingError: as in `torchvision_model`.
    """
    from torchvision import models

    if name is None:
        raise SettingError("model.name: expected a model of torchvision, got none; add model.name=resnet18 (say)")
    names = {*models.list_models(module=models), *VARIANTS} - SEVERAL_OUTPUTS
    if not isinstance(name, str) or name not in names:
        near = ", ".join(get_close_matches(str(name), sorted(names), n=3))
        remedy = f"did you mean {near}?" if near else "see torchvision.models.list_models()"
        raise SettingError(
            f"model.name: expected a model of torchvision whose output is logits alone, got {name!r}; {remedy}"
        )
    return VARIANTS.get(name, (name, {}))


def check_timm_name(name: object) -> None:
    """Confirms that timm has a model of that name.

    Raises:
        SettingError: it has not, or is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise SettingError("model=timm: expected the package timm, got none; pip install 'advtrain[timm]'") from error
    if name is None:
        raise SettingError("model.name: expected a model of timm, got none; add model.name=convnext_tiny (say)")
    if not isinstance(name, str) or not timm.is_model(name):
        near = ", ".join(get_close_matches(str(name), timm.list_models(), n=3))
        remedy = f"did you mean {near}?" if near else "see timm.list_models()"
        raise SettingError(f"model.name: expected a model of timm, got {name!r}; {remedy}")


def _created(name: Any, num_classes: int, pretrained: bool, weights: str | None) -> nn.Module:
    check_timm_name(name)
    checks.integer("model.num_classes", num_classes, low=1)
    if checks.flag("model.pretrained", pretrained) and weights is not None:
        raise SettingError(f"model.pretrained=true: expected no model.weights, got {weights}; choose one of the two")
    import timm

    return timm.create_model(name, num_classes=num_classes, pretrained=pretrained)


def _started(model: Normalize, weights: str | None, new_head: bool, gradient_checkpointing: bool) -> Normalize:
    if checks.flag("model.new_head", new_head) and weights is None:
        raise SettingError(
            "model.new_head=true: expected model.weights, got none; a random model has a new head anyway"
        )
    if weights is not None:
        load_weights(model, weights, new_head=new_head)
    if checks.flag("model.gradient_checkpointing", gradient_checkpointing):
        checkpoint_blocks(model)
    return model
