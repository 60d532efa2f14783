"""engine=exact against engine=upstream: the same verdict for every image, and the same attack behind it.

On the published CPU models, each with 256 images of its own test set, in every threat model; most with few iterations,
because what an attack does in a hundred it does in five, and the standard version in full on some images.
"""

import functools
import json
from pathlib import Path

import pytest
import torch

from advtrain.config import build
from advtrain.data import CIFAR10, CIFAR100
from advtrain.evaluation.autoattack import run
from advtrain.evaluation.autoattack.outcome import MISCLASSIFIED, ROBUST, AutoAttackOutcome
from advtrain.evaluation.settings import AutoAttackSettings
from tests.evaluation.shortened import shortened

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
MODELS = ("cifar10_cpu", "cifar10_cpu_pgd_at", "cifar100_cpu")
RADII = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}


@functools.cache
def subject(name, root, n):
    """A published model with the first `n` test images of its data set."""
    bundle = CHECKPOINTS / name
    stored = json.loads((bundle / "verification.json").read_text())
    model = build(stored["trained_as"])
    model.load_state_dict(torch.load(bundle / stored["weights"], weights_only=True)["state_dict"])
    split = {"cifar10": CIFAR10, "cifar100": CIFAR100}[stored["dataset"]](root=str(root)).split("test")
    indices = split.subset(n)
    return model.eval().requires_grad_(False), split.fetch(indices, "cpu"), split.labels[indices]


def outcomes(model, x, y, norm, **settings) -> tuple[AutoAttackOutcome, AutoAttackOutcome]:
    exact, upstream = (
        run.run_autoattack(
            model,
            x,
            y,
            norm=norm,
            eps=RADII[norm],
            settings=AutoAttackSettings(engine=engine, **settings),
            device="cpu",
            report=lambda line: None,
        )
        for engine in ("exact", "upstream")
    )
    return exact, upstream


def verdict(outcome: AutoAttackOutcome, image: int) -> str:
    code = int(outcome.broken_by[image])
    words = {ROBUST: "robust", MISCLASSIFIED: "misclassified without an attack"}
    return words.get(code) or f"broken by {outcome.attack_names[code]}"


def assert_same_verdicts(exact: AutoAttackOutcome, upstream: AutoAttackOutcome) -> None:
    assert exact.attack_names == upstream.attack_names
    differing = [
        f"image {i}: exact says {verdict(exact, i)}, upstream {verdict(upstream, i)}"
        for i in range(len(upstream.robust))
        if verdict(exact, i) != verdict(upstream, i) or exact.robust[i] != upstream.robust[i]
    ]
    assert not differing, "\n".join(differing)
    assert [entry["correct"] for entry in exact.after] == [entry["correct"] for entry in upstream.after]
    assert exact.flags == upstream.flags


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_verdicts_of_256_images(real_data, monkeypatch, name, norm, version):
    model, x, y = subject(name, real_data, 256)
    monkeypatch.setattr(run, "plans", functools.partial(shortened, iterations=3, queries=12))
    exact, upstream = outcomes(model, x, y, norm, version=version, batch_size=100)
    assert {ROBUST, MISCLASSIFIED, 0} <= set(upstream.broken_by.tolist())  # there is something to tell apart
    assert_same_verdicts(exact, upstream)
    assert torch.equal(exact.x_adv, upstream.x_adv)  # on a CPU, the same bits


@pytest.mark.slow
def test_the_standard_version_in_full(real_data):
    """All iterations, on the first 16 images."""
    model, x, y = subject("cifar10_cpu_pgd_at", real_data, 16)
    exact, upstream = outcomes(model, x, y, "linf")
    assert exact.settings["parameters"]["square"]["queries"] == 5000
    assert_same_verdicts(exact, upstream)
    assert torch.equal(exact.x_adv, upstream.x_adv)


def test_a_disagreement_names_the_image_and_the_attacks(problem):
    four = problem(4, n=10)
    model = four.model.eval().requires_grad_(False)
    settings = AutoAttackSettings(version="custom", attacks=["apgd-ce"], engine="upstream")
    told = run.run_autoattack(
        model,
        four.split.images,
        four.split.labels,
        norm="linf",
        eps=four.eps,
        settings=settings,
        device="cpu",
        report=lambda line: None,
    )
    image = int((told.broken_by == 0).nonzero()[0])
    other = AutoAttackOutcome(**{**vars(told), "broken_by": told.broken_by.clone()})
    other.broken_by[image] = ROBUST
    with pytest.raises(AssertionError, match=f"image {image}: exact says robust, upstream broken by apgd-ce"):
        assert_same_verdicts(other, told)
