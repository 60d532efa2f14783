"""A teacher's logits from a file: the run is the one that asks the teacher, and a file of something else is refused."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advtrain import distributed
from advtrain.attacks import PGD
from advtrain.composition import compose
from advtrain.config import TrainerSettings
from advtrain.data import CIFAR100Generated
from advtrain.engine import Interrupted, batch_size, checkpoints
from advtrain.engine.fingerprints import of_network
from advtrain.engine.interrupts import StopRequest
from advtrain.engine.stored_logits import StoredLogits, check_stored_logits
from advtrain.losses import IKLKD, KD, AdaAD, Loss, Teacher
from advtrain.models import Normalize
from advtrain.runs import check_training
from advtrain.types import SettingError
from tests.engine.lessons import LOSSES, equal, lesson, log, teacher
from tests.engine.toy import Toy, weights_of


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `lesson`'s teacher, and its description."""
    folder = tmp_path_factory.mktemp("stored")
    lesson(folder / "run", folder / "logits.npy", epochs=2).fit()
    return folder / "logits.npy"


@pytest.fixture
def own(stored: Path, tmp_path: Path) -> Path:
    """A copy of that file which a test may damage."""
    for suffix in ("", ".json"):
        shutil.copy(f"{stored}{suffix}", tmp_path)
    return tmp_path / stored.name


@pytest.mark.parametrize(
    ("name", "precision", "accumulation"),
    (("kd", "fp32", 1), ("ikl_kd", "fp64", 3), ("ikl_kd", "bf16", 1), ("kd", "bf16", 3)),
)
def test_a_run_with_stored_logits_is_the_run_that_asks(
    name: str, precision: str, accumulation: int, tmp_path: Path
) -> None:
    """Three times through a cycle of two epochs, augmented; the second reader meets the file as it is."""
    changes: dict[str, Any] = {"precision": precision, "accumulation": accumulation}
    asking = lesson(tmp_path / "asking", loss=LOSSES[name](), **changes)
    asking.fit()
    for number in ("first", "second"):
        reading = lesson(tmp_path / number, tmp_path / "logits.npy", loss=LOSSES[name](), **changes)
        reading.fit()
        assert equal(asking, reading), number
    assert len({record["loss"] for record in log(tmp_path / "asking") if "loss" in record}) == 24


def test_the_teacher_is_asked_pass_by_pass_and_answers_in_its_own_dtype(tmp_path: Path) -> None:
    """What a step would ask and get: only then is every rounding that of the step."""
    run = lesson(tmp_path / "run", tmp_path / "logits.npy", accumulation=3, precision="bf16")
    del run.loss.teacher.asked[:]  # by the gate
    loader = run.stored.streamed(run._lessons(), StopRequest(run.device))
    assert run.loss.teacher.asked == [8] * (2 * 4 * 3)
    with run.numerics.casting():
        answer = run.loss.taught(torch.rand(1, 3, 6, 6))
    assert next(iter(loader.epoch(1))).taught.dtype == answer.dtype == torch.bfloat16
    assert np.load(tmp_path / "logits.npy").dtype == np.float32


def test_a_file_holds_what_the_teacher_says_of_each_place(stored: Path) -> None:
    model = teacher().model.double()
    rows = np.load(stored)
    assert rows.dtype == np.float64 and rows.shape == (2 * 4 * 24, 4)
    images = [batch.x for epoch in (1, 2) for batch in Toy().train_loader(batch_size=24, seed=0).epoch(epoch)]
    for row, image in zip(rows, torch.cat(images).double(), strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(row, model(image[None])[0].numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), (("fp64", 1e-10), ("fp32", 1e-3)))
