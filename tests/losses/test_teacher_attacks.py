"""Attacks that maximise a divergence from the teacher: value and gradient written out, and where they fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advtrain.composition import compose
from advtrain.config import ThreatSettings, ValidationSettings, build
from advtrain.engine.validation import selection_attack
from advtrain.losses import RSLAD, AdaAD, Teacher, objectives
from advtrain.runs import check_training
from advtrain.types import SettingError
from tests.losses.loops import kl, pairs, soft_ce, softmax
from tests.losses.toy import CLASSES, made


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()


def inside(word: str, loss: Any, teacher: nn.Module, student: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """The objective of each image written out, differentiable by x' along every path that it has."""
    m = teacher(x_adv) if word.startswith("adaptive") else teacher(x).detach()
    rows = []
    for t, n, label in zip(m, student(x_adv), y.tolist(), strict=True):
        if word.endswith("_kl"):
            rows.append(kl(t, n))
            continue
        own = [s.item() for s in softmax(t.detach() / loss.prior_temperature)]
        p = own if loss.prior is None else loss.prior.weights[label].tolist()
        rows.append(pairs(p, t, n) + soft_ce(t, n))
    return torch.stack(rows)


@pytest.mark.parametrize("word", objectives.BY_TEACHER)
@pytest.mark.parametrize("divergence", ("kl", "ikl"))  # weights of the image itself, or of the class prior
def test_what_the_attack_maximises(word: str, divergence: str) -> None:
    teacher, student = network(1), network(2)
    x, y = torch.rand(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 3, 1, 3])
    x_adv = (x + 0.1 * torch.rand_like(x)).requires_grad_()
    loss = made("rslad", inner=word, divergence=divergence, prior_temperature=2.0)
    loss.hold(Teacher(teacher))
    values = loss.inner(student, x, y)(x_adv)
    reference = inside(word, loss, teacher, student, x, x_adv, y)
    torch.testing.assert_close(values, reference, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(of.sum(), x_adv) for of in (values, reference))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)
    told = loss.inner(student, x, y, teacher(x).detach())(x_adv)
    assert torch.equal(told, values)


@pytest.mark.parametrize("word", ("adaptive_kl", "adaptive_ikl"))
def test_the_adaptive_attack_moves_by_both_networks(word: str) -> None:
    teacher, student = network(1), network(2)
    x, y = torch.rand(4, 3, 2, 2, dtype=torch.float64).requires_grad_(), torch.tensor([0, 3, 1, 3])
    loss = AdaAD(inner=word).hold(Teacher(teacher))
    (whole,) = torch.autograd.grad(loss.inner(student, x, y)(x).sum(), x)
    fixed = AdaAD(inner=word.replace("adaptive", "teacher")).hold(Teacher(teacher))
    (part,) = torch.autograd.grad(fixed.inner(student, x, y)(x).sum(), x)
    assert (whole - part).norm() > 0.1 * part.norm()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_objective_of_two_batches_is_of_one_kind() -> None:
    """As recorded attacks need it."""
    teacher, student = network(1), network(2)
    loss = AdaAD().hold(Teacher(teacher))
    x, y = torch.rand(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 3, 1, 3])
    first, second = loss.inner(student, x, y).model, loss.inner(student, x + 1, y).model
    assert first == second and hash(first) == hash(second)
    loss.hold(Teacher(network(3)))
    assert loss.inner(student, x, y).model != first


TOY = ["data=digits", "model=small_cnn"]


@pytest.mark.parametrize("word", objectives.BY_TEACHER)
def test_the_distance_from_the_teacher_has_a_gradient_at_the_image(word: str) -> None:
    """There the student's own divergences have none."""
    teacher, student = network(1), network(2)
    x, y = torch.rand(4, 3, 2, 2, dtype=torch.float64).requires_grad_(), torch.tensor([0, 3, 1, 3])
    loss = RSLAD(inner=word).hold(Teacher(teacher))
    (gradient,) = torch.autograd.grad(loss.inner(student, x, y)(x).sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()


def test_an_attack_on_it_may_start_there(tmp_path: Path) -> None:
    config = compose("train", [*TOY, "loss=rslad", "attack=pgd", "attack.init=none"])
    torch.save(build(config["model"]).state_dict(), tmp_path / "teacher.pt")
    config["teacher"] |= {"source": "model:small_cnn", "weights": str(tmp_path / "teacher.pt")}
    for word in ("kl", "teacher_kl", "teacher_ikl", "adaptive_kl", "adaptive_ikl"):
        config["loss"]["inner"] = word
        if word != "kl":
            check_training(config)
            continue
        with pytest.raises(SettingError, match=r"^attack.init=none with loss.inner=kl: expected a start away"):
            check_training(config)


def test_the_reason_of_the_held_out_attack_names_the_word() -> None:
    config = compose("train", [*TOY, "loss=adaad", "attack=pgd"])
    threat = ThreatSettings("linf", "0.05")
    chosen = selection_attack(threat, ValidationSettings(), build(config["attack"]), build(config["loss"]), 10)
    assert chosen.reason == "training maximises adaptive_kl by PGD"
