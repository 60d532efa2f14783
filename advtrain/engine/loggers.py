"""Where metrics go: always metrics.jsonl, and Weights & Biases or TensorBoard when asked."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from advtrain import checks
from advtrain.engine.checkpoints import write_text
from advtrain.types import SettingError


class Logger(Protocol):
    def start(self, directory: Path, config: dict[str, Any]) -> None:
        """Called once by the main process before training."""
        ...

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Called with each record, at a step counted over the whole run."""
        ...

    def finish(self) -> None: ...


class NoLogger:
    """Nothing beyond metrics.jsonl."""

    def start(self, directory: Path, config: dict[str, Any]) -> None:
        pass

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandB:
    """Weights & Biases, in the run's own folder. A resumed run continues the same W&B run.

    Args:
        project: W&B project.
        entity: W&B team or user; the account's default when null.
        mode: online, offline, disabled, or auto: online with an API key, offline without.
    """

    def __init__(self, *, project: str = "advtrain", entity: str | None = None, mode: str = "auto") -> None:
        self.project, self.entity = project, entity
        self.mode = checks.choice("logger.mode", mode, ("auto", "online", "offline", "disabled"))

    def start(self, directory: Path, config: dict[str, Any]) -> None:
        import wandb

        has_key = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_wandb()
        mode = ("online" if has_key else "offline") if self.mode == "auto" else self.mode
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,  # pyright: ignore[reportArgumentType]
            name=directory.name,
            id=directory.name.replace("/", "-")[-128:],
            resume="allow",
            dir=directory,
            config=config,
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def finish(self) -> None:
        self._run.finish()


class TensorBoard:
    """Event files in runs/<name>/tensorboard."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(
                "logger=tensorboard: expected the package tensorboard, got none; pip install tensorboard"
            ) from error
        self._writer_class = SummaryWriter

    def start(self, directory: Path, config: dict[str, Any]) -> None:
        self._writer = self._writer_class(str(directory / "tensorboard"))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class MetricsFile:
    """metrics.jsonl: one JSON object per record, flushed as it is written.

    Args:
        path: of the file.
        resume_step: records after this step are dropped first: they belong to steps that will be taken again.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= resume_step]
        write_text(path, "".join(line + "\n" for line in kept))

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All that was logged, by earlier sessions of the run too."""
        return read_metrics(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; none when there is no such file."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[str]:
    """The file's lines without a last one that a kill cut short."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _netrc_has_wandb() -> bool:
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return file.is_file() and "api.wandb.ai" in file.read_text(errors="ignore")
