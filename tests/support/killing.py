"""A run whose process is killed at a chosen moment, the way a power failure or an impatient cluster does it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hatrack.experiments import RunRequest, folder, prepare, run
from support.warm import warm_context

__all__ = ["QUICK", "run_in_process"]

QUICK: dict[str, Any] = {"epochs": 2, "hidden": (12, 8), "limit": 80, "num_tasks": 3, "batch_size": 32}


class Moments:
    """Counts moments, and kills the process at one of them; those around and inside writes, and after every step."""

    def __init__(self, fatal: int | None) -> None:
        self.passed = 0
        self.halves = 0
        self._fatal = fatal

    def passes(self) -> None:
        self.passed += 1
        if self.passed == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.passes()
            result = function(*args, **kwargs)
            self.passes()
            return result

        return watched

    def inside(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        """A new file's content is written in two halves."""

        def open_watched(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(path, mode, *args, **kwargs)
            if mode != "xb":
                return file
            whole = file.write

            def write(content: bytes) -> None:
                half = len(content) // 2
                whole(content[:half])
                file.flush()
                self.halves += 1
                self.passes()
                whole(content[half:])

            file.write = write
            return file

        return open_watched


def _child(out: str, method: str, changes: dict[str, Any], fatal: int | None, threads: int, report: str) -> None:
    torch.set_num_threads(threads)
    moments = Moments(fatal)
    folder.SHARE = 1.0  # every epoch is written
    os.link, os.fsync = moments.around(os.link), moments.around(os.fsync)  # type: ignore[assignment]
    Path.replace = moments.around(Path.replace)  # type: ignore[method-assign]
    Path.open = moments.inside(Path.open)  # type: ignore[method-assign]
    for _ in run(prepare(RunRequest("demo", method, 0, Path(out), overrides={**QUICK, **changes}))):
        moments.passes()
    assert moments.halves, "no file was written under the eyes of this test"
    Path(report).write_text(str(moments.passed))


def run_in_process(
    out: Path, method: str = "hat", fatal: int | None = None, threads: int = 1, **changes: Any
) -> int | None:
    """Make a run, or what is left of it, in a process of its own.

    Args:
        out: the run's folder.
        method: its method.
        fatal: the moment at which the process is killed, from 1; None kills nobody.
        threads: number of CPU threads.
        **changes: settings.

    Returns:
        The number of moments that passed; None if the process was killed.
    """
    with tempfile.NamedTemporaryFile("r") as report:
        child = warm_context().Process(target=_child, args=(str(out), method, changes, fatal, threads, report.name))
        child.start()
        child.join()
        if child.exitcode == -signal.SIGKILL:
            return None
        assert child.exitcode == 0, f"the run ended with code {child.exitcode}"
        return int(report.read())
