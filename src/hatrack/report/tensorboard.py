"""Following a run in TensorBoard, while it goes on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments import Event, RunResult, TaskBegun, TaskLearned
from hatrack.objectives import ACCURACY
from hatrack.report.runs import in_use
from hatrack.train import EpochDone

__all__ = ["TensorBoard"]


class TensorBoard:
    """A context in which :meth:`show` is given the events of a run, and writes them for TensorBoard.

    Per epoch: training loss, validation loss and accuracy (or another metric), learning rate, under ``epochs/``. Per
    task: the same metric on every task so far under ``tasks/``, its average, forgetting, and the share of the network
    in use.

    Args:
        folder: folder to write to; ``tensorboard --logdir`` is given it, or one above it.
        result: the run as it stands; epochs are counted on from it.

    Raises:
        InputError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, result: RunResult) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("curves for TensorBoard need tensorboard: pip install 'hatrack[tensorboard]'") from error
        self._writer: Any = SummaryWriter(str(folder))
        self._epoch = sum(result.epochs)
        self._metric = ACCURACY

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def show(self, event: Event) -> None:
        """Write what happened."""
        match event:
            case TaskBegun():
                self._metric = event.task.metric
                self._writer.add_text("task", event.task.name, self._epoch + 1)
            case EpochDone():
                self._epoch += 1
                for name in ("train_loss", "valid_loss", "lr"):
                    self._writer.add_scalar(f"epochs/{name}", getattr(event, name), self._epoch)
                if event.valid_score is not None:
                    name = "valid_accuracy" if self._metric == ACCURACY else "valid_score"
                    self._writer.add_scalar(f"epochs/{name}", event.valid_score, self._epoch)
            case TaskLearned():
                self._learned(event.result, event.index + 1)

    def _learned(self, result: RunResult, learned: int) -> None:
        for task, score in zip(result.tasks, result.scores[-1], strict=False):
            self._writer.add_scalar(f"tasks/{task.name}", score.value, learned)
        figures = result.metrics()
        average = "average_accuracy" if result.metric == ACCURACY else "average_score"
        for name in (average, "forgetting", "class_incremental_accuracy", "task_recognised"):
            if figures[name] is not None:
                self._writer.add_scalar(name, figures[name], learned)
        share = in_use(result.capacity)
        if share is not None:
            self._writer.add_scalar("in_use", share, learned)
        self._writer.flush()