def test_unaugmented_images_need_one_row_each(precision: str, tolerance: float, tmp_path: Path) -> None:
    """Equal up to rounding, which in a convolution depends on which images are computed together."""
    changes: dict[str, Any] = {"data": Toy(augment="none"), "replay_epochs": None, "precision": precision, "epochs": 4}
    asking = lesson(tmp_path / "asking", loss=LOSSES["ikl_kd"](), **changes)
    asking.fit()
    reading = lesson(tmp_path / "reading", tmp_path / "logits.npy", loss=LOSSES["ikl_kd"](), **changes)
    reading.fit()
    assert np.load(tmp_path / "logits.npy").shape == (96, 4)
    for found, expected in zip(weights_of(reading.model), weights_of(asking.model), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)
    # Any batch size and any seed, with or without a replay, and passes whatever their number.
    for i, other in enumerate(({"batch_size": 16}, {"replay_epochs": 2}, {"accumulation": 2})):
        again = lesson(tmp_path / f"{i}", tmp_path / "logits.npy", **{**changes, **other})
        again.seed = 5
        again.fit()
        assert counted(again) == 0


def counted(run: Any) -> int:
    return sum(run.loss.teacher.asked)


@pytest.mark.parametrize("data", ("augmented", "as stored"))
def test_the_teacher_is_not_asked_again(data: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {} if data == "augmented" else {"data": Toy(augment="none"), "replay_epochs": None}
    file = tmp_path / "logits.npy"
    first, second = (lesson(tmp_path / name, file, **changes) for name in ("first", "second"))
    first.fit()
    assert counted(first) == len(np.load(file)) == (2 * 96 if data == "augmented" else 96)
    second.fit()
    assert counted(second) == 0
    asking = lesson(tmp_path / "asking", **changes)
    asking.fit()
    assert counted(asking) == 6 * 96


def test_what_is_asked_of_adversarial_images_is_asked_still(tmp_path: Path) -> None:
    runs = []
    for name, file in (("asking", None), ("first", "logits.npy"), ("second", "logits.npy")):
        path = None if file is None else tmp_path / file
        runs.append(lesson(tmp_path / name, path, loss=AdaAD(), attack=PGD(eps=0.05, steps=2)))
        runs[-1].fit()
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])
    assert [counted(run) for run in runs] == [12 * 96, 8 * 96, 6 * 96]


@pytest.mark.parametrize("steps", (1, 3))
def test_a_run_stopped_in_mid_epoch_ends_bit_equal(
    steps: int, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lesson(tmp_path / "whole", stored, loss=LOSSES["ikl_kd"]())
    whole.fit()

    def stops(request: StopRequest, step: int) -> bool:
        request.number = 15
        return step == steps and next(calls) == 2  # in the third epoch: the cycle has begun anew

    calls = itertools.count()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StopRequest, "must_stop", stops)
        lesson(tmp_path / "cut", stored, loss=LOSSES["ikl_kd"]()).fit()
    position = checkpoints.load(tmp_path / "cut" / "checkpoints" / "last.pt")["position"]
    assert (position["epoch"], position["step"]) == (2, steps)
    resumed = lesson(tmp_path / "cut", stored, loss=LOSSES["ikl_kd"]())
    resumed.fit()
    assert equal(resumed, whole)


