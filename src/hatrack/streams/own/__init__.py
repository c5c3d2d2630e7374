"""Tasks from a person's own files: folders of pictures, numpy archives and tables."""

from __future__ import annotations

from hatrack.streams.own.cells import CellFormat
from hatrack.streams.own.files import OwnTask
from hatrack.streams.own.numerals import DecimalMark
from hatrack.streams.own.streams import OwnStream, own_stream
from hatrack.streams.own.targets import TargetChoice

__all__ = ["CellFormat", "DecimalMark", "OwnStream", "OwnTask", "TargetChoice", "own_stream"]
