"""docs/distillation.md: its code runs, and it tells of every loss that holds a teacher."""

import re
from pathlib import Path

import pytest
import torch

from advtrain import losses
from advtrain.composition import choices, own_settings
from advtrain.config import config_dir
from advtrain.losses import objectives

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distillation.md"


@pytest.mark.usefixtures("without_type_checks")
def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 1
    state = torch.random.get_rng_state()
    names: dict[str, object] = {}
    exec(compile(blocks[0], PAGE.name, "exec"), names)
    torch.random.set_rng_state(state)
    assert isinstance(names["loss"], losses.Distillation)


def test_the_page_names_every_loss_and_every_attack_by_a_teacher() -> None:
    text = PAGE.read_text()
    words = choices("loss")
    targets = {word: own_settings("loss", word, [config_dir()])["_target_"].rpartition(".")[2] for word in words}
    with_teacher = [name for name, target in targets.items() if getattr(losses, target).needs_teacher]
    assert {"kd", "rslad"} < set(with_teacher)
    assert not [word for word in (*with_teacher, *objectives.BY_TEACHER) if f"`{word}`" not in text]
