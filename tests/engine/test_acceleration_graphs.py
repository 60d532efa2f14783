"""Recorded attacks: what is copied in and out, when something is recorded anew; on a GPU the real thing."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import APGD, NFGSM, PGD, Attack, Scheduled
from advtrain.attacks.ascent import Eager
from advtrain.engine import AWP
from advtrain.engine.acceleration import Acceleration, Passes, compiled, passes
from advtrain.engine.acceleration.graphs import CudaGraphs, Replayed, recording_clearly
from advtrain.engine.modes import attack_mode
from advtrain.losses import IKL, PGDAT, RSLAD, TRADES, AdaAD, Loss
from advtrain.types import SettingError
from tests.engine.accelerating import accelerated, assert_same_training
from tests.engine.toy import DATA, LOSSES, network, trainer, with_teacher

GRAPH = Acceleration("off", cuda_graph=True)
CPU = torch.device("cpu")


class Fake:
    """Records as a CUDA graph does: a replay computes from the recorded tensors and overwrites the recorded outputs.

    Attributes:
        recorded: how many functions.
        replayed: how often.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        self.recorded += 1
        outputs = tuple(torch.empty_like(output) for output in function())

        def replay() -> tuple[Tensor, ...]:
            self.replayed += 1
            for output, value in zip(outputs, function(), strict=True):
                output.copy_(value)
            return outputs

        return replay


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """The recorders of the passes made in this test, which record on any device."""
    made: list[Fake] = []

    def make(device: torch.device) -> Fake:
        made.append(Fake(device))
        return made[-1]

    monkeypatch.setattr(passes, "CudaGraphs", make)
    return made


def images(n: int = 4, seed: int = 0, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 6, 6, dtype=torch.float64, generator=generator)
    return x.to(device), torch.randint(4, (n,), generator=generator).to(device)


