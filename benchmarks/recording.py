"""Records of measurements: written whole or not at all, and the command that makes one again."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatrack.storage.atomic import save

__all__ = ["command", "write_record"]


def write_record(path: Path, content: Mapping[str, Any], indent: int = 1) -> None:
    """Write a record atomically, so that whoever reads it meanwhile, or is stopped, has a whole one.

    Args:
        path: the file.
        content: JSON values by name.
        indent: spaces by which inner lines are set in.

    Raises:
        CheckpointError: the file cannot be written; its former content is still there.
    """
    save(path, (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode())


def command() -> str:
    """Return the command of this process as it is to be recorded: without this machine's folders."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data")
    parser.add_argument("--out")
    known, others = parser.parse_known_args(sys.argv[1:])
    data = ["--data", "DATA"] if known.data else []
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *others, *data])
