"""The folder of a run: its files, the previous one of each, and where the training of a task stands.

========================  ======================================================================================
``run.json``              the results; a row is added after every task
``net.hat``               the method with all tasks learned
``logits.safetensors``    its test logits
``training.safetensors``  where the training of the next task stands, rewritten after epochs; gone when all is done
``logs.json``             where loggers of the run wrote outside of the folder; only if they did
``*.previous.*``          what the first, the second and the last of these were before, should one be damaged
========================  ======================================================================================

Files are replaced in one step. A task is learned when ``net.hat`` holds it; its row follows. So a process that is
killed at any moment leaves a folder from which the same run goes on to the same end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hatrack.errors import CheckpointError, InputError, NewerFileError
from hatrack.experiments.results import RunResult, Status, TaskHistory, history_from_json, read_result
from hatrack.storage.atomic import keep_previous, remove_leftovers, write_atomically
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.storage.locks import locked
from hatrack.train import Training
from hatrack.train.state import Place, TrainingState

__all__ = [
    "CHECKPOINT",
    "LOGITS",
    "LOGITS_FORMAT",
    "LOG_FOLDERS",
    "PLAN",
    "RESULT",
    "TRAINING",
    "TUNING",
    "InTask",
    "RunFolder",
    "TrainingKeeper",
    "note_logs",
    "noted_logs",
    "previous",
    "require_alone",
    "require_folder",
    "require_run",
    "require_whole",
]

RESULT = "run.json"
PLAN = "comparison.json"
TUNING = "tuning.json"
CHECKPOINT = "net.hat"
LOGITS = "logits.safetensors"
LOGITS_FORMAT = "hatrack.Logits"
TRAINING = "training.safetensors"
TRAINING_FORMAT = "hatrack.Training"

LOGS = "logs.json"
LOG_FOLDERS = ("tensorboard", "wandb", "mlflow")
"""Folders of curves in the folder of a run, named after who shows them."""

SHARE = 0.02
"""Largest share of the time that writing a training's state may take; after some short epochs nothing is written."""


@dataclass(frozen=True)
class InTask:
    """Position of the training of a task.

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
    """Return the path at which the previous content of a file is kept: ``net.previous.hat`` for ``net.hat``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def note_logs(folder: Path, places: Iterable[str]) -> None:
    """Record where loggers of a run write outside of its folder, beside what was recorded before.

    Args:
        folder: the run's folder.
        places: folders or addresses; those inside of the run's folder are left out.

    Raises:
        CheckpointError: the record is damaged, or cannot be written.
    """
    known = noted_logs(folder)
    outside = (place if "://" in place else str(Path(place).absolute()) for place in places)
    inside = folder.resolve()
    new = {place for place in outside if "://" in place or not Path(place).resolve().is_relative_to(inside)}
    if new - set(known):
        write_checked_json(folder / LOGS, {"places": sorted({*known, *new})})


def noted_logs(folder: Path) -> tuple[str, ...]:
    """Return where loggers of a run wrote outside of its folder: folders or addresses.

    Raises:
        CheckpointError: the record is damaged.
    """
    if not (folder / LOGS).exists():
        return ()
    return tuple(read_checked_json(folder / LOGS, what="record of logs")["places"])


def require_folder(path: Path) -> Path:
    """Return a folder to write into, which need not exist yet.

    Raises:
        InputError: it is a file, or would be inside of one.
    """
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; give a folder as `out`")
    return path


_HOLDS = {RESULT: "a single run", PLAN: "a comparison", TUNING: "a search of settings"}
"""Files by which a folder's content is known, and what it is."""


def require_alone(folder: Path, mine: str) -> None:
    """Refuse a folder that holds something else; what went on there could not go on beside it.

    Args:
        folder: the folder, which need not exist.
        mine: name of the file that it may have: :data:`RESULT`, :data:`PLAN` or :data:`TUNING`.

    Raises:
        InputError: it holds another kind of runs, which is named.
    """
    for name, what in _HOLDS.items():
        if name != mine and (folder / name).exists():
            raise InputError(f"{folder} holds {what} ({name}); choose another folder (`out`)")


def require_run(folder: Path) -> None:
    """Check that a folder holds a run.

    Raises:
        InputError: it does not.
    """
    if not (folder / RESULT).exists():
        raise InputError(f"{folder} holds no {RESULT}; give the folder of a run, such as runs/EXPERIMENT-METHOD-seed0")


def require_whole(folder: Path, recorded: RunResult) -> None:
    """Check that no task of a folder is forgotten by halves.

    Raises:
        CheckpointError: forgetting was interrupted.
    """
    if recorded.forgetting is not None:
        call = f"forget_in_run({str(folder)!r}, {recorded.forgetting!r})"
        raise CheckpointError(f"in {folder} forgetting a task was interrupted; finish it first: `{call}`")


