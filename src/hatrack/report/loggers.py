"""Curves of a run in TensorBoard, Weights & Biases or MLflow while it goes on, or in a logger of one's own.

A :class:`Logger` has three methods, and knows nothing of runs. :func:`with_logs` carries out a run and tells loggers
what happens. Nothing is sent anywhere: all three loggers of this module write to a folder.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Protocol

from hatrack.errors import HatrackError, InputError
from hatrack.experiments import Event, Run, RunResult, Status, TaskBegun, TaskLearned, run
from hatrack.experiments.folder import note_logs
from hatrack.objectives import ACCURACY, Metric
from hatrack.report.runs import in_use
from hatrack.support.names import in_one_line, look_up
from hatrack.train import EpochDone

__all__ = [
    "LOGGERS",
    "Logger",
    "MLflowLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "epoch_values",
    "require_logger",
    "task_values",
    "with_logs",
]


class Logger(Protocol):
    """Destination of a run's curves.

    Attributes:
        place: the folder that it writes to, or the address. A run's folder records places outside of it, so that
            whoever forgets a task is told what may still name it.
    """

    @property
    def place(self) -> str:
        """Folder that it writes to, or the address."""

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Take up what is known of a run when it begins or goes on: numbers, texts, truth values, lists of them, None.

        Args:
            settings: values by name.
        """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to curves.

        Args:
            values: values by the names of their curves. Names that begin with ``epochs/`` count epochs, over all tasks;
                all others count tasks.
            step: number of the epoch or task, from 1. After an interruption epochs may come again, with the same
                values.
        """

    def close(self, *, complete: bool) -> None:
        """Write what is left.

        Args:
            complete: whether the run has ended; false where it was interrupted or has failed, and may go on.
        """


class TensorBoardLogger:
    """Logger for TensorBoard; ``tensorboard --logdir`` is given its folder, or one above it.

    Args:
        folder: folder to write to; it is made if need be.

    Raises:
        InputError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        self.place = str(folder)
        self._writer: Any = _package("tensorboard").SummaryWriter(self.place)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Write settings as a text."""
        self._writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, complete: bool = True) -> None:
        """Close the file."""
        self._writer.close()


class WandbLogger:
    """Logger for Weights & Biases in its offline mode, whatever ``WANDB_MODE`` says: nothing leaves this machine.

    Values lie in ``wandb/offline-run-…`` below the folder, and ``wandb sync`` sends them to a server if you want that.
    A run that goes on keeps its id. Reports of errors to the makers of W&B are off
    (``WANDB_ERROR_REPORTING=false``), as are its records of the machine, of code and of the terminal.

    Args:
        folder: folder in which a folder ``wandb`` is made; that of the run, so that it is found again.
        project: name of the project.

    Raises:
        InputError: wandb is not installed.
    """

    def __init__(self, folder: Path | str, *, project: str = "hatrack") -> None:
        wandb = _package("wandb")
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.place = str(folder / "wandb")
        earlier = sorted(path.name for path in Path(self.place).glob("offline-run-*-*"))
        off = ("x_disable_stats", "x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code", "silent")
        settings = wandb.Settings(
            mode="offline",
            root_dir=str(folder),
            project=project,
            run_id=earlier[-1].rpartition("-")[2] if earlier else None,
            reinit="create_new",
            console="off",
            save_code=False,
            **dict.fromkeys(off, True),
        )
        self._run = wandb.init(settings=settings)
        self._run.define_metric("*", step_metric="step")

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Write settings as the run's config."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write values, with the step as one more value, which is the axis of all curves."""
        self._run.log({**values, "step": step})

    def close(self, *, complete: bool = True) -> None:
        """Finish the run; one that is not complete is marked as crashed."""
        self._run.finish(exit_code=0 if complete else 1)


