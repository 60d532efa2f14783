"""Validation: an attack of its own, counts that can be recomputed, and a best checkpoint that follows them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advtrain.attacks import APGD, NFGSM, PGD, Scheduled
from advtrain.config import ThreatSettings, ValidationSettings
from advtrain.engine import EMA, Diverged, Trainer, checkpoints
from advtrain.engine import trainer as trainer_module
from advtrain.engine.validation import Accuracy, SelectionAttack, selection, selection_attack, validate
from advtrain.losses import PGDAT, TRADES, Loss, Standard
from advtrain.losses.functional import dlr_per_image, margin_per_image
from advtrain.models import SmallPreActResNet
from advtrain.random import seeded_generator
from advtrain.types import Attack, SettingError
from tests.engine.toy import LOSSES, Toy, network, trainer

THREAT = ThreatSettings("linf", "0.05")
BUNDLES = Path(__file__).resolve().parents[2] / "checkpoints"


def chosen(loss: Loss, attack: Attack | None, threat: ThreatSettings = THREAT, classes: int = 4) -> SelectionAttack:
    return selection_attack(threat, ValidationSettings(steps=3, restarts=2, batch_size=5), attack, loss, classes)


@pytest.mark.parametrize("batch_size", (5, 16))
def test_counts_against_a_plain_loop(batch_size: int) -> None:
    """An image counts where the natural one and the one of each start are classified correctly, one at a time."""
    model, split = network(norm=True).double().train(), Toy().split("validation")
    settings = ValidationSettings(steps=3, restarts=3, batch_size=batch_size)
    attack = selection_attack(THREAT, settings, None, Standard(), 4)
    found = validate(
        model,
        split,
        attack,
        settings,
        seed=3,
        device=torch.device("cpu"),
        dtype=torch.float64,
        memory_format=torch.contiguous_format,
    )
    assert model.training
    model.eval()
    search = APGD(norm="linf", eps=0.05, steps=3, init="uniform")
    clean = robust = 0
    for batch, start in enumerate(range(0, 16, batch_size)):
        rows = torch.arange(start, min(start + batch_size, 16))
        x, y = split.fetch(rows, "cpu").double(), split.labels[rows]
        ranked = [[c for c in row.argsort(descending=True).tolist() if c != y[i]] for i, row in enumerate(model(x))]

        def towards(z: Tensor, rank: int, y: Tensor = y, ranked: list[list[int]] = ranked) -> Tensor:
            logits = model(z)
            return torch.stack([row[classes[rank]] - row[label] for row, classes, label in zip(logits, ranked, y)])

        generator = seeded_generator(3, "validation", batch)
        images = [
            search(lambda z, y=y: margin_per_image(model(z), y), x, generator=generator),
            search(lambda z: towards(z, 1), x, generator=generator),
            search(lambda z: towards(z, 2), x, generator=generator),
        ]
        for i in range(len(y)):
            right = model(x[i : i + 1]).argmax().item() == y[i]
            clean += right
            robust += right and all(model(x_adv[i : i + 1]).argmax().item() == y[i] for x_adv in images)
    assert (found.clean, found.robust, found.n_examples) == (clean / 16, robust / 16, 16)
    assert found.robust is not None and 0 < found.robust < found.clean


@pytest.mark.parametrize("inner", ("ce", "kl", "margin", "dlr"))
@pytest.mark.parametrize("search", (PGD(eps=0.05, steps=3), APGD(eps=0.05, steps=3), NFGSM(eps=0.05)))
@pytest.mark.parametrize("classes", (2, 3, 10))
def test_neither_objective_nor_search_is_that_of_training(inner: str, search: Attack, classes: int) -> None:
    for attack in (search, Scheduled(attack=search)):
        selection = chosen(PGDAT(inner=inner), attack, classes=classes)
        assert selection.objective != inner
        assert type(selection.attack) is not type(search)
        assert inner in selection.reason
        assert (selection.objective == "dlr") == (inner == "margin" and classes > 2)


def test_training_without_an_attack_is_validated_by_the_margin() -> None:
    for attack in (None, APGD(eps=0.05, steps=3)):  # a configured attack that the loss does not use is none
        selection = chosen(Standard(), attack)
        assert (selection.objective, type(selection.attack)) == ("margin", APGD)
        assert selection.reason == "training runs no attack"


def test_l1_has_pgd_alone() -> None:
    selection = chosen(TRADES(), PGD(norm="l1", eps=12, steps=3), ThreatSettings("l1", "12"))
    assert isinstance(selection.attack, PGD) and selection.attack.norm == "l1" and selection.objective == "margin"


def test_what_each_start_maximises() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    other = torch.randn(6, 5, dtype=torch.float64)
    margin, dlr = chosen(PGDAT(), PGD(eps=0.05, steps=3)), chosen(PGDAT(inner="margin"), PGD(eps=0.05, steps=3))
    assert torch.equal(margin.measure(0, logits, y)(other), margin_per_image(other, y))
    assert torch.equal(dlr.measure(0, logits, y)(other), dlr_per_image(other, y))
    assert torch.equal(margin.measure(4, logits, y)(other), margin_per_image(other, y))  # four wrong classes, anew
    for start in (1, 2, 3):
        for i in range(6):
            target = [c for c in logits[i].argsort(descending=True).tolist() if c != y[i]][start]
            expected = (other[i, target] - other[i, y[i]]).item()
            spread = (other[i].sort().values[-1] - other[i].sort().values[-3]).item()
            assert margin.measure(start, logits, y)(other)[i].item() == pytest.approx(expected)
            assert dlr.measure(start, logits, y)(other)[i].item() == pytest.approx(expected / spread)


def test_two_classes_have_one_direction_and_it_is_tried_anew() -> None:
    logits, y = torch.randn(3, 2), torch.tensor([0, 1, 0])
    for loss in (PGDAT(), PGDAT(inner="margin")):
        selection = chosen(loss, PGD(eps=0.05, steps=3), classes=2)
        assert torch.equal(selection.measure(0, logits, y)(logits), selection.measure(1, logits, y)(logits))


def test_the_description_names_search_objective_and_starts() -> None:
    assert chosen(PGDAT(), PGD(eps=0.05, steps=3)).describe() == (
        "APGD on the margin of the nearest wrong class, then of the next, 2 starts of 3 steps"
    )
    assert "PGD on DLR of the nearest" in chosen(PGDAT(inner="margin"), APGD(eps=0.05, steps=3)).describe()
    one = selection_attack(THREAT, ValidationSettings(steps=1, restarts=1), None, Standard(), 4)
    assert one.describe() == "APGD on the margin, 1 start of 1 step"


@pytest.mark.slow
def test_it_is_closer_to_autoattack_than_pgd_on_the_margin_at_the_same_cost() -> None:
    """On the published model that was trained by PGD; verification.npz holds AutoAttack's images."""
    bundle = BUNDLES / "cifar10_cpu_pgd_at"
    arrays = np.load(bundle / "verification.npz")
    (weights,) = bundle.glob("models/*/Linf/*.pt")
    model = SmallPreActResNet(num_classes=10, width=32, blocks=1)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    model.eval().requires_grad_(False)
    n = 300
    x, y = torch.from_numpy(arrays["images"][:n]).float() / 255, torch.from_numpy(arrays["labels"][:n])
    selection = selection_attack(
        ThreatSettings(), ValidationSettings(), PGD(eps="8/255", steps=10), PGDAT(), num_classes=10
    )
    before = PGD(eps="8/255", steps=10, restarts=2)
    with torch.no_grad():
        clean = model(x)
        autoattack = model(torch.from_numpy(arrays["adversarial_images"][:n])).argmax(1) == y
    generator = torch.Generator().manual_seed(0)
    ours = clean.argmax(1) == y
    for start in range(selection.starts):
        measure = selection.measure(start, clean, y)
        ours &= model(selection.attack(lambda z, m=measure: m(model(z)), x, generator=generator)).argmax(1) == y
    plain = model(before(lambda z: margin_per_image(model(z), y), x, generator=generator)).argmax(1) == y
    assert autoattack.sum() <= ours.sum() < plain.sum()
    assert ours.sum() - autoattack.sum() <= (plain.sum() - autoattack.sum()) // 2


