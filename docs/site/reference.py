"""Public names of hatrack, and the page of the reference on which each of them is explained."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

__all__ = ["PUBLIC_MODULES", "documentation", "names_of", "pages"]

PUBLIC_MODULES = (
    "hatrack",
    "hatrack.functional",
    "hatrack.masks",
    "hatrack.units",
    "hatrack.recognition",
    "hatrack.recognition.scores",
    "hatrack.compact",
    "hatrack.compact.export",
    "hatrack.backbones",
    "hatrack.data",
    "hatrack.streams",
    "hatrack.objectives",
    "hatrack.learning.unannounced",
    "hatrack.methods",
    "hatrack.train",
    "hatrack.experiments",
    "hatrack.experiments.metrics",
    "hatrack.experiments.statistics",
    "hatrack.report",
    "hatrack.report.runs",
    "hatrack.report.figures",
    "hatrack.report.tables",
    "hatrack.report.inside",
    "hatrack.report.over_time",
    "hatrack.report.recognition",
    "hatrack.report.pictures",
    "hatrack.report.loggers",
    "hatrack.report.network_plot",
    "hatrack.report.verdict",
    "hatrack.report.literature",
    "hatrack.storage.checked_json",
)
"""Modules whose ``__all__`` is public, in the order of the reference.

A name that several of them have is explained under the first.
"""


def names_of(module: str) -> list[str]:
    """Return the full public names of a module, such as ``hatrack.functional.gate``, in alphabetical order."""
    return [f"{module}.{name}" for name in sorted(importlib.import_module(module).__all__, key=str.lower)]


def pages() -> dict[str, str]:
    """Return the page of every public module and name, a path below the site's root."""
    found = {module: f"reference/{module}/index.md" for module in PUBLIC_MODULES}
    explained: dict[tuple[str, int], str] = {}
    for module in PUBLIC_MODULES:
        for name in names_of(module):
            if name not in found:
                last = name.rpartition(".")[2]
                found[name] = explained.setdefault((last, id(_value(name))), f"reference/{module}/{_file_name(name)}")
    return found


def documentation(name: str) -> str:
    """Return the docstring of a public module or name, empty if there is none.

    Constants and aliases of types have theirs below their assignment, where only the source shows it.
    """
    value = _value(name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value):
        return inspect.cleandoc(value.__doc__ or "")
    module, _, last = name.rpartition(".")
    return inspect.cleandoc(_below_assignment(module, last))


def _value(name: str) -> Any:
    if name in PUBLIC_MODULES:
        return importlib.import_module(name)
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _file_name(name: str) -> str:
    """Name a page so that ``Score`` and ``score`` have two, on systems too where case does not count."""
    module, _, last = name.rpartition(".")
    alike = sorted(other for other in importlib.import_module(module).__all__ if other.lower() == last.lower())
    number = alike.index(last) + 1
    return f"{last}.md" if number == 1 else f"{last}-{number}.md"


def _below_assignment(module: str, name: str) -> str:
    """Find the text below an assignment, in the module or in that from which it imports the name."""
    file = inspect.getsourcefile(importlib.import_module(module))
    assert file is not None
    body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    for statement, below in zip(body, [*body[1:], None], strict=True):
        match statement:
            case ast.ImportFrom(module=str(source), names=names):
                for alias in names:
                    if name == (alias.asname or alias.name):
                        return _below_assignment(source, alias.name)
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                if target == name:
                    match below:
                        case ast.Expr(value=ast.Constant(value=str(text))):
                            return text
    return ""
