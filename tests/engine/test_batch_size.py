"""trainer.batch_size=auto: the search, the count of bytes, and a run that is as if nothing had been tried."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advtrain import distributed
from advtrain.composition import compose
from advtrain.config import TrainerSettings, typed
from advtrain.engine import batch_size
from advtrain.engine.batch_size import find_rows, largest, settled, take_steps
from advtrain.engine.checkpoints import load
from advtrain.engine.execution import RECORD, recorded_execution
from advtrain.engine.memory import bytes_per_row, peak_bytes, runs
from advtrain.losses import TRADES
from advtrain.recipes.cost import training_flop
from advtrain.runs import train_run
from advtrain.types import SettingError
from tests.engine.toy import DATA, trainer

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


class Fits:
    """Fits up to a size, and remembers what was tried."""

    def __init__(self, most: Callable[[int], bool]) -> None:
        self.most, self.tried = most, []

    def __call__(self, rows: int) -> bool:
        self.tried.append(rows)
        return self.most(rows)


@pytest.mark.parametrize("unit", [8, 16, 24])
@pytest.mark.parametrize("most", [24, 31, 100, 800, 1000, 1023, 5000, 10**6])
def test_the_largest_that_fits_to_a_sixteenth(most: int, unit: int) -> None:
    fits = Fits(lambda rows: rows <= most)
    found = largest(fits, unit=unit, at_most=4000)
    best = min(most, 4000) // unit * unit
    assert found % unit == 0 and found in fits.tried and found <= best
    assert best - found <= max(unit, found // 16) - 1
    assert len(fits.tried) <= 16


def test_doubles_then_halves() -> None:
    fits = Fits(lambda rows: rows <= 100)
    assert largest(fits, unit=8, at_most=10**6) == 96
    assert fits.tried == [8, 16, 32, 64, 128, 96, 112, 104]


def test_the_upper_bound_is_reached_and_not_passed() -> None:
    fits = Fits(lambda rows: True)
    assert largest(fits, unit=8, at_most=1003) == 1000
    assert max(fits.tried) == 1000


def test_what_is_returned_was_seen_to_fit_even_if_more_fits_again() -> None:
    """An allocator may fail at 256 and come through at 512."""
    odd = Fits(lambda rows: rows not in (256, 192, 160))
    found = largest(odd, unit=8, at_most=10**4)
    assert found in odd.tried and found == 152


def test_nothing_fits() -> None:
    fits = Fits(lambda rows: False)
    assert largest(fits, unit=8, at_most=100) == 0
    assert fits.tried == [8]
    assert largest(fits, unit=8, at_most=8) == 0


# --- rows of a process ---


def linear(constant: int, per_row: int) -> Callable[[int], None]:
    """A trial that allocates so many bytes."""

    def trial(rows: int) -> None:
        torch.zeros(constant + per_row * rows, dtype=torch.uint8)

    return trial


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what the host has left, of which half is used."""
    return lambda size: monkeypatch.setattr(batch_size, "host_memory", lambda: size)


def test_rows_follow_from_bytes_and_memory(room: Callable[[int], None]) -> None:
    room(2 * (5000 + 100 * 555))
    found = find_rows(linear(5000, 100), CPU, images=10**6, accumulation=1)
    assert 555 - 555 // 16 <= found.rows <= 555 and found.rows % 8 == 0
    assert "fits in memory" in found.reason


def test_processes_share_memory_and_images(room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "launched_processes", lambda: 4)
    room(2 * 4 * (5000 + 100 * 80))
    assert find_rows(linear(5000, 100), CPU, images=10**6, accumulation=1).rows == 80
    room(10**12)
    found = find_rows(linear(5000, 100), CPU, images=16 * 4 * 83, accumulation=1)
    assert found.rows == 80 and "fewer than 16 steps" in found.reason


