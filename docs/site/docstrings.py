"""Extension of griffe that reads docstrings as this package writes them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import griffe

__all__ = ["ROLE", "Docstrings"]

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")

_logger = griffe.get_logger(__name__)


class Docstrings(griffe.Extension):
    """Makes links of roles, such as :class:`Plan`, and programs of sections called "Example".

    What a role names is shown as code if it has no page. A role that names nothing is reported, as an unknown
    cross-reference is.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings of a package."""
        self._rewrite_below(pkg)

    def _rewrite_below(self, parent: griffe.Object) -> None:
        if parent.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", parent.docstring.value, flags=re.MULTILINE)
            parent.docstring.value = ROLE.sub(lambda role: _link(role[1], parent), text)
        for member in parent.members.values():
            if not member.is_alias:
                self._rewrite_below(member)


def _link(name: str, place: griffe.Object) -> str:
    try:
        target = _find(name, place)
    except KeyError:
        _logger.warning(f"{place.filepath}: {place.path} refers to {name}, which is not there")
        target = None
    return f"`{name}`" if target is None else f'<autoref optional identifier="{target}">`{name}`</autoref>'


def _find(name: str, place: griffe.Object) -> str | None:
    """Return the path of what a docstring means: something in its class, its bases or its module, or a full path.

    Returns:
        The path where it is defined; None for what belongs to another package.

    Raises:
        KeyError: there is no such thing.
    """
    first, *rest = name.split(".")
    scope: griffe.Object | griffe.Alias | None = place
    while scope is not None and first not in scope.all_members:
        scope = None if scope.is_module else scope.parent
    found: griffe.Object | griffe.Alias = place.package
    if scope is not None:
        found = scope.all_members[first]
    elif first != place.package.name:
        if find_spec(first) is None:
            raise KeyError(name)
        return None
    try:
        for part in rest:
            found = found.all_members[part]
        return found.canonical_path
    except griffe.AliasResolutionError:
        return None
