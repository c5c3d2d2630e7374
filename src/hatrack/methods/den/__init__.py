"""Dynamically expandable networks: dense layers that get more units where a task needs them, and keep old widths."""

from hatrack.methods.den.method import DEN, DENSettings

__all__ = ["DEN", "DENSettings"]