def found(attack: Attack, loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with attack_mode(model):
        return attack(loss.inner(model, x, y), x, generator=torch.Generator(x.device).manual_seed(5))


LOSSES_INSIDE: dict[str, Callable[[], Loss]] = {
    "ce": PGDAT,
    "soft labels": PGDAT,
    "dlr": lambda: PGDAT(inner="dlr"),
    "kl": TRADES,
    "ikl": lambda: IKL(num_classes=4, inner="ikl"),
    "teacher_kl": lambda: with_teacher(RSLAD(), dtype=torch.float64),
    "adaptive_kl": lambda: with_teacher(AdaAD(), dtype=torch.float64),
    "adaptive_ikl": lambda: with_teacher(AdaAD(inner="adaptive_ikl"), dtype=torch.float64),
}
ATTACKS: dict[str, Callable[..., Attack]] = {
    "pgd": lambda eps: PGD(eps=eps, steps=3),
    "restarts": lambda eps: PGD(eps=eps, steps=2, restarts=2),
    "apgd": lambda eps: APGD(eps=eps, steps=3),
    "n_fgsm": lambda eps: NFGSM(eps=eps),
    "l1": lambda eps: PGD(norm="l1", eps=20 * eps, steps=2),
}


def assert_replays_equal_eager(record: Any, loss: Loss, make: Callable[..., Attack], device: torch.device) -> None:
    """Over batches of two sizes, growing radii and weights that an optimiser moves; all results kept to the end."""
    model, loss = network(norm=True).double().to(device), loss.to(device)
    if loss.teacher is not None:
        loss.teacher.to(device, torch.float64)
    replayed = Replayed(model, Eager(), record)
    results, expected = [], []
    for step, (n, eps) in enumerate([(4, 0.02), (4, 0.04), (6, 0.06), (4, 0.08), (6, 0.1)]):
        x, y = images(n, step, device)
        if loss.takes_soft_labels and step % 2:
            y = torch.eye(4, dtype=torch.float64, device=device)[y]
        attack = make(eps)
        results.append(found(attack.using(replayed), loss, model, x, y))
        expected.append(found(attack, loss, model, x, y))
        assert not torch.equal(results[-1], x)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    for result, right in zip(results, expected, strict=True):
        assert torch.equal(result, right)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("loss", LOSSES_INSIDE)
def test_replays_give_what_the_passes_give(loss: str, attack: str) -> None:
    assert_replays_equal_eager(Fake(), LOSSES_INSIDE[loss](), ATTACKS[attack], CPU)


def test_one_recording_serves_all_radii_and_weights() -> None:
    model, record = network(norm=True).double(), Fake()
    replayed = Replayed(model, Eager(), record)
    attack = Scheduled(attack=PGD(eps=0.1, steps=2), steps=[2, 2])
    for epoch in range(1, 5):
        found(attack.for_epoch(epoch, 4).using(replayed), TRADES(), model, *images(seed=epoch))
        model[0].weight.data.mul_(0.9)
    assert (record.recorded, record.replayed) == (1, 4)


@pytest.mark.parametrize(
    "change",
    (
        pytest.param({"attack": PGD(eps=0.1, steps=3)}, id="steps"),
        pytest.param({"attack": PGD(norm="l2", eps=0.1, steps=2)}, id="norm"),
        pytest.param({"loss": PGDAT(inner="margin")}, id="measure"),
        pytest.param({"n": 5}, id="batch"),
    ),
)
def test_another_attack_is_another_recording(change: dict[str, Any]) -> None:
    model, record = network().double(), Fake()
    replayed = Replayed(model, Eager(), record)
    for settings in ({}, change, {}, change):
        case = {"attack": PGD(eps=0.1, steps=2), "loss": PGDAT(), "n": 4, **settings}
        x, y = images(case["n"])
        result = found(case["attack"].using(replayed), case["loss"], model, x, y)
        torch.testing.assert_close(result, found(case["attack"], case["loss"], model, x, y), rtol=0, atol=1e-12)
    assert (record.recorded, record.replayed) == (2, 4)


def test_weights_in_another_place_are_recorded_anew() -> None:
    model, record, (x, y) = network(norm=True).double(), Fake(), images()
    attack = PGD(eps=0.1, steps=2)
    replayed = attack.using(Replayed(model, Eager(), record))
    found(replayed, PGDAT(), model, x, y)
    model[4].weight.data = -model[4].weight.data
    assert torch.equal(found(replayed, PGDAT(), model, x, y), found(attack, PGDAT(), model, x, y))
    model[1].running_mean = model[1].running_mean + 1
    assert torch.equal(found(replayed, PGDAT(), model, x, y), found(attack, PGDAT(), model, x, y))
    assert record.recorded == 3


@pytest.mark.parametrize(
    ("name", "batchnorm"), (*product(("pgd_at", "ikl"), ("eval", "train")), ("rslad", "eval"), ("adaad", "train"))
)
def test_training_is_the_same(name: str, batchnorm: str, fakes: list[Fake], tmp_path: Path) -> None:
    assert_same_training(
        tmp_path,
        lambda: {
            "model": network(norm=True),
            "loss": LOSSES[name](),
            "attack_batchnorm": batchnorm,
            "weight_perturbation": AWP(),
        },
        (GRAPH,),
    )
    assert [(fake.recorded, fake.replayed) for fake in fakes] == [(1, 8)]


def test_training_is_the_same_with_two_views_and_accumulation(fakes: list[Fake], tmp_path: Path) -> None:
    assert_same_training(
        tmp_path,
        lambda: {"model": network(norm=True), "accumulation": 5, "epochs": 1, **DATA["two_views"]()},
        (GRAPH,),
    )
    assert [(fake.recorded, fake.replayed) for fake in fakes] == [(2, 20)]


def test_compiled_steps_are_recorded_too(
    fakes: list[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traceable: None
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    assert_same_training(
        tmp_path, lambda: {"model": network(norm=True), "loss": TRADES()}, (Acceleration("step", cuda_graph=True),)
    )


def test_an_objective_whose_tensors_are_hidden_is_refused() -> None:
    model, (x, _) = network().double(), images()
    message = r"trainer.cuda_graph: expected an objective whose tensors are known .*got function; use trainer.cuda_gr"
    with pytest.raises(SettingError, match=message):
        PGD(eps=0.1, steps=1).using(Replayed(model, Eager(), Fake()))(lambda x: model(x)[:, 0], x)


def test_a_cpu_has_no_cuda_graphs(tmp_path: Path) -> None:
    message = r"trainer.cuda_graph: expected false or null on cpu, .*got true; use trainer.cuda_graph=null"
    with pytest.raises(SettingError, match=message):
        Passes(network(), GRAPH)
    with pytest.raises(SettingError, match=message):
        accelerated(trainer(tmp_path), GRAPH)


def test_what_cannot_be_recorded_ends_in_one_line() -> None:
    with (
        pytest.raises(SettingError, match=r"^trainer.cuda_graph: expected an attack that can be recorded, got Runtime"),
        recording_clearly(),
    ):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")
    with pytest.raises(torch.OutOfMemoryError), recording_clearly():
        raise torch.OutOfMemoryError


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """A GPU whose convolutions give the same bits whichever kernel was chosen while recording."""
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield torch.device("cuda", 0)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark


@pytest.mark.gpu
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("loss", LOSSES_INSIDE)
def test_a_cuda_graph_gives_what_the_passes_give(loss: str, attack: str, gpu: torch.device) -> None:
    assert_replays_equal_eager(CudaGraphs(gpu), LOSSES_INSIDE[loss](), ATTACKS[attack], gpu)


@pytest.mark.gpu
def test_a_cuda_graph_casts_the_weights_of_the_moment(gpu: torch.device) -> None:
    """Autocast keeps the weights that it has cast; a replay must cast those that an optimiser has moved since."""
    model, (x, y), attack = network(norm=True).to(gpu), images(device=gpu), PGD(eps=0.1, steps=3)
    replayed = attack.using(Replayed(model, Eager(), CudaGraphs(gpu)))
    for _ in range(3):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result, expected = (found(a, TRADES(), model, x.float(), y) for a in (replayed, attack))
        assert torch.equal(result, expected)
        with torch.no_grad():
            model[0].weight.mul_(-1.3)


@pytest.mark.gpu
@pytest.mark.timeout(150)
@pytest.mark.parametrize("compile", ("off", "model", "step"))
def test_training_with_cuda_graphs_is_the_same(
    compile: str, gpu: torch.device, tmp_path: Path, traceable: None
) -> None:
    assert_same_training(
        tmp_path,
        lambda: {
            "model": network(norm=True),
            "loss": IKL(num_classes=4, inner="ikl"),
            "weight_perturbation": AWP(),
            "device": "cuda",
        },
        (Acceleration(compile, cuda_graph=True),),
    )


WAITING = """
import torch
from advtrain.engine.acceleration.graphs import CudaGraphs
from advtrain.types import SettingError

gpu = torch.device("cuda", 0)
x, before = torch.ones(3, device=gpu), torch.cuda.current_stream()
try:
    CudaGraphs(gpu)(lambda: (x * x.sum().item(),))
except SettingError as error:
    assert torch.cuda.current_stream() == before, "the stream of the recording is still the current one"
    print(error, flush=True)
"""


@pytest.mark.gpu
def test_waiting_for_the_device_ends_in_one_line() -> None:
    """In a process of its own, since a recording that failed leaves CUDA's random numbers out of order there."""
    child = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=120)
    assert child.stdout.count("\n") == 1, child.stderr[-3000:]
    assert child.stdout.startswith("trainer.cuda_graph: expected an attack that can be recorded, got ")
