"""Messages about a teacher in the words of its own settings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from advtrain.types import SettingError

# How others call what a teacher has under names of its own; and a remedy that is none for a teacher.
OTHER_WORDS = (
    (r"; add model\.new_head=true for a new last layer", "; give weights for the classes of the data"),
    (r"^model: |\bmodel\.name: ", "teacher.source: "),
    (r"\bmodel\.(weights|mean|std)\b", r"teacher.\1"),
    (r"(?<![.\w])(download|trust|model_dir)(?==true|:)", r"teacher.\1"),
)


@contextmanager
def own_words() -> Iterator[None]:
    """Whatever `SettingError` comes out names the settings as a teacher has them."""
    try:
        yield
    except SettingError as error:
        text = str(error)
        for other, own in OTHER_WORDS:
            text = re.sub(other, own, text)
        raise SettingError(text) from error
