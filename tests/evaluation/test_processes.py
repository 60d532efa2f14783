"""Evaluations in real processes: two give what one gives, and a killed one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORKER = Path(__file__).with_name("evaluation_worker.py")


def command(folder: Path, seconds: float = 0.0, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(folder), str(seconds)]


def finished(folder: Path, **options: Any) -> str:
    """Runs the worker to its end; what it printed."""
    done = subprocess.run(command(folder, **options), env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record without times, and the arrays."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    record = timeless(json.loads((folder / "evaluation.json").read_text()))
    with np.load(folder / "adversarial.npz") as file:
        return record, {name: file[name] for name in file.files}


def assert_same(one: Path, other: Path) -> None:
    (record, arrays), (other_record, other_arrays) = outcome(one), outcome(other)
    assert record == other_record
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, other_arrays[name]), name


@pytest.mark.slow
def test_two_processes_equal_one_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    record, arrays = outcome(tmp_path / "one")
    assert set(arrays["broken_by"].tolist()) >= {-2, -1, 0}
    assert 0 < record["autoattack"]["correct"] < record["clean"]["correct"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["adversarial.npz", "evaluation.json"]

    printed = finished(tmp_path / "two", seconds=0.1, processes=2)
    for rank in (0, 1):  # both took part in each attack; the sleep makes sure that neither runs ahead
        for attack in ("apgd-ce", "apgd-t", "fab-t"):
            assert f"[{rank}] AutoAttack {attack} batch" in printed
    assert_same(tmp_path / "one", tmp_path / "two")

    folder = tmp_path / "killed"
    left = kill_after(folder, batches=4, processes=2)
    printed = finished(folder)  # one process goes on with what two have begun
    assert f"resumes: {left} finished batches" in printed
    assert_same(tmp_path / "one", folder)
    total = sum(-(-entry["correct"] // 5) for entry in record["autoattack"]["after"][:-1])
    attacked = sum(" AutoAttack " in line and "elapsed" in line for line in printed.split("\n"))
    assert attacked == total - left  # nothing that was finished is done again


def kill_after(folder: Path, batches: int, processes: int) -> int:
    """Kills the worker, SIGKILL and without notice, once so many batches are on disk; returns how many are then."""
    process = subprocess.Popen(
        command(folder, 0.3, processes),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    kept = folder / "unfinished" / "autoattack"
    deadline = time.monotonic() + 100
    while len(list(kept.glob("*.npz"))) < batches:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # torchrun's children are in groups of their own; they go when it is gone
    assert not (folder / "evaluation.json").exists()
    return len(list(kept.glob("*.npz")))
