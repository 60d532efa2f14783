"""What a run starts with: how the fastest alternative is found, remembered, recorded and kept."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from advtrain.attacks import PGD, Attack, Free
from advtrain.config import TrainerSettings, typed
from advtrain.engine import Trainer
from advtrain.engine.acceleration import OFF, Acceleration, cache, choice, measuring, start
from advtrain.engine.acceleration.choice import Row, alternatives, fastest, rows, table, takes_passes
from advtrain.engine.acceleration.measuring import Refused, Task, events, measurement
from advtrain.engine.execution import RECORD, changes_of_mathematics, record_execution, recorded_execution
from advtrain.engine.numerics import Numerics
from advtrain.export.recipe import training_lines
from advtrain.losses import Standard
from advtrain.publish import _training
from advtrain.types import SettingError
from tests.engine.toy import network, trainer

CPU, CUDA = Numerics(torch.device("cpu")), Numerics(torch.device("cuda", 0))
MODEL, STEP, GRAPH = Acceleration("model"), Acceleration("step"), Acceleration("step", True)
PASSED = {"passed": True, "figures": {}, "bounds": {}, "images": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def timed(one: Acceleration, *seconds: float, first: int = 1) -> Row:
    return Row(one, dict(enumerate(seconds, first)), PASSED)


def reported(**milliseconds: float) -> list[dict[str, Any]]:
    """Events of a measurement in which every block of an alternative took as long."""
    found: list[dict[str, Any]] = []
    for name, ms in milliseconds.items():
        found.append({"event": "ready", "name": name, "gate": PASSED})
        found += [{"event": "timed", "name": name, "round": i, "seconds": ms / 1000} for i in range(5)]
    return found


class Own(Attack):
    def __call__(self, objective: Any, x: torch.Tensor, *, generator: Any = None) -> torch.Tensor:
        return (x + 0.01).clamp(0, 1)


# -- which is the fastest


@pytest.mark.parametrize(
    ("found", "best"),
    (
        ([timed(OFF, 2, 2, 2), timed(STEP, 1, 1, 1)], STEP),
        ([timed(OFF, 1, 1, 1), timed(STEP, 0.99, 0.99, 0.99)], OFF),  # within noise
        ([timed(OFF, 1, 1, 1), timed(MODEL, 0.99, 0.99, 0.99), timed(STEP, 0.975, 0.975, 0.975)], STEP),
        ([timed(OFF, 1, 9, 1, 1), timed(STEP, 1.1, 1.1, 1.1, 1.1)], OFF),  # one slow block is no gain
        ([timed(OFF, 5, 5, 1, 1), timed(STEP, 0.9, 0.9, 1, 1)], OFF),  # faster in half of the rounds
        ([timed(STEP, 1, 1, 1), timed(MODEL, 1, 1, 1)], MODEL),
        ([timed(STEP, 1, 1, 1), timed(GRAPH, 0.5, 0.5, 0.5)], GRAPH),
        ([timed(OFF, 2, 2, 2), timed(STEP, 1, 1)], OFF),  # not finished
        ([timed(OFF, 2, 2, 2), Row(STEP, {1: 1.0, 2: 1.0, 3: 1.0}, PASSED, "gate")], OFF),
        ([timed(OFF, 2, 2, 2), timed(STEP, 1, 1, 1, first=7)], OFF),  # never in the same round
        ([timed(STEP, 1, 1, 1)], STEP),
        ([], OFF),
    ),
)
def test_the_fastest(found: list[Row], best: Acceleration) -> None:
    assert fastest(found) == best


def test_rows_tell_why_an_alternative_is_out() -> None:
    offered = (OFF, STEP, MODEL, GRAPH)
    failed = PASSED | {"passed": False}
    refused = [
        {"event": "refused", "name": "step", "reason": "weights 0.5 above 0.02", "gate": failed},
        {"event": "refused", "name": "model", "reason": "Unsupported: no", "gate": None},
    ]
    found = rows(offered, [*reported(off=2.0), *refused], 60)
    notes = ["", "weights 0.5 above 0.02", "Unsupported: no", "not finished in 60 s"]
    assert [row.note for row in found] == notes
    lines = table([row.record(images=8) for row in found])
    assert lines[1].split() == ["off", "2", "4000", "passed"]
    assert "failed  weights 0.5" in lines[2] and "not finished in 60 s" in lines[4]
    crashed = rows(offered, [*reported(off=2.0), {"event": "ended", "reason": "exit code -11: no message"}], 60)
    assert crashed[0].note == "" and crashed[1].note == "measuring ended: exit code -11: no message"


# -- how it is measured


def test_alternatives_take_turns_by_a_given_clock() -> None:
    """The clock goes on by 1 per look; so each step takes 1, and all blocks have one step."""
    taken: list[str] = []

    def prepared(one: Acceleration) -> tuple[Callable[[], None], dict[str, Any]]:
        if one == MODEL:
            raise Refused("no")
        return lambda: taken.append(str(one)), {"gate": PASSED}

    ticks = count()
    found = list(events((OFF, MODEL, STEP), prepared, clock=lambda: float(next(ticks))))
    assert [event["name"] for event in found if event["event"] == "refused"] == ["model"]
    blocks = [event for event in found if event["event"] == "timed"]
    assert {event["seconds"] for event in blocks} == {1.0}
    both = [event["name"] for event in blocks if event["round"] > measuring.FIRST_ROUNDS]
    assert len(both) == 2 * (measuring.ROUNDS - measuring.FIRST_ROUNDS)
    assert both[:4] in (["off", "step", "step", "off"], ["step", "off", "off", "step"])
    assert [event["name"] for event in blocks][: measuring.FIRST_ROUNDS] == ["off"] * measuring.FIRST_ROUNDS
    assert taken[0] == "off" and taken.count("step") == measuring.ROUNDS - measuring.FIRST_ROUNDS


def test_short_steps_are_timed_many_at_a_time() -> None:
    ticks = (i * measuring.BLOCK / 8 for i in count())
    taken: list[int] = []
    found = events((OFF,), lambda one: (lambda: taken.append(1), {"gate": PASSED}), clock=lambda: next(ticks))
    assert [event["event"] for event in found] == ["ready"] + ["timed"] * measuring.ROUNDS
    assert len(taken) == 1 + 8 * measuring.ROUNDS


def task(tmp_path: Path, **changes: Any) -> Task:
    run = trainer(tmp_path, precision="fp32", **changes)
    return Task(run._subject(), run.numerics, (OFF,), 1)


@pytest.mark.slow
def test_a_child_measures_and_is_ended_in_time(tmp_path: Path) -> None:
    """The data of the task are plain tensors, so the child needs nothing of the tests."""
    found = measurement(task(tmp_path), 120)
    assert [event["event"] for event in found] == ["ready"] + ["timed"] * measuring.ROUNDS, found
    assert found[0]["gate"]["passed"] and all(event["seconds"] > 0 for event in found[1:])


def test_what_is_not_finished_in_time_is_not_reported(tmp_path: Path) -> None:
    assert measurement(task(tmp_path), 0.0) == []


def test_what_a_child_cannot_have_is_said(tmp_path: Path) -> None:
    class Local(PGD):
        pass

    (ended,) = measurement(task(tmp_path, attack=Local(eps=0.1, steps=1)), 60)
    assert ended["event"] == "ended" and "Local" in ended["reason"]


def test_alternatives_where_they_apply(tmp_path: Path) -> None:
    def offered(numerics: Numerics, **changes: Any) -> list[str]:
        return [str(one) for one in alternatives(trainer(tmp_path, **changes)._subject(), numerics)]

    assert offered(CPU) == ["off", "step", "model"]
    assert offered(CPU, attack=Own()) == offered(CUDA, attack=Own()) == ["off", "model"]
    assert offered(CUDA, loss=Standard(), attack=None) == ["off", "model"]
    assert offered(CUDA, cuda_graph=False) == ["off", "step", "model"]
    graphs = ["off + CUDA graph", "step + CUDA graph", "model + CUDA graph"]
    assert offered(CUDA) == ["off", "step", "model", *graphs]
    checkpointed = trainer(tmp_path)._subject()
    checkpointed = replace(checkpointed, settings=replace(checkpointed.settings, activation_checkpointing=True))
    assert [str(one) for one in alternatives(checkpointed, CUDA)] == ["off", "model"]


def test_what_reaches_an_attack() -> None:
    assert takes_passes(PGD(eps=0.1, steps=1), STEP, 2) and takes_passes(Own(), MODEL, 2)
    assert not takes_passes(Own(), STEP, 2) and not takes_passes(Own(), GRAPH, 2)


# -- how it is remembered


def test_second_time_from_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[float] = []

    def measure(task: Task, seconds: float) -> list[dict[str, Any]]:
        calls.append(seconds)
        return reported(off=2.0, step=1.0, model=3.0)

    def decided(folder: str, **changes: Any) -> start.Start:
        run = trainer(tmp_path / folder, precision="fp32", **changes)
        return start.decide(
            run._subject, TrainerSettings(compile="auto", batch_size=24), CPU, tmp_path / folder, measure=measure
        )

    assert decided("one").acceleration == STEP
    assert "measuring" in capsys.readouterr().out
    again = decided("two")
    assert again.acceleration == STEP and "earlier run" in again.why
    shown = capsys.readouterr().out
    assert "measuring" not in shown and "step" in shown and calls == [choice.SECONDS]
    decided("three", model=network(norm=True))
    decided("four", attack=PGD(eps=0.05, steps=3))
    decided("five", batch_size=12)
    assert len(calls) == 4
    cache.cache_path().write_text("{ damaged")
    decided("six")
    assert len(calls) == 5 and decided("seven").acceleration == STEP and len(calls) == 5


def test_a_choice_made_in_want_of_time_is_not_remembered(tmp_path: Path) -> None:
    """Compilation of a large network may outlast the first measurement, and be found done by the second."""
    results = [reported(off=2.0), reported(off=2.0, step=1.0, model=3.0)]

    def decided(folder: str) -> start.Start:
        run = trainer(tmp_path / folder, precision="fp32")
        settings = TrainerSettings(compile="auto", batch_size=24)
        return start.decide(run._subject, settings, CPU, tmp_path / folder, measure=lambda *_: results.pop(0))

    first = decided("one")
    assert first.acceleration == OFF and "again at the next start" in first.why
    assert decided("two").acceleration == STEP and not results
    assert decided("three").acceleration == STEP  # remembered now


def test_no_place_for_a_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.remember("a", {"compile": "off"})
    assert cache.remembered("a") is None


def test_the_key_knows_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.key(cache.machine(CPU.device))
    assert cache.key(cache.machine(CPU.device)) == first
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert cache.key(cache.machine(CPU.device)) != first


# -- what a run does with it


def stubbed(monkeypatch: pytest.MonkeyPatch, **milliseconds: float) -> None:
    monkeypatch.setattr(choice, "measurement", lambda task, seconds: reported(**milliseconds))


def test_the_record_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch, off=1.0, step=3.0)
    record_execution(tmp_path, batch_size_found={"memory": 1})
    trainer(tmp_path, epochs=1, precision="bf16", compile="auto", sync_batchnorm=True).fit()
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["numerics"]["precision"] == "bf16" and record["numerics"]["gate"]["passed"]
    assert record["numerics"]["memory_format"] == "channels_last" and record["numerics"]["tf32"] is False
    how = record["acceleration"]
    assert (how["compile"], how["cuda_graph"]) == ("off", False) and "fastest of 2" in how["why"]
    assert [row["ms"] for row in how["table"]] == [1.0, 3.0, None]
    assert record["batch_size"] == 24 and record["processes"] == 1 and record["batch_size_found"] == {"memory": 1}
    assert record["asked"]["machine"]["torch"] == torch.__version__
    assert record["changes_mathematics"] == {"trainer.sync_batchnorm": True}


def test_a_resumed_run_keeps_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(monkeypatch, off=1.0, step=2.0, model=2.0)
    first = trainer(tmp_path, epochs=1, precision="fp32", compile="auto")
    first.fit()
    cache.cache_path().unlink()
    stubbed(monkeypatch, off=3.0, step=2.0, model=1.0)
    again = trainer(tmp_path, epochs=2, precision="fp32", compile="auto")
    assert again.start.acceleration == OFF and again.start.why == "as when this run started"
    assert trainer(tmp_path / "new", precision="fp32", compile="auto").start.acceleration == MODEL
    assert trainer(tmp_path, precision="fp32", cuda_graph=False, compile="auto").start.acceleration == MODEL
    monkeypatch.setattr(cache, "_processor", lambda: "another")
    assert trainer(tmp_path, precision="fp32", compile="auto").start.acceleration == MODEL


def test_a_resumed_run_keeps_its_precision(tmp_path: Path) -> None:
    """Another device would decide otherwise; the numbers of the run stay those that it began with."""
    record_execution(tmp_path, asked={"precision": "auto"}, numerics={"precision": "bf16"})
    assert trainer(tmp_path, precision="auto").numerics.word == "bf16"
    assert trainer(tmp_path, precision="fp32").numerics.word == "fp32"


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate with bounds of nothing."""
    from advtrain.engine.acceleration import parity

    monkeypatch.setattr(parity, "COARSEST", 0.0)


