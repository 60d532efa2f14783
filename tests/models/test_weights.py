"""Models start from the tensors of a file: all of them, nothing but tensors, and else one clear line."""

import copy
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from advtrain.engine import checkpoints
from advtrain.models import Normalize, SmallPreActResNet, load_weights, resnet_50
from advtrain.types import SettingError


def network(num_classes: int = 4, width: int = 2) -> Normalize:
    return Normalize(SmallPreActResNet(num_classes=num_classes, width=width), mean=(0.5,) * 3, std=(0.25,) * 3)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): value for name, value in state.items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Any] = {
    "alone": lambda s: s,
    "of the network inside": bare,
    "under state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "under model": lambda s: {"model": bare(s), "optimizer": {"lr": 0.1}},
    "of DDP": lambda s: prefixed("module.", s),
    "of DDP and compile": lambda s: {"state_dict": prefixed("module._orig_mod.", bare(s))},
    "half precision": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "before 2018": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


def representable(model: nn.Module) -> dict[str, Tensor]:
    """Random weights that half precision holds."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor).half())
    return state_of(model)


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_arrives(form: str, tmp_path: Path) -> None:
    expected = representable(network())
    torch.save(FORMS[form](expected), tmp_path / "weights.pt")
    model = network()
    load_weights(model, tmp_path / "weights.pt")
    assert {k: v.dtype for k, v in model.state_dict().items()} == {k: v.dtype for k, v in expected.items()}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_model_without_normalisation_takes_the_weights_of_one_with_it(tmp_path: Path) -> None:
    expected = representable(network())
    torch.save(expected, tmp_path / "weights.pt")
    model = SmallPreActResNet(num_classes=4, width=2)
    load_weights(model, str(tmp_path / "weights.pt"))
    assert torch.equal(model.classifier.weight, expected["model.classifier.weight"])


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    expected = representable(network())
    safetensors.save_file(expected, tmp_path / "weights.safetensors")
    model = network()
    load_weights(model, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_our_own_checkpoint_gives_its_average(tmp_path: Path) -> None:
    trained, averaged = representable(network()), representable(network())
    checkpoints.save(tmp_path / "best.pt", {"model": trained, "averaged": averaged, "position": {"epoch": 2}})
    model = network()
    load_weights(model, tmp_path / "best.pt")
    assert all(torch.equal(value, averaged[name]) for name, value in model.state_dict().items())


def test_another_number_of_classes(tmp_path: Path) -> None:
    expected, model = representable(network(num_classes=7)), network()
    torch.save(expected, tmp_path / "weights.pt")
    before = state_of(model)
    message = (
        r"expected the tensors of the model, got .*weights\.pt with 2 of another shape "
        r"\(model\.classifier\.weight 7×16 instead of 4×16, model\.classifier\.bias 7 instead of 4\); "
        r"add model\.new_head=true"
    )
    with pytest.raises(SettingError, match=message):
        load_weights(model, tmp_path / "weights.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "not all or nothing"
    load_weights(model, tmp_path / "weights.pt", new_head=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if "classifier" in name else expected[name])


def test_a_new_head_is_new_for_the_same_number_of_classes_too(tmp_path: Path) -> None:
    expected, model = representable(network()), network()
    torch.save(expected, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt", new_head=True)
    assert not torch.equal(model.state_dict()["model.classifier.weight"], expected["model.classifier.weight"])
    assert torch.equal(model.state_dict()["model.stem.weight"], expected["model.stem.weight"])


def test_differences_are_listed(tmp_path: Path) -> None:
    state = state_of(network())
    del state["model.stem.weight"], state["model.norm.bias"]
    state["model.extra"] = torch.zeros(1)
    state["model.norm.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(SettingError) as caught:
        load_weights(network(), tmp_path / "weights.pt")
    text = str(caught.value)
    assert "2 missing (model.stem.weight, model.norm.bias)" in text
    assert "1 not in the model (model.extra)" in text
    assert "1 of another shape (model.norm.weight 3 instead of 16)" in text
    assert "\n" not in text and text.endswith("choose the model it was trained as")


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save({"one": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(SettingError, match=r"\d\d missing \(([\w.]+, ){5}…\); 1 not in the model \(model\.one\)"):
        load_weights(network(), tmp_path / "weights.pt")


class Payload:
    """A pickle of this writes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": state_of(network()), "extra": Payload(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(SettingError, match=r"expected nothing but tensors in .*could run foreign code"):
        load_weights(network(), tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"epoch": 1, "loss": 0.5}, "got the keys epoch, loss; save the state dict alone"),
        ({}, "got the keys ; save"),
        ([torch.zeros(1)], "got something else; save"),
    ],
)
def test_other_contents(content: Any, got: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(SettingError, match=re.escape(got)):
        load_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no tensors in here")
    with pytest.raises(SettingError, match=r"model\.weights: expected .*, got ") as caught:
        load_weights(network(), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere.pt", 3, True])
def test_no_file(path: Any) -> None:
    with pytest.raises(
        SettingError, match=rf"model\.weights: expected the path of a state dict, got {path!r}; no such"
    ):
        load_weights(network(), path)


def test_a_model_without_a_linear_layer_has_no_head(tmp_path: Path) -> None:
    model = nn.Conv2d(1, 1, 1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(SettingError, match=r"model\.new_head: expected a model with a linear layer, got none"):
        load_weights(model, tmp_path / "weights.pt", new_head=True)


def test_resnet_50_starts_from_torchvisions_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(num_classes: int) -> nn.Module:  # in the place of 25 M parameters
        return nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 5, 3), fc=nn.Linear(5, num_classes)))

    monkeypatch.setattr(torchvision.models, "resnet50", small)
    original = small(6).state_dict()
    torch.save(original, tmp_path / "resnet50.pth")
    started = resnet_50(num_classes=3, weights=str(tmp_path / "resnet50.pth"), new_head=True).state_dict()
    assert torch.equal(started["model.conv1.weight"], original["conv1.weight"])
    assert started["model.fc.weight"].shape == (3, 5)


def test_a_new_head_needs_weights() -> None:
    with pytest.raises(SettingError, match=r"model\.new_head=true: expected model\.weights, got none"):
        resnet_50(new_head=True)
