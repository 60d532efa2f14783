"""Writes docs/methods.md from the configs, the docstrings and the records.

python scripts/methods_page.py
"""

from pathlib import Path

from advtrain.recipes.page import page


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    path = root / "docs" / "methods.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(root / "results"))
    print(path)


if __name__ == "__main__":
    main()
