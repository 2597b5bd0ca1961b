"""Who may import whom: one direction, no circles."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"ssmprune": ROOT / "ssmprune", "ssmprune_search": ROOT / "search" / "ssmprune_search"}


def modules() -> dict[str, Path]:
    """Every module of both packages, by its name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, *, later: bool) -> Iterator[str]:
    """Names of what a module imports; `later`, inside functions, too. Types alone do not count."""
    waiting = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif later or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def graph(*, later: bool = False) -> dict[str, set[str]]:
    """Our modules, and those that each of them imports."""
    known = modules()
    arrows = defaultdict[str, set[str]](set)
    for name, path in known.items():
        for wanted in imported(path, later=later):
            while wanted and wanted not in known:
                wanted = wanted.rpartition(".")[0]
            if wanted and wanted != name:
                arrows[name].add(wanted)
    return arrows


def rooms(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between the rooms of `ssmprune_search`."""
    found = defaultdict[str, set[str]](set)
    for name, wanted in arrows.items():
        for other in wanted:
            pair = [module.split(".") for module in (name, other)]
            if all(parts[0] == "ssmprune_search" and len(parts) > 1 for parts in pair):
                here, there = (parts[1] for parts in pair)
                if here != there:
                    found[here].add(there)
    return found


def test_the_library_does_not_know_the_search() -> None:
    upwards = {
        name: wanted
        for name, all_wanted in graph(later=True).items()
        if name.startswith("ssmprune.")
        and (wanted := [w for w in all_wanted if w.startswith("ssmprune_search")])
    }
    assert upwards == {}


def test_no_module_imports_itself_by_way_of_others() -> None:
    public = {"ssmprune", *(name for name in modules() if modules()[name].name == "__init__.py")}
    inner = {n: w - public for n, w in graph().items() if n not in public}
    try:
        list(TopologicalSorter(inner).static_order())
    except CycleError as fault:
        pytest.fail(" imports ".join(reversed(fault.args[1])))


def test_rooms_of_the_search_form_no_circle() -> None:
    try:
        list(TopologicalSorter(rooms(graph(later=True))).static_order())
    except CycleError as fault:
        pytest.fail(" imports ".join(reversed(fault.args[1])))


def test_the_command_line_is_on_top() -> None:
    arrows = rooms(graph(later=True))
    assert {name for name in arrows if "cli" in arrows[name]} == {"__main__"}


def test_a_study_does_not_know_the_run_that_it_belongs_to() -> None:
    assert rooms(graph(later=True))["study"] <= {"candidate", "space"}


def test_files_functions_and_classes_stay_short() -> None:
    """A function is counted without its docstring; the scan with its kernels is left out."""
    most = {ast.FunctionDef: 60, ast.ClassDef: 250}
    long = []
    for name, path in modules().items():
        if name.startswith("ssmprune.scan"):
            continue
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if isinstance(node, ast.FunctionDef):
                    lines -= len((ast.get_docstring(node, clean=False) or "").splitlines())
                if lines > most[type(node)]:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert long == []
