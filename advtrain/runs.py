"""What the commands do, once the configuration is plain values: check, build, train, evaluate, export, show."""

import os
from pathlib import Path
from typing import Any

import torch

from advtrain import distributed
from advtrain.config import OUR_TARGETS, ThreatSettings, TrainerSettings, architecture_of, build, typed
from advtrain.data.base import Dataset
from advtrain.engine import Ingredients, Trainer, batch_size
from advtrain.engine import run_directory as directories
from advtrain.engine.free import check_free, free_attack
from advtrain.engine.numerics import check_numerics, device_named, numerics
from advtrain.engine.progress import console, duration
from advtrain.engine.stored_logits import check_stored_logits, stored_logits
from advtrain.evaluation import EvaluationSettings
from advtrain.export.metadata import ExportMetadata
from advtrain.losses import Loss, objectives
from advtrain.models.fit import check_fit
from advtrain.models.weights import check_weights_file
from advtrain.opening import opening
from advtrain.publish import check_target, export_and_verify
from advtrain.random import stream_seed
from advtrain.teachers import Examination, TeacherSettings, check_source, check_teacher, examine, give_teacher
from advtrain.types import Attack, SettingError

PARTS = ("attack", "loss", "optimizer", "schedule", "weight_perturbation", "averaging", "logger")


def check_training(
    config: dict[str, Any], *, trusted: bool = True, elsewhere: bool = False, directory: Path | None = None
) -> dict[str, Any]:
    """Builds everything that is cheap and checks that the choices go together; returns the parts by group.

    No model is built and no data is decoded. What will train `elsewhere` needs no GPU here. The run directory, where
    it is known, is only compared with that of the teacher.

    Raises:
        SettingError: something cannot be used.
    """
    parts: dict[str, Any] = {"threat": typed(ThreatSettings, config["threat"], "threat")}
    parts["trainer"] = typed(TrainerSettings, config["trainer"], "trainer")
    parts["eval"] = typed(EvaluationSettings, config["eval"], "eval")
    parts["export"] = typed(ExportMetadata, config["export"], "export")
    if not isinstance(config["seed"], int) or isinstance(config["seed"], bool):
        raise SettingError(f"seed: expected an integer, got {config['seed']!r}; give a whole number")
    _check_class_count(config)
    for group in PARTS:
        parts[group] = None if config[group]["_target_"] is None else build(config[group], trusted=trusted)
    parts["teacher"] = typed(TeacherSettings, config["teacher"], "teacher")
    check_teacher(parts["teacher"], parts["loss"])
    _check_combination(parts, config)
    parts["data"] = dataset(config["data"], trusted=trusted)
    parts["data"].check()
    check_target(parts["export"], parts["data"].name, parts["threat"], parts["eval"])
    _check_targets(parts["data"], parts["loss"])
    check_stored_logits(parts["teacher"].logits, parts["data"], parts["loss"], parts["trainer"])
    check_source(parts["teacher"], parts["data"], parts["threat"], directory)
    if not elsewhere:
        check_numerics(parts["trainer"], device_named(parts["trainer"].device))
    return parts


def dataset(config: dict[str, Any], *, trusted: bool = True) -> Any:
    """The dataset of a config, whose threat model belongs to the run and not to the constructor."""
    return build({key: value for key, value in config.items() if not key.startswith("threat_")}, trusted=trusted)


def train_run(config: dict[str, Any], name: str) -> None:
    """Trains, evaluates, exports and verifies; continues where an earlier call of the same command stopped."""
    directory = Path(config["run_root"]) / name
    parts = check_training(config, directory=directory)
    settings: TrainerSettings = parts["trainer"]
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:  # cuBLAS reads it when CUDA starts, and PyTorch refuses to go on without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    device = device_named(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not settings.deterministic
    check_start(_model_config(config["model"], directory))
    give_teacher(parts["loss"], parts["teacher"], parts["data"], parts["threat"])
    found = batch_size.own_rows(parts, lambda own: make_trainer(config, own, directory), directory, device)
    with distributed.process_group(device):
        how = numerics(settings, device, parts["data"].image_shape[0])
        examination = examine(parts["loss"], parts["teacher"], parts["data"], config["data"], how)
        _claim(directory, config, parts["teacher"], examination)
        parts["trainer"] = batch_size.settled(settings, found, directory, device)
        trainer = make_trainer(config, parts, directory)
        if distributed.is_main():
            remarks = batch_size.remarks(trainer, settings)
            console.print("\n".join([opening(trainer, parts, directory, examination), *remarks]))
        trainer.fit()
        record = _evaluated(config, parts, trainer, directory)
        distributed.leave()
    if distributed.is_main() and record is not None:
        _conclude(config, parts, record, directory)


def _claim(directory: Path, config: dict[str, Any], teacher: TeacherSettings, examination: Examination | None) -> None:
    """The main process claims the directory, and all processes fail alike where it may not."""

    def refusal() -> str:
        try:
            directories.claim(directory, config)
            if examination is not None:
                examination.confirm(directory, teacher)
        except SettingError as error:
            return str(error)
        return ""

    if message := distributed.on_main(refusal):
        raise SettingError(message)


