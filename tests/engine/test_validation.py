"""Validation: an attack of its own, counts that can be recomputed, and a best checkpoint that follows them."""

import json
from pathlib import Path

import pytest
import torch

from advtrain.config import ThreatSettings, ValidationSettings
from advtrain.engine import EMA, Diverged, checkpoints
from advtrain.engine.validation import margin_attack, validate
from advtrain.losses.functional import margin_per_image
from advtrain.random import seeded_generator
from tests.engine.toy import Toy, network, trainer


@pytest.mark.parametrize("batch_size", (5, 16))
def test_counts_against_a_plain_loop(batch_size: int) -> None:
    model, split = network(norm=True).double().train(), Toy().split("validation")
    settings = ValidationSettings(steps=3, restarts=2, batch_size=batch_size)
    attack = margin_attack(ThreatSettings("linf", "0.05"), settings)
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
    clean = robust = 0
    for batch, start in enumerate(range(0, 16, batch_size)):
        rows = torch.arange(start, min(start + batch_size, 16))
        x, y = split.fetch(rows, "cpu").double(), split.labels[rows]
        x_adv = attack(
            lambda z, y=y: margin_per_image(model(z), y), x, generator=seeded_generator(3, "validation", batch)
        )
        for i in range(len(y)):
            right = model(x[i : i + 1]).argmax().item() == y[i]
            clean += right
            robust += right and model(x_adv[i : i + 1]).argmax().item() == y[i]
    assert (found.clean, found.robust, found.n_examples) == (clean / 16, robust / 16, 16)


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


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"expected a finite loss, got (nan|inf) in epoch 1 by step .*lower optimizer.lr"
    ):
        from advtrain.engine import SGD

        trainer(tmp_path, optimizer=SGD(lr=1e80), epochs=3).fit()
