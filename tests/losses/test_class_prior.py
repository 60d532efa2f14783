"""The class prior against a slow loop, and its timing: one epoch behind, kept through a stop, summed over processes."""

import copy
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from advtrain.losses import ClassPrior
from advtrain.types import SettingError

UNIFORM = torch.full((4, 4), 0.25)


def batches(*sizes: int, classes: tuple[int, ...] = (0, 1, 2, 3)) -> list[tuple[Tensor, Tensor]]:
    return [(3 * torch.randn(size, 4), torch.tensor(classes)[torch.randint(len(classes), (size,))]) for size in sizes]


def mean_predictions(epoch: list[tuple[Tensor, Tensor]], temperature: float, before: Tensor) -> Tensor:
    """Row y: the mean of softmax(o / τ) over the images of class y, one image at a time; else its row `before`."""
    rows = []
    for label in range(len(before)):
        images = [o for logits, y in epoch for o, own in zip(logits, y, strict=True) if own == label]
        exponentials = [(o.double() / temperature).exp() for o in images]
        predictions = [e / e.sum() for e in exponentials]
        rows.append(sum(predictions) / len(predictions) if predictions else before[label].double())
    return torch.stack(rows)


def run_epoch(prior: ClassPrior, epoch: list[tuple[Tensor, Tensor]]) -> None:
    for logits, y in epoch:
        prior.update(logits, y)
    prior.end_epoch()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_rows_are_the_mean_predictions_of_the_epoch_before(temperature: float) -> None:
    prior = ClassPrior(num_classes=4, temperature=temperature)
    expected = UNIFORM
    for epoch in (batches(8, 8, 5), batches(16, 1)):
        for logits, y in epoch:
            prior.update(logits, y)
            torch.testing.assert_close(prior(y).double(), expected[y].double(), rtol=1e-6, atol=0)
        prior.end_epoch()
        expected = mean_predictions(epoch, temperature, before=expected)
    torch.testing.assert_close(prior(torch.arange(4)).double(), expected, rtol=1e-6, atol=0)


def test_rows_are_uniform_in_the_first_epoch() -> None:
    prior = ClassPrior(num_classes=4)
    prior.update(*batches(8)[0])
    torch.testing.assert_close(prior(torch.tensor([3, 0])), UNIFORM[:2], rtol=0, atol=0)


def test_an_absent_class_keeps_its_row() -> None:
    prior = ClassPrior(num_classes=4)
    first, second = batches(20, classes=(0, 2)), batches(20, classes=(1, 2))
    run_epoch(prior, first)
    expected = mean_predictions(first, 4.0, before=UNIFORM)
    assert torch.equal(prior(torch.tensor([1, 3])), UNIFORM[:2])
    run_epoch(prior, second)
    expected = mean_predictions(second, 4.0, before=expected)
    torch.testing.assert_close(prior(torch.arange(4)).double(), expected, rtol=1e-6, atol=0)


def test_an_epoch_without_images_changes_nothing() -> None:
    prior = ClassPrior(num_classes=4)
    run_epoch(prior, batches(20))
    before = prior.weights.clone()
    prior.end_epoch()
    assert torch.equal(prior.weights, before)


def test_rows_sum_to_one_whatever_the_predictions() -> None:
    prior = ClassPrior(num_classes=4, temperature=0.1)
    run_epoch(prior, [(1e4 * logits, y) for logits, y in batches(50)])
    torch.testing.assert_close(prior.weights.sum(1), torch.ones(4))


def test_low_precision_logits_lose_nothing_more() -> None:
    epoch = [(logits.bfloat16(), y) for logits, y in batches(64)]
    prior = ClassPrior(num_classes=4)
    run_epoch(prior, epoch)
    torch.testing.assert_close(prior.weights.double(), mean_predictions(epoch, 4.0, before=UNIFORM), rtol=1e-6, atol=0)


def test_the_cut_into_batches_does_not_matter() -> None:
    ((logits, y),) = batches(64)
    whole, parts = ClassPrior(num_classes=4), ClassPrior(num_classes=4)
    run_epoch(whole, [(logits, y)])
    run_epoch(parts, list(zip(logits.split(7), y.split(7), strict=True)))
    torch.testing.assert_close(parts.weights, whole.weights, rtol=2e-7, atol=0)


