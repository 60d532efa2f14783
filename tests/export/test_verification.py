"""A bundle verifies where advtrain does not exist, and one that was changed does not."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advtrain.export import CannotVerify, VerificationError, verify_bundle, verify_script
from advtrain.export.bundle import write_sums
from advtrain.export.weights import save_weights

Evaluated = Callable[..., Any]  # the fixture in conftest.py
needs_robustbench = pytest.mark.skipif(importlib.util.find_spec("robustbench") is None, reason="needs robustbench")


def test_verifies_without_robustbench_class(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the process is not isolated')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = evaluated()
    found = verify_bundle(run.export().directory)
    assert found.loader.startswith("torch ")
    assert found.architecture == "architecture.SmallCNN"
    assert (found.n_examples, found.clean_correct, found.rounding_ties) == (9, 8, 0)
    assert found.robust_correct == found.attacked == run.record["autoattack"]["correct"] > 0
    assert found.broken == 0
    assert f"PGD-10 × 2 broke 0 of {found.attacked} images recorded as robust" in str(found)


@needs_robustbench
def test_verifies_through_robustbench(board: Any) -> None:
    found = verify_bundle(board.export().directory)
    assert found.loader == "robustbench load_model"
    assert found.architecture == "robustbench.model_zoo.architectures.wide_resnet.WideResNet"
    assert (found.clean_correct, found.robust_correct) == (5, board.record["autoattack"]["correct"])


CIFAR = {"dataset": "cifar10", "eps_text": "8/255", "shape": (3, 32, 32), "n": 6}
MANY = """
import runpy, sys
from pathlib import Path
check = runpy.run_path(sys.argv[1])["check"]
for folder in sys.argv[2:]:
    found = check(Path(folder))
    print(found["loader"], found["architecture"], found["robust_correct"], sep=";")
