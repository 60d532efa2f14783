"""What must hold on a GPU as on a CPU. The same tests run on both; those of the GPU wait for one (`-m gpu`, 2 minutes).

The reference is float64 on the CPU, or the run that nobody disturbed.
"""

import functools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import PGD, ascent
from advtrain.data.base import Batch
from advtrain.engine import NoPerturbation, checkpoints
from advtrain.engine.execution import recorded_execution
from advtrain.engine.numerics import Numerics
from advtrain.losses import IKL, PGDAT, TRADES, Loss
from tests.engine.test_resume import TINY, finish, same, start, stopped_after
from tests.engine.toy import LOSSES, network, trainer, weights_of

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
on_both = pytest.mark.parametrize("device", ("cpu", GPU))
on_both_slowly = pytest.mark.parametrize("device", (pytest.param("cpu", marks=pytest.mark.slow), GPU), scope="module")

# Attacked with the cross-entropy from the images themselves: KL has no gradient there, and random starts are drawn on
# the device, by a generator of its own. Steps of L2 follow the gradient smoothly; signs would make pixels of rounding.
STEPS = {
    "pgd_at": lambda: PGDAT(),
    "trades": lambda: TRADES(inner="ce"),
    "ikl": lambda: IKL(num_classes=4, inner="ce"),
    "ikl_kd": LOSSES["ikl_kd"],
}
SMOOTH = PGD(norm="l2", eps=0.5, steps=3, step_size=0.2, init="none")


