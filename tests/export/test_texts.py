"""What a bundle says: model_info, issue text, model card, licence, and what only the author knows."""

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from advtrain.config import config_dir
from advtrain.export import ExportMetadata, read_recipe
from advtrain.types import SettingError

Evaluated = Callable[..., Any]

# ../model_info/cifar10/Linf/*.json of RobustBench, without `external`, which other people's evaluations add
MODEL_INFO_FIELDS = {
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "autoattack_acc",
    "unreliable",
    "footnote",
}
PAPER = ExportMetadata(
    paper_title="Decoupled Kullback-Leibler Divergence Loss",
    link="https://arxiv.org/abs/2305.13948",
    authors="Jiequan Cui, Zhuotao Tian",
    venue="NeurIPS 2024",
    footnote="It uses additional 20M synthetic images in training.",
)


def test_model_info(board: Any) -> None:
    board.metadata = PAPER
    bundle = board.export()
    assert bundle.model_id == "Cui2024Decoupled_WRN-10-1"
    assert bundle.model_info == bundle.directory / "model_info/cifar10/Linf/Cui2024Decoupled_WRN-10-1.json"
    info = json.loads(bundle.model_info.read_text())
    robust = {0: "0.00", 1: "16.67", 2: "33.33", 3: "50.00", 4: "66.67", 5: "83.33"}
    assert info.keys() == MODEL_INFO_FIELDS
    assert info == {
        "link": "https://arxiv.org/abs/2305.13948",
        "name": "Decoupled Kullback-Leibler Divergence Loss",
        "authors": "Jiequan Cui, Zhuotao Tian",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "NeurIPS 2024",
        "architecture": "WideResNet-10-1",
        "eps": "8/255",
        "clean_acc": "83.33",
        "reported": robust[board.record["autoattack"]["correct"]],
        "autoattack_acc": robust[board.record["autoattack"]["correct"]],
        "unreliable": False,
        "footnote": "It uses additional 20M synthetic images in training.",
    }


def test_every_field_is_filled_or_open_with_the_reason(evaluated: Evaluated) -> None:
    run = evaluated(
        "advtrain.models.WideResNet",
        {"depth": 10, "widen_factor": 1},
        dataset="cifar10",
        eps_text="8/255",
        shape=(3, 32, 32),
        n=6,
    )
    bundle = run.export()
    info = json.loads(bundle.model_info.read_text())
    assert info.keys() == MODEL_INFO_FIELDS
    reasons = {name: value for name, value in info.items() if str(value).startswith("to be filled by the author: ")}
    assert {name for name in info if name not in reasons and info[name] is None} == {"footnote"}
    assert reasons.keys() == {"link", "name", "authors", "venue", "clean_acc", "reported", "autoattack_acc"}
    assert "set export.paper_title" in reasons["name"]
    assert "6 of the leaderboard's 10,000 test images" in reasons["clean_acc"]
    listed = (bundle.directory / "NOT_A_SUBMISSION.md").read_text()
    for name, value in reasons.items():
        reason = value.removeprefix("to be filled by the author: ")
        assert any(f"`{name}`" in line and line.endswith(reason) for line in listed.splitlines())


def test_what_only_the_author_knows(board: Any) -> None:
    bundle = board.export()
    assert bundle.model_id == "AuthorYearTitle_WRN-10-1"
    listed = " ".join(bundle.to_fill)
    for name in ("ModelID", "`link`", "`name`", "`authors`", "`venue`", "gdrive_id", "where you upload", "tick-boxes"):
        assert name in listed
    board.metadata = PAPER
    bundle = board.export()
    assert len(bundle.to_fill) == 2 and "gdrive_id" in bundle.to_fill[0]
    notes = (bundle.directory / "submission.md").read_text().split("\n---\n")[0]
    assert all(item in notes for item in bundle.to_fill)