"""


@needs_robustbench
def test_robustbench_builds_the_other_classes(evaluated: Evaluated, tmp_path: Path) -> None:
    expected, folders = [], []
    for target, arguments, found_class in (
        ("DMWideResNet", {"depth": 10, "width": 1}, "robustbench.model_zoo.architectures.dm_wide_resnet.DMWideResNet"),
        ("ResNet", {}, "robustbench.model_zoo.architectures.resnet.ResNet"),
        ("SmallPreActResNet", {"width": 2}, "architecture.SmallPreActResNet"),
    ):
        run = evaluated(f"advtrain.models.{target}", arguments, **CIFAR)
        folders.append(str(run.export().directory.rename(tmp_path / target)))
        expected.append(f"robustbench load_model;{found_class};{run.record['autoattack']['correct']}")
    command = [sys.executable, "-I", "-B", "-W", "ignore", "-c", MANY, verify_script.__file__, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_anyone_can_run_it(evaluated: Evaluated) -> None:
    folder = evaluated().export().directory
    command = [sys.executable, "-I", "verify.py"]
    good = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert "clean 8 of 9" in good.stdout
    assert {path.name for path in folder.iterdir()} == FILES
    (folder / "README.md").write_text("better")
    bad = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert bad.stderr.startswith("verification failed: expected README.md with SHA-256")
    assert len(bad.stderr.splitlines()) == 1


FILES = {
    "models",
    "model_info",
    "architecture.py",
    "NOT_A_SUBMISSION.md",
    "LICENSE",
    "README.md",
    "verify.py",
    "verification.json",
    "verification.npz",
    "SHA256SUMS",
}


def test_an_edited_check_proves_nothing(evaluated: Evaluated) -> None:
    folder = evaluated().export().directory
    (folder / "verify.py").write_text("print('{}')")
    with pytest.raises(VerificationError, match=r"expected verify\.py with SHA-256"):
        verify_bundle(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="not a folder"):
        verify_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["models/**/*.pt", "models/**/*.safetensors", "verification.npz"])
def test_a_large_file_that_is_kept_elsewhere(evaluated: Evaluated, here: Callable[[Path], dict], pattern: str) -> None:
    bundle = evaluated().export()
    (large,) = bundle.directory.glob(pattern)
    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    kept = large.rename(bundle.directory.parent / large.name)
    name = re.escape(large.relative_to(bundle.directory).as_posix())
    found = rf"expected {name} with SHA-256 {digest}, got no such file"
    with pytest.raises(verify_script.Missing, match=rf"^{found}: this copy .* README\.md says$"):
        here(bundle.directory)
    info = bundle.model_info.read_text()
    bundle.model_info.write_text(json.dumps(json.loads(info) | {"clean_acc": "99.00"}))
    with pytest.raises(verify_script.Mismatch, match=r"\.json with SHA-256"):  # what is here is checked all the same
        here(bundle.directory)
    sums = bundle.directory / "SHA256SUMS"
    changed = hashlib.sha256(bundle.model_info.read_bytes()).hexdigest()
    sums.write_text(sums.read_text().replace(hashlib.sha256(info.encode()).hexdigest(), changed))
    with pytest.raises(verify_script.Mismatch, match=r"expected clean_acc 88\.89, got 99\.00"):
        here(bundle.directory)
    write_sums(bundle.directory)
    with pytest.raises(verify_script.Mismatch, match="every file in SHA256SUMS"):
        here(bundle.directory)
    bundle.model_info.write_text(info)
    kept.rename(large)
    write_sums(bundle.directory)
    assert here(bundle.directory)["n_examples"] == 9


def test_another_file_must_be_there(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    folder = evaluated().export().directory
    (folder / "LICENSE").unlink()
    with pytest.raises(verify_script.Mismatch, match=r"expected LICENSE with SHA-256 .*, got no file"):
        here(folder)


def test_the_fresh_process_says_so(evaluated: Evaluated) -> None:
    bundle = evaluated().export()
    bundle.weights.unlink()
    with pytest.raises(CannotVerify, match=rf"^verification failed: expected models/.*/{bundle.model_id}\.pt with SHA"):
        verify_bundle(bundle.directory)


def test_other_weights(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    bundle = evaluated().export()
    saved = torch.load(bundle.weights, weights_only=True)
    saved["state_dict"]["classifier.bias"][torch.arange(10) != 3] -= 100
    save_weights(saved["state_dict"], bundle.weights, bundle.weights.with_suffix(".safetensors"))
    with pytest.raises(verify_script.Mismatch, match=r"\.(pt|safetensors) with SHA-256"):
        here(bundle.directory)
    write_sums(bundle.directory)
    with pytest.raises(verify_script.Mismatch, match="expected the stored clean predictions"):
        here(bundle.directory)


def test_missing_weight(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    bundle = evaluated().export()
    saved = torch.load(bundle.weights, weights_only=True)
    del saved["state_dict"]["classifier.bias"]
    save_weights(saved["state_dict"], bundle.weights, bundle.weights.with_suffix(".safetensors"))
    write_sums(bundle.directory)
    with pytest.raises(RuntimeError, match="Missing key"):
        here(bundle.directory)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("adversarial_images", lambda x: np.clip(x + 0.05, 0, 1), "within linf 0.02"),
        ("adversarial_images", lambda x: x - 0.3, r"pixels in \[0, 1\]"),
        ("adversarial_images", lambda x: x + 0.3, r"pixels in \[0, 1\]"),
        ("adversarial_images", lambda x: x * np.nan, r"pixels in \[0, 1\]"),
        ("clean_predictions", lambda p: np.roll(p, 1) + 1, "the stored clean predictions"),
        ("labels", lambda y: (y + 1) % 10, "robust images"),
    ],
)
def test_other_arrays(
    evaluated: Evaluated, here: Callable[[Path], dict], name: str, change: Callable, message: str
) -> None:
    folder = evaluated().export().directory
    with np.load(folder / "verification.npz") as stored:
        arrays = dict(stored)
    arrays[name] = change(arrays[name]).astype(arrays[name].dtype)
    np.savez_compressed(folder / "verification.npz", **arrays)
    with pytest.raises(verify_script.Mismatch, match=r"verification\.npz with SHA-256"):
        here(folder)
    write_sums(folder)
    with pytest.raises(verify_script.Mismatch, match=message):
        here(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("clean_acc", "99.00"), ("autoattack_acc", "99.00"), ("reported", "99.00"), ("eps", "0.2"), ("eps", 0.02)],
)
def test_edited_model_info(evaluated: Evaluated, here: Callable[[Path], dict], field: str, value: object) -> None:
    bundle = evaluated().export()
    info = json.loads(bundle.model_info.read_text())
    bundle.model_info.write_text(json.dumps(info | {field: value}))
    with pytest.raises(verify_script.Mismatch, match=r"\.json with SHA-256"):
        here(bundle.directory)
    write_sums(bundle.directory)
    with pytest.raises(verify_script.Mismatch, match=rf"expected {field} .*edited model_info"):
        here(bundle.directory)


@pytest.mark.parametrize(
    "name", ["model_info/", ".pt", ".safetensors", "LICENSE", "architecture.py", "README.md", "verification.npz"]
)
def test_a_file_that_left_the_list(evaluated: Evaluated, here: Callable[[Path], dict], name: str) -> None:
    folder = evaluated().export().directory
    (folder / "notes.txt").write_text("a file of the author's is none of our business")
    assert here(folder)["rounding_ties"] == 0
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if name not in line))
    with pytest.raises(verify_script.Mismatch, match=rf"every file in SHA256SUMS, got no .*{name}"):
        here(folder)


@pytest.mark.parametrize("attack", ["clean", "robust"])
def test_edited_counts(evaluated: Evaluated, here: Callable[[Path], dict], attack: str) -> None:
    folder = evaluated().export().directory
    spec = json.loads((folder / "verification.json").read_text())
    spec[attack]["correct"] += 1
    (folder / "verification.json").write_text(json.dumps(spec))
    write_sums(folder)
    with pytest.raises(verify_script.Mismatch):
        here(folder)


def test_ties_count_as_rounding_on_another_machine_only(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    run = evaluated()
    with torch.no_grad():
        run.model.classifier.weight[1] = run.model.classifier.weight[0]
        run.model.classifier.bias[:] = 0
        run.model.classifier.bias[0], run.model.classifier.bias[1] = 10, 10 - 1e-4
    labels = np.zeros(9, dtype=np.int64)
    run.arrays |= {"clean_predictions": labels, "labels": labels}
    for name in ("clean", "autoattack"):
        run.record[name]["correct"] = 9
    assert here(run.export().directory)["rounding_ties"] == 0
    run.arrays["clean_predictions"] = np.eye(9, dtype=np.int64)[0]
    run.record["clean"]["correct"] = 8
    with pytest.raises(verify_script.Mismatch, match="stored clean predictions"):
        here(run.export().directory)
    run.record["versions"]["torch"] = "another"
    assert here(run.export().directory)["rounding_ties"] == 1
    run.arrays["clean_predictions"] = 7 * np.eye(9, dtype=np.int64)[0]
    with pytest.raises(verify_script.Mismatch, match="stored clean predictions"):
        here(run.export().directory)
    run.arrays["clean_predictions"], run.record["autoattack"]["correct"] = labels, 8
    run.record["clean"]["correct"] = 9
    assert here(run.export().directory)["rounding_ties"] == 1
    run.record["versions"]["torch"] = torch.__version__
    with pytest.raises(verify_script.Mismatch, match="expected 8 robust images, got 9"):
        here(run.export().directory)
