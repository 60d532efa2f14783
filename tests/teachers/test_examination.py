"""A teacher is examined before anything is learnt from it, and a run keeps the teacher with which it began."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from advtrain import cli, distributed
from advtrain.composition import compose
from advtrain.config import ThreatSettings
from advtrain.engine.execution import recorded_execution
from advtrain.engine.fingerprints import of_network
from advtrain.engine.numerics import Numerics
from advtrain.evaluation.statistics import binomial_tail
from advtrain.losses import KD, Teacher
from advtrain.models import Normalize, SmallCNN
from advtrain.runs import dataset
from advtrain.teachers import Examination, TeacherSettings, examine, find_teacher
from advtrain.types import SettingError
from tests.teachers.conftest import STUDENT, TEACHER, spoil, trained

CPU = Numerics(torch.device("cpu"))
RUN = "teacher.source=runs/t"


def digits(**settings: Any) -> tuple[Any, dict[str, Any]]:
    config = compose("train", ["experiment=quickstart"])["data"] | settings
    return dataset(config), config


def examined(source: str = "runs/t", numerics: Numerics = CPU, n_examples: int = 512, **settings: Any) -> Examination:
    data, config = digits(**settings)
    chosen = TeacherSettings(source=source, n_examples=n_examples)
    found = examine(KD().hold(find_teacher(chosen, data, ThreatSettings())), chosen, data, config, numerics)
    assert found is not None
    return found


def tails(n: int, p: Fraction) -> list[float]:
    """P(X ≥ k) for k = 0 … n, in whole numbers."""
    a, b = p.numerator, p.denominator
    ways = [comb(n, i) * a**i * (b - a) ** (n - i) for i in range(n + 1)]
    return [float(Fraction(sum(ways[k:]), b**n)) for k in range(n + 1)]


@pytest.mark.parametrize(("n", "p"), ((1, Fraction(1, 2)), (30, Fraction(1, 3)), (100, Fraction(7, 500))))
def test_the_tail_is_the_sum_of_its_probabilities(n: int, p: Fraction) -> None:
    for k, exact in enumerate(tails(n, p)):
        assert binomial_tail(k, n, float(p)) == pytest.approx(exact, rel=1e-10)


def test_the_tail_at_the_ends() -> None:
    assert binomial_tail(0, 3, 0.0) == binomial_tail(0, 3, 1.0) == binomial_tail(3, 3, 1.0) == 1
    assert binomial_tail(1, 3, 0.0) == 0
    with pytest.raises(SettingError, match="successes: expected an integer from 0 to 3"):
        binomial_tail(4, 3, 0.5)


@pytest.mark.parametrize("n_examples", (40, 512))
def test_the_accuracy_is_counted_image_by_image(n_examples: int, classroom: Path) -> None:
    data, _ = digits()
    split, model = data.split("validation"), find_teacher(TeacherSettings("runs/t"), data, ThreatSettings()).model
    right, labels = 0, []
    for i in range(min(n_examples, 100)):
        image = split.fetch(torch.tensor([i]), "cpu")
        right += int(model(image)[0].argmax()) == int(split.labels[i])
        labels.append(int(split.labels[i]))
    found = examined(n_examples=n_examples)
    assert (found.correct, found.n_examples) == (right, len(labels)) and right > 0.8 * len(labels)
    assert found.guessing == max(labels.count(c) for c in range(10)) / len(labels)
    assert found.parameters == sum(p.numel() for p in SmallCNN(num_classes=10).parameters())
    figure = f"{100 * right / len(labels):.1f}% of {len(labels)} held-out images"
    assert found.lines() == [f"teacher   runs/t (SmallCNN, 151,306 parameters): {figure}"]


def test_the_exact_test_decides() -> None:
    def passes(correct: int, n: int, guessing: float) -> bool:
        return Examination("x", "X", 1, "0", correct, n, guessing, "").knows_its_subject

    for n, share in ((100, Fraction(1, 10)), (200, Fraction(3, 200))):
        least = next(k for k, tail in enumerate(tails(n, share)) if tail <= 0.001)
        assert passes(least, n, float(share)) and not passes(least - 1, n, float(share))
        assert not passes(int(n * share), n, float(share))
    assert not passes(50, 100, 0.5) and passes(100, 100, 0.9)  # a teacher that names the one frequent class is none


class Asked(nn.Module):
    """Notes in which numbers and mode it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)
        self.seen: set[Any] = set()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.norm(x).flatten(1))
        self.seen.add((x.dtype, logits.dtype, self.training, torch.is_grad_enabled()))
        return logits


