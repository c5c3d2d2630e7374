"""The table of the data sets."""

from __future__ import annotations

from hatrack.support.toml import read_packaged_toml

__all__ = ["CATALOGUE"]

CATALOGUE = read_packaged_toml("hatrack.data", "datasets.toml")
"""The table of the data sets by their names."""
