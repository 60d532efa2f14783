"""Several processes of which one dies: torchrun starts them again, and the run ends like an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from advtrain import distributed
from advtrain.engine import checkpoints, interrupts
from advtrain.engine.interrupts import Interrupted, StopRequest
from tests.engine.test_resume import same

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "advtrain"]
STEPS = 21  # of an epoch: 1,337 images by 64
TINY = [
    "experiment=quickstart",
    "model.width=4",
    "model.hidden=8",
    "averaging=ema",
    "eval=none",
    "name=run",
    "attack.steps=1",
    "trainer.epochs=3",
    "trainer.batch_size=64",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.validation.every=1",
    "trainer.validation.steps=1",
    "trainer.validation.n_examples=20",
]


@contextmanager
def started(folder: Path, command: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nothing is left in the end, whatever the test meets."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=30)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors[-3000:]
    return output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be disturbed"
        time.sleep(0.005)


def worker(agent: int, rank: int) -> int:
    """The process id of a worker of torchrun, from what Linux tells of its children."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"torchrun has no worker of rank {rank}")


def slurm_variables(rank: int) -> dict[str, str]:
    """What `srun -n 2` tells its tasks on one node."""
    words = {"JOB_ID": os.getpid(), "STEP_ID": 0, "STEP_NUM_TASKS": 2, "PROCID": rank, "LOCALID": rank}
    return {f"SLURM_{key}": str(value) for key, value in words.items()} | {"SLURM_STEP_NODELIST": "localhost"}


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    """What two tasks of srun train undisturbed, torchrun trains with a worker killed in the second epoch."""
    plain = ["-m", "advtrain", *TINY]
    with (
        started(tmp_path / "undisturbed", plain, **slurm_variables(0)) as main,
        started(tmp_path / "undisturbed", plain, **slurm_variables(1)) as other,
    ):
        assert "cpu × 2" in finish(main)
        assert finish(other) == ""  # only the main process talks
    run = tmp_path / "disturbed" / "runs" / "run"
    metrics = run / "metrics.jsonl"
    with started(tmp_path / "disturbed", [*TORCHRUN, *TINY]) as process:
        wait_for(lambda: metrics.exists() and metrics.read_text().count('"ce"') > STEPS + 5, process)
        os.kill(worker(process.pid, rank=1), signal.SIGKILL)
        output = finish(process)
    assert output.count("resuming") == 1 and "after epoch 1, step 0" in output
    for name in ("last.pt", "best.pt"):
        expected = checkpoints.load(tmp_path / "undisturbed" / "runs" / "run" / "checkpoints" / name)
        assert same(checkpoints.load(run / "checkpoints" / name), expected), name


def test_a_signal_that_is_passed_on_is_one_request() -> None:
    """Slurm and the terminal signal torchrun and its workers; torchrun signals the workers once more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        request = StopRequest(torch.device("cpu"))
        with request.listening():
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert request.must_stop(3) and request.number == number


def test_a_person_who_asks_twice_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    request = StopRequest(torch.device("cpu"))
    with request.listening():
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(interrupts, "ECHO", -1.0)  # as if time had passed
        signal.raise_signal(signal.SIGTERM)  # says the same, and kills nothing
        request.number = signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("main", (True, False))
def test_submitit_takes_over_once_the_state_is_saved(monkeypatch: pytest.MonkeyPatch, main: bool) -> None:
    """Its handler of SIGUSR2 puts the job into the queue again; SIGTERM, which comes along, must not be in its way."""
    happened: list[str] = []
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    monkeypatch.setattr(interrupts.time, "sleep", lambda seconds: happened.append("waited for the main process"))
    old = signal.signal(signal.SIGUSR2, lambda number, frame: happened.append(f"requeued on {number:d}"))
    try:
        request = StopRequest(torch.device("cpu"))
        with pytest.raises(Interrupted), request.listening():
            for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
                signal.raise_signal(number)
            assert request.must_stop(1)
            happened.append("saved")
            raise Interrupted(request.number)
    finally:
        signal.signal(signal.SIGUSR2, old)
    waited = [] if main else ["waited for the main process"]
    assert happened == ["saved", f"requeued on {signal.SIGUSR2:d}", *waited]


def test_what_others_ignore_or_handle_outside_of_python_is_left_alone() -> None:
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        request = StopRequest(torch.device("cpu"))
        with request.listening():
            signal.raise_signal(signal.SIGUSR1)
        assert not request.must_stop(1)
    finally:
        signal.signal(signal.SIGUSR1, old)


@pytest.mark.parametrize(
    ("seconds", "asked"),
    (
        (0.01, [1, 11, 21]),  # every ten steps
        (1.0, [1, 6, 11, 16, 21, 26]),  # every five seconds
        (60.0, list(range(1, 31))),  # every step: torchrun waits for 30 seconds
    ),
)
def test_processes_agree_about_every_five_seconds(
    monkeypatch: pytest.MonkeyPatch, seconds: float, asked: list[int]
) -> None:
    clock, steps = [0.0], []
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_max", lambda tensor: (steps.append(step), tensor)[1])
    request = StopRequest(torch.device("cpu"))
    for step in range(1, 31):
        clock[0] += seconds
        assert not request.must_stop(step)
    assert steps == asked
    for step in (1, 2):  # the next epoch: also one of fewer steps than lie between two agreements
        request.must_stop(step)
    assert steps[len(asked)] == 1
