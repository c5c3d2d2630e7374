"""TOML on every Python, and the tables that are kept as TOML in the package."""

from __future__ import annotations

import sys
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_packaged_toml", "tomllib"]


def read_packaged_toml(package: str, name: str) -> dict[str, Any]:
    """Read a TOML file that is installed with a package.

    Args:
        package: full name of the package, such as ``hatrack.streams``; it is imported.
        name: name of the file in it, or its path below it.
    """
    content: dict[str, Any] = tomllib.loads(resources.files(package).joinpath(name).read_text(encoding="utf-8"))
    return content
