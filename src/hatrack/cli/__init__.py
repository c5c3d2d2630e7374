"""The command line."""

from hatrack.cli.app import main

__all__ = ["main"]
