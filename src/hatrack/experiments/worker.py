"""A process that carries out runs: jobs come as lines on its standard input, news goes out on its standard output.

It ends when its standard input does. An operating system closes that when the process at the other end dies, however it
dies, so that no worker outlives whoever started it.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import TextIO

from hatrack.experiments.jobs import Job, carry_out, encode
from hatrack.support.memory import keep_freed_memory

__all__ = ["main"]


def main() -> None:
    """Work until the standard input ends."""
    keep_freed_memory()
    news = _own_stdout()
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    while True:
        for event in carry_out(jobs.get()):
            news.write(encode(event) + "\n")
            news.flush()


def _own_stdout() -> TextIO:
    """The standard output, for news alone: what anybody prints goes to the standard error from now on."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def _receive(jobs: queue.SimpleQueue[Job]) -> None:
    for line in sys.stdin:
        jobs.put(Job.from_json(line))
    os._exit(0)  # in the middle of a run, too: finished tasks are on disk, and files are replaced in one step


if __name__ == "__main__":
    main()
