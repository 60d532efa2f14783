"""How a run ends: evaluation, bundle, verification, and what the person sees of them."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from advtrain import checks
from advtrain.config import ThreatSettings, architecture_of, build, typed
from advtrain.engine import run_directory as directories
from advtrain.engine.numerics import device_named
from advtrain.engine.progress import console
from advtrain.evaluation import Evaluation, EvaluationSettings, evaluate
from advtrain.evaluation.threats import Threat, member_of, parse_threats, union
from advtrain.export import Bundle, ExportMetadata, Verification, export_bundle, verify_bundle
from advtrain.sources import averaged_model, find
from advtrain.types import SettingError

EVALUATION_FILE = "evaluation.json"
ARRAYS_FILE = "adversarial.npz"


def evaluate_run(config: dict[str, Any], parts: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """evaluation.json of a trained run: made now, or read when an earlier call of the same command made it."""
    settings: EvaluationSettings = parts["eval"]
    if not settings.enabled:
        console.print(f"no evaluation (eval=none); later: advtrain-eval model={directory}")
        return None
    path = directory / EVALUATION_FILE
    if path.is_file():
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
    )
    source = {"run": directory.name, "checkpoint": settings.checkpoint, "seed": config["seed"]}
    result.save(directory, source=source | {"git_commit": directories.git_commit()})
    return json.loads(path.read_text())


def export_and_verify(
    config: dict[str, Any],
    metadata: ExportMetadata,
    record: dict[str, Any],
    directory: Path,
    out: Path | None = None,
    *,
    trusted: bool = True,
) -> tuple[Bundle, Verification] | None:
    """Writes the bundle of an evaluated run and verifies it in a fresh process; None where there is nothing to prove.

    Raises:
        VerificationError: the bundle does not hold what it says.
    """
    if not (directory / ARRAYS_FILE).is_file():
        console.print("no bundle: the evaluation ran no attack, so there is nothing to verify it by")
        return None
    checkpoint = directory / "checkpoints" / f"{record['source']['checkpoint']}.pt"
    model = averaged_model(config, checkpoint, torch.device("cpu"), trusted=trusted)
    arguments = {key: value for key, value in architecture_of(config["model"]).items() if key != "_target_"}
    bundle = export_bundle(
        model,
        model_target=config["model"]["_target_"],
        model_arguments=arguments,
        dataset=data_name(config),
        eps_text=str(config["threat"]["eps"]),
        norm=config["threat"]["norm"],
        record=record,
        arrays_path=directory / ARRAYS_FILE,
        metadata=metadata,
        directory=out or directory / "export",
        recipe=config,
    )
    return bundle, verify_bundle(bundle.directory)


def data_name(config: dict[str, Any]) -> str:
    """The dataset's name as leaderboards write it: that of its class."""
    module, _, name = config["data"]["_target_"].rpartition(".")
    return getattr(import_module(module), name).name


def evaluation_run(config: dict[str, Any]) -> None:
    """`advtrain-eval`: evaluates whatever `source` names and writes evaluation.json and adversarial.npz.

    Raises:
        SettingError: something cannot be used.
    """
    settings = typed(EvaluationSettings, config["eval"], "eval")
    if config["threads"] is not None:
        torch.set_num_threads(checks.integer("threads", config["threads"], low=1))
    device = device_named(checks.choice("device", config["device"], ("auto", "cpu", "cuda")))
    source = find(config, device)
    norm = source.norm if config["norm"] is None else str(config["norm"])
    threat = ThreatSettings(norm, source.eps if config["eps"] is None else str(config["eps"]))
    data_config = source.data if config["data_root"] is None else {**source.data, "root": config["data_root"]}
    data = build({key: value for key, value in data_config.items() if not key.startswith("threat_")})
    data.check_test()
    own = Threat(threat.norm, threat.eps)
    threats = parse_threats(config["threats"], stored=own, dataset=data_name({"data": data_config}))
    directory = Path(config["out"] or Path("runs") / f"eval-{source.name}-{'threats' if threats else own.folder}")
    described = {"model": config["source"], "checkpoint": settings.checkpoint, "git_commit": directories.git_commit()}

    def measure(threat: Threat) -> Evaluation:
        return evaluate(
            source.model,
            data.split("test"),
            norm=threat.norm,
            eps=threat.radius,
            settings=settings,
            device=device,
            progress=console.print,
        )

    if threats:
        evaluate_threats(threats, measure, source.model, device, directory, described)
    else:
        measure(own).save(directory, source=described)
    show(json.loads((directory / EVALUATION_FILE).read_text()), directory, None)


