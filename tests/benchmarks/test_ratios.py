"""The ratios benchmark: what stands beside the times is right, and the toy form runs through all of it.

No time is asserted here. References are slow loops, float64, and torchattacks itself.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advtrain.models import SmallCNN
from benchmarks import ratios, timing
from benchmarks.comparisons import attack, augmenting, losses, roofline, steps
from benchmarks.comparisons.inputs import as_bytes, image_like, labels
from benchmarks.comparisons.parity import all_apart, apart, same_sign

ROOT = Path(__file__).resolve().parents[2]


def tiny(num_classes: int = 10) -> nn.Module:
    """Small, and with weights large enough for adversarial predictions to differ from natural ones."""
    model = SmallCNN(num_classes=num_classes, in_channels=3, image_size=8, width=2, hidden=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def case(loss: str) -> steps.Case:
    return steps.Case(tiny, loss, image_like(8, 8, 0), labels(8, 10, 0), steps=2)


def test_ratios_are_those_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": [4.0, 9.0, 2.0], "fast": [2.0, 3.0, 2.0]}
    found = timing.compared(times, "slow")["fast"]
    assert found == {"milliseconds": 2000.0, "ratio": 2.0, "range": [1.0, 3.0]}


def test_every_way_has_a_turn_in_every_round_in_random_order() -> None:
    done: list[str] = []
    ways = {name: partial(done.append, name) for name in "abc"}
    times = timing.interleaved(ways, rounds=20, seed=0)
    turns = [done[i : i + 3] for i in range(3, len(done), 3)]  # each ran once before
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns) and len(turns) == 20
    assert len({tuple(turn) for turn in turns}) > 3
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 20)


def test_parity_is_zero_for_equals_and_relative_else() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert apart(expected, expected) == 0
    assert apart(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert all_apart([torch.tensor([3.3]), torch.tensor([4.4])], expected.split(1)) == pytest.approx(0.1)
    assert same_sign(torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 0.0, 1.0])) == 0.75


@pytest.mark.parametrize("loss", ["trades", "ikl"])
def test_our_step_is_the_published_one_up_to_rounding(loss: str) -> None:
    found = steps.measured(case(loss), {"eager": steps.Rung()}, rounds=1)
    for one in found.values():
        parity = one["parity"]
        assert parity["loss"] < 1e-6 and parity["attack_gradient"] < 1e-3 and parity["weight_gradient"] < 1e-5
        assert parity["attack_gradient_same_sign"] > 0.99
        assert one["images_per_second"] > 0
    assert found["published"]["ratio"] == 1


def test_a_wrong_step_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps.Case, "our_loss", lambda self: steps.TRADES(beta=5.0))
    parity = steps.measured(case("trades"), {"eager": steps.Rung()}, rounds=1)["eager"]["parity"]
    assert parity["weight_gradient"] > 1e-4 and parity["loss"] > 1e-5


@pytest.mark.skipif(not attack.installed(), reason=attack.MISSING)
def test_torchattacks_finds_the_same_images_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack, "RUNGS", {"eager, contiguous": attack.RUNGS["eager, contiguous"]})
    found = attack.measured(tiny, image_like(8, 8, 0), labels(8, 10, 0), steps=3, rounds=1)
    assert found["eager, contiguous"]["parity"] == {"pixels_equal": 1.0, "largest_difference": 0.0}


def test_without_torchattacks_the_benchmark_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attack, "installed", lambda: False)
    assert ratios.attack_ratios(ratios.toy(1)) == {"left_out": attack.MISSING}
    assert "pip install --no-deps --target FOLDER torchattacks==3.5.1" in capsys.readouterr().out


def test_pairs_take_memory_that_grows_with_the_square_of_the_classes() -> None:
    pairs = {c: losses.Batched.random(4, c).peak_bytes("pairwise") for c in (50, 100)}
    ours = {c: losses.Batched.random(4, c).peak_bytes("ikl") for c in (50, 100)}
    assert pairs[100] >= 4 * 4 * 100**2 and 3.5 < pairs[100] / pairs[50] < 4.5
    assert 1.5 < ours[100] / ours[50] < 2.5


def test_loss_over_pairs_is_ours() -> None:
    found = losses.against_pairs(6, 7, rounds=1, least=0.0, ours=("ikl",))
    assert max(found["ways"]["ikl"]["parity"].values()) < 1e-5


def test_a_step_with_many_classes_stands_beside_itself() -> None:
    found = losses.steps_against_kl(partial(tiny, 12), image_like(4, 8, 0), 12, steps=1, rounds=1)
    assert set(found["ways"]) == {"kl", "kl again", "ikl"}
    assert found["ways"]["kl"]["peak_bytes"] == found["ways"]["kl again"]["peak_bytes"] > 0


def test_pil_told_the_same_draws_makes_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = as_bytes(image_like(16, 12, 0))
    assert augmenting.pixels_equal(images) == 1
    monkeypatch.setattr(augmenting, "PADDING", 3)  # what draws 4 for one side and 3 for the other would be seen
    assert augmenting.pixels_equal(images) == 1
    found = augmenting.measured(images, labels(16, 10, 0), batch_size=8, rounds=1)
    assert found["ways"]["device"]["parity"]["pixels_equal"] == 1


def test_work_of_convolutions_is_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1))
    found = roofline.convolutions(model, 8)
    assert sum(found.values()) == 3
    second = roofline.Shape(8, 8, 3, 2, 1, 8)
    assert found[second] == 1 and second.side_out == 4
    assert second.flops(5) == 2 * 5 * 8 * 4 * 4 * 8 * 9
    assert second.bytes(5) == 4 * (5 * 8 * 8 * 8 + 5 * 8 * 4 * 4 + 8 * 8 * 9)


@pytest.mark.parametrize("layout", roofline.LAYOUTS.values())
def test_the_passes_that_are_timed_are_those_of_a_convolution(layout: torch.memory_format) -> None:
    passes = roofline.passes(roofline.Shape(3, 4, 3, 2, 1, 8), 2, layout)
    assert passes["forward"]().shape == (2, 4, 4, 4)  # pyright: ignore[reportAttributeAccessIssue]
    by_input, nothing, _ = passes["input_gradient"]()  # pyright: ignore[reportGeneralTypeIssues]
    none, by_weight, _ = passes["weight_gradient"]()  # pyright: ignore[reportGeneralTypeIssues]
    assert by_input.shape == (2, 3, 8, 8) and by_weight.shape == (4, 3, 3, 3) and nothing is None and none is None


def test_traffic_is_what_operations_read_and_write() -> None:
    a, b = torch.zeros(10), torch.zeros(10)
    with roofline.Traffic() as traffic:
        a.view(2, 5)
        F.relu(a + b)  # two tensors read and one written; one read and one written
    assert traffic.bytes == 40 * 5


@pytest.mark.slow
def test_toy_form_runs_through_everything(tmp_path: Path) -> None:
    out = tmp_path / "ratios.json"
    # In a process of its own: the checks of shapes that pytest runs with are nothing that torch.compile can trace.
    command = [sys.executable, "-m", "benchmarks", "ratios", str(out), "--toy", "--rounds", "1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=280)
    record: dict[str, Any] = json.loads(out.read_text())
    assert {"command", "git_commit", "seed", "hardware", "versions", "wanted", *ratios.PARTS} <= set(record)
    ways = record["steps"]["toy, TRADES-2"]["ways"]
    assert set(ways) == {"published", "eager", "compile=step", "eager, bf16"}
    for name, one in ways.items():
        exact = "bf16" not in name
        assert one["precision"].startswith("float32") == exact
        assert one["parity"]["weight_gradient"] < (1e-4 if exact else 0.1)


def test_a_part_joins_what_the_same_commit_measured_before(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    head = {"command": "a", "measured": "9 rounds", "git_commit": "g", "versions": {"torch": "1"}}
    path.write_text(json.dumps(ratios.joined(head, {"losses": 1, "attack": 1}, path)))
    later = {**head, "command": "b", "measured": "3 rounds"}
    both = ratios.joined(later, {"steps": 2, "attack": 2}, path)
    assert (both["losses"], both["attack"], both["steps"]) == (1, 2, 2)
    assert (both["command"], both["measured"]) == ("a && b", "9 rounds && 3 rounds")
    for other in ({**later, "git_commit": "h"}, {**later, "versions": {"torch": "2"}}):
        assert "losses" not in ratios.joined(other, {"steps": 2}, path)


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks ratios", "out.json", "--only", "losses,speed"])
    with pytest.raises(SystemExit):
        ratios.main()
    assert "got speed" in capsys.readouterr().err
