"""Collapse and overfitting: curves of which the answer is known, and real runs of both kinds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advtrain.attacks import APGD, NFGSM, PGD, Scheduled
from advtrain.composition import compose
from advtrain.config import ThreatSettings
from advtrain.engine import collapse
from advtrain.engine.collapse import Point
from advtrain.engine.loggers import read_metrics
from advtrain.runs import check_training, make_trainer
from tests.engine.toy import trainer

THREAT = ThreatSettings("linf", "8/255")
RISING = [0.30, 0.38, 0.45, 0.50, 0.55, 0.60, 0.66, 0.70]


def points(training: list[float], robust: list[float], clean: float = 0.8, n: int = 1000) -> list[Point]:
    return [Point(i + 1, a, clean, r, n) for i, (a, r) in enumerate(zip(training, robust, strict=True))]


def test_a_collapse_has_the_epoch_of_the_validation_that_shows_it() -> None:
    training = [0.30, 0.38, 0.45, 0.50, 0.85, 0.92]
    found = collapse.collapse(points(training, [0.25, 0.31, 0.36, 0.38, 0.02, 0.0]), full_from=1)
    assert found.epoch == 5 and found.detected
    assert (found.training_robust, found.held_out_robust, found.best_held_out) == (0.85, 0.02, 0.38)
    assert "fell to 2.00% (from 38.00% after epoch 4)" in found.reason and "rose from 50.00% to 85.00%" in found.reason
    assert str(found).startswith("catastrophic overfitting, seen after epoch 5: ")
    assert not collapse.collapse(points(training, [0.25, 0.31, 0.36, 0.38, 0.2, 0.2]), full_from=1).detected
    assert collapse.collapse(points(training, [0.25, 0.31, 0.36, 0.38, 0.18, 0.2]), full_from=1).epoch == 5


def test_what_recovers_is_reported_and_said_to_have_recovered() -> None:
    found = collapse.collapse(points([0.4, 0.5, 0.9, 0.5, 0.55], [0.3, 0.35, 0.01, 0.33, 0.36]), full_from=1)
    assert found.epoch == 3 and "it was back at 36.00% after epoch 5" in found.reason


def test_training_that_fails_as_a_whole_is_no_overfitting() -> None:
    """The loss went up, say: training robust accuracy fell along."""
    found = collapse.collapse(points([0.4, 0.5, 0.15, 0.12], [0.3, 0.35, 0.12, 0.1]), full_from=1)
    assert not found.detected and found.reason.startswith("none: ")


def test_robust_overfitting_is_another_finding() -> None:
    """The course of Rice et al., figure 1: best 53 %, last 47 %, training robust accuracy towards 90 %."""
    course = points([0.40, 0.50, 0.58, 0.70, 0.82, 0.88], [0.41, 0.47, 0.53, 0.50, 0.48, 0.46])
    assert not collapse.collapse(course, full_from=1).detected
    found = collapse.overfitting(course)
    assert found.detected and found.gap == pytest.approx(0.07)
    assert (found.best_epoch, found.last_epoch) == (3, 6) and "rose from 58.00% to 88.00%" in found.reason
    few = [Point(p.epoch, p.training, p.clean, p.robust, 200) for p in course]
    assert not collapse.overfitting(few).detected  # of 200 images, 14 are noise
    flat = points([0.5, 0.6, 0.55], [0.4, 0.53, 0.46])
    assert not collapse.overfitting(flat).detected  # training robust accuracy did not go on rising


def test_a_model_that_was_blind_at_its_first_validation_is_found() -> None:
    """FGSM can collapse before anything is validated: nothing falls, but the training attack is no attack."""
    course = points([0.97, 0.99], [0.005, 0.0], clean=0.85)
    found = collapse.collapse(course, full_from=1)
    assert found.epoch == 1 and "0.50% (clean 85.00%)" in found.reason and "97.00%" in found.reason
    assert collapse.collapse(course, full_from=2).epoch == 2  # while the radius grows nothing is expected
    assert not collapse.collapse(course, full_from=None).detected  # a smaller training radius explains it
    assert not collapse.collapse(points([0.35, 0.40], [0.02, 0.03], clean=0.85), full_from=1).detected  # learning yet
    assert not collapse.collapse(points([0.9], [0.05], clean=0.6, n=10), full_from=1).detected  # ten images say little


@pytest.mark.parametrize("n", (100, 1000, 5000))
def test_noise_trips_nothing(n: int) -> None:
    """60 validations of a model that does not change, each on n images of its own: harsher than the same images."""
    rng = np.random.default_rng(n)
    collapsed = overfitted = 0
    for share in (0.02, 0.1, 0.3, 0.5, 0.8):
        for _ in range(60):
            robust = (rng.binomial(n, share, 60) / n).tolist()
            course = points(np.linspace(share, 0.99, 60).tolist(), robust, clean=0.5, n=n)
            collapsed += collapse.collapse(course, None).detected
            overfitted += collapse.overfitting(course).detected
    assert collapsed <= 1 and overfitted <= 20  # of 300 runs


def test_the_curve_weighs_records_by_their_steps() -> None:
    records: list[dict[str, Any]] = [
        {"step": 50, "epoch": 1, "robust_accuracy": 0.1},
        {"step": 60, "epoch": 1, "robust_accuracy": 0.4},
        {"step": 60, "epoch": 1, "validation_clean": 0.5, "validation_robust": 0.2, "validation_examples": 40},
        {"step": 110, "epoch": 2, "robust_accuracy": 0.3},
        {"step": 120, "epoch": 2, "robust_accuracy": 0.5},
        {"step": 180, "epoch": 3, "robust_accuracy": 0.6},
        {"step": 180, "epoch": 3, "validation_clean": 0.6, "validation_robust": 0.3, "validation_examples": 40},
    ]
    first, second = collapse.curve(records)
    assert (first.epoch, second.epoch) == (1, 3) and first.n_examples == 40
    assert first.training == pytest.approx((50 * 0.1 + 10 * 0.4) / 60) and second.training == pytest.approx(0.6)
    assert (second.clean, second.robust) == (0.6, 0.3)


def test_runs_without_an_attack_or_without_counts_are_not_assessed() -> None:
    standard = [
        {"step": 9, "epoch": 1, "clean_accuracy": 0.5},
        {"step": 9, "epoch": 1, "validation_clean": 0.5, "validation_robust": 0.0, "validation_examples": 40},
    ]
    old = [
        {"step": 9, "epoch": 1, "robust_accuracy": 0.9},
        {"step": 9, "epoch": 1, "validation_clean": 0.9, "validation_robust": 0.0},
    ]
    unattacked = [  # trainer.validation.select=clean
        {"step": 9, "epoch": 1, "robust_accuracy": 0.9},
        {"step": 9, "epoch": 1, "validation_clean": 0.9, "validation_examples": 40},
    ]
    for records in ([], standard, old, unattacked):
        found = collapse.findings(records, PGD(eps=8 / 255, steps=1), THREAT, 5).record()
        assert found["detected"] is False and found["epoch"] is None and found["kind"] is None
        assert found["reason"].startswith("not assessed") and not found["robust_overfitting"]["detected"]
        json.dumps(found, allow_nan=False)


def test_from_when_on_the_training_attack_has_the_whole_radius() -> None:
    grows = Scheduled(attack=PGD(eps="8/255", steps=1), ramp_epochs=5)
    assert collapse.full_radius_from(grows, THREAT, 10) == 5
    assert collapse.full_radius_from(PGD(eps="8/255", steps=3), THREAT, 10) == 1
    assert collapse.full_radius_from(NFGSM(eps="8/255"), THREAT, 10) == 1
    assert collapse.full_radius_from(PGD(eps="7/255", steps=3), THREAT, 10) is None
    assert collapse.full_radius_from(APGD(norm="l2", eps=0.5), THREAT, 10) is None
    assert collapse.full_radius_from(None, THREAT, 10) is None


def test_the_trainer_warns_once_with_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out accuracies as of a collapse in epoch 3, in a run of real steps."""
    from advtrain.engine import trainer as module
    from advtrain.engine.validation import Accuracy

    robust = iter((0.3, 0.4, 0.0, 0.0))
    monkeypatch.setattr(module, "validate", lambda *a, **k: Accuracy(0.8, next(robust), 1000))
    run = trainer(tmp_path, epochs=4)
    rising = iter((0.3, 0.4, 0.8, 0.9))
    read = module.Meter.readings

    def readings(meter: Any, **how: Any) -> Iterator[tuple[int, dict[str, float]]]:
        for step, means in read(meter, **how):
            yield step, means | {"robust_accuracy": next(rising)}

    monkeypatch.setattr(module.Meter, "readings", readings)
    object.__setattr__(run.settings, "log_every", 4)  # once per epoch of 96 // 24 steps
    run.fit()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "catastrophic overfitting, seen after epoch 3" in line and "best.pt is that of epoch 2" in line
    assert "fell to 0.00% (from 40.00% after epoch 2)" in line


