"""What is wrong with a value, told as rule, value, place and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Location = tuple[int | str, ...]
"""Where a value stands in a file: keys and numbers of entries, from the top."""


@dataclass(frozen=True)
class Fault:
    """A broken rule.

    Attributes:
        rule: The rule and the value: `layer must be below 8, got 9`.
        remedy: What puts it right, without a full stop; empty where the rule says it.
        location: Where the value stands.
    """

    rule: str
    remedy: str = ""
    location: Location = ()

    def told(self, place: str = "") -> str:
        """The sentence, where the value stands included: "rule, value at place; remedy."."""
        where = f" at {place}" if place else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.rule}{where}{remedy}{'' if remedy.endswith('?') else '.'}"

    def __str__(self) -> str:
        return self.told().removesuffix(".")


def unknown(kind: str, name: str, known: Iterable[str]) -> Fault:
    """The fault of a name that is not among the known ones; near ones are its remedy."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    remedy = f"did you mean {listed(near, ' or ')}?" if near else f"known: {listed(known)}"
    return Fault(f"unknown {kind} {name!r}", remedy)


def some_of(names: Sequence[str], most: int = 10) -> str:
    """The first names in one line, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Names in one line; those that could be taken for more than a name are quoted."""
    return separator.join(n if re.fullmatch(r"[\w.@/+-]+", n) else repr(n) for n in names)
