"""The results of a run: what ``run.json`` holds."""

from __future__ import annotations

import enum
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hatrack.errors import CheckpointError
from hatrack.experiments.metrics import average_accuracy, backward_transfer, forgetting
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.train import EpochDone, Score

__all__ = [
    "SCHEMA",
    "RunResult",
    "Status",
    "TaskHistory",
    "TaskSummary",
    "history_from_json",
    "read_result",
    "rounded_shares",
    "write_result",
]

SCHEMA = 1
"""Version of the format of ``run.json``."""

_AS_IT_IS = ("experiment", "method", "seed", "command", "config")
"""Attributes that a file holds under their names, as they are."""

T = TypeVar("T")


class Status(str, enum.Enum):
    """Progress of a run."""

    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class TaskSummary:
    """A task in ``run.json``: its name, number of classes and numbers of samples."""

    name: str
    classes: int
    train: int
    valid: int
    test: int


@dataclass(frozen=True)
class TaskHistory:
    """History of learning a task, from which curves over a run are drawn.

    The sequences have an entry per epoch; all are empty where a run was stopped before they were written.

    Attributes:
        capacity: what the method says of its use of the network, after the task; None if it says nothing.
        train_loss: mean loss of the batches.
        valid_loss: loss on the validation set.
        valid_accuracy: accuracy on the validation set.
        used: share of units, or of weights where masks are about weights, that all tasks use, this one included; empty
            for methods without masks.
    """

    capacity: dict[str, Any] | None = None
    train_loss: tuple[float, ...] = ()
    valid_loss: tuple[float, ...] = ()
    valid_accuracy: tuple[float, ...] = ()
    used: tuple[float, ...] = ()

    def with_epoch(self, epoch: EpochDone, used: float | None) -> TaskHistory:
        """The history after one more epoch; five digits are plenty for a curve."""
        return replace(
            self,
            train_loss=(*self.train_loss, round(epoch.train_loss, 5)),
            valid_loss=(*self.valid_loss, round(epoch.valid_loss, 5)),
            valid_accuracy=(*self.valid_accuracy, round(epoch.valid_accuracy, 5)),
            used=self.used if used is None else (*self.used, round(used, 5)),
        )


