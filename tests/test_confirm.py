"""`advtrain-eval verify=…` and evaluation by several processes, as a user runs them."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SHORT = (
    "trainer.epochs=2",
    "trainer.batch_size=256",
    "trainer.validation.steps=1",
    "trainer.threads=1",
    "eval.pgd.n_examples=20",
    "eval.autoattack.version=custom",
    "eval.autoattack.attacks=[apgd-ce]",
    "eval.autoattack.n_examples=60",
    "eval.autoattack.batch_size=10",
    "eval.masking.enabled=false",
    "eval.second_checkpoint=none",
)


def command(folder: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "advtrain", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = command(folder, *SHORT, "name=short")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AutoAttack (custom), subset of 60: " in done.stdout and "within a hair of the boundary" in done.stdout
    return folder


def test_words_that_verify_cannot_use(tmp_path: Path) -> None:
    done = command(tmp_path, "eval", "verify=nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "verify: expected adversarial.npz of an evaluation, got no file nowhere" in done.stderr


@pytest.mark.slow
def test_confirmed_by_the_command_and_by_the_lines_that_it_prints(trained: Path, tmp_path: Path) -> None:
    run = trained / "runs" / "short"
    done = command(trained, "eval", "verify=runs/short")
    assert done.returncode == 0, done.stderr
    claimed = arrays_of(run / "adversarial.npz")["broken_by"]
    for word, code in (("broken by apgd-ce", 0), ("misclassified without an attack", -2), ("robust", -1)):
        n = int((claimed == code).sum())
        assert any(line.split() == [*word.split(), str(n), "of", str(n), "confirmed"] for line in lines(done)), word
    printed = "\n".join(line for line in lines(done) if line.startswith(("e = ", "with torch", "print(")))
    assert printed.count("\n") == 2
    shown = io.StringIO()
    with contextlib.chdir(trained), contextlib.redirect_stdout(shown):
        exec(printed, {"numpy": np, "torch": torch, "model": exported(run / "export")})
    assert shown.getvalue().startswith("0 verdicts differ; distance at most 0.2")


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return done.stdout.splitlines()


def exported(bundle: Path) -> torch.nn.Module:
    """The model from the files that others get, without advtrain."""
    spec: Any = importlib.util.spec_from_file_location("zoo_architecture", bundle / "architecture.py")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = json.loads((bundle / "verification.json").read_text())
    arguments = {key: value for key, value in stored["trained_as"].items() if key != "_target_"}
    model = getattr(module, stored["trained_as"]["_target_"].rpartition(".")[2])(**arguments)
    model.load_state_dict(torch.load(bundle / stored["weights"], weights_only=True)["state_dict"])
    return model.eval()


@pytest.mark.slow
def test_a_changed_image_is_named_and_ends_with_1(trained: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "changed"
    shutil.copytree(trained / "runs" / "short", evaluation)
    arrays = arrays_of(evaluation / "adversarial.npz")
    broken = int(np.flatnonzero(arrays["broken_by"] == 0)[0])
    arrays["adversarial_images"][broken] = arrays["images"][broken]
    np.savez_compressed(evaluation / "adversarial.npz", **arrays)
    done = command(tmp_path, "eval", "verify=changed")
    assert done.returncode == 1
    assert f"image {broken}, broken by apgd-ce: classified otherwise" in done.stdout
    assert done.stderr.strip().endswith("got 1 that do not; see above") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_two_processes_evaluate_as_one_and_the_model_is_found_again(trained: Path, tmp_path: Path) -> None:
    words = ("eval", "model=runs/short", *SHORT[4:], "threads=1")
    for processes in (1, 2):
        done = command(trained, *words, f"out=made/{processes}", processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("adversarial images") == 1  # one process talks
    one, two = (arrays_of(trained / "made" / str(n) / "adversarial.npz") for n in (1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one) and one.keys() == two.keys()

    moved = tmp_path / "elsewhere"
    shutil.copytree(trained, moved)
    done = command(tmp_path, "eval", "verify=elsewhere/made/2")  # the model is where it was, seen from the record
    assert done.returncode == 0 and "model short-best" in done.stdout, done.stderr
    shutil.copy(trained / "made" / "2" / "adversarial.npz", tmp_path / "alone.npz")
    done = command(tmp_path, "eval", "verify=alone.npz", f"model={trained}/runs/short/export")
    assert done.returncode == 0, done.stderr
