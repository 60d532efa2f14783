"""docs/methods.md is up to date, and a receipt that is missing or misses its mark shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from advtrain.composition import choices
from advtrain.recipes.page import page
from advtrain.recipes.receipts import experiment_of, receipts_in

ROOT = Path(__file__).resolve().parents[2]


def record(folder: Path, name: str, command: str, clean: float, autoattack: float) -> None:
    content: dict[str, Any] = {"command": command, "seed": 0}
    content["clean"] = {"accuracy": clean, "n_examples": 10000}
    content["autoattack"] = {"accuracy": autoattack, "n_examples": 500}
    (folder / f"{name}.json").write_text(json.dumps(content))


def row(text: str, recipe: str) -> str:
    (line,) = [line for line in text.splitlines() if f"configs/experiment/{recipe}.yaml" in line]
    return line


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "methods.md").read_text()
    assert written == page(ROOT / "results"), "run python scripts/methods_page.py"


def test_every_link_of_the_page_leads_to_a_file() -> None:
    words = (ROOT / "docs" / "methods.md").read_text().split("](../")[1:]
    missing = [path for path in (word.partition(")")[0] for word in words) if not (ROOT / path).is_file()]
    assert words and not missing


def test_missing_receipts_show_and_so_do_misses(tmp_path: Path) -> None:
    run = "cifar10_ikl_wrn_34_10"  # the paper: 84.80 / 57.09
    record(tmp_path, "a", f"torchrun --nproc-per-node=4 -m advtrain experiment={run} seed=1", 0.8412, 0.542)
    text = page(tmp_path)
    assert "84.12 / – / 54.20 (500 images) (**off by -2.89**)" in row(text, run)
    assert "[comparison.md](comparison.md)" in row(text, "comparison_cifar10")  # many runs, which that page holds
    run_already = {run, *(name for name in choices("experiment") if name.startswith("comparison_"))}
    assert all(("**not run**" in row(text, recipe)) == (recipe not in run_already) for recipe in choices("experiment"))


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("advtrain", "quickstart"),
        ("advtrain experiment=cifar10_cpu seed=2 data.root=/datasets trainer.device=cpu", "cifar10_cpu"),
        ("torchrun --nproc-per-node=2 -m advtrain experiment=cifar10_cpu", "cifar10_cpu"),
        ("advtrain experiment=cifar10_cpu eval=none", "cifar10_cpu"),
        ("advtrain experiment=cifar10_cpu eval.autoattack.n_examples=100", "cifar10_cpu"),
        ("advtrain experiment=cifar10_cpu evaluate=1", None),
        ("advtrain experiment=cifar10_cpu loss=pgd_at", None),
        ("advtrain experiment=cifar10_cpu trainer.epochs=1", None),
        ("advtrain data=cifar10 loss=trades", None),
    ],
)
def test_a_receipt_is_a_run_of_the_recipe_as_it_stands(command: str, recipe: str | None) -> None:
    assert experiment_of(command) == recipe


def test_records_of_another_form_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps([{"loss": "ikl"}]))
    record(tmp_path, "b", "advtrain experiment=quickstart", 0.9, 0.7)
    record(tmp_path, "c", "advtrain experiment=quickstart loss=pgd_at", 0.9, 0.7)
    receipts, others = receipts_in(tmp_path, ["quickstart"])
    assert [receipt.path.stem for receipt in receipts["quickstart"]] == ["b"]
    assert [receipt.path.stem for receipt in others] == ["c"]
