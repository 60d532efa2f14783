"""The architecture of a recipe's teacher, known without its weights."""

import re
from collections.abc import Mapping
from typing import Any

from advtrain.composition import choices, own_settings, recipe
from advtrain.config import config_dir
from advtrain.types import SettingError

LIBRARIES = ("torchvision", "timm")  # of a choice of the group model each, which takes a name


def teacher_model(word: str | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the teacher's model; None for a recipe without a teacher.

    Args:
        word: `evidence.teacher`.
        config: of the recipe, composed.

    Raises:
        SettingError: the recipe has a teacher and the word is missing, or the other way round; the word names no
            model, or another than `teacher.source` does.
    """
    source = config["teacher"]["source"]
    if (word is None) != (source is None):
        raise SettingError(
            "evidence.teacher: expected the teacher's architecture exactly where teacher.source is given, got "
            f"{word!r} with teacher.source={source}; add or remove it"
        )
    if word is None:
        return None
    told = architecture_in(str(source))
    if told is not None and told != word:
        raise SettingError(
            f"evidence.teacher: expected {told}, which teacher.source={source} is, got {word}; correct it"
        )
    library, _, name = word.rpartition(":")
    if library not in ("", *LIBRARIES) or (not library and name not in choices("model")):
        forms = f"a choice of the group model or {' or '.join(f'{known}:NAME' for known in LIBRARIES)}"
        raise SettingError(f"evidence.teacher: expected {forms}, got {word!r}; correct it")
    model = own_settings("model", library or name, [config_dir()]) | ({"name": name} if library else {})
    return model | {"num_classes": config["data"]["num_classes"]}


def architecture_in(source: str) -> str | None:
    """What a `teacher.source` tells of the architecture, in the words of `evidence.teacher`; None when nothing.

    A run directory tells it by its name, when that is the name which a run of one of our recipes has.
    """
    if source.startswith("model:"):
        return source.removeprefix("model:")
    if source.startswith(tuple(f"{library}:" for library in LIBRARIES)):
        return source
    run = re.fullmatch(r"(?:.*/)?(\w+)-seed\d+", source)
    return recipe(run.group(1), [config_dir()])[0].get("model") if run else None
