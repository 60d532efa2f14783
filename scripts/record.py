"""Writes results/<name>.json from a finished run: what was run, on what, at which commit, and what came out.

python scripts/record.py runs/cifar10_cpu-seed0 [results/cifar10_cpu.json]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from advtrain.engine import checkpoints


def record(run: Path) -> dict[str, Any]:
    """The facts of a run directory that a reader needs to believe or repeat its numbers."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    best = checkpoints.load(run / "checkpoints" / "best.pt")["position"]
    last = checkpoints.load(run / "checkpoints" / "last.pt")["position"]
    provenance = config["provenance"]
    names = [name for name in ("clean", "pgd", "autoattack") if name in evaluation]
    return {
        "command": re.sub(r"(data\.root|run_root)=\S+", r"\1=/datasets", provenance["command"]),
        "seed": config["seed"],
        "git_commit": {"training": provenance["git_commit"], "evaluation": evaluation["source"]["git_commit"]},
        "hardware": evaluation["hardware"],
        "versions": provenance["versions"] | evaluation["versions"],
        "threat": evaluation["threat"],
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
        **{name: evaluation[name] for name in names},
        "seconds": round(last["seconds"] + sum(evaluation[name]["seconds"] for name in names), 1),
    }


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) == 3 else Path("results") / f"{run.name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record(run), indent=2, ensure_ascii=False) + "\n")
    print(out)


if __name__ == "__main__":
    main()
