"""The commands `advtrain`, `advtrain-eval` and `advtrain-export`: read the command line, compose, call.

A setting that cannot be used ends the command with one line on standard error and exit code 2, before any model is
built. A run that a signal stopped ends with 130 or 143 and continues when the same command is given again.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from advtrain import __version__, launchers
from advtrain.composition import (
    compose,
    compose_chosen,
    overrides_of,
    own_config_folder,
    plain,
    sweep_points,
    with_default_experiment,
)
from advtrain.config import config_dir
from advtrain.help import page
from advtrain.types import FileError, SettingError

ERROR = "advtrain: error: "


def reported(command: Callable[[], None]) -> Callable[[], NoReturn]:
    """Turns what goes wrong in a command into an exit code and one line."""

    @functools.wraps(command)
    def wrapper() -> NoReturn:
        try:
            command()
        except SettingError as error:
            _fail(error, 2)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        sys.exit(0)

    return wrapper


@reported
def train() -> None:
    """`advtrain`: train, evaluate, export, verify."""
    arguments = _start("train", sys.argv[1:])
    arguments = with_default_experiment(arguments)
    overrides, own_folder = overrides_of(arguments), own_config_folder(arguments)
    sweeping = bool({"-m", "--multirun"} & set(arguments))

    if {"--cfg", "-c"} & set(arguments):
        _print_config(compose("train", overrides, own_folder))
        return
    launcher = _launcher(overrides)
    launchers.check_launcher(launcher, sweeping=sweeping)
    _check_points(sweep_points(overrides) if sweeping else [overrides], own_folder, elsewhere=launcher != "basic")
    with _jobs(launcher):
        _hydra_main("train", arguments, lambda config, hydra: _runs().train_run(config, _name(config, hydra)))


@reported
def evaluate() -> None:
    """`advtrain-eval`: evaluate a run, a checkpoint, a bundle or a model of RobustBench's zoo, or re-check images."""
    arguments = _start("eval", sys.argv[1:])
    arguments = [_source(word, first=i == 0) for i, word in enumerate(arguments)]
    compose("eval", overrides_of(arguments), own_config_folder(arguments))
    _hydra_main("eval", arguments, lambda config, hydra: _evaluation(config))


@reported
def export() -> None:
    """`advtrain-export`: write or verify a bundle."""
    arguments = _start("export", sys.argv[1:])
    if arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
        arguments[0] = f"run={_quoted(arguments[0])}"
    compose("export", overrides_of(arguments), own_config_folder(arguments))
    _hydra_main("export", arguments, lambda config, hydra: _publish().export_run(config))


def _start(command: str, arguments: Sequence[str]) -> list[str]:
    """Answers --help and --version, refuses words that are neither flags nor overrides."""
    launchers.adopt()
    if {"-h", "--help"} & set(arguments):
        print(page(command))
        sys.exit(0)
    if "--version" in arguments:
        print(f"advtrain {__version__}")
        sys.exit(0)
    takes_value = {"--config-dir", "-cd", "--cfg", "-c", "--package", "-p"}
    for i, word in enumerate(arguments):
        follows_flag = i > 0 and arguments[i - 1] in takes_value
        is_path = i == 0 and command != "train"
        if "=" not in word and not word.startswith(("-", "~")) and not follows_flag and not is_path:
            raise SettingError(f"expected key=value, got {word!r}; see --help")
    return list(arguments)


def _hydra_main(command: str, arguments: Sequence[str], job: Callable[[dict[str, Any], Any], None]) -> None:
    """Hands over to Hydra, which knows about sweeps, launchers and --cfg, and calls `job` with plain containers."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    # Hydra wants all overrides in one stretch.
    overrides = overrides_of(arguments)
    command_line = [sys.argv[0], *(word for word in arguments if word not in overrides), *overrides]

    def task(config: DictConfig) -> None:
        sys.argv = command_line  # which a run records; the process of a launcher's job has another one
        _find_own_classes()
        try:
            launchers.adopt()
            hydra_config = HydraConfig.get()
            task_overrides, chosen = list(hydra_config.overrides.task), dict(hydra_config.runtime.choices)
            job(plain(config, task_overrides, chosen, own_config_folder(arguments)), hydra_config)
        except FileError as error:
            _fail(error, 2, every_process=True)
        except SettingError as error:
            _fail(error, 2)
        except Exception as error:
            _fail_known(error)

    sys.argv = command_line
    _find_own_classes()
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()


def _find_own_classes() -> None:
    """Lets a config name classes that lie in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _launcher(overrides: Sequence[str]) -> str:
    """Hydra's launcher, which starts the points of a sweep: `basic`, here and in turn, unless another one is chosen."""
    chosen = [value for key, _, value in (word.partition("=") for word in overrides) if key == "hydra/launcher"]
    return chosen[-1] if chosen else "basic"


