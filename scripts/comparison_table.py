"""From the runs of a comparison's script to its record in results/comparisons/ and its table in docs/.

python scripts/comparison_table.py cifar10|cifar100_distillation|cifar10_robust_distillation [FOLDER]

FOLDER holds the run directories, by default where the comparison's script puts them.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from advtrain.engine import checkpoints

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {"PGDAT": "pgd_at", "IKLKD": "ikl_kd", "GKLKD": "gkl_kd"}  # the others are the word in capitals
SHARED = ("hardware", "versions")
TITLES = {"clean": "clean", "pgd": "PGD-20", "autoattack": "AutoAttack"}


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where it is written.

    Attributes:
        script: that trains and evaluates.
        folder: of the run directories, below the current one.
        page: in docs/.
        metrics: of the table's columns.
        order: of its rows.
    """

    script: str
    folder: str
    page: str
    metrics: tuple[str, ...]
    order: tuple[str, ...]


COMPARISONS = {
    "cifar10": Comparison(
        "scripts/comparison_cifar10.sh",
        "runs/comparison_cifar10",
        "comparison.md",
        ("clean", "pgd", "autoattack"),
        ("standard", "pgd_at", "trades", "trades + awp", "mart", "kl", "dkl", "ikl", "ikl + awp", "gkl"),
    ),
    "cifar100_distillation": Comparison(
        "scripts/comparison_cifar100.sh",
        "runs/comparison_cifar100",
        "distillation.md",
        ("clean",),
        ("teacher", "standard", "kd", "dkd", "ikl_kd", "gkl_kd"),
    ),
    "cifar10_robust_distillation": Comparison(
        "scripts/comparison_cifar10_robust.sh",
        "runs/comparison_cifar10_robust",
        "distillation.md",
        ("clean", "pgd", "autoattack"),
        ("trades", "rslad", "rslad, ikl"),
    ),
}


def method(run: Path, config: Mapping[str, Any]) -> str:
    """The name of a run's row."""
    if "teacher" in run.name.split("-")[0]:
        return "teacher"
    loss = config["loss"]
    name = str(loss["_target_"]).rpartition(".")[2]
    word = CLASSES.get(name) or name.lower()
    if config["weight_perturbation"]["_target_"].endswith("AWP"):
        word += " + awp"
    return f"{word}, ikl" if loss.get("divergence") == "ikl" else word


def row(run: Path, metrics: tuple[str, ...]) -> dict[str, Any]:
    """What one run is and what came out."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    last = checkpoints.load(run / "checkpoints" / "last.pt")["position"]
    return {
        "method": method(run, config),
        "seed": config["seed"],
        "loss": config["loss"],
        "checkpoint": evaluation["source"]["checkpoint"],
        **{metric: {key: evaluation[metric][key] for key in ("correct", "n_examples")} for metric in metrics},
        "training_seconds": round(last["seconds"], 1),
        "evaluation_seconds": round(sum(evaluation[metric]["seconds"] for metric in metrics), 1),
        "git_commit": evaluation["source"]["git_commit"],
        "training_commit": config["provenance"]["git_commit"],
        "hardware": evaluation["hardware"],
        "versions": config["provenance"]["versions"],
    }


def record(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """All finished runs, with what they share said once."""
    rows = [row(path.parent, comparison.metrics) for path in sorted(folder.glob("*/evaluation.json"))]
    if not rows:
        raise SystemExit(f"expected runs with an evaluation in {folder}, got none; run {comparison.script}")
    shared = {key: rows[0][key] for key in SHARED}
    for key, value in shared.items():
        if any(other[key] != value for other in rows):
            raise SystemExit(f"expected one {key} for all runs of {folder}, got several; run them on one machine")
    rows.sort(key=lambda one: (comparison.order.index(one["method"]), one["seed"]))
    own = [{key: value for key, value in one.items() if key not in shared} for one in rows]
    return {"command": f"{comparison.script} data.root=/datasets", **shared, "runs": own}


def table(comparison: Comparison, facts: Mapping[str, Any]) -> str:
    """Mean ± standard error over the seeds, in percent."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in facts["runs"]:
        for metric in comparison.metrics:
            values[one["method"]][metric].append(100 * one[metric]["correct"] / one[metric]["n_examples"])
    columns = ["method", "seeds", *(TITLES[metric] for metric in comparison.metrics)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, of_method in values.items():
        cells = [with_error(of_method[metric]) for metric in comparison.metrics]
        lines.append(f"| `{name}` | {len(of_method[comparison.metrics[0]])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_error(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{fmean(values):.1f} ± {stdev(values) / len(values) ** 0.5:.1f}"


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in COMPARISONS:
        sys.exit(__doc__)
    name, comparison = sys.argv[1], COMPARISONS[sys.argv[1]]
    facts = record(comparison, Path(sys.argv[2] if len(sys.argv) == 3 else comparison.folder))
    path, page = ROOT / "results" / "comparisons" / f"{name}.json", ROOT / "docs" / comparison.page
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    begin, end = f"<!-- table of {name}: begin -->", f"<!-- table of {name}: end -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{table(comparison, facts)}\n{end}{rest.split(end)[1]}")
    print(table(comparison, facts))


if __name__ == "__main__":
    main()
