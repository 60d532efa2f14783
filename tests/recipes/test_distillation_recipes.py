"""For every row of the distillation tables there is a recipe with its numbers, written here once more from the sources.

CRD (arXiv:1910.10699), DKD (arXiv:2203.08679), IKL (arXiv:2305.13948), GKL (arXiv:2503.08038), RSLAD (arXiv:2108.07969)
and the settings of their published codes.
"""

from typing import Any, NamedTuple

import pytest

from advtrain.composition import recipe
from advtrain.config import config_dir
from advtrain.engine.run_directory import run_name
from advtrain.engine.schedules import Step
from advtrain.recipes import evidence_of
from tests.composed import composed

# What the names of the models and losses are in a recipe's name, where they are not the same.
SHORT = {"resnet_50_cifar": "resnet_50"}

TEACHERS = {
    "resnet110": 74.31,
    "resnet56": 72.34,
    "resnet32x4": 79.42,
    "vgg13": 74.64,
    "wrn_40_2": 75.61,
    "resnet_50_cifar": 79.34,
}


class Row(NamedTuple):
    """A pair of CIFAR-100: code's alpha and beta of IKL; alpha, beta, gamma, GI of GKL; beta of DKD; top-1."""

    teacher: str
    student: str
    ikl: tuple[float, float]
    gkl: tuple[float, float, float, bool]
    dkd_beta: float
    top1: dict[str, float]


def row(teacher: str, student: str, ikl: Any, gkl: Any, dkd_beta: float, top1: tuple[float, float, float]) -> Row:
    return Row(teacher, student, ikl, gkl, dkd_beta, dict(zip(("kd", "dkd", "ikl_kd"), top1, strict=True)))


ROWS = [
    row("resnet110", "resnet32", (1, 12), (1, 4, 0.1, False), 2, (73.08, 74.11, 74.26)),
    row("resnet32x4", "resnet8x4", (1, 8), (1, 16, 0.05, True), 8, (73.33, 76.32, 76.59)),
    row("resnet56", "resnet20", (1, 4), (1, 4, 0.2, True), 2, (70.66, 71.97, 71.44)),
    row("vgg13", "vgg8", (1, 12), (1, 8, 0.2, True), 6, (72.98, 74.68, 74.98)),
    row("wrn_40_2", "wrn_16_2", (3, 12), (3, 20, 0.3, False), 6, (74.92, 76.24, 76.45)),
    row("wrn_40_2", "wrn_40_1", (1, 8), (1, 12, 0.3, False), 6, (73.54, 74.81, 74.98)),
    row("vgg13", "mobilenet_v2", (4, 12), (4, 12, 0.1, True), 6, (67.37, 69.71, 70.40)),
    row("resnet_50_cifar", "mobilenet_v2", (1, 12), (1, 8, 0.05, True), 8, (67.35, 70.35, 70.62)),
    row("resnet32x4", "shufflenet_v1", (1, 8), (1, 8, 0.0, True), 8, (74.07, 76.45, 76.64)),
    row("resnet32x4", "shufflenet_v2", (3, 12), (3, 12, 0.1, True), 8, (74.45, 77.07, 77.16)),
    row("wrn_40_2", "shufflenet_v1", (1, 4), (1, 8, 0.0, False), 8, (74.83, 76.70, 77.19)),
]
METHODS = ("kd", "dkd", "ikl_kd", "gkl_kd")
KD = {"_target_": "advtrain.losses.KD", "kd_weight": 0.9, "label_weight": 0.1, "temperature": 4, "warmup_epochs": 0}
COMMON = {"temperature": 4, "label_weight": 1, "warmup_epochs": 20, "label_smoothing": 0}
IKL = {"_target_": "advtrain.losses.IKLKD", "break_asymmetry": True}
GKL = {"_target_": "advtrain.losses.GKLKD", "break_asymmetry": True, "normaliser": "batch"}


def loss_of(pair: Row, method: str) -> dict[str, Any]:
    """Code's alpha multiplies the soft cross-entropy, its beta ¼ of the weighted MSE."""
    if method == "kd":
        return KD
    if method == "dkd":
        return {"_target_": "advtrain.losses.DKD", **COMMON, "alpha": 1, "beta": pair.dkd_beta}
    if method == "ikl_kd":
        ce, wmse = pair.ikl
        weights = {"global_weights": False, "prior_temperature": 100}
        return {**IKL, **COMMON, **weights, "ce_weight": ce, "wmse_weight": wmse}
    ce, wmse, gamma, global_information = pair.gkl
    weights = {"global_weights": global_information, "prior_temperature": 4, "gamma": gamma}
    return {**GKL, **COMMON, **weights, "ce_weight": ce, "wmse_weight": wmse}


