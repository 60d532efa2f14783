"""FAB of engine=exact against upstream's: the same bits, fewer passes; and what `shrink` may and may not change."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from advtrain.data import CIFAR10
from advtrain.evaluation.autoattack import upstream
from advtrain.evaluation.autoattack.exact import Execution, hyperplanes
from advtrain.evaluation.autoattack.exact.fab import perturb
from advtrain.evaluation.autoattack.exact.fab_steps import LENGTHS
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.models import SmallPreActResNet

WEIGHTS = "checkpoints/cifar10_cpu/models/cifar10/Linf/Advtrain2026_cifar10_cpu.pt"
RADII = {"linf": 0.06, "l2": 0.3, "l1": 2.0}  # of the toy: some images break at once, some later, some never
CIFAR_RADII = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
NAMES = ["fab-t", "fab"]


def planned(name, norm, eps, *, iterations=8, restarts=1, targets=3):
    targets = targets if name == "fab-t" else 0
    return AttackPlan(name, norm, eps, iterations=iterations, restarts=restarts, target_classes=targets)


def changed(images, x):
    return (images != x).flatten(1).any(1)


def assert_same_bits(model, x, y, plan, seed=0):
    expected = upstream.perturb(model, x, y, plan, seed)
    assert torch.equal(perturb(model, x, y, plan, seed).images, expected)
    return changed(expected, x)


@pytest.mark.parametrize("norm", sorted(RADII))
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_upstreams(toy, name, norm):
    model, x, y = toy(4)
    for seed in (0, 1):
        plan = planned(name, norm, RADII[norm], restarts=2)
        broken = assert_same_bits(model, x, y, plan, seed)
        first = assert_same_bits(model, x, y, planned(name, norm, RADII[norm], iterations=2, targets=1), seed)
        assert 0 < int(first.sum()) < int(broken.sum()) < len(x)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_few_classes(toy, problem, name, classes):
    model, x, y = toy(classes)
    assert assert_same_bits(model, x, y, planned(name, "linf", 0.1, restarts=2, targets=classes - 1)).any()
    linear = problem(classes, n=20)
    plan = planned(name, "linf", linear.eps, targets=classes - 1)
    assert assert_same_bits(linear.model.eval(), linear.split.images, linear.split.labels, plan).any()


@pytest.mark.parametrize("norm", sorted(RADII))
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_one(toy, name, norm):
    model, x, y = toy(4)
    broken = [
        bool(assert_same_bits(model, x[i : i + 1], y[i : i + 1], planned(name, norm, RADII[norm], restarts=2)))
        for i in range(6)
    ]
    assert any(broken)


@pytest.mark.parametrize("norm", sorted(RADII))
def test_random_starts_are_upstreams(toy, norm):
    """With one iteration, which images break depends on where it starts."""
    model, x, y = toy(4)
    plan = planned("fab", norm, RADII[norm], iterations=1, restarts=4)
    images = [perturb(model, x, y, plan, seed).images for seed in (0, 1)]
    assert not torch.equal(*images)
    for seed, ours in enumerate(images):
        assert torch.equal(ours, upstream.perturb(model, x, y, plan, seed))


@pytest.mark.slow
@pytest.mark.parametrize("norm", sorted(RADII))
def test_one_large_image_with_two_threads(norm):
    """Two threads share the sum of a single row of so many numbers, but not the sums of two rows."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 9, stride=8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 18**2, 4))
    model.eval().requires_grad_(False)
    x = torch.rand(1, 3, 152, 152)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert assert_same_bits(
            model, x, model(x).argmax(1), planned("fab-t", norm, 1e4, iterations=3, targets=2)
        ).all()
    finally:
        torch.set_num_threads(before)


def test_misclassified_images_and_equal_logits(toy):
    """Some images are wrong from the start; and two classes always have the same logit: one is its own target."""
    model, x, y = toy(4)
    y = y.clone()
    y[:5] = (y[:5] + 1) % 4
    assert_same_bits(model, x, y, planned("fab-t", "linf", 0.06))
    assert_same_bits(model, x[:5], y[:5], planned("fab-t", "linf", 0.06))
    twins = nn.Sequential(model, nn.Linear(4, 5, bias=False)).requires_grad_(False)
    twins[1].weight.copy_(torch.eye(4)[[0, 0, 1, 2, 3]])
    labels = torch.tensor([0, 2, 3, 4])[toy(4).y]
    for name in NAMES:
        assert_same_bits(twins, x, labels, planned(name, "linf", 0.06))


@functools.cache
def published(root):
    """The published CIFAR-10 model and 12 test images it classifies correctly."""
    model = SmallPreActResNet(num_classes=10, width=32, blocks=1)
    path = Path(__file__).resolve().parents[3] / WEIGHTS
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    model.eval().requires_grad_(False)
    split = CIFAR10(root=str(root), download=False).split("test")
    indices = split.subset(30)
    x, y = split.fetch(indices, "cpu"), split.labels[indices]
    right = model(x).argmax(1) == y
    return model, x[right][:12].contiguous(), y[right][:12]


