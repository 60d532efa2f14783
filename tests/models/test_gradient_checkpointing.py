"""Checkpointed models compute what the others do, gradients and BatchNorm's statistics included, with less memory."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import PGD
from advtrain.engine.modes import attack_mode
from advtrain.models import VGG, SmallCNN, SmallPreActResNet, checkpoint_blocks, resnet_50, timm_model
from advtrain.types import SettingError

FAMILIES = ("resnet10t", "vit_tiny_patch16_224", "convnext_atto", "xcit_nano_12_p16_224")


def shallow(name: str) -> nn.Module:
    pytest.importorskip("timm")
    model = timm_model(name=name, num_classes=5)
    for module in model.modules():
        if isinstance(blocks := getattr(module, "blocks", None), nn.Sequential | nn.ModuleList):
            module.blocks = blocks[:2]
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small": lambda: SmallPreActResNet(num_classes=5, width=4, blocks=2),
    **{name: (lambda name=name: shallow(name)) for name in FAMILIES},
}


TINY: Callable[[], nn.Module] = lambda: SmallPreActResNet(num_classes=5, width=4, blocks=1)  # noqa: E731


def pair(word: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A float64 model, a checkpointed one with the same weights, and images."""
    torch.manual_seed(0)
    plain = {**MODELS, "tiny": TINY}[word]().double()
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed)
    side = 224 if word.startswith("vit") else 32
    return plain, checkpointed, torch.rand(3, 3, side, side, dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Two forward passes and one backward pass, as adversarial training has them; gradients of images and weights."""
    x = x.clone().requires_grad_()
    logits = torch.cat([model(x), model((x * 0.9).clamp(0, 1))])
    logits.logsumexp(1).sum().backward()
    assert x.grad is not None
    return logits.detach(), x.grad, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("word", MODELS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_logits_gradients_and_buffers_to_the_bit(word: str, training: bool) -> None:
    plain, checkpointed, x = pair(word)
    expected, got = step(plain.train(training), x), step(checkpointed.train(training), x)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert len(got[2]) == len(expected[2]) == len(list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got[2], expected[2], strict=True))
    state, other = plain.state_dict(), checkpointed.state_dict()
    assert list(state) == list(other) and all(torch.equal(state[name], other[name]) for name in state)


def test_batchnorm_counts_a_batch_once_and_moves() -> None:
    _, model, x = pair("small")
    before = copy.deepcopy(model.state_dict())
    step(model.train(), x)
    after = model.state_dict()
    counters = [name for name in after if name.endswith("num_batches_tracked")]
    assert counters and all(after[name] == 2 for name in counters)  # two forward passes
    assert all(not torch.equal(after[name], before[name]) for name in after if name.endswith("running_mean"))


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_an_attack_finds_the_same_images(batchnorm: str) -> None:
    plain, checkpointed, x = pair("small")
    y = torch.tensor([0, 1, 2])
    attack = PGD(norm="linf", eps=8 / 255, steps=3, step_size=2 / 255, init="none")
    found = []
    for model in (plain.train(), checkpointed.train()):
        with attack_mode(model, batchnorm):
            found.append(attack(lambda z, m=model: nn.functional.cross_entropy(m(z), y, reduction="none"), x))
    assert torch.equal(*found) and not torch.equal(found[0], x)


def test_dropout_draws_the_same_numbers_again() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6))
    plain = nn.Sequential(block, nn.Sequential(nn.Linear(6, 3)))
    checkpointed = copy.deepcopy(plain)
    checkpoint_blocks(checkpointed)
    gradients = []
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        model(torch.ones(4, 6)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_fewer_activations_are_kept() -> None:
    """What autograd holds between the passes, in numbers."""
    held = []
    for model in pair("small")[:2]:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model.train()(torch.rand(8, 3, 32, 32, dtype=torch.float64))
        held.append(sum(sizes))
    assert held[1] < 0.5 * held[0]


def test_copies_are_independent_and_checkpointed() -> None:
    _, model, x = pair("small")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other(x).abs().sum() > 0 and model(x).abs().sum() == 0
    assert sum("forward" in vars(module) for module in other.modules()) == 8


def test_without_gradients_nothing_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model, x = pair("small")
    monkeypatch.setattr("advtrain.models.gradient_checkpointing.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))


def test_a_model_without_blocks_is_refused() -> None:
    message = r"model\.gradient_checkpointing: expected a model with .* blocks, got SmallCNN without; set it to false"
    with pytest.raises(SettingError, match=message):
        checkpoint_blocks(SmallCNN())


def test_the_stages_of_a_model_without_blocks() -> None:
    plain = VGG(num_classes=5, depth=8).double()
    staged = copy.deepcopy(plain)
    assert checkpoint_blocks(staged) == [staged.block0, staged.block1, staged.block2, staged.block3, staged.block4]
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    expected, got = step(plain.train(), x), step(staged.train(), x)
    assert torch.equal(got[0], expected[0]) and all(torch.equal(a, b) for a, b in zip(got[2], expected[2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), staged.buffers(), strict=True))


def test_twice_is_once() -> None:
    plain, model, x = pair("small")
    calls: list[int] = []
    checkpoint_blocks(model)
    model.stages[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    expected, got = step(plain.train(), x), step(model.train(), x)
    assert all(torch.equal(a, b) for a, b in zip(got[2], expected[2], strict=True))
    assert len(calls) == 4  # of two forward passes, and once again each


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_models_are_checkpointed_too(training: bool) -> None:
    """As the compiled model without: values, gradients and statistics; and it keeps less."""
    plain, model, x = pair("tiny")
    found, held = [], []
    for network in (plain.train(training), model.train(training)):
        sizes: list[int] = []
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)  # what is kept is decided there
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            logits = compiled(x)
        logits.logsumexp(1).sum().backward()
        held.append(sum(sizes))
        found.append([logits.detach(), *(p.grad for p in network.parameters()), *network.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert held[1] < 0.8 * held[0]


@pytest.mark.parametrize("flag", [True, False])
def test_the_setting(flag: bool) -> None:
    with torch.device("meta"):
        model = resnet_50(num_classes=2, gradient_checkpointing=flag)
    assert sum("forward" in vars(module) for module in model.modules()) == 16 * flag
