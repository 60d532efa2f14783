"""The engines on a GPU: upstream's verdicts by engine=exact, sound ones by engine=fast, no waiting inside a block."""

import functools

import pytest
import torch

from advtrain.evaluation.autoattack import run
from advtrain.evaluation.autoattack.engines import batch_attack
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.evaluation.modes import exact_float32
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.models import SmallCNN
from tests.evaluation.shortened import shortened

pytestmark = pytest.mark.gpu
EPS = 8 / 255


@pytest.fixture
def subject():
    """A small network and images that it classifies as labelled."""
    torch.manual_seed(0)
    model = SmallCNN(num_classes=10, in_channels=3, image_size=32).eval().requires_grad_(False).cuda()
    x = torch.rand(96, 3, 32, 32)
    with torch.no_grad():
        return model, x, model(x.cuda()).argmax(1).cpu()


def outcome(subject, **settings):
    model, x, y = subject
    with exact_float32():
        return run.run_autoattack(
            model,
            x,
            y,
            norm="linf",
            eps=EPS,
            settings=AutoAttackSettings(**settings),
            device="cuda",
            report=lambda line: None,
        )


@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_verdicts(subject, monkeypatch, engine):
    monkeypatch.setattr(run, "plans", functools.partial(shortened, iterations=20, queries=100))
    theirs, ours = outcome(subject, engine="upstream"), outcome(subject, engine=engine)
    assert int((theirs.robust != ours.robust).sum()) <= 1  # another order of sums may turn an image at the boundary
    model, x, y = subject
    with torch.no_grad(), exact_float32():
        broken = model(ours.x_adv.cuda()).argmax(1).cpu() != y
    assert torch.equal(broken, ~ours.robust)
    assert float((ours.x_adv - x).abs().max()) <= EPS + 1e-6


def test_fast_gives_the_same_images_twice(subject, monkeypatch):
    """In all of its arithmetics, and without leaving one of them allowed."""
    monkeypatch.setattr(run, "plans", functools.partial(shortened, iterations=30, queries=60))
    first, second = outcome(subject, engine="fast"), outcome(subject, engine="fast")
    assert first.settings["search"]["dtype"].endswith(("tf32 elsewhere", "float32"))
    assert torch.equal(first.x_adv, second.x_adv) and torch.equal(first.broken_by, second.broken_by)
    with exact_float32():
        attack = batch_attack("fast", subject[0], "cuda")
        for name in ("apgd-ce", "fab-t", "square"):
            plan = AttackPlan(name, "linf", EPS, iterations=2, target_classes=int(name.endswith("-t")))
            attack(subject[1][:5].cuda(), subject[2][:5].cuda(), plan, 0)
            assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_the_host_does_not_wait_inside_of_a_block(subject, name):
    """Twice the iterations of less than a block, and no further wait."""
    model, x, y = subject
    x, y = x[:32].cuda(), y[:32].cuda()
    waits = []
    for iterations in (10, 20):
        plan = AttackPlan(name, "linf", EPS, iterations=iterations, target_classes=1 if name.endswith("-t") else 0)
        attack = batch_attack("exact", model, "cuda")
        attack(x, y, plan, 0)  # warms up
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            attack(x, y, plan, 0)
        waits.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense"))
    assert waits[1] <= waits[0] + 1