def images(device: str, dtype: torch.dtype, count: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, others near them, and labels, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    x_adv = (x + 0.1 * (noise - 0.5)).clamp(0, 1)
    return x.to(device, dtype), x_adv.to(device, dtype), (torch.arange(count) % 4).to(device)


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    found = found.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def weight_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def on(loss: Loss, device: str, dtype: torch.dtype = torch.float32) -> Loss:
    """The loss there, and the teacher that it may hold, as a trainer puts them."""
    if loss.teacher is not None:
        loss.teacher.to(device, dtype)
    return loss.to(device)


def losses_and_gradients(name: str, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the gradient of what the attack maximises at fixed images, and that of the weights."""
    x, x_adv, y = images(device, dtype)
    model, loss = network(norm=True).to(device, dtype), on(LOSSES[name](), device, dtype)
    with Numerics(torch.device(device), dtype=dtype).products():
        model.eval()
        gradient = ascent.value_and_gradient(loss.inner(model, x, y), x_adv)[1]
        model.train()
        total, _ = loss.outer(model, x, x_adv, y)
        total.backward()
    return total, gradient, weight_gradient(model)


@on_both
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_float64(name: str, device: str) -> None:
    expected = losses_and_gradients(name, "cpu", torch.float64)
    found = losses_and_gradients(name, device, torch.float32)
    assert [tensor.device.type for tensor in found] == [device] * 3
    for one, other, allowed in zip(found, expected, (1e-5, 1e-4, 1e-4), strict=True):  # TF32 would be 1e-3 away
        assert distance(one, other.detach()) < allowed


def trained(name: str, directory: Path, device: str, precision: str) -> Tensor:
    """The weights after three steps, in one vector."""
    run = trainer(directory, network(norm=True), device=device, precision=precision, loss=STEPS[name](), attack=SMOOTH)
    x, _, y = images(device, torch.float64 if precision == "fp64" else torch.float32, count=24)
    with run.numerics.products():
        for step in range(3):
            run.step(Batch(x, y, slice(0, 24)), SMOOTH, NoPerturbation(), 1, step)
    return torch.cat([weights.flatten().double().cpu() for weights in weights_of(run.model)])


@on_both
@pytest.mark.parametrize("name", STEPS)
def test_training_steps_are_those_of_float64(name: str, device: str, tmp_path: Path) -> None:
    """Fused updates, layout and all."""
    expected = trained(name, tmp_path / "reference", "cpu", "fp64")
    before = torch.cat([weights.flatten().double() for weights in weights_of(network(norm=True))])
    assert distance(before, expected) > 1e-3  # the weights moved
    assert distance(trained(name, tmp_path / "found", device, "fp32"), expected) < 1e-5


@on_both
@pytest.mark.parametrize("name", STEPS)
def test_bfloat16_keeps_the_direction_at_fixed_images(name: str, device: str) -> None:
    """The gradient that the attack climbs, and that of the weights; both come out in float32."""
    x, x_adv, y = images("cpu", torch.float64)
    model, loss = network(norm=True).double().eval(), on(STEPS[name](), "cpu", torch.float64)
    expected = ascent.value_and_gradient(loss.inner(model, x, y), x_adv)[1]
    loss.outer(model.train(), x, x_adv, y)[0].backward()

    numerics = Numerics(torch.device(device), autocast=True)
    x, x_adv, y = images(device, torch.float32)
    low, loss = network(norm=True).to(device).eval(), on(STEPS[name](), device)
    with numerics.products(), numerics.casting():
        found = ascent.value_and_gradient(loss.inner(low, x, y), x_adv)[1]
        total, _ = loss.outer(low.train(), x, x_adv, y)
    total.backward()
    assert found.dtype == total.dtype == weight_gradient(low).dtype == torch.float32
    for one, other in ((found, expected), (weight_gradient(low), weight_gradient(model))):
        one = one.double().cpu()
        assert 1e-5 < distance(one, other) < 0.1  # bfloat16 has been at work
        assert float((one * other).sum() / (one.norm() * other.norm())) > 0.99
    clear = expected.abs() > 0.1 * expected.square().mean().sqrt()
    assert (found.sign().cpu() == expected.sign())[clear].float().mean() > 0.97


@on_both
@pytest.mark.timeout(150)
@pytest.mark.usefixtures("without_type_checks")  # torch.compile cannot trace them
def test_a_compiled_step_is_one_graph_for_every_radius(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fullgraph` raises where there would be two; a second compilation raises, too."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all of it
    attack = PGD(norm="l2", eps=0.2, steps=2, init="none")
    settings: dict[str, Any] = {"device": device, "precision": "fp32", "attack": attack}
    torch._dynamo.utils.counters.clear()
    runs = {
        word: trainer(tmp_path / word, network(norm=True), compile=word, loss=PGDAT(), **settings)
        for word in ("off", "step")
    }
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # which the parity gate at the start has built
    assert graphs >= 2  # a step of the attack, the training pass
    x, _, y = images(device, torch.float32, count=24)
    batch = Batch(x, y, slice(0, 24))
    for step, eps in enumerate((0.2, 0.35, 0.5, 0.1)):
        with torch._dynamo.config.patch(error_on_recompile=True):
            for run in runs.values():
                with run.numerics.products():
                    run.step(batch, attack.with_budget(eps=eps), NoPerturbation(), 1, step)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    expected, found = (weights_of(runs[word].model) for word in ("off", "step"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "asked", "meant"),
    (
        ("cpu", "auto", "fp32"),
        ("cpu", "bf16", "bf16"),
        pytest.param("cuda", "auto", "bf16", marks=pytest.mark.gpu),
        pytest.param("cuda", "tf32", "tf32", marks=pytest.mark.gpu),
    ),
)
def test_a_run_says_in_which_numbers_it_is(device: str, asked: str, meant: str, tmp_path: Path) -> None:
    """Coarser ones than float32 once they have passed the parity gate, on the run's own first batch."""
    run = trainer(tmp_path, network(norm=True), device=device, precision=asked, epochs=1)
    run.fit()
    assert run.numerics.word == meant
    found = recorded_execution(tmp_path)["numerics"]
    assert found["precision"] == meant
    assert found["why"] == (f"auto on {device}" if asked == "auto" else "asked for")
    if meant == "fp32":
        assert found["gate"] is None
        return
    figures, limits = found["gate"]["figures"], found["gate"]["bounds"]
    assert found["gate"]["passed"] and found["gate"]["images"] == 24
    for name in ("gradient", "weights"):
        assert figures[name] < limits[name]
        assert figures[name] > 1e-5 or meant == "tf32"  # bfloat16 has been at work; TF32 is, where a library likes


# Whole runs, each a process of its own


def words(device: str) -> list[str]:
    return [f"trainer.device={device}", "trainer.deterministic=true", "trainer.epochs=2"]


@pytest.fixture(scope="module")
def uninterrupted(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Gives a run directory of two epochs, where a run goes on until it is asked for."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    running = start(folder, *words(device))

    @functools.cache
    def finished() -> Path:
        finish(running)
        return folder / "runs" / "run"

    yield finished
    if running.poll() is None:
        running.kill()
        running.communicate()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("device", (GPU,), scope="module")  # on a CPU it is tests/engine/test_resume.py
def test_killed_and_resumed_with_the_same_bits(device: str, uninterrupted: Callable[[], Path], tmp_path: Path) -> None:
    """Which also says that a deterministic run gives the same bits twice."""
    run = tmp_path / "runs" / "run"
    code, output = stopped_after(13, signal.SIGKILL, tmp_path, *words(device))
    assert code == -signal.SIGKILL, output[-3000:]
    assert "resuming" in finish(start(tmp_path, *words(device)))
    for name in ("last.pt", "best.pt"):
        expected, found = (checkpoints.load(place / "checkpoints" / name) for place in (uninterrupted(), run))
        assert same(found, expected)


@pytest.mark.timeout(200)
@on_both_slowly
def test_one_process_of_a_group_is_a_process_alone(
    device: str, uninterrupted: Callable[[], Path], tmp_path: Path
) -> None:
    """DDP over NCCL or gloo with one rank."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "advtrain"]
    finish(process([*launcher, *TINY, *words(device)], tmp_path))
    found, expected = (
        checkpoints.load(place / "checkpoints" / "last.pt")["model"]
        for place in (tmp_path / "runs" / "run", uninterrupted())
    )
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=1e-5, atol=1e-6)


@pytest.mark.timeout(200)
@on_both_slowly
def test_the_quickstart(device: str, tmp_path: Path) -> None:
    """One epoch of it: training, evaluation, bundle; AutoAttack on the GPU only, where it is quick."""
    less = ["eval=clean_pgd", "eval.pgd.n_examples=20"]
    command = [sys.executable, "-m", "advtrain", "name=run", "trainer.epochs=1", f"trainer.device={device}"]
    finish(process([*command, *(less if device == "cpu" else [])], tmp_path))
    run = tmp_path / "runs" / "run"
    assert (run / "evaluation.json").is_file() and (run / "report.html").is_file()


def process(command: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
