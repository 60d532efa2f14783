"""Whether a teacher can be had, as far as that is known before anything is built or read."""

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from advtrain.composition import choices, our_settings
from advtrain.config import OUR_TARGETS, ThreatSettings
from advtrain.data.base import Dataset
from advtrain.engine import run_directory as directories
from advtrain.evaluation.robustbench import DATASETS, check_zoo_model, zoo_norm
from advtrain.models.pretrained import of_timm, of_torchvision
from advtrain.publish import data_name
from advtrain.sources import BUNDLE_FILE, ZOO_PREFIX, bundle_weights_file, run_and_checkpoint
from advtrain.teachers.settings import NAMES, OURS, PREFIXES, TORCHVISION, TeacherSettings
from advtrain.teachers.words import own_words
from advtrain.types import SettingError

WEIGHTS = "teacher.weights=FILE"


def check_source(settings: TeacherSettings, data: Dataset, threat: ThreatSettings, directory: Path | None) -> None:
    """Confirms that the teacher can be had, as far as that is known before anything is built or read.

    Args:
        settings: of the teacher.
        data: of the run.
        threat: of the run; which of RobustBench's boards comes first.
        directory: of the run, which cannot be its own teacher.

    Raises:
        SettingError: it cannot.
    """
    if settings.source is None:
        return
    _check_weights(settings)
    _check_standardisation(settings, data.image_shape[0])
    with own_words():
        if settings.prefix == ZOO_PREFIX:
            check_zoo_model(settings.name, **zoo_arguments(settings, data, threat))
        elif settings.prefix == OURS:
            _check_ours(settings.name)
        elif settings.prefix:
            _check_library(settings, data)
        else:
            _check_path(settings, data, directory)


def _check_weights(settings: TeacherSettings) -> None:
    source, weights, prefix = settings.source, settings.weights, settings.prefix
    if prefix in ("", ZOO_PREFIX):
        if weights is not None:
            raise SettingError(
                f"teacher.weights={weights}: expected none with teacher.source={source}, which has its own; leave "
                "teacher.weights out, or name the network: teacher.source=model:resnet56 (say)"
            )
        return
    if weights is None and prefix == OURS:
        raise SettingError(
            f"teacher.source={source}: expected the weights of that network, got none; add {WEIGHTS}, or give the "
            "directory of the run that trained it"
        )
    if weights is None and not settings.download:
        raise SettingError(
            f"teacher.source={source}: expected weights, got none; add {WEIGHTS}, or teacher.download=true for those "
            f"of {prefix.rstrip(':')}"
        )
    if weights is not None and settings.download and prefix != OURS:
        raise SettingError(f"teacher.download=true: expected no teacher.weights, got {weights}; choose one of the two")
    if weights is not None and not Path(weights).expanduser().is_file():
        raise SettingError(f"teacher.weights: expected the path of a state dict, got {weights!r}; no such file")


def _check_standardisation(settings: TeacherSettings, channels: int) -> None:
    given = {key: value for key, value in (("mean", settings.mean), ("std", settings.std)) if value is not None}
    if not given:
        return
    if settings.weights is None:
        raise SettingError(
            f"teacher.{next(iter(given))}: expected none with teacher.source={settings.source}, which standardises its "
            "images by itself; leave teacher.mean and teacher.std out"
        )
    if len(given) == 1:
        other = "std" if "mean" in given else "mean"
        raise SettingError(f"teacher.{other}: expected a value beside teacher.{next(iter(given))}, got none; add it")
    for key, values in given.items():
        in_range = all(0 <= value <= 1 and (value > 0 or key == "mean") for value in values)
        if len(values) != channels or not in_range:
            numbers = (
                f"{channels} number{'s' if channels > 1 else ''} {'from 0' if key == 'mean' else 'above 0'} up to 1"
            )
            raise SettingError(
                f"teacher.{key}: expected {numbers}, one per channel of images in [0, 1], got {values}; "
                "of grey levels take the 255th part"
            )


def _check_ours(name: str) -> None:
    known = choices("model")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        remedy = f"did you mean teacher.source={OURS}{near[0]}?" if near else "choose one of them"
        raise SettingError(
            f"teacher.source: expected {OURS}NAME with one of {', '.join(known)}, got {OURS + name!r}; {remedy}"
        )
    if our_settings("model", name, 1).get("name", name) is None:
        raise SettingError(f"teacher.source={OURS}{name}: expected one network, got any of {name}; use {name}:NAME")


def _check_library(settings: TeacherSettings, data: Dataset) -> None:
    known = of_torchvision(settings.name) if settings.prefix == TORCHVISION else of_timm(settings.name)
    if settings.weights is not None or known.num_classes == data.num_classes:
        return
    library = settings.prefix.rstrip(":")
    got = "none" if known.num_classes is None else f"those for {known.num_classes:,}"
    raise SettingError(
        f"teacher.source={settings.source} teacher.download=true: expected weights of {library} for the "
        f"{data.num_classes} classes of data {data.name}, got {got}; give {WEIGHTS}"
    )


