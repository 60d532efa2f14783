"""Wrong words about a teacher end in one line, before anything is computed or written."""

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from advtrain import cli
from advtrain.composition import compose
from advtrain.engine.run_directory import run_name
from advtrain.evaluation.robustbench import import_robustbench
from advtrain.export.recipe import portable_command
from advtrain.runs import check_training
from advtrain.types import SettingError
from tests.teachers.conftest import SHORT, TEACHER, trained

OURS = "teacher.source=model:small_cnn"
FILE = "teacher.weights=t.pth"
RUN = "teacher.source=runs/t"
NORMAL = "teacher.mean=[0.5] teacher.std=[0.25]"

REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "no teacher": ("", ("teacher.source: expected a trained network, which loss KD", "add teacher.source=RUN")),
    "no loss for it": (
        f"loss=standard {RUN}",
        ("teacher.source=runs/t with loss Standard", "choose loss=kd (say) or teacher.source=null"),
    ),
    "weights of nothing": (f"loss=standard {FILE}", ("got no teacher.source", "choose teacher.weights=null")),
    "no such path": ("teacher.source=nowhere", ("got 'nowhere', no such path; check the path", "timm:NAME")),
    "a recipe that was not run": (
        "teacher.source=/a/b/runs/cifar100_standard_resnet56-seed3",
        ("no such path; train it first: advtrain experiment=cifar100_standard_resnet56 seed=3",),
    ),
    "a folder of runs": ("teacher.source=runs", ("got 'runs', a folder that is neither",)),
    "unknown prefix": ("teacher.source=torchvison:resnet50", ("did you mean teacher.source=torchvision:resnet50?",)),
    "prefix forgotten": ("teacher.source=small_cnn", ("did you mean teacher.source=model:small_cnn?",)),
    "a file alone": ("teacher.source=t.pth", ("got the file t.pth", "teacher.weights=t.pth")),
    "unknown checkpoint": (f"{RUN} teacher.checkpoint=first", ("teacher.checkpoint: expected one of best, last",)),
    "run without checkpoint": ("teacher.source=runs/new", ("runs/new/checkpoints/best.pt, got no such file; train",)),
    "run without best.pt": ("teacher.source=runs/young", ("best.pt, got no such file; use teacher.checkpoint=last",)),
    "bundle without weights": ("teacher.source=bundle", ("teacher.source: expected the weights bundle/w.pt",)),
    "bundle of other classes": ("teacher.source=bundle100", ("the 10 classes of digits, got one for the 100 classes",)),
    "run of other classes": ("teacher.source=runs/hundred", ("the 10 classes of digits", "100 classes of cifar100")),
    "the run itself": (f"{RUN} name=t", ("teacher.source=runs/t: expected another run, got the one that is about to",)),
    "its own checkpoint": (f"{RUN}/checkpoints/best.pt name=t", ("expected another run",)),
    "weights for a run": (f"{RUN} {FILE}", ("teacher.weights=t.pth: expected none with teacher.source=runs/t",)),
    "no weights": (OURS, ("teacher.source=model:small_cnn: expected the weights", "add teacher.weights=FILE")),
    "unknown network": (f"teacher.source=model:smal_cnn {FILE}", ("did you mean teacher.source=model:small_cnn?",)),
    "no network yet": (f"teacher.source=model:timm {FILE}", ("use timm:NAME",)),
    "no such file": (f"{OURS} teacher.weights=nowhere.pth", ("teacher.weights: expected the path of a state dict",)),
    "mean alone": (f"{OURS} {FILE} teacher.mean=[0.5]", ("teacher.std: expected a value beside teacher.mean",)),
    "std alone": (f"{OURS} {FILE} teacher.std=[0.5]", ("teacher.mean: expected a value beside teacher.std",)),
    "too many channels": (
        f"{OURS} {FILE} teacher.mean=[0.5,0.5] teacher.std=[1,1]",
        ("teacher.mean: expected 1 number from 0 up to 1, one per channel", "got [0.5, 0.5]"),
    ),
    "grey levels": (f"{OURS} {FILE} teacher.mean=[125] teacher.std=[60]", ("of grey levels take the 255th part",)),
    "no deviation": (f"{OURS} {FILE} teacher.mean=[0.5] teacher.std=[0]", ("teacher.std: expected 1 number above 0",)),
    "a word for a mean": (f"{OURS} {FILE} teacher.mean=[x] teacher.std=[1]", ("teacher.mean: expected a number",)),
    "mean for a run": (f"{RUN} {NORMAL}", ("teacher.mean: expected none with teacher.source=runs/t",)),
    "timm, no weights": ("teacher.source=timm:resnet18", ("expected weights, got none", "teacher.download=true")),
    "timm, unknown": (f"teacher.source=timm:resnet19 {FILE}", ("teacher.source: expected a model of timm", "resnet1")),
    "timm, other classes": (
        "teacher.source=timm:resnet18 teacher.download=true",
        ("weights of timm for the 10 classes of data digits, got those for 1,000; give teacher.weights=FILE",),
    ),
    "both weights": (f"teacher.source=timm:resnet18 teacher.download=true {FILE}", ("choose one of the two",)),
    "torchvision, unknown": (f"teacher.source=torchvision:resnet51 {FILE}", ("did you mean resnet50",)),
    "torchvision, no weights": ("teacher.source=torchvision:resnet18", ("teacher.download=true for those of torchv",)),
    "torchvision, none there": (
        "teacher.source=torchvision:resnext101_32x4d teacher.download=true",
        ("weights of torchvision for the 10 classes of data digits, got none",),
    ),
    "the zoo has no digits": (
        "teacher.source=robustbench:Standard",
        ("data that RobustBench has models for", "digits"),
    ),
}
AS_TYPED: dict[str, tuple[str, tuple[str, ...]]] = {
    "the zoo": REFUSED["the zoo has no digits"],
    "mean": REFUSED["grey levels"],
    "itself": REFUSED["its own checkpoint"],
    "library": REFUSED["torchvision, no weights"],
    "no images": (f"{RUN} teacher.n_examples=0", ("teacher.n_examples: expected an integer of at least 1",)),
    "unknown key": ("teacher.sorce=runs/t", ("did you mean teacher.source?",)),
    "one point of a sweep": ("-m teacher.source=runs/t,nowhere", ("got 'nowhere', no such path",)),
    "two points, one name": ("-m teacher.source=runs/t,old/t", ("expected a run directory of its own for each point",)),
}


