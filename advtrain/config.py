"""The settings that our own code reads, typed; where the YAML files are; and the one caller of Hydra's instantiate.

Whatever only travels into a constructor has no class here: its YAML names the class (`_target_`) and the constructor
checks the numbers. Importing this file is cheap; Hydra is imported when something is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from advtrain import checks
from advtrain.types import SettingError

T = TypeVar("T")

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp64")
COMPILE = ("off", "model", "step", "auto")
SHARDING = ("none", "fsdp")


@dataclass(frozen=True)
class ValidationSettings:
    """How checkpoints are chosen: by an attack that training does not use, on the held-out part of the training set.

    The attack follows from that of the training, see `advtrain.engine.validation.selection_attack`; its size is here.

    Attributes:
        select: the accuracy that counts, robust or clean (no attack is run); what the loss is for when null.
        every: epochs between validations; the last epoch is always validated.
        steps: of each start.
        restarts: random starts; the first towards the nearest wrong class, each further one towards the next.
        n_examples: held-out images used, all of them when null.
        batch_size: images per pass.
    """

    select: str | None = None
    every: int = 1
    steps: int = 10
    restarts: int = 2
    n_examples: int | None = 1000
    batch_size: int = 500

    def __post_init__(self) -> None:
        if self.select is not None:
            checks.choice("trainer.validation.select", self.select, ("robust", "clean"))
        for name in ("every", "steps", "restarts", "batch_size"):
            checks.integer(f"trainer.validation.{name}", getattr(self, name), low=1)
        if self.n_examples is not None:
            checks.integer("trainer.validation.n_examples", self.n_examples, low=1)


@dataclass(frozen=True)
class TrainerSettings:
    """How training runs, whatever is trained.

    Attributes:
        epochs: passes over the training set.
        batch_size: images per optimiser step, over all processes; auto for the largest that fits in memory.
        accumulation: passes that each process splits its part of a batch into; the step stays that of the large batch.
        replay_epochs: R; epoch e shows the images of epoch 1 + (e - 1) mod R again, augmented alike. Null: new ones.
        precision: auto (bf16 on GPUs that have it, fp32 elsewhere), fp32, tf32 (fp32 whose matrix products and
            convolutions round their inputs to 10 bits, on GPUs), bf16 (autocast) or fp64.
        compile: off, model (forward passes by torch.compile), step (each attack step, forward and backward, as one
            graph) or auto (whichever a measurement at the start finds fastest).
        cuda_graph: whether the attack's steps are replayed as one CUDA graph; null leaves it to compile=auto.
        activation_checkpointing: whether blocks of the model forget their activations and compute them again, in
            attacks, too; not with compile=step or a CUDA graph.
        sharding: none, or fsdp: every process holds a part of each weight, its gradient and the optimiser's state.
        channels_last: memory layout of model and images; null chooses it for 3-channel images.
        clip_norm: largest gradient norm, null for no clipping.
        attack_batchnorm: eval or train: the BatchNorm mode while the attack runs.
        sync_batchnorm: BatchNorm statistics over all processes.
        deterministic: only algorithms that give the same bits twice (slower on GPUs).
        device: auto, cpu or cuda.
        threads: CPU threads, null for PyTorch's choice.
        log_every: optimiser steps between logged lines.
        save_every: epochs between checkpoints; the last epoch is always saved.
        validation: how checkpoints are chosen.
    """

    epochs: int = 100
    batch_size: int | str = 128
    accumulation: int = 1
    replay_epochs: int | None = None
    precision: str = "auto"
    compile: str = "off"
    cuda_graph: bool | None = None
    activation_checkpointing: bool = False
    sharding: str = "none"
    channels_last: bool | None = None
    clip_norm: float | None = None
    attack_batchnorm: str = "eval"
    sync_batchnorm: bool = False
    deterministic: bool = False
    device: str = "auto"
    threads: int | None = None
    log_every: int = 50
    save_every: int = 1
    validation: ValidationSettings = field(default_factory=ValidationSettings)

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulation", "log_every", "save_every"):
            checks.integer(f"trainer.{name}", getattr(self, name), low=1)
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            expected = "an integer of at least 1, or auto"
            raise SettingError(f"trainer.batch_size: expected {expected}, got {self.batch_size!r}; give one of the two")
        if self.batch_size != "auto":
            checks.integer("trainer.batch_size", self.batch_size, low=1)
        if self.replay_epochs is not None:
            checks.integer("trainer.replay_epochs", self.replay_epochs, low=1)
        checks.choice("trainer.precision", self.precision, PRECISIONS)
        checks.choice("trainer.compile", self.compile, COMPILE)
        checks.choice("trainer.sharding", self.sharding, SHARDING)
        checks.choice("trainer.attack_batchnorm", self.attack_batchnorm, ("eval", "train"))
        checks.choice("trainer.device", self.device, ("auto", "cpu", "cuda"))
        if self.clip_norm is not None:
            checks.number("trainer.clip_norm", self.clip_norm, above=0)
        if self.threads is not None:
            checks.integer("trainer.threads", self.threads, low=1)
        if self.activation_checkpointing and (self.compile == "step" or self.cuda_graph):
            got = "compile=step" if self.compile == "step" else "cuda_graph=true"
            raise SettingError(
                f"trainer.activation_checkpointing=true with trainer.{got}: expected compile=off or model and no CUDA "
                "graph, since an attack step that is one graph keeps its activations; choose trainer.compile=model "
                "trainer.cuda_graph=false, or trainer.activation_checkpointing=false"
            )

        if self.sharding != "none":
            self._check_sharding()

    def _check_sharding(self) -> None:
        """Whether the other choices go together with weights that are spread over the processes."""
        unproven = "compiled graphs of weights that come and go are not shown to work"
        bound = "a graph is bound to addresses"
        clashes = (
            (self.compile != "off", f"compile={self.compile}", f"off, since {unproven}", "compile=off"),
            (self.cuda_graph, "cuda_graph=true", f"false, since {bound} and weights move", "cuda_graph=false"),
            (self.batch_size == "auto", "batch_size=auto", "a number, since processes search alone", "batch_size=128"),
        )
        for chosen, choice, expected, remedy in clashes:
            if chosen:
                raise SettingError(
                    f"trainer.{choice} with trainer.sharding={self.sharding}: expected {expected}; "
                    f"choose trainer.{remedy} or trainer.sharding=none"
                )

    @property
    def images_per_step(self) -> int:
        """`batch_size` as a number, which with "auto" somebody has to find first."""
        assert isinstance(self.batch_size, int), "batch_size=auto is resolved before training starts"
        return self.batch_size


@dataclass(frozen=True)
class ThreatSettings:
    """The threat model that validation, evaluation and the bundle are about; attacks take it as their default.

    Attributes:
        norm: linf, l2 or l1.
        eps: radius in units of pixels in [0, 1]; fractions such as 8/255 parse.
    """

    norm: str = "linf"
    eps: str = "8/255"

    def __post_init__(self) -> None:
        checks.choice("threat.norm", self.norm, ("linf", "l2", "l1"))
        checks.radius("threat.eps", self.eps, self.norm)

    @property
    def radius(self) -> float:
        return checks.radius("threat.eps", self.eps, self.norm)


def config_dir() -> Path:
    """The folder of the YAML files: inside the package in a wheel, beside it in a checkout or an editable install.

    Raises:
        SettingError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise SettingError(f"expected the configs folder in or beside {package}, got neither; reinstall advtrain")