def make_trainer(config: dict[str, Any], parts: dict[str, Any], directory: Path) -> Trainer:
    """The trainer of a checked configuration, with a fresh model.

    Raises:
        SettingError: the model does not fit the data.
    """
    data = parts["data"]
    torch.manual_seed(stream_seed(config["seed"], "weights"))
    model = build(_model_config(config["model"], directory))
    check_fit(model, data.image_shape, data.num_classes, what="model", remedy="choose another model= or data=")
    give_teacher(parts["loss"], parts["teacher"], data, parts["threat"])
    ingredients = Ingredients(data=data, model=model, threat=parts["threat"], **{g: parts[g] for g in PARTS})
    stored = stored_logits(parts["teacher"].logits, config["data"])
    return Trainer(
        ingredients, parts["trainer"], seed=config["seed"], directory=directory, config=config, stored=stored
    )


def check_start(model: dict[str, Any]) -> None:
    """Confirms that the weights which a model of ours starts from are there.

    Raises:
        SettingError: they are not.
    """
    if model["_target_"].startswith(OUR_TARGETS) and model.get("weights") is not None:
        check_weights_file(model["weights"])


def _model_config(model: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A run that resumes has its weights: those that it once started from are not read again, and may be gone."""
    if not (directory / "checkpoints" / "last.pt").is_file():
        return model
    return architecture_of(model) | {key: model[key] for key in ("gradient_checkpointing",) if key in model}


def _check_class_count(config: dict[str, Any]) -> None:
    classes, inner = config["data"].get("num_classes"), config["loss"].get("inner")
    if classes is not None:
        needed = objectives.CLASSES_NEEDED.get(inner, 2)
        if isinstance(classes, int) and classes < needed:
            raise SettingError(
                f"loss.inner={inner}: expected {needed} or more classes, got {classes}; choose loss.inner=margin"
            )
        return
    data = config["data"]["_target_"].rpartition(".")[2]
    loss = config["loss"]["_target_"].rpartition(".")[2]
    needs = f"loss {loss} keeps a class prior, one row per class" if "num_classes" in config["loss"] else "the model"
    raise SettingError(
        f"data.num_classes: expected the number of classes ({needs}), but data {data} declares none; "
        "add data.num_classes=10 (say), or choose a loss without a prior such as loss=trades"
    )


def _check_combination(parts: dict[str, Any], config: dict[str, Any]) -> None:
    attack, loss, settings = parts["attack"], parts["loss"], parts["trainer"]
    name = type(loss).__name__
    if loss.needs_attack and attack is None:
        raise SettingError(
            f"attack=none with loss {name}: expected an attack, since {name} trains on adversarial images; "
            "choose attack=pgd or loss=standard"
        )
    loss.check_accumulation(settings.accumulation)
    if attack is not None and not isinstance(attack, Attack):
        raise SettingError(
            f"attack: expected a class derived from advtrain.attacks.Attack, got {type(attack).__name__}; derive it"
        )
    if loss.needs_attack and free_attack(attack, settings.epochs):
        check_free(loss, parts["weight_perturbation"], settings.accumulation)
    if attack is not None and loss.needs_attack and attack.starts_at_image and loss.inner_objective in ("kl", "ikl"):
        raise SettingError(
            f"attack.init=none with loss.inner={loss.inner_objective}: expected a start away from the image, where the "
            "gradient of that objective is zero; choose attack.init=uniform or loss.inner=ce"
        )
    for group in ("weight_perturbation", "averaging"):
        first = getattr(parts[group], "start_epoch", 1)  # not every choice has one
        if first > settings.epochs:
            raise SettingError(
                f"{group}.start_epoch: expected one of the {settings.epochs} epochs, got {first}: "
                f"{type(parts[group]).__name__} would never act; lower it, raise trainer.epochs or choose {group}=none"
            )
    batch_size.check(settings)


def _check_targets(data: Dataset, loss: Loss) -> None:
    name = type(loss).__name__
    if data.mix != "none" and not loss.takes_soft_labels:
        raise SettingError(
            f"data.mix={data.mix} with loss {name}: expected a loss that takes soft labels, which mixed images have; "
            "choose data.mix=none, or loss=pgd_at loss.inner=ce (say)"
        )
    if data.second_view != "none" and loss.views == 1:
        raise SettingError(
            f"data.second_view={data.second_view} with loss {name} over one view: expected a loss that weighs two; "
            "set loss.second_view_weight (loss=ikl, say, has it) or choose data.second_view=none"
        )
    if data.second_view == "none" and loss.views == 2:
        raise SettingError(
            f"loss.second_view_weight of loss {name} with data.second_view=none: expected data with a second view; "
            "choose data.second_view=autoaugment (say) or loss.second_view_weight=null"
        )


def _evaluated(
    config: dict[str, Any], parts: dict[str, Any], trainer: Trainer, directory: Path
) -> dict[str, Any] | None:
    """The record of the evaluation, which all processes share; None where there is none."""
    from advtrain.finish import evaluate_run

    position = trainer.position
    best = f"clean accuracy {position.best_clean:.2%}"
    if trainer.selection.by == "robust":
        best = f"robust accuracy {position.best_robust:.2%} (clean {position.best_clean:.2%})"
    took = f"{position.epoch} epochs in {duration(position.seconds)}"
    console.print(f"trained {took}; best held-out {best} after epoch {position.best_epoch}")
    return evaluate_run(config, parts, directory)


def _conclude(config: dict[str, Any], parts: dict[str, Any], record: dict[str, Any], directory: Path) -> None:
    from advtrain.summary import show

    bundle = export_and_verify(config, parts["export"], record, directory)
    show(record, directory, bundle)
