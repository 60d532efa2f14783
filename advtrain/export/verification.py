"""Runs a bundle's check where advtrain does not exist."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from advtrain.export import verify_script


class VerificationError(RuntimeError):
    """The bundle does not hold what it says; one line says what."""


class CannotVerify(VerificationError):
    """The bundle needs a package that is not installed here, or its weights or images, which are kept elsewhere."""


@dataclass(frozen=True)
class Verification:
    """What the fresh process found.

    Attributes:
        loader: "robustbench load_model", or "torch" with the reason in brackets.
        architecture: module and name of the class that it built.
        n_examples: images checked.
        clean_correct: correct on the clean images, each prediction as recorded.
        robust_correct: correct on the stored adversarial images, as recorded.
        attack: which made these images.
        attacked: images recorded as robust that were attacked anew.
        broken: those of them that the new attack broke.
        rounding_ties: predictions that differ because two logits tie; only on another machine than the evaluation's.
    """

    loader: str
    architecture: str
    n_examples: int
    clean_correct: int
    robust_correct: int
    attack: str
    attacked: int
    broken: int
    rounding_ties: int

    def __str__(self) -> str:
        return (
            f"{self.loader}, {self.architecture}: clean {self.clean_correct} and {self.attack} {self.robust_correct} "
            f"of {self.n_examples} reproduced without advtrain; {verify_script.ATTACK} broke {self.broken} of "
            f"{self.attacked} images recorded as robust"
        )


def verify_bundle(directory: Path) -> Verification:
    """Checks the bundle in a fresh isolated Python process that finds PyTorch, NumPy, RobustBench and what these need.

    It runs the check of this installation, of which the bundle's verify.py is a copy, so that an edited copy proves
    nothing. The process runs the bundle's architecture.py and zoo_entry.py: verify only bundles that you trust.

    Raises:
        VerificationError: something does not hold.
        CannotVerify: RobustBench, whose class the bundle uses, is not installed, or this copy of the bundle comes
            without its weights or images.
    """
    folder = Path(directory).resolve()
    if not folder.is_dir():
        raise VerificationError(f"expected a bundle, got {directory}, which is not a folder; give <run>/export")
    command = [sys.executable, "-I", "-W", "ignore", str(Path(verify_script.__file__).resolve()), str(folder), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"verification failed: the process ended with {done.returncode}"]
        raise (CannotVerify if done.returncode == verify_script.CANNOT else VerificationError)(lines[-1])
    return Verification(**json.loads(done.stdout.strip().splitlines()[-1]))
