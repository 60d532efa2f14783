"""Common corruptions: official files against direct slices of them, and corruptions on the fly of real images."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advtrain.data import CIFAR10
from advtrain.evaluation import CorruptionSettings, corrupting
from advtrain.evaluation.corrupting import OnTheFly
from advtrain.evaluation.corruptions import FAMILIES, Corrupted, corruption_result
from advtrain.evaluation.statistics import wilson_interval
from advtrain.types import SettingError


class Brightness(nn.Module):
    """Class 1 for images brighter than ½ on average: right or wrong by what the pixels say alone."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def write_official(root: Path, families: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Files in the layout of the official ones: 10,000 images per severity, here of two of them, and labels."""
    generator, folder = np.random.default_rng(0), root / "CIFAR-10-C"
    folder.mkdir(parents=True)
    files = {}
    for family in families:
        level = generator.integers(0, 256, size=(20_000, 1, 1, 1), dtype=np.uint8)
        files[family] = np.broadcast_to(level, (20_000, 32, 32, 3))
        np.save(folder / f"{family}.npy", files[family])
    labels = generator.integers(0, 2, size=20_000).astype(np.uint8)
    np.save(folder / "labels.npy", labels)
    return files, labels


def test_official_files_are_read_as_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, labels = write_official(tmp_path, ["fog", "frost"])
    n, severities = 300, [1, 2]
    settings = CorruptionSettings(root=str(tmp_path), families=["fog", "frost"], severities=severities, n_examples=n)
    x, y = torch.zeros(n, 3, 32, 32), torch.from_numpy(labels[:n]).long()
    result = corruption_result(Brightness(), x, y, dataset_name="cifar10", settings=settings)
    assert result.source == "CIFAR-10-C" and result.n_examples == n
    for family in files:
        for severity in severities:
            part = files[family][(severity - 1) * 10_000 :][:n].astype(np.float32) / 255
            expected = ((part.mean((1, 2, 3)) > 0.5) == labels[:n]).sum()
            assert result.correct[family][severity] == expected
    assert result.clean == int((y == 0).sum()), "black images are class 0"


@pytest.mark.parametrize("missing", ["labels", "fog"])
def test_a_missing_official_file_is_one_line_and_no_download(tmp_path: Path, missing: str, monkeypatch) -> None:
    (tmp_path / "CIFAR-10-C").mkdir()
    for name in {"labels", "fog"} - {missing}:
        np.save(tmp_path / "CIFAR-10-C" / f"{name}.npy", np.zeros(1))
    monkeypatch.setattr(corrupting, "_package", lambda: pytest.fail("nothing is computed"))
    settings = CorruptionSettings(root=str(tmp_path), families=["fog"])
    with pytest.raises(SettingError, match=rf"{missing}\.npy.*unpack CIFAR-10-C\.tar"):
        corruption_result(
            Brightness(), torch.zeros(2, 3, 32, 32), torch.zeros(2).long(), dataset_name="cifar10", settings=settings
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CIFAR-10-C"]


def test_other_datasets_have_no_official_files(tmp_path: Path) -> None:
    settings = CorruptionSettings(root=str(tmp_path))
    with pytest.raises(SettingError, match="set it to null"):
        corruption_result(
            Brightness(), torch.zeros(2, 3, 32, 32), torch.zeros(2).long(), dataset_name="imagenet", settings=settings
        )


def test_families_are_known_by_name() -> None:
    with pytest.raises(SettingError, match="'mist'"):
        corruption_result(
            Brightness(),
            torch.zeros(2, 3, 32, 32),
            torch.zeros(2).long(),
            dataset_name="cifar10",
            settings=CorruptionSettings(families=["mist"]),
        )


def test_small_or_grey_images_are_refused() -> None:
    for shape in ((2, 1, 32, 32), (2, 3, 8, 8)):
        with pytest.raises(SettingError, match="32 × 32"):
            OnTheFly(torch.zeros(shape), torch.zeros(2).long(), 0)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupting._package.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    try:
        with pytest.raises(SettingError, match=r"advtrain\[corruptions\]"):
            corrupting.corrupt(np.zeros((32, 32, 3), np.uint8), "fog", 1, 0)
    finally:
        corrupting._package.cache_clear()


@pytest.fixture(scope="module")
def images(real_data: Path) -> tuple[Tensor, Tensor]:
    pytest.importorskip("imagecorruptions")
    split = CIFAR10(root=str(real_data)).split("test")
    indices = split.subset(24)
    return split.fetch(indices, "cpu"), split.labels[indices]


def distortion(x: Tensor, y: Tensor, family: str, severity: int) -> float:
    corrupted, _ = OnTheFly(x, y, 0).images(family, severity)
    assert corrupted.shape == x.shape and corrupted.dtype == torch.float32
    assert corrupted.min() >= 0 and corrupted.max() <= 1 and corrupted.is_contiguous()
    return float((corrupted - x).square().mean())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "glass_blur"])
