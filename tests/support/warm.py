"""Python processes that begin with torch imported: forks of one that has imported it and done nothing since.

A process of its own spends two seconds on importing torch and its compiler. Tests whose point is what a process does,
not how it starts or how its interpreter stops, take one of these instead: it has its own number, memory, environment,
folder and standard files, and is killed and waited for like any other. A test of each command keeps a real process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO, Any

import pytest
import torch

__all__ = ["WarmProcess", "run_warm", "start_workers_warm", "warm_context"]

WORKER = [sys.executable, "-m", "hatrack.experiments.worker"]


def warm_context() -> ForkServerContext:
    """Return the context of processes that begin with the packages imported, and without any thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hatrack.cli.app", "hatrack.experiments", "hatrack.learning", "torch._dynamo"])
    return context


def _begin(
    command: Sequence[str], environment: Mapping[str, str], folder: str, files: Sequence[Connection | None]
) -> None:
    """Carry out a command of Python as a process of its own would that was started with it."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        if file is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        else:
            os.dup2(file.fileno(), number)
            file.close()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    sys.path.insert(0, folder)
    flag, what, *words = command[1:]
    if flag == "-m":
        sys.argv = [what, *words]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert flag == "-c", f"neither a module nor a text: {command}"
        sys.argv = ["-c", *words]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


class WarmProcess:
    """The part of :class:`subprocess.Popen` that is needed, for commands of Python.

    Args:
        command: ``[sys.executable, "-m", module, ...]`` or ``[sys.executable, "-c", text, ...]``.
        stdin: ``subprocess.PIPE``; None for nothing.
        stdout: a file or ``subprocess.PIPE``; None for nothing.
        stderr: a file; None for nothing.
        env: its environment; None for that of this process.
        **others: what is alike for all such processes.
    """

    def __init__(
        self,
        command: Sequence[str],
        stdin: int | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        **others: object,
    ) -> None:
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        theirs: list[Connection | None] = [None, None, None]
        if stdin == subprocess.PIPE:
            source, own = os.pipe()
            theirs[0], self.stdin = Connection(source), os.fdopen(own, "w", encoding="utf-8")
        if stdout == subprocess.PIPE:
            own, sink = os.pipe()
            theirs[1], self.stdout = Connection(sink), os.fdopen(own, encoding="utf-8")
        for number, file in ((1, stdout), (2, stderr)):
            if file is not None and not isinstance(file, int):
                theirs[number] = Connection(os.dup(file.fileno()))
        begin = (list(command), dict(os.environ if env is None else env), str(Path.cwd()), theirs)
        self._process = warm_context().Process(target=_begin, args=begin)
        self._process.start()
        for each in theirs:
            if each is not None:
                each.close()
        self._waiting = threading.Lock()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return how the process has ended; None while it runs."""
        if not self._waiting.acquire(blocking=False):
            return None
        try:
            return self._process.exitcode
        finally:
            self._waiting.release()

    def wait(self) -> int:
        """Wait for the end of the process, and return how it ended: a code, or the negative number of a signal."""
        with self._waiting:
            self._process.join()
            assert self._process.exitcode is not None
            return self._process.exitcode

    def kill(self) -> None:
        """Kill the process, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def run_warm(
    folder: Path, *commands: Sequence[str], env: Sequence[Mapping[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands of Python at the same time, and return how they ended and what they said.

    Args:
        folder: where files are written for what they say.
        *commands: the commands.
        env: the environment of each.
    """
    files = [[(folder / f"said-{number}-{end}").open("w+") for end in "oe"] for number in range(len(commands))]
    processes = [
        WarmProcess(command, stdout=said, stderr=errors, env=its)
        for command, (said, errors), its in zip(commands, files, env, strict=True)
    ]
    ended = []
    for command, process, pair in zip(commands, processes, files, strict=True):
        code = process.wait()
        said = []
        for file in pair:
            with file:
                file.seek(0)
                said.append(file.read())
            Path(file.name).unlink()
        ended.append(subprocess.CompletedProcess(list(command), code, *said))
    return ended


def start_workers_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that carry out runs begin warm for a test; all others start as ever."""
    start = subprocess.Popen

    def started(command: Any, *arguments: Any, **settings: Any) -> Any:
        return WarmProcess(command, **settings) if command == WORKER else start(command, *arguments, **settings)

    monkeypatch.setattr(subprocess, "Popen", started)
