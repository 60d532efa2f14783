"""From the words of a command line to one plain, checked configuration; Hydra's own errors become one clear line."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from advtrain.config import config_dir, unknown_key
from advtrain.types import SettingError

# The block of an experiment that says where it comes from: see advtrain.evidence. No part of a run.
EVIDENCE = "evidence"

# Without one of these words the command line means the quickstart.
RECIPE_GROUPS = ("experiment", "data", "model")


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The words of a command line that set something (Hydra's flags and their values are none)."""
    return [word for word in arguments if "=" in word and not word.startswith("-")]


def with_default_experiment(arguments: Sequence[str]) -> list[str]:
    """Adds `experiment=quickstart` to a command line that chooses no experiment, data or model."""
    chosen = {override.lstrip("+~").partition("=")[0] for override in overrides_of(arguments)}
    return [*arguments] if chosen & set(RECIPE_GROUPS) else ["experiment=quickstart", *arguments]


def groups(folder: Path | None = None) -> dict[str, list[str]]:
    """The config groups and their choices, from the files."""
    folder = folder or config_dir()
    return {
        path.name: sorted(file.stem for file in path.glob("*.yaml"))
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith((".", "_"))
    }


def choices(group: str, *extra: Path) -> list[str]:
    """The choices of a group, those of the user's own folders included."""
    return sorted({file.stem for folder in (config_dir(), *extra) for file in (folder / group).glob("*.yaml")})


def compose(name: str, overrides: Sequence[str], own_folder: Path | None = None) -> dict[str, Any]:
    """The resolved configuration as plain containers; see `compose_chosen`."""
    return compose_chosen(name, overrides, own_folder)[0]


def compose_chosen(
    name: str, overrides: Sequence[str], own_folder: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved configuration as plain containers, and the choice in each group.

    Args:
        name: of the top-level YAML: train, eval or export.
        overrides: "key=value" each.
        own_folder: of the user's own YAML files (`--config-dir`).

    Raises:
        SettingError: a group, choice, key or value does not exist, in one line.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = [f"hydra.searchpath=[file://{own_folder.resolve()}]"] if own_folder else []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra_compose(name, [*overrides, *search], return_hydra_config=True)
        chosen = dict(config.hydra.runtime.choices)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        return plain(config, overrides, chosen, own_folder), chosen
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(explain(error, name, overrides, own_folder)) from error


def plain(
    config: Any, overrides: Sequence[str], chosen: Mapping[str, Any], own_folder: Path | None = None
) -> dict[str, Any]:
    """Plain containers from a composed config, in which a recipe's numbers stay with the recipe's own choices.

    `experiment=cifar10_ikl_wrn_34_10 loss=trades` means TRADES with its own defaults: what the recipe says of `loss`
    is about the IKL it chose. Whatever the command line itself sets is kept.

    Args:
        config: composed by Hydra, unresolved.
        overrides: of the command line.
        chosen: the choice in each group.
        own_folder: of the user's own YAML files.
    """
    from omegaconf import OmegaConf

    OmegaConf.set_struct(config, False)
    config.pop(EVIDENCE, None)
    folders = [folder for folder in (own_folder, config_dir()) if folder]
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if any(key.partition(".")[0] == EVIDENCE for key in given):
        raise SettingError("evidence: expected no override, since it describes the recipe and not a run; remove it")
    recipe_choices, recipe_settings = recipe(str(chosen.get("experiment")), folders)
    for group, choice in recipe_choices.items():
        if group in chosen and chosen[group] != choice:
            own = own_settings(group, str(chosen[group]), folders)
            for key in recipe_settings.get(group, {}):
                if f"{group}.{key}" in given:
                    continue
                deeper = {name for name in given if name.startswith(f"{group}.{key}.")}
                kept = {name: OmegaConf.select(config, name) for name in deeper}
                if key in own:
                    config[group][key] = own[key]
                else:
                    config[group].pop(key, None)
                for name, value in kept.items():
                    OmegaConf.update(config, name, value)
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportReturnType]


def recipe(experiment: str, folders: Sequence[Path]) -> tuple[dict[str, str], dict[str, Any]]:
    """What an experiment (and those it builds on) chooses in each group, and what it sets."""
    content = _yaml("experiment", experiment, folders)
    content.pop(EVIDENCE, None)
    chosen: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            below = recipe(entry, folders)
            chosen, settings = chosen | below[0], _merged(settings, below[1])
        elif isinstance(entry, dict):
            for key, value in entry.items():
                if key.startswith("override /"):
                    chosen[key.removeprefix("override /")] = value
    return chosen, _merged(settings, content)


