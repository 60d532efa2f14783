"""Compiled passes: the same numbers as without, in as few graphs as there are shapes and modes, and clear ends.

Most tests trace and differentiate as torch.compile does but run the graphs' operations one by one ("aot_eager"), which
takes no C++ compiler and lets results be compared to the last digits; some run the code that users get.
"""

import copy
import json
import logging
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func

from advtrain.attacks import APGD, NFGSM, PGD, Free, Scheduled
from advtrain.attacks.ascent import Eager
from advtrain.config import ThreatSettings
from advtrain.engine import AWP, EMA, SAM, Trainer, checkpoints
from advtrain.engine.acceleration import Acceleration, Passes, compiled
from advtrain.engine.modes import attack_mode
from advtrain.engine.step import TrainingStep
from advtrain.losses import IKL, PGDAT, TRADES
from advtrain.types import SettingError
from tests.engine.toy import DATA, LOSSES, network, trainer

MODEL, STEP = Acceleration("model"), Acceleration("step")
EPS = {"linf": 0.05, "l2": 0.5, "l1": 2.0}


def chosen(cases: Iterable[tuple[str, Any]], quick: set[tuple[str, Any]]) -> list[Any]:
    """All `cases`; those that are not `quick` run with -m slow only."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


@pytest.fixture(autouse=True)
def traceable(without_type_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type checks of the tests are nothing that torch.compile can trace; users have none.

    Nor have they pytest's record of all that torch.compile would tell its developers.
    """
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture
def graphs() -> Iterator[Any]:
    """A function that says how many graphs were built since the test began."""
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]


def accelerated(run: Trainer, acceleration: Acceleration) -> Trainer:
    """`run` with its passes run as `acceleration` says."""
    run.step = TrainingStep(
        run.model,
        run.loss,
        run.optimizer,
        numerics=run.numerics,
        batch_size=run.settings.images_per_step,
        accumulation=run.settings.accumulation,
        attack_batchnorm=run.settings.attack_batchnorm,
        clip_norm=run.settings.clip_norm,
        seed=run.seed,
        acceleration=acceleration,
    )
    return run


def trained(directory: Path, acceleration: Acceleration, **changes: Any) -> tuple[list[float], list[Tensor]]:
    """The loss of each step, and the model and its average after the last."""
    run = accelerated(trainer(directory, **changes), acceleration)
    run.fit()
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    state = [*run.model.state_dict().values(), *run.averaged.state_dict().values()]
    return [record["loss"] for record in records if "loss" in record], state


def assert_same_training(tmp_path: Path, make: Any, accelerations: tuple[Acceleration, ...] = (MODEL, STEP)) -> None:
    """Trains what `make` gives for `trainer` without and with acceleration."""
    curve, state = trained(tmp_path / "off", Acceleration(), **make())
    assert len(set(curve)) == len(curve) > 3
    for acceleration in accelerations:
        other_curve, other_state = trained(tmp_path / str(acceleration), acceleration, **make())
        assert other_curve == pytest.approx(curve, rel=1e-10)
        for a, b in zip(other_state, state, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "norm"),
    chosen([*product(LOSSES, (True,)), ("mart", False), ("gkl", False)], {("mart", False), ("ikl", True)}),
)
def test_training_is_the_same(name: str, norm: bool, tmp_path: Path) -> None:
    """Two epochs, a class prior in force in the second; weights perturbed; statistics and their counts averaged."""
    assert_same_training(
        tmp_path,
        lambda: {
            "model": network(norm),
            "loss": LOSSES[name](),
            "weight_perturbation": AWP(),
            "averaging": EMA(),
        },
    )


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize("name", ("two_views", pytest.param("mixup", marks=pytest.mark.slow)))
def test_training_is_the_same_with_two_views_mixed_images_and_accumulation(name: str, tmp_path: Path) -> None:
    assert_same_training(
        tmp_path,
        lambda: {
            "model": network(norm=True),
            "accumulation": 5,
            "weight_perturbation": SAM(),
            "epochs": 1,
            **DATA[name](),
        },
        (STEP,),
    )


