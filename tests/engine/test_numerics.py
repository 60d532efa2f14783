"""What trainer.precision means, read off PyTorch's switches: they say on a CPU, too, what a GPU would do."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.config import TrainerSettings
from advtrain.engine import NoPerturbation
from advtrain.engine.acceleration.parity import judge
from advtrain.engine.numerics import Numerics, check_numerics, numerics
from advtrain.evaluation.modes import exact_float32
from advtrain.losses import TRADES
from advtrain.types import SettingError
from tests.engine.toy import network, trainer

CPU = torch.device("cpu")
CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul


def switches() -> tuple[bool, bool]:
    """Whether convolutions and matrix products may use TF32."""
    return CUDNN.allow_tf32, MATMUL.allow_tf32


@pytest.fixture(autouse=True)
def as_pytorch_starts() -> Iterator[None]:
    before = switches()
    CUDNN.allow_tf32, MATMUL.allow_tf32 = True, False
    yield
    CUDNN.allow_tf32, MATMUL.allow_tf32 = before


@pytest.mark.parametrize(("tf32", "expected"), ((False, (False, False)), (True, (True, True))))
def test_products_and_back(tf32: bool, expected: tuple[bool, bool]) -> None:
    """By the newer names, too, where PyTorch has them."""
    with pytest.raises(RuntimeError, match="inside"), Numerics(CPU, tf32=tf32).products():
        assert switches() == expected
        if hasattr(MATMUL, "fp32_precision"):
            newer = (CUDNN.conv.fp32_precision, MATMUL.fp32_precision)
            assert newer == ("tf32", "tf32") if tf32 else "tf32" not in newer
        raise RuntimeError("inside")
    assert switches() == (True, False)


@pytest.mark.parametrize("tf32", (False, True))
def test_products_and_the_evaluation_in_either_order(tf32: bool) -> None:
    with Numerics(CPU, tf32=tf32).products():
        with exact_float32():
            assert switches() == (False, False)
        assert switches() == (tf32, tf32)
    with exact_float32():
        with Numerics(CPU, tf32=tf32).products():
            assert switches() == (tf32, tf32)
        assert switches() == (False, False)
    assert switches() == (True, False)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("tf32", (False, True))
def test_what_is_compiled_under_products_runs(tf32: bool) -> None:
    """Dynamo's guards read the switches: a state that two generations of names disagree about is an error there."""
    with Numerics(CPU, tf32=tf32).products():
        doubled = torch.compile(lambda x: x @ x, backend="eager", fullgraph=True)
        assert doubled(torch.eye(2)).equal(torch.eye(2))


@pytest.mark.parametrize(
    ("precision", "word"), (("auto", "fp32"), ("fp32", "fp32"), ("tf32", "tf32"), ("bf16", "bf16"), ("fp64", "fp64"))
)
def test_words(precision: str, word: str) -> None:
    found = numerics(TrainerSettings(precision=precision), CPU, channels=3)
    assert found.word == word
    assert found.dtype == (torch.float64 if word == "fp64" else torch.float32)
    assert found.memory_format == torch.channels_last
    assert found.exact().word == ("fp64" if word == "fp64" else "fp32")
    assert found.exact().memory_format == torch.channels_last


@pytest.mark.parametrize("layout", (torch.channels_last, torch.contiguous_format))
def test_a_process_that_never_saw_this_module_can_read_it(layout: torch.memory_format) -> None:
    """Pickle looks for a memory format in all modules that know torch, and this one does."""
    stored = pickle.dumps(Numerics(CPU, autocast=True, memory_format=layout), 4)
    assert b"tests" not in stored and pickle.loads(stored) == Numerics(CPU, autocast=True, memory_format=layout)


def test_bfloat16_is_for_the_passes_alone(tmp_path: Path) -> None:
    """Images, their ball, the loss, BatchNorm's statistics, weights and gradients stay float32."""
    seen: dict[str, Tensor] = {}

    class Watching(TRADES):
        def outer(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            total, parts = super().outer(model, x, x_adv, y)
            seen.update(x=x, x_adv=x_adv, total=total, logits=model(x))
            return total, parts

    run = trainer(tmp_path, network(norm=True), precision="bf16", loss=Watching())
    run.step(next(iter(run.train_loader.epoch(1))), PGD(eps=0.05, steps=2), NoPerturbation(), 1, 0)
    assert seen.pop("logits").dtype == torch.bfloat16
    assert {name: tensor.dtype for name, tensor in seen.items()} == dict.fromkeys(seen, torch.float32)
    assert 0.04 < (seen["x_adv"] - seen["x"]).abs().max() < 0.05 + 1e-7  # bfloat16 near 1 has steps of 0.004
    states = [*run.model.parameters(), *run.model.buffers(), *(p.grad for p in run.model.parameters())]
    assert {state.dtype for state in states if state.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "line"),
    (
        (TrainerSettings(precision="tf32"), "trainer.precision=tf32: expected a GPU of the Ampere generation"),
        (TrainerSettings(cuda_graph=True), "trainer.cuda_graph=true: expected a CUDA GPU, got a CPU"),
    ),
)
def test_what_a_cpu_does_not_have(settings: TrainerSettings, line: str) -> None:
    with pytest.raises(SettingError, match=line):
        check_numerics(settings, CPU)


@pytest.mark.gpu
def test_tf32_rounds_and_fp32_does_not() -> None:
    """1 + 2^-12 has more bits than TF32 keeps."""
    device = torch.device("cuda")
    a = torch.full((1024, 1024), 1 + 2**-12, device=device)
    images, kernels = a.view(1, 1024, 32, 32), torch.ones(64, 1024, 1, 1, device=device)
    with Numerics(device).products():
        assert (a @ torch.ones_like(a))[0, 0].item() == 1024.25
        assert torch.nn.functional.conv2d(images, kernels)[0, 0, 0, 0].item() == 1024.25
    with Numerics(device, tf32=True).products():
        assert (a @ torch.ones_like(a))[0, 0].item() == 1024


class Watched(nn.Module):
    """Notes at each pass of so many images whether cuDNN tries its kernels out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.seen = network(norm=True), list[tuple[int, bool, bool]]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), torch.is_autocast_enabled("cpu"), CUDNN.benchmark))
        return self.body(x)


def test_the_gate_tries_kernels_out_for_the_passes_of_the_run_alone(tmp_path: Path) -> None:
    """What is judged are bfloat16's numbers on a part of the batch, then the run's own passes on all of it."""
    kept, CUDNN.benchmark = CUDNN.benchmark, True
    try:
        model = Watched()
        run = trainer(tmp_path, model, precision="bf16")
        assert model.seen and not any(tries for _, _, tries in model.seen)
        model.seen.clear()
        judge(run._subject().scene(run.numerics), run.step.passes, run.numerics)
        assert {(bfloat16, tries) for _, bfloat16, tries in model.seen} == {(False, False), (True, True)}
        assert CUDNN.benchmark
    finally:
        CUDNN.benchmark = kept
