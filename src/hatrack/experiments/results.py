"""The results of a run: what ``run.json`` holds."""

from __future__ import annotations

import enum
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hatrack.errors import CheckpointError
from hatrack.experiments.metrics import average_score, forgetting
from hatrack.experiments.own_method import OwnMethod
from hatrack.experiments.recognition import KEYS, Recognition
from hatrack.objectives import (
    ACCURACY,
    Classification,
    Metric,
    MultiLabel,
    Regression,
    common_metric,
    objective_from_json,
)
from hatrack.objectives.metrics import BALANCED_ACCURACY
from hatrack.recognition import Confusion
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.streams import FilesRead, Scaling, Task
from hatrack.streams.own.streams import READ_WITH, UNNAMED
from hatrack.support.notebook import html_table
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

SCHEMA = 2
"""Version of the format of ``run.json``; 1, which knows classes alone, is still read."""

_ERROR = "score_error"
"""Name in a file of the errors of scores by the choice of the test samples, which a file without any leaves out."""

_AS_IT_IS = ("experiment", "method", "seed", "command", "config")
"""Attributes that a file holds under their names, as they are."""

_SHOWN = 5
"""Number of names of classes that a line tells."""

_OUTPUTS = {
    "": "outputs",
    Classification.kind: "classes",
    Regression.kind: "columns of numbers",
    MultiLabel.kind: "labels",
}
"""Outputs of a task, by the kind of its objective."""

T = TypeVar("T")


class Status(str, enum.Enum):
    """Progress of a run."""

    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class TaskSummary:
    """A task in ``run.json``.

    Attributes:
        name: its name.
        classes: number of its classes, labels or columns.
        train: number of training samples.
        valid: number of validation samples.
        test: number of test samples.
        metric: metric of its scores.
        objective: description of its objective, as of ``Objective.to_json``; None where nothing was recorded.
        class_names: names of the classes, labels or columns, in the order of the outputs; this and all that follows is
            None in files of before it was recorded.
        files: the files of one's own that it was read from; None for data sets that hatrack knows, and for tensors.
        shape: shape of one sample; None for nested tensors, too.
        range: smallest and largest value of the training samples before they are scaled; None likewise.
        scaling: way in which the samples are scaled.
        test_seen: number of test samples that are identical with samples that a task trains on, by the name of that
            task; None where that was not counted, as for data sets that hatrack knows.
        scaled_over: number of samples that mean and deviation were computed of: the whole training part of the files,
            whatever ``limit`` and ``validation`` leave of it; None where they were not computed.
        test_drawn: share of its samples that the seed drew to test on; None where the data say which these are.
        test_by_class: number of test samples by class, of those that have any; None but for the balanced accuracy.
    """

    name: str
    classes: int
    train: int
    valid: int
    test: int
    metric: Metric = ACCURACY
    objective: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] | None = None
    files: FilesRead | None = None
    shape: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    scaling: Scaling | None = None
    test_seen: Mapping[str, int] | None = None
    scaled_over: int | None = None
    test_drawn: float | None = None
    test_by_class: tuple[int, ...] | None = None

    @classmethod
    def of(cls, task: Task) -> TaskSummary:
        """Summarise a task."""
        sizes = (len(task.train), len(task.valid), len(task.test))
        values = task.train.value_range
        balanced = task.objective.metric == BALANCED_ACCURACY
        return cls(
            task.name,
            task.num_classes,
            *sizes,
            task.objective.metric,
            task.objective.to_json(),
            class_names=task.classes,
            files=task.files,
            shape=None if values is None else task.input_shape,
            range=values,
            scaling=task.train.scaling,
            test_seen=task.test_seen,
            scaled_over=task.scaled_over,
            test_drawn=task.test_drawn,
            test_by_class=tuple(filter(None, task.test.labels.bincount().tolist())) if balanced else None,
        )

    def without(self, other: str) -> TaskSummary:
        """Return the summary without mention of another task."""
        seen = self.test_seen
        return self if seen is None else replace(self, test_seen={k: n for k, n in seen.items() if k != other})

    def say(self) -> str:
        """Say in one line what the task was read from, and as what; empty where nothing of it was recorded."""
        if self.class_names is None:
            return ""
        shown = self.class_names if len(self.class_names) <= _SHOWN else (*self.class_names[:_SHOWN], "…")
        kind = _OUTPUTS["" if self.objective is None else self.objective["kind"]]
        told = [] if self.files is None else [self.files.say()]
        told.append(f"{self.classes} {kind} ({', '.join(shown)})")
        if self.shape is not None and self.range is not None:
            told.append(f"samples {self.shape}, values {self.range[0]:g} to {self.range[1]:g}")
        if self.scaling is not None:
            over = "" if self.scaled_over in (None, self.train) else f", over {self.scaled_over:,} samples"
            told.append(f"scaling: {self.scaling.value}{over}")
        return f"task {self.name}: {'; '.join(told)}"

    def to_json(self) -> dict[str, Any]:
        """The entry of ``run.json``; what was not recorded is left out."""
        entry = {key: value for key, value in vars(self).items() if value is not None or key not in _LATER}
        entry["metric"] = self.metric.to_json()
        if self.files is not None:
            entry["files"] = self.files.to_json()
        if self.scaling is not None:
            entry["scaling"] = self.scaling.value
        return entry

    @classmethod
    def from_json(cls, content: Any) -> TaskSummary:
        """The task of an entry of ``run.json``, of any schema."""
        objective, names = content.get("objective"), content.get("class_names")
        if objective is not None and objective_from_json(objective).outputs != content["classes"]:
            raise ValueError(f"the objective of {content['name']} is not that of {content['classes']} outputs")
        if names is not None and len(names) != content["classes"]:
            raise ValueError(f"{content['name']} has {content['classes']} outputs and {len(names)} names of them")
        metric = Metric.from_json(content["metric"]) if "metric" in content else ACCURACY
        later = {key: read(content[key]) for key, read in _LATER.items() if content.get(key) is not None}
        return cls(**{**content, "metric": metric, "objective": objective, **later})


