"""`advtrain-eval model=robustbench:<name>` on real images: RobustBench's own architectures with weights of no value."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advtrain.evaluation.robustbench import import_robustbench
from advtrain.report import position
from advtrain.types import SettingError

COMMAND = [sys.executable, "-c", "from advtrain.cli import evaluate; evaluate()"]
CHEAP = [
    "eval.n_examples=4", "eval.pgd.enabled=false", "eval.masking.enabled=false", "eval.autoattack.version=custom",
    "eval.autoattack.attacks=[apgd-ce]", "eval.autoattack.engine=upstream", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def robustbench() -> None:
    try:
        import_robustbench()
    except SettingError as error:
        pytest.skip(str(error))


def save_untrained(name: str, board: str, model_dir: Path) -> None:
    """The weights that the architecture starts with, in the form that many of the zoo's files have."""
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    torch.manual_seed(0)
    model = model_dicts[BenchmarkDataset.cifar_10][ThreatModel(board)][name]["model"]()
    folder = model_dir / "cifar10" / board
    folder.mkdir(parents=True)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, folder / f"{name}.pt"
    )


def evaluate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words, *CHEAP], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "board", "words", "norm", "eps"),
    [
        ("Addepalli2022Efficient_RN18", "Linf", [], "linf", 8 / 255),
        ("Rice2020Overfitting", "L2", ["norm=l2"], "l2", 0.5),  # normalisation inside, a name that is on both boards
    ],
)
def test_a_model_of_the_zoo(
    name: str, board: str, words: list[str], norm: str, eps: float, real_data: Path, tmp_path: Path
) -> None:
    save_untrained(name, board, tmp_path / "models")
    ended = evaluate(tmp_path, f"model=robustbench:{name}", f"data_root={real_data}", "out=found", *words)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert record["threat"]["norm"] == norm and record["threat"]["eps"] == pytest.approx(eps)
    assert record["autoattack"]["n_examples"] == 4 and record["source"]["model"] == f"robustbench:{name}"
    place = position(record | {"dataset": "cifar10"})
    assert place.listed is not None and place.listed.model_id == name
    assert f"RobustBench lists it with {place.listed.robust:.2f} %" in place.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=robustbench:Rice2020Overfitted"], "did you mean Rice2020Overfitting"),
        (
            ["model=robustbench:Wang2023Better_WRN-28-10"],
            "Wang2023Better_WRN-28-10.pt, got no such file; put it there or add ",
        ),
        (
            ["model=robustbench:Rice2020Overfitting", "norm=l1"],
            "eps: expected a radius, since RobustBench has no cifar10",
        ),
        (
            ["model=robustbench:Rice2020Overfitting", "leaderboard=nowhere"],
            "leaderboard: expected RobustBench's folder",
        ),
    ],
)
def test_one_line_says_what_is_wrong(words: list[str], message: str, tmp_path: Path) -> None:
    ended = evaluate(tmp_path, *words)
    assert ended.returncode == 2 and message in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
