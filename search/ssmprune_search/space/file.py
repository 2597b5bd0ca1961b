"""The space file that a search is asked for: the space, what it imports, and the text to freeze."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ssmprune.errors import SpaceError
from ssmprune.extensions import absolute, try_import
from ssmprune.faults import Location
from ssmprune.yamlfile import YamlFile
from ssmprune_search.space.space import SearchSpace


@dataclass(frozen=True)
class SpaceFile:
    """A space file as it was read, once.

    Attributes:
        space: The search space.
        imports: Its modules, and its .py files by absolute paths.
        text: The file with those paths in place of relative ones: it works from any directory.
    """

    space: SearchSpace
    imports: tuple[str, ...]
    text: str

    @classmethod
    def open(cls, path: str | Path) -> SpaceFile:
        """Read a space file, and import the modules that it names.

        Raises:
            SpaceError: As `SearchSpace.load`, or a module cannot be imported.
        """
        file = YamlFile.read(Path(path), SpaceError)
        found = _imports(file, Path(path).parent)
        faults = [
            replace(fault, location=location)
            for location, name in found.items()
            if (fault := try_import(name))
        ]
        if faults:
            raise SpaceError("\n".join(map(file.told, faults)))
        return cls(SearchSpace.of(file), tuple(found.values()), file.with_texts(found))


def _imports(file: YamlFile, folder: Path) -> dict[Location, str]:
    """What the file imports, by where it stands; other values are told with the file's faults."""
    written = file.data.get("imports")
    entries = enumerate(written if isinstance(written, list) else ())
    texts = {("imports", index): name for index, name in entries if isinstance(name, str)}
    return {location: absolute([name], folder)[0] for location, name in texts.items()}
