"""YAML files written by people: read as data, checked, and all their faults told at once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ssmprune.errors import FileError
from ssmprune.faults import Fault, Location

FileModel = TypeVar("FileModel", bound=BaseModel)


class FilePart(BaseModel):
    """A mapping of a file: unknown keys and loose types are faults, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class _Loader(yaml.SafeLoader):
    """Reads 7e-1 as a number, as YAML 1.2 does, where YAML 1.1 wants 7.0e-1."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


class YamlFile:
    """The data of a YAML file and the line on which each of its values stands.

    Attributes:
        data: The parsed document, plain Python values only.
        text: The document.
        place: The file's name as messages give it.
        faults: Keys that stand twice in one mapping, as sentences.
        imports: Modules that were imported where the file was made, as it records them; for
            messages alone.
    """

    def __init__(self, text: str, place: str, error: type[FileError]):
        """Parse `text`; no tag of the document can run code.

        Raises:
            error: The text is no YAML, uses a tag, or holds no mapping.
        """
        self.text, self.place = text, place
        self.faults: list[str] = []
        self.imports: tuple[str, ...] = ()
        self._nodes: dict[Location, yaml.Node] = {}
        try:
            node = yaml.compose(text, Loader=_Loader)
            self.data: Any = yaml.load(text, Loader=_Loader)  # a SafeLoader
        except yaml.YAMLError as fault:
            mark = getattr(fault, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            problem = getattr(fault, "problem", None) or str(fault)
            raise error(
                f"{place}{line} must be plain YAML, got: {problem}; "
                "check indentation and brackets, and remove tags that begin with '!'."
            ) from None
        except (ValueError, RecursionError) as fault:
            raise error(
                f"{place} must be plain YAML, got a value that cannot be read: {fault}."
            ) from None
        if not isinstance(self.data, dict):
            kind = "nothing" if self.data is None else f"a {type(self.data).__name__}"
            raise error(f"{place} must hold keys and values, got {kind}; see the README's example.")
        assert node is not None  # a mapping was parsed from it
        self._index(node, ())

    @classmethod
    def read(cls, path: Path, error: type[FileError]) -> YamlFile:
        """Parse the file at `path`.

        Raises:
            error: The file cannot be read or is no YAML mapping.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise error(f"{path} must be a file, but there is none; check the path.") from None
        except (OSError, UnicodeDecodeError) as fault:
            raise error(f"{path} must be a readable text file: {fault}.") from None
        return cls(text, str(path), error)

    def at(self, location: Location) -> str:
        """Name of a place in the file: `stages[1].layer (policy.yaml, line 6)`."""
        parts = (location[:end] for end in range(len(location), -1, -1))
        line = next((self._nodes[p].start_mark.line + 1 for p in parts if p in self._nodes), 1)
        name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        return f"{name} ({self.place}, line {line})" if name else f"{self.place}, line {line}"

    def told(self, fault: Fault) -> str:
        """The sentence of a fault in this file."""
        return fault.told(self.at(fault.location))

    def with_texts(self, texts: Mapping[Location, str]) -> str:
        """The document with other texts in place of some; all else stays as it is written."""
        spans = {
            (node.start_mark.index, node.end_mark.index): json.dumps(text)
            for location, text in texts.items()
            if (node := self._nodes[location])
        }
        written = self.text
        for (start, end), text in sorted(spans.items(), reverse=True):
            written = f"{written[:start]}{text}{written[end:]}"
        return written

    def _index(self, node: yaml.Node, location: Location) -> None:
        self._nodes[location] = node
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self._index(child, (*location, index))
        elif isinstance(node, yaml.MappingNode):
            seen: set[Hashable] = set()
            for key, child in node.value:
                if key.value in seen:
                    self.faults.append(
                        f"a key must stand once, got {key.value!r} again at "
                        f"{self.at((*location, key.value))}; remove one of the two."
                    )
                seen.add(key.value)
                self._index(child, (*location, key.value))

    def validation_faults(self, fault: ValidationError, model: type[BaseModel]) -> Iterator[Fault]:
        """What pydantic found, fault by fault."""
        for error in fault.errors(include_url=False):
            location = self._known(error["loc"])
            key = str(error["loc"][-1]) if error["loc"] else ""
            parent = _model_at(model, error["loc"][:-1])
            if error["type"] == "extra_forbidden":
                known = _keys(parent)
                near = difflib.get_close_matches(key, known, n=1)
                remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                yield Fault(f"unknown key {key!r}", remedy, location)
            elif error["type"] == "missing":
                yield Fault(f"key {key!r} is required", _meaning(parent, key), location)
            elif error["type"] == "value_error":
                yield replace(fault_of(error), location=location)
            else:
                rule = re.sub(r"^Input should be", "must be", error["msg"])
                rule = re.sub(r" dictionary or instance of \w+", " mapping of keys to values", rule)
                name = f"entry {key}" if location and isinstance(location[-1], int) else key
                got = f"{name} {rule}, got {error['input']!r}"
                yield Fault(got, _meaning(parent, key), location)

    def _known(self, location: Location) -> Location:
        """A pydantic location without the names of union arms, which are no keys of the file."""
        known: Location = ()
        for index, part in enumerate(location):
            if (*known, part) in self._nodes or index == len(location) - 1:
                known = (*known, part)
        return known


def fault_of(error: ErrorDetails) -> Fault:
    """The fault that one of our validators has raised, as `ValueError(fault)`."""
    [fault] = error["ctx"]["error"].args
    assert isinstance(fault, Fault)
    return fault


def parse(
    file: YamlFile, model: type[FileModel], error: type[FileError], more: Iterable[Fault] = ()
) -> FileModel:
    """Check the file's data against `model`.

    Args:
        file: The parsed file.
        model: The pydantic model of the format.
        error: What is raised.
        more: Faults that were found in the data otherwise; reported along.

    Raises:
        error: Anything is wrong; the message holds every fault, a line each.
    """
    faults, checked = list(file.faults), None
    try:
        checked = model.model_validate(file.data, context=file)
    except ValidationError as fault:
        faults += map(file.told, file.validation_faults(fault, model))
    faults += map(file.told, more)
    if faults or checked is None:
        raise error("\n".join(dict.fromkeys(faults)))
    return checked


def to_yaml(data: Mapping[str, Any]) -> str:
    """Plain values as a document that `YamlFile` reads back to them."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return text


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """The pydantic model that describes the mapping at `location`."""
    for part in location:
        field = _fields(model).get(str(part))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _fields(model: type[BaseModel]) -> Mapping[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _keys(model: type[BaseModel]) -> list[str]:
    return list(_fields(model))


def _meaning(model: type[BaseModel], key: str) -> str:
    field = _fields(model).get(key)
    description = field.description if field is not None else None
    return description or f"known keys: {', '.join(_keys(model))}"
