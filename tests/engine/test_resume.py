"""A run that is stopped, by a request or by force, ends bit for bit like one that was not."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from advtrain.engine import Interrupted, checkpoints
from tests.engine.toy import trainer

TINY = [
    "experiment=quickstart",
    "eval=none",
    "name=run",
    "trainer.epochs=4",
    "trainer.batch_size=128",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.validation.every=1",
    "trainer.validation.steps=2",
    "averaging=ema",
    "weight_perturbation=awp",
    "weight_perturbation.start_epoch=2",
    "optimizer.lr=0.02",
]


# A run that sends itself a signal once so many records are logged: how fast it is does not matter.
STOPPING = """
import os, sys
from advtrain.engine.loggers import MetricsFile

number, left, log = int(sys.argv.pop(1)), int(sys.argv.pop(1)), MetricsFile.log

def log_and_stop(self, step, metrics):
    global left
    log(self, step, metrics)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)

MetricsFile.log = log_and_stop
import advtrain.__main__
"""


def start(folder: Path, *extra: str, command: Sequence[str] = ("-m", "advtrain")) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *command, *TINY, *extra],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def stopped_after(records: int, number: int, folder: Path, *extra: str) -> tuple[int, str]:
    """The exit status and the output of a run to which the signal was sent once so many records were logged."""
    process = start(folder, *extra, command=("-c", STOPPING, str(number), str(records)))
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(start(folder))
    return folder / "runs" / "run"


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)  # pyright: ignore
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")  # pyright: ignore
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))  # pyright: ignore
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
def test_a_stopped_run_ends_bit_equal(number: signal.Signals, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    code, output = stopped_after(15, number, tmp_path)
    assert code == (-number if number == signal.SIGKILL else 128 + number), output[-3000:]
    if number != signal.SIGKILL:
        assert "the same command continues" in output
        stopped = checkpoints.load(run / "checkpoints" / "last.pt")["position"]
        assert stopped["step"] > 0, "the signal came between epochs: the test must stop in the middle of one"
    assert "resuming" in finish(start(tmp_path))

    for name in ("last.pt", "best.pt"):
        expected = checkpoints.load(uninterrupted / "checkpoints" / name)
        assert same(checkpoints.load(run / "checkpoints" / name), expected)
    strip = [
        [
            line
            for line in (place / "metrics.jsonl").read_text().replace("images_per_second", "\n").splitlines()
            if "step" in line
        ]
        for place in (run, uninterrupted)
    ]
    assert strip[0] == strip[1]


def test_a_signal_after_the_last_step_stops_the_run_before_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, epochs=1)
    monkeypatch.setattr(run, "_validate", lambda *_: bool(signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        run.fit()
    assert stopped.value.exit_code == 143
    assert checkpoints.load(run.last_path)["position"]["epoch"] == 1
    again = trainer(tmp_path, epochs=1)
    assert again.fit().epoch == 1  # nothing is left to train, and nobody asks to stop


@pytest.mark.slow
def test_another_configuration_is_refused_and_loses_nothing(uninterrupted: Path) -> None:
    before = (uninterrupted / "checkpoints" / "last.pt").read_bytes()
    process = start(uninterrupted.parents[1], "loss.ce_weight=5")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "loss.ce_weight (there 3.0, now 5)" in output
    assert (uninterrupted / "checkpoints" / "last.pt").read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.jsonl").read_text()
    finish(start(uninterrupted.parents[1], "trainer.log_every=3", "data.validation_size=100"))
    assert (uninterrupted / "metrics.jsonl").read_text() == before
