"""Training that holds a teacher: what a step asks of it, what never changes it, and that a run can stop and go on."""

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.engine import ASAM, AWP, EMA, SAM, Interrupted, NoPerturbation, Trainer, checkpoints
from advtrain.engine.acceleration import OFF, Acceleration, Passes
from advtrain.engine.acceleration.measuring import Task
from advtrain.engine.acceleration.parity import judge
from advtrain.engine.batch_size import take_steps
from advtrain.engine.memory import peak_bytes
from advtrain.losses import KD, CleanDistillation, Distillation, Teacher
from benchmarks.counting import Counter
from tests.engine.accelerating import MODEL, STEP, accelerated
from tests.engine.test_resume import same
from tests.engine.toy import LOSSES, network, trainer, with_teacher
from tests.waits import nothing_waits

TAUGHT = [name for name, make in LOSSES.items() if make().needs_teacher]
CLEAN = [name for name in TAUGHT if isinstance(LOSSES[name](), CleanDistillation)]


def teacher_of(run: Trainer) -> Teacher:
    assert run.loss.teacher is not None
    return run.loss.teacher


def first_convolution(model: nn.Module) -> nn.Conv2d:
    return next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))


class Counts:
    """Passes through a run's student and its teacher, counted by hooks on their first convolutions.

    Attributes:
        student, teacher: forward passes.
        backward: backward passes that reach the student's weights.
    """

    def __init__(self, run: Trainer) -> None:
        self.student = self.teacher = self.backward = 0
        student, teacher = (first_convolution(model) for model in (run.model, teacher_of(run).model))
        student.register_forward_hook(lambda *_: self._add("student"))
        student.weight.register_hook(lambda gradient: self._add("backward"))
        teacher.register_forward_hook(lambda *_: self._add("teacher"))

    def _add(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)

    @property
    def found(self) -> tuple[int, int, int]:
        return self.student, self.backward, self.teacher


def take_step(run: Trainer, perturbation: Any = None) -> Any:
    run.model.train()
    batch = next(iter(run.train_loader.epoch(1)))
    return run.step(batch, run.attack_of(1), perturbation or NoPerturbation(), 1, 0)


# -- what a step costs


@pytest.mark.parametrize("configured", (True, False), ids=("an attack is configured", "attack=none"))
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_step_is_one_forward_and_one_backward_pass_and_one_of_the_teacher(
    name: str, configured: bool, tmp_path: Path
) -> None:
    changes = {} if configured else {"attack": None}
    run = trainer(tmp_path, network(norm=True), loss=LOSSES[name](), **changes)
    counts = Counts(run)
    take_step(run)
    assert counts.found == (1, 1, 1)


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("perturbation", (AWP(), SAM(), ASAM()), ids=("awp", "sam", "asam"))
def test_perturbed_weights_ask_the_teacher_nothing_anew(name: str, perturbation: Any, tmp_path: Path) -> None:
    """Twice the passes of the student, and still one of the teacher for each piece of the batch."""
    run = trainer(tmp_path, loss=LOSSES[name](), accumulation=3)
    counts = Counts(run)
    take_step(run, perturbation)
    assert counts.found == (6, 6, 3)


# Of t(x), of x' at each of the attack's two steps, and of x' at its end.
ASKED = {"ard": 1, "rslad": 1, "adaad": 1 + 2 + 1, "iad": 1 + 1}


@pytest.mark.parametrize("name", ASKED)
def test_a_robust_step_asks_its_teacher_no_more_than_it_must(name: str, tmp_path: Path) -> None:
    """Whatever the natural logits are for, attack, loss or a perturbation of the weights: once for each piece."""
    run = trainer(tmp_path, loss=LOSSES[name](), accumulation=3)
    run.loss.start_epoch(2)
    counts = Counts(run)
    take_step(run, AWP())
    assert counts.teacher == 3 * ASKED[name]


def test_every_loss_that_holds_a_teacher_is_here() -> None:
    assert {*CLEAN, *ASKED} == set(TAUGHT)


@pytest.mark.parametrize("name", TAUGHT)
def test_the_host_waits_for_nothing(name: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, network(norm=True), loss=LOSSES[name](), precision="fp32")
    take_step(run)
    with Counter() as counter:
        take_step(run, AWP())
    assert counter.counts["host_syncs"] == 0, counter.waits


