"""An architecture's file is all that its bundle carries: it must build without advtrain, from PyTorch alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advtrain import models

SMALL = {
    "preact_resnet": ("PreActResNet", {"depth": 18}),
    "resnet": ("ResNet", {"depth": 18}),
    "thin_resnet": ("ThinResNet", {"depth": 8}),
    "vgg": ("VGG", {"depth": 8}),
    "mobilenet_v1": ("MobileNetV1", {}),
    "mobilenet_v2": ("MobileNetV2", {"width": 0.25}),
    "shufflenet_v1": ("ShuffleNetV1", {}),
    "shufflenet_v2": ("ShuffleNetV2", {}),
    "preact_resnet_small": ("SmallPreActResNet", {"width": 8}),
    "wide_resnet": ("WideResNet", {"depth": 10, "widen_factor": 1}),
    "dm_wide_resnet": ("DMWideResNet", {"depth": 10, "width": 1}),
    "small_cnn": ("SmallCNN", {"in_channels": 3, "image_size": 32, "width": 4}),
}
FOLDER = Path(models.__file__).parent
BUILD = """
import runpy, sys, torch
for name in ("advtrain", "hydra", "torchvision", "timm", "robustbench"):
    sys.modules[name] = None  # importing it fails
for word, (name, arguments) in {small}.items():
    names = runpy.run_path({folder!r} + f"/{{word}}.py")
    torch.manual_seed(0)
    logits = names[name](**arguments).eval()(torch.full((1, 3, 32, 32), 0.5))
    torch.save(logits.detach(), f"{{word}}.pt")
names = runpy.run_path({folder!r} + "/normalize.py")
names["Normalize"](torch.nn.Identity(), mean=(0.5,), std=(0.5,))(torch.ones(1, 1, 2, 2))
names = runpy.run_path({folder!r} + "/conv_stem.py")
names["ConvStem"]((4, 8), (2, 2), 16)(torch.ones(1, 3, 8, 8))
"""


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_every_architecture_file_is_covered() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    parts, ours = (
        {"normalize", "conv_stem"},
        {"libraries", "pretrained", "weights", "fit", "gradient_checkpointing"},
    )  # what no bundle carries
    assert files == {*SMALL, *parts, *ours, "__init__"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    result = run(BUILD.format(small=SMALL, folder=str(FOLDER)), folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("word", SMALL)
def test_file_alone_builds_the_same_network(word: str, built: Path) -> None:
    name, arguments = SMALL[word]
    torch.manual_seed(0)
    with torch.no_grad():
        logits = getattr(models, name)(**arguments).eval()(torch.full((1, 3, 32, 32), 0.5))
    torch.testing.assert_close(torch.load(built / f"{word}.pt", weights_only=True), logits)


def test_importing_models_leaves_the_libraries_alone(tmp_path: Path) -> None:
    root = str(FOLDER.parents[1])
    heavy = "('torchvision', 'timm', 'hydra', 'omegaconf', 'robustbench', 'safetensors')"
    program = f"import sys; sys.path.insert(0, {root!r}); import advtrain.models; "
    result = run(program + f"print([name for name in {heavy} if name in sys.modules])", tmp_path)
    assert result.stdout.strip() == "[]", result.stderr
