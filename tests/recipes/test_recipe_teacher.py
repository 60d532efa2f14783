"""The teacher of a recipe's evidence: which architectures can be named, and that `teacher.source` does not differ."""

from typing import Any

import pytest

from advtrain.config import build
from advtrain.recipes.teacher import teacher_model
from advtrain.types import SettingError


def config(source: str | None) -> dict[str, Any]:
    return {"teacher": {"source": source}, "data": {"num_classes": 7}}


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("small_cnn", "runs/quickstart-seed0"),
        ("small_cnn", "quickstart-seed12"),
        ("vgg8", "model:vgg8"),
        ("vgg8", "/models/of_mine"),  # tells nothing
        ("wrn_34_10", "robustbench:Zhang2019Theoretically"),
    ],
)
def test_a_choice_of_the_group_model_is_the_teacher(word: str, source: str) -> None:
    model = teacher_model(word, config(source))
    assert model is not None and model["num_classes"] == 7
    assert next(reversed([*build(model).parameters()])).shape == (7,)  # the bias of the last layer


def test_a_teacher_of_a_library_keeps_its_name() -> None:
    model = teacher_model("timm:resnet18", config("timm:resnet18"))
    assert model is not None
    assert (model["name"], model["num_classes"], model["pretrained"]) == ("resnet18", 7, False)


def test_a_recipe_without_a_teacher_has_none() -> None:
    assert teacher_model(None, config(None)) is None


@pytest.mark.parametrize(
    ("word", "source", "message"),
    [
        (None, "runs/quickstart-seed0", r"exactly where teacher\.source is given, got None with .*quickstart-seed0"),
        ("vgg8", None, r"exactly where teacher\.source is given, got 'vgg8' with teacher\.source=None"),
        ("vgg8", "runs/quickstart-seed0", r"expected small_cnn, which teacher\.source=runs/quickstart.* is, got vgg8"),
        ("vgg8", "model:vgg13", r"expected vgg13, which teacher\.source=model:vgg13 is, got vgg8"),
        ("timm:resnet18", "torchvision:resnet18", r"expected torchvision:resnet18, which"),
        ("vgg9", "/models/of_mine", r"a choice of the group model or torchvision:NAME or timm:NAME, got 'vgg9'"),
        ("hub:vgg8", "/models/of_mine", r"expected a choice of the group model .* got 'hub:vgg8'"),
    ],
)
def test_what_disagrees_is_named(word: str | None, source: str | None, message: str) -> None:
    with pytest.raises(SettingError, match=rf"evidence\.teacher: .*{message}"):
        teacher_model(word, config(source))