class RunFolder:
    """A run's folder: its results, which are read once, and how its files are written.

    Args:
        path: the folder, which need not exist.

    Attributes:
        path: the folder.
        recorded: the results that it holds; None if there are none.
        damaged: whether these are the previous ones, since the newest are damaged.

    Raises:
        InputError: it cannot be a folder, or holds a network without results, a comparison or a search of settings.
        CheckpointError: its results are damaged, and so are the previous ones, or they are from a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = require_folder(path)
        self.recorded: RunResult | None = None
        self.damaged = False
        self._hold: Callable[[], None] | None = None
        self._read()

    @classmethod
    @contextmanager
    def alone(cls, path: Path, patience: float) -> Iterator[RunFolder]:
        """Open a folder and hold it alone; one that does not exist is not made before it is claimed.

        Args:
            path: the folder.
            patience: how many seconds to wait for another process that works there.

        Raises:
            InputError, CheckpointError: as for the class; or another process holds the folder for longer.
        """
        with ExitStack() as held:

            def hold() -> None:
                held.enter_context(locked(path, patience))

            absent = not require_folder(path).exists()
            try:
                if not absent:
                    hold()
            except OSError as error:  # as on a medium that is only to be read, where nobody else can write either
                folder = cls(path)
                if folder.recorded is None or folder.recorded.status is not Status.FINISHED:
                    raise InputError(f"{path} cannot be written to ({error.strerror or error})") from error
            else:
                folder = cls(path)
            folder._hold = hold if absent else None
            yield folder

    def claim(self) -> bool:
        """Make and hold the folder if it did not exist; return whether another process was faster and began a run."""
        if self._hold is None:
            return False
        self._hold()
        self._hold = None
        self._read()
        return self.recorded is not None

    def keep(self, name: str) -> None:
        """Keep the content of a file that is about to be replaced as the previous one; if there is such a file.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        path = self.path / name
        try:
            keep_previous(path, previous(path))
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{path} could not be kept ({reason}); nothing was changed") from error

    def put_back(self, name: str) -> None:
        """Put the previous content of a file in the place of a damaged one; without any, remove that.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        path = self.path / name
        try:
            if previous(path).exists():
                write_atomically(path, previous(path).read_bytes())
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path} could not be written ({error.strerror or error})") from error

    def clear_leftovers(self) -> None:
        """Remove what processes that were killed while they wrote have left."""
        for name in (RESULT, CHECKPOINT, LOGITS, TRAINING):
            remove_leftovers(self.path / name)

    def forget_training(self) -> None:
        """Remove where the training of a task stood, once it matters no more."""
        for path in (self.path / TRAINING, previous(self.path / TRAINING)):
            path.unlink(missing_ok=True)

    def in_task(self, index: int, task: str) -> tuple[InTask | None, tuple[str, ...]]:
        """Read where the training of a task stands, the newest that there is; and say what is damaged."""
        path, damaged = self.path / TRAINING, []
        for candidate in (path, previous(path)):
            if not candidate.exists():
                continue
            try:
                found = _read_in_task(candidate)
            except NewerFileError:
                raise
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if (found.index, found.task) == (index, task):
                return found, tuple(f"{error}; going on from {candidate}" for error in damaged)
        return None, tuple(f"{error}; the task begins anew" for error in damaged)

    def _read(self) -> None:
        path = self.path / RESULT
        if not path.exists():
            require_alone(self.path, RESULT)
            if (self.path / CHECKPOINT).exists():
                raise InputError(
                    f"{self.path} holds a {CHECKPOINT} but no {RESULT}; choose another folder (`out`), or remove this "
                    "one to begin anew"
                )
            return
        try:
            self.recorded = read_result(path)
        except NewerFileError:
            raise
        except CheckpointError as error:
            with suppress(CheckpointError):
                self.recorded, self.damaged = read_result(previous(path)), True
            if self.recorded is None:
                raise CheckpointError(f"{error}; to begin anew, remove {self.path}") from error


def _read_in_task(path: Path) -> InTask:
    checkpoint = read_checkpoint(path, TRAINING_FORMAT)
    data = checkpoint.description
    state = TrainingState(Place(**data["place"]), checkpoint.tensors)
    return InTask(data["index"], data["task"], history_from_json(data["history"]), data["seconds"], data["over"], state)


class TrainingKeeper:
    """Writes where the training of a task stands, after those epochs after which there is time for it.

    Args:
        folder: the run's folder; None keeps nothing.
        index: number of the task, from 0.
        task: its name.
        spent: seconds that its training took before, if it was taken up.
    """

    def __init__(self, folder: RunFolder | None, index: int, task: str, spent: float = 0.0) -> None:
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
        self._folder.keep(TRAINING)
        write_checkpoint(self._folder.path / TRAINING, Checkpoint(state.tensors, description))
        now = time.perf_counter()
        self._next = now + (now - started) * (1 / SHARE - 1)
