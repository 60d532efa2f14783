"""The counters' gates on small networks, and that what they count with can be trusted."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from advtrain.attacks import PGD
from advtrain.data.base import Batch
from advtrain.engine import SGD, NoPerturbation
from advtrain.engine.numerics import Numerics
from advtrain.engine.step import TrainingStep
from advtrain.losses import GKL, IKL, MART, PGDAT, TRADES
from advtrain.models import PreActResNet, SmallPreActResNet
from benchmarks import compiled_graphs, counters, formulas
from benchmarks.counting import Counter, SavedForBackward
from benchmarks.formulas import Passes
from tests.conftest import CHECKOUT
from tests.waits import nothing_waits


def broken(record: dict[str, Any]) -> list[str]:
    return [gate["name"] for gate in record["gates"] if not gate["holds"]]


@pytest.mark.parametrize("network", ("small_cnn", "preact_resnet_small"))
def test_every_gate_holds(network: str) -> None:
    record = counters.measure(network, steps=2, images=2)
    assert broken(record) == []
    assert len(record["gates"]) == 1 + 4 * (2 * 8 + 1) + 6


def test_the_compiled_attack_step_is_one_graph_without_weight_gradients(without_type_checks: None) -> None:
    assert broken(counters.measure_compiled("small_cnn", images=2)) == []


def test_weight_gradients_of_a_compiled_network_are_seen() -> None:
    graphs: list[torch.fx.Graph] = []
    with compiled_graphs.looking(graphs.append):
        model = torch.compile(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3)))
        model(torch.rand(2, 1, 8, 8)).sum().backward()
    found = {"forward": 0, "input_gradient": 0, "weight_gradient": 0}
    for graph in graphs:
        compiled_graphs.tally(graph, found)
    assert found == {"forward": 2, "input_gradient": 1, "weight_gradient": 2}


@pytest.mark.slow
def test_the_example_of_the_documentation() -> None:
    """A network of 20 convolutions, TRADES with 10 steps: numbers worked out by hand."""
    record = counters.measure("preact_resnet18", steps=10, images=1, losses=("trades",))
    assert broken(record) == []
    keys = ("forward", "input_gradient", "weight_gradient", "host_syncs")
    assert [record["trades"]["published"][key] for key in keys] == [440, 238, 40, 2]
    assert [record["trades"]["lean"][key] for key in keys] == [260, 238, 40, 0]


class Wasteful(TRADES):
    """Reads its value, and takes the natural logits again wherever the attack asks."""

    def inner(self, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda images: F.kl_div(model(images).log_softmax(1), model(x).softmax(1), reduction="none").sum(1)

    def outer(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = super().outer(model, x, x_adv, y)
        total.item()
        return total, parts


def test_a_wasteful_step_fails_and_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(counters.LOSSES, "trades", Wasteful)
    record = counters.measure("small_cnn", steps=3, images=2, losses=("trades",))
    kinds = ("forward", "host_syncs", "convolution_flops", "matrix_flops")
    assert broken(record) == [f"trades, lean, {kind}" for kind in kinds]
    (line,) = record["trades"]["lean"]["waits"]
    assert line.startswith("tests/benchmarks/test_counters.py:")
    monkeypatch.setattr(sys, "argv", ["counters", "--networks", "small_cnn", "--steps", "2"])
    with pytest.raises(SystemExit, match="trades, lean, host_syncs"):
        counters.main()


def test_the_formulas_are_those_of_the_field() -> None:
    """(2K + 7) F and so on, for K = 10 of the network whose forward pass costs 1.11 GFLOP, less the first layer's."""
    layers = formulas.layers_of(PreActResNet(), torch.zeros(1, 3, 32, 32))
    forward, first = layers.convolution_flops, layers.first_flops
    assert round((forward + layers.linear_flops) / 1e9, 2) == 1.11
    assert first == 2 * 32 * 32 * 64 * 3 * 9
    passes = {("pgd_at", True): (23, 1), ("trades", True): (27, 2), ("ikl_awp", True): (33, 4), ("ikl", False): (36, 2)}
    for (name, lean), (useful, images) in passes.items():
        found = formulas.counts(layers, Passes(name, lean, 10))["convolution_flops"]
        assert found == useful * forward - images * first


NETS: dict[str, Callable[[], nn.Module]] = {
    "preact": lambda: SmallPreActResNet(width=4),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.Conv2d(4, 2, 3, dilation=2)),
    "matrices": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(1024, 7, bias=False), nn.Linear(7, 3)),
    "batched": lambda: Batched(),
}


class Batched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return torch.baddbmm(torch.zeros(2, 3, 3), flat, flat.mT) @ flat


@pytest.mark.parametrize("name", NETS)
def test_flops_are_those_of_pytorchs_counter(name: str) -> None:
    model, x = NETS[name](), torch.rand(2, 3, 32, 32, requires_grad=True)
    found = []
    for backward in (False, True):
        with Counter() as ours, FlopCounterMode(display=False) as theirs:
            total = model(x * 1).square().sum()
            if backward:
                total.backward()
        assert sum(ours.flops.values()) == theirs.get_total_flops()
        found.append(theirs.get_total_flops())
    assert 0 < found[0] < found[1]