def check_training(config: dict[str, Any], lr: float, epochs: int, batch: int, decay: float) -> None:
    """SGD as published, no attack."""
    optimizer = {"lr": lr, "momentum": 0.9, "weight_decay": decay, "nesterov": False, "decay_norms": True}
    assert config["optimizer"] == config["optimizer"] | optimizer
    assert (config["trainer"]["epochs"], config["trainer"]["batch_size"]) == (epochs, batch)
    assert config["attack"]["_target_"] is None and not config["eval"]["autoattack"]["enabled"]


def rates(config: dict[str, Any]) -> dict[int, float]:
    """The learning rate by the epoch from which it holds, epochs counted from 1."""
    settings = {key: value for key, value in config["schedule"].items() if key != "_target_"}
    schedule, epochs = Step(**settings), config["trainer"]["epochs"]
    found: dict[int, float] = {}
    for epoch in range(1, epochs + 1):
        rate = config["optimizer"]["lr"] * schedule.factor(epoch - 1, epochs)
        if not found or rate != pytest.approx(list(found.values())[-1]):
            found[epoch] = rate
    return found


@pytest.mark.parametrize("model", TEACHERS)
def test_the_teachers_of_cifar100(model: str) -> None:
    name = f"cifar100_standard_{SHORT.get(model, model)}"
    config, evidence, chosen = composed(name), evidence_of(name), recipe(name, [config_dir()])[0]
    assert (chosen["data"], chosen["model"], chosen["loss"]) == ("cifar100", model, "standard")
    check_training(config, 0.05, 240, 64, 5e-4)
    assert rates(config) == pytest.approx({1: 0.05, 151: 0.005, 181: 0.0005, 211: 0.00005})
    assert (evidence.expected.clean, evidence.teacher) == (TEACHERS[model], None)
    assert config["teacher"]["source"] is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", ROWS, ids=lambda pair: f"{pair.teacher}-{pair.student}")
def test_the_pairs_of_cifar100(pair: Row, method: str) -> None:
    teacher = SHORT.get(pair.teacher, pair.teacher)
    name = f"cifar100_{method}_{teacher}_{pair.student}"
    config, evidence, chosen = composed(name), evidence_of(name), recipe(name, [config_dir()])[0]
    assert (chosen["data"], chosen["model"], evidence.teacher) == ("cifar100", pair.student, pair.teacher)
    assert config["loss"] == config["loss"] | loss_of(pair, method)
    lr = 0.01 if pair.student.startswith(("mobilenet", "shufflenet")) else 0.05
    check_training(config, lr, 240, 64, 5e-4)
    assert rates(config) == pytest.approx({1: lr, 151: lr / 10, 181: lr / 100, 211: lr / 1000})
    run = run_name([f"experiment=cifar100_standard_{teacher}"], {"experiment": f"cifar100_standard_{teacher}"}, 0)
    assert config["teacher"]["source"] == f"runs/{run}"  # what the first command of the recipe makes
    assert evidence.expected.clean == pair.top1.get(method)


