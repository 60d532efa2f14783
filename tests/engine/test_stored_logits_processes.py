"""Stored logits in real processes: one that is stopped, two that share the work, and a teacher of real images."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from advtrain import runs
from advtrain.composition import compose
from advtrain.engine import checkpoints
from advtrain.engine.logit_file import described
from tests.engine.lessons import log

ROOT = Path(__file__).resolve().parents[2]

# A run that sends itself a signal once it has written so many stretches of the file.
STOPPING = """
import os, sys
from advtrain.engine.logit_file import LogitWriter

number, left, append = int(sys.argv.pop(1)), int(sys.argv.pop(1)), LogitWriter.append

def append_and_stop(self, rows):
    global left
    append(self, rows)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)

LogitWriter.append = append_and_stop
import advtrain.__main__
"""


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


def composed(*words: str) -> tuple[dict, dict]:
    """A configuration and its parts."""
    config = compose("train", words)
    return config, runs.check_training(config)


@pytest.mark.slow
def test_a_computation_that_a_signal_stops_leaves_no_file(tmp_path: Path) -> None:
    short = ["experiment=quickstart", "eval=none", "trainer.threads=1", "trainer.validation.steps=1"]
    teacher = runs.make_trainer(*composed(*short, "loss=standard", "trainer.epochs=3"), tmp_path / "teacher")
    teacher.fit()  # better than chance, which a run asks for
    torch.save(teacher.model.state_dict(), tmp_path / "teacher.pt")
    student = [*short, "name=student", "loss=kd", "data.augment=crop_flip", "trainer.epochs=2"]
    student += ["teacher.source=model:small_cnn", f"teacher.weights={tmp_path / 'teacher.pt'}"]
    student += ["trainer.replay_epochs=1", f"teacher.logits={tmp_path / 'logits' / 'of.npy'}"]

    stopped = call(tmp_path, "-c", STOPPING, str(int(signal.SIGTERM)), "5", *student)
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert "SIGTERM; nothing of teacher.logits stays" in stopped.stderr
    assert list((tmp_path / "logits").iterdir()) == []

    runs.make_trainer(*composed(*student), tmp_path / "runs" / "student").fit()
    assert {path.name for path in (tmp_path / "logits").iterdir()} == {"of.npy", "of.npy.json"}
    position = checkpoints.load(tmp_path / "runs" / "student" / "checkpoints" / "last.pt")["position"]
    assert (position["epoch"], position["step"]) == (2, 0)


@pytest.mark.slow
def test_two_processes_write_the_file_and_train_the_weights_of_one(tmp_path: Path) -> None:
    worker = str(ROOT / "tests" / "engine" / "lessons_worker.py")
    for name, start in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        done = call(tmp_path, *start, worker, str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("augmented", "stored", "sharded"):
        one, two = (np.load(tmp_path / number / f"{name}.npy") for number in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-12)
        states = [checkpoints.load(tmp_path / number / name / "checkpoints" / "last.pt") for number in ("one", "two")]
        for key, weights in states[0]["model"].items():
            torch.testing.assert_close(states[1]["model"][key], weights, rtol=1e-9, atol=1e-11)
        curves = [[r["loss"] for r in log(tmp_path / number / name) if "loss" in r] for number in ("one", "two")]
        assert len(curves[0]) == 12 and curves[1] == pytest.approx(curves[0], rel=1e-9)


@pytest.mark.slow
def test_real_images_are_taught_from_the_file_as_by_the_teacher(real_data: Path, tmp_path: Path) -> None:
    """CIFAR-100, 256 images, twice through a cycle of two epochs: all bits of weights and log."""
    own = ["data=cifar100", f"data.root={real_data}", "data.download=false", "data.train_size=256"]
    own += ["model=preact_resnet_small", "trainer.batch_size=128", "trainer.precision=fp32", "trainer.threads=1"]
    own += ["trainer.epochs=4", "trainer.replay_epochs=2", "trainer.validation.steps=1", "trainer.log_every=1"]
    own += ["trainer.validation.n_examples=20", "eval=none", "loss=kd"]
    torch.manual_seed(0)
    model = compose("train", own)["model"]
    network = runs.build(model)
    torch.save(network.state_dict(), tmp_path / "teacher.pt")
    own += ["teacher.source=model:preact_resnet_small", f"teacher.weights={tmp_path / 'teacher.pt'}"]
    states = []
    for name, file in (("asking", "null"), ("reading", str(tmp_path / "logits.npy"))):
        run = runs.make_trainer(*composed(*own, f"teacher.logits={file}"), tmp_path / name)
        run.fit()
        states.append(run.model.state_dict())
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    assert log(tmp_path / "asking") == log(tmp_path / "reading")
    description = described(tmp_path / "logits.npy")
    assert description["shape"] == [2 * 2 * 128, 100] and description["data.train_size"] == 256
    assert "data.root" not in json.loads((tmp_path / "logits.npy.json").read_text())
