"""Writes the tables and pictures of docs/performance.md from the records in results/benchmarks/.

python scripts/performance_page.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    sys.path.insert(0, str(ROOT))  # benchmarks/ is part of the checkout, not of the package
    from benchmarks import page

    for path in page.write(ROOT):
        print(path)


if __name__ == "__main__":
    main()
