"""The start of the command ``hatrack``, outside of the package, whose import takes a second (most of it is torch).

Whoever presses Ctrl-C in that second reads the same line as later on, and no traceback.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["main"]


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as in the background of a shell
        signal.signal(signal.SIGINT, _leave)
    from hatrack.cli import main as run

    signal.signal(signal.SIGINT, before)
    return run()


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(130)  # nothing has begun that could be lost