@dataclass(frozen=True)
class RunResult:
    """A run, finished or not.

    Attributes:
        experiment: its name.
        method: its name.
        seed: the seed.
        command: a command that makes this run.
        config: all settings, by key.
        tasks: all tasks, learned or not.
        scores: row t holds the scores on tasks 0..t after task t.
        capacity: what the method says of its use of the network, after the last task learned; None if it says nothing.
        epochs: number of epochs made for every task learned.
        seconds: time spent on every task learned.
        environment: what it ran on.
        status: how far it is.
        data: in which form every data set was found, one line each.
        sources: of one's own tasks, the ``tasks.toml`` or the files and folders that they were made of; else empty.
        history: what happened during every task learned.
        reuse: share of the weights of task i (row) that task j (column) uses too; None if the method does not know.
        forgotten: how many tasks were forgotten, of which nothing is left in any other attribute.
        forgetting: the task that is being forgotten, while other files of the run may hold it or not; else None.
    """

    experiment: str
    method: str
    seed: int
    command: str
    config: dict[str, Any]
    tasks: tuple[TaskSummary, ...]
    scores: tuple[tuple[Score, ...], ...]
    capacity: dict[str, Any] | None
    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    environment: dict[str, Any]
    status: Status
    data: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    history: tuple[TaskHistory, ...] = ()
    reuse: tuple[tuple[float, ...], ...] | None = None
    forgotten: int = 0
    forgetting: str | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether all tasks of the experiment were learned, and none was unlearned since."""
        return self.status is Status.FINISHED and not self.forgotten and self.forgetting is None

    def with_row(
        self,
        row: tuple[Score, ...],
        history: TaskHistory,
        seconds: float,
        reuse: tuple[tuple[float, ...], ...] | None = None,
    ) -> RunResult:
        """The run after one more task."""
        return replace(
            self,
            scores=(*self.scores, row),
            capacity=history.capacity,
            history=(*self.history, history),
            reuse=reuse,
            epochs=(*self.epochs, len(history.valid_loss)),
            seconds=(*self.seconds, seconds),
            status=Status.FINISHED if len(self.scores) + 1 == len(self.tasks) else Status.RUNNING,
        )

    def first(self, learned: int) -> RunResult:
        """The run as it was after its first tasks, as far as that is known."""
        before = self.history[learned - 1].capacity if learned else None
        return replace(
            self,
            **{name: getattr(self, name)[:learned] for name in ("scores", "history", "epochs", "seconds")},
            capacity=before,
            reuse=None if self.reuse is None or not learned else tuple(row[:learned] for row in self.reuse[:learned]),
            status=Status.FINISHED if learned == len(self.tasks) else Status.RUNNING,
        )

    def without_task(
        self, name: str, capacity: dict[str, Any] | None, reuse: tuple[tuple[float, ...], ...] | None
    ) -> RunResult:
        """The run as if a task had never been part of it, but for how many were forgotten.

        What the run said of the network's use while the task was part of it goes, too: it counts the task's share.

        Args:
            name: the task, learned or not.
            capacity: what the method says of its use of the network without the task.
            reuse: shares of weights between the tasks that are left.
        """
        index = [task.name for task in self.tasks].index(name)
        history = _left_out(self.history, index)
        history = (*history[:index], *(replace(later, capacity=None, used=()) for later in history[index:]))
        if history:
            history = (*history[:-1], replace(history[-1], capacity=capacity))
        sources = tuple(path for path in self.sources if path.endswith(".toml") or Path(path).stem != name)
        command = [word for word in shlex.split(self.command) if word not in self.sources or word in sources]
        config = self.config
        if sources != self.sources and config.get("num_tasks") is not None:
            config = {**config, "num_tasks": max(1, config["num_tasks"] - 1)}
            command = [f"num_tasks={config['num_tasks']}" if w.startswith("num_tasks=") else w for w in command]
        return replace(
            self,
            command=shlex.join(command),
            config=config,
            tasks=_left_out(self.tasks, index),
            epochs=_left_out(self.epochs, index),
            seconds=_left_out(self.seconds, index),
            scores=tuple(_left_out(row, index) for row in _left_out(self.scores, index)),
            capacity=capacity,
            data=tuple(line for line in self.data if line.partition(":")[0] != name),
            sources=sources,
            history=history,
            reuse=reuse,
            forgotten=self.forgotten + 1,
            forgetting=None,
        )

    def matrix(self, what: str) -> list[list[Any]]:
        """A lower triangular ``T × T`` matrix of one part of the scores, None elsewhere.

        Args:
            what: ``accuracy``, ``loss`` or ``logits_sha256``.
        """
        size = len(self.tasks)
        rows = [[getattr(score, what) for score in row] + [None] * (size - len(row)) for row in self.scores]
        return rows + [[None] * size for _ in range(size - len(rows))]

    def metrics(self) -> dict[str, Any]:
        """Average accuracy, forgetting and backward transfer of the tasks so far; None before the first."""
        rows, figures = self.matrix("accuracy")[: len(self.scores)], (average_accuracy, forgetting, backward_transfer)
        return {
            **{figure.__name__: figure(rows) if rows else None for figure in figures},
            "forgetting_ratio": None,  # it needs the runs of joint training and of guessing
            "capacity": self.capacity,
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in _AS_IT_IS},
            "tasks": [vars(task) for task in self.tasks],
            **{what: self.matrix(what) for what in ("accuracy", "loss", "logits_sha256")},
            "metrics": self.metrics(),
            "timing": {"seconds": self.seconds, "epochs": self.epochs},
            **{key: getattr(self, key) for key in ("environment", "data", "sources")},
            "history": [vars(task) for task in self.history],
            "reuse": self.reuse,
            "status": self.status.value,
            **({"forgotten": self.forgotten} if self.forgotten else {}),
            **({} if self.forgetting is None else {"forgetting": self.forgetting}),
        }


def write_result(path: Path, result: RunResult) -> None:
    """Write ``run.json`` atomically, with its checksum.

    Raises:
        CheckpointError: it cannot be written; what was there before is still there.
    """
    write_checked_json(path, result.to_json())


def read_result(path: Path) -> RunResult:
    """Read ``run.json``.

    Raises:
        CheckpointError: it is missing, damaged, or from a newer version.
    """
    data = read_checked_json(path, SCHEMA, "result")
    try:
        tasks = tuple(TaskSummary(**task) for task in data["tasks"])
        _require_sound(data)
        rows = zip(data["loss"], data["accuracy"], data["logits_sha256"], strict=True)
        scores = [tuple(_score(*cell) for cell in zip(*row, strict=True) if cell[0] is not None) for row in rows]
        return RunResult(
            **{key: data[key] for key in _AS_IT_IS},
            tasks=tasks,
            scores=tuple(row for row in scores if row),
            capacity=data["metrics"]["capacity"],
            epochs=tuple(data["timing"]["epochs"]),
            seconds=tuple(data["timing"]["seconds"]),
            environment=data["environment"],
            status=Status(data["status"]),
            data=tuple(str(origin) for origin in data["data"]),
            sources=tuple(str(path) for path in data["sources"]),
            history=tuple(history_from_json(task) for task in data["history"]),
            reuse=None if data["reuse"] is None else tuple(_numbers(row) for row in data["reuse"]),
            forgotten=int(data.get("forgotten", 0)),
            forgetting=None if data.get("forgetting") is None else str(data["forgetting"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} is damaged, or not a result of hatrack ({type(error).__name__}: {error})"
        ) from error


def rounded_shares(reuse: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return a matrix of shares ``(T, T)`` as it is recorded, with five digits."""
    return tuple(tuple(round(share, 5) for share in row) for row in reuse.tolist())


def _require_sound(data: Any) -> None:
    """Check what else would be believed and fail later."""
    size = len(data["tasks"])
    threads = data["environment"]["threads"]
    whole_numbers = [data["seed"], threads]
    if not all(type(number) is int and number >= 0 for number in whole_numbers) or threads < 1:
        raise TypeError("the seed or the number of threads is not a whole number")
    if not isinstance(data["config"], dict):
        raise TypeError("the config is not a set of keys")
    for what in ("loss", "accuracy", "logits_sha256"):
        matrix = data[what]
        learned = sum(row[0] is not None for row in matrix)
        shape = [[column <= index < learned for column in range(size)] for index in range(size)]
        if [[value is not None for value in row] for row in matrix] != shape:
            raise TypeError(f"{what} is not a lower triangular matrix of {size} tasks")


def history_from_json(task: Any) -> TaskHistory:
    """The history of a task in a file."""
    curves = {key: _numbers(task[key]) for key in ("train_loss", "valid_loss", "valid_accuracy", "used")}
    return TaskHistory(task["capacity"], **curves)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _left_out(values: tuple[T, ...], index: int) -> tuple[T, ...]:
    return (*values[:index], *values[index + 1 :])


def _score(loss: float, accuracy: float, logits_sha256: str) -> Score:
    if not (isinstance(loss, float) and isinstance(accuracy, float) and isinstance(logits_sha256, str)):
        raise TypeError(f"a score holds {loss!r}, {accuracy!r}, {logits_sha256!r}")
    return Score(loss, accuracy, logits_sha256)
