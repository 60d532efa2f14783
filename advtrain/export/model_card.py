"""The bundle's README.md: what the model is, how good, how that is known, and what it does not say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advtrain.export.contents import Contents
from advtrain.export.documents import bullets, loader_notes, method, warnings


def model_card(contents: Contents) -> str:
    """README.md of a bundle."""
    return "\n".join([_results(contents), _use(contents), _evidence(contents), _limitations(contents)])


def _results(contents: Contents) -> str:
    rows = [
        f"| {name} | {score.percent} % | {score.correct:,} of {score.n_examples:,} |"
        for name, score in contents.scores.items()
    ]
    table = "\n".join(["| attack | accuracy | images |", "|---|---:|---:|", *rows])
    return f"""# {contents.model_id}

{contents.architecture.name} for {contents.dataset}, evaluated at {contents.threat} ε = {contents.eps}.
Images in [0, 1], shape (n, channels, height, width); logits out; any normalisation is inside.

{table}
"""


def _use(contents: Contents) -> str:
    architecture = contents.architecture
    arguments = ", ".join(f"{name}={value!r}" for name, value in architecture.arguments.items())
    return f"""## Check it

`python verify.py` repeats the clean predictions and the robust count from the stored adversarial images, with
RobustBench's loader where it is installed and fits; `sha256sum -c SHA256SUMS` checks the files.

## Load it

In this folder:

```python
import torch
from architecture import {architecture.build}

model = {architecture.build}({arguments})
model.load_state_dict(torch.load("{contents.weights_path}", weights_only=True)["state_dict"])
model.eval()
```
"""


def _evidence(contents: Contents) -> str:
    record = contents.record
    settings = {name: dict(score.settings) for name, score in contents.scores.items()}
    made_with = [f"{name}: {value}" for name, value in (record["hardware"] | record["versions"]).items() if value]
    doubts = [f"AutoAttack's warning: {line}" for line in warnings(record)]
    return f"""## Recipe

{_json(_portable(contents.recipe)) if contents.recipe else "Not recorded."}

## Evaluation

{method(contents.robust)}, with the settings

{_json(settings)}

{bullets([*made_with, *doubts])}
"""


def _limitations(contents: Contents) -> str:
    always = [
        "Robust accuracy is an upper bound: a stronger attack can only lower it.",
        f"It says nothing about other threats than {contents.threat} at ε = {contents.eps}.",
    ]
    return f"""## Limitations

{bullets([*contents.obstacles, *loader_notes(contents), *always])}

Licence of the weights: {contents.metadata.license}.
"""


def _portable(setting: Any) -> Any:
    """The same settings without the folders of one machine: of an absolute path, its last part."""
    if isinstance(setting, Mapping):
        return {name: _portable(value) for name, value in setting.items()}
    if isinstance(setting, list | tuple):
        return [_portable(value) for value in setting]
    return Path(setting).name if isinstance(setting, str) and Path(setting).is_absolute() else setting


def _json(content: Any) -> str:
    return f"```json\n{json.dumps(content, indent=2, ensure_ascii=False, default=str)}\n```"
