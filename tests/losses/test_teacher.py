"""The teacher of a loss: no part of it, asked once, and left as it was; the same in a notebook."""

import copy

import pytest
import torch
from torch import Tensor

from advtrain import losses
from advtrain.config import build
from advtrain.losses import Teacher
from tests.losses.distilling import CLEAN, batch, configured, network, settings

each_loss = pytest.mark.parametrize("name", CLEAN)


@each_loss
def test_the_teacher_is_no_part_of_the_loss(name: str) -> None:
    """An optimiser, a checkpoint and `train()` meet the class prior at most."""
    loss = configured(name)
    names = {"prior.weights", "prior.sums", "prior.counts"} if loss.has_prior else set()
    assert loss.state_dict().keys() == names and not list(loss.parameters())
    loss.train()
    assert not any(module.training for module in loss.teacher.model.modules())
    fresh = build(settings(name))
    fresh.load_state_dict(loss.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), loss.buffers(), strict=True))


@each_loss
def test_training_leaves_the_teacher_as_it_was(name: str) -> None:
    """Several steps with everything in train mode: no gradient, no weight and no BatchNorm statistic of it moves."""
    student, (x, y) = network(seed=2).train(), batch()
    loss = configured(name).train()
    known = copy.deepcopy(loss.teacher.model.state_dict())
    own = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for epoch in (1, 2):
        loss.start_epoch(epoch)
        loss.teacher.model.train()  # whoever did this
        for _ in range(2):
            optimizer.zero_grad()
            loss.start_batch(y, loss.taught(x))
            loss.outer(student, x, x, y)[0].backward()
            optimizer.step()
        loss.end_epoch()
    assert all(torch.equal(value, known[key]) for key, value in loss.teacher.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in loss.teacher.model.parameters())
    assert not loss.teacher.model.training and not loss.teacher(x.clone().requires_grad_()).requires_grad
    assert all(not torch.equal(value, own[key]) for key, value in student.state_dict().items())


@each_loss
def test_what_the_teacher_said_before_is_not_asked_again(name: str) -> None:
    student, (x, y) = network(seed=2).eval(), batch()
    loss = configured(name).eval()
    asked: list[Tensor] = []
    loss.teacher.model.register_forward_pre_hook(lambda _, inputs: asked.extend(inputs))
    total, _ = loss.outer(student, x, x, y)
    assert len(asked) == 1 and asked[0] is x
    torch.testing.assert_close(loss.outer(student, x, x, y, loss.teacher(x))[0], total, rtol=0, atol=0)
    assert len(asked) == 2
    other, _ = loss.outer(student, x, x, y, loss.teacher(x).flip(0))
    assert abs(other - total) > 1e-3


def test_as_in_a_notebook() -> None:
    net, student, (x, y) = network(seed=9), network(seed=2), batch()
    loss = losses.KD()
    with pytest.raises(RuntimeError, match=r"expected a teacher, got none; call KD\.hold\(Teacher\(model\)\)"):
        loss.outer(student, x, x, y)
    assert loss.teacher is None
    assert loss.hold(Teacher(net)) is loss and loss.teacher is not None and loss.teacher.model is net
    total, parts = loss.outer(student, x, x, y)
    total.backward()
    assert {"loss", "ce", "kd", "clean_accuracy", "teacher_accuracy"} == parts.keys()
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in net.parameters())
    loss.hold(Teacher(network(seed=10), name="another"))
    assert loss.teacher.name == "another" and loss.outer(student, x, x, y)[0] != total


def test_a_teacher_moves_as_a_module_does() -> None:
    one = Teacher(network(seed=9))
    assert one.to(torch.float32) is one and {p.dtype for p in one.model.parameters()} == {torch.float32}
    x, _ = batch()
    assert one(x.float()).dtype == torch.float32
