"""A model spread over processes trains as one that each of them holds, and its checkpoints are the same files."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

from advtrain.config import TrainerSettings
from advtrain.engine import AWP, EMA, checkpoints
from advtrain.engine.sharding import REPLICATED, sharding_named, state_bytes
from advtrain.models import DMWideResNet, PreActResNet, WideResNet
from advtrain.models.gradient_checkpointing import blocks_of
from advtrain.types import SettingError
from tests.engine.toy import trainer

WORKER = Path(__file__).with_name("sharding_worker.py")
CPU = torch.device("cpu")


def network(norm: bool = True) -> nn.Module:
    """Two blocks of 5 channels."""
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh()) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(*blocks), nn.Flatten(), nn.Linear(5 * 4 * 4, 4))


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process alone, as if torchrun had started it: a part is the whole, but all the code of parts runs."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def difference(one: Any, other: Any, where: str = "") -> float:
    """The largest difference between two checkpoints, which must have the same keys, types and shapes."""
    if isinstance(one, dict):
        assert isinstance(other, dict) and list(one) == list(other), where
        return max([difference(one[key], other[key], f"{where}.{key}") for key in one], default=0)
    if isinstance(one, list):
        return max([difference(a, b, where) for a, b in zip(one, other, strict=True)], default=0)
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape and one.dtype == other.dtype, where
        return float((one - other).abs().max()) if one.numel() else 0
    return 0 if where.endswith(".seconds") else abs(one - other) if isinstance(one, float) else float(one != other)


def checkpoint(directory: Path, file: str = "last.pt") -> dict[str, Any]:
    return checkpoints.load(directory / "checkpoints" / file)  # wherever its tensors were


def curve(directory: Path) -> list[float]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes of sharding_worker.py have filled."""
    folder = tmp_path_factory.mktemp("sharding")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ("none", "fsdp"))
def test_two_processes_equal_one(sharding: str, runs: Path) -> None:
    """Losses, weights, average, optimiser, class prior, accuracies: with AWP, SAM, ASAM, clipping, accumulation."""
    names = sorted(folder.name for folder in (runs / "one").iterdir())
    assert names == ["checkpointed", "free", "gkl", "ikl", "ikl_kd", "norm", "pgd_at", "trades"]
    for name in names:
        one, two = runs / "one" / name, runs / sharding / name
        assert len(curve(one)) >= 4 and len(set(curve(one))) == len(curve(one))  # a curve, not a constant
        assert curve(two) == pytest.approx(curve(one), rel=1e-9), name
        for file in ("last.pt", "best.pt"):
            assert difference(checkpoint(one, file), checkpoint(two, file)) < 1e-11, (name, file)


@pytest.mark.slow
def test_parts_and_replicas_do_the_same(runs: Path) -> None:
    """Also where two processes give other numbers than one: BatchNorm without synchronisation, bfloat16."""
    names = {folder.name for folder in (runs / "none").iterdir()}
    assert names == {folder.name for folder in (runs / "fsdp").iterdir()} >= {"own-norm", "bf16"}
    for name in names:
        bound = 1e-5 if name == "bf16" else 1e-11  # its weights are float32
        assert difference(checkpoint(runs / "none" / name), checkpoint(runs / "fsdp" / name)) < bound, name
    # Two processes with BatchNorm of their own are not one: the comparison above has something to tell apart.
    assert difference(checkpoint(runs / "none" / "own-norm"), checkpoint(runs / "none" / "norm")) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("way", ("one-fsdp", "fsdp-one"))
def test_a_run_resumes_with_other_processes_and_sharding(way: str, runs: Path) -> None:
    """Two epochs in one way and two in the other are four in one."""
    straight, changed = runs / "onwards" / "one" / "ikl", runs / "onwards" / way / "ikl"
    assert len(curve(changed)) == len(curve(straight)) == 8
    assert curve(changed) == pytest.approx(curve(straight), rel=1e-9)
    assert difference(checkpoint(straight), checkpoint(changed)) < 1e-11


