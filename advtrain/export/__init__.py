"""The bundle for RobustBench's leaderboard, and its verification in a process that has no advtrain.

    trained = Trained(model, "advtrain.models.WideResNet", {"depth": 34}, dataset="cifar10", recipe=config)
    evaluated = Evaluated(record, Path("runs/mine/adversarial.npz"), eps="8/255")
    bundle = export_bundle(trained, evaluated, ExportMetadata(), Path("runs/mine/export"))
    print(verify_bundle(bundle.directory))

- `export_bundle` → `Bundle`: weights, model_info, zoo entry, submission text, model card, proof and sums in a folder;
  or an archive, which lacks the papers of a submission, where the leaderboard would refuse the evaluation.
- `verify_bundle` → `Verification`, or `VerificationError` with one line; `CannotVerify` where a package is missing, or
  the weights are.
- `ExportMetadata`: what only the author knows; configs/export has the same keys.
- `read_recipe`: the configuration and the training facts of a bundle's recipe.yaml.
- `portable_command`: a command without the folders of one machine.
"""

from advtrain.export.bundle import Bundle, export_bundle
from advtrain.export.contents import Evaluated, Trained
from advtrain.export.metadata import ExportMetadata
from advtrain.export.recipe import portable_command, read_recipe
from advtrain.export.verification import CannotVerify, Verification, VerificationError, verify_bundle

__all__ = [
    "Bundle",
    "CannotVerify",
    "Evaluated",
    "ExportMetadata",
    "Trained",
    "Verification",
    "VerificationError",
    "export_bundle",
    "portable_command",
    "read_recipe",
    "verify_bundle",
]