@pytest.mark.parametrize(
    ("images", "accumulation", "expected"), [(2000, 1, 120), (2000, 20, 120), (100, 1, 6), (9, 4, 4)]
)
def test_an_epoch_keeps_sixteen_steps(
    images: int, accumulation: int, expected: int, room: Callable[[int], None]
) -> None:
    room(10**12)
    assert find_rows(linear(5000, 100), CPU, images=images, accumulation=accumulation).rows == expected


def test_too_little_memory_is_one_line(room: Callable[[int], None]) -> None:
    room(5000)
    with pytest.raises(
        SettingError, match=r"^trainer\.batch_size=auto: expected memory for 8 images a process"
    ) as error:
        find_rows(linear(5000, 100), CPU, images=10**6, accumulation=1)
    assert "\n" not in str(error.value)


def test_running_out_of_memory_is_not_fitting_and_other_errors_are_errors() -> None:
    def out(rows: int) -> None:
        if rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def broken(rows: int) -> None:
        raise RuntimeError("shapes differ")

    assert runs(out, 1) and not runs(out, 2)
    with pytest.raises(RuntimeError, match="shapes differ"):
        runs(broken, 1)


@pytest.mark.gpu
def test_on_a_gpu_the_trial_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of 2 GB, so that whoever else uses this one has room."""
    device, size = torch.device("cuda", 0), 2 * 10**9
    gc.collect()  # what other tests have left, of which the search would free some
    torch.cuda.empty_cache()
    others, held = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (size - torch.cuda.memory_reserved(device) + others, size)
    )

    def trial(rows: int) -> None:
        if rows > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        torch.empty(rows * size // 1000, dtype=torch.uint8, device=device)

    found = find_rows(trial, device, images=10**9, accumulation=1)
    assert 780 <= found.rows <= 900  # thousandths, of which 900 may be used
    assert torch.cuda.memory_allocated(device) <= held


# --- bytes ---


def test_the_line_is_that_of_large_steps() -> None:
    """With few rows another peak is higher, as that of the update is: its slope must not be taken."""
    peaks: list[int] = []

    def trial(rows: int) -> None:
        peaks.append(max(9000 + 10 * rows, 2000 + 200 * rows))
        torch.zeros(peaks[-1], dtype=torch.uint8)

    line = bytes_per_row(trial, 8, 10**6)
    assert (line.constant, line.per_row) == (2000, 200)
    assert len(peaks) <= 6
    with pytest.raises(SettingError, match="got another course; give a number"):
        bytes_per_row(quadratic, 8, 512)


def quadratic(rows: int) -> None:
    torch.zeros(rows**2, dtype=torch.uint8)


def test_a_step_is_counted_right(tmp_path: Path) -> None:
    """By hand, for a linear network under the natural loss: what the step's widest moment holds for each image."""
    width = 1024

    def trial(rows: int) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, width), nn.ReLU(), nn.Linear(width, 4))
        run = trainer(tmp_path, model, loss=TRADES(), precision="fp32")
        run.step.batch_size = rows
        take_steps(run, rows)

    line = bytes_per_row(trial, 32, 10**6)
    # Both images keep the ReLU's output (which is its input's mask, too); the backward pass of the last one adds its
    # gradient and that of the layer below. The images themselves and their gradients are 108 numbers each.
    assert 2 * width * 4 < line.per_row < (2 + 2) * width * 4 + 12 * 108 * 4


@pytest.mark.parametrize("name", DATA)
def test_every_kind_of_batch_can_be_tried(name: str, tmp_path: Path) -> None:
    """Two views and soft labels take their shapes."""
    run = trainer(tmp_path, batch_size=16, **DATA[name]())
    take_steps(run, 16)
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert peak_bytes(lambda rows: take_steps(run, rows), 16) > 0


# --- the command ---


def config(tmp_path: Path, *words: str) -> dict[str, Any]:
    return compose("train", ["experiment=quickstart", "eval=none", "trainer.epochs=1", f"run_root={tmp_path}", *words])


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load(directory / "checkpoints" / "last.pt")["model"]


