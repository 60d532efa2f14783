"""Activation checkpointing by the trainer, bytes counted as they are allocated, and what the host has left."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.config import TrainerSettings
from advtrain.engine import AWP, EMA, Trainer
from advtrain.engine.memory import LiveBytes, host_memory
from advtrain.losses import TRADES
from advtrain.models import SmallCNN, SmallPreActResNet
from advtrain.types import SettingError
from tests.engine.toy import trainer

GIB = 2**30


def run(directory: Path, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    model = SmallPreActResNet(num_classes=4, width=4, blocks=1)
    settings = {"loss": TRADES(), "averaging": EMA(), "weight_perturbation": AWP(), "model": model}
    return trainer(directory, **(settings | changes))


@pytest.mark.parametrize("attack_batchnorm", ["eval", "train"])
def test_training_is_the_same_to_the_bit(attack_batchnorm: str, tmp_path: Path) -> None:
    """With AWP, an average and both modes of the attack: weights, statistics, average and log."""
    states, losses, computed = [], [], []
    for flag in (False, True):
        ours = run(tmp_path / str(flag), activation_checkpointing=flag, attack_batchnorm=attack_batchnorm)
        calls: list[int] = []
        ours.model.stages[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        ours.fit()
        states.append({**ours.model.state_dict(), **{f"average {n}": t for n, t in ours.averaged.state_dict().items()}})
        records = map(json.loads, (tmp_path / str(flag) / "metrics.jsonl").read_text().splitlines())
        losses.append([r.get("loss", r.get("validation_robust")) for r in records])
        computed.append(len(calls))
        assert type(ours.averaged) is SmallPreActResNet
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert losses[0] == losses[1]
    # Of each step: natural logits once, two attack steps, and twice both images; all but the first are followed by a
    # backward pass, which computes the block again.
    assert computed == [8 * (1 + 2 + 4), 8 * (1 + 2 * 2 + 2 * 4)]


def test_a_step_takes_less_memory(tmp_path: Path) -> None:
    peaks = []
    for flag in (False, True):
        model = SmallPreActResNet(num_classes=4, width=4, blocks=4)
        ours = run(tmp_path / str(flag), activation_checkpointing=flag, model=model, batch_size=96)
        batch = next(iter(ours.train_loader.epoch(1)))
        ours.step(batch, ours.parts.attack, ours.parts.weight_perturbation, 1, 0)
        with LiveBytes() as memory:
            ours.step(batch, ours.parts.attack, ours.parts.weight_perturbation, 1, 1)
        peaks.append(memory.peak)
    assert peaks[1] < 0.6 * peaks[0]


def test_a_model_without_blocks_is_refused_by_the_trainers_setting(tmp_path: Path) -> None:
    model = SmallCNN(num_classes=4, in_channels=3, image_size=6)
    with pytest.raises(SettingError, match=r"^trainer\.activation_checkpointing: expected a model with .* blocks"):
        trainer(tmp_path, model, activation_checkpointing=True)


@pytest.mark.parametrize("setting", [{"compile": "step"}, {"cuda_graph": True}])
def test_what_cannot_be_checkpointed_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"activation_checkpointing=true with trainer\.c.*: expected compile"):
        TrainerSettings(activation_checkpointing=True, **setting)
    TrainerSettings(activation_checkpointing=True, compile="model", cuda_graph=False)


# --- bytes ---


def test_bytes_by_hand() -> None:
    old = torch.ones(1000)
    with LiveBytes() as memory:
        view = old.view(10, 100).t().detach()  # no memory of its own
        old.add_(1)
        assert (memory.live, memory.peak) == (0, 0)
        a = old * 2
        b = a.to(torch.float64)
        assert (memory.live, memory.peak) == (4000 + 8000, 12000)
        del a
        assert (memory.live, memory.peak) == (8000, 12000)
        c = b[:10] + 1
        assert (memory.live, memory.peak) == (8080, 12000)
    del b, c, view
    assert memory.live == 0


def test_bytes_of_a_backward_pass_by_hand() -> None:
    """A chain of two sines keeps two inputs; its backward pass needs a gradient or two beside them."""
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as memory:
        y = x.sin().sin().sum()
        assert memory.live == 4000 + 4  # the second sine's own output is freed, the first one's is kept
        y.backward()
    assert x.grad is not None
    assert memory.live == 4000 + 4
    assert 8000 < memory.peak <= 4 * 4000 + 8


# --- the host ---


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {32 * 2**20} kB\nMemFree: 5 kB\nMemAvailable: {16 * 2**20} kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        # version 2: 8 GiB, of which 3 are used, 1 of them for files
        (
            {
                "proc/self/cgroup": "0::/jobs/7\n",
                "sys/fs/cgroup/jobs/7/memory.max": f"{8 * GIB}\n",
                "sys/fs/cgroup/jobs/7/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/jobs/7/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            6,
        ),
        # the limit of a group above binds, too; "max" is none
        (
            {
                "proc/self/cgroup": "0::/jobs/7\n",
                "sys/fs/cgroup/jobs/7/memory.max": "max\n",
                "sys/fs/cgroup/jobs/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/jobs/memory.current": f"{GIB}\n",
                "sys/fs/cgroup/jobs/memory.stat": "inactive_file 0\n",
            },
            3,
        ),
        # version 1, whose path is that of the host: the top group is the container's
        (
            {
                "proc/self/cgroup": "9:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"inactive_file 3\ntotal_inactive_file {GIB // 2}\n",
            },
            1.5,
        ),
    ],
    ids=["no limit", "version 2", "above", "version 1"],
)
def test_what_the_host_has_left(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    assert host_memory(write(tmp_path, MEMINFO | files)) == expected * GIB


def test_this_host_has_something() -> None:
    assert 2**20 < host_memory() < 2**50
