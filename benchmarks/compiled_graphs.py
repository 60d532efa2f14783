"""The graphs into which torch.compile turns an attack, looked into before code is generated from them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters as dynamo_counters

from advtrain.attacks import PGD
from advtrain.engine.acceleration import Acceleration, Passes
from advtrain.engine.modes import attack_mode
from advtrain.losses import Loss
from benchmarks.counting import CONV, CONV_BACK


def graphs_of_attack(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, int]:
    """Compiles an attack as trainer.compile=step does and runs it at two radii.

    Returns:
        `graphs` compiled, `graph_breaks`, and in the graphs together `forward`, `input_gradient` and `weight_gradient`
        convolutions.
    """
    found = {"forward": 0, "input_gradient": 0, "weight_gradient": 0}
    with looking(lambda graph: tally(graph, found)):
        passes = Passes(model, Acceleration(compile="step"))
        for eps in (0.01, 0.02):
            attack = PGD(eps=eps, steps=2, init="gaussian").using(passes.ascent)
            with attack_mode(model):
                attack(loss.inner(passes.attacked, x, y), x, generator=torch.Generator().manual_seed(0))
        graphs = dynamo_counters["stats"]["unique_graphs"]
        breaks = sum(dynamo_counters["graph_break"].values())
    return {"graphs": graphs, "graph_breaks": breaks, **found}


def tally(graph: torch.fx.Graph, found: dict[str, int]) -> None:
    """Adds the convolutions of a graph to `found`."""
    for node in graph.nodes:
        if node.target is CONV:
            found["forward"] += 1
        elif node.target is CONV_BACK:
            to_input, to_weight, _ = node.args[-1]
            found["input_gradient"] += to_input
            found["weight_gradient"] += to_weight


@contextmanager
def looking(see: Callable[[torch.fx.Graph], None]) -> Iterator[None]:
    """torch.compile shows its graphs and runs them as they are: generating code from them can take a minute."""

    def shown(module: torch.fx.GraphModule, _: Any) -> Any:
        see(module.graph)
        return make_boxed_func(module.forward)

    original, backend = torch.compile, aot_autograd(fw_compiler=shown)

    def compile_shown(function: Any, *, fullgraph: bool = False, dynamic: bool | None = None, **_: Any) -> Any:
        return original(function, fullgraph=fullgraph, dynamic=dynamic, backend=backend)

    torch._dynamo.reset()
    dynamo_counters.clear()
    try:
        with mock.patch("torch.compile", compile_shown):
            yield
    finally:
        torch._dynamo.reset()
