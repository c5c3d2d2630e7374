"""Dynamic weight allocation: masks of weights that are generated anew for every sample."""

from hatrack.methods.dwa.method import DWA, DWASettings

__all__ = ["DWA", "DWASettings"]
