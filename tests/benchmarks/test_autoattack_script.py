"""The benchmark of AutoAttack's engines: what it compares, and in which arithmetic each of them computes."""

import argparse
import sys

import pytest
import torch
from torch import nn

from advtrain.evaluation.modes import exact_float32
from benchmarks import autoattack_full
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.autoattack import ENGINES
from benchmarks.autoattack_full import Clock, alone, defaults, full


def result(broken_by, seconds, changed=0.0):
    x_adv = torch.zeros(len(broken_by), 1, 1, 1)
    x_adv[0] = changed
    return {"figures": {"work_seconds": seconds}, "broken_by": torch.tensor(broken_by), "x_adv": x_adv}


def test_on_a_gpu_engines_run_here_and_each_is_saved_when_it_is_done():
    found = {
        "upstream": result([-1, 0, 1], 8.0),
        "upstream_defaults": result([-1, 0, 0], 4.0, changed=1.0),
        "fast": result([0, 0, 1], 2.0),
    }
    saved = []
    full(argparse.Namespace(device="cuda", keep=None), list(found), found.__getitem__, saved.append)
    assert [list(one) for one in saved] == [list(found)[:n] for n in (1, 2, 3)]
    last = saved[-1]
    assert (last["fast"]["work_to_upstream"], last["fast"]["work_to_upstream_defaults"]) == (0.25, 0.5)
    assert last["fast"]["robust_unlike_upstream"] == last["fast"]["robust_or_attack_unlike_upstream"] == [0]
    assert last["upstream_defaults"]["robust_unlike_upstream"] == []
    assert last["upstream_defaults"]["robust_or_attack_unlike_upstream"] == [2]
    assert last["upstream_defaults"]["adversarial_images_unlike_upstream"] == 1


def test_a_stopped_call_goes_on_with_the_engine_under_way(tmp_path):
    found = {"upstream": result([-1, 0, 1], 8.0), "fast": result([0, 0, 1], 2.0)}
    arguments, ran, saved = argparse.Namespace(device="cuda", keep=str(tmp_path / "kept")), [], []

    def one(engine):
        ran.append(engine)
        if ran == ["upstream", "fast"]:
            raise KeyboardInterrupt
        return found[engine]

    with pytest.raises(KeyboardInterrupt):
        full(arguments, list(found), one, saved.append)
    full(arguments, list(found), one, saved.append)
    assert ran == ["upstream", "fast", "fast"]
    assert saved[-1]["fast"]["robust_unlike_upstream"] == [0] and saved[-1]["fast"]["work_to_upstream"] == 0.25


@pytest.mark.parametrize("engine", ENGINES["cuda"])
def test_arithmetic_and_gradients_of_weights(monkeypatch, engine):
    """Upstream as its users call it: with gradients, and with PyTorch's defaults where the name says so."""
    model = nn.Linear(2, 2).requires_grad_(False)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = []

    def watched(model, x, y, *, settings, **how):
        learning = any(parameter.requires_grad for parameter in model.parameters())
        seen.append((settings.engine, cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, learning))
        raise InterruptedError

    monkeypatch.setattr(autoattack_full, "run_autoattack", watched)
    x, y = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    with exact_float32(), pytest.raises(InterruptedError):
        alone(model, x, y, engine, Clock(torch.device("cpu")), 3)
    usual = engine == "upstream_defaults"
    assert seen == [(engine.split("_")[0], usual, False, not usual, engine.startswith("upstream"))]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_defaults_are_those_of_a_fresh_process():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    with exact_float32(), defaults():
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == (False, True)
        assert (torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["autoattack", "MODEL", "DATA", "OUT", "--engines", "exact,quick"], "--engines: expected some of upstream, "),
        (["autoattack", "no/such/model", "DATA", "OUT"], "model: expected a run directory, "),
        (["scaling", "--measured", "no/such.json"], "--measured: expected records, got no such file: no/such.json"),
    ],
)
def test_bad_words_end_in_one_line(words, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(SystemExit) as ended:
        benchmarks_main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"python -m benchmarks {words[0]}: error: {expected}")
