"""Every experiment carries evidence that is complete, and its stated cost is the one that follows from its settings."""

from pathlib import Path

import pytest

from advtrain.composition import choices, compose
from advtrain.recipes import evidence_of, predicted_pflop, settings_of
from advtrain.types import SettingError

EXPERIMENTS = choices("experiment")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_evidence_accounts_for_every_setting(name: str) -> None:
    sources = evidence_of(name).hyper_parameters
    silent = [setting for setting in settings_of(name) if sources.origin(setting) is None]
    assert not silent, f"{name}: evidence.hyper_parameters does not say where {', '.join(silent)} come from"
    config = compose("train", [f"experiment={name}"])
    for setting in (*sources.paper, *sources.code, *sources.ours):
        node = config
        for part in setting.split("."):
            assert part in node, f"{name}: evidence.hyper_parameters names {setting}, which does not exist"
            node = node[part]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_stated_cost_follows_from_the_settings(name: str) -> None:
    assert evidence_of(name).cost_pflop == pytest.approx(predicted_pflop(name), rel=0.01)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith("imagenet")])
def test_the_images_of_an_epoch_are_those_of_the_data(name: str) -> None:
    data = compose("train", [f"experiment={name}"])["data"]
    whole = {"Digits": 1797 - 360, "CIFAR10": 50000, "CIFAR100": 50000}[data["_target_"].rpartition(".")[2]]
    assert evidence_of(name).images_per_epoch == whole - data["validation_size"]


def test_an_experiment_without_evidence_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bare.yaml").write_text("seed: 3\n")
    with pytest.raises(SettingError, match=r"experiment bare: expected a block evidence:"):
        evidence_of("bare", tmp_path)
    (tmp_path / "experiment" / "bare.yaml").write_text("evidence: {method: x}\n")
    with pytest.raises(SettingError, match=r"experiment bare: evidence\.source: expected a value"):
        evidence_of("bare", tmp_path)


def test_evidence_is_no_part_of_a_run() -> None:
    assert "evidence" not in compose("train", ["experiment=quickstart"])
    with pytest.raises(SettingError, match="evidence: expected no override"):
        compose("train", ["experiment=quickstart", "evidence.cost_pflop=1"])
