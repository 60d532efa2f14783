"""The network that `teacher.source` names, built and fitted to the data."""

import pickle
from pathlib import Path

import torch
from torch import nn

from advtrain.composition import our_settings
from advtrain.config import START_SETTINGS, ThreatSettings, build
from advtrain.data.base import Dataset
from advtrain.engine import run_directory as directories
from advtrain.evaluation.robustbench import load_zoo_model
from advtrain.losses import Distillation, Loss, Teacher
from advtrain.models import load_weights, timm_model, torchvision_model
from advtrain.models.fit import check_fit
from advtrain.models.pretrained import standardised, trained_torchvision_model
from advtrain.sources import ZOO_PREFIX, averaged_model, bundle_model, run_and_checkpoint
from advtrain.teachers.checking import trained_on, zoo_arguments
from advtrain.teachers.settings import TIMM, TORCHVISION, TeacherSettings
from advtrain.teachers.words import own_words
from advtrain.types import SettingError


def give_teacher(loss: Loss, settings: TeacherSettings, data: Dataset, threat: ThreatSettings) -> None:
    """Has a loss that distils hold the teacher that the settings name, unless it holds one already.

    Raises:
        SettingError: there is none such, or it does not fit the data.
    """
    if isinstance(loss, Distillation) and loss.teacher is None:
        loss.hold(find_teacher(settings, data, threat))


def find_teacher(settings: TeacherSettings, data: Dataset, threat: ThreatSettings) -> Teacher:
    """The network that `teacher.source` names, for images in [0, 1], on the CPU, float32.

    Raises:
        SettingError: there is none such, or it does not fit the data.
    """
    what = f"teacher.source={settings.source}"
    try:
        with own_words():
            model = _built(settings, data, threat).float().eval()
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = "see whether it can be fetched from here" if settings.download else "check what it is"
        raise SettingError(f"{what}: expected a trained network, got {reason}; {remedy}") from error
    known = trained_on(settings)
    own = f"it was trained on {known[1]}; " if known is not None and known[1] not in (None, data.name) else ""
    remedy = f"{own}choose one for the images and classes of data {data.name}"
    check_fit(model, data.image_shape, data.num_classes, what=what, remedy=remedy)
    return Teacher(model, name=str(settings.source))


def _built(settings: TeacherSettings, data: Dataset, threat: ThreatSettings) -> nn.Module:
    if settings.prefix == ZOO_PREFIX:
        return load_zoo_model(settings.name, **zoo_arguments(settings, data, threat))
    if settings.prefix == "":
        return _of_path(settings)
    if settings.weights is None:
        if settings.prefix == TORCHVISION:
            return trained_torchvision_model(settings.name)
        return timm_model(name=settings.name, num_classes=_classes(data), pretrained=True)
    model = _untrained(settings, data)
    load_weights(model, settings.weights)
    return model


def _of_path(settings: TeacherSettings) -> nn.Module:
    found, cpu = run_and_checkpoint(str(settings.source), settings.checkpoint), torch.device("cpu")
    if found is None:
        return bundle_model(Path(str(settings.source)).expanduser(), cpu, trusted=settings.trust)
    run, checkpoint = found
    return averaged_model(directories.load_config(run), checkpoint, cpu, trusted=settings.trust)


def _untrained(settings: TeacherSettings, data: Dataset) -> nn.Module:
    """The network that weights from a file are for, with its normalisation."""
    given = settings.mean is not None and settings.std is not None
    if settings.prefix == TORCHVISION:
        model = torchvision_model(name=settings.name, num_classes=_classes(data))
    elif settings.prefix == TIMM:
        model = timm_model(name=settings.name, num_classes=_classes(data))
    else:
        config = our_settings("model", settings.name, data.num_classes)
        config = {key: START_SETTINGS.get(key, value) for key, value in config.items()}
        if given and "mean" in config:  # it standardises by itself
            return build(config | {"mean": settings.mean, "std": settings.std})
        model = build(config)
    return standardised(model, settings.mean or [], settings.std or []) if given else model


def _classes(data: Dataset) -> int:
    assert data.num_classes is not None  # asked for before, since models need it
    return data.num_classes
