"""`python -m benchmarks [NAME ...]`: run the named tables, or all, print and save them."""

from __future__ import annotations

import importlib
import sys

from benchmarks.record import save, show

NAMES = (
    "scan",
    "limits",
    "pruned",
    "startup",
    "throughput",
    "search",
    "alignment",
    "racing",
    "workers",
    "recovery",
)


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(NAMES)}")
    for name in names or NAMES:
        table = importlib.import_module(f"benchmarks.{name}")
        rows = table.run()
        show(table.TITLE, rows)
        save(name, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