def test_issue_text(board: Any) -> None:
    board.metadata = PAPER
    correct = board.record["autoattack"]["correct"]
    board.record["autoattack"] |= {
        "after": [{"attack": "none", "correct": 5}, {"attack": "apgd-ce", "correct": correct}],
        "flags": [{"attack": "square", "message": "Square lowers it by much"}],
        "interval": [0.4365, 0.9699],
    }
    issue = (board.export().directory / "submission.md").read_text().split("\n---\n")[1]
    assert "Title: [New Model] Cui2024Decoupled_WRN-10-1" in issue
    assert "- **Paper authors**: Jiequan Cui, Zhuotao Tian" in issue
    assert "- **Clean accuracy**: 83.33 % (5 of 6)" in issue
    assert f"({correct} of 6, 95 % interval 43.65 to 96.99 %)" in issue
    assert (
        "- **Evaluation method**: AutoAttack, version standard, seed 0, "
        "engine exact (same verdicts as upstream pyautoattack 0.2.0)\n" in issue
    )
    assert f"correct of 6 after clean 5, apgd-ce {correct}; flags: square Square lowers it by much" in issue
    assert "- [ ] I use an architecture that is **not** included" in issue
    assert "- [x] I agree to release my model(s) under MIT license" in issue


@pytest.mark.parametrize(
    ("settings", "label", "phrase"),
    [
        ({"engine": "upstream"}, "| AutoAttack |", "engine upstream (pyautoattack 0.2.0)"),
        ({"engine": "fast"}, "| AutoAttack (engine fast) |", "equal to upstream pyautoattack 0.2.0 only statistically"),
        ({"version": "rand"}, "| AutoAttack (version rand) |", "AutoAttack, version rand, seed 0"),
        (None, "| PGD-20 |", "PGD, 20 steps"),
    ],
)
def test_only_what_has_upstreams_verdicts_is_called_autoattack(
    board: Any, settings: dict | None, label: str, phrase: str
) -> None:
    if settings is None:
        del board.record["autoattack"]
    else:
        board.record["autoattack"]["settings"] |= settings
    card = (board.export().directory / "README.md").read_text()
    assert label in card and phrase in card
    assert settings is not None or "| AutoAttack" not in card


def test_the_screen_is_not_autoattack(board: Any) -> None:
    board.record["screen"] = board.record.pop("autoattack") | {"settings": {"seed": 0}}
    bundle = board.export()
    assert "the robust accuracy given is that of screen" in bundle.obstacles[0]
    assert "| screen (APGD-CE + APGD-T) |" in (bundle.directory / "README.md").read_text()


def test_model_card(board: Any) -> None:
    correct = board.record["autoattack"]["correct"]
    classes = {"0": [1, 2], "7": [0, 3]}
    board.record["autoattack"] |= {"interval": [0.1, 0.25], "near_boundary": 3, "per_class": classes}
    board.record["second"] = {
        "checkpoint": "last",
        "epoch": 12,
        "same_weights": False,
        "clean": {"correct": 4, "n_examples": 6},
        "screen": {"correct": 2, "n_examples": 6},
    }
    board.record["collapse"] = {"detected": True, "epoch": 9, "reason": "held-out robust accuracy fell by 20 points"}
    board.record["leaderboard"] = {
        "text": "would be rank 34 of 90 on CIFAR-10 Linf",
        "source": "RobustBench 78fcc9e, March 2025",
    }
    board.recipe = {"loss": {"_target_": "advtrain.losses.IKL", "ce_weight": 4.5}, "seed": 7, "trainer": {"epochs": 16}}
    board.training = {"seconds": 3720.0, "epochs": 16, "pflop": 12.5, "hardware": {"gpu": "H100", "cores": 16}}
    card = (board.export().directory / "README.md").read_text()
    for text in (
        f"| AutoAttack | {100 * correct / 6:.2f} % | 10.00 to 25.00 % | {correct} of 6 |",
        "within a hair of the decision boundary: 3",
        "weakest class: 7, 0 of 3 robust",
        "Verdict: believable",
        "| zero_gradients | passed | 0 | none is 0 |",
        "checkpoint last, epoch 12: clean 66.67 % of 6, screen 33.33 % of 6",
        "detected at epoch 9; held-out robust accuracy fell by 20 points",
        "On the board of RobustBench 78fcc9e, March 2025: would be rank 34 of 90 on CIFAR-10 Linf.",
        "loss: IKL(ce_weight=4.5)",
        "trainer: epochs 16, seed 7",
        "training time: 1 h 02 min for 16 epochs (3,720 s)",
        "training cost: 12.5 PFLOP",
        "training hardware: gpu H100, cores 16",
        "pip install robustbench",
        'ENTRIES["AuthorYearTitle_WRN-10-1"]["model"]()',
    ):
        assert text in card


