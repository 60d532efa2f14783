"""The short attack inside verify.py: it breaks what can be broken, stays in the ball, and exposes weak evaluations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from advtrain.export import verify_script
from advtrain.export.bundle import write_sums

Evaluated = Callable[..., Any]  # the fixture in conftest.py
SHAPE = (3, 4, 4)
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


class Linear(nn.Module):
    """Two logits that differ by w · (x − 1/2) + margin."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = ((x - 0.5) * self.w).flatten(1).sum(1) + self.margin
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("share", "broken"), [(0.97, False), (1.15, True)])
def test_a_linear_model_breaks_at_its_margin_over_the_dual_norm(norm: str, share: float, broken: bool) -> None:
    """The smallest perturbation that turns w · δ + m has length m / ‖w‖*."""
    model = Linear(margin=0.1)
    smallest = 0.1 / float(torch.linalg.vector_norm(model.w.flatten(), DUAL[norm]))
    x = torch.full((5, *SHAPE), 0.5)
    found = verify_script.is_broken(model, x, torch.zeros(5, dtype=torch.long), norm, share * smallest)
    assert found.tolist() == [broken] * 5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_attack_stays_in_ball_and_box(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, *SHAPE, generator=generator)
    delta = torch.randn(20, *SHAPE, generator=generator)
    found = verify_script.inside(x, delta, norm, 0.7)
    assert found.min() >= 0 and found.max() <= 1
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    assert torch.linalg.vector_norm((found - x).flatten(1).double(), order, 1).max() <= 0.7 + 1e-5
    small = delta / 1000
    inner = x.clamp(0.1, 0.9)
    assert torch.allclose(verify_script.inside(inner, small, norm, 0.7), inner + small, atol=1e-7)


def test_projection_on_the_l1_ball_is_the_nearest_point() -> None:
    """Against bisection on the threshold that soft-thresholding must have for the length to be ε."""
    rows = torch.randn(8, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, found in zip(rows, verify_script._project_l1(rows, 2.0), strict=True):
        low, high = 0.0, float(row.abs().max())
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if (row.abs() - middle).clamp_min(0).sum() > 2.0 else (low, middle)
        assert torch.allclose(found, row.sign() * (row.abs() - low).clamp_min(0), atol=1e-9)


def test_a_weak_evaluation_is_found_out(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    """The clean images as 'adversarial' ones: every stored verdict reproduces, and the robust accuracy is wrong."""
    run = evaluated(n=60)
    truly = run.record["autoattack"]["correct"]
    assert truly < 50
    run.arrays["adversarial_images"] = run.arrays["images"]
    run.record["autoattack"]["correct"] = 59
    with pytest.raises(verify_script.Mismatch, match=r"to be so, got (\d+) of 59 broken by PGD-10 × 2; .*stronger"):
        here(run.export().directory)


def test_luck_with_one_image_proves_nothing(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    run = evaluated(n=60)
    broken = np.flatnonzero(
        (run.arrays["adversarial_images"] != run.arrays["images"]).any((1, 2, 3))
        & (run.arrays["clean_predictions"] == run.arrays["labels"])
    )
    run.arrays["adversarial_images"][broken[0]] = run.arrays["images"][broken[0]]
    run.record["autoattack"]["correct"] += 1
    found = here(run.export().directory)
    assert found["broken"] == 1 and found["attacked"] == run.record["autoattack"]["correct"]


def test_verdicts_are_checked_one_by_one(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    run = evaluated()
    changed = (run.arrays["adversarial_images"] != run.arrays["images"]).any((1, 2, 3))
    robust = ~changed & (run.arrays["clean_predictions"] == run.arrays["labels"])
    run.arrays |= {"robust": robust, "attack_names": np.array(["apgd-ce"]), "broken_by": -robust.astype(np.int8)}
    folder = run.export().directory
    with np.load(folder / "verification.npz") as stored:
        assert {"robust", "attack_names", "broken_by"} <= set(stored.files)
    here(folder)
    run.arrays["robust"] = np.roll(robust, 1)
    with pytest.raises(verify_script.Mismatch, match="the stored robust verdicts, got"):
        here(run.export().directory)


def test_both_weight_files_must_agree(evaluated: Evaluated, here: Callable[[Path], dict]) -> None:
    bundle = evaluated().export()
    path = bundle.weights.with_suffix(".safetensors")
    tensors = load_file(path)
    for change in ({"classifier.bias": tensors["classifier.bias"] + 1e-6}, {"extra": torch.zeros(2)}):
        save_file(tensors | change, path)
        write_sums(bundle.directory)
        with pytest.raises(verify_script.Mismatch, match=f"same tensors in both files .*{next(iter(change))}"):
            here(bundle.directory)


def test_safetensors_are_read_without_their_package(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(2, 3, 4),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = verify_script.read_safetensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
