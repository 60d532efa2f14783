"""Runs that Slurm or submitit starts: what a process reads of its place, and sweeps as jobs."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from torch.distributed import HashStore

from advtrain import cli
from advtrain.launchers import PORTS, adopt, agreed_name, check_launcher, first_host
from advtrain.types import SettingError

ROOT = Path(__file__).resolve().parents[1]

# The sixth task of `srun --nodes=2 --ntasks-per-node=4`, as the manual page of srun describes its variables.
SIXTH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[009-010]",
    "SLURM_JOB_NODELIST": "gpu[009-010]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "31415",
    "CUDA_VISIBLE_DEVICES": "",  # as submitit sets it without GPUs
}


def adopted(variables: dict[str, str]) -> dict[str, str]:
    """What `adopt` adds or changes."""
    environment = dict(variables)
    adopt(environment)
    return {key: value for key, value in environment.items() if variables.get(key) != value}


def test_a_task_of_srun_knows_its_place() -> None:
    found = adopted(SIXTH)
    port = int(found.pop("MASTER_PORT"))
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu009"}
    assert port in PORTS and port < 32768  # the kernel does not hand it out to others
    first = adopted({**SIXTH, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert (first["MASTER_PORT"], first["RANK"], first["LOCAL_RANK"]) == (str(port), "0", "0")
    for other in ({"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "3"}):  # beside it on the same nodes
        assert adopted({**SIXTH, **other})["MASTER_PORT"] != str(port)


def test_a_task_of_submitit_on_this_machine_knows_its_place() -> None:
    inside = {**SIXTH, **LOCAL}  # started from within a task of Slurm, whose variables are not about it
    for variables in (LOCAL, inside):
        found = adopted(variables)
        assert int(found.pop("MASTER_PORT")) in PORTS
        assert found == {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    "variables",
    (
        {},
        {**SIXTH, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},  # torchrun, below srun
        {**SIXTH, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # one task, in a larger job
        # the script of sbatch: its process has a number, too, but nobody started the others
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**LOCAL, "SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0"},
        {**SIXTH, **LOCAL, "SUBMITIT_LOCAL_NTASKS": "1"} | {"SLURM_STEP_NUM_TASKS": "1"},
    ),
)
def test_all_others_are_left_alone(variables: dict[str, str]) -> None:
    assert adopted(variables) == {}


def test_what_the_user_set_stays() -> None:
    found = adopted({**SIXTH, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


def test_a_task_with_one_gpu_of_its_own_uses_that() -> None:
    assert adopted({**SIXTH, "CUDA_VISIBLE_DEVICES": "3"})["LOCAL_RANK"] == "0"  # --gpus-per-task=1
    with pytest.raises(SettingError, match=r"expected at most .* got task 3 of a node with 2 GPUs; lower"):
        adopted({**SIXTH, "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_LOCALID": "2"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    (
        ("login", "login"),
        ("node1,node2", "node1"),
        ("node[007-012,020],login", "node007"),
        ("a-b[3,7-9]", "a-b3"),
        ("rack[2-3]n[01-04,09].cluster.org", "rack2n01.cluster.org"),
    ),
)
def test_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_launchers_that_cannot_start_anything_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_launcher("basic", sweeping=False, environment={"RANK": "1"})
    check_launcher("submitit_local", sweeping=True, environment={})
    monkeypatch.setattr("advtrain.launchers.which", lambda name: f"/usr/bin/{name}")
    check_launcher("submitit_slurm", sweeping=True, environment={})
    monkeypatch.setattr("advtrain.launchers.which", lambda name: None)
    with pytest.raises(SettingError, match="got one without srun"):
        check_launcher("submitit_slurm", sweeping=True, environment={})
    with pytest.raises(SettingError, match="expected -m beside it"):
        check_launcher("submitit_slurm", sweeping=False, environment={})
    with pytest.raises(SettingError, match="got process 1 of several; start it without torchrun"):
        check_launcher("submitit_slurm", sweeping=True, environment={"RANK": "1"})
    monkeypatch.setattr("advtrain.launchers.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'advtrain\[slurm\]'"):
        check_launcher("submitit_local", sweeping=True, environment={})


def test_a_second_start_meets_nothing_of_the_first() -> None:
    """torchrun's store outlives the processes; one of the first start dies after it has asked, before the answer."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=30))
    store.set("advtrain/asks/2", "of the dead one")
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            found = set(pool.map(lambda rank: agreed_name(store, rank, 3, patience=30), range(3)))
        assert len(found) == 1
        names += found
    assert len(set(names)) == 2
    with pytest.raises(TimeoutError, match="expected 3 processes, got 1 within 0 s"):
        agreed_name(store, 0, 3, patience=0)


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "advtrain", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "expected"),
    (
        (("hydra/launcher=submitit_local", "seed=1"), "expected -m beside it"),
        (("-m", "name=one", "seed=1,2"), "expected a run directory of its own for each point of a sweep, got one for"),
        # what is no part of a run is no part of its name
        (("-m", "trainer.device=cpu,auto", "hydra/launcher=submitit_local"), "seed0 for two of them"),
        (("-m", "attack.steps=1,0", "hydra/launcher=submitit_local"), "attack.steps: expected an integer of at least"),
    ),
)
def test_sweeps_are_refused_before_the_first_point_starts(
    tmp_path: Path,
    words: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def started(*arguments: object) -> None:
        raise AssertionError("Hydra was asked to start it")

    monkeypatch.setattr(cli, "_hydra_main", started)
    monkeypatch.setattr(sys, "argv", ["advtrain", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.train()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("advtrain: error: ") and expected in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_of_jobs_trains_and_names_the_point_that_failed(tmp_path: Path) -> None:
    """One point trains; the directory of the other one belongs to another run, which only its job can see."""
    words = ["seed=1,2", "experiment=quickstart", "model.width=4", "model.hidden=8", "eval=none", "attack.steps=1"]
    words += ["trainer.epochs=1", "trainer.batch_size=256", "trainer.validation.n_examples=50", "trainer.threads=1"]
    from advtrain.composition import compose_chosen
    from advtrain.engine.run_directory import run_name

    def folder(seed: int) -> Path:
        point = [f"seed={seed}", *words[1:]]
        return tmp_path / "runs" / run_name(point, compose_chosen("train", point)[1], seed)

    folder(2).mkdir(parents=True)
    (folder(2) / "config.yaml").write_text("seed: 3\n")
    done = run(tmp_path, "-m", "hydra/launcher=submitit_local", *words)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("advtrain: error: a point of the sweep failed: ") and str(folder(2).name) in line
    assert "seed (there 3, now 2)" in line and "logs are in" in line

    assert (folder(1) / "checkpoints" / "last.pt").is_file()
    assert not (folder(2) / "checkpoints").exists()
    command = yaml.safe_load((folder(1) / "config.yaml").read_text())["provenance"]["command"]
    assert command.startswith("advtrain -m hydra/launcher=submitit_local seed=1,2 experiment=quickstart")
    logs = sorted((tmp_path / "runs" / ".sweep" / ".submitit").glob("*/*_log.out"))
    assert len(logs) == 2 and any("trained 1 epochs" in log.read_text() for log in logs)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


# Stands for python: writes down its words, ends as told, or waits and answers TERM as a run does.
PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$LOG"
trap 'echo saved >> "$LOG"; exit 143' TERM
[[ -n ${ENDS_WITH:-} ]] && exit "$ENDS_WITH"
sleep 0.2 # for the script to set its own traps
echo ready >> "$LOG"
while true; do sleep 0.02; done
"""
SRUN = """#!/usr/bin/env bash
echo "srun $1" >> "$LOG"
shift
echo $$ > "$LOG.srun"
exec "$@"
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$LOG"
kill -TERM "$(cat "$LOG.srun")"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo node007; echo node008; else echo "scontrol $*" >> "$LOG"; fi
"""
JOB = {
    "SLURM_JOB_ID": "42",
    "SLURM_JOB_NODELIST": "node[007-008]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Variables of a job, and a PATH on which stand-ins for Slurm's commands and for python come first."""
    for name, text in {"python": PYTHON, "srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {**os.environ, **JOB, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}


@pytest.mark.parametrize("script", ("slurm_one_node.sbatch", "slurm_many_nodes.sbatch"))
@pytest.mark.parametrize(
    ("number", "ends_with", "code", "requeued"),
    (
        (None, "0", 0, False),
        (None, "2", 2, False),  # a setting that cannot be used must not come again and again
        (signal.SIGUSR1, "", 143, True),  # the time limit is near
        (signal.SIGTERM, "", 143, False),  # scancel, or a preemption, which requeues by itself
    ),
)
def test_a_job_saves_and_goes_into_the_queue_again(
    cluster: dict[str, str], script: str, number: signal.Signals | None, ends_with: str, code: int, requeued: bool
) -> None:
    log = Path(cluster["LOG"])
    command = ["bash", str(ROOT / "scripts" / script), "loss=trades", "a=[b, c]"]
    with subprocess.Popen(command, env={**cluster, "ENDS_WITH": ends_with}) as process:
        deadline = time.monotonic() + 60
        while number is not None and not (log.exists() and "ready" in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        if number is not None:
            process.send_signal(number)
        assert process.wait(timeout=60) == code
    lines = log.read_text().splitlines()
    assert ("scontrol requeue 42" in lines) == requeued
    assert ("saved" in lines) == (number is not None)
    words = next(line for line in lines if line.startswith("-m torch.distributed.run"))
    assert words.endswith("--max-restarts=3 -m advtrain loss=trades a=[b, c]") or script == "slurm_many_nodes.sbatch"
    if script == "slurm_many_nodes.sbatch":
        assert "srun --kill-on-bad-exit=1" in lines
        assert "--nnodes=2 --nproc-per-node=4" in words and "--rdzv-endpoint=node007:12042 --rdzv-id=42-0" in words
        assert words.endswith("-m advtrain loss=trades a=[b, c]")


def test_the_sweep_script_sets_what_the_launcher_knows(cluster: dict[str, str]) -> None:
    """Its words are keys of the launcher, and reach Hydra as given."""
    from advtrain.composition import compose

    variables = {**cluster, "GPUS": "4", "ENDS_WITH": "0"}
    subprocess.run([ROOT / "scripts" / "slurm_sweep.sh", "seed=0,1"], env=variables, check=True)
    words = Path(cluster["LOG"]).read_text().split()
    assert words[:3] == ["-m", "advtrain", "-m"] and words[-1] == "seed=0,1"
    assert "hydra.launcher.tasks_per_node=4" in words
    compose("train", [*words[3:-1], "seed=0"])
    with pytest.raises(SettingError):
        compose("train", [*words[3:-1], "hydra.launcher.no_such_key=1"])