def metrics_of(directory: Path, *words: str) -> tuple[collapse.Findings, list[dict[str, Any]]]:
    """A run on digits, validated every other epoch."""
    base = ["experiment=quickstart", "loss=pgd_at", "eval=none", "trainer.log_every=1000", "trainer.validation.every=2"]
    config = compose("train", [*base, *words])
    parts = check_training(config)
    run = make_trainer(config, parts, directory)
    run.fit()
    records = read_metrics(directory / "metrics.jsonl")
    return collapse.findings(records, parts["attack"], parts["threat"], run.settings.epochs), records


@pytest.mark.slow
def test_fgsm_of_too_large_a_step_collapses_on_digits(tmp_path: Path) -> None:
    """It learns to answer images at the corners of a ball of 0.5; inside, at 0.2, nothing holds."""
    words = ["attack=fgsm", "attack.eps=0.5", "threat.eps=0.2", "trainer.epochs=40", "optimizer.weight_decay=0"]
    found, records = metrics_of(tmp_path, *words, "model.width=48", "model.hidden=256")
    held_out = [record["validation_robust"] for record in records if "validation_robust" in record]
    assert found.collapse.epoch is not None and found.collapse.epoch > 20  # it resisted a little until then
    assert found.collapse.training_robust is not None and found.collapse.training_robust > 0.2
    assert held_out[found.collapse.epoch // 2 - 1] == found.collapse.held_out_robust and held_out[-1] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("words", (["attack=pgd", "loss=ikl"], ["attack=fgsm"]))
def test_runs_that_learn_do_not(words: list[str], tmp_path: Path) -> None:
    found, records = metrics_of(tmp_path, *words, "trainer.epochs=14", "trainer.validation.every=1")
    assert not found.collapse.detected and not found.overfitting.detected
    assert records[-1]["validation_robust"] > 0.3