@pytest.fixture(scope="module")
def crowded(school: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The school with runs and bundles that cannot teach digits."""
    folder = tmp_path_factory.mktemp("crowded")
    shutil.copytree(school, folder, dirs_exist_ok=True)
    shutil.copytree(folder / "runs" / "t", folder / "old" / "t")
    for name in ("new", "young", "hundred"):
        shutil.copytree(folder / "runs" / "t", folder / "runs" / name)
    shutil.rmtree(folder / "runs" / "new" / "checkpoints")
    (folder / "runs" / "young" / "checkpoints" / "best.pt").unlink()
    config = folder / "runs" / "hundred" / "config.yaml"
    text = config.read_text().replace("advtrain.data.Digits", "advtrain.data.CIFAR100", 1)
    config.write_text(text.replace("num_classes: 10\n", "num_classes: 100\n", 1))
    for name, classes in (("bundle", 10), ("bundle100", 100)):
        (folder / name).mkdir()
        (folder / name / "verification.json").write_text(
            f'{{"weights": "w.pt", "dataset": "cifar100", "trained_as": {{"num_classes": {classes}}}}}'
        )
    (folder / "bundle100" / "w.pt").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def distilling() -> dict[str, Any]:
    return compose("train", [*SHORT, "loss=kd"])


def refusal(folder: Path, words: list[str], patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command ends, given in that folder."""
    before = sorted(folder.rglob("*"))
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["advtrain", *words])
    with pytest.raises(SystemExit) as ended:
        cli.train()
    out, err = capture.readouterr()
    assert ended.value.code == 2 and out == "" and sorted(folder.rglob("*")) == before
    (line,) = err.strip().splitlines()
    assert line.startswith("advtrain: error: ")
    return line


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_before_anything_is_computed(
    case: str, crowded: Path, distilling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, expected = REFUSED[case]
    if "timm:" in given:
        pytest.importorskip("timm")
    monkeypatch.chdir(crowded)
    config = copy.deepcopy(distilling)
    for word in given.split():
        key, _, value = word.partition("=")
        group, _, leaf = key.partition(".")
        if leaf:
            config[group][leaf] = yaml.safe_load(value)
    if "loss=standard" in given:
        config["loss"] = {"_target_": "advtrain.losses.Standard"}
    with pytest.raises(SettingError) as refused:
        check_training(config, directory=Path("runs/t" if "name=t" in given else "runs/x"))
    assert "\n" not in str(refused.value)
    for text in expected:
        assert text in str(refused.value)


@pytest.mark.parametrize("case", AS_TYPED)
def test_the_command_ends_with_that_line(
    case: str, crowded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, expected = AS_TYPED[case]
    line = refusal(crowded, [*SHORT, "loss=kd", *given.split()], monkeypatch, capsys)
    for text in expected:
        assert text in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    (
        ("Wang2023Bettr_WRN-28-10", "expected one of the 76 cifar10 Linf models"),
        ("Wang2023Better_WRN-28-10", "teacher.model_dir: expected models/cifar10/Linf/Wang2023Better_WRN-28-10.pt"),
    ),
)
def test_the_zoo_is_looked_through_before_anything_is_computed(
    given: str,
    expected: str,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        import_robustbench()
    except SettingError as error:
        pytest.skip(str(error))
    words = ["data=cifar10", f"data.root={real_data}", "model=preact_resnet_small", "loss=kd"]
    line = refusal(tmp_path, [*words, f"teacher.source=robustbench:{given}"], monkeypatch, capsys)
    assert expected in line and ("teacher.download=true" in line or "did you mean Wang2023Better_WRN-28-10" in line)


def test_a_configuration_can_be_looked_at_without_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["advtrain", "loss=kd", "--cfg", "job"])
    with pytest.raises(SystemExit) as ended:
        cli.train()
    assert ended.value.code == 0 and "\nteacher:\n  source: null\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "words", "expected"),
    (
        ("model:small_cnn", (FILE, "model.width=16"), None),  # the student's settings are not the teacher's
        ("model:preact_resnet_small", (FILE,), "teacher.weights: expected the tensors of the model, got t.pth"),
        (
            "model:small_cnn",
            ("teacher.weights=broken.pth",),
            "teacher.weights: expected nothing but tensors in broken.pth",
        ),
        ("runs/broken", (), "expected the SHA-256 that best.pt.sha256 holds"),
        ("runs/foreign", (), "add teacher.trust=true"),
        (
            "runs/wide",
            (),
            "teacher.source=runs/wide: expected a trained network, got RuntimeError: Error(s) in loading",
        ),
    ),
)
def test_what_only_building_shows_is_one_line_too(
    source: str, words: tuple[str, ...], expected: str | None, classroom: Path
) -> None:
    (classroom / "broken.pth").write_bytes(b"no weights")
    for name in ("broken", "foreign", "wide"):
        shutil.copytree(classroom / "runs" / "t", classroom / "runs" / name)
    (classroom / "runs" / "broken" / "checkpoints" / "best.pt").write_bytes(b"no weights")
    for name, old, new in (("foreign", "advtrain.models.SmallCNN", "os.getcwd"), ("wide", "width: 32", "width: 16")):
        config = classroom / "runs" / name / "config.yaml"
        config.write_text(config.read_text().replace(old, new))
    student = (*TEACHER, "loss=kd", f"teacher.source={source}", *words)
    if expected is None:
        trained("x", *student)
        return
    with pytest.raises(SettingError) as refused:
        trained("x", *student)
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert not (classroom / "runs" / "x").exists()


