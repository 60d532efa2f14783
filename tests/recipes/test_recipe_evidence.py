"""Every experiment carries evidence that is complete, and its stated cost is the one that follows from its settings."""

from pathlib import Path
from typing import Any

import pytest

from advtrain.composition import choices, compose
from advtrain.recipes import evidence_of, predicted_pflop, settings_of
from advtrain.types import SettingError
from tests.composed import composed

EXPERIMENTS = choices("experiment")
SIZES = {"Digits": 1797 - 360, "CIFAR10": 50000, "CIFAR100": 50000}  # training images


def images_trained_on(data: dict[str, Any], unknown: int) -> int:
    """Of a dataset whose size is known, by the formulas of its settings."""
    whole = SIZES.get(data["_target_"].rpartition(".")[2])
    if whole is None:
        return unknown
    left = whole - data["validation_size"]
    imbalance = data.get("imbalance", 1)
    if imbalance != 1:  # Cui et al. (arXiv:1901.05555): n μ^(c/(C - 1)) images of class c, of those not held out
        classes = data["num_classes"]
        counts = [int(whole / classes * imbalance ** (-c / (classes - 1)) + 1e-6) for c in range(classes)]
        left = sum(min(count, left // classes) for count in counts)
    train_size = data["train_size"] or left
    assert train_size <= left
    return train_size


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_evidence_accounts_for_every_setting_and_the_cost(name: str) -> None:
    evidence, config = evidence_of(name), composed(name)
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
    assert evidence.images_per_epoch == images_trained_on(config["data"], evidence.images_per_epoch)


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
