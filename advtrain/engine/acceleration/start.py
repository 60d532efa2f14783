"""What is decided before the first step of a run: its numerics and how its passes are run; both pass the gate."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from advtrain import distributed
from advtrain.config import TrainerSettings
from advtrain.engine.acceleration import cache
from advtrain.engine.acceleration.choice import (
    SECONDS,
    Choice,
    Measure,
    asked_for,
    measured_choice,
    name_of,
    remembered_choice,
    table,
)
from advtrain.engine.acceleration.parity import judge
from advtrain.engine.acceleration.passes import OFF, Acceleration, Passes
from advtrain.engine.acceleration.subject import Subject
from advtrain.engine.execution import recorded_execution
from advtrain.engine.numerics import Numerics, untried_kernels
from advtrain.engine.progress import console
from advtrain.types import SettingError

IMAGES = 128  # of each view, at most, by which numerics are judged
GATED = ("tf32", "bf16")

Lazily = Callable[[], Subject]  # the batch is loaded where something is judged, and only there


@dataclass(frozen=True)
class Start:
    """What a run starts with, and why.

    Attributes:
        numerics: of the run.
        acceleration: of its passes.
        facts: for `record_execution`: numerics and acceleration with their reasons, verdicts and measurements.
        why: of the acceleration in words, for the opening lines; empty where it was asked for.
    """

    numerics: Numerics
    acceleration: Acceleration
    facts: dict[str, Any]
    why: str = ""


def decide(
    subject: Lazily, settings: TrainerSettings, numerics: Numerics, directory: Path, *, measure: Measure | None = None
) -> Start:
    """What this run starts with; what it started with before, where it resumes on the same machine.

    All processes call it alike.

    Args:
        subject: gives the parts of a step.
        settings: of the trainer.
        numerics: what the settings mean on this device, before anything is judged.
        directory: of the run, where a record of an earlier start may be.
        measure: in place of the measurement by a child process.

    Raises:
        SettingError: numerics that were asked for by name do not pass the gate.
    """
    known = distributed.on_main(lambda: recorded_execution(directory))
    asked = {"precision": settings.precision, "compile": settings.compile, "cuda_graph": settings.cuda_graph}
    asked["machine"] = distributed.on_main(lambda: cache.machine(numerics.device))
    before: dict[str, Any] = known.get("asked") or {}
    if before.get("precision") == settings.precision and "numerics" in known:
        numerics, judged = _as(known["numerics"]["precision"], numerics), known["numerics"]
    else:
        numerics, judged = _judged(subject, settings, numerics)
    if before == asked and "acceleration" in known:
        facts = known["acceleration"]
        choice = Choice(Acceleration(facts["compile"], facts["cuda_graph"]), "as when this run started", [])
    else:
        choice = _chosen(subject, settings, numerics, measure)
        facts = {**asdict(choice.acceleration), "why": choice.why or "asked for", "table": choice.table, "gate": None}
    return Start(
        numerics, choice.acceleration, {"asked": asked, "numerics": judged, "acceleration": facts}, why=choice.why
    )


def confirmed(start: Start, subject: Lazily, settings: TrainerSettings, passes: Passes) -> Start:
    """The same start, once compiled passes that nobody has judged yet have passed the gate.

    They are those that the run goes on with, so what the gate compiles is compiled anyway.

    Raises:
        SettingError: they do not pass.
    """
    facts = start.facts["acceleration"]
    if start.acceleration == OFF or facts["why"] != "asked for" or facts["gate"]:
        return start
    verdict = judge(subject().scene(start.numerics), passes, start.numerics)
    if not verdict.passed:
        raise SettingError(
            f"trainer.compile={settings.compile}: expected the gradients of plain passes, got {verdict.reason()}; "
            "use trainer.compile=off and trainer.cuda_graph=null"
        )
    return replace(start, facts=start.facts | {"acceleration": facts | {"gate": verdict.record()}})


def _judged(subject: Lazily, settings: TrainerSettings, numerics: Numerics) -> tuple[Numerics, dict[str, Any]]:
    """The numerics that the run gets, and their record."""
    why, record = "asked for" if settings.precision != "auto" else f"auto on {numerics.device.type}", None
    if numerics.word in GATED:
        own = subject()
        with untried_kernels():  # of a batch that the run never has again
            verdict = judge(own.scene(numerics, IMAGES), Passes(own.model, OFF), numerics)
        record = verdict.record()
        if not verdict.passed:
            if settings.precision != "auto":
                raise SettingError(
                    f"trainer.precision={settings.precision}: expected gradients like those in float32, got "
                    f"{verdict.reason()}; use trainer.precision=fp32"
                )
            why = f"auto: {numerics.word} did not pass the gate ({verdict.reason()})"
            numerics = numerics.exact()
            console.print(f"precision {why}; float32 it is")
    return numerics, {
        "precision": numerics.word,
        "why": why,
        "dtype": str(numerics.dtype).removeprefix("torch."),
        "autocast": "bfloat16" if numerics.autocast else None,
        "tf32": numerics.tf32,
        "memory_format": str(numerics.memory_format).removeprefix("torch."),
        "gate": record,
    }


def _as(word: str, numerics: Numerics) -> Numerics:
    """The numerics that a run had before, whatever this device would get by itself."""
    return replace(numerics, autocast=word == "bf16", tf32=word == "tf32")


def _chosen(subject: Lazily, settings: TrainerSettings, numerics: Numerics, measure: Measure | None) -> Choice:
    """The acceleration; why is empty where it was asked for."""
    asked = asked_for(settings)
    if asked is not None:
        return Choice(asked, "", [])
    own = subject()  # on every process, since loading a batch may need all of them

    def choice() -> Choice:
        name = name_of(own, numerics)
        found = remembered_choice(name)
        if found is None:
            console.print(f"compile   auto: measuring this run's own steps, for {SECONDS:g} s at most")
            found = measured_choice(own, numerics, name, measure=measure)
        for line in table(found.table):
            console.print(f"          {line}", highlight=False, markup=False)
        return found

    return distributed.on_main(choice)
