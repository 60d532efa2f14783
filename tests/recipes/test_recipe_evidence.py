"""Every experiment carries evidence that is complete, and its stated cost is the one that follows from its settings."""

from pathlib import Path

import pytest

from advtrain.composition import choices, compose
from advtrain.recipes import evidence_of, predicted_pflop, settings_of
from advtrain.types import SettingError

EXPERIMENTS = choices("experiment")
SIZES = {"Digits": 1797 - 360, "CIFAR10": 50000, "CIFAR100": 50000}  # training images


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_evidence_accounts_for_every_setting_and_the_cost(name: str) -> None:
    evidence, config = evidence_of(name), compose("train", [f"experiment={name}"])
    sources = evidence.hyper_parameters
    silent = [setting for setting in settings_of(name) if sources.origin(setting) is None]
    assert not silent, f"{name}: evidence.hyper_parameters does not say where {', '.join(silent)} come from"
    for setting in (*sources.paper, *sources.code, *sources.ours):
        node = config
        for part in setting.split("."):
            assert part in node, f"{name}: evidence.hyper_parameters names {setting}, which does not exist"
            node = node[part]
    predicted = predicted_pflop(config, evidence)
    assert evidence.cost_pflop == pytest.approx(predicted, rel=0.01), f"expected cost_pflop: {predicted:.3g}"
    whole = SIZES.get(config["data"]["_target_"].rpartition(".")[2])
    if whole is not None:
        left = whole - config["data"]["validation_size"]
        assert evidence.images_per_epoch == (config["data"]["train_size"] or left) <= left


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