IMAGENET: dict[str, tuple[list[dict[str, Any]], tuple[float, float]]] = {  # of both pairs: the loss, top-1
    "kd": (2 * [{"kd_weight": 0.5, "label_weight": 0.5, "temperature": 1}], (71.03, 70.50)),
    "dkd": ([{"alpha": 1, "beta": b, "temperature": 1, "warmup_epochs": 1} for b in (0.5, 2)], (71.70, 72.05)),
    "ikl_kd": (
        [{"ce_weight": a, "wmse_weight": b, "warmup_epochs": 1} for a, b in ((1, 0.5), (4, 1))],
        (71.91, 72.84),
    ),
    "gkl_kd": (
        [
            {"ce_weight": a, "wmse_weight": b, "gamma": c, "warmup_epochs": 5}
            for a, b, c in ((1, 0.5, 0.6), (4, 1, 0.5))
        ],
        (71.91, 72.92),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_pairs_of_imagenet(method: str) -> None:
    losses, top1 = IMAGENET[method]
    pairs = [("resnet34", "resnet_34", "imagenet_resnet_18"), ("resnet50", "resnet_50", "mobilenet_v1")]
    for (source, teacher, model), loss, accuracy in zip(pairs, losses, top1, strict=True):
        name = f"imagenet_{method}_{teacher}_{model.removeprefix('imagenet_')}"
        config, evidence, chosen = composed(name), evidence_of(name), recipe(name, [config_dir()])[0]
        assert (chosen["data"], chosen["model"], chosen["loss"]) == ("imagenet", model, method)
        assert config["teacher"]["source"] == evidence.teacher == f"torchvision:{source}"
        weights = {"global_weights": True, "prior_temperature": 1, "temperature": 1}
        expected = loss | (weights if method in ("ikl_kd", "gkl_kd") else {})
        assert config["loss"] == config["loss"] | expected
        check_training(config, 0.2, 100, 512, 1e-4)
        assert rates(config) == pytest.approx({1: 0.2, 31: 0.02, 61: 0.002, 91: 0.0002})
        assert evidence.expected.clean == accuracy


@pytest.mark.parametrize(
    ("method", "loss", "top1"),
    [  # of the scripts; GI is on where they say --GI
        ("standard", {}, 48.02),
        ("kd", {"kd_weight": 4, "label_weight": 1, "temperature": 1, "warmup_epochs": 0}, 44.32),
        ("ikl_kd", {"ce_weight": 4, "wmse_weight": 4, "global_weights": False, "prior_temperature": 100}, 45.21),
        (
            "gkl_kd",
            {"ce_weight": 4, "wmse_weight": 4, "gamma": 0.3, "global_weights": True, "prior_temperature": 1},
            45.40,
        ),
    ],
)
def test_the_rows_of_imagenet_lt(method: str, loss: dict[str, Any], top1: float) -> None:
    teacher = "imagenet_lt_standard_resnext_101_32x4d"
    name = teacher if method == "standard" else f"imagenet_lt_{method}_resnext_101_32x4d_resnet_18"
    config, evidence, chosen = composed(name), evidence_of(name), recipe(name, [config_dir()])[0]
    student = "resnext_101_32x4d" if method == "standard" else "imagenet_resnet_18"
    assert (chosen["data"], chosen["model"]) == ("imagenet_lt", student)
    assert config["loss"] == config["loss"] | loss
    if "ce_weight" in loss:
        assert (config["loss"]["temperature"], config["loss"]["warmup_epochs"]) == (1, 0)
    if method != "standard":
        assert (config["teacher"]["source"], evidence.teacher) == (f"runs/{teacher}-seed0", "resnext_101_32x4d")
    check_training(config, 0.05, 90, 128, 5e-4)
    schedule = {"_target_": "advtrain.engine.Cosine", "warmup_epochs": 10, "per_epoch": True}
    assert config["schedule"] == config["schedule"] | schedule
    assert evidence.expected.clean == top1


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("cifar10_rslad_wrn_34_10_resnet_18", {"divergence": "kl", "kl_weight": 1}),
        ("cifar10_rslad_wrn_34_10_resnet_18_code", {"divergence": "kl", "kl_weight": 0.1}),  # a mean over 10 classes
        ("cifar10_rslad_ikl_wrn_34_10_resnet_18", {"divergence": "ikl"}),
    ],
)
def test_the_robust_students(name: str, loss: dict[str, Any]) -> None:
    config, evidence, chosen = composed(name), evidence_of(name), recipe(name, [config_dir()])[0]
    assert (chosen["data"], chosen["model"], evidence.teacher) == ("cifar10", "resnet_18", "wrn_34_10")
    assert config["teacher"]["source"] == "robustbench:Zhang2019Theoretically"
    assert config["loss"] == config["loss"] | loss | {"alpha": "5/6", "inner": "teacher_kl"}
    attack = {"steps": 10, "step_size": "2/255", "init": "gaussian", "gaussian_scale": 0.001}
    assert config["attack"] == config["attack"] | attack and config["threat"]["eps"] == "8/255"
    assert config["optimizer"] == config["optimizer"] | {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4}
    assert (config["trainer"]["epochs"], config["trainer"]["batch_size"]) == (300, 128)
    assert rates(config) == pytest.approx({1: 0.1, 216: 0.01, 261: 0.001, 286: 0.0001})
    assert config["eval"]["autoattack"]["enabled"] and evidence.expected.tolerance is None
