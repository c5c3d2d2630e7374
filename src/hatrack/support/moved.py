"""Old import paths: modules that have moved are found under the names that they had, as the same objects."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["keep_old_paths"]


class _MovedModules(MetaPathFinder, Loader):
    """Finder of modules by their old names.

    Args:
        moved: new full names, by old ones.
    """

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification that leads to the module in its new place; None for all other names."""
        return ModuleSpec(fullname, self) if fullname in self.moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself."""
        module = importlib.import_module(self.moved[spec.name])
        self._specification = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing but keep the module's own specification: it has run already."""
        module.__spec__ = self._specification


def keep_old_paths(moved: Mapping[str, str]) -> None:
    """Let modules be imported by their old names, too; a second call for the same names changes nothing.

    Args:
        moved: new full names, by old ones.
    """
    if not any(isinstance(finder, _MovedModules) and finder.moved == moved for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules(dict(moved)))
