"""What the docstrings promise of sizes, resolutions and initial weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from advtrain.models import (
    VGG,
    DMWideResNet,
    MobileNetV2,
    PreActResNet,
    SmallCNN,
    SmallPreActResNet,
    ThinResNet,
    WideResNet,
)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_cpu_network_has_1_2_million_parameters() -> None:
    assert round(count(SmallPreActResNet()) / 1e6, 1) == 1.2


def test_the_quickstarts_network_is_thrifty() -> None:
    assert 50_000 < count(SmallCNN()) < 200_000


def test_the_cpu_network_halves_the_image_first_and_doubles_the_channels() -> None:
    model, shapes = SmallPreActResNet(blocks=2), []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append(tuple(output.shape[1:]))

    for module in convolutions:
        module.register_forward_hook(note)
    model.eval()(torch.rand(1, 3, 32, 32))
    assert shapes[0] == (32, 16, 16)
    assert sorted(set(shapes)) == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]


def test_silu_has_no_flat_side() -> None:
    torch.manual_seed(0)
    relu = SmallPreActResNet(width=4).eval()
    silu = SmallPreActResNet(width=4, activation="silu").eval()
    silu.load_state_dict(relu.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(relu(x), silu(x))
    assert [type(module) for module in silu.modules() if isinstance(module, nn.ReLU | nn.SiLU)] == [nn.SiLU] * 5


@pytest.mark.parametrize(
    "model",
    [
        WideResNet(depth=10, widen_factor=4),
        DMWideResNet(depth=10, width=4),
        SmallPreActResNet(),
        ThinResNet(depth=8, width=4),
        VGG(depth=8),
        MobileNetV2(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_convolutions_start_as_he_et_al_with_fan_out(model: nn.Module) -> None:
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            assert abs(module.weight.mean().item()) < 0.05 * math.sqrt(2 / fan_out)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "model",
    [PreActResNet(num_classes=3), WideResNet(num_classes=3, depth=10, widen_factor=1), DMWideResNet(depth=10, width=1)],
    ids=lambda model: type(model).__name__,
)
def test_larger_images_are_averaged_over(model: nn.Module, size: int) -> None:
    assert model.eval()(torch.rand(1, 3, size, size)).ndim == 2


@pytest.mark.parametrize("size", [32, 64])
def test_the_distillation_networks_reduce_to_what_crd_averages(size: int) -> None:
    """8 × 8 of 32 × 32 for the thin ResNets; for VGG 4 × 4, at either size."""
    thin, vgg = ThinResNet(depth=8).eval(), VGG(depth=8).eval()
    sides = []
    for module in (thin.layer3, vgg.block4):
        module.register_forward_hook(lambda m, i, output: sides.append(output.shape[-1]))
    x = torch.rand(1, 3, size, size)
    thin(x), vgg(x)
    assert sides == [size // 4, 4]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_memory_layout_and_precision_change_nothing_but_rounding(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model, x = DMWideResNet(depth=10, width=2).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        moved = model.to(memory_format=layout).double()(x.double().contiguous(memory_format=layout))
    assert moved.dtype == torch.float64
    torch.testing.assert_close(moved.float(), expected, atol=1e-4, rtol=1e-4)
