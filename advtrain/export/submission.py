"""The issue `[New Model]` of RobustBench's template, filled in; or why a bundle is no submission."""

from advtrain.export import leaderboard
from advtrain.export.contents import Contents
from advtrain.export.documents import attack_log, bullets, footnote, interval, loader_notes, method, to_fill
from advtrain.export.leaderboard import Score
from advtrain.export.metadata import TO_FILL

ISSUES = "https://github.com/RobustBench/robustbench/issues"
ARCHITECTURES = "https://github.com/RobustBench/robustbench/tree/master/robustbench/model_zoo/architectures"


def submission(contents: Contents) -> str:
    """submission.md: notes to the author, a line, and the text to paste."""
    return "\n".join([_notes(contents), "---\n", _claims(contents), _boxes(contents)])


def not_a_submission(contents: Contents) -> str:
    """NOT_A_SUBMISSION.md: what the leaderboard would refuse, and what the folder is all the same."""
    obstacles = contents.obstacles or ["Nothing would stand in the way; export.target=archive asked for an archive."]
    return f"""# Not a submission

The RobustBench leaderboard would not take {contents.model_id} as it was evaluated, so this folder holds no issue text
and no zoo entry:

{bullets(obstacles)}

It is a verified archive all the same: weights, recipe, record and adversarial images, which `python verify.py` checks.
In model_info, left to the author:

{bullets(f"{TO_FILL}: {item}" for item in to_fill(contents))}
"""


def _notes(contents: Contents) -> str:
    notes = ["Nothing stands in the way of this evaluation.", *loader_notes(contents)]
    metadata = contents.metadata
    if leaderboard.overridden(contents.record, metadata.masking_statement):
        failed = ", ".join(leaderboard.failed_checks(contents.record)) or "none by name"
        notes[0] = f"Masking checks failed ({failed}). You state: {metadata.masking_statement}"
    return f"""# Before you submit

{bullets(notes)}
{bullets(f"{TO_FILL}: {item}" for item in to_fill(contents))}

What follows the line is the text of a new issue at {ISSUES}.
The pull request that may go with it takes model_info/, models/ (uploaded), zoo_entry.py{
        " and architecture.py" if contents.architecture.carries_source else ""
    }.
"""


def _claims(contents: Contents) -> str:
    metadata, note = contents.metadata, footnote(contents)
    return f"""Title: [New Model] {contents.model_id}

# Paper Information

- **Paper Title**: {metadata.paper_title or TO_FILL}
- **Paper URL**: {metadata.link or TO_FILL}
- **Paper authors**: {metadata.authors or TO_FILL}
- **Venue**: {metadata.venue or TO_FILL}

# Leaderboard Claim(s)

## Model 1

- **Architecture**: {contents.architecture.name}
- **Dataset**: {contents.dataset}
- **Threat Model**: {contents.threat}
- **eps**: {contents.eps}
- **Clean accuracy**: {_claim(contents.clean)}
- **Robust accuracy**: {_claim(contents.robust)}
- **Additional data**: {"yes" if metadata.additional_data else "no"}{f" ({note})" if note else ""}
- **Evaluation method**: {method(contents)}
- **Checkpoint and code**: {TO_FILL}
- **AutoAttack log**: {attack_log(contents)}
"""


def _boxes(contents: Contents) -> str:
    mit, known = contents.metadata.license == "MIT", not contents.architecture.carries_source
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


def _claim(score: Score) -> str:
    between = f", 95 % interval {interval(score)}" if score.interval else ""
    return f"{score.percent} % ({score.correct:,} of {score.n_examples:,}{between})"
