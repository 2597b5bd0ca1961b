"""What is known by a name: scorers, decays, models, families."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from ssmprune.errors import UsageError
from ssmprune.extensions import import_installed, is_imported
from ssmprune.faults import Fault, unknown

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind: those that ship, and those of modules that have been imported.

    Installed packages are imported as soon as a name is unknown without them.
    """

    def __init__(self, kind: str):
        self._kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """File an entry.

        Raises:
            UsageError: Another one has the name.
        """
        if self._entries.setdefault(name, entry) != entry:
            raise UsageError(
                f"a {self._kind}'s name must be new, got {name!r}; choose another name."
            )

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            import_installed()
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            UsageError: There is none; near names are suggested.
        """
        if name not in self:
            raise UsageError(self.unknown(name).told())
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, in the order in which they were filed."""
        import_installed()
        return list(self._entries)

    def filed(self) -> list[str]:
        """The names that are filed by now; imports nothing."""
        return list(self._entries)

    def unknown(self, name: str, imports: Iterable[str] = ()) -> Fault:
        """The fault of a name that is none of these.

        Args:
            name: The name.
            imports: Modules that were imported where the name was written, as its file records.
        """
        missing = [module for module in imports if not is_imported(module)]
        fault = unknown(self._kind, name, self.names())
        if missing:
            options = shlex.join(part for module in missing for part in ("--import", module))
            return replace(
                fault, remedy=f"it was made with `{options}`: give that, or install the package"
            )
        own = f"{self._kind} of your own needs `--import MODULE`"
        told = (
            f"{fault.remedy} A {own}" if fault.remedy.endswith("?") else f"{fault.remedy}; a {own}"
        )
        return replace(fault, remedy=told)