@pytest.mark.slow
def test_a_run_is_that_of_the_number_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_run(config(tmp_path, "trainer.batch_size=auto"), "auto")
    shown = " ".join(capsys.readouterr().out.split())
    facts = json.loads((tmp_path / "auto" / RECORD).read_text())
    assert facts["batch_size"] == 80  # of 1,337 images
    assert facts["changes_mathematics"] == {"trainer.batch_size": 80}
    assert "auto: 80 images a step, 16 steps an epoch; more would leave fewer than 16 steps an epoch" in shown
    assert "optimizer.lr=0.1 is not scaled" in shown and "warning" not in shown
    assert "batch_size: auto" in (tmp_path / "auto" / "config.yaml").read_text()
    train_run(config(tmp_path, "trainer.batch_size=80"), "number")
    recorded = recorded_execution(tmp_path / "number")
    assert "batch_size_reason" not in recorded and recorded["changes_mathematics"] == {}
    found, expected = weights(tmp_path / "auto"), weights(tmp_path / "number")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_resumed_run_takes_its_number_and_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECORD).write_text('{"batch_size": 200, "other": 1}')
    monkeypatch.setattr(batch_size, "find_rows", never)
    train_run(config(tmp_path, "trainer.batch_size=auto"), "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 1337 // 200
    (tmp_path / "run" / RECORD).unlink()
    with pytest.raises(
        SettingError, match=r"expected the number with which the run began in .*execution\.json, got none"
    ):
        train_run(config(tmp_path, "trainer.batch_size=auto"), "run")


def test_a_large_batch_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECORD).write_text('{"batch_size": 400, "batch_size_reason": "so it was"}')
    train_run(config(tmp_path, "trainer.batch_size=auto"), "run")
    shown = " ".join(capsys.readouterr().out.split())
    assert "auto: 400 images a step, 3 steps an epoch; so it was" in shown
    assert "warning a batch of 400 is other mathematics than the 128 of most recipes" in shown


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("many", "expected an integer of at least 1, or auto, got 'many'"),
        (0, "expected an integer of at least 1, got 0"),
        (2.5, "expected an integer, got 2.5"),
    ],
)
def test_wrong_words(value: object, message: str) -> None:
    with pytest.raises(SettingError, match=r"^trainer\.batch_size: " + message):
        typed(TrainerSettings, {"batch_size": value}, "trainer")
    assert typed(TrainerSettings, {"batch_size": "auto"}, "trainer").batch_size == "auto"


def test_a_recorded_number_must_suit_the_processes_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORD).write_text('{"batch_size": 200}')
    monkeypatch.setattr(distributed, "launched_processes", lambda: 3)
    with pytest.raises(SettingError, match=r"expected a multiple of 3 processes .* got 200"):
        settled(TrainerSettings(batch_size="auto"), None, tmp_path, CPU)


def test_the_cost_of_a_recipe_is_predicted() -> None:
    costs = [
        training_flop(compose("train", ["experiment=quickstart", f"trainer.batch_size={size}"]), (1, 8, 8), 1280)
        for size in ("auto", 128, 100)
    ]
    assert costs[0] == costs[1] > costs[2]  # the last one leaves images over


WORKER = """
import sys, torch
from pathlib import Path
from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.engine.batch_size import Found, settled
device, directory = torch.device("cpu"), Path(sys.argv[1])
with distributed.process_group(device):
    first = settled(TrainerSettings(batch_size="auto"), Found((40, 24)[distributed.rank()], "own"), directory, device)
    distributed.barrier()
    again = settled(TrainerSettings(batch_size="auto"), None, directory, device)
    (directory / f"{distributed.rank()}").write_text(f"{first.batch_size} {again.batch_size}")
"""


@pytest.mark.slow
def test_all_processes_agree_on_the_smallest(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(worker),
        str(tmp_path),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["48 48", "48 48"]
    assert json.loads((tmp_path / RECORD).read_text())["batch_size"] == 48