def test_the_best_checkpoint_is_the_best_validated_average(tmp_path: Path) -> None:
    run = trainer(tmp_path, averaging=EMA(decay=0.5), epochs=6)
    run.fit()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [(r["validation_robust"], r["validation_clean"]) for r in records if "validation_robust" in r]
    assert len(scores) == 6
    best = max(range(6), key=lambda i: (*scores[i], i))
    state = checkpoints.load(tmp_path / "checkpoints" / "best.pt")
    assert state["position"]["best_epoch"] == state["position"]["epoch"] == best + 1
    assert checkpoints.load(tmp_path / "checkpoints" / "last.pt")["position"]["epoch"] == 6
    assert not torch.equal(state["averaged"]["0.weight"], state["model"]["0.weight"])


@pytest.mark.parametrize(
    ("loss", "select", "by"),
    (
        ("pgd_at", None, "robust"),
        ("standard", None, "robust"),  # as it always was
        ("kd", None, "clean"),
        ("ard", None, "robust"),
        ("kd", "robust", "robust"),
        ("trades", "clean", "clean"),
    ),
)
def test_what_chooses_a_checkpoint(loss: str, select: str | None, by: str) -> None:
    settings = ValidationSettings(select=select)
    found = selection(THREAT, settings, PGD(eps=0.05, steps=3), LOSSES[loss](), 4)
    assert found.by == by
    if by == "robust":
        expected = selection_attack(THREAT, settings, PGD(eps=0.05, steps=3), LOSSES[loss](), 4)
        assert (found.describe(), found.reason) == (expected.describe(), expected.reason)
    else:
        assert found.describe() == "clean accuracy"


