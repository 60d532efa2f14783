"""Policies against torchvision.transforms.v2: every operation bit for bit, every choice in distribution."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2
from torchvision.transforms import functional as single

from advtrain.data.augmentations import operations, policies
from advtrain.data.augmentations.operations import COMMON, STANDARD, WIDE, Operation, Space
from tests.data.distributions import SIGNIFICANCE, counted, p_of_distribution, p_of_same_source

NAMES = ("identity", *COMMON, "invert")


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def official_name(name: str) -> str:
    return name.title().replace("_", "")


def of_torchvision(transform: v2.Transform, image: Tensor, name: str, level: int, levels: int, sign: int) -> Tensor:
    """torchvision's own dispatch on a single image, at a level of its own table."""
    table, signed = (
        v2.AutoAugment._AUGMENTATION_SPACE["Invert"]
        if name == "identity"
        else ({**v2.AutoAugment._AUGMENTATION_SPACE, **transform._AUGMENTATION_SPACE}[official_name(name)])
    )
    values = table(levels, *image.shape[-2:])
    value = 0.0 if values is None else float(values[level]) * (sign if signed else 1)
    return transform._apply_image_or_video_transform(
        image, official_name(name), value, interpolation=transform.interpolation, fill=transform._fill
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("space", "transform", "levels"),
    [(STANDARD, v2.AutoAugment(), 10), (STANDARD, v2.RandAugment(), 31), (WIDE, v2.TrivialAugmentWide(), 31)],
    ids=["autoaugment", "randaugment", "trivialaugment"],
)
def test_every_level_of_an_operation_is_torchvisions(
    space: Space, transform: v2.Transform, levels: int, name: str, channels: int
) -> None:
    images = random_images(3, channels, 9, 12)
    images[2] //= 3  # a dark one
    for level in range(0, levels, 3):
        for sign in (1, -1):
            drawn = operations.operation(space, name, level, levels, sign < 0, (9, 12))
            expected = [of_torchvision(transform, image, name, level, levels, sign) for image in images]
            assert torch.equal(operations.apply_each(images, [drawn] * 3), torch.stack(expected)), (level, sign)


@pytest.mark.parametrize("name", ["centre_shear_x", "centre_shear_y", "rotate"])
def test_the_movements_of_idbh_are_torchvisions_on_single_images(name: str) -> None:
    images = random_images(2, 3, 12, 12)
    for degrees in (-8.0, 3.0, 8.5):
        shear = {"centre_shear_x": [degrees, 0.0], "centre_shear_y": [0.0, degrees]}.get(name, [0.0, 0.0])
        expected = [
            single.rotate(image, degrees) if name == "rotate" else single.affine(image, 0.0, [0, 0], 1.0, shear)
            for image in images
        ]
        assert torch.equal(operations.apply(images, name, degrees), torch.stack(expected))


def test_images_with_different_operations_are_not_mixed_up() -> None:
    images = random_images(40, 3, 8, 8)
    before = images.clone()
    drawn = [operations.operation(STANDARD, NAMES[i % 7 * 2], i % 31, 31, i % 3 == 0, (8, 8)) for i in range(40)]
    together = operations.apply_each(images, drawn)

    assert torch.equal(images, before)
    for i, operation in enumerate(drawn):
        assert torch.equal(together[i : i + 1], operations.apply(images[i : i + 1], *operation))


def test_the_policy_for_cifar_is_torchvisions() -> None:
    official = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)._policies
    ours = [[(official_name(name), probability, level) for name, probability, level in pair] for pair in TABLE]
    theirs = [[(name, probability, level or 0) for name, probability, level in pair] for pair in official]
    assert ours == theirs


TABLE = policies.CIFAR_POLICY
PAIRS = {
    "autoaugment": (policies.auto_augment, v2.AutoAugment(AutoAugmentPolicy.CIFAR10)),
    "randaugment": (partial(policies.rand_augment, ops=2, magnitude=9), v2.RandAugment(2, 9)),
    "trivialaugment": (policies.trivial_augment, v2.TrivialAugmentWide()),
}


@pytest.mark.parametrize("word", PAIRS)
def test_a_policy_has_torchvisions_distribution(word: str) -> None:
    """2,500 outcomes for one image, ours in a batch and torchvision's one by one."""
    ours, theirs = PAIRS[word]
    image = random_images(3, 5, 6)
    torch.manual_seed(0)
    expected = counted(torch.stack([theirs(image) for _ in range(2500)]))
    found = counted(ours(image.expand(2500, -1, -1, -1), torch.Generator().manual_seed(0)))

    assert len(found) > 30
    assert p_of_same_source(found, expected) > SIGNIFICANCE


def test_the_test_of_distributions_notices_a_difference() -> None:
    image = random_images(3, 5, 6).expand(2500, -1, -1, -1)
    samples = [
        counted(policies.rand_augment(image, torch.Generator().manual_seed(seed), ops=2, magnitude=magnitude))
        for seed, magnitude in ((0, 9), (1, 9), (2, 8))
    ]
    assert p_of_same_source(samples[0], samples[1]) > SIGNIFICANCE
    assert p_of_same_source(samples[0], samples[2]) < 1e-12


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Operation]]:
    """The operations that color_shape draws for n images."""

    def record(n: int) -> list[Operation]:
        chosen: list[Operation] = []
        monkeypatch.setattr(operations, "apply_each", lambda images, found: (chosen.extend(found), images)[1])
        policies.color_shape(random_images(n, 1, 2, 2), torch.Generator().manual_seed(0))
        return chosen

    return record


def test_color_shape_draws_as_idbh_is_published(drawn: Callable[[int], list[Operation]]) -> None:
    """Eight operations alike; factors and angles of shear uniform, rotations by 1 … 10 whole degrees; signs even."""
    chosen = drawn(16000)
    kinds = Counter(name.removeprefix("centre_").removesuffix("_x").removesuffix("_y") for name, _ in chosen)
    names = ("color", "brightness", "contrast", "sharpness", "auto_contrast", "equalize", "shear", "rotate")
    assert p_of_distribution(kinds, dict.fromkeys(names, 1 / 8)) > SIGNIFICANCE

    ranges = {"color": (0.1, 1.9), "brightness": (0.5, 1.9), "contrast": (0.5, 1.9), "sharpness": (0.1, 1.9)}
    for name, (low, high) in ranges.items():
        values = [value for kind, value in chosen if kind == name]
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SIGNIFICANCE, name

    shears = [(name[-1], value) for name, value in chosen if "shear" in name]
    directions = Counter((axis, value > 0) for axis, value in shears)
    quarters = {(axis, positive): 0.25 for axis in "xy" for positive in (True, False)}
    assert p_of_distribution(directions, quarters) > SIGNIFICANCE
    radians = [math.radians(abs(value)) for _, value in shears]
    assert stats.kstest(radians, stats.uniform(0.05, 0.1).cdf).pvalue > SIGNIFICANCE

    rotations = Counter(value for name, value in chosen if name == "rotate")
    degrees = {sign * float(degree): 1 / 20 for sign in (1, -1) for degree in range(1, 11)}
    assert p_of_distribution(rotations, degrees) > SIGNIFICANCE
