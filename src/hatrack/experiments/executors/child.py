"""One worker process, from its parent's side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from hatrack.experiments.jobs import Job, JobAdvanced, JobDone, JobFailed, decode, encode

__all__ = ["Child", "run_in_child"]


class Child:
    """A process that carries out one job after the other, see :mod:`hatrack.experiments.worker`.

    Args:
        threads: CPU threads that the libraries in it may use.
    """

    def __init__(self, threads: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hatrack.experiments.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **dict.fromkeys(libraries, str(threads))},
            start_new_session=True,  # Ctrl-C is for the parent, which then stops its children
        )

    @property
    def alive(self) -> bool:
        """Return whether it can take another job."""
        return self._process.poll() is None

    def execute(self, job: Job) -> Iterator[JobAdvanced | JobDone | JobFailed]:
        """Have a job carried out; the last event says what came of it, also if the process dies."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(job.to_json() + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                event = decode(job, line)
                yield event
                if not isinstance(event, JobAdvanced):
                    return
        except BrokenPipeError:
            pass
        yield JobFailed(job, self._epitaph(self._process.wait()))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass  # what was still to be written to a dead process

    def _epitaph(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed ({name}); if memory was short, try fewer at a time (`workers=1`)"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {lines[-1]}" if lines else "")


def run_in_child(text: str) -> str:
    """Carry out a job in a process of its own and wait for it: what engines call on other machines.

    Args:
        text: the job's JSON.

    Returns:
        How it ended, as JSON.
    """
    job = Job.from_json(text)
    child = Child(job.threads)
    try:
        *_, end = child.execute(job)
    finally:
        child.stop()
    return encode(end)
