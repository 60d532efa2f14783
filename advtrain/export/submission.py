"""The issue `[New Model]` of RobustBench's template, filled in, behind a list of what stands in its way."""

from advtrain.export.contents import BOARDS, Contents, Score
from advtrain.export.documents import bullets, loader_notes, method, model_info, to_fill, warnings
from advtrain.export.metadata import TO_FILL

ISSUES = "https://github.com/RobustBench/robustbench/issues"
ARCHITECTURES = "https://github.com/RobustBench/robustbench/tree/master/robustbench/model_zoo/architectures"


def submission(contents: Contents) -> str:
    """submission.md: notes to the author, a line, and the text to paste."""
    return "\n".join([_notes(contents), "---\n", _claims(contents), _boxes(contents)])


def _notes(contents: Contents) -> str:
    obstacles = [*contents.obstacles, *loader_notes(contents)]
    return f"""# Before you submit

{bullets(obstacles or ["Nothing stands in the way of this evaluation."])}
{bullets(f"{TO_FILL}: {item}" for item in to_fill(contents))}

What follows the line is the text of a new issue at {ISSUES}.
"""


def _claims(contents: Contents) -> str:
    info = model_info(contents)
    footnote = f" ({info['footnote']})" if info["footnote"] else ""
    return f"""Title: [New Model] {contents.model_id}

# Paper Information

- **Paper Title**: {info["name"]}
- **Paper URL**: {info["link"]}
- **Paper authors**: {info["authors"]}
- **Venue**: {info["venue"]}

# Leaderboard Claim(s)

## Model 1

- **Architecture**: {info["architecture"]}
- **Dataset**: {contents.dataset}
- **Threat Model**: {contents.threat}
- **eps**: {contents.eps}
- **Clean accuracy**: {_claim(contents, contents.clean)}
- **Robust accuracy**: {_claim(contents, contents.robust)}
- **Additional data**: {"yes" if info["additional_data"] else "no"}{footnote}
- **Evaluation method**: {method(contents.robust)}
- **Checkpoint and code**: {TO_FILL}
- **AutoAttack log**: {_log(contents)}
"""


def _boxes(contents: Contents) -> str:
    mit, known = contents.metadata.license == "MIT", contents.architecture.library is not None
    custom = f"custom license, located here: {'none' if mit else contents.metadata.license}"
    foreign = (
        f"- [{_tick(not known)}] I use an architecture that is **not** included among those [here]({ARCHITECTURES})"
    )
    return f"""# Model Zoo:

- [ ] I want to add my models to the Model Zoo (check if true)
{foreign} (check if true).
- [{_tick(mit)}] I agree to release my model(s) under MIT license (check if true) **OR**
- [{_tick(not mit)}] I want my models to be released under a {custom}
"""


def _tick(holds: bool) -> str:
    return "x" if holds else " "


def _claim(contents: Contents, score: Score) -> str:
    board = BOARDS.get(contents.dataset)
    subset = f"SUBSET of {score.n_examples:,} images, " if board and score.n_examples < board[0] else ""
    attack = f", {score.attack.upper()} and not AutoAttack" if score.attack == "pgd" else ""
    return f"{score.percent} % ({subset}{score.correct:,} of {score.n_examples:,}{attack})"


def _log(contents: Contents) -> str:
    after = (contents.record.get("autoattack") or {}).get("after") or []
    if not after:
        return "none"
    stages = ", ".join(f"{stage['attack']} {stage['correct']}" for stage in after)
    return f"correct after {stages}; warnings: {'; '.join(warnings(contents.record)) or 'none'}"
