"""Recomputed BatchNorm statistics against NumPy, against torch's own function, and through training."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from advtrain import distributed
from advtrain.config import build
from advtrain.engine import EMA, SWA, EpochEMA, checkpoints
from advtrain.engine.batchnorm import batchnorm_layers, natural_images, recompute_statistics
from advtrain.engine.numerics import Numerics
from advtrain.losses import Standard
from advtrain.sources import averaged_model
from tests.engine.toy import Toy, network, trainer

NUMERICS = Numerics(torch.device("cpu"), torch.float64)


def deep() -> nn.Sequential:
    """Two BatchNorm layers, the second behind dropout."""
    torch.manual_seed(4)
    first = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Dropout(0.5)]
    second = [nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)]
    return nn.Sequential(*first, *second).double()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64) * n + n for n in (9, 9, 5)]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{kind}": getattr(layer, kind).clone()
        for name, layer in batchnorm_layers(model)
        for kind in ("running_mean", "running_var")
    }


def test_statistics_are_those_of_all_activations() -> None:
    """Every layer normalises by its batch; what arrives at it is gathered and handed to NumPy as one array."""
    model = deep().train()
    model[1].eval()  # a mode of its own
    plain = copy.deepcopy(model).eval()
    arrived: dict[str, list[np.ndarray]] = {"1": [], "5": []}
    for name, channels in arrived.items():
        plain[int(name)].train().register_forward_pre_hook(lambda _, x, kept=channels: kept.append(x[0].numpy().copy()))
    with torch.no_grad():
        for x in batches():
            plain(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recompute_statistics(model, batches())
    for name, chunks in arrived.items():
        by_channel = np.concatenate(chunks).transpose(1, 0, 2, 3).reshape(chunks[0].shape[1], -1)
        expected = {"running_mean": by_channel.mean(1), "running_var": by_channel.var(1, ddof=1)}
        for kind, value in expected.items():
            np.testing.assert_allclose(model.state_dict()[f"{name}.{kind}"].numpy(), value, rtol=1e-9, atol=1e-12)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{kind}" for name in ("1", "5") for kind in ("running_mean", "running_var")}
    assert model.training and not model[1].training and model[1].momentum == 0.3
    assert not any(layer._forward_pre_hooks for _, layer in batchnorm_layers(model))


def test_one_batch_is_torchs_update_bn() -> None:
    model = deep()
    model[3].p = 0  # update_bn leaves dropout on
    other = copy.deepcopy(model)
    x = batches()[0]
    recompute_statistics(model, [x])
    update_bn([x], other)
    expected = statistics(other)
    assert len(expected) == 4
    for name, value in statistics(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_the_outcome_does_not_depend_on_what_was_there() -> None:
    models = deep(), deep()
    with torch.no_grad():
        for _, layer in batchnorm_layers(models[1]):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.fill_(3)
            layer.running_var.fill_(7)
    for model in models:
        recompute_statistics(model, batches())
    first, second = map(statistics, models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_without_batchnorm_asks_for_no_image() -> None:
    def refuse() -> Iterator[Tensor]:
        raise AssertionError("no image is needed")
        yield

    model = network().double()
    before = copy.deepcopy(model.state_dict())
    recompute_statistics(model, refuse())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_no_image_reaches_stays() -> None:
    model = deep()
    model.spare = nn.Identity()
    model.spare.inner = nn.BatchNorm2d(2)  # registered, never called
    recompute_statistics(model, batches())
    assert torch.equal(model.get_buffer("spare.inner.running_var"), torch.ones(2))
    assert not torch.equal(model.get_buffer("1.running_var"), torch.ones(5, dtype=torch.float64))


class TestNaturalImages:
    def test_they_are_training_images_without_augmentation(self) -> None:
        split = Toy(augment="crop_flip").split("train")
        found = torch.cat(list(natural_images(split, 50, 16, seed=0, numerics=NUMERICS)))
        everything = split.fetch(torch.arange(len(split)), "cpu").double()
        places = [(everything == image).flatten(1).all(1).nonzero().flatten().tolist() for image in found]
        assert len(places) == 50 and all(len(place) == 1 for place in places)
        assert len({place[0] for place in places}) == 50

    @pytest.mark.parametrize("n_images", (50, 1000))
    def test_processes_share_the_batches_of_one(self, n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
        draw = partial(natural_images, Toy().split("train"), n_images, 16, seed=0, numerics=NUMERICS)
        alone = list(draw())
        assert sum(map(len, alone)) == min(n_images, 96)
        monkeypatch.setattr(distributed, "world_size", lambda: 3)
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            share = list(draw())
            assert len(share) == len(alone[rank::3])
            assert all(torch.equal(a, b) for a, b in zip(share, alone[rank::3], strict=True))

    def test_the_seed_names_them(self) -> None:
        draw = partial(natural_images, Toy().split("train"), 50, 50, numerics=NUMERICS)
        first, again, other = (next(draw(seed=seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)


AVERAGES = {
    "ema": partial(EMA, decay=0.6),
    "epoch_ema": partial(EpochEMA, decay=0.6),
    "swa": partial(SWA, start_epoch=1),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_the_three_ways_through_training(name: str, tmp_path: Path) -> None:
    """Two epochs with each; what is validated is what both checkpoints hold and what evaluation and export load."""
    config: dict[str, Any] = {"model": {"_target_": "advtrain.models.SmallPreActResNet", "num_classes": 4, "width": 2}}
    found = {}
    for way in ("averaged", "copied", "recomputed"):
        torch.manual_seed(6)
        average = AVERAGES[name](batchnorm=way)
        run = trainer(tmp_path / way, build(config["model"]), averaging=average, loss=Standard(), batch_size=48)
        used: dict[int, dict[str, Tensor]] = {}  # by epoch; what validation saw is the last
        run.averaged.register_forward_hook(
            lambda *_, run=run, used=used: used.update({run.position.epoch: copy.deepcopy(run.averaged.state_dict())})
        )
        run.fit()
        assert sorted(used) == [1, 2]
        for path in (run.last_path, run.best_path):
            state = checkpoints.load(path)
            epoch = state["position"]["epoch"]
            assert all(torch.equal(value, used[epoch][key]) for key, value in state["averaged"].items())
            loaded = averaged_model(config, path, torch.device("cpu"), trusted=False)
            assert all(
                torch.equal(value.to(t.dtype), t)
                for value, t in zip(used[epoch].values(), loaded.state_dict().values(), strict=True)
            )
        found[way] = checkpoints.load(run.last_path)

    weights = {key: [found[way]["averaged"][key] for way in found] for key in dict(run.model.named_parameters())}
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in weights.values())
    assert not torch.equal(found["copied"]["averaged"]["stem.weight"], found["copied"]["model"]["stem.weight"])

    of_model = build(config["model"]).double()
    of_model.load_state_dict(found["copied"]["model"])
    averages = {}
    for way, state in found.items():
        model = build(config["model"]).double()
        model.load_state_dict(state["averaged"])
        averages[way] = statistics(model)
    split = Toy().split("train")
    update_bn([split.fetch(torch.arange(len(split)), "cpu").double()], model)  # on the same weights, in one batch
    expected = statistics(model)
    for key, value in averages["recomputed"].items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)
        assert torch.equal(averages["copied"][key], statistics(of_model)[key])
        assert not torch.allclose(averages["averaged"][key], value, rtol=1e-3)
        assert not torch.allclose(averages["averaged"][key], averages["copied"][key], rtol=1e-3)