def evaluate_threats(
    threats: Sequence[Threat],
    measure: Callable[[Threat], Evaluation],
    model: torch.nn.Module,
    device: torch.device,
    directory: Path,
    described: dict[str, Any],
) -> None:
    """A folder per threat model; `directory` itself gets the first one's files and what holds against all of them."""
    results: dict[Threat, Evaluation] = {}
    for threat in threats:
        console.print(f"threat model {threat}")
        results[threat] = measure(threat)
        results[threat].save(directory / threat.folder, source=described)
    together = union([member_of(model, threat, result, device) for threat, result in results.items()])
    results[threats[0]].save(directory, source=described, threats=together.record())
    console.print("\n".join(["threat models, on the same images", *together.lines()]), highlight=False, markup=False)


def export_run(config: dict[str, Any]) -> None:
    """`advtrain-export`: writes the bundle of an evaluated run and verifies it, or verifies a bundle.

    Raises:
        SettingError: something cannot be used.
        VerificationError: the bundle does not hold what it says.
    """
    if (config["run"] is None) == (config["verify"] is None):
        raise SettingError("expected run=FOLDER or verify=BUNDLE, got neither or both; give one of them")
    if config["verify"] is not None:
        console.print(f"verified: {verify_bundle(Path(config['verify']))}")
        return
    directory = Path(config["run"])
    stored = directories.load_config(directory)
    path = directory / EVALUATION_FILE
    if not path.is_file():
        raise SettingError(f"run: expected a run with {EVALUATION_FILE}, got {directory} without; train it to the end")
    metadata = typed(ExportMetadata, config["export"], "export")
    record = json.loads(path.read_text())
    out = None if config["out"] is None else Path(config["out"])
    finished = export_and_verify(stored, metadata, record, directory, out, trusted=config["trust"])
    if finished is not None:
        bundle, verification = finished
        console.print(f"bundle    {bundle.directory}\nverified  {verification}")
        for line in (*bundle.to_fill, *bundle.obstacles):
            console.print(f"note      {line}")


def show(record: dict[str, Any], directory: Path, finished: tuple[Bundle, Verification] | None) -> None:
    """The final table and where everything is."""
    threat = record["threat"]
    table = Table(title=f"{directory.name}: {threat['norm']}, ε = {threat['eps']:.5g}", title_justify="left")
    table.add_column("")
    for heading in ("accuracy", "correct", "seconds"):
        table.add_column(heading, justify="right")
    for name, label in labels(record).items():
        result = record[name]
        correct = f"{result['correct']} / {result['n_examples']}"
        table.add_row(label, f"{result['accuracy']:.2%}", correct, f"{result['seconds']:.1f}")
    console.print()
    console.print(table)
    flags = record.get("autoattack", {}).get("flags") or []
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
        lines.append(("bundle", bundle.directory))
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
    if "autoattack" in record:
        named["autoattack"] = f"AutoAttack ({record['autoattack']['settings']['version']})"
    largest = max(record[name]["n_examples"] for name in named)
    return {
        name: label if record[name]["n_examples"] == largest else f"{label}, subset of {record[name]['n_examples']}"
        for name, label in named.items()
    }