@pytest.mark.parametrize(
    ("numerics", "dtypes"),
    (
        (CPU, (torch.float32, torch.float32)),
        (Numerics(torch.device("cpu"), dtype=torch.float64), (torch.float64, torch.float64)),
        (Numerics(torch.device("cpu"), autocast=True), (torch.float32, torch.bfloat16)),
    ),
)
def test_it_is_asked_as_in_training(numerics: Numerics, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    network, (data, config) = Asked(), digits()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(SettingError, match="expected a network that knows the classes of the data"):
        examine(KD().hold(Teacher(network, name="a")), TeacherSettings("model:a"), data, config, numerics)
    assert network.seen == {(*dtypes, False, False)}
    assert all(torch.equal(before[name], value.to(before[name].dtype)) for name, value in network.state_dict().items())


def test_no_teacher_no_examination() -> None:
    data, config = digits()
    assert examine(KD(), TeacherSettings(), data, config, CPU) is None


def test_the_fingerprint_is_of_weights_buffers_and_normalisation() -> None:
    def network(seed: int = 0, mean: float = 0.5) -> nn.Module:
        torch.manual_seed(seed)
        return Normalize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), mean=[mean], std=[0.5])

    first = of_network(network())
    assert len(first) == 64 and first == of_network(network()) == of_network(network().double())
    assert first == of_network(network().to(memory_format=torch.channels_last))
    moved = network()
    moved.get_submodule("model.1").running_mean[0] += 1e-3  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
    others = [of_network(other) for other in (network(seed=1), network(mean=0.4), moved)]
    assert len({first, *others}) == 4


def test_a_teacher_at_chance_stops_the_run_and_leaves_nothing(
    classroom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingError) as refused:
        trained("x", *STUDENT, "teacher.source=runs/dunce")
    text = str(refused.value)
    assert text.startswith("teacher.source=runs/dunce: expected a network that knows the classes of the data")
    assert "of 100 held-out images" in text and "most frequent class gives 10.0%" in text and "\n" not in text
    assert not (classroom / "runs" / "x").exists() and capsys.readouterr().out == ""
    trained("x", *STUDENT, RUN)  # the name is free
    assert "teacher   runs/t (SmallCNN" in capsys.readouterr().out


def test_too_few_images_tell_nothing(classroom: Path) -> None:
    with pytest.raises(SettingError, match=r"teacher.n_examples: expected enough held-out images .*, got 2; raise it"):
        examined(n_examples=2)


def test_it_says_when_the_figure_flatters(classroom: Path) -> None:
    assert examined().remark == examined(validation_size=60).remark == ""  # a smaller part of what was held out
    assert "trained with data.validation_size=100, so it may" in examined(validation_size=200).remark
    assert "trained with data.split_seed=0, so it may" in examined(split_seed=1).remark
    config = classroom / "runs" / "t" / "config.yaml"
    config.write_text(config.read_text().replace("advtrain.data.Digits", "advtrain.data.CIFAR10"))
    assert examined().remark.startswith("it was trained on cifar10; ")
    config.write_text(config.read_text().replace("advtrain.data.CIFAR10", "somewhere.Data"))
    assert examined().remark.startswith("it was trained on other data; ")
    chosen, (data, settings) = TeacherSettings("model:small_cnn", weights="t.pth"), digits()
    found = examine(KD().hold(find_teacher(chosen, data, ThreatSettings())), chosen, data, settings, CPU)
    assert (
        found is not None
        and found.lines()[1] == "          if it was trained on these images, too, that figure is optimistic"
    )


def test_larger_held_out_parts_contain_smaller_ones() -> None:
    small, large = (digits(validation_size=size)[0].split("validation") for size in (60, 100))
    images = [set(map(bytes, split.fetch(torch.arange(len(split)), "cpu").numpy())) for split in (small, large)]
    assert images[0] <= images[1]


