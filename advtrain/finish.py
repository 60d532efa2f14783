"""How a run ends: its evaluation, what is added about the run, and the report; and the same for `advtrain-eval`."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advtrain import checks, distributed, second
from advtrain.config import ThreatSettings, build, typed
from advtrain.data.base import Dataset
from advtrain.engine import run_directory as directories
from advtrain.engine.execution import recorded_teacher
from advtrain.engine.numerics import device_named
from advtrain.engine.progress import console
from advtrain.engine.validation import selection
from advtrain.evaluation import EvaluationSettings, evaluate
from advtrain.evaluation.masking import standard_surrogate, train_surrogate
from advtrain.evaluation.records import RECORD, Evaluation, write_record
from advtrain.evaluation.threats import ALL, Member, Threat, Union, parse_threats, settings_for_others, union
from advtrain.publish import data_name
from advtrain.report import Measured, Snapshot, load, position, write_report
from advtrain.sources import averaged_model, described, find
from advtrain.summary import show
from advtrain.types import SettingError


def evaluate_run(config: dict[str, Any], parts: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """evaluation.json of a trained run: made now, or read when an earlier call of the same command made it.

    All processes of a group call it and share the work; the main one writes.
    """
    settings: EvaluationSettings = parts["eval"]
    if not settings.enabled:
        console.print(f"no evaluation (eval=none); later: advtrain-eval model={directory}")
        return None
    path = directory / RECORD
    threat: ThreatSettings = parts["threat"]
    data, device = parts["data"], device_named(parts["trainer"].device)
    run = second.Run(directory, config, trusted=True, device=device)
    measure = measurement(data, threat, device, directory, data_name(config))
    if not distributed.on_main(path.is_file):
        model = averaged_model(config, run.path(settings.checkpoint), device, trusted=True)
        source = {"run": directory.name, "seed": config["seed"], **run.facts(settings.checkpoint)}
        source["selected_by"] = selection(
            threat, parts["trainer"].validation, parts["attack"], parts["loss"], data.num_classes
        ).describe()
        source |= {"git_commit": directories.git_commit(), **recorded_teacher(directory)}
        save(measure(model, settings=settings), directory, data_name(config), source, load())
    second.complete(path, run, settings, measure)
    return distributed.on_main(lambda: reported(directory))


def evaluation_run(config: dict[str, Any]) -> None:
    """`advtrain-eval`: evaluates whatever `source` names and writes evaluation.json and adversarial.npz.

    Raises:
        SettingError: something cannot be used.
    """
    settings = typed(EvaluationSettings, config["eval"], "eval")
    if config["eps"] is not None and config["threats"] not in ([], ALL):
        raise SettingError(
            f"eps: expected none beside a list of threats, which have their own radii, got {config['eps']}; remove it"
        )
    snapshot = load(config["leaderboard"])
    device = evaluation_device(config)
    source = find(config, device)
    norm = source.norm if config["norm"] is None else str(config["norm"])
    threat = ThreatSettings(norm, source.eps if config["eps"] is None else str(config["eps"]))
    data_config = source.data if config["data_root"] is None else {**source.data, "root": config["data_root"]}
    data = build({key: value for key, value in data_config.items() if not key.startswith("threat_")})
    data.check_test()
    own, name = Threat(threat.norm, threat.eps), data_name({"data": data_config})
    threats = parse_threats(config["threats"], stored=own, dataset=name)
    directory = Path(config["out"] or Path("runs") / f"eval-{source.name}-{'threats' if threats else own.folder}")
    run = second.run_named(str(config["source"]), trusted=config["trust"], device=device)

    def measured(threat: Threat, folder: Path, settings: EvaluationSettings) -> Evaluation:
        result = measurement(data, threat, device, folder, name)(source.model, settings=settings)
        written(result, folder)
        return result

    def written(result: Evaluation, folder: Path) -> None:
        facts = {**described(config, folder), "command": shlex.join(["advtrain-eval", *as_given(sys.argv[1:])])}
        facts["git_commit"] = directories.git_commit()
        if run is not None:
            facts |= run.facts(settings.checkpoint) | recorded_teacher(run.directory)
        save(result, folder, name, facts, snapshot)

    with distributed.process_group(device):
        main = threats[0] if threats else own
        result = measured(main, directory, settings)
        if run is not None:
            second.complete(directory / RECORD, run, settings, measurement(data, main, device, directory, name))
        if threats:
            written(result, directory / main.folder)
            members, fewer = [Member.of(main, result)], settings_for_others(settings)
            for threat in threats[1:]:
                members.append(Member.of(threat, measured(threat, directory / threat.folder, fewer)))
            add_union(union(members), directory)
        distributed.leave()
    if distributed.is_main():
        show(reported(directory, snapshot), directory, None)


def as_given(words: Sequence[str]) -> list[str]:
    """The words of advtrain-eval in a form that it takes: what Hydra was handed as source='WHAT' is model=WHAT."""
    quoted = "source='"
    return [f"model={w[len(quoted) : -1]}" if w.startswith(quoted) and w.endswith("'") else w for w in words]


def add_union(together: Union, directory: Path) -> None:
    """Prints what holds against several threat models and adds it to the record of `directory`, the first one's."""
    if distributed.is_main():
        record = json.loads((directory / RECORD).read_text())
        write_record(record | {"threats": together.record()}, directory / RECORD)
        for line in together.lines():
            console.print(line, highlight=False, markup=False)


def measurement(
    data: Dataset, threat: ThreatSettings | Threat, device: torch.device, directory: Path, name: str
) -> Callable[..., Evaluation]:
    """`evaluate` on the test split of `data`, called `name`, for a model and settings to come."""
    return partial(
        evaluate,
        split=data.split("test"),
        norm=threat.norm,
        eps=threat.radius,
        device=device,
        progress=console.print,
        folder=directory,
        surrogate=partial(surrogate, data, name, device),
        dataset=name,
    )


def surrogate(data: Dataset, name: str, device: torch.device) -> nn.Module | None:
    """An ordinary model for the classes of `data`: one that is installed, or one trained in seconds; None without
    training images."""
    installed = standard_surrogate(name)
    if installed is not None:
        return installed.to(device)
    try:
        data.check()
        images = data.split("train")
    except SettingError:
        return None
    console.print("masking: training an ordinary model, on which transferred images are made")
    return train_surrogate(images, data.num_classes or int(images.labels.max()) + 1, device=device)


def save(result: Evaluation, directory: Path, dataset: str, source: dict[str, Any], snapshot: Snapshot) -> None:
    """Writes evaluation.json, with the model's place on the board, and the images behind it; on the main process."""
    if distributed.is_main():
        record = {"dataset": dataset, "source": source, **result.record()}
        board = position(Measured.from_record(record, dataset), snapshot)
        result.save(directory, dataset=dataset, source=source, parts={"leaderboard": board.record()})
    distributed.barrier()


def reported(directory: Path, snapshot: Snapshot | None = None) -> dict[str, Any]:
    """Writes report.html of an evaluated folder; returns the content of evaluation.json."""
    write_report(directory, snapshot=snapshot)
    return json.loads((directory / RECORD).read_text())


def evaluation_device(config: dict[str, Any]) -> torch.device:
    """Where the model of advtrain-eval goes in this process; obeys `threads`, too."""
    if config["threads"] is not None:
        torch.set_num_threads(checks.integer("threads", config["threads"], low=1))
    device = device_named(checks.choice("device", config["device"], ("auto", "cpu", "cuda")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
