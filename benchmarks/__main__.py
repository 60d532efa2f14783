"""python -m benchmarks NAME …: runs one benchmark; without a name, lists them."""

import importlib
import pkgutil
import sys

import benchmarks
from advtrain.types import SettingError

# Modules that are no benchmark of their own.
HELPERS = (
    "__main__",
    "autoattack_full",
    "comparisons",
    "compiled_graphs",
    "counting",
    "formulas",
    *(
        f"gpu_{part}"
        for part in ("cache", "cases", "classes", "machine", "profile", "race", "rungs", "table", "timing")
    ),
    "page",
    "published",
    "timing",
)


def names() -> list[str]:
    """The benchmarks: every module of this folder with a `main`."""
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in HELPERS)


def main() -> None:
    """Runs the benchmark that the command line names, which then reads the rest of it."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        for name in names():
            summary = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0]
            print(f"{name:19}{summary}")
        return
    name = sys.argv[1]
    if name not in names():
        sys.exit(f"benchmarks: error: expected one of {', '.join(names())}, got {name!r}")
    sys.argv = [f"python -m benchmarks {name}", *sys.argv[2:]]
    try:
        importlib.import_module(f"benchmarks.{name}").main()
    except SettingError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
