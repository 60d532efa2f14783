"""What only the author of a submission knows: the paper, the extra data, the licence; and what the bundle is for."""

import re
from dataclasses import dataclass

from advtrain import checks
from advtrain.types import SettingError

TO_FILL = "to be filled by the author"
TARGETS = ("auto", "leaderboard", "archive")
STATEMENT_WORDS = 8  # fewer explain no failed check

# RobustBench's load_model treats names with these words specially: other files, other keys or no weights at all.
_SPECIAL = ("Standard", "Kireev2021Effectiveness", "Andriushchenko2020Understanding", "Bai2023Improving", "MixedNUTS")
_REMEDY = {
    "link": "give the paper's address, such as https://arxiv.org/abs/2305.13948",
    "venue": "end it in the year, such as NeurIPS 2024",
    "model_id": "use letters, digits, '_', '-' and '.', such as Cui2023Decoupled_WRN-34-10",
}
_PATTERN = {"link": r"https?://\S+", "venue": r"(.+ )?\d{4}", "model_id": r"[A-Za-z][A-Za-z0-9_.-]*"}


@dataclass(frozen=True)
class ExportMetadata:
    """The fields of a RobustBench submission that no run can know. A null one is listed as to be filled in.

    Attributes:
        target: leaderboard refuses what RobustBench would refuse; archive writes a verified bundle without the papers
            of a submission; auto is leaderboard where nothing stands in the way, else archive.
        model_id: FirstAuthorYearFirstWord[_variant]; null makes it from the fields below and the architecture.
        paper_title: of the paper.
        link: its address.
        authors: comma-separated, the first author first.
        venue: conference or archive; its last word is the year.
        additional_data: whether extra real images were used; synthetic ones alone are a footnote.
        footnote: a sentence for the leaderboard.
        number_forward_passes: of the network per prediction.
        license: of the weights; the zoo's default is MIT.
        masking_statement: why an evaluation whose masking checks failed can be believed all the same; it lets such a
            model pass and is printed wherever the number is.
    """

    target: str = "auto"
    model_id: str | None = None
    paper_title: str | None = None
    link: str | None = None
    authors: str | None = None
    venue: str | None = None
    additional_data: bool = False
    footnote: str | None = None
    number_forward_passes: int = 1
    license: str = "MIT"
    masking_statement: str | None = None

    def __post_init__(self) -> None:
        checks.choice("export.target", self.target, TARGETS)
        for name, pattern in _PATTERN.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                raise SettingError(f"export.{name}: expected {pattern}, got {value!r}; {_REMEDY[name]}")
        special = [word for word in _SPECIAL if word in (self.model_id or "")]
        if special:
            raise SettingError(
                f"export.model_id: expected a name without {special[0]}, got {self.model_id}; RobustBench's loader "
                "treats it specially: choose another"
            )
        checks.flag("export.additional_data", self.additional_data)
        checks.integer("export.number_forward_passes", self.number_forward_passes, low=1)
        if not self.license:
            raise SettingError(f"export.license: expected a licence, got {self.license!r}; MIT is the zoo's default")
        if self.masking_statement is not None and len(self.masking_statement.split()) < STATEMENT_WORDS:
            raise SettingError(
                f"export.masking_statement: expected {STATEMENT_WORDS} words or more, got {self.masking_statement!r}; "
                "say which check failed and why the robust accuracy holds all the same"
            )


def model_id(metadata: ExportMetadata, architecture: str) -> str:
    """The key of the zoo entry: as given, or FirstAuthorYearFirstWord_variant with words for what is not known."""
    if metadata.model_id is not None:
        return metadata.model_id
    author = (metadata.authors or "Author").split(",")[0].split()[-1]
    year = metadata.venue.split()[-1] if metadata.venue else "Year"
    word = (metadata.paper_title or "Title").split()[0]
    variant = re.sub(r"[^A-Za-z0-9_.-]", "", architecture.replace("WideResNet", "WRN"))
    return "".join(re.sub(r"[^A-Za-z0-9-]", "", part) for part in (author, year, word)) + f"_{variant}"
