"""What is compiled: as few graphs as there are shapes and modes, no gradient that nobody uses, and clear ends."""

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from advtrain.attacks import PGD, Scheduled
from advtrain.engine.acceleration import Acceleration, Passes, compiled
from advtrain.engine.modes import attack_mode
from advtrain.losses import IKL, PGDAT, RSLAD, TRADES, AdaAD
from advtrain.types import SettingError
from tests.engine.accelerating import EPS, MODEL, STEP, accelerated, chosen
from tests.engine.toy import network, trainer, with_teacher

pytestmark = pytest.mark.usefixtures("traceable")


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("acceleration", "batchnorm"),
    (
        pytest.param(MODEL, "eval", id="model-eval"),
        pytest.param(MODEL, "train", id="model-train", marks=pytest.mark.slow),
        pytest.param(STEP, "eval", id="step-eval"),
        pytest.param(STEP, "train", id="step-train"),
    ),
)
def test_a_run_builds_three_graphs(acceleration: Acceleration, batchnorm: str, tmp_path: Path, graphs: Any) -> None:
    """Natural logits, the step of the attack, the training pass: whatever the radius, the epoch and the weights are."""
    attack = Scheduled(attack=PGD(eps=EPS["linf"], steps=3), steps=[2, 3])
    run = trainer(tmp_path, network(norm=True), attack=attack, loss=TRADES(), attack_batchnorm=batchnorm, epochs=4)
    accelerated(run, acceleration).fit()
    assert graphs() == 3


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize("acceleration", (pytest.param(MODEL, marks=pytest.mark.slow), STEP), ids=str)
def test_a_new_size_of_batch_builds_its_graphs_once(acceleration: Acceleration, graphs: Any) -> None:
    """A graph of the attack and one of training for each size: none for any size, which would be slower."""
    model, loss = network(norm=True), PGDAT()
    passes = Passes(model, acceleration)
    for n in (4, 5, 6, 4, 6, 5):
        x, y = torch.rand(n, 3, 6, 6), torch.arange(n) % 4
        with attack_mode(model):
            x_adv = PGD(eps=0.1, steps=2).using(passes.ascent)(loss.inner(passes.attacked, x, y), x)
        loss.outer(passes.trained, x, x_adv, y)[0].backward()
    assert graphs() == 6


@pytest.mark.usefixtures("aot_eager")
def test_modes_and_other_models_do_not_disturb_what_is_built(graphs: Any) -> None:
    """An attack in eval mode and in train mode, in turn, of two runs in one process, each with its own limit."""
    x, y, loss = torch.rand(4, 3, 6, 6), torch.arange(4), PGDAT()
    runs = [(model, Passes(model, STEP)) for model in (network(norm=True), network(norm=True))]
    for _, (model, passes), batchnorm in product(range(3), runs, ("eval", "train")):
        with attack_mode(model, batchnorm), torch._dynamo.config.patch(recompile_limit=2):
            PGD(eps=0.1, steps=2).using(passes.ascent)(loss.inner(passes.attacked, x, y), x)
    assert graphs() == 4


OBJECTIVES: dict[str, Any] = {
    **{inner: lambda inner=inner: PGDAT(inner=inner) for inner in ("ce", "margin", "dlr")},
    "kl": lambda: TRADES(),
    "ikl": lambda: IKL(num_classes=4, inner="ikl"),
    "teacher_kl": lambda: with_teacher(RSLAD(), dtype=torch.float64),
    "adaptive_kl": lambda: with_teacher(AdaAD(), dtype=torch.float64),
    "ikl of the image": lambda: IKL(num_classes=4, inner="ikl", global_weights=False),
}


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "norm"),
    chosen(
        product(OBJECTIVES, EPS),
        {*product(OBJECTIVES, ["linf"]), ("kl", "l1")},
    ),
)
def test_every_step_is_one_graph_and_finds_the_same_images(name: str, norm: str, graphs: Any) -> None:
    loss, model = OBJECTIVES[name](), network(norm=True).double()
    passes = Passes(model, STEP)
    x, y = torch.rand(4, 3, 6, 6, dtype=torch.float64), torch.arange(4)
    with attack_mode(model):
        eager, objective = loss.inner(model, x, y), loss.inner(model, x, y)
        for eps in (EPS[norm], 2 * EPS[norm]):
            attack = PGD(norm=norm, eps=eps, steps=3)
            found, expected = (
                a(o, x, generator=torch.Generator().manual_seed(1))
                for a, o in ((attack.using(passes.ascent), objective), (attack, eager))
            )
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            assert not torch.equal(found, x)
    assert graphs() == 1


