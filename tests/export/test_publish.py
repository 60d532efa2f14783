"""`advtrain-export run=…` on a run, or on what advtrain-eval wrote about a run, a checkpoint or a bundle."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from advtrain import publish
from advtrain.config import ThreatSettings, typed
from advtrain.engine import checkpoints
from advtrain.evaluation import EvaluationSettings
from advtrain.export import CannotVerify, ExportMetadata
from advtrain.types import SettingError

Evaluated = Callable[..., Any]  # the fixture in conftest.py
ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "data": {"_target_": "advtrain.data.Digits", "num_classes": 10},
    "model": {"_target_": "advtrain.models.SmallCNN"},
    "threat": {"norm": "linf", "eps": "0.02"},
    "export": {"authors": "Ada Author", "venue": "arXiv 2026", "paper_title": "Robust digits", "license": "CC0"},
    "seed": 3,
}


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started: the verification says that it cannot be done here."""

    def cannot(folder: Path) -> None:
        raise CannotVerify("not here")

    monkeypatch.setattr(publish, "verify_bundle", cannot)


@pytest.fixture
def run(evaluated: Evaluated, unverified: None) -> Any:
    """A run directory with the files that export reads; the checkpoint's average is the evaluated model."""
    made = evaluated()
    state = {"averaged": made.model.state_dict(), "position": {"epoch": 4, "best_epoch": 3, "seconds": 90.04}}
    for name in ("best", "last"):
        checkpoints.save(made.folder / "run" / "checkpoints" / f"{name}.pt", state)
    provenance = {"git_commit": "abc", "hardware": {"cores": 2}, "command": "advtrain data=digits data.root=/home/me/x"}
    (made.folder / "run" / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "provenance": provenance}))
    write(made, made.folder / "run", {"run": "run", "checkpoint": "best", "seed": 3})
    return made


def write(made: Any, folder: Path, source: dict[str, Any]) -> None:
    """evaluation.json and adversarial.npz."""
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({"source": source, **made.record}))
    np.savez(folder / "adversarial.npz", **made.arrays)


def export(folder: Path, out: Path | None = None, **metadata: Any) -> Path:
    config = {"run": str(folder), "verify": None, "out": out and str(out), "trust": False, "export": metadata}
    publish.export_run(config)
    return out or folder / "export"


def recipe_of(bundle: Path) -> dict[str, Any]:
    return yaml.safe_load((bundle / "recipe.yaml").read_text())


def test_a_run(run: Any) -> None:
    bundle = export(run.folder / "run")
    recipe = recipe_of(bundle)
    assert recipe["training"] == {
        "git_commit": "abc",
        "hardware": {"cores": 2},
        "command": "advtrain data=digits data.root=/datasets",
        "epochs": 4,
        "seconds": 90.0,
        "checkpoint": "best (epoch 3)",
    }
    assert recipe["model"] == CONFIG["model"] and recipe["seed"] == 3
    assert next(bundle.rglob("*.pt")).name == "Author2026Robust_SmallCNN.pt"  # what the run's own settings said
    assert "- training command: advtrain data=digits data.root=/datasets\n" in (bundle / "README.md").read_text()
    assert "CC0" in (bundle / "LICENSE").read_text()
    bundle = export(run.folder / "run", venue="NeurIPS 2027")
    assert next(bundle.rglob("*.pt")).name == "Author2027Robust_SmallCNN.pt"


def test_an_evaluation_of_a_run_a_checkpoint_and_a_bundle(run: Any) -> None:
    """Each gives a bundle with the same weights and recipe, and a bundle of a bundle keeps its name."""
    first = export(run.folder / "run")
    words = {
        "run": str(run.folder / "run"),
        "checkpoint": str(run.folder / "run/checkpoints/last.pt"),
        "bundle": str(first),
    }
    for name, word in words.items():
        write(run, run.folder / name, {"model": word, "checkpoint": "best"})
        bundle = export(run.folder / name, run.folder / f"{name}-export")
        recipe = recipe_of(bundle)
        assert recipe["model"] == CONFIG["model"] and recipe["training"]["seconds"] == 90.0
        expected = "last (epoch 4)" if name == "checkpoint" else "best (epoch 3)"
        assert recipe["training"]["checkpoint"] == expected
        weights = next(bundle.rglob("*.safetensors"))
        assert weights.read_bytes() == next(first.rglob("*.safetensors")).read_bytes()
        assert weights.stem == "Author2026Robust_SmallCNN"


def test_a_bundle_of_format_1_gives_its_recipe_from_its_card() -> None:
    for folder in sorted((ROOT / "checkpoints").glob("*/verification.json")):
        if json.loads(folder.read_text())["format"] == 1:
            recipe, training = publish.bundle_recipe(folder.parent)
            assert recipe["optimizer"]["_target_"] == "advtrain.engine.SGD" and recipe["seed"] == 0
            assert training == {}


