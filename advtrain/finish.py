"""How a run ends: evaluation, and what the person sees of it and of the bundle."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from advtrain import checks, distributed
from advtrain.config import ThreatSettings, build, typed
from advtrain.engine import run_directory as directories
from advtrain.engine.numerics import device_named
from advtrain.engine.progress import console
from advtrain.evaluation import EvaluationSettings, evaluate, title
from advtrain.evaluation.statistics import wilson_interval
from advtrain.export import Bundle, Verification
from advtrain.publish import ARRAYS_FILE, EVALUATION_FILE
from advtrain.sources import averaged_model, described, find


def evaluate_run(config: dict[str, Any], parts: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """evaluation.json of a trained run: made now, or read when an earlier call of the same command made it.

    All processes of a group call it and share the work; the main one writes.
    """
    settings: EvaluationSettings = parts["eval"]
    if not settings.enabled:
        console.print(f"no evaluation (eval=none); later: advtrain-eval model={directory}")
        return None
    path = directory / EVALUATION_FILE
    if distributed.on_main(path.is_file):
        return json.loads(path.read_text())
    threat: ThreatSettings = parts["threat"]
    device = device_named(parts["trainer"].device)
    checkpoint = directory / "checkpoints" / f"{settings.checkpoint}.pt"
    model = averaged_model(config, checkpoint, device, trusted=True)
    result = evaluate(
        model,
        parts["data"].split("test"),
        norm=threat.norm,
        eps=threat.radius,
        settings=settings,
        device=device,
        progress=console.print,
        folder=directory,
    )
    if not distributed.is_main():
        return None
    source = {"run": directory.name, "checkpoint": settings.checkpoint, "seed": config["seed"]}
    result.save(directory, source=source | {"git_commit": directories.git_commit()})
    return json.loads(path.read_text())


def evaluation_run(config: dict[str, Any]) -> None:
    """`advtrain-eval`: evaluates whatever `source` names and writes evaluation.json and adversarial.npz.

    Raises:
        SettingError: something cannot be used.
    """
    settings = typed(EvaluationSettings, config["eval"], "eval")
    device = evaluation_device(config)
    source = find(config, device)
    norm = source.norm if config["norm"] is None else str(config["norm"])
    threat = ThreatSettings(norm, source.eps if config["eps"] is None else str(config["eps"]))
    data_config = source.data if config["data_root"] is None else {**source.data, "root": config["data_root"]}
    data = build({key: value for key, value in data_config.items() if not key.startswith("threat_")})
    data.check_test()
    eps_word = threat.eps.replace("/", "_")
    directory = Path(config["out"] or Path("runs") / f"eval-{source.name}-{norm}-{eps_word}")
    with distributed.process_group(device):
        result = evaluate(
            source.model,
            data.split("test"),
            norm=threat.norm,
            eps=threat.radius,
            settings=settings,
            device=device,
            progress=console.print,
            folder=directory,
        )
        distributed.leave()
    if not distributed.is_main():
        return
    result.save(directory, source={**described(config, directory), "git_commit": directories.git_commit()})
    show(json.loads((directory / EVALUATION_FILE).read_text()), directory, None)


def evaluation_device(config: dict[str, Any]) -> torch.device:
    """Where the model of advtrain-eval goes in this process; obeys `threads`, too."""
    if config["threads"] is not None:
        torch.set_num_threads(checks.integer("threads", config["threads"], low=1))
    device = device_named(checks.choice("device", config["device"], ("auto", "cpu", "cuda")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def show(record: dict[str, Any], directory: Path, finished: tuple[Bundle, Verification | None] | None) -> None:
    """The final table and where everything is."""
    threat = record["threat"]
    table = Table(title=f"{directory.name}: {threat['norm']}, ε = {threat['eps']:.5g}", title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "correct", "95 % interval", "at the boundary", "seconds"):
        table.add_column(heading, justify="right")
    for name, label in labels(record).items():
        result = record[name]
        correct = f"{result['correct']} / {result['n_examples']}"
        low, high = result.get("interval") or wilson_interval(result["correct"], result["n_examples"])
        near = result.get("near_boundary", "")
        seconds = f"{result['seconds']:.1f}"
        table.add_row(label, f"{result['accuracy']:.2%}", correct, f"{low:.2%} to {high:.2%}", str(near), seconds)
    console.print()
    console.print(table)
    flags = [flag for name in ("screen", "autoattack") for flag in record.get(name, {}).get("flags") or []]
    for flag in flags:
        console.print(f"AutoAttack warns: {flag['message']}")
    lines: list[tuple[str, object]] = [
        ("configuration", directory / "config.yaml"),
        ("metrics", directory / "metrics.jsonl"),
        ("best, last", directory / "checkpoints"),
        ("evaluation", directory / EVALUATION_FILE),
        ("adversarial images", directory / ARRAYS_FILE),
    ]
    if finished is not None:
        bundle, verification = finished
        lines.append(("submission" if bundle.target == "leaderboard" else "archive", bundle.directory))
        if verification is not None:
            lines.append(("", f"verified: {verification}"))
    for label, path in lines:
        exists = not isinstance(path, Path) or path.exists()
        if exists:
            console.print(f"{label:20}{path}")


def labels(record: dict[str, Any]) -> dict[str, str]:
    """What was measured, as people call it; a subset is called one."""
    named = {"clean": "clean"}
    if "pgd" in record:
        settings = record["pgd"]["settings"]
        named["pgd"] = f"PGD-{settings['steps']}, {settings['restarts']} restarts"
    named |= {name: title(record[name]["settings"]) for name in ("screen", "autoattack") if name in record}
    largest = max(record[name]["n_examples"] for name in named)
    return {
        name: label if record[name]["n_examples"] == largest else f"{label}, subset of {record[name]['n_examples']}"
        for name, label in named.items()
    }
