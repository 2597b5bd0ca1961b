"""`python -m benchmarks [NAME ...]`: run the named tables, or all, print and save them."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.record import save, show

NAMES = (
    "scan",
    "limits",
    "gpu_kernels",
    "pruned",
    "startup",
    "throughput",
    "search",
    "merging",
    "alignment",
    "racing",
    "workers",
    "recovery",
    "prefix_memory",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Runs benchmarks, prints their tables and keeps them in benchmarks/results.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all, or some of {', '.join(NAMES)}"
    )
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"a NAME must be one of {', '.join(NAMES)}; got {', '.join(unknown)}")
    for name in names or NAMES:
        table = importlib.import_module(f"benchmarks.{name}")
        rows = table.run()
        show(table.TITLE, rows)
        save(name, rows)


if __name__ == "__main__":
    main()
