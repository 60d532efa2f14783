"""Writes results/<name>.json from a finished run: what was run, on what, at which commit, and what came out.

    python scripts/record.py runs/cifar10_cpu-seed0 [results/cifar10_cpu.json]
    python scripts/record.py runs/cifar10_cpu_1000 results/cifar10_cpu.json

The second form takes a folder that advtrain-eval wrote about a published model, and renews its record's evaluation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from advtrain.engine import checkpoints
from advtrain.export import portable_command

MEASURED = ("clean", "pgd", "screen", "autoattack")
FOUND = ("masking", "second", "collapse", "threats", "curve", "corruptions", "leaderboard")


def record(run: Path) -> dict[str, Any]:
    """The facts of a run directory that a reader needs to believe or repeat its numbers."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    best = checkpoints.load(run / "checkpoints" / "best.pt")["position"]
    last = checkpoints.load(run / "checkpoints" / "last.pt")["position"]
    provenance = config["provenance"]
    trained = {
        "command": portable_command(provenance["command"]),
        "seed": config["seed"],
        "git_commit": {"training": provenance["git_commit"]},
        "versions": provenance["versions"],
        "hardware": provenance.get("hardware"),
        "training": {
            "epochs": last["epoch"],
            "seconds": round(last["seconds"], 1),
            "precision": config["trainer"]["precision"],
            "loss": config["loss"],
        },
        "checkpoint": {
            "chosen": evaluation["source"]["checkpoint"],
            "epoch": best["best_epoch"],
            "held_out_clean": best["best_clean"],
            "held_out_robust": best["best_robust"],
        },
    }
    return renewed(trained, evaluation)


def renewed(trained: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """A record, with what an evaluation found in place of what it said of an earlier one."""
    kept = {key: trained[key] for key in ("command", "seed", "training", "checkpoint")}
    source, hardware = evaluation["source"], trained.get("hardware")
    if hardware is not None and "hardware" not in kept["training"]:
        kept["training"] = kept["training"] | {"hardware": hardware}
    if "command" in source:
        kept["evaluation_command"] = portable_command(source["command"])
    measured = {name: evaluation[name] for name in MEASURED if name in evaluation}
    seconds = trained["training"]["seconds"] + sum(result["seconds"] for result in measured.values())
    return {
        **kept,
        "dataset": evaluation["dataset"],
        "git_commit": {"training": trained["git_commit"]["training"], "evaluation": source["git_commit"]},
        "hardware": evaluation["hardware"],
        "versions": trained["versions"] | evaluation["versions"],
        "threat": evaluation["threat"],
        **measured,
        **{name: evaluation[name] for name in FOUND if name in evaluation},
        "seconds": round(seconds, 1),
    }


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) == 3 else Path("results") / f"{run.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    if (run / "config.yaml").is_file():
        content = record(run)
    else:
        content = renewed(json.loads(out.read_text()), json.loads((run / "evaluation.json").read_text()))
    out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(out)


if __name__ == "__main__":
    main()
