"""docs/performance.md: tables and pictures of what the benchmarks recorded; `python scripts/performance_page.py`.

The page is written by people but for the blocks between

    <!-- NAME: written by scripts/performance_page.py -->
    <!-- end of NAME -->

which come from records. What has no record yet is said to have none, with the command that makes it.
"""

import re
from pathlib import Path

from benchmarks.page import gpu, pictures, tables
from benchmarks.page.records import Records

PAGE = Path("docs") / "performance.md"
BLOCKS = {
    "counters": tables.counters,
    "autoattack": tables.autoattack,
    "steps": tables.steps,
    "parts": tables.parts,
    "gpu": gpu.ladders,
}


def filled(text: str, records: Records) -> str:
    """The page's text with every block as the records have it.

    Raises:
        ValueError: a block is missing, or there more than once.
    """
    for name, block in BLOCKS.items():
        start, end = f"<!-- {name}: written by scripts/performance_page.py -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{PAGE}: expected one block between {start!r} and {end!r}; put the two lines back")
        content = f"{start}\n\n{block(records).strip()}\n\n{end}"
        text = pattern.sub(lambda _, content=content: content, text)
    return text


def write(root: Path) -> list[Path]:
    """Writes page and pictures of the checkout at `root`; returns their paths."""
    records = Records.read(root / "results" / "benchmarks")
    page = root / PAGE
    page.write_text(filled(page.read_text(), records))
    written = [page]
    for name, picture in pictures.PICTURES.items():
        content = picture(records)
        if content is not None:
            path = root / "docs" / "pictures" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            written.append(path)
    return written