@pytest.mark.parametrize("norm", sorted(CIFAR_RADII))
@pytest.mark.parametrize(
    ("name", "threads"), [("fab-t", 1), pytest.param("fab-t", 2, marks=pytest.mark.slow), ("fab", 1)]
)
def test_bits_on_real_images(real_data, name, threads, norm):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plan = planned(name, norm, CIFAR_RADII[norm], iterations=4, targets=2)
        broken = assert_same_bits(*published(real_data), plan)
    finally:
        torch.set_num_threads(before)
    assert 0 < int(broken.sum()) < len(broken)


@pytest.mark.slow
@pytest.mark.parametrize("norm", sorted(CIFAR_RADII))
def test_bits_of_the_full_attack(real_data, norm):
    broken = assert_same_bits(
        *published(real_data), planned("fab-t", norm, CIFAR_RADII[norm], iterations=100, targets=9)
    )
    assert 0 < int(broken.sum()) < len(broken)


def test_global_generator_and_model_are_left_alone(toy):
    model, x, y = toy(4)
    model.requires_grad_(True)
    before, given = torch.get_rng_state(), x.clone()
    plan = planned("fab", "linf", 0.06, iterations=1, restarts=4)
    first = perturb(model, x, y, plan, 0).images
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, given)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(perturb(model, x, y, plan, 0).images, first)
    assert not torch.equal(perturb(model, x, y, plan, 1).images, first)
    model.requires_grad_(False)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("norm", sorted(RADII))
@pytest.mark.parametrize("name", NAMES)
def test_shrink_is_sound_and_finds_as_much(toy, name, norm, block):
    """On a small network, where the size of a batch changes little, not one verdict differs."""
    model, x, y = toy(4)
    plan = planned(name, norm, RADII[norm], iterations=20, restarts=2)
    exact = changed(perturb(model, x, y, plan, 0).images, x)
    images = perturb(model, x, y, plan, 0, Execution(shrink=True, block=block)).images
    broken = changed(images, x)
    assert torch.equal(broken, exact)
    assert (LENGTHS[norm]((images - x).flatten(1)) <= plan.eps).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(model(images).argmax(1) != y, broken)


def test_shrink_on_real_images(real_data):
    """No more verdicts differ than between two seeds of upstream."""
    model, x, y = published(real_data)
    plan = planned("fab", "linf", 8 / 255, iterations=6, restarts=3)
    one, other = (changed(upstream.perturb(model, x, y, plan, seed), x) for seed in (0, 1))
    ours = changed(perturb(model, x, y, plan, 0, Execution(shrink=True)).images, x)
    assert int((ours != one).sum()) <= int((one != other).sum())


class Counter(TorchDispatchMode):
    """Passes through a model with two convolutions, and what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.convolutions = self.input_gradients = self.weight_gradients = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "convolution":
            self.convolutions += 1
        if name == "convolution_backward":
            self.input_gradients += args[-1][0]
            self.weight_gradients += args[-1][1]
        if name in ("nonzero", "_local_scalar_dense", "is_nonzero", "equal"):
            self.waits += 1
        return func(*args, **(kwargs or {}))

    def passes(self):
        return self.convolutions // 2, self.input_gradients // 2, self.weight_gradients


def counted(*args, **kwargs):
    with Counter() as counter:
        perturb(*args, **kwargs)
    return counter


@pytest.mark.parametrize("frozen", [True, False])
def test_passes(toy, frozen):
    model, x, y = toy(4)
    model.requires_grad_(not frozen)
    never, always = 1e-6, 8.0
    # One pass over the batch; then for 3 targets 5 iterations with a pass for the gradient and one for the label, and
    # one over what was found, which is too far. Upstream: 1 + 3 · (2 + 5 · 2 + 1).
    assert counted(model, x, y, planned("fab-t", "linf", never, iterations=5), 0).passes() == (34, 15, 0)
    # Every class has a gradient of its own in the untargeted attack.
    assert counted(model, x, y, planned("fab", "linf", never, iterations=5), 0).passes() == (12, 20, 0)
    # After a first target that breaks all there is no other one ...
    easy = counted(model, x, y, planned("fab-t", "linf", always, iterations=30), 0).passes()
    assert easy == (62, 30, 0)
    # ... and with shrink each image leaves when it is beyond the boundary.
    assert (
        counted(model, x, y, planned("fab-t", "linf", always, iterations=30), 0, Execution(shrink=True)).passes() < easy
    )
    model.requires_grad_(False)


def test_no_waits_within_a_search(toy, monkeypatch):
    """As on a GPU: the number of waits does not grow with the iterations."""
    monkeypatch.setattr(hyperplanes, "host_looks", lambda values: False)
    model, x, y = toy(4)
    waits = [
        counted(model, x, y, planned("fab-t", norm, 1e-6, iterations=n), 0, Execution(block=10)).waits
        for norm in RADII
        for n in (2, 7)
    ]
    assert len(set(waits)) == 1
    assert waits[0] <= 2 + 3 * 5  # a start asks who is left and correct, whether anything was found, and is within ε


def test_the_masked_way_finds_the_same(toy):
    model, x, y = toy(4)
    for norm, eps in RADII.items():
        plan = planned("fab-t", norm, eps)
        assert torch.equal(
            perturb(model, x, y, plan, 0, Execution(block=4)).images, perturb(model, x, y, plan, 0).images
        )
