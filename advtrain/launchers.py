"""Who started this process, as which of how many.

torchrun says so in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, and the rest of the package reads those.
Slurm's srun and submitit say so in variables of their own, which `adopt` translates.
"""

import os
import re
import time
import uuid
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from shutil import which
from typing import Any, NamedTuple, Protocol

from advtrain.types import SettingError

PORTS = range(12000, 32000)  # below 32768, from where Linux hands out ports by itself


class Task(NamedTuple):
    """One of several processes that belong together.

    Attributes:
        rank: 0 … tasks - 1.
        tasks: how many there are.
        local_rank: its number on its node.
        address: of the node with rank 0.
        name: digits and points, the same for all of them and for no others on these nodes.
    """

    rank: int
    tasks: int
    local_rank: int
    address: str
    name: str


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives a task of Slurm or submitit the variables that torchrun would have given it; leaves all others alone.

    A process under torchrun has them. A task that is alone needs none, nor does a script of sbatch or a shell of
    salloc, which know of the tasks of their job but are none of them.

    Raises:
        SettingError: the node has fewer GPUs than tasks.
    """
    if "RANK" in environment:
        return
    task = submitit_local_task(environment) or slurm_task(environment)
    if task is None:
        return
    number = int(re.sub(r"\D", "", task.name))
    environment.setdefault("MASTER_ADDR", task.address)
    environment.setdefault("MASTER_PORT", str(PORTS[number % len(PORTS)]))
    environment.update(RANK=str(task.rank), WORLD_SIZE=str(task.tasks), LOCAL_RANK=str(_gpu(task, environment)))


def slurm_task(environment: Mapping[str, str]) -> Task | None:
    """What srun says; None where it started a single process or did not start this one."""
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))  # SLURM_NTASKS is there in a script of sbatch, too
    if tasks == 1:
        return None
    return Task(
        rank=int(environment["SLURM_PROCID"]),
        tasks=tasks,
        local_rank=int(environment["SLURM_LOCALID"]),
        address=first_host(environment["SLURM_STEP_NODELIST"]),
        name=f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}",
    )


def submitit_local_task(environment: Mapping[str, str]) -> Task | None:
    """What submitit's local executor says; its jobs on Slurm are started by srun."""
    tasks = int(environment.get("SUBMITIT_LOCAL_NTASKS", "1"))
    if environment.get("SUBMITIT_EXECUTOR") != "local" or tasks == 1:
        return None
    return Task(
        rank=int(environment["SUBMITIT_LOCAL_GLOBALID"]),
        tasks=tasks,
        local_rank=int(environment["SUBMITIT_LOCAL_LOCALID"]),
        address="127.0.0.1",
        name=environment["SUBMITIT_LOCAL_JOB_ID"],
    )


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: node007 of `node[007-012,020],login1`."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]  # at commas outside of brackets
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def check_launcher(name: str, *, sweeping: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Confirms that Hydra's launcher of that name can start the points of a sweep.

    Raises:
        SettingError: it cannot.
    """
    if name == "basic":
        return
    if not sweeping:
        raise SettingError(
            f"hydra/launcher={name}: expected -m beside it, since Hydra starts a run without it right here, got none; "
            "add -m (a single run is a sweep of one point)"
        )
    if "RANK" in environment:
        raise SettingError(
            f"hydra/launcher={name}: expected to be started once, since it starts the processes of its jobs itself, "
            f"got process {environment['RANK']} of several; start it without torchrun or srun"
        )
    if name.startswith("submitit") and find_spec("submitit") is None:
        raise SettingError(
            f"hydra/launcher={name}: expected the package hydra-submitit-launcher, got none; "
            "pip install 'advtrain[slurm]'"
        )
    if name == "submitit_slurm" and which("srun") is None:
        raise SettingError(
            "hydra/launcher=submitit_slurm: expected a machine that submits to Slurm, got one without srun; go to one, "
            "or try hydra/launcher=submitit_local"
        )


class Store(Protocol):
    """What several processes write to and read from; see torch.distributed.Store."""

    def set(self, key: str, value: str, /) -> Any: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...


def agreed_name(store: Store, rank: int, tasks: int, patience: float) -> str:
    """A name that all processes of this start have and no earlier start had, for a part of `store` of their own.

    torchrun keeps its store when it starts its processes again. What the dead ones wrote there is still to be read:
    their addresses, to which the new ones would connect, and their counts. Nor does it number its attempts alike on all
    nodes. So every process asks under a name never used before, and the main one answers with a name of that kind.

    Args:
        store: what they share. `get` waits for a key.
        rank: of this process.
        tasks: how many there are.
        patience: seconds that the main process waits for the others.

    Raises:
        TimeoutError: some process did not come.
    """
    own, start = uuid.uuid4().hex, time.monotonic()
    if rank > 0:
        store.set(f"advtrain/asks/{rank}", own)
        name = store.get(f"advtrain/answer/{own}").decode()
        store.add(f"advtrain/come/{name}", 1)
        return name
    answered: set[bytes] = set()
    while (come := 1 + store.add(f"advtrain/come/{own}", 0)) < tasks:
        if time.monotonic() - start > patience:
            raise TimeoutError(f"expected {tasks} processes, got {come} within {patience:.0f} s; did one not start?")
        for key in (f"advtrain/asks/{other}" for other in range(1, tasks)):
            if store.check([key]) and (asking := store.get(key)) not in answered:  # a dead one's question does no harm
                store.set(f"advtrain/answer/{asking.decode()}", own)
                answered.add(asking)
        time.sleep(0.02)
    return own


def _gpu(task: Task, environment: Mapping[str, str]) -> int:
    """The number of the task's GPU among those it sees: all of its node, or by --gpus-per-task its own alone."""
    visible = [word for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    if len(visible) == 1:
        return 0
    if visible and task.local_rank >= len(visible):
        raise SettingError(
            f"expected at most as many tasks on a node as GPUs, got task {task.local_rank + 1} of a node with "
            f"{len(visible)} GPUs; lower --ntasks-per-node (tasks_per_node of submitit) or ask for more GPUs"
        )
    return task.local_rank