@pytest.mark.slow
def test_each_process_holds_its_part(runs: Path) -> None:
    """⌈rows/2⌉ of each tensor for the process with the most: little more than half, as 5 and 135 numbers are odd."""
    notes = [json.loads((runs / f"notes-{rank}.json").read_text()) for rank in (0, 1)]
    for name in ("pgd_at", "trades", "ikl"):
        replicated, sharded = (notes[0][f"{sharding} {name}"] for sharding in ("none", "fsdp"))
        assert replicated["held"] == replicated["expected"] and sharded["held"] == sharded["expected"]
        assert notes[1][f"fsdp {name}"]["held"] <= sharded["held"]
        assert all(0.5 <= part / all_ < 0.6 for part, all_ in zip(sharded["held"], replicated["held"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "forwards"), (("pgd_at", 1), ("trades", 2)))
def test_what_a_step_sends(name: str, forwards: int, runs: Path) -> None:
    """Three groups: two blocks and what is in no block. Three pieces of the batch, and a second time for AWP or SAM.

    The attacks of all pieces gather each group once, whatever their steps. A forward pass of the loss gathers the
    blocks, and so does its backward pass; the rest is gathered once for both. Gradients are cut up in the last piece
    only: those of a block once for each forward pass through it, those of the rest once.
    """
    blocks, pieces, rounds = 2, 3, 2
    messages = json.loads((runs / "notes-0.json").read_text())[f"messages {name}"]
    attack, piece = blocks + 1, 2 * forwards * blocks + 1
    assert messages.count("all_gather") == attack + rounds * pieces * piece
    assert messages.count("reduce_scatter") == rounds * (forwards * blocks + 1)
    assert "reduce_scatter" not in messages[: attack + (pieces - 1) * piece]


@pytest.mark.slow
def test_the_command_line_trains_a_sharded_wide_resnet(tmp_path: Path) -> None:
    """By two processes; evaluation and bundle follow, and the plain model takes the checkpoint up."""
    generator = np.random.default_rng(0)
    for name, n in (("train", 64), ("test", 16)):
        images = generator.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", image=images, label=np.arange(n) % 4)
    choices = ["data=npz", "data.train=train.npz", "data.test=test.npz", "data.num_classes=4"]
    choices.append("data.validation_size=16")
    model = ["model=wrn_16_2", "model.depth=10", "loss=trades", "weight_perturbation=awp", "averaging=ema"]
    size = ["trainer.batch_size=16", "trainer.device=cpu", "trainer.validation.steps=1", "eval=clean_pgd"]
    size += ["attack.steps=2", "trainer.epochs=1", "weight_perturbation.start_epoch=1", "name=wrn"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "advtrain"]
    done = subprocess.run(
        [sys.executable, *launcher, *choices, *model, *size, "trainer.sharding=fsdp"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "model     WideResNet" in done.stdout and "on cpu × 2 (fsdp)" in done.stdout
    run = tmp_path / "runs" / "wrn"
    assert (run / "evaluation.json").is_file()
    assert (run / "export" / "SHA256SUMS").is_file()
    WideResNet(num_classes=4, depth=10, widen_factor=2).load_state_dict(checkpoint(run)["model"])


@pytest.mark.usefixtures("group")
def test_a_sharded_run_leaves_the_files_of_a_replicated_one(tmp_path: Path) -> None:
    """Within one process: AWP, EMA, clipping, accumulation, the class prior, and a resume of one by the other."""
    compare_in_one_process(tmp_path, "cpu", 1e-12)


@pytest.mark.gpu
def test_a_sharded_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same under NCCL, whose streams a CPU does not have."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    store, gpu = dist.TCPStore("localhost", 0, 1, is_master=True), torch.device("cuda", 0)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=gpu)
    try:
        compare_in_one_process(tmp_path, "cuda", 1e-6)
    finally:
        dist.destroy_process_group()


def compare_in_one_process(directory: Path, device: str, bound: float) -> None:
    """Trains an epoch replicated and another one sharded, and the other way around."""
    settings: dict[str, Any] = {"clip_norm": 0.5, "accumulation": 2, "batch_size": 48, "device": device}
    for epochs, shardings in ((1, ("none", "fsdp")), (2, ("fsdp", "none"))):
        for place, sharding in zip(("a", "b"), shardings, strict=True):
            parts = {"weight_perturbation": AWP(gamma=0.05), "averaging": EMA(decay=0.8)}
            training = trainer(directory / place, network(), epochs=epochs, sharding=sharding, **settings, **parts)
            training.fit()
            assert any(hasattr(p, "to_local") for p in training.model.parameters()) is (sharding == "fsdp")
        assert difference(checkpoint(directory / "a"), checkpoint(directory / "b")) < bound


@pytest.mark.usefixtures("group")
def test_a_parameter_without_dimensions_is_refused(tmp_path: Path) -> None:
    model = network()
    model.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(SettingError, match="got the number temperature in Sequential"):
        trainer(tmp_path, model, sharding="fsdp", device="cpu")


def test_one_process_without_torchrun_holds_everything() -> None:
    assert sharding_named("fsdp", CPU) is REPLICATED
    assert sharding_named("none", CPU) is REPLICATED


@pytest.mark.parametrize(
    ("choice", "words"),
    (
        ({"compile": "step"}, ("trainer.compile=step", "trainer.compile=off")),
        ({"compile": "auto"}, ("trainer.compile=auto", "trainer.compile=off")),
        ({"cuda_graph": True}, ("trainer.cuda_graph=true", "trainer.cuda_graph=false")),
        ({"batch_size": "auto"}, ("trainer.batch_size=auto", "trainer.batch_size=128")),
    ),
)
def test_what_does_not_go_together_is_refused_in_one_line(choice: dict[str, Any], words: tuple[str, ...]) -> None:
    TrainerSettings(**choice)
    TrainerSettings(sharding="fsdp")
    with pytest.raises(SettingError) as error:
        TrainerSettings(sharding="fsdp", **choice)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in (*words, "with trainer.sharding=fsdp", "sharding=none"))


def test_groups_are_the_residual_blocks() -> None:
    with torch.device("meta"):
        assert len(blocks_of(WideResNet(depth=70, widen_factor=16))) == 3 * 11
        assert len(blocks_of(DMWideResNet(depth=28, width=10))) == 3 * 4
        assert len(blocks_of(PreActResNet(depth=18))) == 8


def test_state_bytes() -> None:
    """(7, 3) and (7,) float32 in halves of 4 rows; two moments; an average."""
    layer = nn.Linear(3, 7)
    whole, part = state_bytes(layer), state_bytes(layer, processes=2, moments=2)
    assert (whole.weights, whole.gradients, whole.optimizer, whole.average) == (112,) * 4
    assert whole.gathered == 0 and whole.held == 448
    assert (part.weights, part.gradients, part.optimizer, part.average) == (64, 64, 128, 64)
    assert part.gathered == 112 and part.held == 320
    assert state_bytes(layer, averaged=False).average == 0
    with torch.device("meta"):
        model = WideResNet(depth=10, widen_factor=2)
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    assert state_bytes(model).weights == 4 * parameters
    assert parameters / 8 * 4 <= state_bytes(model, processes=8).weights < 1.1 * parameters / 8 * 4