def test_bfloat16_that_fails_is_refused_by_name_and_replaced_by_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch)
    line = "trainer.precision=bf16: expected gradients like those in float32, got .*use trainer.precision=fp32"
    with pytest.raises(SettingError, match=line):
        trainer(tmp_path, precision="bf16")
    run = trainer(tmp_path, precision="fp32")
    coarse = Numerics(torch.device("cpu"), autocast=True)
    found = start.decide(run._subject, TrainerSettings(batch_size=24), coarse, tmp_path)
    assert found.numerics.word == "fp32" and "did not pass" in found.facts["numerics"]["why"]
    assert found.facts["numerics"]["gate"]["passed"] is False
    assert "float32 it is" in capsys.readouterr().out


def test_passes_asked_for_by_name_that_fail_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch)
    run = trainer(tmp_path, precision="fp32", compile="off")
    asked = start.Start(CPU, MODEL, {"acceleration": {"why": "asked for", "gate": None}})
    wrong = run.step.passes
    wrong.trained = torch.nn.Sequential(run.model, torch.nn.Tanh())
    with pytest.raises(SettingError, match=r"trainer.compile=model: expected the gradients of plain passes, got"):
        start.confirmed(asked, run._subject, TrainerSettings(compile="model", batch_size=24), wrong)


