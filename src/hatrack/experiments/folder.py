"""The folder of a run: its files, the previous one of each, and where the training of a task stands.

========================  ======================================================================================
``run.json``              the results; a row is added after every task
``net.hat``               the method with all tasks learned
``logits.safetensors``    its test logits
``training.safetensors``  where the training of the next task stands, rewritten after epochs; gone when all is done
``*.previous.*``          what the first, the second and the last of these were before, should one be damaged
========================  ======================================================================================

Files are replaced in one step. A task is learned when ``net.hat`` holds it; its row follows. So a process that is
killed at any moment leaves a folder from which the same run goes on to the same end.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from hatrack.errors import CheckpointError, NewerFileError
from hatrack.experiments.results import RunResult, TaskHistory, history_from_json, read_result
from hatrack.storage.atomic import keep_previous, remove_leftovers, write_atomically
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.train import Training
from hatrack.train.state import Place, TrainingState

__all__ = [
    "CHECKPOINT",
    "LOGITS",
    "LOGITS_FORMAT",
    "RESULT",
    "TRAINING",
    "InTask",
    "TrainingKeeper",
    "clear_leftovers",
    "forget_training",
    "keep",
    "previous",
    "put_back",
    "read_in_task",
    "read_recorded",
    "require_whole",
]

RESULT = "run.json"
CHECKPOINT = "net.hat"
LOGITS = "logits.safetensors"
LOGITS_FORMAT = "hatrack.Logits"
TRAINING = "training.safetensors"
TRAINING_FORMAT = "hatrack.Training"

SHARE = 0.05
"""Which share of the time writing where a training stands may take; after some short epochs nothing is written."""


@dataclass(frozen=True)
class InTask:
    """Where the training of a task stands.

    Attributes:
        index: number of the task, from 0.
        task: its name.
        history: what happened in its epochs so far.
        seconds: time that they took.
        over: whether its last epoch was made.
        state: what the rest of the training depends on.
    """

    index: int
    task: str
    history: TaskHistory
    seconds: float
    over: bool
    state: TrainingState


def previous(path: Path) -> Path:
    """Where the previous content of a file is kept: ``net.previous.hat`` for ``net.hat``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep(path: Path) -> None:
    """Keep the content of a file that is about to be replaced as the previous one; if there is such a file.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        keep_previous(path, previous(path))
    except OSError as error:
        raise CheckpointError(f"{path} could not be kept ({error.strerror or error}); nothing was changed") from error


def put_back(path: Path) -> None:
    """Put the previous content of a file in the place of a damaged one; without any, remove that.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        if previous(path).exists():
            write_atomically(path, previous(path).read_bytes())
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written ({error.strerror or error})") from error


def read_recorded(folder: Path) -> tuple[RunResult, bool]:
    """The results that a folder holds, and whether they are the previous ones, since the newest are damaged.

    Raises:
        CheckpointError: neither can be read.
    """
    path = folder / RESULT
    try:
        return read_result(path), False
    except NewerFileError:
        raise
    except CheckpointError:
        if not previous(path).exists():
            raise
        try:
            return read_result(previous(path)), True
        except CheckpointError:
            pass
        raise


def require_whole(folder: Path, recorded: RunResult) -> None:
    """Check that no task of a folder is forgotten by halves.

    Raises:
        CheckpointError: forgetting was interrupted.
    """
    if recorded.forgetting is not None:
        command = shlex.join(["hatrack", "forget", str(folder), "--task", recorded.forgetting])
        raise CheckpointError(f"in {folder} forgetting a task was interrupted; finish it first: {command}")


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for name in (RESULT, CHECKPOINT, LOGITS, TRAINING):
        remove_leftovers(folder / name)


def read_in_task(folder: Path, index: int, task: str) -> tuple[InTask | None, tuple[str, ...]]:
    """Where the training of a task stands, the newest of what the folder holds of it; and what to tell about damage."""
    path, damaged = folder / TRAINING, []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            found = _in_task(candidate)
        except NewerFileError:
            raise
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if (found.index, found.task) == (index, task):
            return found, tuple(f"{error}; going on from {candidate}" for error in damaged)
    return None, tuple(f"{error}; the task begins anew" for error in damaged)


def _in_task(path: Path) -> InTask:
    checkpoint = read_checkpoint(path, TRAINING_FORMAT)
    data = checkpoint.description
    state = TrainingState(Place(**data["place"]), checkpoint.tensors)
    return InTask(data["index"], data["task"], history_from_json(data["history"]), data["seconds"], data["over"], state)


def forget_training(folder: Path) -> None:
    """Remove where the training of a task stood, once it matters no more."""
    for path in (folder / TRAINING, previous(folder / TRAINING)):
        path.unlink(missing_ok=True)


class TrainingKeeper:
    """Writes where the training of a task stands, after those epochs after which there is time for it.

    Args:
        folder: the run's folder; None keeps nothing.
        index: number of the task, from 0.
        task: its name.
        spent: seconds that its training took before, if it was taken up.
    """

    def __init__(self, folder: Path | None, index: int, task: str, spent: float = 0.0) -> None:
        self._folder, self._index, self._task = folder, index, task
        self._begun = time.perf_counter() - spent
        self._next = 0.0

    @property
    def seconds(self) -> float:
        """Time that the task took so far."""
        return time.perf_counter() - self._begun

    def after_epoch(self, training: Training, history: TaskHistory) -> None:
        """Write where a training stands, unless that would take too large a share of the time; always when it is over.

        Raises:
            CheckpointError: it cannot be written; what was there before is still there.
        """
        started = time.perf_counter()
        if self._folder is None or (started < self._next and not training.over):
            return
        state = training.state()
        description = {
            "format": TRAINING_FORMAT,
            "index": self._index,
            "task": self._task,
            "history": dataclasses.asdict(history),
            "seconds": round(self.seconds, 3),
            "over": training.over,
            "place": dataclasses.asdict(state.place),
        }
        keep(self._folder / TRAINING)
        write_checkpoint(self._folder / TRAINING, Checkpoint(state.tensors, description))
        now = time.perf_counter()
        self._next = now + (now - started) * (1 / SHARE - 1)
