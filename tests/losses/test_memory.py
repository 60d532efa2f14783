"""What the class prior of IKL and GKL costs with 1000 classes: less than 2 % of a training step's memory.

Both sides are counted, not measured. The step: what ResNet-50 keeps for its backward pass at 224 × 224, twice, since
natural and adversarial images go through it; parameters, their gradients and the optimiser's state would only make it
larger. The loss: the peak of what its forward and backward pass allocate from the logits on, and the prior's buffers.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from advtrain.engine.memory import LiveBytes
from advtrain.losses import GKL, IKL, KL, TRADES, Loss
from advtrain.models import resnet_50

IMAGES, CLASSES = 256, 1000


def loss_bytes(loss: Loss) -> int:
    """The most that is alive at a time while the loss is computed and differentiated, its own state included."""
    y = torch.arange(IMAGES) % CLASSES
    x = torch.randn(IMAGES, CLASSES, 1, 1, requires_grad=True)
    x_adv = torch.randn(IMAGES, CLASSES, 1, 1, requires_grad=True)
    loss.train()
    with LiveBytes() as counter:
        loss.outer(nn.Flatten(), x, x_adv, y)[0].backward()
    return counter.peak + sum(buffer.nbytes for buffer in loss.buffers())


def bytes_for_backward(model: nn.Module, x: Tensor) -> int:
    """Of the storages that a forward pass keeps, without the model's own."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x)  # held until the hooks have counted: a freed storage's address may come again
    del output
    return sum(kept.values())


def bytes_per_image(model: nn.Module, side: int) -> int:
    """What a forward pass in float32 keeps for each image, exactly: what a second image adds."""
    return bytes_for_backward(model, torch.rand(2, 3, side, side)) - bytes_for_backward(
        model, torch.rand(1, 3, side, side)
    )


@pytest.fixture(scope="module")
def step_bytes() -> int:
    """Kept by both forward passes of a step in bfloat16, half of what float32 takes."""
    return 2 * IMAGES * bytes_per_image(resnet_50(num_classes=CLASSES).train(), 224) // 2


@pytest.mark.parametrize("loss", (IKL, GKL))
@pytest.mark.parametrize("plain", (KL, TRADES))
def test_a_prior_over_1000_classes_adds_less_than_two_per_cent(
    loss: type[Loss], plain: type[Loss], step_bytes: int
) -> None:
    extra = loss_bytes(loss(num_classes=CLASSES)) - loss_bytes(plain())
    assert 0 < extra < 0.02 * step_bytes
    # Formed naively, the pair sum of one batch alone would not pass.
    assert 0.02 * step_bytes < IMAGES * CLASSES * CLASSES * 4


def test_the_step_is_counted_by_its_layers_outputs() -> None:
    """By hand: what a convolution or a BatchNorm puts out is the input of a layer behind it, and kept once."""
    model, outputs = resnet_50(num_classes=10).train(), []
    counted = bytes_per_image(model, 64)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.nbytes))
    model(torch.rand(2, 3, 64, 64))
    assert counted == pytest.approx(sum(outputs) / 2, rel=0.05)
