"""The timing of a frozen model's passes: its counts, its arithmetic, and a whole run at toy size."""

import json
import sys

import pytest
import torch
from torch import nn

from advtrain.evaluation.autoattack.exact import Execution, perturb
from advtrain.evaluation.autoattack.plan import AttackPlan, plans
from benchmarks import gpu_passes
from benchmarks.gpu_passes import DTYPES, ENGINES, FAST, RULES, Way, numbers, predictions, timed
from benchmarks.gpu_timing import ProcessTime


@pytest.mark.parametrize("name", ("apgd-ce", "apgd-t", "fab-t", "square"))
def test_passes_of_an_image_that_stays_robust(name):
    """Counted in the attacks themselves; which of an attack's passes are differentiated, from gradients that arrive."""
    counts = {"passes": 0, "gradients": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            counts["passes"] += 1
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            counts["gradients"] += 1
            return gradient

    torch.manual_seed(0)
    linear = nn.Linear(48, 6).requires_grad_(False)
    x = torch.rand(4, 3, 4, 4)
    y = linear(x.flatten(1)).argmax(1)
    plan = AttackPlan(name, "linf", 1e-5, iterations=7, target_classes=3 if name.endswith("-t") else 0)
    perturb(lambda images: linear(Counted.apply(images).flatten(1)), x, y, plan, 0, Execution(block=25, shrink=True))
    forwards, gradients = numbers(plan)
    assert counts["gradients"] == gradients
    assert abs(counts["passes"] - forwards - gradients) <= max(plan.target_classes, 1)  # a start's own looks


def test_seconds_for_a_thousand_images():
    """100 images/s without gradient and 50 with: 20 ms and 10 ms for a pass of an image."""
    rows = [{"way": list(way), "forward_images_per_s": 100.0, "gradient_images_per_s": 50.0} for way in RULES]
    found = predictions(rows)
    plan = AttackPlan("square", "linf", 0.1, iterations=5000)
    assert found["exact"]["square"] == pytest.approx(10 * numbers(plan)[0]) == 50020
    by_hand = 10 * 3 + 20 * 100 + 10 * 11 + 20 * 900 + 10 * 910 + 20 * 900 + 50020  # seconds per 1,000 images
    assert found["fast"]["all"] == pytest.approx(by_hand, rel=1e-3)
    planned, _ = plans("standard", (), norm="linf", eps=0.1, num_classes=10)
    assert [numbers(one) for one in planned] == [(3, 100), (11, 900), (910, 900), (5002, 0)]
    rows[[way.arithmetic for way in RULES].index("bf16")] = {"way": list(FAST["bf16"]), "error": "out of memory"}
    assert "fast" not in predictions(rows) and "exact" in predictions(rows)
    assert set(ENGINES["exact"]) == {one.name for one in planned}


def test_each_way_computes_as_it_says(monkeypatch):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            cudnn = torch.backends.cudnn
            seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))
            return x.flatten(1)[:, :3] * 1.0

    monkeypatch.setattr("advtrain.evaluation.autoattack.passes.fuse", lambda model: model)
    for arithmetic in DTYPES:
        for algorithms in ("deterministic", "timed"):
            seen.clear()
            way = Way(arithmetic, "NHWC", "folded", algorithms)
            row = timed(Watched(), way, torch.rand(2, 3, 4, 4), ProcessTime(), 0.0)
            assert row["forward_images_per_s"] > 0 and row["gradient_images_per_s"] > 0
            fixed = algorithms == "deterministic"
            assert set(seen) == {(arithmetic == "tf32", fixed, not fixed)}


def test_a_way_that_fails_is_a_line():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no kernel\nat all")

    row = timed(Failing(), RULES[0], torch.rand(2, 3, 4, 4), ProcessTime(), 0.0)
    assert "no kernel" in row["error"] and "forward_images_per_s" not in row


def test_the_whole_script_at_toy_size(monkeypatch, tmp_path, capsys):
    out = tmp_path / "passes.json"
    monkeypatch.setattr(sys, "argv", ["gpu_passes", str(out), "--toy"])
    gpu_passes.main()
    record = json.loads(out.read_text())
    assert {"command", "git_commit", "seed", "hardware", "versions", "measured", "gigaflop"} <= set(record)
    assert [row["way"][0] for row in record["rows"][:3]] == ["fp32", "fp32", "tf32"]
    assert set(ENGINES) < set(record["seconds_per_1000_robust_images"])
    assert "images/s" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gpu_passes", str(out), "--toy", "--seconds", "0"])
    gpu_passes.main()
    assert {row["error"] for row in json.loads(out.read_text())["rows"]} == {"no time left"}


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_passes", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit):
        gpu_passes.main()
    assert "expected a CUDA GPU, got none" in capsys.readouterr().err