def typed(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of a settings dataclass from plain values, nested ones too.

    Args:
        cls: the dataclass; its `__post_init__` checks ranges.
        values: by field name.
        where: the dotted place of the values in the configuration, for messages.

    Raises:
        SettingError: a key is unknown or missing, or a value has the wrong type or range.
    """
    hints = get_type_hints(cls)
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise SettingError(unknown_key(where, unknown[0], list(hints)))
    for known in fields(cast(Any, cls)):
        if known.name not in values and known.default is MISSING and known.default_factory is MISSING:
            raise SettingError(f"{where}.{known.name}: expected a value, got none; add it")
    return cls(**{key: _typed_value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _typed_value(hint: Any, value: Any, name: str) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    if value is None and type(None) in kinds:
        return None
    if str in kinds and int in kinds:
        return value if isinstance(value, str) else checks.integer(name, value)
    kind: Any = next(kind for kind in kinds if kind is not type(None))
    if is_dataclass(kind) and isinstance(value, Mapping):
        return typed(cast(type, kind), value, name)
    if get_origin(kind) is list and isinstance(value, list | tuple):
        return [_typed_value(get_args(kind)[0], item, name) for item in value]
    if kind is str and isinstance(value, bool):  # how YAML 1.1 reads the words off and on without quotes
        return "on" if value else "off"
    if kind is str and isinstance(value, str | int | float):
        return str(value)
    converters: dict[Any, Callable[[str, Any], Any]] = {bool: checks.flag, int: checks.integer, float: checks.number}
    if kind not in converters:
        raise SettingError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r}; see --help")
    return converters[kind](name, value)


def unknown_key(where: str, key: str, valid: Sequence[str]) -> str:
    """The line for a key that does not exist: what does, and the nearest."""
    near = get_close_matches(key, valid, n=1)
    prefix = f"{where}." if where else ""
    remedy = f"did you mean {prefix}{near[0]}?" if near else "see --help"
    return f"{prefix}{key}: expected one of {', '.join(sorted(valid))}, got {key!r}; {remedy}"


OUR_TARGETS = ("advtrain.",)
# Settings of our models that say how training starts and runs, not what the network is; with the values of neither.
START_SETTINGS = {"pretrained": False, "weights": None, "new_head": False, "gradient_checkpointing": False}


def build(config: Mapping[str, Any], *, trusted: bool = True) -> Any:
    """Makes the object that a plain config describes by `_target_` and the constructor's arguments.

    Args:
        config: `_target_` and keyword arguments; plain containers, no OmegaConf.
        trusted: whether the config comes from the user's own command line. One that came out of a checkpoint does
            not, and may only name our own classes.

    Raises:
        SettingError: an argument is unknown or out of range, or the class is not allowed or not found.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = str(config.get("_target_"))
    for named in _targets(config):
        if not trusted and not named.startswith(OUR_TARGETS):
            raise SettingError(
                f"expected a class of advtrain in the stored config, got {named}; building it would run foreign code: "
                "add trust=true if you trust the file"
            )
    try:
        return instantiate(dict(config), _convert_="all")
    except InstantiationException as error:
        raise _setting_error(target, error) from error


def architecture_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model whose weights come from elsewhere: nothing is read, downloaded or recomputed for it."""
    ours = str(model.get("_target_")).startswith(OUR_TARGETS)
    return {key: START_SETTINGS.get(key, value) if ours else value for key, value in model.items()}


def _targets(config: Any) -> list[str]:
    """Every class that building `config` would call, nested ones included."""
    if isinstance(config, Mapping):
        own = [str(config["_target_"])] if "_target_" in config else []
        return own + [name for value in config.values() for name in _targets(value)]
    if isinstance(config, list | tuple):
        return [name for value in config for name in _targets(value)]
    return []


def _setting_error(target: str, error: Exception) -> SettingError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SettingError):
            return cause
        cause = cause.__cause__ or cause.__context__
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    remedy = "" if "expected" in lines[0] else "; see its docstring for the arguments it takes"
    return SettingError(f"{target}: {lines[0]}{remedy}")