def test_nothing_is_loaded_where_nothing_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_subject", lambda self: pytest.fail("a batch was loaded"))
    for precision in ("fp32", "fp64", "auto"):
        assert trainer(tmp_path / precision, precision=precision).start.acceleration == OFF


def test_what_changes_the_mathematics() -> None:
    pgd = PGD(eps=0.1, steps=10)
    assert changes_of_mathematics(TrainerSettings(), pgd) == {}
    assert changes_of_mathematics(TrainerSettings(attack_batchnorm="train"), pgd) == {
        "trainer.attack_batchnorm": "train"
    }
    assert changes_of_mathematics(TrainerSettings(attack_batchnorm="train"), None) == {}
    for attack in (PGD(eps=0.1, steps=1), Free(eps=0.1)):
        assert changes_of_mathematics(TrainerSettings(), attack) == {"attack": attack.describe()}


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    assert recorded_execution(tmp_path) == {}
    (tmp_path / RECORD).write_text("[1")
    assert recorded_execution(tmp_path) == {}
    record_execution(tmp_path, a=1)
    record_execution(tmp_path, b=2, a=3)
    assert recorded_execution(tmp_path) == {"a": 3, "b": 2}


# -- on the command line

SHORT = (
    "experiment=quickstart",
    "eval=none",
    "name=run",
    "trainer.epochs=1",
    "trainer.batch_size=256",
    "trainer.validation.steps=1",
    "trainer.threads=1",
)
STUB = """
import sys, os
import advtrain.engine.acceleration.choice as choice
import advtrain.engine.acceleration.compiled as compiled
compiled.BACKEND = "aot_eager"  # traces and differentiates as torch.compile does, and compiles nothing
GATE = {"passed": True, "figures": {}, "bounds": {}, "images": 4}
def measurement(task, seconds):
    open(f"measured-by-{os.environ.get('RANK', 'one')}", "x").close()
    found = []
    for name, s in (("off", 2.0), ("step", 3.0), ("model", 1.0)):
        found.append({"event": "ready", "name": name, "gate": GATE})
        found += [{"event": "timed", "name": name, "round": i, "seconds": s} for i in range(4)]
    return found
choice.measurement = measurement
sys.argv[0] = "advtrain"
from advtrain.cli import train
train()
"""


