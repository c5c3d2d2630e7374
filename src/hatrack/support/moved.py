"""Other import paths: modules that stand elsewhere are found under the names that they had or are called by."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["keep_old_paths"]


class _MovedModules(MetaPathFinder, Loader):
    """Finder of modules by their other names; modules of a package that has another name have others, too.

    Args:
        moved: full names, by other ones.
    """

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification that leads to the module in its place; None for all other names."""
        place = self._place_of(fullname)
        if place is None or (place != self.moved.get(fullname) and not _exists(place)):
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself."""
        place = self._place_of(spec.name)
        assert place is not None
        module = importlib.import_module(place)
        self._specification = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing but keep the module's own specification: it has run already."""
        module.__spec__ = self._specification

    def _place_of(self, name: str) -> str | None:
        if name in self.moved:
            return self.moved[name]
        package, _, last = name.rpartition(".")
        return f"{self.moved[package]}.{last}" if package in self.moved else None


def _exists(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def keep_old_paths(moved: Mapping[str, str]) -> None:
    """Let modules be imported by other names, too; a second call for the same names changes nothing.

    A module inside of a package is asked for here first: the package's own path would lead to a second copy of it.

    Args:
        moved: full names, by other ones.
    """
    if not any(isinstance(finder, _MovedModules) and finder.moved == moved for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules(dict(moved)))
