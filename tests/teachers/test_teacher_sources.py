"""Every source gives the network that it names, with that network's own normalisation: images in [0, 1] go in."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from advtrain.config import ThreatSettings
from advtrain.engine import checkpoints
from advtrain.evaluation.robustbench import import_robustbench
from advtrain.models import MobileNetV1, SmallCNN
from advtrain.teachers import TeacherSettings, find_teacher
from advtrain.types import SettingError
from tests.evaluation.test_zoo_command import save_untrained

MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def data(shape: tuple[int, ...], num_classes: int = 10, name: str = "toy") -> Any:
    return SimpleNamespace(image_shape=tuple(shape), num_classes=num_classes, name=name)


def said(source: str, x: Tensor, classes: int = 10, **settings: Any) -> Tensor:
    """What the teacher of that source says of images."""
    chosen = TeacherSettings(source=source, **settings)
    return find_teacher(chosen, data(x.shape[1:], classes), ThreatSettings())(x)


def seasoned(model: nn.Module, shape: tuple[int, int, int] = (3, 64, 64)) -> nn.Module:
    """With the BatchNorm statistics of some images, so that eval mode and the normalisation show in the logits."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(2 * torch.randn(16, *shape))
    return model.eval()


def standardised(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    channels = [(x[:, c] - mean[c]) / std[c] for c in range(len(mean))]
    return torch.stack(channels, dim=1)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() < 1e-4 * expected.norm())


def of_run(path: Path, x: Tensor) -> Tensor:
    model = SmallCNN(num_classes=10)
    model.load_state_dict(checkpoints.load(path)["averaged"])
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize(
    ("source", "checkpoint", "file"),
    (
        ("runs/t", "best", "best.pt"),
        ("runs/t", "last", "last.pt"),
        ("runs/t/checkpoints/last.pt", "best", "last.pt"),
    ),
)
def test_of_a_run_the_averaged_model(source: str, checkpoint: str, file: str, classroom: Path) -> None:
    folder = classroom / "runs" / "t" / "checkpoints"
    state = checkpoints.load(folder / "last.pt")
    head = list(state["averaged"])[-1]
    state["averaged"][head] = state["averaged"][head] + torch.arange(10)  # new memory: without averaging both share it
    checkpoints.save(folder / "last.pt", state)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(said(source, x, checkpoint=checkpoint), of_run(folder / file, x))


def test_of_a_bundle_its_weights(classroom: Path) -> None:
    weights = checkpoints.load(classroom / "runs" / "t" / "checkpoints" / "best.pt")["averaged"]
    bundle = classroom / "bundle"
    bundle.mkdir()
    torch.save({"state_dict": weights}, bundle / "w.pt")
    stored = {"weights": "w.pt", "dataset": "digits", "model_id": "T", "norm": "linf", "eps": "0.2"}
    trained_as = {"_target_": "advtrain.models.SmallCNN", "num_classes": 10}
    (bundle / "verification.json").write_text(json.dumps({**stored, "trained_as": trained_as}))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(said("bundle", x), of_run(classroom / "runs" / "t" / "checkpoints" / "best.pt", x))


def test_of_our_networks_the_weights_of_a_file(tmp_path: Path) -> None:
    x = torch.rand(3, 1, 8, 8)
    own = seasoned(SmallCNN(num_classes=10), (1, 8, 8))
    for wrapped in (own.state_dict(), {"model": own.state_dict(), "epoch": 7}, {"state_dict": own.state_dict()}):
        torch.save(wrapped, tmp_path / "w.pth")
        weights = str(tmp_path / "w.pth")
        with torch.no_grad():
            assert torch.equal(said("model:small_cnn", x, weights=weights), own(x))
            seen = said("model:small_cnn", x, weights=weights, mean=[0.5], std=[0.25])
            assert close(seen, own(standardised(x, [0.5], [0.25]))) and not close(seen, own(x))