def test_the_recipe_has_no_folders_of_this_machine(evaluated: Evaluated) -> None:
    run = evaluated()
    run.recipe = {"loss": {"ce_weight": 4.5}, "data": {"root": str(run.folder), "files": ["/home/me/one.npz", "b.npz"]}}
    run.training = {"seconds": 60}
    run.metadata = replace(PAPER, target="archive")
    folder = run.export().directory
    text = (folder / "recipe.yaml").read_text()
    recipe, training = read_recipe(text)
    assert recipe["loss"] == {"ce_weight": 4.5}
    assert recipe["data"] == {"root": run.folder.name, "files": ["one.npz", "b.npz"]}
    assert training == {"seconds": 60}
    assert recipe["export"]["venue"] == "NeurIPS 2024" and recipe["export"]["target"] == "auto"
    for words in (text, (folder / "README.md").read_text()):
        assert "/home" not in words and str(run.folder.parent) not in words


@pytest.mark.parametrize(
    ("metadata", "holder"),
    [
        (PAPER, "Copyright (c) 2024 Jiequan Cui, Zhuotao Tian"),
        (ExportMetadata(), f"Copyright (c) {datetime.date.today().year} the authors of AuthorYearTitle_SmallCNN"),
    ],
)
def test_licence(evaluated: Evaluated, metadata: ExportMetadata, holder: str) -> None:
    run = evaluated()
    run.metadata = metadata
    text = (run.export().directory / "LICENSE").read_text()
    assert text.startswith("MIT License\n\n") and holder in text and "WITHOUT WARRANTY OF ANY KIND" in text
    run.metadata = replace(metadata, license="CC-BY-4.0")
    text = (run.export().directory / "LICENSE").read_text()
    assert "CC-BY-4.0" in text and "to be filled by the author" in text and "MIT" not in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("venue", "NeurIPS", "NeurIPS 2024"),
        ("link", "arxiv.org", "https"),
        ("model_id", "../evil", "letters, digits"),
        ("model_id", "Mine2026Standard", "without Standard"),
        ("number_forward_passes", 0, "at least 1"),
        ("additional_data", "no", "true or false"),
        ("license", "", "licence"),
        ("target", "submission", "auto"),
    ],
)
def test_metadata_is_checked(name: str, value: object, message: str) -> None:
    with pytest.raises(SettingError, match=rf"export\.{name}: expected .*{message}"):
        replace(PAPER, **{name: value})


def test_metadata_is_a_structured_config() -> None:
    config = OmegaConf.merge(OmegaConf.structured(ExportMetadata), {"venue": "NeurIPS 2024"})
    assert OmegaConf.to_object(config) == ExportMetadata(venue="NeurIPS 2024")


def test_the_yaml_has_the_same_keys_and_values() -> None:
    values = yaml.safe_load((config_dir() / "export" / "default.yaml").read_text())
    assert ExportMetadata(**values) == ExportMetadata() and values.keys() == vars(ExportMetadata()).keys()
