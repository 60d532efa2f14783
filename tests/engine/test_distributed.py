"""Two gloo processes started by torchrun give the loss curve of one process, for every loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advtrain.composition import choices
from tests.engine.toy import DATA, VARIANTS

WORKER = Path(__file__).with_name("distributed_worker.py")


def curves(directory: Path, processes: int) -> dict[str, list[float]]:
    """Runs the worker, which trains with every loss, and reads the loss of each of its steps."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(directory)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for file in sorted(directory.glob("*/metrics.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.parent.name] = [record["loss"] for record in records if "loss" in record]
    return found


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = curves(tmp_path / "one", 1), curves(tmp_path / "two", 2)
    # every loss without BatchNorm, where settings vary, too, and again with synchronised BatchNorm; two views,
    # mixing, free adversarial training
    names = {f"{name}{suffix}" for name in choices("loss") for suffix in ("", "-norm")}
    assert names | VARIANTS.keys() | DATA.keys() | {"free"} == one.keys() == two.keys()
    for name, curve in one.items():
        assert len(curve) == 20
        assert two[name] == pytest.approx(curve, rel=1e-5), name
        assert len(set(curve)) == 20  # a curve, not a constant