def test_clean_accuracy_chooses_without_a_single_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward pass for each batch of held-out images, and ties go to the later epoch, also over a resume."""
    passes: list[int] = []
    scores = iter([0.5, 0.75, 0.75, 0.25, 0.5])
    monkeypatch.setattr(trainer_module, "validate", scripted(scores))

    def made(epochs: int) -> Trainer:
        run = trainer(tmp_path, network(norm=True), loss=LOSSES["kd"](), epochs=epochs)
        run.model.register_forward_hook(lambda model, *_: None if model.training else passes.append(1))
        return run

    made(4).fit()
    made(5).fit()
    assert len(passes) == 5 * 2  # 16 images in batches of 8
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = [record for record in records if "validation_clean" in record]
    assert [record["validation_clean"] for record in held_out] == [0.5, 0.75, 0.75, 0.25, 0.5]
    assert not any("validation_robust" in record for record in records)
    best, last = (checkpoints.load(tmp_path / "checkpoints" / name)["position"] for name in ("best.pt", "last.pt"))
    assert best["epoch"] == best["best_epoch"] == last["best_epoch"] == 3
    assert (last["best_clean"], last["best_robust"]) == (0.75, -1.0)


def scripted(scores: Iterator[float]) -> Callable[..., Accuracy]:
    """`validate`, with other clean accuracies in place of those that it finds."""

    def found(*arguments: Any, **settings: Any) -> Accuracy:
        accuracy = validate(*arguments, **settings)
        assert accuracy.robust is None and accuracy.n_examples == 16
        return replace(accuracy, clean=next(scores))

    return found


def test_a_wrong_word_for_what_chooses() -> None:
    with pytest.raises(SettingError, match=r"trainer.validation.select: expected one of robust, clean, got 'best'"):
        ValidationSettings(select="best")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"expected a finite loss, got (nan|inf) in epoch 1 by step .*lower optimizer.lr"
    ):
        from advtrain.engine import SGD

        trainer(tmp_path, optimizer=SGD(lr=1e80), epochs=3).fit()
