"""The models in timm's registry, as soon as both timm and this package are imported."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def file_models() -> None:
    """File the models now, or, where timm is not imported yet, when it is.

    Importing it takes seconds, and what needs no model does without.
    """
    if "timm" in sys.modules:
        import_module("ssmprune.models.factory")
    else:
        sys.meta_path.insert(0, _WithTimm())


class _WithTimm(MetaPathFinder):
    """Lets the import of timm, however it goes, end with the models' own."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("timm")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                import_module("ssmprune.models.factory")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