def test_each_process_reads_its_own_rows(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(np.load(stored)).view(2, 4, 24, 4)  # epoch, step, row of the batch
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        run = lesson(tmp_path / f"{rank}", stored)
        loader = run.stored.streamed(run._lessons(), StopRequest(run.device))
        for epoch, start in itertools.product((1, 2, 5, 6), (0, 3)):
            for step, batch in enumerate(loader.epoch(epoch, start), start):
                assert batch.taught.dtype == torch.float64
                assert torch.equal(batch.taught, rows[(epoch - 1) % 2, step, 12 * rank : 12 * rank + 12])


Change = Callable[[], dict[str, Any]]
OF_ANOTHER: dict[str, tuple[Change, str]] = {
    "teacher": (lambda: {"of": teacher(12)}, "another teacher (there '"),
    "batch size": (lambda: {"batch_size": 16}, "another batch_size (there 24, now 16)"),
    "cycle": (lambda: {"replay_epochs": 3}, "replay_epochs (there 2, now 3)"),
    "precision": (lambda: {"precision": "fp32"}, "another precision (there 'fp64', now 'fp32'), dtype"),
    "images": (lambda: {"data": Toy(split_seed=1)}, "another images (there '"),
    "augmentation": (lambda: {"data_settings": {"padding": 2}}, "another data.padding (there None, now 2)"),
    "layout": (lambda: {"data": Toy(augment="none")}, "another layout (there 'by epoch and place', now 'by image')"),
}


@pytest.mark.parametrize("name", OF_ANOTHER)
def test_a_file_of_something_else_is_refused(name: str, stored: Path, tmp_path: Path) -> None:
    change, expected = OF_ANOTHER[name]
    run = lesson(tmp_path, stored, **change())
    with pytest.raises(SettingError, match="give another file name, or remove the file") as refused:
        run.fit()
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert counted(run) == 0 and run.position.epoch == 0


def test_a_file_of_another_seed_is_refused(stored: Path, tmp_path: Path) -> None:
    run = lesson(tmp_path, stored)
    run.seed = 1
    with pytest.raises(SettingError, match=r"another seed \(there 0, now 1\)"):
        run.fit()


def test_random_augmentation_is_that_of_one_release(own: Path, tmp_path: Path) -> None:
    description = json.loads(Path(f"{own}.json").read_text())
    Path(f"{own}.json").write_text(json.dumps({**description, "torch": "1.0"}))
    with pytest.raises(SettingError, match=r"another torch \(there '1.0', now"):
        lesson(tmp_path / "run", own).fit()


def test_settings_that_say_where_data_are_do_not_count(tmp_path: Path) -> None:
    for root in ("here", "there"):
        settings = {"root": root, "_target_": "Toy", "threat_eps": root, "workers": len(root), "padding": 1}
        lesson(tmp_path / root, tmp_path / "logits.npy", data_settings=settings, epochs=1, replay_epochs=1).fit()
    assert json.loads((tmp_path / "logits.npy.json").read_text())["data.padding"] == 1


@pytest.mark.parametrize("damage", ("short", "another", "no description", "no numbers"))
def test_a_damaged_file_is_refused(damage: str, own: Path, tmp_path: Path) -> None:
    if damage == "short":
        own.write_bytes(own.read_bytes()[:-8])
    elif damage == "another":
        np.save(own, np.load(own) + 1)
    elif damage == "no numbers":
        own.write_text("logits")
    else:
        Path(f"{own}.json").unlink()
    with pytest.raises(SettingError, match=r"teacher\.logits: expected .* to have it computed anew"):
        lesson(tmp_path / "run", own).fit()


@pytest.mark.parametrize("when", (1, 5, 8))
def test_a_stopped_computation_leaves_nothing(when: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(request: StopRequest, step: int) -> bool:
        request.number = 15
        return step == when

    file = tmp_path / "logits" / "file.npy"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM"):
        patch.setattr(StopRequest, "must_stop", stops)
        lesson(tmp_path / "run", file).fit()
    assert list(file.parent.iterdir()) == []
    lesson(tmp_path / "run", file).fit()
    assert {path.name for path in file.parent.iterdir()} == {"file.npy", "file.npy.json"}


def test_a_full_disk_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 4_000, 6_000))
    run = lesson(tmp_path / "run", tmp_path / "logits.npy")
    with pytest.raises(SettingError, match=r"expected 0.0 MB of free disk for 192 × 4 logits, got 0.0 MB"):
        run.fit()
    assert counted(run) == 0 and not (tmp_path / "logits.npy").exists()


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="expected a place that can be written to"):
        lesson(tmp_path / "run", tmp_path / "file" / "logits.npy").fit()


def test_a_finished_run_needs_no_file(stored: Path, tmp_path: Path) -> None:
    lesson(tmp_path / "run", stored, epochs=1).fit()
    again = lesson(tmp_path / "run", tmp_path / "gone.npy", epochs=1)
    assert again.fit().epoch == 1
    assert not (tmp_path / "gone.npy").exists()


