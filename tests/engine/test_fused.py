"""Updates of many tensors at once: the values of the loop, to the bit, in few operations and without waiting."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.engine import ASAM, AWP, EMA, SAM, SGD, AdamW
from advtrain.engine.foreach import copies, copy_all
from advtrain.engine.memory import LiveBytes
from advtrain.engine.modes import buffers_kept
from advtrain.engine.optimizers import fusible, resumable

SYNCS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)


class Operations(TorchDispatchMode):
    """Counts what is dispatched, without the allocation of memory, and what the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.syncs = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func not in (torch.ops.aten.empty_like.default, torch.ops.aten.detach.default)
        self.syncs += func in SYNCS
        return func(*args, **(kwargs or {}))


def network(depth: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(depth)
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.Linear(4 * 16, 5)).to(dtype)


def gradients(model: nn.Module, seed: int = 0) -> Callable[[], None]:
    """Leaves random gradients in the parameters; a closure for a perturbation."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in model.parameters()]

    def leave() -> None:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.grad = value.clone()

    return leave


# --- optimisers ---


def sgd_loop(
    weights: list[Tensor], steps: list[list[Tensor]], lr: float, momentum: float, nesterov: bool, decay: float
):
    """Equations of torch.optim.SGD's documentation, one tensor at a time."""
    velocity = [torch.zeros_like(w) for w in weights]
    for grads in steps:
        for i, grad in enumerate(grads):
            g = grad + decay * weights[i]
            velocity[i] = momentum * velocity[i] + g
            weights[i] = weights[i] - lr * (g + momentum * velocity[i] if nesterov else velocity[i])
    return weights


def adamw_loop(weights: list[Tensor], steps: list[list[Tensor]], lr: float, betas: tuple, decay: float) -> list[Tensor]:
    """Algorithm 2 of arXiv:1711.05101, with ε = 1e-8 outside of the root."""
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for t, grads in enumerate(steps, 1):
        for i, g in enumerate(grads):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * g
            second[i] = betas[1] * second[i] + (1 - betas[1]) * g**2
            m, v = first[i] / (1 - betas[0] ** t), second[i] / (1 - betas[1] ** t)
            weights[i] = weights[i] - lr * decay * weights[i] - lr * m / (v.sqrt() + 1e-8)
    return weights


def trained(optimizer: torch.optim.Optimizer, model: nn.Module, steps: list[list[Tensor]]) -> list[Tensor]:
    for grads in steps:
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad.to(parameter.device)
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()]


def random_steps(model: nn.Module, count: int = 5) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(p.shape, generator=generator).to(p) for p in model.parameters()] for _ in range(count)]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_fused_sgd_is_the_loop(device: str, momentum: float, nesterov: bool, decay: float) -> None:
    model = network(dtype=torch.float64)
    steps = random_steps(model)
    start = [p.detach().clone() for p in model.parameters()]
    expected = sgd_loop(start, steps, 0.1, momentum, nesterov, decay)
    model.to(device)
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True, **settings)
    for weight, value in zip(trained(optimizer, model, steps), expected, strict=True):
        torch.testing.assert_close(weight, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_fused_adamw_is_the_loop(device: str) -> None:
    model = network(dtype=torch.float64)
    steps = random_steps(model)
    start = [p.detach().clone() for p in model.parameters()]
    expected = adamw_loop(start, steps, 0.01, (0.9, 0.99), 0.05)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
    for weight, value in zip(trained(optimizer, model, steps), expected, strict=True):
        torch.testing.assert_close(weight, value, rtol=1e-10, atol=1e-12)


def test_on_a_cpu_the_update_is_pytorchs_plain_one() -> None:
    """Bit for bit what earlier versions trained with."""
    for settings in (SGD(lr=0.1), AdamW(lr=0.1)):
        group = settings.build(network()).param_groups[0]
        assert not group["fused"] and not group["foreach"]


@pytest.mark.gpu
def test_on_a_gpu_the_update_is_fused() -> None:
    model = network().cuda()
    assert fusible(model) is True
    assert all(s.build(model).param_groups[0]["fused"] for s in (SGD(lr=0.1), AdamW(lr=0.1)))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "after"), [(False, True), (None, True), (True, None), (True, False)])
def test_a_state_of_another_form_goes_on_in_its_own(kind: str, before: bool | None, after: bool | None) -> None:
    """As a checkpoint of an earlier version, or of another machine, does: same weights as without the break."""
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p, fused: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused),
        "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.1, fused=fused),
    }
    model, whole = network(dtype=torch.float64), network(dtype=torch.float64)
    steps = random_steps(model, 6)
    expected = trained(make[kind](whole.parameters(), before), whole, steps)
    first = make[kind](model.parameters(), before)
    trained(first, model, steps[:3])
    saved = copy.deepcopy(first.state_dict())
    second = resumable(make[kind](model.parameters(), after))
    second.load_state_dict(saved)
    assert all(group["fused"] == after and group["lr"] == 0.1 for group in second.param_groups)
    assert saved["param_groups"][0]["fused"] == before  # what was given stays as it is
    for weight, value in zip(trained(second, model, steps[3:]), expected, strict=True):
        torch.testing.assert_close(weight, value, rtol=1e-12, atol=1e-12)