def test_the_prior_is_a_constant_and_holds_no_graph() -> None:
    prior = ClassPrior(num_classes=4)
    logits, y = batches(8)[0]
    prior.update(logits.requires_grad_(), y)
    assert not any(buffer.requires_grad for buffer in prior.buffers())
    prior.end_epoch()
    assert not prior(y).requires_grad
    assert not list(prior.parameters())


def test_a_stop_in_mid_epoch_loses_nothing(tmp_path) -> None:
    first, second = batches(16, 16), batches(16, 16)
    uninterrupted = ClassPrior(num_classes=4)
    run_epoch(uninterrupted, first)
    uninterrupted.update(*second[0])
    torch.save(uninterrupted.state_dict(), tmp_path / "prior.pt")

    resumed = ClassPrior(num_classes=4)
    resumed.load_state_dict(torch.load(tmp_path / "prior.pt", weights_only=True))
    assert torch.equal(resumed.weights, uninterrupted.weights)
    for prior in (uninterrupted, resumed):
        prior.update(*second[1])
        prior.end_epoch()
    assert torch.equal(resumed.weights, uninterrupted.weights)


def test_forgetting_drops_only_what_this_epoch_gathered() -> None:
    prior, clean = ClassPrior(num_classes=4), ClassPrior(num_classes=4)
    first, second = batches(16), batches(16)
    for each in (prior, clean):
        run_epoch(each, first)
    prior.update(*batches(16)[0])
    prior.forget_gathered()
    assert torch.equal(prior.weights, clean.weights)
    for each in (prior, clean):
        run_epoch(each, second)
    assert torch.equal(prior.weights, clean.weights)


def test_one_process_synchronises_to_itself() -> None:
    prior = ClassPrior(num_classes=4)
    prior.update(*batches(16)[0])
    before = copy.deepcopy(prior.state_dict())
    prior.synchronise()
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


TWO_PROCESSES = """
import sys
import torch
from advtrain import distributed
from advtrain.losses import ClassPrior

logits, y = torch.load(sys.argv[1], weights_only=True)
with distributed.process_group(torch.device("cpu")):
    rank = distributed.rank()
    prior = ClassPrior(num_classes=4)
    mine = slice(0, 10) if rank == 0 else slice(10, 20)
    prior.update(logits[mine], y[mine])
    prior.synchronise()
    torch.save(prior.state_dict(), f"{sys.argv[2]}/synchronised{rank}.pt")
    mine = slice(20, 30) if rank == 0 else slice(30, 40)
    prior.update(logits[mine], y[mine])
    prior.end_epoch()
    torch.save(prior.state_dict(), f"{sys.argv[2]}/ended{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_gather_together(tmp_path) -> None:
    logits, y = 3 * torch.randn(40, 4), torch.arange(4).repeat_interleave(10)  # no process sees every class
    y[35:] = 0
    torch.save((logits, y), tmp_path / "batch.pt")
    (tmp_path / "gather.py").write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "gather.py"), str(tmp_path / "batch.pt"), str(tmp_path)]
    processes = [subprocess.Popen(command, env={**os.environ, **group, "RANK": rank}) for rank in "01"]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()

    alone = ClassPrior(num_classes=4)
    alone.update(logits[:20], y[:20])
    main, other = (torch.load(tmp_path / f"synchronised{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(main, dict(alone.state_dict()), rtol=1e-12, atol=1e-14)
    assert other["sums"].count_nonzero() == other["counts"].count_nonzero() == 0

    alone.update(logits[20:], y[20:])
    alone.end_epoch()
    for rank in (0, 1):
        ended = torch.load(tmp_path / f"ended{rank}.pt", weights_only=True)
        torch.testing.assert_close(ended, dict(alone.state_dict()), rtol=2e-7, atol=0)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_classes": 1}, "loss.num_classes: expected an integer of at least 2, got 1"),
        ({"num_classes": None}, "loss.num_classes: expected an integer of at least 2, got None"),
        ({"num_classes": 10, "temperature": 0}, "loss.temperature: expected a number above 0, got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, line: str) -> None:
    with pytest.raises(SettingError) as error:
        ClassPrior(**settings)
    assert str(error.value).startswith(line)