def _check_points(points: Sequence[Sequence[str]], own_folder: Path | None, *, elsewhere: bool) -> None:
    """Checks every point of a sweep before the first one starts, and that no two write into one run directory.

    Args:
        points: their overrides.
        own_folder: of the user's own YAML files.
        elsewhere: whether they run on other machines, whose GPUs are not those of this one.
    """
    from advtrain.engine.run_directory import run_name

    names = set()
    for point in points:
        config, chosen = compose_chosen("train", point, own_folder)
        own = [word for word in point if not word.startswith("hydra")]
        name = config["name"] or run_name(own, chosen, config["seed"])
        _runs().check_training(config, elsewhere=elsewhere, directory=Path(config["run_root"]) / name)
        if name in names:
            raise SettingError(
                f"name: expected a run directory of its own for each point of a sweep, got {name} for two of them; "
                "leave name out, or sweep over what a run's name is made of"
            )
        names.add(name)


@contextmanager
def _jobs(launcher: str) -> Iterator[None]:
    """Ends a sweep whose points are jobs of submitit as a run ends: with one line, and not with 0 if a point failed."""
    if not launcher.startswith("submitit"):
        yield
        return
    from submitit.core.utils import UncompletedJobError

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra lets the exception through
    os.environ.setdefault("SLURM_KILL_BAD_EXIT", "1")  # for the jobs' srun: no task waits for one that failed
    try:
        yield
    except UncompletedJobError as error:
        lines = str(error).splitlines()
        reasons = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)] or lines[:1]
        _fail(f"a point of the sweep failed: {reasons[-1]} (other points go on; the logs are in .sweep/.submitit)", 1)
    except KeyboardInterrupt:
        _fail("interrupted; jobs that were submitted go on (squeue --me)", 130)


def _fail_known(error: Exception) -> NoReturn:
    """One line for what a run can end with; anything else is a defect and keeps its traceback."""
    from advtrain.engine import Diverged, Interrupted
    from advtrain.evaluation import EvaluationError
    from advtrain.export import VerificationError

    if isinstance(error, Interrupted):
        _fail(f"stopped by {error}; {error.left}", error.exit_code)
    if isinstance(error, Diverged | EvaluationError | VerificationError):
        _fail(error, 1)
    raise error


def _fail(message: object, code: int, *, every_process: bool = False) -> NoReturn:
    if every_process or os.environ.get("RANK", "0") == "0":
        print(f"{ERROR}{message}", file=sys.stderr)
    sys.exit(code)


def _print_config(config: dict[str, Any]) -> None:
    import yaml

    print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")


def _name(config: dict[str, Any], hydra: Any) -> str:
    from advtrain.engine.run_directory import run_name

    return config["name"] or run_name(list(hydra.overrides.task), dict(hydra.runtime.choices), config["seed"])


def _source(word: str, first: bool) -> str:
    """`model=WHAT`, or a first bare WHAT, as `source=WHAT`: to Hydra, `model` is the group of architectures."""
    key, separator, value = word.partition("=")
    if separator and key == "model":
        return f"source={_quoted(value.strip(chr(39)))}"
    return f"source={_quoted(word)}" if first and not separator and not word.startswith("-") else word


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "\\'") + "'"


def _runs() -> Any:
    from advtrain import runs  # heavy: PyTorch and all parts

    return runs


def _evaluation(config: dict[str, Any]) -> None:
    if config["verify"] is None:
        _finish().evaluation_run(config)
        return
    from advtrain.confirm import confirm

    confirm(config)


def _finish() -> Any:
    from advtrain import finish

    return finish


def _publish() -> Any:
    from advtrain import publish

    return publish


if __name__ == "__main__":
    train()