@dataclass(frozen=True)
class TaskHistory:
    """History of learning a task, from which curves over a run are drawn.

    The sequences have an entry per epoch; all are empty where a run was stopped before they were written.

    Attributes:
        capacity: what the method says of its use of the network, after the task; None if it says nothing.
        train_loss: mean loss of the batches.
        valid_loss: loss on the validation set.
        valid_score: metric on the validation set; empty where tasks of several metrics are trained together.
        used: share of units, or of weights where masks are about weights, that all tasks use, this one included; empty
            for methods without masks.
    """

    capacity: dict[str, Any] | None = None
    train_loss: tuple[float, ...] = ()
    valid_loss: tuple[float, ...] = ()
    valid_score: tuple[float, ...] = ()
    used: tuple[float, ...] = ()

    def with_epoch(self, epoch: EpochDone, used: float | None) -> TaskHistory:
        """The history after one more epoch; five digits are plenty for a curve."""
        return replace(
            self,
            train_loss=(*self.train_loss, round(epoch.train_loss, 5)),
            valid_loss=(*self.valid_loss, round(epoch.valid_loss, 5)),
            valid_score=self.valid_score
            if epoch.valid_score is None
            else (*self.valid_score, _five_digits(epoch.valid_score)),
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
        relative_sources: the same as seen from the run's folder, for projects that are moved; empty if not recorded.
        history: what happened during every task learned.
        reuse: share of the weights of task i (row) that task j (column) uses too; None if the method does not know.
        memory: number of earlier tasks' samples that the method keeps in the end; None if it keeps none.
        forgotten: how many tasks were forgotten, of which nothing is left in any other attribute.
        forgetting: the task that is being forgotten, while other files of the run may hold it or not; else None.
        recognition: what test samples were taken for where no task was named; None where that was not measured.
        own_method: what a method of one's own says of itself; None for hatrack's, and in files of before.
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
    relative_sources: tuple[str, ...] = ()
    history: tuple[TaskHistory, ...] = ()
    reuse: tuple[tuple[float, ...], ...] | None = None
    memory: int | None = None
    forgotten: int = 0
    forgetting: str | None = None
    recognition: Recognition | None = None
    own_method: OwnMethod | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether all tasks of the experiment were learned, and none was unlearned since."""
        return self.status is Status.FINISHED and not self.forgotten and self.forgetting is None

    @property
    def knows_classes_alone(self) -> bool:
        """Return whether it was recorded in schema 1, when targets could be nothing else."""
        return all(task.objective is None for task in self.tasks)

    def with_row(
        self,
        row: tuple[Score, ...],
        history: TaskHistory,
        seconds: float,
        reuse: tuple[tuple[float, ...], ...] | None = None,
        memory: int | None = None,
        found: Confusion | None = None,
    ) -> RunResult:
        """The run after one more task."""
        recognition = None if found is None else (self.recognition or Recognition()).with_row(found)
        return replace(
            self,
            scores=(*self.scores, row),
            capacity=history.capacity,
            history=(*self.history, history),
            reuse=reuse,
            memory=memory,
            epochs=(*self.epochs, len(history.valid_loss)),
            seconds=(*self.seconds, seconds),
            status=Status.FINISHED if len(self.scores) + 1 == len(self.tasks) else Status.RUNNING,
            recognition=recognition,
        )

    def replanned(self, tasks: tuple[TaskSummary, ...], **described: Any) -> RunResult:
        """The run with other tasks to learn; those that it has learned are the same.

        Args:
            tasks: all tasks.
            **described: attributes that say what the tasks are made of: ``command``, ``config``, ``data``, ``sources``
                and ``relative_sources``.
        """
        status = Status.FINISHED if len(self.scores) == len(tasks) else Status.RUNNING
        return replace(self, tasks=tasks, status=status, **described)

    def first(self, learned: int) -> RunResult:
        """The run as it was after its first tasks, as far as that is known."""
        before = self.history[learned - 1].capacity if learned else None
        return replace(
            self,
            **{name: getattr(self, name)[:learned] for name in ("scores", "history", "epochs", "seconds")},
            capacity=before,
            reuse=None if self.reuse is None or not learned else tuple(row[:learned] for row in self.reuse[:learned]),
            status=Status.FINISHED if learned == len(self.tasks) else Status.RUNNING,
            recognition=None if self.recognition is None else self.recognition.first(learned),
        )

    def without_task(
        self,
        name: str,
        capacity: dict[str, Any] | None,
        reuse: tuple[tuple[float, ...], ...] | None,
        found: Confusion | None = None,
    ) -> RunResult:
        """The run as if a task had never been part of it, but for how many were forgotten.

        What the run said of the network's use while the task was part of it goes, too: it counts the task's share. So
        does what was recognised then, since samples could be taken for the task.

        Args:
            name: the task, learned or not.
            capacity: what the method says of its use of the network without the task.
            reuse: shares of weights between the tasks that are left.
            found: what the test samples of the tasks that are left are taken for now; None where nobody measured it.
        """
        index = [task.name for task in self.tasks].index(name)
        history = _left_out(self.history, index)
        history = (*history[:index], *(replace(later, capacity=None, used=()) for later in history[index:]))
        if history:
            history = (*history[:-1], replace(history[-1], capacity=capacity))
        sources, relative = (
            tuple(path for path in paths if path.endswith(".toml") or Path(path).stem != name)
            for paths in (self.sources, self.relative_sources)
        )
        command = [word for word in shlex.split(self.command) if word not in self.sources or word in sources]
        config = self.config
        if sources != self.sources and config.get("num_tasks") is not None:
            config = {**config, "num_tasks": max(1, config["num_tasks"] - 1)}
            command = [f"num_tasks={config['num_tasks']}" if w.startswith("num_tasks=") else w for w in command]
        return replace(
            self,
            experiment=self.experiment if sources == self.sources else UNNAMED,
            command=shlex.join(command),
            config=config,
            tasks=tuple(task.without(name) for task in _left_out(self.tasks, index)),
            epochs=_left_out(self.epochs, index),
            seconds=_left_out(self.seconds, index),
            scores=tuple(_left_out(row, index) for row in _left_out(self.scores, index)),
            capacity=capacity,
            data=_without_name(self.data, name),
            sources=sources,
            relative_sources=relative,
            history=history,
            reuse=reuse,
            forgotten=self.forgotten + 1,
            forgetting=None,
            recognition=None if self.recognition is None else self.recognition.without_task(index, found),
        )

    def matrix(self, what: str) -> list[list[Any]]:
        """A lower triangular ``T × T`` matrix of one part of the scores, None elsewhere.

        Args:
            what: ``score``, ``loss``, ``error`` or ``logits_sha256``; or ``accuracy``, the score of tasks whose
                metric that is, and None for others.
        """
        size = len(self.tasks)
        rows = [[self._part(score, task, what) for task, score in enumerate(row)] for row in self.scores]
        return [*(row + [None] * (size - len(row)) for row in rows), *([None] * size for _ in range(size - len(rows)))]

    def _part(self, score: Score, task: int, what: str) -> Any:
        if what == "accuracy" and self.tasks[task].metric != ACCURACY:
            return None
        return score.value if what in ("accuracy", "score") else getattr(score, what)

    @property
    def metric(self) -> Metric | None:
        """Metric of all tasks; None where they have different ones, of which no mean means anything."""
        return common_metric(tuple(task.metric for task in self.tasks))

    def metrics(self) -> dict[str, Any]:
        """Average score, forgetting and backward transfer of the tasks so far; None before the first.

        Forgetting and backward transfer of a single task are None, since nothing was learned after it. All three are
        None where tasks have different metrics; ``note`` says so then, and ``by_metric`` has them for the tasks of
        every metric.
        """
        metric = self.metric
        size = len(self.scores)
        figures = self._figures(range(size), metric)
        found: dict[str, Any] = {
            "average_accuracy": figures["average_score"] if metric == ACCURACY else None,
            **figures,
            "forgetting_ratio": None,  # it needs the runs of joint training and of guessing
            "capacity": self.capacity,
            **(self.recognition or Recognition()).figures([task.test for task in self.tasks]),
        }
        different = list(dict.fromkeys(task.metric for task in self.tasks))
        if len(different) > 1:
            names = ", ".join(each.name for each in different)
            found["note"] = f"tasks have different metrics ({names}), of which no mean means anything"
            found["by_metric"] = {
                each.name: self._figures([i for i in range(size) if self.tasks[i].metric == each], each)
                for each in different
            }
        return found

    def _figures(self, tasks: Sequence[int], metric: Metric | None) -> dict[str, float | None]:
        """Figures of some of the tasks learned, after the last one of all; None where there are none."""
        if metric is None or not tasks:
            return dict.fromkeys(("average_score", "forgetting", "backward_transfer"))
        # Each row is after one of these tasks, but for the last, which is after all.
        rows = [[self.scores[after][task].value for task in tasks[: at + 1]] for at, after in enumerate(tasks)]
        rows[-1] = [self.scores[-1][task].value for task in tasks]
        if [*tasks] == [len(self.scores) - 1]:  # nothing was learned after it
            return {"average_score": average_score(rows), "forgetting": None, "backward_transfer": None}
        own = self.scores[tasks[-1]][tasks[-1]].value
        lost = forgetting(rows, larger_is_better=metric.larger_is_better)
        if tasks[-1] != len(self.scores) - 1:  # the last of these has had time to be forgotten, too
            lost = (lost * (len(tasks) - 1) - metric.gain(rows[-1][-1], own)) / len(tasks)
        return {"average_score": average_score(rows), "forgetting": lost, "backward_transfer": 0.0 - lost}

    def _repr_html_(self) -> str:
        learned, metric = len(self.scores), self.metric
        names = [task.name for task in self.tasks[:learned]]
        rows = [
            (
                names[t],
                *(self.tasks[i].metric.say(score.value) for i, score in enumerate(row)),
                *[""] * (learned - t - 1),
            )
            for t, row in enumerate(self.scores)
        ]
        figures = self._figures(range(learned), metric)
        notes = [
            f"{figure.replace('_', ' ')} {metric.say(value)}"
            for figure, value in figures.items()
            if metric is not None and value is not None
        ]
        of = f"{learned} of {len(self.tasks)} tasks learned, {self.status.value}"
        title = f"{self.experiment} · {self.method} · seed {self.seed}: {of}"
        said = f" ({metric.name})" if metric is not None else ""
        return html_table(title, (f"after{said}", *names), rows, [", ".join(notes)] if notes else [])

    def to_json(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in _AS_IT_IS},
            "tasks": [task.to_json() for task in self.tasks],
            **{what: self.matrix(what) for what in ("score", "accuracy", "loss", "logits_sha256")},
            **({_ERROR: self.matrix("error")} if any(each.error for row in self.scores for each in row) else {}),
            "metrics": self.metrics(),
            "timing": {"seconds": self.seconds, "epochs": self.epochs},
            **{key: getattr(self, key) for key in ("environment", "data", "sources")},
            **({"relative_sources": self.relative_sources} if self.relative_sources else {}),
            "history": [vars(task) for task in self.history],
            "reuse": self.reuse,
            **(dict.fromkeys(KEYS) if self.recognition is None else self.recognition.to_json(len(self.tasks))),
            **({} if self.memory is None else {"memory": self.memory}),
            "status": self.status.value,
            **({"forgotten": self.forgotten} if self.forgotten else {}),
            **({} if self.forgetting is None else {"forgetting": self.forgetting}),
            **({} if self.own_method is None else {"own_method": self.own_method.to_json()}),
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
        if data["schema"] == 1:
            data["score"] = data["accuracy"]
        tasks = tuple(TaskSummary.from_json(task) for task in data["tasks"])
        _require_sound(data)
        _require_accuracies(data, tasks)
        none = [[None] * len(tasks)] * len(tasks)
        rows = zip(data["loss"], data["score"], data["logits_sha256"], data.get(_ERROR, none), strict=True)
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
            relative_sources=tuple(str(path) for path in data.get("relative_sources", ())),
            history=tuple(history_from_json(task) for task in data["history"]),
            reuse=None if data["reuse"] is None else tuple(_numbers(row) for row in data["reuse"]),
            memory=None if data.get("memory") is None else int(data["memory"]),
            forgotten=int(data.get("forgotten", 0)),
            forgetting=None if data.get("forgetting") is None else str(data["forgetting"]),
            own_method=None if data.get("own_method") is None else OwnMethod.from_json(data["own_method"]),
            recognition=Recognition.from_json(data, sum(map(bool, scores)), [task.classes for task in tasks]),
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
    for what in ("loss", "score", "logits_sha256"):
        matrix = data[what]
        learned = sum(row[0] is not None for row in matrix)
        shape = [[column <= index < learned for column in range(size)] for index in range(size)]
        if [[value is not None for value in row] for row in matrix] != shape:
            raise TypeError(f"{what} is not a lower triangular matrix of {size} tasks")


def _require_accuracies(data: Any, tasks: Sequence[TaskSummary]) -> None:
    """Check that accuracies are the scores of the tasks whose metric they are, and None elsewhere."""
    known = [task.metric == ACCURACY for task in tasks]
    expected = [[value if there else None for value, there in zip(row, known, strict=True)] for row in data["score"]]
    if data["accuracy"] != expected:
        raise TypeError("the accuracies are not the scores of the tasks whose metric is the accuracy")


def history_from_json(task: Any) -> TaskHistory:
    """The history of a task in a file."""
    curves = {key: _numbers(task[key]) for key in ("train_loss", "valid_loss", "used")}
    scores = task["valid_score"] if "valid_score" in task else task["valid_accuracy"]  # as it was called in schema 1
    return TaskHistory(task["capacity"], **curves, valid_score=_numbers(scores))


def _five_digits(score: float) -> float:
    """Round a score to five decimals, or to five digits where it is small, as an error in large units is."""
    return round(score, 5) if score == 0 or abs(score) >= 1e-2 else float(f"{score:.5g}")


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _without_name(lines: Sequence[str], name: str) -> tuple[str, ...]:
    """Leave out the line about a task, and what others say of how they are read if that names it, as columns may."""
    others = (line for line in lines if line.partition(":")[0] != name)
    return tuple(line.partition(READ_WITH)[0] if name in line.partition(READ_WITH)[2] else line for line in others)


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    if not all(isinstance(value, (int, float)) for value in (low, high)):
        raise TypeError(f"a range holds {values!r}")
    return low, high


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(map(str, values))


def _size(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no number of samples")
    return value


def _share(value: Any) -> float:
    if type(value) is not float or not 0.0 < value < 1.0:
        raise ValueError(f"{value!r} is no share of samples")
    return value


def _counts(values: Any) -> dict[str, int]:
    return {str(name): _size(count) for name, count in values.items()}


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(map(int, values))


_LATER: Mapping[str, Callable[[Any], Any]] = {
    "class_names": _texts,
    "files": FilesRead.from_json,
    "shape": _sizes,
    "range": _pair,
    "scaling": Scaling,
    "test_seen": _counts,
    "scaled_over": _size,
    "test_drawn": _share,
    "test_by_class": lambda values: tuple(map(_size, values)),
}
"""Functions that read what was not always recorded of a task, by their names in a file and in :class:`TaskSummary`."""


def _left_out(values: tuple[T, ...], index: int) -> tuple[T, ...]:
    return (*values[:index], *values[index + 1 :])


def _score(loss: float, value: float, logits_sha256: str, error: float | None) -> Score:
    if not (isinstance(loss, float) and isinstance(value, float) and isinstance(logits_sha256, str)):
        raise TypeError(f"a score holds {loss!r}, {value!r}, {logits_sha256!r}")
    if error is not None and not (isinstance(error, float) and 0.0 < error < math.inf):
        raise ValueError(f"{error!r} is no standard error of a score")
    return Score(loss, value, logits_sha256, error)