class MLflowLogger:
    """Logger for MLflow in a folder: ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`` shows it.

    Neither ``MLFLOW_TRACKING_URI`` nor the active run of the program is looked at, and MLflow's own reports on how it
    is used are off (``MLFLOW_DISABLE_TELEMETRY=true``). A folder holds one run, which goes on when it is logged again.

    Args:
        folder: folder for the database ``mlflow.db``; it is made if need be.
        experiment: name of MLflow's experiment.

    Raises:
        InputError: mlflow is not installed.
    """

    def __init__(self, folder: Path | str, *, experiment: str = "hatrack") -> None:
        mlflow = _package("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.place = str(folder)
        with _without_talk("mlflow.store.db.utils"):
            self._client: Any = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                number = self._client.create_experiment(experiment, (folder / "artifacts").as_uri())
            else:
                number = found.experiment_id
            earlier = self._client.search_runs([number])
            self._id = (earlier[0] if earlier else self._client.create_run(number)).info.run_id
            self._client.update_run(self._id, status="RUNNING")

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Write settings as parameters; those of a run that goes on stay as they were."""
        known = self._client.get_run(self._id).data.params
        new = [self._entities.Param(key, str(value)[:500]) for key, value in settings.items() if key not in known]
        for start in range(0, len(new), 100):
            self._client.log_batch(self._id, params=new[start : start + 100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics."""
        now = time.time_ns() // 1_000_000
        points = [self._entities.Metric(name, float(value), now, step) for name, value in values.items()]
        for start in range(0, len(points), 1000):
            self._client.log_batch(self._id, metrics=points[start : start + 1000])

    def close(self, *, complete: bool = True) -> None:
        """Mark the run as finished; one that is not complete as killed."""
        self._client.set_terminated(self._id, status="FINISHED" if complete else "KILLED")


LOGGERS: Mapping[str, Callable[[Path], Logger]] = MappingProxyType(
    {
        "tensorboard": lambda folder: TensorBoardLogger(folder / "tensorboard"),
        "wandb": WandbLogger,
        "mlflow": lambda folder: MLflowLogger(folder / "mlflow"),
    }
)
"""Loggers by name, made from the folder of a run, of which each has a folder of its own name."""

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def require_logger(name: str) -> None:
    """Check that a logger can be had, before anything is learned.

    Args:
        name: its name in :data:`LOGGERS`.

    Raises:
        InputError: there is no such logger, or its package is not installed.
    """
    look_up("logger", name, LOGGERS)
    _package(name)


def with_logs(going: Run, *loggers: Logger) -> Generator[Event, None, None]:
    """Carry out a run, and tell loggers what happens.

    Args:
        going: the run, prepared.
        *loggers: where to write. They are closed when the run ends or fails, or when the generator is closed: who stops
            early holds it by :func:`contextlib.closing`.

    Yields:
        The events of :func:`hatrack.experiments.run`.

    Raises:
        HatrackError: as :func:`hatrack.experiments.run`; or a logger failed.
    """
    with ExitStack() as stack:
        for logger in loggers:
            stack.callback(_close, logger, going)
        if going.folder is not None and loggers:
            note_logs(going.folder.path, [logger.place for logger in loggers])
        result = going.result
        known = {"experiment": result.experiment, "method": result.method, "seed": result.seed, **result.config}
        for logger in loggers:
            logger.describe(known)
        epoch, begun = sum(result.epochs), None
        for event in run(going):
            values: dict[str, float] = {}
            step = 0
            match event:
                case TaskBegun():
                    begun = event
                    epoch = sum(going.result.epochs) + event.epochs
                case EpochDone() if begun is not None:
                    epoch += 1
                    step = epoch
                    values = {f"epochs/{name}": value for name, value in epoch_values(event, begun.task.metric).items()}
                    values["epochs/task"] = begun.index + 1
                case TaskLearned():
                    step, values = event.index + 1, task_values(event.result)
            if values:
                for logger in loggers:
                    _log(logger, values, step)
            yield event


def _close(logger: Logger, going: Run) -> None:
    logger.close(complete=going.result.status is Status.FINISHED)


def _log(logger: Logger, values: Mapping[str, float], step: int) -> None:
    """Tell a logger, whose failure leaves the run where it is.

    Raises:
        InputError: it failed, as where its disk is full.
    """
    try:
        logger.log(values, step)
    except HatrackError:
        raise
    except Exception as error:
        raise InputError(
            f"the curves in {logger.place} cannot be written ({in_one_line(error)}); the run is kept up to its last "
            "epoch, and goes on if it is started again, with this logger or without it"
        ) from error


def epoch_values(event: EpochDone, metric: Metric = ACCURACY) -> dict[str, float]:
    """Return what is known of an epoch, by name: losses, the learning rate and the score on the validation samples.

    Args:
        event: the epoch, as ``fit(watch=...)`` of a :class:`~hatrack.Learner` gives it.
        metric: the task's metric; the score of another one than accuracy is called ``valid_score``.
    """
    values = {"train_loss": event.train_loss, "valid_loss": event.valid_loss, "lr": event.lr}
    if event.valid_score is not None:
        values["valid_accuracy" if metric == ACCURACY else "valid_score"] = event.valid_score
    return {name: value for name, value in values.items() if value is not None}


def task_values(result: RunResult) -> dict[str, float]:
    """Return what is known after the last learned task of a run, by name.

    Args:
        result: the run so far, of one task at least.

    Returns:
        The metric of every task, ``tasks/NAME``; their average, forgetting, what is recognised without a task's name,
        and the share of the network in use, as far as these are known.
    """
    values = {f"tasks/{task.name}": score.value for task, score in zip(result.tasks, result.scores[-1], strict=False)}
    figures = result.metrics()
    average = "average_accuracy" if result.metric == ACCURACY else "average_score"
    names = (average, "forgetting", "class_incremental_accuracy", "task_recognised")
    further = {**{name: figures[name] for name in names}, "in_use": in_use(result.capacity)}
    return {**values, **{name: value for name, value in further.items() if value is not None}}


def _package(name: str) -> ModuleType:
    """Import the package behind a logger.

    Raises:
        InputError: it is not installed.
    """
    # Both read these when they are imported, and would call home.
    if name == "wandb":
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    elif name == "mlflow":
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dependencies of theirs
            module = importlib.import_module(_MODULES[name])
        if getattr(module, "__file__", None) is None:  # a folder of that name where the program was started
            raise ImportError(f"{_MODULES[name]} is a mere folder")
    except ImportError as error:
        reason = in_one_line(error)
        raise InputError(f"curves for {name} need its package: pip install 'hatrack[{name}]' ({reason})") from error
    return module


@contextmanager
def _without_talk(name: str) -> Iterator[None]:
    """Keep a package's warnings, and what it says below a warning, from the terminal."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
