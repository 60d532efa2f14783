"""Every YAML of the group names a dataset of that name and gives each of its constructor's settings."""

import inspect
from pathlib import Path

import pytest
import yaml

import advtrain.data
from advtrain.config import ThreatSettings, config_dir

FILES = sorted((config_dir() / "data").glob("*.yaml"))


def test_every_dataset_has_a_config() -> None:
    targets = {yaml.safe_load(file.read_text())["_target_"].rpartition(".")[2] for file in FILES}
    assert targets == {*advtrain.data.__all__}


def settings_of(dataset: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters and, where it passes others on, its base's; a class's own default counts."""
    found = dict(inspect.signature(dataset.__init__).parameters)
    found.pop("self")
    passes_on = [name for name, parameter in found.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    for name in passes_on:
        found = settings_of(dataset.__mro__[1]) | {key: value for key, value in found.items() if key != name}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_gives_every_setting(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    package, _, name = config.pop("_target_").rpartition(".")
    threat = ThreatSettings(norm=config.pop("threat_norm"), eps=str(config.pop("threat_eps")))
    dataset = getattr(advtrain.data, name)
    parameters = settings_of(dataset)

    assert package == "advtrain.data"
    assert (dataset.name, dataset.__module__) == (file.stem, f"advtrain.data.{file.stem}")
    assert 0 < threat.radius < 1
    assert config.keys() == parameters.keys()
    for key, parameter in parameters.items():  # a notebook and a command line start from the same values
        if parameter.default not in (inspect.Parameter.empty, None):
            assert config[key] == parameter.default, key
