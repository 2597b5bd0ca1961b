"""What `import ssmprune` and `ssmprune --help` cost, each in a new process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.record import paired

TITLE = "Start-up, in new processes"


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def run() -> list[dict[str, Any]]:
    rows = []
    for name, code in (
        ("import ssmprune", "import ssmprune"),
        ("ssmprune --help", "import sys; sys.argv = ['ssmprune', '--help']\n"
         "from ssmprune_search.cli import main; main()"),
    ):  # fmt: skip
        times = paired(lambda code=code: python(code), lambda: python("import timm"), repeats=7)
        rows.append(
            {
                "command": name,
                "seconds": times.ours_ms / 1000,
                "import timm, seconds": times.peer_ms / 1000,
                "more than timm, seconds": (times.ours_ms - times.peer_ms) / 1000,
            }
        )
    return rows
