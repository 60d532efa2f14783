"""The files of a bundle: what RobustBench asks for, what the author has to add, and all of it or nothing."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from advtrain.export import ExportMetadata
from advtrain.types import SettingError

Evaluated = Callable[..., Any]  # the fixture in conftest.py, which returns its Run

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


@pytest.fixture
def cifar(evaluated: Evaluated) -> Any:
    arguments = {"depth": 10, "widen_factor": 1, "num_classes": 10}
    run = evaluated(
        "advtrain.models.WideResNet", arguments, dataset="cifar10", eps_text="8/255", shape=(3, 32, 32), n=6
    )
    run.metadata = PAPER
    return run


def test_model_info(cifar: Any) -> None:
    bundle = cifar.export()
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
        "reported": robust[cifar.record["autoattack"]["correct"]],
        "autoattack_acc": robust[cifar.record["autoattack"]["correct"]],
        "unreliable": False,
        "footnote": "It uses additional 20M synthetic images in training.",
    }


def test_weights(cifar: Any) -> None:
    bundle = cifar.export()
    assert bundle.weights == bundle.directory / "models/cifar10/Linf/Cui2024Decoupled_WRN-10-1.pt"
    saved = torch.load(bundle.weights, weights_only=True)
    assert saved.keys() == {"state_dict"}
    expected = cifar.model.state_dict()
    assert saved["state_dict"].keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in saved["state_dict"].items())


def test_zoo_entry(cifar: Any) -> None:
    text = (cifar.export().directory / "zoo_entry.py").read_text()
    assert "from robustbench.model_zoo.architectures.wide_resnet import WideResNet" in text
    assert '"model": lambda: WideResNet(depth=10, widen_factor=1, num_classes=10),' in text


def test_architecture_is_our_file_verbatim(evaluated: Evaluated) -> None:
    from advtrain.models import small_cnn

    assert (evaluated().export().directory / "architecture.py").read_text() == Path(small_cnn.__file__).read_text()


def test_submission_says_what_stands_in_the_way(cifar: Any) -> None:
    bundle = cifar.export()
    text = (bundle.directory / "submission.md").read_text()
    notes, issue = text.split("\n---\n")
    assert bundle.obstacles == ("Evaluated on a subset: 6 of the leaderboard's 10,000 test images.",)
    assert bundle.obstacles[0] in notes
    assert "gdrive_id" in notes
    assert "ModelID" not in notes
    assert "paper title" not in notes
    assert "Title: [New Model] Cui2024Decoupled_WRN-10-1" in issue
    assert "**Clean accuracy**: 83.33 % (SUBSET of 6 images, 5 of 6)" in issue
    assert "- **Evaluation method**: AutoAttack, version standard, seed 0\n" in issue
    assert "- [ ] I use an architecture that is **not** included" in issue
    assert "- [x] I agree to release my model(s) under MIT license" in issue


def test_full_evaluation_has_no_obstacle(cifar: Any) -> None:
    repeats = 10_000 // 6 + 1
    for name in ("images", "labels", "clean_predictions", "adversarial_images"):
        array = cifar.arrays[name]
        cifar.arrays[name] = np.concatenate([array[..., :1, :1] if array.ndim == 4 else array] * repeats)[:10_000]
    for name in ("clean", "autoattack"):
        cifar.record[name] |= {"correct": 4000, "n_examples": 10_000}
    bundle = cifar.export()
    assert bundle.obstacles == ()
    assert "SUBSET" not in (bundle.directory / "submission.md").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"autoattack": None}, "AutoAttack did not run; the robust accuracy given is that of PGD."),
        ({"version": "custom"}, "AutoAttack ran as version=custom, not as standard."),
        ({"eps_text": "0.2"}, "The leaderboard does not rank cifar10 at Linf ε = 0.2."),
        ({"dataset": "digits"}, "digits is not a dataset of the RobustBench leaderboard."),
    ],
)
def test_obstacles(cifar: Any, change: dict, sentence: str) -> None:
    cifar.dataset = change.get("dataset", cifar.dataset)
    if "eps_text" in change:
        cifar.eps_text, cifar.record["threat"]["eps"] = "0.2", 0.2
    if "version" in change:
        cifar.record["autoattack"]["settings"]["version"] = "custom"
    if "autoattack" in change:
        del cifar.record["autoattack"]
    bundle = cifar.export()
    assert sentence in bundle.obstacles
    assert sentence in (bundle.directory / "submission.md").read_text()
    assert sentence in (bundle.directory / "README.md").read_text()


def test_pgd_is_never_called_autoattack(cifar: Any) -> None:
    del cifar.record["autoattack"]
    bundle = cifar.export()
    info = json.loads(bundle.model_info.read_text())
    assert info["autoattack_acc"] == info["reported"] == "to be filled by the author"
    assert "PGD and not AutoAttack" in (bundle.directory / "submission.md").read_text()


def test_what_only_the_author_knows(evaluated: Evaluated) -> None:
    bundle = evaluated().export()
    info = json.loads(bundle.model_info.read_text())
    assert {name for name, value in info.items() if value == "to be filled by the author"} == {
        "link",
        "name",
        "authors",
        "venue",
    }
    assert bundle.model_id == "AuthorYearTitle_SmallCNN"
    listed = " ".join(bundle.to_fill)
    for name in ("ModelID", "paper title", "paper URL", "authors", "venue", "gdrive_id", "tick-boxes"):
        assert name in listed


def test_the_model_card_has_the_recipe_and_no_folders_of_this_machine(evaluated: Evaluated) -> None:
    run = evaluated()
    run.recipe = {"loss": {"ce_weight": 4.5}, "data": {"root": str(run.folder), "files": ["/home/me/one.npz", "b.npz"]}}
    card = (run.export().directory / "README.md").read_text()
    assert '"ce_weight": 4.5' in card
    assert f'"root": "{run.folder.name}"' in card
    assert '"one.npz",' in card
    assert '"b.npz"' in card
    assert "/home" not in card
    assert str(run.folder.parent) not in card


def test_sums(evaluated: Evaluated) -> None:
    folder = evaluated().export().directory
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert listed.keys() == files.keys() - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)


def test_grey_levels_are_stored_as_bytes_and_nothing_else_is(evaluated: Evaluated) -> None:
    run = evaluated()
    with np.load(run.export().directory / "verification.npz") as stored:
        assert stored["images"].dtype == np.uint8
        assert np.array_equal(stored["images"].astype(np.float32) / np.float32(255), run.arrays["images"])
        assert np.array_equal(stored["adversarial_images"], run.arrays["adversarial_images"])
        assert int(stored["batch_size"]) == 4


def test_all_or_nothing(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated()

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match="disk full"):
            run.export()
    assert {path.name for path in run.folder.iterdir()} == {"adversarial.npz"}
    first = run.export()
    before = (first.directory / "SHA256SUMS").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match="disk full"):
            run.export()
    assert (first.directory / "SHA256SUMS").read_text() == before
    run.metadata = PAPER
    second = run.export()
    assert [path.name for path in second.weights.parent.iterdir()] == ["Cui2024Decoupled_SmallCNN.pt"]
    assert {path.name for path in run.folder.iterdir()} == {"adversarial.npz", "export"}


def test_keeps_a_folder_that_is_no_bundle(evaluated: Evaluated) -> None:
    run = evaluated()
    mine = run.folder / "export" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(SettingError, match="other files"):
        run.export()
    assert mine.read_text() == "years of work"


def test_parts_of_different_evaluations(evaluated: Evaluated) -> None:
    run = evaluated()
    run.eps_text = "8/255"
    with pytest.raises(SettingError, match=r"eps_text: expected the radius of the evaluation, 0\.2, got 8/255"):
        run.export()
    run.eps_text = "0.2"
    run.record["autoattack"]["n_examples"] = 5
    with pytest.raises(SettingError, match="expected as many images as were attacked"):
        run.export()
    del run.record["autoattack"], run.record["pgd"]
    with pytest.raises(SettingError, match="expected a clean accuracy and an attack, got clean"):
        run.export()
    assert not (run.folder / "export").exists()


class Wrapped(nn.Module):
    """The names that DistributedDataParallel gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrappers_leave_no_prefix(evaluated: Evaluated) -> None:
    run = evaluated()
    names = list(run.model.state_dict())
    for wrapped in (Wrapped(run.model), torch.compile(run.model), Wrapped(torch.compile(run.model))):
        run.model = wrapped
        saved = torch.load(run.export().weights, weights_only=True)
        assert list(saved["state_dict"]) == names


