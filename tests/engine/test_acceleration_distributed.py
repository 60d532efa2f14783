"""Two gloo processes with compiled passes give the loss curve of one process without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("acceleration_worker.py")


def train(directory: Path, processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(directory)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def curve(directory: Path) -> list[float]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.slow
def test_two_compiled_processes_equal_one_that_is_not(tmp_path: Path) -> None:
    """And the training pass is cut where DDP's buckets end, so that a bucket is reduced while others are computed."""
    train(tmp_path / "one", 1)
    train(tmp_path / "two", 2)
    for loss in ("ikl", "gkl"):
        expected = curve(tmp_path / "one" / f"{loss}-off")
        assert len(set(expected)) == len(expected) == 4
        for compile in ("model", "step"):
            place = tmp_path / "two" / f"{loss}-{compile}"
            assert curve(place) == pytest.approx(expected, rel=1e-5)
            assert json.loads((place / "graphs.json").read_text()) == 2