def test_severity_5_distorts_more_than_1_on_average(images, family: str) -> None:
    least, most = (distortion(*images, family, severity) for severity in (1, 5))
    assert 1e-5 < least < most


@pytest.mark.slow
def test_the_strength_grows_with_every_severity_on_average_over_families(images) -> None:
    means = [np.mean([distortion(*images, family, severity) for family in FAMILIES]) for severity in range(1, 6)]
    assert means == sorted(means)


@pytest.mark.parametrize("family", ["gaussian_noise", "impulse_noise", "frost", "fog", "snow", "elastic_transform"])
def test_an_image_depends_on_seed_family_and_severity_alone(images, family: str) -> None:
    x, y = images
    whole, _ = OnTheFly(x, y, 3).images(family, 2)
    np.random.seed(11)
    expected = np.random.RandomState(11).rand()
    few, _ = OnTheFly(x[:5], y[:5], 3).images(family, 2)
    assert torch.equal(whole[:5], few), "whatever images come with it"
    assert np.random.rand() == expected, "the global generator is left alone"
    other, _ = OnTheFly(x[:5], y[:5], 4).images(family, 2)
    assert not torch.equal(other, few)


@pytest.mark.slow
def test_glass_blur_depends_on_its_seed_alone(images) -> None:
    """Slow because the package compiles it."""
    x, y = images
    first, again, other = (OnTheFly(x[:5], y[:5], seed).images("glass_blur", 3)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_brightness_is_what_its_definition_says(images) -> None:
    """The largest channel of a pixel (V of HSV) rises by 0.1 at severity 1, as far as there is room."""
    x, y = images
    brighter, _ = OnTheFly(x, y, 0).images("brightness", 1)
    expected = (x.amax(1) + 0.1).clamp(max=1)
    torch.testing.assert_close(brighter.amax(1), expected, atol=1.01 / 255, rtol=0)


def test_contrast_is_what_its_definition_says(images) -> None:
    x, y = images
    flatter, _ = OnTheFly(x, y, 0).images("contrast", 5)
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(flatter, mean + 0.05 * (x - mean), atol=1.01 / 255, rtol=0)


def test_on_the_fly_is_never_called_by_the_official_name(images) -> None:
    x, _ = images
    settings = CorruptionSettings(families=["contrast", "pixelate"], severities=[1, 3], batch_size=7)
    bright = (x.flatten(1).mean(1) > 0.5).long()
    result = corruption_result(Brightness(), x, bright, dataset_name="cifar10", settings=settings)
    record = result.record()
    assert result.source.startswith("corruptions (on the fly, imagecorruptions") and "CIFAR" not in result.source
    assert "never to be compared" in record["settings"]["strengths"]
    assert result.clean == len(x), "labels are what the model says of the clean images"
    # Contrast keeps every channel's mean, and with it this model's class, but for rounding at ½.
    assert result.correct["contrast"][1] >= len(x) - 1
    assert {cell for row in record["families"].values() for cell in row["severities"]} == {"1", "3"}


def test_accuracies_and_intervals() -> None:
    correct = {"fog": {1: 8, 5: 4}, "snow": {1: 6, 5: 2}}
    result = Corrupted("x", correct, 10, 10, {"frost": "no images"}, {}, 1.0)
    assert result.accuracy == pytest.approx(0.5) and result.relative == pytest.approx(0.5)
    record = result.record()
    assert record["families"]["fog"]["accuracy"] == pytest.approx(0.6)
    assert record["families"]["snow"]["severities"]["5"]["interval"] == list(wilson_interval(2, 10))
    assert "interval" not in record, "cells show the same images: the mean is no count of independent trials"
    assert any("frost: not run, no images" in line for line in result.lines())