def test_a_run_keeps_its_teacher(classroom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = classroom / "runs" / "s"
    trained("s", *STUDENT, RUN)
    kept = recorded_execution(directory)["teacher"]
    assert kept["source"] == "runs/t" and kept["model"] == "SmallCNN" and len(kept["sha256"]) == 64
    assert kept["accuracy"] > 0.8 and kept["n_examples"] == 100
    shutil.move("runs/t", "elsewhere")
    capsys.readouterr()
    trained("s", *STUDENT, "teacher.source=elsewhere", "teacher.checkpoint=best")  # it may move
    assert "teacher   elsewhere (SmallCNN" in capsys.readouterr().out
    assert recorded_execution(directory)["teacher"]["sha256"] == kept["sha256"]
    spoil(classroom / "elsewhere", lambda weights: weights + 1e-4)  # or learn on
    with pytest.raises(SettingError) as refused:
        trained("s", *STUDENT, "teacher.source=elsewhere")
    text = str(refused.value)
    assert f"expected the teacher with which the run began (elsewhere, SHA-256 {kept['sha256'][:12]}…)" in text
    assert "choose another name=… or remove that folder" in text and "\n" not in text
    assert recorded_execution(directory)["teacher"]["sha256"] == kept["sha256"]


def test_without_a_record_the_same_words_must_do(classroom: Path) -> None:
    trained("s", *STUDENT, RUN)
    record = classroom / "runs" / "s" / "execution.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "teacher"}))
    shutil.copytree("runs/t", "copy")
    with pytest.raises(SettingError, match=r"the teacher with which the run began \(runs/t\), got copy"):
        trained("s", *STUDENT, "teacher.source=copy")
    trained("s", *STUDENT, RUN)
    assert "teacher" in recorded_execution(classroom / "runs" / "s")


def test_a_run_from_before_there_were_teachers_goes_on(classroom: Path) -> None:
    path = classroom / "runs" / "t" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["teacher"]
    path.write_text(yaml.safe_dump(config))
    trained("t", *TEACHER)
    assert "teacher" not in recorded_execution(classroom / "runs" / "t")
    trained("s", *STUDENT, RUN)  # and can teach


def test_all_machines_must_have_the_same_teacher(classroom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "broadcast_object", lambda value: "0" * 64)
    with pytest.raises(SettingError, match=r"teacher.source=runs/t: expected the same weights on every machine"):
        examined()


@pytest.mark.slow
def test_a_batch_that_is_found_meets_the_teacher(classroom: Path) -> None:
    words = [word for word in STUDENT if "batch_size" not in word]
    trained("s", *words, "trainer.batch_size=auto", RUN)
    assert recorded_execution(classroom / "runs" / "s").keys() >= {"teacher", "batch_size_reason"}


@pytest.mark.slow
def test_a_student_outlives_its_teacher(classroom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Callable[[], None], *words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["advtrain", *words])
        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == 0

    trained("s", *STUDENT, RUN)
    shutil.rmtree("runs/t")
    run(cli.evaluate, "model=runs/s", "eval=clean_pgd", "out=found", "eval.pgd.n_examples=20", "eval.pgd.steps=2")
    teacher = recorded_execution(classroom / "runs" / "s")["teacher"]
    record = json.loads((classroom / "found" / "evaluation.json").read_text())
    assert record["source"]["teacher"] == teacher and teacher["sha256"] in (classroom / "found/report.html").read_text()
    run(cli.export, "run=found", "out=bundle")
    assert yaml.safe_load((classroom / "bundle" / "recipe.yaml").read_text())["training"]["teacher"] == teacher


@pytest.mark.slow
def test_all_processes_come_to_the_same_end(classroom: Path) -> None:
    worker = str(Path(__file__).with_name("examining_worker.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((classroom / f"rank{rank}.json").read_text()) for rank in (0, 1))
    alone = examined()
    assert first[:2] == second[:2] and first[0] == f"{alone.sha256} {alone.correct}"
    assert "expected a network that knows the classes of the data" in first[1]
    assert all("expected the same weights on every machine" in words[2] for words in (first, second))