def test_the_card_of_format_1_is_read_up_to_the_end_of_its_block(tmp_path: Path) -> None:
    assert publish.bundle_recipe(tmp_path) == ({}, {})
    card = '# X\n\n## Recipe\n\n```json\n{"seed": 5}\n```\n\n## Evaluation\n\n```json\n{"clean": 1}\n```\n'
    (tmp_path / "README.md").write_text(card)
    assert publish.bundle_recipe(tmp_path) == ({"seed": 5}, {})


def test_a_bundle_that_comes_without_its_weights(run: Any) -> None:
    bundle, folder = export(run.folder / "run"), run.folder / "again"
    write(run, folder, {"model": str(bundle), "checkpoint": "best"})
    next(bundle.rglob("*.pt")).unlink()
    with pytest.raises(SettingError, match=r"expected the weights .*\.pt, got a bundle that comes without"):
        export(folder)


def test_a_source_that_is_not_there(run: Any, tmp_path: Path) -> None:
    bundle, folder = export(run.folder / "run"), run.folder / "again"
    refused = {
        "runs/gone": r"expected the model that .*evaluation\.json is about, got nothing at 'runs/gone'",
        "robustbench:Wang2023Better_WRN-28-10": "it is on the leaderboard",
    }
    for word, message in refused.items():
        write(run, folder, {"model": word, "checkpoint": "best"})
        with pytest.raises(SettingError, match=message):
            export(folder)
    (folder / "adversarial.npz").unlink()
    with pytest.raises(SettingError, match=r"expected a folder with adversarial\.npz"):
        export(folder)
    with pytest.raises(SettingError, match=r"evaluate the bundle first \(advtrain-eval"):
        export(bundle)
    with pytest.raises(SettingError, match="train it to the end"):
        export(tmp_path / "nowhere")


def test_a_run_that_has_to_be_a_submission(run: Any) -> None:
    with pytest.raises(SettingError, match=r"export\.target=leaderboard: .*digits is not a dataset"):
        export(run.folder / "run", target="leaderboard")
    assert not (run.folder / "run" / "export").exists()


def test_the_end_of_a_run(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.folder / "run"
    record = json.loads((folder / "evaluation.json").read_text())
    finished = publish.export_and_verify(CONFIG, ExportMetadata(), record, folder)
    assert finished is not None and finished[0].target == "archive" and finished[1] is None
    printed = capsys.readouterr().out
    assert "digits is not a dataset of the RobustBench leaderboard" in printed and "not verified: not here" in printed
    (folder / "adversarial.npz").unlink()
    assert publish.export_and_verify(CONFIG, ExportMetadata(), record, folder) is None


@pytest.mark.parametrize(
    ("dataset", "threat", "settings", "reason"),
    [
        ("cifar10", {}, {}, None),
        ("cifar10", {"norm": "l2", "eps": "0.50"}, {}, None),
        ("imagenet", {"eps": "4/255"}, {"n_examples": 5000}, None),
        ("cifar10", {"eps": "4/255"}, {}, "does not rank cifar10 at Linf ε = 4/255"),
        ("cifar10", {"norm": "l1", "eps": "12"}, {}, "no L1 ranking of cifar10"),
        ("digits", {}, {}, "digits is not a dataset"),
        ("cifar10", {}, {"enabled": False}, "It wants eval.autoattack.enabled=true."),
        ("cifar10", {}, {"autoattack": {"enabled": False}}, "It wants eval.autoattack.enabled=true."),
        ("cifar10", {}, {"autoattack": {"version": "rand"}}, "It wants eval.autoattack.version=standard."),
        ("cifar10", {}, {"autoattack": {"engine": "fast"}}, "It wants eval.autoattack.engine=exact."),
        ("cifar10", {}, {"autoattack": {"n_examples": 9999}}, "It wants all 10,000 test images"),
        ("cifar10", {}, {"masking": {"enabled": False}}, "It wants eval.masking.enabled=true."),
    ],
)
def test_a_run_that_cannot_end_as_a_submission_stops_before_the_training(
    dataset: str, threat: dict, settings: dict, reason: str | None
) -> None:
    planned = typed(EvaluationSettings, settings, "eval")
    arguments = dataset, ThreatSettings(**threat), planned
    publish.check_target(ExportMetadata(), *arguments)
    if reason is None:
        publish.check_target(ExportMetadata(target="leaderboard"), *arguments)
        return
    with pytest.raises(SettingError, match=rf"^export\.target=leaderboard: expected [^\n]*{re.escape(reason)}[^\n]*$"):
        publish.check_target(ExportMetadata(target="leaderboard"), *arguments)


@pytest.mark.parametrize(
    ("eps", "known", "text"),
    [
        (8 / 255, "8/255", "8/255"),
        (8 / 255, "0.03137254901960784", "0.03137254901960784"),
        (4 / 255, "8/255", "4/255"),
        (0.5, "8/255", "0.5"),
        (0.1, "8/255", "0.1"),
    ],
)
def test_radii_are_written_as_the_field_does(eps: float, known: str, text: str) -> None:
    assert publish.radius_text(eps, known) == text
