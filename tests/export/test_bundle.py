"""The files of a bundle: weights, sums, what builds the network, and all of it or nothing."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from advtrain.export import ExportMetadata
from advtrain.types import SettingError

Evaluated = Callable[..., Any]  # the fixture in conftest.py, which returns its Run
PAPER = ExportMetadata(paper_title="Decoupled Loss", authors="Jiequan Cui, Zhuotao Tian", venue="NeurIPS 2024")
EVERY = {
    "models",
    "model_info",
    "README.md",
    "LICENSE",
    "verify.py",
    "verification.json",
    "verification.npz",
    "SHA256SUMS",
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_both_files_of_weights_hold_the_model(evaluated: Evaluated) -> None:
    run = evaluated("advtrain.models.WideResNet", {"depth": 10, "widen_factor": 1}, **CIFAR)
    bundle = run.export()
    assert bundle.weights == bundle.directory / "models/cifar10/Linf/AuthorYearTitle_WRN-10-1.pt"
    saved = torch.load(bundle.weights, weights_only=True)
    assert saved.keys() == {"state_dict"}
    expected = run.model.state_dict()
    for found in (saved["state_dict"], load_file(bundle.weights.with_suffix(".safetensors"))):
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


CIFAR = {"dataset": "cifar10", "eps_text": "8/255", "shape": (3, 32, 32), "n": 6}


def test_a_class_of_robustbench_needs_no_file(board: Any) -> None:
    """The zoo entry of a submission names RobustBench's class; an archive has a file that builds it."""
    submission = board.export()
    assert names(submission.directory) == EVERY | {"submission.md", "zoo_entry.py"}
    text = (submission.directory / "zoo_entry.py").read_text()
    assert "from robustbench.model_zoo.architectures.wide_resnet import WideResNet" in text
    assert '"model": lambda: WideResNet(depth=10, widen_factor=1, num_classes=10),' in text
    del board.record["masking"]
    archive = board.export()
    assert names(archive.directory) == EVERY | {"NOT_A_SUBMISSION.md", "build.py"}
    text = (archive.directory / "build.py").read_text()
    assert "import WideResNet" in text and "return WideResNet(depth=10, widen_factor=1, num_classes=10)\n" in text


def test_a_class_that_robustbench_lacks_is_our_file_verbatim(evaluated: Evaluated) -> None:
    from advtrain.models import small_cnn

    folder = evaluated().export().directory
    assert (folder / "architecture.py").read_text() == Path(small_cnn.__file__).read_text()
    assert names(folder) == EVERY | {"NOT_A_SUBMISSION.md", "architecture.py"}


def test_a_variant_that_robustbench_lacks_comes_with_its_zoo_entry(board: Any, evaluated: Evaluated) -> None:
    record, arguments = board.record, {"depth": 10, "widen_factor": 1, "activation": "silu"}
    run = evaluated("advtrain.models.WideResNet", arguments, **CIFAR)
    run.record["masking"] = record["masking"]
    folder = run.export().directory
    assert names(folder) == EVERY | {"submission.md", "zoo_entry.py", "architecture.py"}
    assert "from architecture import WideResNet" in (folder / "zoo_entry.py").read_text()
    assert "- [x] I use an architecture that is **not** included" in (folder / "submission.md").read_text()


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
    assert {path.stem for path in second.weights.parent.iterdir()} == {"Cui2024Decoupled_SmallCNN"}
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
    with pytest.raises(SettingError, match=r"eps: expected the radius of the evaluation, 0\.02, got 8/255"):
        run.export()
    run.eps_text = "0.02"
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
        assert "class Mine" in (run.export().directory / "architecture.py").read_text()
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