def test_a_network_that_standardises_by_itself_does_it_once(tmp_path: Path) -> None:
    own = seasoned(MobileNetV1(num_classes=10, mean=(0, 0, 0), std=(1, 1, 1)))
    torch.save(own.state_dict(), tmp_path / "w.pth")
    x, weights = torch.rand(2, 3, 32, 32), str(tmp_path / "w.pth")
    with torch.no_grad():
        assert torch.allclose(
            said("model:mobilenet_v1", x, weights=weights), own(standardised(x, *IMAGENET)), atol=1e-5
        )
        seen = said("model:mobilenet_v1", x, weights=weights, mean=MEAN, std=STD)
        assert torch.allclose(seen, own(standardised(x, MEAN, STD)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("library", ("torchvision", "timm"))
def test_of_a_library_with_weights_of_a_file(library: str, tmp_path: Path) -> None:
    if library == "timm":
        timm = pytest.importorskip("timm")
        name, mean, std = "tf_mobilenetv3_small_minimal_100", [0.5] * 3, [0.5] * 3  # those of its authors, TensorFlow's
        own = timm.create_model(name, num_classes=10)
    else:
        from torchvision.models import get_model

        name, (mean, std) = "shufflenet_v2_x0_5", IMAGENET
        own = get_model(name, num_classes=10)
    seasoned(own)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    x, weights, source = torch.rand(2, 3, 32, 32), str(tmp_path / "w.pth"), f"{library}:{name}"
    with torch.no_grad():
        built_in, given = own(standardised(x, mean, std)), own(standardised(x, MEAN, STD))
        assert (built_in - given).norm() > 0.01 * given.norm()
        assert close(said(source, x, weights=weights), built_in)
        assert close(said(source, x, weights=weights, mean=MEAN, std=STD), given)
        with pytest.raises(
            SettingError, match=r"teacher.weights: expected.*; give weights for the classes of the data"
        ):
            said(source, x, weights=weights, classes=7)


def test_of_torchvision_its_own_weights_or_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import _api, get_model

    source, x = "torchvision:shufflenet_v2_x0_5", torch.rand(2, 3, 64, 64)
    own = seasoned(get_model("shufflenet_v2_x0_5"))
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: own.state_dict())
    with torch.no_grad():
        seen = said(source, x, download=True, classes=1000)
        assert close(seen, own(standardised(x, *IMAGENET))) and not close(seen, own(x))

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    with pytest.raises(SettingError, match=r"shufflenet_v2_x0_5: expected a trained network, got URLError: .*no route"):
        said(source, x, download=True, classes=1000)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "board"), (("Addepalli2022Efficient_RN18", "Linf"), ("Rice2020Overfitting", "L2")))
def test_of_the_zoo_a_network_of_either_board(name: str, board: str, tmp_path: Path) -> None:
    try:
        import_robustbench()
    except SettingError as error:
        pytest.skip(str(error))
    from robustbench.utils import load_model

    save_untrained(name, board, tmp_path)
    own = load_model(name, model_dir=tmp_path, dataset="cifar10", threat_model=board).eval()
    x = torch.rand(4, 3, 32, 32)
    chosen = TeacherSettings(source=f"robustbench:{name}", model_dir=str(tmp_path))
    for norm, eps in (("linf", "8/255"), ("l2", "0.5")):
        if norm == board.lower() or name.startswith("Addepalli"):  # the other is on both boards, as two networks
            teacher = find_teacher(chosen, data(x.shape[1:], name="cifar10"), ThreatSettings(norm, eps))
            with torch.no_grad():
                assert torch.equal(teacher(x), own(x))


def test_a_network_of_other_classes_is_no_teacher(classroom: Path) -> None:
    with pytest.raises(SettingError, match=r"teacher.source=runs/t: expected 12 logits per image, got \(1, 10\)"):
        said("runs/t", torch.rand(1, 1, 8, 8), classes=12)