def test_a_grouped_convolution_costs_three_times_its_forward_pass() -> None:
    """By its layer, since PyTorch's counter takes the weight gradient for that of a convolution without groups."""
    model, x = nn.Conv2d(3, 6, 3, groups=3), torch.rand(2, 3, 32, 32, requires_grad=True)
    with Counter() as counter:
        model(x).sum().backward()
    assert counter.flops == {"convolution": 3 * 2 * (2 * 6 * 30 * 30) * 9, "matrix": 0}


X = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
WAITS: dict[str, tuple[int, Callable[[], Any]]] = {
    "item": (1, lambda: X[0, 0].item()),
    "truth": (1, lambda: bool(X[0, 0] > 0)),
    "mask": (1, lambda: X[X > 0]),
    "write by mask": (1, lambda: X.clone().index_put_((X > 0,), torch.tensor(1.0))),
    "nonzero": (1, lambda: X.nonzero()),
    "where": (1, lambda: torch.where(X > 0)),
    "select": (1, lambda: torch.masked_select(X, X > 0)),
    "equal": (1, lambda: torch.equal(X, X + 0)),
    "unique": (1, lambda: X.unique()),
    "choice": (0, lambda: torch.where(X > 0, X, 0)),
    "rows": (0, lambda: X[torch.tensor([0, 0])]),
    "fill by mask": (0, lambda: X.masked_fill(X > 0, 1)),
    "mean": (0, lambda: X.mean()),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_counter_knows_what_waits(name: str) -> None:
    expected, work = WAITS[name]
    with Counter() as counter:
        work()
    assert counter.counts["host_syncs"] == expected
    assert sum(counter.waits.values()) == expected


def test_the_counter_knows_copies_between_devices() -> None:
    """On tensors that have a device but no memory, so that no GPU is needed."""
    with FakeTensorMode(), Counter() as counter:
        there = torch.ones(3, device="cuda")
        there.to(torch.float64)
        there.clone().copy_(there + 1)
        assert counter.counts["host_syncs"] == 0
        there.cpu()
        torch.ones(3).copy_(there)
        torch.ones(3).to("cuda")
        assert counter.counts["host_syncs"] == 3
        torch.ones(3).to("cuda", non_blocking=True)
        there.to("cpu", non_blocking=True)
        assert counter.counts["host_syncs"] == 3


def test_bytes_kept_are_those_of_different_storages_without_parameters() -> None:
    weight, x = nn.Parameter(torch.rand(4, 6)), torch.rand(10, 6, requires_grad=True)
    with SavedForBackward() as saved:
        # Kept: x (10 × 6 × 4 bytes) for the weight, the ReLU's output (10 × 4 × 4) for itself and, again, the square.
        (x @ weight.T).relu().square().sum().backward()
        (x * 2).relu().sum().backward()  # the output (10 × 6 × 4) alone
        with torch.no_grad():
            (x @ weight.T).relu()
    assert saved.passes == [240 + 160, 240]


MEASURES = {
    "pgd_at": PGDAT,
    "trades": TRADES,
    "mart": MART,
    "ikl": lambda inner: IKL(num_classes=10, inner=inner),
    "gkl": lambda inner: GKL(num_classes=10, inner=inner, gamma=0.5),
}


@pytest.mark.parametrize("inner", ("ce", "kl", "margin", "dlr"))
@pytest.mark.parametrize("name", MEASURES)
def test_no_loss_waits(name: str, inner: str) -> None:
    x, y = counters.batch_of("small_cnn", 4)
    model = counters.built("small_cnn")
    step = TrainingStep(
        model,
        MEASURES[name](inner=inner),
        SGD(lr=0.1).build(model),
        numerics=Numerics(torch.device("cpu")),
        batch_size=4,
        accumulation=2,
        attack_batchnorm="train",
        clip_norm=1.0,
        seed=0,
    )
    with Counter() as counter:
        step(Batch(x, y, slice(0, 4)), PGD(eps=0.1, steps=2), NoPerturbation(), 1, 0)
    assert dict(counter.waits) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("name", counters.LOSSES)
def test_a_step_on_a_gpu_never_waits(name: str) -> None:
    """PyTorch's own check, which sees what a counter of operations cannot."""
    model = counters.built("preact_resnet_small").cuda()
    step = counters.lean_step(name, model, images=4)
    x, y = (tensor.cuda() for tensor in counters.batch_of("preact_resnet_small", 4))
    step(x, y, 2)
    with nothing_waits():
        step(x, y, 2)


def test_the_record_is_what_the_formulas_derive() -> None:
    record = json.loads((CHECKOUT / "results" / "benchmarks" / "counters.json").read_text())
    for network in counters.NETWORKS:
        found = record[network]
        layers = formulas.Layers(**found["layers"])
        for name in counters.LOSSES:
            for way in ("lean", "published"):
                passes = Passes(name, way == "lean", found["steps"])
                derived = formulas.counts(layers, passes)
                assert {key: found[name][way][key] for key in derived} == derived
