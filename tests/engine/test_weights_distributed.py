"""Two gloo processes perturb and average as one does, and all hold the same averaged model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("weights_worker.py")


def states(directory: Path) -> dict[str, Any]:
    """What each process wrote, by "<name>-<rank>"."""
    return {file.stem: torch.load(file, weights_only=True) for file in directory.glob("*.pt")}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = states(tmp_path / "one"), states(tmp_path / "two")
    assert len(one) == 6 and len(two) == 12
    for name, alone in one.items():
        first, second = two[name], two[name.removesuffix("0") + "1"]
        assert first["accuracy"] == second["accuracy"]
        for key, value in first["averaged"].items():
            # What validation saw on the second process is what the first one saved, statistics included.
            assert torch.equal(value, second["averaged"][key]), (name, key)
            if name != "not-synchronised-0":
                torch.testing.assert_close(value, alone["averaged"][key], rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
                assert first["accuracy"] == alone["accuracy"]
