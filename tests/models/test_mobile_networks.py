"""MobileNets and ShuffleNets of the distillation tables, against torchvision's, timm's and a reference in loops."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import shufflenet_v2_x1_0
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2

from advtrain.models import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm away from its neutral values, and weights that keep the activations' scale; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * math.sqrt(2 / value[0].numel()))
            elif value.is_floating_point():
                low, high = (-0.5, 0.5) if name.endswith(("bias", "mean")) else (0.5, 1.5)
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return model.eval()


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(5))


def assert_same_function(ours: nn.Module, theirs: nn.Module, side: int = 32) -> None:
    """Both have the same layers in the same order, whatever their names, and compute the same logits."""
    randomised(ours)
    mine, others = ours.state_dict(), theirs.state_dict()
    assert [value.shape for value in mine.values()] == [value.shape for value in others.values()]
    theirs.load_state_dict(dict(zip(others, mine.values(), strict=True)), strict=True)
    with torch.no_grad():
        got, expected = ours(images(side)), theirs.eval()(images(side))
    assert (expected[0] - expected[1]).abs().max() > 1e-2, "the logits do not depend on the image"
    assert_close(got, expected, atol=1e-4, rtol=1e-4)


def with_relu(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())
    return model


def test_mobilenet_v2_is_torchvisions_up_to_what_its_docstring_says() -> None:
    setting: list[list[Any]] = [  # the factor that is nearly 1 makes torchvision expand in the first stage, too
        [1.0001, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    theirs = TorchvisionMobileNetV2(7, width_mult=0.5, inverted_residual_setting=setting, round_nearest=1)
    assert_same_function(MobileNetV2(num_classes=7), with_relu(theirs))


def test_shufflenet_v2_is_torchvisions_behind_another_stem() -> None:
    theirs = shufflenet_v2_x1_0(num_classes=7)
    theirs.conv1[0] = nn.Conv2d(3, 24, 1, bias=False)
    theirs.maxpool = nn.Identity()
    assert_same_function(ShuffleNetV2(num_classes=7), theirs)


def test_mobilenet_v1_is_timms_with_relu() -> None:
    timm = pytest.importorskip("timm")
    theirs = with_relu(timm.create_model("mobilenetv1_100", num_classes=7))
    assert_same_function(MobileNetV1(num_classes=7, mean=(0, 0, 0), std=(1, 1, 1)), theirs, side=64)


def test_mobilenet_v1_standardises_its_images() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    bare = randomised(MobileNetV1(num_classes=7, mean=(0, 0, 0), std=(1, 1, 1)))
    model = randomised(MobileNetV1(num_classes=7, mean=mean, std=std))
    standardised = torch.stack([(images(32)[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    assert_close(model(images(32)), bare(standardised))
    assert not {"mean", "std"} & set(model.state_dict())


def reference_shufflenet_v1(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """ShuffleNet of three groups, a group at a time and the shuffle a channel at a time."""

    def norm(name: str, x: Tensor) -> Tensor:
        part = [weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *part)

    def grouped(name: str, x: Tensor, groups: int) -> Tensor:
        pairs = zip(x.chunk(groups, 1), weights[f"{name}.weight"].chunk(groups), strict=True)
        return torch.cat([F.conv2d(part, weight) for part, weight in pairs], 1)

    def unit(name: str, x: Tensor, stride: int, groups: int) -> Tensor:
        out = F.relu(norm(f"{name}.bn1", grouped(f"{name}.conv1", x, groups)))
        size = out.shape[1] // groups
        out = torch.stack([out[:, group * size + i] for i in range(size) for group in range(groups)], 1)
        depthwise = weights[f"{name}.conv2.weight"]
        channels = [F.conv2d(out[:, i : i + 1], depthwise[i : i + 1], None, stride, 1) for i in range(len(depthwise))]
        out = F.relu(norm(f"{name}.bn2", torch.cat(channels, 1)))
        out = norm(f"{name}.bn3", grouped(f"{name}.conv3", out, 3))
        return F.relu(out + x if stride == 1 else torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1))

    x = F.relu(norm("bn1", F.conv2d(x, weights["conv1.weight"])))
    for stage, units in ((1, 4), (2, 8), (3, 4)):
        for i in range(units):
            x = unit(f"layer{stage}.{i}", x, 1 if i else 2, 1 if (stage, i) == (1, 0) else 3)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def test_shufflenet_v1_is_the_reference_in_loops() -> None:
    model = randomised(ShuffleNetV1(num_classes=7))
    with torch.no_grad():
        expected = reference_shufflenet_v1(model.state_dict(), images(32))
        assert (expected[0] - expected[1]).abs().max() > 1e-2, "the logits do not depend on the image"
        assert_close(model(images(32)), expected, atol=1e-4, rtol=1e-4)


def multiply_adds(model: nn.Module, side: int) -> int:
    """Of convolutions and linear layers, for one image."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return total


