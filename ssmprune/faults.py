"""What is wrong with a value, told as rule, value, place and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
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


def newer(
    kind: str, schema: object, schemas: tuple[str, str], said: Iterable[tuple[Location, object]]
) -> Iterator[Fault]:
    """The first of what a file of a kind says that only the second of its schemas knows.

    Args:
        kind: What the file is.
        schema: Its own.
        schemas: The older and the newer one.
        said: Of what the newer one brought, where it stands and its value.
    """
    location, value = next(iter(said), ((), None))
    if schema == schemas[0] and location:
        key = [part for part in location if isinstance(part, str)][-1]
        yield Fault(
            f"{key} must stand in a {kind} of {schemas[1]}, got {value!r} in one of {schemas[0]}",
            f"write `schema: {schemas[1]}`",
            location,
        )


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
