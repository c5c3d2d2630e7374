"""Running an experiment: task after task; a run that was stopped anywhere goes on to the same end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hatrack.checkpoint import Checkpoint, write_checkpoint
from hatrack.experiments.folder import (
    CHECKPOINT,
    LOGITS,
    LOGITS_FORMAT,
    RESULT,
    TrainingKeeper,
    clear_leftovers,
    forget_training,
    keep,
    previous,
    put_back,
)
from hatrack.experiments.preparing import Prepared
from hatrack.experiments.request import environment_of
from hatrack.experiments.results import RunResult, Status, TaskHistory, TaskSummary, write_result
from hatrack.train import BatchDone, EpochDone, Score, Training, predict_splits, require_finite, score

__all__ = ["Event", "TaskBegun", "TaskLearned", "last_logits", "run", "score_row"]


@dataclass(frozen=True)
class TaskBegun:
    """A task is about to be learned, or learned further; ``index`` counts from 0, ``epochs`` were made before."""

    index: int
    task: TaskSummary
    max_epochs: int
    epochs: int = 0


@dataclass(frozen=True)
class TaskLearned:
    """A task was learned, all tasks so far were tested, and everything is on disk."""

    index: int
    result: RunResult


Event = TaskBegun | BatchDone | EpochDone | TaskLearned
"""Event of a run, in the order in which they happen."""


def run(prepared: Prepared) -> Iterator[Event]:
    """Learn the tasks that are left. After each one everything is on disk, and after epochs where its training stands.

    Yields:
        What happens, for whoever wants to show it. Stopping the iteration, or interrupting it, keeps what is on disk.

    Raises:
        TrainingError: the loss is not a number; finished tasks are kept.
        CheckpointError: something could not be written; what is on disk is kept.
    """
    ranks = prepared.request.ranks
    out = prepared.request.out if ranks.rank == 0 else None
    ranks.wait()  # all have read what the folder holds
    if out is not None and (prepared.repairs or prepared.result.status is not Status.FINISHED):
        _tidy(prepared, out)
    for index in range(len(prepared.result.scores), len(prepared.stream)):
        yield from _learn(prepared, index, out)
        yield TaskLearned(index, prepared.result)
    if out is not None:
        forget_training(out)


def _tidy(prepared: Prepared, out: Path) -> None:
    """Bring a folder into order before the run goes on in it."""
    clear_leftovers(out)
    if prepared.fresh:  # what another run may have left is not of this one
        forget_training(out)
        for name in (RESULT, CHECKPOINT):
            previous(out / name).unlink(missing_ok=True)
    learned = len(prepared.result.scores)
    for damaged in prepared.repairs:
        if damaged != out / LOGITS:
            put_back(damaged)
        elif learned:
            write_checkpoint(damaged, Checkpoint(last_logits(prepared, learned), {"format": LOGITS_FORMAT}))
    if not learned or prepared.repairs:
        write_result(out / RESULT, prepared.result)


def _learn(prepared: Prepared, index: int, out: Path | None) -> Iterator[Event]:
    """Learn a task, or what is left of it, and test."""
    method, seen, training = prepared.method, prepared.stream[: index + 1], prepared.config.training
    in_task, prepared.in_task = prepared.in_task, None
    history = TaskHistory() if in_task is None else in_task.history
    several = prepared.request.ranks.size > 1  # what a method gathers in training may differ from process to process
    keeper = TrainingKeeper(None if several else out, index, seen[-1].name, 0.0 if in_task is None else in_task.seconds)
    if prepared.learned == index:
        done = len(history.valid_loss)
        yield TaskBegun(index, prepared.result.tasks[index], sum(method.phases(training.epochs)), done)
        method.begin_task(seen[-1])
        if method.trains:
            state = None if in_task is None else in_task.state
            going = Training(method, seen, training, prepared.request.ranks, state)
            for event in going:
                if isinstance(event, EpochDone):
                    history = history.with_epoch(event, method.usage())
                    keeper.after_epoch(going, history)
                yield event
        method.end_task(seen[-1])
        if out is not None:
            keep(out / CHECKPOINT)
            method.save(out / CHECKPOINT)
        prepared.learned = index + 1
    _record(prepared, history, keeper.seconds)


def last_logits(prepared: Prepared, learned: int) -> dict[str, Tensor]:
    """Test logits of the first ``learned`` tasks by name, the method run on each."""
    batch_size = prepared.config.training.eval_batch_size
    return predict_splits(prepared.method, {task.name: task.test for task in prepared.stream[:learned]}, batch_size)


def score_row(prepared: Prepared, logits: Mapping[str, Tensor]) -> tuple[Score, ...]:
    """The scores of test logits, by name of the task."""
    tasks = prepared.stream[: len(logits)]
    return tuple(score(logits[task.name], task.test.labels) for task in tasks)


def _record(prepared: Prepared, history: TaskHistory, seconds: float) -> None:
    """Test on all tasks learned, and write the logits and the result."""
    logits = last_logits(prepared, len(prepared.result.scores) + 1)
    capacity, reuse = prepared.method.capacity(), prepared.method.reuse()
    history = replace(history, capacity=None if capacity is None else dataclasses.asdict(capacity))
    shares = None if reuse is None else tuple(tuple(round(share, 5) for share in row) for row in reuse.tolist())
    row = score_row(prepared, logits)
    for task, of_task in zip(prepared.result.tasks, row, strict=False):
        require_finite(of_task.loss, "test loss", task.name)
    here = environment_of(prepared.request)
    prepared.result = replace(prepared.result.with_row(row, history, round(seconds, 3), shares), environment=here)
    out = prepared.request.out
    if out is not None and prepared.request.ranks.rank == 0:
        write_checkpoint(out / LOGITS, Checkpoint(logits, {"format": LOGITS_FORMAT}))
        keep(out / RESULT)
        write_result(out / RESULT, prepared.result)
