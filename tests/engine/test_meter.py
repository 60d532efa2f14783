"""Means that are read when they have come: nothing waits, nothing is lost, nothing changes places."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from advtrain.engine import OneCycle
from advtrain.engine.loggers import read_metrics
from advtrain.engine.meter import Meter, Sent
from tests.engine.toy import trainer
from tests.waits import nothing_waits


class Late:
    """A delivery that comes when a test says so; whoever reads it before waits."""

    sent: list["Late"]

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.here, self.waited = tensor, False, False
        self.sent.append(self)

    def arrived(self) -> bool:
        return self.here

    def values(self) -> list[float]:
        self.waited = not self.here
        return self.tensor.tolist()


@pytest.fixture
def late() -> type[Late]:
    return type("LateOfThisTest", (Late,), {"sent": []})


def test_means_over_the_steps_since_the_last_request() -> None:
    meter = Meter(4)
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value), "accuracy": torch.tensor(value / 10)})
    meter.request(3)
    meter.add({"loss": torch.tensor(5.0)})
    meter.request(4)
    (first, means), (second, other) = meter.readings()
    assert (first, second) == (3, 4)
    assert means["loss"] == 3.0 and means["accuracy"] == pytest.approx(0.3)
    assert other["loss"] == 5.0 and "accuracy" not in other
    assert means["images_per_second"] > 0
    assert list(meter.readings(wait=True)) == []


def test_what_has_not_come_is_left_for_later(late: type[Late]) -> None:
    meter = Meter(4, late)
    for step in (1, 2, 3):
        meter.add({"loss": torch.tensor(float(step))})
        meter.request(step)
    assert list(meter.readings()) == []
    late.sent[1].here = True  # behind one that has not come
    assert list(meter.readings()) == []
    late.sent[0].here = True
    assert [(step, means["loss"]) for step, means in meter.readings()] == [(1, 1.0), (2, 2.0)]
    assert not any(delivery.waited for delivery in late.sent)
    assert [(step, means["loss"]) for step, means in meter.readings(wait=True)] == [(3, 3.0)]
    assert late.sent[2].waited


def test_a_run_logs_the_same_numbers_however_late_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: type[Late]
) -> None:
    """They are waited for at the end of an epoch alone."""

    def run(folder: str) -> list[dict]:
        trainer(tmp_path / folder, epochs=2).fit()
        records = read_metrics(tmp_path / folder / "metrics.jsonl")
        return [{k: v for k, v in record.items() if k not in ("images_per_second", "time")} for record in records]

    expected = run("at once")
    monkeypatch.setattr("advtrain.engine.trainer.Meter", lambda batch_size: Meter(batch_size, late))
    assert run("late") == expected
    assert len(late.sent) == 8 and all(delivery.waited for delivery in late.sent)


@pytest.mark.gpu
def test_a_gpu_sends_while_the_host_goes_on() -> None:
    numbers = torch.arange(5.0, device="cuda")
    with nothing_waits():
        sent = Sent(numbers * 2)
    assert sent.values() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_the_logged_learning_rate_is_that_of_the_step(tmp_path: Path) -> None:
    schedule = OneCycle(peak_at=0.5, start_factor=0.1)
    trainer(tmp_path, epochs=2, schedule=schedule).fit()
    logged = [record["lr"] for record in read_metrics(tmp_path / "metrics.jsonl") if "lr" in record]
    assert logged == pytest.approx([0.02 * schedule.factor(step / 4, 2) for step in range(8)], rel=1e-12)
