"""The bundle for RobustBench's leaderboard, and its verification in a process that has no advtrain.

    bundle = export_bundle(model, model_target="advtrain.models.WideResNet", ..., directory=Path("runs/mine/export"))
    print(verify_bundle(bundle.directory))

- `export_bundle` → `Bundle`: weights, model_info, zoo entry, submission text, model card, proof and sums in a folder.
- `verify_bundle` → `Verification`, or `VerificationError` with one line.
- `ExportMetadata`: what only the author knows; configs/export has the same keys.
"""

from advtrain.export.bundle import Bundle, export_bundle
from advtrain.export.metadata import ExportMetadata
from advtrain.export.verification import Verification, VerificationError, verify_bundle

__all__ = ["Bundle", "ExportMetadata", "Verification", "VerificationError", "export_bundle", "verify_bundle"]