def test_double_precision_becomes_float32(evaluated: Evaluated) -> None:
    run = evaluated()
    run.model.double()
    saved = torch.load(run.export().weights, weights_only=True)
    assert {value.dtype for value in saved["state_dict"].values()} == {torch.float32}


def test_nan_is_refused(evaluated: Evaluated) -> None:
    run = evaluated()
    with torch.no_grad():
        run.model.classifier.bias[3] = float("nan")
    with pytest.raises(SettingError, match=r"inf or nan in classifier\.bias"):
        run.export()


MINE = """
import torch{extra}

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.{attribute} = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))

    def forward(self, x):
        return self.{attribute}(x)
"""


@pytest.mark.parametrize(
    ("attribute", "extra", "message"),
    [
        ("layers", "", None),
        ("model", "", r"got model\.1\.weight, which it turns into 1\.weight; rename"),
        ("submodule", "", r"got submodule\.1\.weight, which it turns into le\.1\.weight"),
        ("layers", "\nfrom advtrain.types import Logits", "needs only PyTorch, got an import of advtrain.types"),
        ("layers", "\nimport advtrain.types", "needs only PyTorch, got an import of advtrain.types"),
    ],
)
def test_a_users_own_model(
    evaluated: Evaluated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
    extra: str,
    message: str | None,
) -> None:
    module = f"mine_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MINE.format(attribute=attribute, extra=extra))
    monkeypatch.syspath_prepend(tmp_path)
    model = __import__(module).Mine()
    run = evaluated(f"{module}.Mine", dataset="cifar10", eps_text="8/255", shape=(3, 32, 32), model=model)
    if message is None:
        assert "from architecture import Mine" in (run.export().directory / "zoo_entry.py").read_text()
        return
    with pytest.raises(SettingError, match=message):
        run.export()
    run.dataset = "mine"  # nothing that RobustBench would have to load
    if not extra:
        run.export()


def test_unknown_target(evaluated: Evaluated) -> None:
    run = evaluated()
    run.model_arguments = {"depth": 3}
    with pytest.raises(SettingError, match="expected its own arguments"):
        run.export()
    run.model_target = "advtrain.models.Nothing"
    with pytest.raises(SettingError, match="expected the dotted path of a model class, got advtrain"):
        run.export()


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
    ],
)
def test_metadata_is_checked(name: str, value: object, message: str) -> None:
    with pytest.raises(SettingError, match=rf"export\.{name}: expected .*{message}"):
        replace(PAPER, **{name: value})


def test_metadata_is_a_structured_config() -> None:
    config = OmegaConf.merge(OmegaConf.structured(ExportMetadata), {"venue": "NeurIPS 2024"})
    assert OmegaConf.to_object(config) == ExportMetadata(venue="NeurIPS 2024")
