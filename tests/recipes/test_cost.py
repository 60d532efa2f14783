"""The predicted cost against counts made by hand."""

import pytest
import torch
from torch import nn

from advtrain.composition import compose
from advtrain.config import build
from advtrain.recipes import passes_per_image, training_flop
from advtrain.recipes.cost import forward_flop


@pytest.mark.parametrize(
    ("words", "passes"),
    [  # K attack steps: K forward, K input gradients; an outer pass is forward and two gradients
        (["loss=standard"], 3),
        (["loss=pgd_at", "attack.steps=10"], 2 * 10 + 3),
        (["loss=pgd_at", "attack.steps=10", "attack.restarts=2"], 2 * (2 * 10 + 1) + 3),
        (["loss=pgd_at", "loss.inner=margin", "attack.steps=7"], 2 * 7 + 3),
        (["loss=trades", "attack.steps=10"], 1 + 2 * 10 + 2 * 3),
        (["loss=ikl", "attack.steps=5", "loss.inner=ce"], 2 * 5 + 2 * 3),
        (["loss=gkl", "attack.steps=3", "weight_perturbation=awp"], 1 + 2 * 3 + 4 * 3),
        (["loss=pgd_at", "attack.steps=10", "weight_perturbation=awp"], 2 * 10 + 2 * 3),
        (["loss=ikl", "attack.steps=5", "loss.second_view_weight=0.5", "data.second_view=cutout"], 2 * (2 * 5 + 7)),
    ],
)
def test_passes_of_a_step(words: list[str], passes: int) -> None:
    assert passes_per_image(compose("train", words))(20) == (passes, 0)


@pytest.mark.parametrize(
    ("words", "student", "teacher"),
    [  # a student without an attack is trained as any network; the teacher looks once, without a gradient
        (["loss=kd"], 3, 1),
        (["loss=ikl_kd_code"], 3, 1),
        (["loss=ikl_kd", "weight_perturbation=awp"], 2 * 3, 1),
        (["loss=kd", "teacher.logits=here.bin"], 3, 0),
        (["loss=rslad", "attack.steps=10"], 2 * 10 + 2 * 3, 1),
        (["loss=rslad", "loss.divergence=ikl", "attack.steps=10", "weight_perturbation=awp"], 2 * 10 + 4 * 3, 1),
        (["loss=ard", "loss.alpha=0.5", "attack.steps=7"], 2 * 7 + 2 * 3, 1),
        (["loss=ard", "attack.steps=7"], 2 * 7 + 1 + 3, 1),  # alpha = 1: f(x) drives nothing
        # AdaAD's attack goes through both networks, and the teacher is asked about x' once more
        (["loss=adaad", "loss.alpha=0.5", "attack.steps=10"], 2 * 10 + 2 * 3, 1 + 2 * 10 + 1),
    ],
)
def test_passes_of_student_and_teacher(words: list[str], student: int, teacher: int) -> None:
    assert passes_per_image(compose("train", words))(20) == (student, teacher)


def test_the_teachers_passes_cost_what_the_teacher_is() -> None:
    config = compose("train", ["loss=kd", "model=resnet8", "data=cifar100", "trainer.batch_size=50"])
    teacher = compose("train", ["model=vgg8", "data=cifar100"])["model"]
    student, asked = forward_flop(config["model"], (3, 32, 32)), forward_flop(teacher, (3, 32, 32))
    images = config["trainer"]["epochs"] * 2 * 50  # ⌊120 / 50⌋ batches
    assert training_flop(config, (3, 32, 32), 120, teacher) == images * (3 * student + asked)
    config["teacher"]["logits"], config["trainer"]["replay_epochs"] = "here.bin", 4  # asked once about four epochs
    assert training_flop(config, (3, 32, 32), 120, teacher) == images * 3 * student + 4 * 100 * asked


def test_schedules_are_followed_epoch_by_epoch() -> None:
    words = ["loss=ikl", "attack=ikl_2345", "weight_perturbation=awp", "trainer.epochs=40", "trainer.batch_size=30"]
    config = compose("train", [*words, "model=preact_resnet_small"])
    passes = sum(1 + 2 * (2 + (epoch - 1) // 10) + (12 if epoch >= 10 else 6) for epoch in range(1, 41))
    expected = forward_flop(config["model"], (3, 32, 32)) * 3 * 30 * passes  # ⌊100 / 30⌋ batches
    assert training_flop(config, (3, 32, 32), 100) == expected


def test_forward_cost_is_two_flop_per_multiply_add() -> None:
    """Against the loop over layers that textbooks give: output positions × fan-in × 2."""
    config = compose("train", ["data=cifar10", "model=preact_resnet_small"])["model"]
    network, counted = build(config), []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        positions = output.numel() // len(weight)  # of one output channel
        counted.append(2 * positions * weight.numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 32, 32))
    assert forward_flop(config, (3, 32, 32)) == sum(counted)
