"""Modules that add scorers, decays and models of one's own, and how each process finds them.

Installed packages name theirs under the entry point group `ssmprune`; they are imported when a name
is unknown or names are listed. Others are imported by request: dotted names, or paths of .py files.
No file that is only read has anything imported.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
import traceback
import zlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ssmprune.errors import SsmpruneError, UsageError
from ssmprune.faults import Fault, listed

GROUP = "ssmprune"

_NOT_THEIRS = tuple(Path(str(package)).parent for package in (__file__, importlib.__file__))


def absolute(imports: Iterable[str], folder: str | Path = "") -> tuple[str, ...]:
    """The same imports for processes that begin in another directory, each once.

    Args:
        imports: Modules, and paths of .py files.
        folder: What paths are relative to; the current directory if not given.
    """
    return tuple(dict.fromkeys(_absolute(name, folder) for name in imports))


def import_modules(imports: Iterable[str], folder: str | Path = "") -> None:
    """Import modules that this process has not imported yet; arguments as for `absolute`.

    Raises:
        UsageError: One is no module, is not there, or fails; the message tells all.
    """
    faults = [fault for name in absolute(imports, folder) if (fault := try_import(name))]
    if faults:
        raise UsageError("\n".join(fault.told() for fault in faults))


def try_import(name: str) -> Fault | None:
    """Import a module, or the .py file at an absolute path; returns what keeps it from that."""
    if is_imported(name):
        return None
    is_file, told = name.endswith(".py"), listed([name])
    if not is_file and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        return Fault(
            f"an import must be the name of a module or the path of a .py file, got {name!r}",
            "write my_package.my_module, or my_module.py",
        )
    if is_file and not Path(name).is_file():
        return Fault(f"an import must be there, but there is no file {told}", "check the path")
    try:
        _import_file(name) if is_file else importlib.import_module(name)
    except (Exception, SystemExit) as fault:  # noqa: BLE001 - told with its cause
        if isinstance(fault, ModuleNotFoundError) and f"{name}.".startswith(f"{fault.name}."):
            remedy = "give the path of its .py file, or install its package"
            return Fault(f"an import must be a module, but Python finds no {told}", remedy)
        return Fault(f"an import must run, but {told} ends with {_cause(fault)}", "mend it")
    return None


def is_imported(name: str) -> bool:
    """Whether this process has imported a module, or the .py file at an absolute path."""
    if name.endswith(".py"):
        return any(getattr(module, "__file__", None) == name for module in [*sys.modules.values()])
    return name in sys.modules


def recorded(value: object) -> tuple[str, ...]:
    """Of a value in a file, what can be told as imports; nothing is imported."""
    names = value if isinstance(value, list | tuple) else ()
    return tuple(name for name in names if isinstance(name, str) and name.isprintable())


def import_installed() -> None:
    """Import what installed packages name under the entry point group, once in a process.

    Raises:
        SsmpruneError: A package's module fails; the message names all such packages.
    """
    _installed.load()


def installed_versions() -> dict[str, str]:
    """Versions of the packages that `import_installed` has imported, by their names."""
    return dict(_installed.versions)


class _Installed:
    """The packages of the entry point group."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._has_begun = False
        self._lock = threading.RLock()

    def load(self) -> None:
        with self._lock:
            if not self._has_begun:
                self._has_begun = True  # before, as what is imported may ask for names as well
                for entry in entry_points(group=GROUP):
                    self._import(entry)
        if self._faults:
            raise SsmpruneError("\n".join(fault.told() for fault in self._faults))

    def _import(self, entry: EntryPoint) -> None:
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
        try:
            entry.load()
        except (Exception, SystemExit) as fault:  # noqa: BLE001 - told with its cause
            self._faults.append(
                Fault(
                    f"an installed extension must run, but {entry.value}, the entry point "
                    f"{entry.name!r} of the package {package}, ends with {_cause(fault)}",
                    "mend or uninstall the package",
                )
            )
        else:
            self.versions[package] = version


_installed = _Installed()


def _absolute(name: str, folder: str | Path) -> str:
    return os.path.abspath(os.path.join(folder, name)) if name.endswith(".py") else name


def _import_file(path: str) -> None:
    """Run a file as a module whose name no other has and every process gives it."""
    name = f"{Path(path).stem}_{zlib.crc32(os.fsencode(path)):08x}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as for every path that ends with .py
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _cause(fault: BaseException) -> str:
    """What was raised, and by which line of the module."""
    frames = [
        f"{frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(fault.__traceback__)
        if not frame.filename.startswith("<frozen")
        and not any(map(Path(frame.filename).is_relative_to, _NOT_THEIRS))
    ]
    told = " ".join(f"{type(fault).__name__}: {fault}".split()).rstrip(".")
    return f"{told} ({frames[-1]})" if frames else told