def test_the_gates_and_measurements_at_the_start_see_steps_that_ask_nobody(stored: Path, tmp_path: Path) -> None:
    run = lesson(tmp_path / "run", stored)
    subject = run._subject()
    asked = counted(run)
    assert subject.batch.taught is not None and asked == 24
    torch.save(subject, tmp_path / "subject", pickle_protocol=4)  # as compile=auto sends it to its child
    sent = torch.load(tmp_path / "subject", weights_only=False)
    assert torch.equal(sent.batch.taught, subject.batch.taught)
    assert subject.facts(run.numerics) != lesson(tmp_path / "asking")._subject().facts(run.numerics)
    step = subject.step(run.optimizer, run.numerics, run.start.acceleration)
    step(subject.batch, None, subject.perturbation, 1, 0)
    batch_size.take_steps(run, 8)
    assert counted(run) == asked


def test_the_record_of_the_execution_names_the_file(stored: Path, tmp_path: Path) -> None:
    lesson(tmp_path, stored, epochs=1).fit()
    record = json.loads((tmp_path / "execution.json").read_text())
    assert record["teacher_logits"] == str(stored)
    assert record["changes_mathematics"]["trainer.replay_epochs"] == 2


def test_the_fingerprint_is_of_all_that_decides() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    plain = of_network(model)
    assert plain == of_network(model.double()) == of_network(model.to(memory_format=torch.channels_last).float())
    standardised = [of_network(Normalize(model, mean=[0, 0, 0], std=[1, 1, deviation])) for deviation in (1, 2)]
    assert len({plain, *standardised}) == 3  # mean and deviation are no part of the state dict
    model[1].running_mean += 1e-3
    assert of_network(model) != plain


REFUSED: dict[str, tuple[list[str], str]] = {
    "augmented": (["data.augment=crop_flip"], "with data.augment=crop_flip and trainer.replay_epochs=null: expected"),
    "mixed": (
        ["data.mix=mixup"],
        "data.mix=mixup and trainer.replay_epochs=null: .* or data.augment=none data.mix=none",
    ),
    "no teacher": (
        ["loss=pgd_at", "teacher.source=null", "teacher.weights=null"],
        "with loss PGDAT: expected a loss that holds a teacher",
    ),
    "no numbers": (["teacher.logits=logits.pt"], "expected the path of a .npy file, got logits.pt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_beforehand_stops_at_start(name: str) -> None:
    words, expected = REFUSED[name]
    usual = ["experiment=quickstart", "loss=kd", "teacher.source=model:small_cnn", "teacher.weights=none.pt"]
    config = compose("train", [*usual, "teacher.logits=logits.npy", *words])
    with pytest.raises(SettingError, match=f"teacher.logits.*{expected}"):
        check_training(config)


def test_generated_images_need_a_replay() -> None:
    data = CIFAR100Generated(root="nowhere", generated="nowhere.npz", augment="none")
    with pytest.raises(SettingError, match=r"with data CIFAR100Generated and trainer.replay_epochs=null") as refused:
        check_stored_logits("logits.npy", data, KD(), TrainerSettings())
    assert "data.augment" not in str(refused.value)
    check_stored_logits("logits.npy", data, KD(), TrainerSettings(replay_epochs=3))
    check_stored_logits(None, data, KD(), TrainerSettings())


def test_one_row_is_one_view() -> None:
    loss: Loss = IKLKD(num_classes=4)
    loss.views = 2
    with pytest.raises(SettingError, match="over 2 views: expected one"):
        check_stored_logits("logits.npy", Toy(second_view="cutout"), loss, TrainerSettings(replay_epochs=2))


def test_a_teacher_of_other_classes_is_an_error(tmp_path: Path) -> None:
    wrong = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)))
    run = lesson(tmp_path / "run", tmp_path / "logits.npy", of=wrong)
    with pytest.raises(RuntimeError):
        run.fit()
    assert not list(tmp_path.glob("logits*"))


def test_a_tilde_is_the_home_folder() -> None:
    from advtrain.engine.stored_logits import stored_logits

    found = stored_logits("~/logits.npy", {})
    assert isinstance(found, StoredLogits) and found.path == Path.home() / "logits.npy"
    assert stored_logits(None, {}) is None
