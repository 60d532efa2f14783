"""The files that an evaluation leaves: complete, readable without us, written in one piece."""

import json
import platform

import numpy as np
import pytest
import torch

from advtrain.evaluation import (
    AutoAttackSettings,
    EvaluationSettings,
    MaskingSettings,
    PGDSettings,
    evaluate,
    write_record,
)


@pytest.fixture
def result(problem):
    four = problem(4, n=40)
    settings = EvaluationSettings(
        masking=MaskingSettings(enabled=False),
        seed=3,
        batch_size=16,
        pgd=PGDSettings(steps=3, restarts=2, step_size="1/255"),
        autoattack=AutoAttackSettings(version="custom", attacks=["apgd-ce"], n_examples=30, seed=7, batch_size=10),
    )
    return four, evaluate(four.model, four.split, norm="linf", eps=four.eps, settings=settings)


def test_record(result, tmp_path):
    problem, evaluation = result
    evaluation.save(tmp_path, checkpoint="best")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(record) == [
        "checkpoint", "threat", "n_examples", "clean", "pgd", "autoattack", "seeds", "hardware", "versions",
    ]  # fmt: skip
    assert record["threat"] == {"norm": "linf", "eps": problem.eps}
    for name in ("clean", "pgd", "autoattack"):
        part = record[name]
        assert {"accuracy", "correct", "n_examples", "settings", "seconds"} <= part.keys()
        assert part["accuracy"] == part["correct"] / part["n_examples"]
    assert record["pgd"]["settings"] == {
        "objective": "ce",
        "init": "uniform",
        "steps": 3,
        "restarts": 2,
        "step_size": 1 / 255,
        "seed": 3,
        "batch_size": 16,
    }
    used = record["autoattack"]["settings"]
    assert (used["version"], used["attacks"], used["seed"], used["batch_size"]) == ("custom", ["apgd-ce"], 7, 10)
    assert [stage["attack"] for stage in record["autoattack"]["after"]] == ["none", "apgd-ce"]
    assert record["autoattack"]["flags"] == []
    assert record["seeds"] == {"pgd": 3, "autoattack": 7}
    assert record["hardware"].keys() == {"cpu", "cores", "threads", "gpu"}
    assert record["hardware"]["gpu"] is None
    assert record["versions"].keys() == {"python", "torch", "numpy", "pyautoattack", "advtrain"}
    assert record["versions"]["python"] == platform.python_version()


def test_anyone_can_check_the_images(result, tmp_path):
    """Three lines of plain PyTorch confirm the robust count."""
    problem, evaluation = result
    evaluation.save(tmp_path)
    with np.load(tmp_path / "adversarial.npz", allow_pickle=False) as file:
        saved = {name: file[name] for name in file.files}
    images, adversarial = torch.from_numpy(saved["images"]), torch.from_numpy(saved["adversarial_images"])
    assert images.dtype == adversarial.dtype == torch.float32
    assert torch.equal(images, problem.split.images[:30])
    assert (adversarial - images).abs().max() <= saved["eps"] + 1e-6
    robust = problem.model(adversarial).argmax(1).numpy() == saved["labels"]
    assert robust.sum() == evaluation.autoattack.correct
    assert 0 < robust.sum() < 30
    assert (saved["clean_predictions"] == problem.model(images).argmax(1).numpy()).all()
    assert (str(saved["attack"]), str(saved["norm"]), int(saved["batch_size"])) == ("autoattack", "linf", 16)
    assert saved["indices"].tolist() == list(range(30))


def test_old_images_do_not_outlive_their_evaluation(result, tmp_path):
    problem, evaluation = result
    evaluation.save(tmp_path)
    clean_only = EvaluationSettings(
        masking=MaskingSettings(enabled=False),
        pgd=PGDSettings(enabled=False),
        autoattack=AutoAttackSettings(enabled=False),
    )
    evaluate(problem.model, problem.split, norm="linf", eps=problem.eps, settings=clean_only).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_failed_write_leaves_the_old_record(tmp_path):
    path = tmp_path / "evaluation.json"
    write_record({"accuracy": 0.5}, path)
    with pytest.raises(ValueError, match="JSON"):
        write_record({"accuracy": float("nan")}, path)
    with pytest.raises(TypeError):
        write_record({"accuracy": torch.tensor(0.1)}, path)
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [path]