ATTACKS = {
    "l2": lambda: PGD(norm="l2", eps=EPS["l2"], steps=2),
    "l1": lambda: PGD(norm="l1", eps=EPS["l1"], steps=2),
    "restarts": lambda: PGD(eps=EPS["linf"], steps=2, restarts=2),
    "apgd": lambda: APGD(eps=EPS["linf"], steps=4),
    "n_fgsm": lambda: NFGSM(eps=EPS["linf"]),
    "scheduled": lambda: Scheduled(attack=PGD(norm="l2", eps=EPS["l2"], steps=1), steps=[1, 2]),
    "free": lambda: Free(eps=EPS["linf"], replays=2),
}


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "batchnorm"),
    chosen([*product(ATTACKS, ("eval",)), ("l1", "train"), ("apgd", "train")], {("l1", "train")}),
)
def test_training_is_the_same_with_every_attack(name: str, batchnorm: str, tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        attack = ATTACKS[name]()
        return {
            "model": network(norm=True),
            "loss": PGDAT() if name == "free" else TRADES(),
            "attack": attack,
            "attack_batchnorm": batchnorm,
            "threat": ThreatSettings(attack.norm, str(EPS[attack.norm])),
        }

    assert_same_training(tmp_path, make)


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
    "ikl of the image": lambda: IKL(num_classes=4, inner="ikl", global_weights=False),
}


@pytest.mark.usefixtures("aot_eager")
@pytest.mark.parametrize(
    ("name", "norm"), chosen(product(OBJECTIVES, EPS), {*product(OBJECTIVES, ["linf"]), ("kl", "l1")})
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


@pytest.mark.parametrize("acceleration", (pytest.param(MODEL, marks=pytest.mark.slow), STEP), ids=str)
def test_what_users_get_is_the_same_too(acceleration: Acceleration, tmp_path: Path) -> None:
    assert_same_training(
        tmp_path,
        lambda: {"model": network(norm=True), "loss": IKL(num_classes=4, inner="ikl"), "weight_perturbation": AWP()},
        (acceleration,),
    )


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


@pytest.mark.usefixtures("aot_eager")
def test_nothing_but_the_calls_is_another(tmp_path: Path) -> None:
    """State dicts, copies and attributes are those of the bare model."""
    run = accelerated(trainer(tmp_path, network(norm=True), averaging=EMA(), epochs=1), STEP)
    run.fit()
    keys = list(network(norm=True).state_dict())
    saved = checkpoints.load(run.last_path, torch.device("cpu"))
    for state in (run.model.state_dict(), run.averaged.state_dict(), saved["model"], saved["averaged"]):
        assert list(state) == keys
    for model in (run.averaged, copy.deepcopy(run.model)):
        assert [type(module) for module in model.modules()] == [type(module) for module in network(True).modules()]


@pytest.mark.usefixtures("aot_eager")
def test_a_compiled_model_is_the_model_to_those_who_look() -> None:
    model = network(norm=True)
    model.temperature = 3.0
    outside = compiled.CompiledModel(model)
    assert outside.temperature == 3.0
    with pytest.raises(AttributeError):
        _ = outside.nothing
    assert list(outside.parameters()) == list(model.parameters())
    for training in (False, True):
        outside.train(training)
        assert outside.training == model.training == model[1].training == training
        model.train(not training)
        assert outside.training != training


@pytest.mark.slow
@pytest.mark.usefixtures("aot_eager")
def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", STEP, model=network(norm=True), epochs=2)
    trained(tmp_path / "parts", STEP, model=network(norm=True), epochs=1)
    resumed, _ = trained(tmp_path / "parts", STEP, model=network(norm=True), epochs=2)
    assert resumed == whole


@pytest.mark.usefixtures("aot_eager")
def test_a_compiled_step_casts_as_autocast_says() -> None:
    model, x, y, loss = network(norm=True), torch.rand(4, 3, 6, 6), torch.arange(4), PGDAT()
    passes = Passes(model, STEP)
    gradients = []
    for bf16 in (True, False):
        with attack_mode(model), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            for ascent, seen in ((passes.ascent, passes.attacked), (Eager(), model)):
                gradients.append(ascent.value_and_gradient(loss.inner(seen, x, y), x)[1])
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 4
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=1e-3)
    torch.testing.assert_close(gradients[2], gradients[3])
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-4, atol=1e-6)


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
    assert "test_acceleration.py" in line and line.endswith("; use trainer.compile=off")
    assert attacked_by(untraceable, Acceleration()).shape == (4, 3, 6, 6)


@pytest.mark.parametrize("acceleration", (MODEL, STEP), ids=str)
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
    with pytest.raises(IndexError):
        attacked_by(lambda model: lambda x: model(x)[:, 77], STEP)

    def exhausted(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(compiled, "BACKEND", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        attacked_by(lambda model: lambda x: model(x).sum(1), STEP)
