"""The page for people who come only for the losses: its code runs, and it tells of every function and keyword."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from advtrain.losses import divergences, functional

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses.md"


@pytest.mark.usefixtures("without_type_checks")
def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    state = torch.random.get_rng_state()
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    torch.random.set_rng_state(state)
    assert {"loss", "each", "whole", "both"} <= names.keys()


def test_the_page_names_every_public_function_and_keyword() -> None:
    text = PAGE.read_text()
    losses = [functional.kl, functional.dkl, functional.ikl, functional.gkl]
    for module, loss in [("functional", loss) for loss in losses] + [
        ("divergences", loss) for name, loss in divergences.DIVERGENCES.items() if name != "kl"
    ]:
        assert f"{module}.{loss.__name__}" in text
        missing = [name for name in inspect.signature(loss).parameters if not re.search(rf"\b{name}\b", text)]
        assert not missing, (loss.__name__, missing)
