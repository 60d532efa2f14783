"""engine=fast: sound verdicts, as close to AutoAttack's as another seed, whatever its cheap passes get wrong."""

import copy
import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from advtrain.config import build
from advtrain.data import CIFAR10
from advtrain.evaluation.autoattack import fast, run
from advtrain.evaluation.autoattack.exact import Found
from advtrain.evaluation.autoattack.fast import FastAttack
from advtrain.evaluation.autoattack.outcome import ROBUST
from advtrain.evaluation.autoattack.passes import BUCKET, Compiled, folded, in_buckets, multiple, passes, sixteenth
from advtrain.evaluation.autoattack.plan import AttackPlan
from advtrain.evaluation.modes import exact_float32
from advtrain.evaluation.settings import AutoAttackSettings
from advtrain.models import SmallPreActResNet
from advtrain.types import SettingError
from tests.evaluation.conftest import Linear
from tests.evaluation.shortened import shortened

CPU = torch.device("cpu")
BUNDLE = Path(__file__).resolve().parents[2] / "checkpoints" / "cifar10_cpu"


def attacked(model, x, y, *, norm="linf", eps=8 / 255, **settings):
    return run.run_autoattack(
        model.eval().requires_grad_(False),
        x,
        y,
        norm=norm,
        eps=eps,
        settings=AutoAttackSettings(**settings),
        device="cpu",
        report=lambda line: None,
    )


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def searches_in_bfloat16(request, monkeypatch):
    """Whatever this machine multiplies in."""
    monkeypatch.setattr(fast, "multiplies_in_bfloat16", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_truth_of_linear_models(problem, searches_in_bfloat16, norm):
    four = problem(4, norm, n=30)
    outcome = attacked(four.model, four.split.images, four.split.labels, norm=norm, eps=four.eps, engine="fast")
    assert torch.equal(outcome.robust, four.robust)
    again = tuple(f"{name} again in float32" for name in ("apgd-ce", "apgd-t"))
    assert outcome.attack_names == ("apgd-ce", "apgd-t", "fab-t", "square", *again)
    assert outcome.settings["search"]["dtype"].startswith("bfloat16 in apgd" if searches_in_bfloat16 else "float32")


@functools.cache
def robust_model():
    stored = json.loads((BUNDLE / "verification.json").read_text())
    model = build(stored["trained_as"])
    model.load_state_dict(torch.load(BUNDLE / stored["weights"], weights_only=True)["state_dict"])
    return model.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_verdicts_are_as_close_as_those_of_another_seed(real_data, monkeypatch, searches_in_bfloat16, norm):
    """On 256 images with short attacks, whose verdicts depend on the seed more than long ones' do."""
    split = CIFAR10(root=str(real_data)).split("test")
    x, y = split.fetch(torch.arange(256), "cpu"), split.labels[:256]
    monkeypatch.setattr(run, "plans", functools.partial(shortened, iterations=6, queries=40))
    how = {"norm": norm, "eps": {"linf": 8 / 255, "l2": 0.5}[norm], "batch_size": 128}
    exact = [attacked(robust_model(), x, y, **how, seed=seed) for seed in range(3)]
    ours = attacked(robust_model(), x, y, **how, engine="fast")
    with torch.no_grad():
        broken = robust_model()(ours.x_adv).argmax(1) != y
    assert torch.equal(broken, ~ours.robust)  # each in float32, by its own image
    seeds = max(int((a.robust != b.robust).sum()) for a in exact for b in exact)
    assert min(int((ours.robust != one.robust).sum()) for one in exact) <= max(seeds, 1)


class Watched(Linear):
    """Keeps how it was asked to compute, and how many images; in TF32 wrong by as much as `wrong` says."""

    def __init__(self, weight, bias, wrong=0.0):
        super().__init__(weight, bias)
        self.wrong, self.calls = wrong, []

    def forward(self, x):
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        self.calls.append((*allowed, torch.is_grad_enabled(), len(x)))
        logits = super().forward(x)
        return logits + torch.tensor([self.wrong, 0.0]) if all(allowed) else logits

    def __deepcopy__(self, memo):  # copies keep the same account
        copied = Watched(self.weight.data, self.bias.data, self.wrong).requires_grad_(False)
        copied.calls = self.calls
        return copied


def tf32_everywhere(monkeypatch):
    monkeypatch.setattr(fast, "arithmetic", lambda attack, device: "tf32")
    monkeypatch.setattr("advtrain.evaluation.autoattack.passes.fuse", copy.deepcopy)  # tracing would hide `calls`


def two_classes(wrong=0.0):
    """Three images with a margin of 0.6, at most 0.12 less in a ball of ε = 0.01."""
    model = Watched(torch.tensor([[0.0], [0.25]]) * torch.ones(2, 48), torch.zeros(2), wrong)
    return model.eval().requires_grad_(False), torch.full((3, 3, 4, 4), 0.05), torch.ones(3, dtype=torch.int64)


PLANS = [
    AttackPlan("apgd-ce", "linf", 0.01, iterations=3),
    AttackPlan("fab-t", "linf", 0.01, iterations=3, target_classes=1),
    AttackPlan("square", "linf", 0.01, iterations=200),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_tf32_holds_in_a_search_alone(monkeypatch, plan):
    """What only TF32 takes for broken is verified, and attacked again, without it."""
    tf32_everywhere(monkeypatch)
    model, x, y = two_classes(wrong=0.55)  # the margin is 0.05 there: within reach
    with exact_float32():
        found = FastAttack(model, CPU)(x, y, plan, 0)
    assert torch.equal(found.images, x)
    kinds = [all(call[:2]) for call in model.calls]
    assert all(len(set(call[:2])) == 1 for call in model.calls)
    turn = kinds.index(False)
    assert turn > 2 and all(kinds[:turn]) and not any(kinds[turn:])  # the search, then verdict and second search
    assert model.calls[turn][2:] == (False, 3)
    assert max(call[3] for call in model.calls[turn + 1 :]) == 3


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_images_that_a_search_takes_for_misclassified_before_it_are_attacked_in_float32(monkeypatch, plan):
    """No attack touches such an image: without a second search it would be robust because nobody tried."""
    tf32_everywhere(monkeypatch)
    model, x, y = two_classes(wrong=0.65)
    plan = dataclasses.replace(plan, eps=0.08, iterations=max(20, plan.iterations))
    with exact_float32():
        found = FastAttack(model, CPU)(x, y, plan, 0)
    assert (super(Watched, model).forward(found.images).argmax(1) != y).all()
    model.wrong = float("nan")
    with exact_float32():
        found = FastAttack(model, CPU)(x, y, plan, 0)
    assert (super(Watched, model).forward(found.images).argmax(1) != y).all()


def test_what_gpus_search_in(monkeypatch):
    gpu = torch.device("cuda")
    for capability, words in (
        ((9, 0), "bfloat16 in apgd-ce, apgd-dlr, apgd-t, float16 in square, tf32 elsewhere"),
        ((7, 5), "float32"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fast.describe(gpu, None) == {"dtype": words, "compiled": False, "cuda_graphs": False}
    assert fast.describe(gpu, True)["cuda_graphs"]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert fast.describe(CPU, None)["dtype"] == "bfloat16 in apgd-ce, apgd-dlr, apgd-t, float32 elsewhere"


class Coarse(Linear):
    """Logits around 300, where neighbouring bfloat16 numbers lie 2 apart: there all classes tie and the first wins."""

    def forward(self, x):
        return (x.flatten(1) @ self.weight.T + 300).to(torch.get_autocast_dtype("cpu") if _autocasts() else x.dtype)


def _autocasts():
    return torch.is_autocast_enabled("cpu")


def test_what_only_bfloat16_takes_for_broken_is_searched_again_in_float32(monkeypatch):
    monkeypatch.setattr(fast, "multiplies_in_bfloat16", lambda device: True)
    model = Coarse(torch.tensor([[0.0], [1.0]]) * torch.ones(2, 12), torch.zeros(2)).eval().requires_grad_(False)
    x, y = torch.full((3, 3, 2, 2), 0.05), torch.ones(3, dtype=torch.int64)  # margin 0.6, at most 0.12 less in the ball
    x[0] = 0.95  # margin 11.4, which the coarse logits show
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).argmax(1) != y).tolist() == [False, True, True]
    calls = []
    searched = fast.perturb

    def watched(forward, x, y, plan, seed, execution):
        found = searched(forward, x, y, plan, seed, execution)
        calls.append(len(x))
        # An attack that keeps what bfloat16 says: every image but the first moved and taken for broken.
        return found if len(calls) > 1 else Found((x + 0.001).where(torch.arange(len(x)).view(-1, 1, 1, 1) > 0, x), y)

    monkeypatch.setattr(fast, "perturb", watched)
    found = FastAttack(model, CPU)(x, y, AttackPlan("apgd-ce", "linf", 0.01, iterations=3), 0)
    assert calls == [3, 2]
    assert torch.equal(found.images, x)  # nothing is broken, so nothing is claimed


def test_the_survivors_with_the_lowest_margins_are_attacked_again(problem, monkeypatch):
    four = problem(4, n=60)
    jobs = []
    staged = run._staged

    def watched(job, *arguments):
        jobs.append(job)
        return staged(job, *arguments)

    monkeypatch.setattr(run, "_staged", watched)
    monkeypatch.setattr(run, "AGAIN", 0.05)
    outcome = attacked(four.model, four.split.images, four.split.labels, eps=four.eps, engine="fast")
    first, again = jobs
    assert [plan.name for plan in again.planned] == ["apgd-ce", "apgd-t"] and len(again.x) == 3
    survivors = outcome.closest[outcome.robust]
    rows = [int((first.x == image).flatten(1).all(1).nonzero()) for image in again.x]
    assert set(outcome.closest[rows].tolist()) == set(survivors.sort().values[:3].tolist())


def test_what_the_second_search_finds_counts(problem):
    four = problem(4, n=20)
    x, y = four.split.images, four.split.labels
    one = attacked(four.model, x, y, eps=four.eps, version="custom", attacks=["square"])
    rows = one.robust.nonzero().flatten()
    harder = attacked(four.model, x[rows], y[rows], eps=3 * four.eps, version="custom", attacks=["apgd-ce"])
    both = one.extended(rows, harder, " again")
    assert both.attack_names == ("square", "apgd-ce again")
    assert torch.equal(both.robust[rows], harder.robust) and not both.robust[~one.robust].any()
    assert (both.broken_by[rows[~harder.robust]] == 1).all() and (both.broken_by[rows[harder.robust]] == ROBUST).all()
    assert torch.equal(both.x_adv[rows], harder.x_adv)
    assert both.after[-1]["attack"] == "apgd-ce again" and both.after[-1]["correct"] == int(both.robust.sum())


def test_passes_in_buckets_keep_what_a_replay_overwrites():
    """A graph's replay writes into the same memory; here a forward pass that does so by hand."""
    memory = torch.empty(4 * BUCKET, 2)
    sizes = []

    class Replayed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            sizes.append(len(x))
            memory[: len(x)] = torch.stack((x.flatten(1).sum(1), x.flatten(1).square().sum(1)), 1)
            return memory[: len(x)]

        @staticmethod
        def backward(ctx, gradient):
            return gradient[:, :1].view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    forward = in_buckets(Replayed.apply, multiple)
    x = torch.rand(BUCKET + 5, 3, 2, 2)
    logits = forward(x)
    kept = logits.clone()
    forward(torch.rand(BUCKET, 3, 2, 2))
    assert torch.equal(logits, kept) and torch.allclose(logits[:, 0], x.flatten(1).sum(1))
    assert sizes == [2 * BUCKET, BUCKET]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward(leaf)[:, 0].sum(), leaf)
    assert torch.equal(gradient, torch.ones_like(x)) and gradient.is_contiguous()


def test_folding_computes_the_same_with_fewer_layers(problem):
    torch.manual_seed(0)
    model = SmallPreActResNet(num_classes=10, width=4, blocks=1)
    with torch.no_grad():
        model(torch.rand(64, 3, 32, 32))  # running statistics of its own
        model.eval().requires_grad_(False)
        x = torch.rand(5, 3, 32, 32)
        copied = folded(model)
        assert torch.allclose(copied(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in one.modules()) for one in (copied, model)]
    assert norms[0] < norms[1]


def test_float16_ends_in_float32():
    """Rounding of 11 bits on the way; logits themselves are no float16 numbers."""
    torch.manual_seed(0)
    model = SmallPreActResNet(num_classes=10, width=4, blocks=1).eval().requires_grad_(False)
    x = torch.rand(16, 3, 32, 32)
    exact = model(x)
    found = {
        dtype: passes(model, CPU, dtype, channels_last=True, compiled=False)(x)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    errors = {dtype: float((logits - exact).abs().max() / exact.abs().max()) for dtype, logits in found.items()}
    assert errors[torch.float32] < 1e-5 < errors[torch.float16] < 2e-3 < errors[torch.bfloat16]
    assert (found[torch.float16].half().float() != found[torch.float16]).float().mean() > 0.9
    assert torch.equal(model(x), exact)  # the model itself stays as it was


def test_a_model_that_cannot_be_traced_is_copied(problem):
    class Branching(Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(x + 1)

    four = problem(4, n=20)
    model = Branching(four.model.weight.data, four.model.bias.data).eval().requires_grad_(False)
    copied = folded(model)
    assert type(copied) is Branching and copied is not model
    assert torch.equal(copied(four.split.images), model(four.split.images))


def test_buckets_are_few_and_hardly_larger_than_what_they_hold():
    assert [multiple(n) for n in (1, 64, 65, 1250)] == [64, 64, 128, 1280]
    assert [sixteenth(n) for n in range(1, 33)] == list(range(1, 33))
    assert all(n <= sixteenth(n) <= n * 17 / 16 for n in range(1, 5000))
    assert len({sixteenth(n) for n in range(1024, 2048)}) <= 17


def test_every_shape_is_compiled_from_a_code_object_of_its_own(monkeypatch):
    """torch.compile gives up, without an error, behind 8 graphs of one code object."""
    codes = []

    def compiled(function, **settings):
        codes.append((function.__code__, settings["dynamic"]))
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    call = Compiled(lambda call, x: call(nn.Identity(), x), graphs=False)
    for n in (*range(1, 13), 1, 12):
        assert len(call(torch.rand(n, 1, 1, 1))) == n
    assert len({id(code) for code, _ in codes}) == len(codes) == 12
    assert not any(dynamic for _, dynamic in codes)


@pytest.mark.slow
def test_compiled_passes_say_the_same(problem):
    four = problem(4, n=20)
    model = nn.Sequential(four.model, nn.ReLU(), nn.Linear(4, 4)).eval().requires_grad_(False)
    plain, compiled = (
        passes(model, CPU, torch.float32, channels_last=False, compiled=compiled) for compiled in (False, True)
    )
    for n in (3, 20):
        assert torch.allclose(plain(four.split.images[:n]), compiled(four.split.images[:n]), atol=1e-6)
    gradients = []
    for way in (plain, compiled):  # as untargeted FAB: a pass is differentiated once for every class
        x = four.split.images.clone().requires_grad_()
        logits = way(x)
        gradients.append([torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(4)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_model_is_left_as_it_was(problem):
    four = problem(4, n=20)
    before = {name: value.clone() for name, value in four.model.state_dict().items()}
    attacked(four.model, four.split.images, four.split.labels, eps=four.eps, engine="fast")
    assert all(torch.equal(value, before[name]) for name, value in four.model.state_dict().items())
    assert all(value.is_contiguous() and value.dtype == torch.float32 for value in four.model.state_dict().values())


def test_compile_is_a_choice_of_the_fast_engine():
    with pytest.raises(SettingError, match=r"eval.autoattack.compile: expected null with engine=exact, got True"):
        AutoAttackSettings(compile=True)
    assert AutoAttackSettings(engine="fast", compile=True).compile