def own_settings(group: str, choice: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What the YAML of a choice (and those it builds on) says, interpolations unresolved."""
    content = _yaml(group, choice, folders)
    settings: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            name, _, below = entry.partition("@")  # pgd@attack: the settings of pgd, one level deeper
            found = own_settings(group, name, folders)
            settings |= {below: found} if below else found
    return _merged(settings, content)


def our_settings(group: str, choice: str, num_classes: int | None) -> dict[str, Any]:
    """What our own YAML of a choice says, for data of `num_classes`."""
    from omegaconf import OmegaConf

    own = own_settings(group, choice, [config_dir()])
    around = OmegaConf.create({"data": {"num_classes": num_classes}, group: own})
    return OmegaConf.to_container(around[group], resolve=True)  # pyright: ignore[reportReturnType]


def _yaml(group: str, choice: str, folders: Sequence[Path]) -> dict[str, Any]:
    for folder in folders:
        path = folder / group / f"{choice}.yaml"
        if path.is_file():
            from omegaconf import OmegaConf

            return OmegaConf.to_container(OmegaConf.load(path)) or {}  # pyright: ignore[reportReturnType]
    return {}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return first | {
        key: first[key] | value if isinstance(value, dict) and isinstance(first.get(key), dict) else value
        for key, value in second.items()
    }


def explain(error: Exception, name: str, overrides: Sequence[str], own_folder: Path | None = None) -> str:
    """Hydra's error in one line: expected, got, remedy."""
    text = str(error)
    own = [own_folder] if own_folder else []
    missing = re.search(r"Could not find '([\w-]+)/([^']+)'", text)
    if missing:
        group, word = missing.groups()
        valid = choices(group, *own)
        near = get_close_matches(word, valid, n=1)
        hint = f"did you mean {group}={near[0]}?" if near else "choose one of them"
        return f"{group}: expected one of {', '.join(valid)}, got {word!r}; {hint}"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        return _unknown(unknown.group(1), name)
    absent = re.search(r"Missing mandatory value: ([\w.]+)", text)
    if absent:
        key = getattr(error, "full_key", None) or absent.group(1)
        return f"{key}: expected a value, got none; add {key}=…"
    for override in overrides:
        if "=" not in override or re.search(re.escape(override), text):
            return f"expected overrides of the form key=value, got {override!r}; quote values with special characters"
    return " ".join(text.split("\n")[0].split())


def _unknown(key: str, name: str) -> str:
    config = compose(name, [])
    where, _, leaf = key.rpartition(".")
    node: Any = config
    for part in where.split(".") if where else []:
        if not isinstance(node, dict) or part not in node:
            where, leaf = "", key.split(".")[0]
            node = config
            break
        node = node[part]
    valid = sorted(node) if isinstance(node, dict) else []
    if not where:
        valid = sorted({*valid, *groups()} - {"hydra"})
        elsewhere = [
            f"{parent}.{leaf}" for parent, child in config.items() if isinstance(child, dict) and leaf in child
        ]
        if elsewhere:
            return f"{leaf}: expected one of {', '.join(valid)}, got {key!r}; did you mean {' or '.join(elsewhere)}?"
    return unknown_key(where, leaf, [key for key in valid if key != "_target_"])


def sweep_points(overrides: Sequence[str]) -> list[list[str]]:
    """The command lines of a sweep over comma lists, ranges and globs; at most 200 are listed.

    Raises:
        SettingError: an override cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise SettingError(explain(error, "train", overrides)) from error
    axes = []
    for override, text in zip(parsed, overrides, strict=True):
        if override.is_sweep_override() and (override.is_choice_sweep() or override.is_range_sweep()):
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_sweep_override():
            continue  # a glob or a sweeper's distribution: Hydra's sweeper resolves it
        else:
            axes.append([text])
    return [list(point) for point in itertools.islice(itertools.product(*axes), 200)]


def own_config_folder(arguments: Sequence[str]) -> Path | None:
    """The folder given by `--config-dir`, if any.

    Raises:
        SettingError: the folder does not exist.
    """
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value or (arguments[i + 1] if i + 1 < len(arguments) else ""))
            if not folder.is_dir():
                here = os.getcwd()
                raise SettingError(
                    f"--config-dir: expected a folder, got {str(folder)!r} (from {here}); check the path"
                )
            return folder
    return None