def test_a_teacher_of_other_images_is_named_as_such(classroom: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    np.savez("a.npz", image=images, label=np.arange(300) % 10)
    words = ["data=npz", "data.train=a.npz", "data.test=a.npz", "data.num_classes=10", "data.validation_size=100"]
    with pytest.raises(SettingError, match=r"expected one that takes 3×32×32 images.*it was trained on digits"):
        trained("x", *words, "model=preact_resnet_small", "loss=kd", "eval=none", "trainer.epochs=1", RUN)


@pytest.mark.parametrize(
    ("command", "portable"),
    (
        ("advtrain teacher.source=/a/b/runs/t/ seed=1", "advtrain teacher.source=t seed=1"),
        ("advtrain teacher.weights=/a/w.pth", "advtrain teacher.weights=w.pth"),
        ("advtrain teacher.source='/a/t' teacher.model_dir=/m", "advtrain teacher.source=t teacher.model_dir=m"),
        ("advtrain teacher.source=runs/t", "advtrain teacher.source=runs/t"),
        ("advtrain teacher.source=timm:x.y", "advtrain teacher.source=timm:x.y"),
    ),
)
def test_a_bundle_does_not_name_the_teachers_folder(command: str, portable: str) -> None:
    assert portable_command(command) == portable


@pytest.mark.parametrize(
    ("word", "part"),
    (
        ("teacher.source=runs/t", "teacher-t"),
        ("teacher.source='/a/b/t/'", "teacher-t"),
        ("teacher.source=/a/t/checkpoints/last.pt", "teacher-t-last"),
        ("teacher.source=timm:convnext_tiny.fb_in1k", "teacher-timm_convnext_tiny.fb_in1k"),
        ("teacher.weights=/a/resnet56_vanilla/ckpt.pth", "teacher.weights-resnet56_vanilla_ckpt.pth"),
        ("teacher.checkpoint=last", "teacher.checkpoint-last"),
    ),
)
def test_a_runs_name_tells_its_teacher(word: str, part: str) -> None:
    assert run_name([word], {"experiment": "quickstart"}, 0) == f"quickstart-{part}-seed0"
