"""From the runs of scripts/comparison_cifar10.sh to results/comparisons/cifar10.json and docs/comparison.md.

python scripts/comparison_table.py [runs/comparison_cifar10]
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from advtrain.engine import checkpoints

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "comparisons" / "cifar10.json"
PAGE = ROOT / "docs" / "comparison.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
METRICS = ("clean", "pgd", "autoattack")
ORDER = ("standard", "pgd_at", "trades", "trades + awp", "mart", "kl", "dkl", "ikl", "ikl + awp", "gkl")
CLASSES = {"PGDAT": "pgd_at"}  # the others are the word in capitals


def row(run: Path) -> dict[str, Any]:
    """What one run is and what came out."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    name = config["loss"]["_target_"].rpartition(".")[2]
    method = CLASSES.get(name, name.lower())
    if config["weight_perturbation"]["_target_"].endswith("AWP"):
        method += " + awp"
    last = checkpoints.load(run / "checkpoints" / "last.pt")["position"]
    return {
        "method": method,
        "seed": config["seed"],
        "loss": config["loss"],
        "checkpoint": evaluation["source"]["checkpoint"],
        **{metric: {key: evaluation[metric][key] for key in ("correct", "n_examples")} for metric in METRICS},
        "training_seconds": round(last["seconds"], 1),
        "evaluation_seconds": round(sum(evaluation[metric]["seconds"] for metric in METRICS), 1),
        "git_commit": evaluation["source"]["git_commit"],
        "training_commit": config["provenance"]["git_commit"],
        "hardware": evaluation["hardware"],
        "versions": config["provenance"]["versions"],
    }


def record(folder: Path) -> dict[str, Any]:
    """All finished runs, with what they share said once."""
    rows = [row(path.parent) for path in sorted(folder.glob("*/evaluation.json"))]
    shared = {key: rows[0][key] for key in ("hardware", "versions")}
    for key, value in shared.items():
        if any(other[key] != value for other in rows):
            raise SystemExit(f"expected one {key} for all runs of {folder}, got several; run them on one machine")
    rows.sort(key=lambda one: (ORDER.index(one["method"]), one["seed"]))
    own = [{key: value for key, value in one.items() if key not in shared} for one in rows]
    command = "scripts/comparison_cifar10.sh data.root=/datasets"
    return {"command": command, **shared, "runs": own}


def table(facts: dict[str, Any]) -> str:
    """Mean ± standard error over the seeds, in percent."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in facts["runs"]:
        for metric in METRICS:
            values[one["method"]][metric].append(100 * one[metric]["correct"] / one[metric]["n_examples"])
    lines = ["| method | seeds | clean | PGD-20 | AutoAttack |", "|---|---|---|---|---|"]
    for method, columns in values.items():
        cells = [f"{fmean(v):.1f} ± {stdev(v) / len(v) ** 0.5:.1f}" for v in (columns[m] for m in METRICS)]
        lines.append(f"| `{method}` | {len(columns['clean'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else Path("runs/comparison_cifar10")
    facts = record(folder)
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(facts)}\n{END}{rest.split(END)[1]}")
    print(table(facts))


if __name__ == "__main__":
    main()