def _check_path(settings: TeacherSettings, data: Dataset, directory: Path | None) -> None:
    word = str(settings.source)
    path = Path(word).expanduser()
    found = run_and_checkpoint(word, settings.checkpoint)
    if directory is not None and (found[0] if found else path).resolve() == directory.resolve():
        raise SettingError(
            f"teacher.source={word}: expected another run, got the one that is about to be written; choose another "
            "name=…"
        )
    if found is not None:
        _check_run(settings, data, *found)
    elif (path / BUNDLE_FILE).is_file():
        stored = json.loads((path / BUNDLE_FILE).read_text())
        bundle_weights_file(path, stored)
        _check_classes(settings, data, stored["dataset"], stored["trained_as"].get("num_classes"))
    elif path.is_file():
        raise SettingError(
            f"teacher.source: expected a checkpoint in its run directory, got the file {word}; for a state dict name "
            f"the network, too: teacher.source=model:resnet56 (say) teacher.weights={word}"
        )
    else:
        got = "a folder that is neither" if path.is_dir() else "no such path"
        raise SettingError(
            f"teacher.source: expected a run directory, a checkpoint, a bundle or {NAMES}, got {word!r}, {got}; "
            f"{_remedy(word)}"
        )


def _remedy(word: str) -> str:
    """What may have been meant by a word that is no path."""
    if word in choices("model"):
        return f"did you mean teacher.source={OURS}{word}?"
    recipe = re.fullmatch(r"(\w+)-seed(-?\d+)", Path(word).name)  # as a run of one of our recipes is named
    if recipe and recipe[1] in choices("experiment"):
        return f"train it first: advtrain experiment={recipe[1]} seed={recipe[2]}"
    prefix, colon, name = word.partition(":")
    near = get_close_matches(prefix + colon, PREFIXES, n=1) if colon else []
    return f"did you mean teacher.source={near[0]}{name}?" if near else "check the path"


def _check_run(settings: TeacherSettings, data: Dataset, run: Path, checkpoint: Path) -> None:
    if not checkpoint.is_file():
        there = sorted(path.stem for path in checkpoint.parent.glob("*.pt"))
        remedy = f"use teacher.checkpoint={there[0]}" if there else "train the teacher first"
        raise SettingError(f"teacher.source={settings.source}: expected {checkpoint}, got no such file; {remedy}")
    stored = directories.load_config(run)
    classes = stored["data"].get("num_classes") or stored["model"].get("num_classes")
    _check_classes(settings, data, dataset_of(stored), classes)


def _check_classes(settings: TeacherSettings, data: Dataset, dataset: str | None, classes: int | None) -> None:
    if classes is not None and classes != data.num_classes:
        where = f" of {dataset}" if dataset else ""
        raise SettingError(
            f"teacher.source={settings.source}: expected a network for the {data.num_classes} classes of "
            f"{data.name}, got one for the {classes} classes{where}; choose a teacher that was trained on {data.name}"
        )


def zoo_arguments(settings: TeacherSettings, data: Dataset, threat: ThreatSettings) -> dict[str, Any]:
    """What RobustBench needs besides the name.

    Raises:
        SettingError: it has no such model.
    """
    dataset = data.name.removesuffix("_lt")  # a part of the same images, with the same classes
    if dataset not in DATASETS:
        raise SettingError(
            f"teacher.source={settings.source}: expected data that RobustBench has models for ({', '.join(DATASETS)}), "
            f"got {data.name}; choose another teacher"
        )
    norm = zoo_norm(settings.name, dataset=dataset, norm=threat.norm)
    folder = Path(settings.model_dir).expanduser()
    return {"dataset": dataset, "threat_norm": norm, "model_dir": folder, "download": settings.download}


def trained_on(settings: TeacherSettings) -> tuple[dict[str, Any], str | None] | None:
    """The data that a teacher was trained on, as its run's configuration has them, and their name.

    None where the source is no run; a name of None where the data are a class of others, which is not imported.
    """
    found = None if settings.prefix else run_and_checkpoint(str(settings.source), settings.checkpoint)
    if found is None:
        return None
    stored = directories.load_config(found[0])
    return stored["data"], dataset_of(stored)


def dataset_of(stored: dict[str, Any]) -> str | None:
    """The dataset of a run's stored configuration; None where that is a class of others, which is not imported."""
    ours = str(stored["data"]["_target_"]).startswith(OUR_TARGETS)
    try:
        return data_name(stored) if ours else None
    except (ImportError, AttributeError):  # a class of another version
        return None
