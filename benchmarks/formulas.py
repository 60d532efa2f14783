"""What a training step has to cost, derived from the layers of the network: nothing here runs or counts a step.

One forward pass of a batch has n convolutions, F FLOPs in them and L in its linear layers. A step of K attack steps is

    attack: K forward passes and K gradients of the images, through all n convolutions: the first one, too, whose
            input is the image. No weight gradients: nobody asked for them.
    natural logits of the attack's objective: lean once, published once in each attack step, none for PGD-AT.
    training: T passes, each forward and a full backward pass, in which the first convolution's input, an image, takes
            no gradient. T is 1 for PGD-AT (x' alone), 2 for TRADES and IKL (x' and x), twice that with AWP (the ascent
            step, and the step itself at the perturbed weights).

    forward convolutions       n (K + natural + T)
    input-gradient             n K + (n - 1) T
    weight-gradient            n T
    convolution FLOPs          F (K + natural + T) + F K + 2 F T - f₁ T

since each of a convolution's two gradients costs as many products as its forward pass; f₁ is the first convolution.
With T = 2 that is lean (2K + 7) F - 2 f₁ and published (3K + 6) F - 2 f₁, for PGD-AT (2K + 3) F - f₁, and AWP adds
6 F - 2 f₁: useful work as it is usually counted, (2K + 7) F and so on, and exactly what that leaves out. Linear layers
go by the same formula without the f₁. IKL's class prior adds matrix products of N × C by C × C.

Example, 20 convolutions, TRADES-10: published 20 · (10 + 10 + 2) = 440 forward, lean 20 · (10 + 1 + 2) = 260; input
gradients 20 · 10 + 19 · 2 = 238 and weight gradients 20 · 2 = 40 in both. The host waits twice in the published step,
for the loss and for the accuracy that it logs, and never in ours.

Bytes kept for backward, by the rules of autograd: a convolution keeps its input, BatchNorm its input, ReLU its output,
a linear layer its input if its weights take a gradient. In a pre-activation network each convolution but the first
reads what a ReLU has kept, so that a pass keeps the images, two maps for each BatchNorm (its input and the ReLU behind
it) and, with weight gradients, the pooled features. Without BatchNorm it keeps the images and what each ReLU gives;
linear layers then read the same. BatchNorm also keeps its running mean and variance, the same for all passes, and in
train mode mean and deviation of the batch. What the loss keeps is of the size of the logits and depends on how it is
written: it has bounds.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Layers:
    """What the formulas need to know of a network and a batch, read from its modules.

    Attributes:
        convolutions: n.
        convolution_flops, first_flops, linear_flops: F, f₁ and L, of one forward pass of the batch.
        image_bytes: of the batch.
        map_bytes: of BatchNorm's inputs and the ReLUs behind them; without BatchNorm, of the ReLUs' outputs.
        feature_bytes: of the linear layers' inputs that nothing else keeps.
        norm_channels: over all BatchNorm layers.
        images, classes: N and C.
        relu_bytes: of what the nn.ReLU modules give.
    """

    images: int
    image_bytes: int
    classes: int = 0
    convolutions: int = 0
    convolution_flops: int = 0
    first_flops: int = 0
    linear_flops: int = 0
    map_bytes: int = 0
    feature_bytes: int = 0
    norm_channels: int = 0
    relu_bytes: int = field(default=0, repr=False)

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Takes in one call of a layer."""
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            flops = 2 * output.numel() * height * width * module.in_channels // module.groups
            self.first_flops = self.first_flops or flops
            self.convolutions += 1
            self.convolution_flops += flops
        elif isinstance(module, nn.Linear):
            self.linear_flops += 2 * len(output) * module.in_features * module.out_features
            self.feature_bytes += size(inputs[0])
        elif isinstance(module, nn.BatchNorm2d):
            self.map_bytes += 2 * size(inputs[0])
            self.norm_channels += module.num_features
        elif isinstance(module, nn.ReLU):
            self.relu_bytes += size(output)


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def layers_of(model: nn.Module, x: Tensor) -> Layers:
    """The layers that a pass of the images `x` runs through: convolutions, linear layers, BatchNorm and ReLU."""
    layers = Layers(len(x), size(x))
    hooks = [module.register_forward_hook(layers.see) for module in model.modules() if not list(module.children())]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            layers.classes = model.eval()(x).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not layers.norm_channels:
        layers.map_bytes, layers.feature_bytes = layers.relu_bytes, 0
    return layers


@dataclass(frozen=True)
class Passes:
    """How often a step goes through the network.

    Args:
        name: pgd_at, trades, ikl or ikl_awp.
        lean: our way, or the published one.
        steps: K.
    """

    name: str
    lean: bool
    steps: int

    @property
    def natural(self) -> int:
        if self.name == "pgd_at":
            return 0
        return 1 if self.lean else self.steps

    @property
    def training(self) -> int:
        """T."""
        return self.together * (2 if self.name == "ikl_awp" else 1)

    @property
    def together(self) -> int:
        """Passes of one training loss."""
        return 1 if self.name == "pgd_at" else 2

    @property
    def forward(self) -> int:
        return self.steps + self.natural + self.training


def counts(layers: Layers, passes: Passes) -> dict[str, int]:
    """Convolutions, host synchronisations and FLOPs of a step."""
    n, k, t = layers.convolutions, passes.steps, passes.training
    products = passes.forward + k + 2 * t
    return {
        "forward": n * passes.forward,
        "input_gradient": n * k + (n - 1) * t,
        "weight_gradient": n * t,
        "host_syncs": 0 if passes.lean else 2,
        "convolution_flops": layers.convolution_flops * products - layers.first_flops * t,
        "matrix_flops": layers.linear_flops * products + prior_flops(layers, passes),
    }


def prior_flops(layers: Layers, passes: Passes) -> int:
    """IKL gathers its class prior by a product of (C, N) with (N, C); the published code also reads it by one."""
    products = 1 if passes.lean else 2
    return 2 * products * layers.images * layers.classes**2 if passes.name.startswith("ikl") else 0


def kept_bytes(layers: Layers, passes: Passes) -> dict[str, tuple[int, int]]:
    """Least and most bytes that are kept for backward, during a step of the attack and during the training loss.

    Lean, the attack keeps one frozen pass. Published, it keeps two passes that could give weight gradients, x' and x.
    """
    one = layers.image_bytes + layers.map_bytes
    learning = one + layers.feature_bytes
    statistics = 2 * 4 * layers.norm_channels
    attack = one if passes.lean else (2 if passes.natural else 1) * learning
    training = passes.together * (learning + statistics) + statistics
    low, high = loss_bytes(layers, passes)
    return {
        "attack_pass": (attack + statistics + low, attack + statistics + high),
        "training_pass": (training + low, training + high),
    }


def loss_bytes(layers: Layers, passes: Passes) -> tuple[int, int]:
    """Least and most bytes that a loss keeps.

    At least the log-softmax that it differentiates, at most twelve tensors of the logits' size and as many numbers for
    each image. The published IKL has at least one, at most six tensors of all pairs of classes on top of it.
    """
    logits = 4 * layers.images * layers.classes
    low, high = logits, 12 * (logits + 8 * layers.images)
    if passes.lean or not passes.name.startswith("ikl"):
        return low, high
    return low + logits * layers.classes, high + 6 * logits * layers.classes