# --- perturbations ---


def awp(weights: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: grads[n] * (0.005 * w.norm() / grads[n].norm()) for n, w in weights.items() if w.dim() > 1}


def sam(weights: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    scale = 0.05 / torch.stack([g.norm() for g in grads.values()]).norm()
    return {n: g * scale for n, g in grads.items()}


def asam(weights: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    def scaled(n: str, g: Tensor) -> Tensor:
        return g * (weights[n].abs() + 0.01) if n.endswith("weight") else g

    factor = 0.5 / torch.stack([scaled(n, g).norm() for n, g in grads.items()]).norm()
    return {n: scaled(n, scaled(n, g)) * factor for n, g in grads.items()}


LOOPS = [(AWP(), awp), (SAM(), sam), (ASAM(), asam)]
IDS = ["awp", "sam", "asam"]


@pytest.mark.parametrize(("perturbation", "loop"), LOOPS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perturbation_is_the_loop_to_the_bit(perturbation: Any, loop: Callable, dtype: torch.dtype) -> None:
    model = network(dtype=dtype)
    leave = gradients(model)
    leave()
    with torch.no_grad():
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        moves = loop(weights, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    with perturbation(model, leave):
        for name, p in model.named_parameters():
            assert torch.equal(p, weights[name] + moves[name] if name in moves else weights[name]), name
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(("perturbation", "loop"), LOOPS, ids=IDS)
def test_a_perturbation_takes_one_copy_of_what_moves(perturbation: Any, loop: Callable) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    leave = gradients(model)
    moving = sum(p.nbytes for p in model.parameters() if p.dim() > 1 or not isinstance(perturbation, AWP))
    with LiveBytes() as memory, perturbation(model, leave):
        inside = memory.live
    ascent = sum(p.nbytes for p in model.parameters())
    assert 0 <= memory.peak - ascent - moving < 2000  # and some norms
    assert inside < moving + 500  # the gradients of the ascent, and with them the displacements, are gone


@pytest.mark.parametrize(("perturbation", "loop"), LOOPS, ids=IDS)
def test_a_perturbation_takes_as_many_operations_for_any_depth(perturbation: Any, loop: Callable) -> None:
    """Without the norm of all norms, which PyTorch gathers one by one, and without a wait."""
    counts = []
    for depth in (2, 12):
        model = network(depth)
        leave = gradients(model)
        leave()
        with Operations() as operations, perturbation(model, lambda: None):
            pass
        assert operations.syncs == 0
        counts.append(operations.count)
    assert counts[0] == counts[1] < 20


def test_nothing_moves_where_no_weight_may() -> None:
    """A model without matrices has nothing for AWP, one without names of weights nothing that ASAM scales."""
    model = nn.Module()
    model.shift = nn.Parameter(torch.ones(3))
    with AWP()(model, gradients(model)):
        assert torch.equal(model.shift, torch.ones(3))
    with ASAM(rho=0.5)(model, gradients(model)):
        assert (model.shift - 1).norm().item() == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(model.shift, torch.ones(3))


# --- averages and buffers ---


def test_an_average_moves_in_few_operations_without_a_wait() -> None:
    for batchnorm, expected in (("averaged", 2), ("copied", 3)):
        model = network(12)
        ema = EMA(batchnorm=batchnorm)
        ema.attach(model)
        with Operations() as operations:
            ema.after_step(1)
        assert (operations.count, operations.syncs) == (expected, 0)


def test_an_average_follows_buffers_that_are_replaced_and_moves_shared_weights_once() -> None:
    model = network(1)
    model.append(nn.Linear(5, 5))
    model.append(nn.Linear(5, 5))
    model[-1].weight = model[-2].weight
    ema = EMA(decay=0.5, warmup=False)
    average = ema.attach(model)
    before = copy.deepcopy(average.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    model[1][1].running_mean = torch.full((4,), 8.0)
    model[1][1].num_batches_tracked = torch.tensor(7)
    ema.after_step(1)
    after = average.state_dict()
    for name in ("0.weight", f"{len(model) - 1}.weight", f"{len(model) - 2}.weight"):
        torch.testing.assert_close(after[name], before[name] + 0.5)
    assert torch.equal(after["1.1.running_mean"], (before["1.1.running_mean"] + 8) / 2)
    assert after["1.1.num_batches_tracked"] == 7


def test_buffers_come_back_whatever_their_type() -> None:
    model = network(2)
    model.register_buffer("mask", torch.ones(3, dtype=torch.float16))
    before = copy.deepcopy(model.state_dict())
    with buffers_kept(model):
        model.train()(torch.rand(4, 3, 6, 6))
        model.mask.zero_()
        changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
        assert len(changed) == 2 * 3 + 1
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_copies_keep_values_layouts_and_no_graph() -> None:
    tensors = [
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(3),
        torch.rand(2, requires_grad=True),
    ]
    fresh = copies(tensors)
    for (ours, theirs), other in itertools.product(zip(fresh, tensors, strict=True), tensors):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride() and not ours.requires_grad
        assert ours.data_ptr() != other.data_ptr()
    copy_all([], [])