@pytest.mark.gpu
@pytest.mark.parametrize("name", ("ikl_kd", "adaad"))
def test_on_a_gpu_nothing_waits_either(name: str, tmp_path: Path) -> None:
    """PyTorch's own check, which sees copies between devices, too."""
    run = trainer(tmp_path, network(norm=True), loss=LOSSES[name](), precision="bf16", device="cuda")
    batch, attack = next(iter(run.train_loader.epoch(1))), run.attack_of(1)
    run.model.train()
    run.step(batch, attack, NoPerturbation(), 1, 0)
    with nothing_waits():
        run.step(batch, attack, NoPerturbation(), 1, 1)


def test_the_teacher_runs_in_the_numbers_and_the_layout_of_the_run(tmp_path: Path) -> None:
    """In bfloat16 by autocast: its weights stay float32."""
    run = trainer(tmp_path, network(norm=True), loss=LOSSES["kd"](), precision="bf16")
    seen: list[tuple[Any, ...]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        last = torch.channels_last
        seen.append((output.dtype, layer.weight.dtype, inputs[0].is_contiguous(memory_format=last)))

    layers = list(teacher_of(run).model.children())
    first, head = layers[0], layers[-1]
    first.register_forward_hook(note)
    head.register_forward_hook(lambda layer, inputs, output: seen.append((output.dtype, output.requires_grad)))
    take_step(run)
    assert seen == [(torch.bfloat16, torch.float32, True), (torch.bfloat16, False)]
    assert teacher_of(run).model[0].weight.is_contiguous(memory_format=torch.channels_last)


# -- what never changes


@pytest.mark.parametrize("attack_batchnorm", ("eval", "train"))
@pytest.mark.parametrize("name", TAUGHT)
def test_a_run_leaves_its_teacher_as_it_was(name: str, attack_batchnorm: str, tmp_path: Path) -> None:
    """Weights, BatchNorm's statistics and counts, modes: over training, perturbations, validation and checkpoints."""
    run = trainer(
        tmp_path,
        network(norm=True),
        loss=LOSSES[name](),
        attack_batchnorm=attack_batchnorm,
        weight_perturbation=AWP(),
        averaging=EMA(),
    )
    teacher = teacher_of(run).model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run.fit()
    assert any(key.endswith("running_mean") for key in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("name", TAUGHT)
def test_neither_processes_nor_optimiser_nor_checkpoints_know_the_teacher(name: str, tmp_path: Path) -> None:
    """A teacher of four times the size makes no file larger, and DDP and FSDP get the student alone."""
    contents = []
    for width in (1, 4):
        loss = LOSSES[name]()
        wide = nn.Sequential(nn.Conv2d(3, 6 * width, 3), nn.Flatten(), nn.Linear(96 * width, 4))
        assert isinstance(loss, Distillation)
        run = trainer(tmp_path / str(width), network(norm=True), loss=loss.hold(Teacher(wide)), epochs=1)
        run.fit()
        students = {f"model.{key}" for key in run.model.state_dict()}
        assert set(run.step._replica.state_dict()) == students
        learning = {id(p) for p in run.model.parameters()}
        assert {id(p) for group in run.optimizer.param_groups for p in group["params"]} == learning
        state = checkpoints.load(run.last_path)
        contents.append({f"{part}.{key}": tuple(t.shape) for part, key, t in tensors(state)})
    assert contents[0] == contents[1]
    assert {key.partition(".")[0] for key in contents[0]} <= {"model", "averaged", "optimizer", "loss"}
    assert not any("teach" in key for key in contents[0])


def tensors(state: Any, part: str = "") -> Iterator[tuple[str, str, Tensor]]:
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        where = f"{part}.{key}" if part else str(key)
        if isinstance(value, Tensor):
            yield part, str(key), value
        elif isinstance(value, dict | list):
            yield from tensors(value, where)


# -- stopped and resumed


def stopping(run: Trainer, after: int) -> None:
    """Has the run sent SIGTERM while it takes its step number `after`, from 1."""
    step, left = run.step, [after]

    def stop(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    run.step = stop  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", TAUGHT)
def test_a_run_stopped_in_mid_epoch_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """In the second of two epochs: the warm-up has gone on, a class prior is in force and the next half gathered."""

    def made(place: str) -> Trainer:
        parts = {"loss": LOSSES[name](), "weight_perturbation": AWP(), "averaging": EMA()}
        return trainer(tmp_path / place, network(norm=True), precision="fp32", **parts)

    made("whole").fit()
    first = made("parts")
    stopping(first, after=6)
    with pytest.raises(Interrupted):
        first.fit()
    position = checkpoints.load(first.last_path)["position"]
    assert (position["epoch"], position["step"]) == (1, 2)
    made("parts").fit()
    for file in ("last.pt", "best.pt"):
        whole, parts = (checkpoints.load(tmp_path / place / "checkpoints" / file) for place in ("whole", "parts"))
        assert same(whole, parts)


# -- other ways of running its passes


@contextmanager
def said_by(passes: Passes, model: nn.Module) -> Iterator[None]:
    """The compiled teacher replaced by another network."""
    before = passes._taught_by
    passes._taught_by = model  # pyright: ignore[reportAttributeAccessIssue]
    yield
    passes._taught_by = before


@pytest.mark.usefixtures("traceable", "aot_eager")
@pytest.mark.parametrize("acceleration", (pytest.param(MODEL, marks=pytest.mark.slow), STEP), ids=str)
def test_the_teachers_pass_is_a_graph_of_its_own(
    acceleration: Acceleration, tmp_path: Path, graphs: Callable[[], int]
) -> None:
    """Two graphs of a whole run: its logits, and the training pass; and the teacher is itself again after each step."""
    run = accelerated(trainer(tmp_path, network(norm=True), loss=LOSSES["kd"]()), acceleration)
    plain = teacher_of(run).model
    run.fit()
    assert graphs() == 2
    assert teacher_of(run).model is plain


@pytest.mark.usefixtures("traceable", "aot_eager")
def test_the_gate_judges_the_teachers_passes(tmp_path: Path) -> None:
    run = trainer(tmp_path, network(norm=True), loss=LOSSES["kd"](), precision="fp32")
    scene = run._subject().scene(run.numerics)
    passes = Passes(run.model, STEP, run.loss.teacher)
    assert judge(scene, passes, run.numerics).passed
    with said_by(passes, network(norm=True, seed=12).eval()):
        assert {"weights", "loss"} <= set(judge(scene, passes, run.numerics).failed)
    assert judge(scene, Passes(run.model, OFF, run.loss.teacher), run.numerics).passed


def test_what_is_measured_elsewhere_has_the_teacher_with_it(tmp_path: Path) -> None:
    """compile=auto sends the parts of a step to a process of its own."""
    run = trainer(tmp_path, loss=LOSSES["ikl_kd"](), precision="fp32")
    file = io.BytesIO()
    torch.save(Task(run._subject(), run.numerics, (OFF,), 1), file, pickle_protocol=4)
    file.seek(0)
    task: Task = torch.load(file, weights_only=False)
    x = torch.rand(4, 3, 6, 6)
    assert task.subject.loss.teacher is not None
    assert torch.equal(task.subject.loss.teacher(x), teacher_of(run)(x))
    optimizer = task.subject.optimizer.build(task.subject.model)
    parts = task.subject.step(optimizer, task.numerics, OFF)(task.subject.batch, None, NoPerturbation(), 1, 0)
    assert torch.isfinite(parts["loss"])


def test_speed_is_remembered_for_one_teacher(tmp_path: Path) -> None:
    facts = []
    for loss in (KD().hold(Teacher(network())), KD().hold(Teacher(network(norm=True))), KD().hold(Teacher(network()))):
        run = trainer(tmp_path, loss=loss)
        facts.append(run._subject().facts(run.numerics))
    assert facts[0] == facts[2] != facts[1]
    assert trainer(tmp_path, loss=LOSSES["ikl"]())._subject().facts(run.numerics)["teacher"] is None


def test_a_trial_of_a_batch_holds_the_teacher_too(tmp_path: Path) -> None:
    """trainer.batch_size=auto counts its weights and its widest layer; by hand, of a linear one without gradient."""
    width, rows = 4096, 16

    def peak(teacher: int) -> int:
        def trial(rows: int) -> None:
            model = nn.Sequential(nn.Flatten(), nn.Linear(108, teacher), nn.ReLU(), nn.Linear(teacher, 4))
            run = trainer(tmp_path, network(), loss=KD().hold(Teacher(model)), precision="fp32", batch_size=rows)
            take_steps(run, rows)

        return peak_bytes(trial, rows)

    more = peak(width) - peak(1)
    weights = (108 + 1 + 4) * (width - 1) * 4
    assert weights <= more <= weights + 3 * rows * width * 4
    assert more >= weights + rows * width * 4 // 2


def test_a_loss_that_lost_its_teacher_says_so(tmp_path: Path) -> None:
    run = trainer(tmp_path, loss=KD(), precision="fp32")
    with pytest.raises(RuntimeError, match=r"expected a teacher, got none; call KD\.hold"):
        take_step(run)
    run.loss = with_teacher(run.loss)  # later than the trainer
    assert torch.isfinite(take_step(run)["loss"])