def convolution_backwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool, bool]]:
    """Fills with what each convolution_backward in a graph computes: gradients of input, weight, bias."""
    masks: list[tuple[bool, bool, bool]] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target == torch.ops.aten.convolution_backward.default:
                masks.append(tuple(node.args[-1]))
        return make_boxed_func(graph)

    monkeypatch.setattr(compiled, "BACKEND", aot_autograd(fw_compiler=note, bw_compiler=note))
    return masks


@pytest.mark.parametrize("batchnorm", ("eval", "train"))
@pytest.mark.parametrize("acceleration", (MODEL, STEP), ids=str)
def test_compiled_attacks_compute_no_gradient_of_weights(
    acceleration: Acceleration, batchnorm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = convolution_backwards(monkeypatch)
    model, x, y, loss = network(norm=True), torch.rand(4, 3, 6, 6), torch.arange(4), TRADES()
    passes = Passes(model, acceleration)
    with attack_mode(model, batchnorm):
        PGD(eps=0.1, steps=2).using(passes.ascent)(loss.inner(passes.attacked, x, y), x)
    assert masks == [(True, False, False)]  # one convolution, in one graph
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_training_pass_computes_the_gradient_of_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = convolution_backwards(monkeypatch)
    model, x, y = network(norm=True), torch.rand(4, 3, 6, 6), torch.arange(4)
    TRADES().outer(Passes(model, STEP).trained, x, x.flip(0), y)[0].backward()
    assert masks == [(False, True, True)]


def attacked_by(objective: Any, acceleration: Acceleration) -> Tensor:
    passes = Passes(network(), acceleration)
    return PGD(eps=0.1, steps=1).using(passes.ascent)(objective(passes.attacked), torch.rand(4, 3, 6, 6))


def untraceable(model: nn.Module) -> Any:
    return lambda x: model(x).sum(1) if model(x).mean() > 0 else model(x)[:, 0]  # which, the host must ask the device


def one_line(error: SettingError) -> str:
    (line,) = str(error).splitlines()
    return line


@pytest.mark.usefixtures("aot_eager")
def test_what_cannot_be_traced_ends_in_one_line() -> None:
    with pytest.raises(SettingError) as caught:
        attacked_by(untraceable, STEP)
    line = one_line(caught.value)
    assert line.startswith("trainer.compile: expected model, loss and attack that torch.compile can build, got ")
    assert Path(__file__).name in line and line.endswith("; use trainer.compile=off")
    assert attacked_by(untraceable, Acceleration()).shape == (4, 3, 6, 6)


@pytest.mark.parametrize("acceleration", (pytest.param(MODEL, marks=pytest.mark.slow), STEP), ids=str)
def test_no_compiler_ends_in_one_line(
    acceleration: Acceleration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what is built already needs no compiler
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(
            SettingError, match=r"got InvalidCxxCompiler: .*no-such-compiler.*; use trainer.compile=off"
        ) as e,
    ):
        attacked_by(lambda model: lambda x: model(x).sum(1), acceleration)
    one_line(e.value)


def test_errors_that_are_no_fault_of_compilation_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # As it is, or, from PyTorch 2.11, which wraps it, by its own words.
    with pytest.raises((IndexError, SettingError), match="index 77 is out of bounds"):
        attacked_by(lambda model: lambda x: model(x)[:, 77], STEP)

    def exhausted(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(compiled, "BACKEND", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        attacked_by(lambda model: lambda x: model(x).sum(1), STEP)


ADVICE = {
    "tf32": "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. Consider",
    "softmax": "\nOnline softmax is disabled on the fly since Inductor decides to\nsplit the reduction. Cut an issue",
}


@pytest.mark.parametrize("name", ADVICE)
def test_no_misplaced_advice(name: str) -> None:
    """PyTorch 2.11 gives it on a GPU: for float32 products, which trainer.precision asks for, and for few classes."""
    advice = ADVICE[name]
    with pytest.raises(UserWarning):
        warnings.warn(advice, stacklevel=1)
    compiled.compiled(compiled.call, fullgraph=False)
    warnings.warn(advice, stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn("something else", stacklevel=1)