def command(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    (folder / "stub.py").write_text(STUB)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *launcher, "stub.py", *SHORT, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_auto_on_the_command_line(tmp_path: Path) -> None:
    done = command(tmp_path, "trainer.compile=auto")
    assert done.returncode == 0, done.stderr
    assert "compile   model (the fastest of 3 that were measured)" in done.stdout
    assert "ms/step" in done.stdout and (tmp_path / "measured-by-one").is_file()
    record = json.loads((tmp_path / "runs" / "run" / RECORD).read_text())
    assert record["acceleration"]["compile"] == "model"
    done = command(tmp_path, "trainer.compile=auto", "name=second")
    assert done.returncode == 0 and "measured by an earlier run" in done.stdout


@pytest.mark.slow
def test_one_of_two_processes_measures_and_both_use_it(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = command(tmp_path, "trainer.compile=auto", "trainer.precision=bf16", launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.glob("measured-by-*")] == ["measured-by-0"]
    record = json.loads((tmp_path / "runs" / "run" / RECORD).read_text())
    assert record["acceleration"]["compile"] == "model" and record["processes"] == 2
    assert record["numerics"]["gate"]["passed"]


@pytest.mark.slow
def test_step_on_the_command_line(tmp_path: Path) -> None:
    done = command(tmp_path, "trainer.compile=step", "model.width=8")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "runs" / "run" / RECORD).read_text())
    assert record["acceleration"]["compile"] == "step" and record["acceleration"]["gate"]["passed"]
    assert "compile   step\n" in done.stdout
    facts = _training(tmp_path / "runs" / "run", "last")["execution"]
    words = f"precision fp32, compile step, batch_size {record['batch_size']}"
    assert training_lines({"execution": facts}) == [f"training ran with: {words}"]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    (
        ("compile", "fast", "trainer.compile: expected one of off, model, step, auto, got 'fast'"),
        ("precision", "fp16", "trainer.precision: expected one of auto, fp32, tf32, bf16, fp64, got 'fp16'"),
        ("cuda_graph", "maybe", "trainer.cuda_graph: expected true or false, got 'maybe'"),
    ),
)
def test_wrong_words(key: str, value: str, line: str) -> None:
    with pytest.raises(SettingError, match=line):
        typed(TrainerSettings, {key: value}, "trainer")


def test_what_a_device_has_not_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = command(tmp_path, "trainer.precision=tf32", "trainer.device=cpu")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "runs").exists()
    assert "trainer.precision=tf32: expected a GPU" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_off_without_quotes_in_a_yaml_file() -> None:
    """YAML 1.1 reads it as false."""
    assert typed(TrainerSettings, {"compile": False}, "trainer").compile == "off"
    with pytest.raises(SettingError, match="expected one of off, model, step, auto, got 'on'"):
        typed(TrainerSettings, {"compile": True}, "trainer")
