"""Every public name has a docstring and a page of the reference, and the examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import hatrack

ROOT = Path(__file__).parents[1]
INTEGRATIONS = ROOT / "src" / "hatrack" / "learning" / "integrations"
OTHER_PACKAGES = {path.stem for path in INTEGRATIONS.glob("[!_]*.py") if not path.stem.startswith("task_")}
"""Packages that a module of ``hatrack.integrations`` of the same name is for."""


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The module of the site that knows the public names; it needs nothing but hatrack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "site")
        return importlib.import_module("reference")


def test_every_public_name_has_a_docstring(reference: ModuleType) -> None:
    bare = [name for name in reference.pages() if not reference.documentation(name)]
    assert not bare, f"write docstrings (of a constant: below its assignment) for {', '.join(bare)}"


def test_every_public_name_has_a_page(reference: ModuleType) -> None:
    pages = reference.pages()
    for module in reference.PUBLIC_MODULES:
        for name in importlib.import_module(module).__all__:
            assert f"{module}.{name}" in pages
    # a name that two modules export is the same thing on the same page, and no other pages are the same file
    assert pages["hatrack.functional.Conditioning"] == pages["hatrack.Conditioning"]
    of_page = Counter(page.lower() for page in set(pages.values()))
    assert set(of_page.values()) == {1}


def test_what_packages_export_is_public(reference: ModuleType) -> None:
    internal = {
        f"hatrack.{name}"
        for name in ("cli", "gating", "growth", "learning", "models", "protection", "state", "storage", "support")
    }
    packages = {f"hatrack.{info.name}" for info in pkgutil.iter_modules(hatrack.__path__) if info.ispkg}
    unlisted = packages - internal - set(reference.PUBLIC_MODULES)
    assert not unlisted, f"public, and missing in docs/site/reference.py, or internal? {', '.join(unlisted)}"


def test_what_the_guides_name_is_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    names = {name for text in texts for name in re.findall(r"\bhatrack(?:\.\w+)+", text)}
    assert len(names) > 30
    for name in sorted(names):
        if not is_for_a_package_that_is_missing(name):
            pkgutil.resolve_name(name)  # an error that names it, if there is no such thing


def is_for_a_package_that_is_missing(name: str) -> bool:
    """Return whether it belongs to an integration that cannot be imported without another package."""
    package = name.partition("integrations.")[2].partition(".")[0]
    return package in OTHER_PACKAGES and importlib.util.find_spec(package) is None


def test_docstrings_of_constants_are_found(reference: ModuleType) -> None:
    assert reference.documentation("hatrack.functional.EMBEDDING_BOUND").startswith(
        "Bound of embeddings"
    )  # imported there
    assert reference.documentation("hatrack.methods.METHODS") == "Every method by its name."  # with an annotation
    assert not reference.documentation("hatrack.functional.__all__")


@pytest.mark.slow
def test_the_examples_in_docstrings_are_true() -> None:
    names = {info.name for info in pkgutil.walk_packages(hatrack.__path__, "hatrack.")} - {"hatrack.__main__"}
    names = {name for name in names if not is_for_a_package_that_is_missing(name)}
    results = {name: doctest.testmod(importlib.import_module(name)) for name in sorted(names)}
    wrong = [name for name, result in results.items() if result.failed]
    assert not wrong, f"see above what the examples of {', '.join(wrong)} give"
    assert sum(result.attempted for result in results.values()) > 10
