"""What a run's configuration says of its teacher."""

from dataclasses import dataclass

from advtrain import checks
from advtrain.losses import Loss
from advtrain.sources import ZOO_PREFIX
from advtrain.types import SettingError

TORCHVISION, TIMM, OURS = "torchvision:", "timm:", "model:"
PREFIXES = (ZOO_PREFIX, TORCHVISION, TIMM, OURS)
NAMES = ", ".join(f"{prefix}NAME" for prefix in PREFIXES)


@dataclass(frozen=True)
class TeacherSettings:
    """Whom a loss that distils learns from; see configs/teacher/default.yaml.

    Attributes:
        source: run directory, checkpoint, bundle, robustbench:NAME, torchvision:NAME, timm:NAME or model:NAME.
        checkpoint: of a run directory: best or last.
        weights: path of a state dict for torchvision:, timm: and model:.
        mean, std: per channel, what a network with such weights expects its images to be standardised by.
        download: whether weights may be fetched.
        model_dir: of robustbench:.
        trust: whether a stored configuration may name classes that are not ours.
        n_examples: held-out images on which the accuracy is checked.
        logits: path of a .npy file with what it says of the training images; see `advtrain.engine.stored_logits`.
    """

    source: str | None = None
    checkpoint: str = "best"
    weights: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    download: bool = False
    model_dir: str = "models"
    trust: bool = False
    n_examples: int = 512
    logits: str | None = None

    def __post_init__(self) -> None:
        checks.choice("teacher.checkpoint", self.checkpoint, ("best", "last"))
        checks.integer("teacher.n_examples", self.n_examples, low=1)

    @property
    def prefix(self) -> str:
        """Which kind of source it is; empty for a path."""
        return next((prefix for prefix in PREFIXES if str(self.source).startswith(prefix)), "")

    @property
    def name(self) -> str:
        """The source without its prefix."""
        return str(self.source).removeprefix(self.prefix)


def check_teacher(settings: TeacherSettings, loss: Loss) -> None:
    """Confirms that a loss has a teacher exactly where it needs one.

    Raises:
        SettingError: it has not.
    """
    name = type(loss).__name__
    if loss.needs_teacher and settings.source is None:
        raise SettingError(
            f"teacher.source: expected a trained network, which loss {name} holds its student to, got none; add "
            f"teacher.source=RUN (a run directory, a checkpoint or a bundle) or {NAMES}"
        )
    if settings.source is not None and not loss.needs_teacher:
        raise SettingError(
            f"teacher.source={settings.source} with loss {name}: expected a loss that holds a teacher; "
            "choose loss=kd (say) or teacher.source=null"
        )
    if settings.weights is not None and settings.source is None:
        raise SettingError(
            f"teacher.weights={settings.weights}: expected the network that they are of, got no teacher.source; "
            "add teacher.source=model:resnet56 (say), or choose teacher.weights=null"
        )
