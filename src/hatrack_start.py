"""The start of the command ``hatrack``, outside of the package, whose imports take a second or two (most of it torch).

Whoever presses Ctrl-C in that time reads the same line as later on, and no traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, _interrupt)
    from hatrack.cli import main as run
    from hatrack.support.memory import keep_freed_memory

    keep_freed_memory()
    return run()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Leave at once while modules are imported before anything has begun; else interrupt as usual.

    An exception in the middle of torch's import would come out as another one, or not at all.
    """
    if "hatrack.experiments.running" not in sys.modules and _is_importing(frame):
        os.write(2, b"error: interrupted\n")
        os._exit(130)
    signal.default_int_handler(signum, frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