def test_mobilenet_v1_has_the_papers_multiply_adds() -> None:
    with torch.device("meta"):
        assert round(multiply_adds(MobileNetV1(), 224) / 1e6) == 569  # arXiv:1704.04861, table 4


STEMS = 24 * 3 * (9 * 112**2 - 56**2)  # the papers' reduce 224 × 224 images to the 56 × 56 that ours are given here


def test_shufflenet_v1_has_the_papers_multiply_adds_but_for_its_narrower_units() -> None:
    with torch.device("meta"):
        total = multiply_adds(ShuffleNetV1(num_classes=1000), 56) + STEMS
    narrower = 0
    for channels_in, channels_out, groups, side in ((24, 240, 1, 56), (240, 480, 3, 28), (480, 960, 3, 14)):
        added = channels_out - channels_in
        for_each = channels_in // groups * side**2 + (9 + added // 3) * (side // 2) ** 2
        narrower += for_each * (channels_out - added) // 4
    assert round((total + narrower) / 1e6) == 137  # arXiv:1707.01083, table 1


def test_shufflenet_v2_has_the_papers_multiply_adds() -> None:
    with torch.device("meta"):
        total = multiply_adds(ShuffleNetV2(num_classes=1000), 56) + STEMS
    assert total == pytest.approx(146e6, rel=0.01)  # arXiv:1807.11164, table 5
    assert round(total / 1e9, 3) == 0.145  # torchvision's documentation


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(
    ("model", "last", "reduction"),
    [(MobileNetV1, "features", 32), (MobileNetV2, "blocks", 16), (ShuffleNetV1, "layer3", 8), (ShuffleNetV2, "bn2", 8)],
)
def test_what_is_averaged(model: Any, last: str, reduction: int, side: int) -> None:
    sides = []
    with torch.device("meta"):
        network = model()
        network.get_submodule(last).register_forward_hook(lambda m, i, output: sides.append(output.shape[-1]))
        assert network.eval()(torch.empty(2, 3, side, side)).shape == (2, 1000 if model is MobileNetV1 else 100)
    assert sides == [side // reduction]


def test_mobilenet_v2_of_another_width_and_expansion() -> None:
    with torch.device("meta"):
        narrow, wide = MobileNetV2(width=0.1, expansion=1), MobileNetV2(width=2)
    assert narrow.get_parameter("classifier.0.weight").shape == (100, 1280)
    assert wide.get_parameter("classifier.0.weight").shape == (100, 2560)
    assert wide.get_parameter("blocks.1.0.conv.0.weight").shape == (6 * 32, 32, 1, 1)
    assert narrow.get_parameter("blocks.1.0.conv.0.weight").shape == (1, 1, 1, 1)


def test_mobilenet_v2s_last_layer_starts_small() -> None:
    weight, bias = MobileNetV2().get_parameter("classifier.0.weight"), MobileNetV2().get_parameter("classifier.0.bias")
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not bias.any()
