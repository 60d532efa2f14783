"""Anyone can confirm the verdicts from the saved images, and a changed image is found by its index."""

import contextlib
import io
import re

import numpy as np
import pytest
import torch

from advtrain.evaluation import AutoAttackSettings, EvaluationSettings, MaskingSettings, PGDSettings, evaluate
from advtrain.evaluation.autoattack import run
from advtrain.evaluation.recheck import load_evidence, plain_check, recheck
from advtrain.types import SettingError
from tests.evaluation.shortened import shortened


@pytest.fixture(params=["linf", "l2", "l1"])
def saved(problem, request, tmp_path):
    four = problem(4, request.param, n=40)
    settings = EvaluationSettings(
        masking=MaskingSettings(enabled=False),
        batch_size=16,
        pgd=PGDSettings(enabled=False),
        autoattack=AutoAttackSettings(version="custom", attacks=["square", "fab-t"], n_examples=30, batch_size=30),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "plans", shortened)
        evaluation = evaluate(four.model, four.split, norm=request.param, eps=four.eps, settings=settings)
    evaluation.save(tmp_path)
    return four, evaluation, tmp_path / "adversarial.npz"


def test_every_verdict_is_confirmed(saved):
    problem, evaluation, path = saved
    arrays = load_evidence(path)
    found = recheck(problem.model, arrays)
    assert found.counts == found.claimed and not found.disagreements and found.ties == 0
    assert list(found.counts) == [
        "broken by square", "broken by fab-t", "misclassified without an attack", "robust",
    ]  # fmt: skip
    assert found.counts["robust"] == evaluation.autoattack.correct
    assert found.counts["misclassified without an attack"] == int((~problem.clean[:30]).sum())
    assert sum(found.counts.values()) == 30
    after = [entry["correct"] for entry in evaluation.autoattack.details["after"]]
    assert found.counts["broken by square"] == after[0] - after[1]
    assert found.counts["broken by fab-t"] == after[1] - after[2]


def test_what_is_stored_of_each_image(saved):
    problem, evaluation, path = saved
    arrays = load_evidence(path)
    with torch.no_grad():
        logits = problem.model(torch.from_numpy(arrays["adversarial_images"])).double()
    y = torch.from_numpy(arrays["labels"])
    best_other = logits.masked_fill(torch.nn.functional.one_hot(y, 4).bool(), -torch.inf).amax(1)
    margins = logits.gather(1, y[:, None]).flatten() - best_other
    assert arrays["margins"] == pytest.approx(margins.numpy(), abs=1e-5) and arrays["margins"].dtype == np.float32
    assert ((arrays["margins"] > 0) == arrays["robust"]).all()
    assert arrays["broken_by"].dtype == np.int8 and arrays["robust"].dtype == bool
    assert arrays["attack_names"].tolist() == ["square", "fab-t"]
    near = margins.abs() <= 1e-4 * logits.abs().amax(1)
    record = evaluation.record()["autoattack"]
    assert record["near_boundary"] == int(near.sum())
    assert sum(right for right, _ in record["per_class"].values()) == record["correct"]
    assert sum(n for _, n in record["per_class"].values()) == 30
    assert record["interval"][0] < record["accuracy"] < record["interval"][1]


def change(arrays, name, index, value):
    changed = arrays[name].copy()
    changed[index] = value
    return {**arrays, name: changed}


def test_each_kind_of_lie_is_found(saved):
    problem, _, path = saved
    arrays = load_evidence(path)
    broken, robust = (np.flatnonzero(arrays["broken_by"] == code)[0] for code in (1, -1))
    wrong = np.flatnonzero(arrays["broken_by"] == -2)[0]
    clean = arrays["images"]
    lies = {
        "classified otherwise": change(arrays, "adversarial_images", broken, clean[broken]),
        "outside of [0, 1]": change(arrays, "adversarial_images", broken, -1.0),
        "outside of the ball": change(arrays, "adversarial_images", broken, 1 - clean[broken]),
        "changed, though": change(arrays, "adversarial_images", wrong, np.clip(clean[wrong] + 1e-4, 0, 1)),
        "two verdicts": change(arrays, "broken_by", robust, 0),
    }
    for kind, changed in lies.items():
        found = recheck(problem.model, changed)
        index = {"two verdicts": robust, "changed, though": wrong}.get(kind, broken)
        (line,) = found.disagreements
        assert line.startswith(f"image {index}, ") and kind in line, line
        assert sum(found.counts.values()) == 29
    flipped = change(change(arrays, "robust", broken, True), "broken_by", broken, -1)
    assert "robust: classified otherwise" in recheck(problem.model, flipped).disagreements[0]
    assert "broken by fab-t" in recheck(problem.model, lies["outside of [0, 1]"]).disagreements[0]


def test_nan_is_no_image(saved):
    problem, _, path = saved
    arrays = load_evidence(path)
    broken = np.flatnonzero(arrays["broken_by"] == 0)[0]
    (line,) = recheck(problem.model, change(arrays, "adversarial_images", broken, np.nan)).disagreements
    assert "outside of [0, 1]" in line and "outside of the ball" in line


def printed_by(lines, model):
    """What the lines print, run as they are by someone with numpy, torch and the model."""
    import numpy
    import torch

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(lines, {"numpy": numpy, "torch": torch, "model": model})
    return re.fullmatch(r"(\d+) verdicts differ; distance at most ([\d.e-]+)\n", shown.getvalue()).groups()


def test_three_plain_lines_confirm_the_same(saved):
    problem, evaluation, path = saved
    lines = plain_check(path, evaluation.norm, 16)
    assert len(lines.splitlines()) == 3 and "advtrain" not in lines.replace(str(path), "")
    differ, distance = printed_by(lines, problem.model)
    assert int(differ) == 0
    assert 0 < float(distance) <= problem.eps * (1 + 1e-5)
    constant = type(problem.model)(torch.zeros_like(problem.model.weight), torch.tensor([9.0, 0, 0, 0]))
    differ, _ = printed_by(lines, constant)
    arrays = load_evidence(path)
    assert int(differ) == int(((arrays["labels"] == 0) != arrays["robust"]).sum()) > 0


def test_files_that_cannot_be_checked(tmp_path):
    with pytest.raises(SettingError, match=r"expected adversarial.npz of an evaluation, got no file"):
        load_evidence(tmp_path / "adversarial.npz")
    np.savez(tmp_path / "old.npz", images=np.zeros(3))
    with pytest.raises(SettingError, match=r"expected the array indices, got only images; evaluate again"):
        load_evidence(tmp_path / "old.npz")
