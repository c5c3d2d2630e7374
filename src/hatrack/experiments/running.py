"""Running an experiment: task after task; a run that was stopped anywhere goes on to the same end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from hatrack.errors import InputError
from hatrack.experiments.folder import CHECKPOINT, LOGITS, LOGITS_FORMAT, RESULT, RunFolder, TrainingKeeper, previous
from hatrack.experiments.preparing import Run
from hatrack.experiments.recognition import calibrate_task, measure_recognition
from hatrack.experiments.request import environment_of
from hatrack.experiments.results import RunResult, TaskHistory, TaskSummary, rounded_shares, write_result
from hatrack.recognition import Confusion
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.train import BatchDone, EpochDone, Score, Training, predict_splits, require_finite, score, warm_up

__all__ = ["Event", "TaskBegun", "TaskLearned", "last_confusion", "last_logits", "run", "score_row"]


MOST_ROUNDED = 0.02
"""Largest difference of recorded logits, as a share of the largest one, that is taken for rounding."""


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


def run(prepared: Run) -> Iterator[Event]:
    """Learn the tasks that are left. After each one everything is on disk, and after epochs where its training stands.

    Yields:
        What happens, for whoever wants to show it. Stopping the iteration, or interrupting it, keeps what is on disk.

    Raises:
        InputError: the processes of the run have found different data, or the network answers otherwise than the run
            has recorded; nothing is written.
        TrainingError: the loss is not a number; finished tasks are kept.
        CheckpointError: something could not be written; what is on disk is kept.
    """
    ranks = prepared.request.ranks
    folder = prepared.folder if ranks.rank == 0 else None
    ranks.wait()  # all have read what the folder holds
    ranks.require_same_data(prepared.stream.origins, prepared.request.device)
    going_on = len(prepared.result.scores) < len(prepared.stream)
    if going_on and prepared.folder is not None:  # in every process, none of which may wait for one that gave up
        _require_same_answers(prepared, prepared.folder)
    if folder is not None and (prepared.repairs or prepared.replanned or going_on):
        _tidy(prepared, folder)
    if going_on and prepared.method.trains:  # else the first task of a process would be charged for its start
        warm_up(prepared.config.training, prepared.request.device)
    for index in range(len(prepared.result.scores), len(prepared.stream)):
        yield from _learn(prepared, index, folder)
        yield TaskLearned(index, prepared.result)
    if folder is not None:
        folder.forget_training()


def _require_same_answers(prepared: Run, folder: RunFolder) -> None:
    """Check that the method still answers as the run has recorded of the task that it learned last.

    A network of one's own may compute something else with the same weights, and the record would be of two networks.
    Other machines round otherwise, which is let be.

    Raises:
        InputError: it does not.
    """
    learned = len(prepared.result.scores)
    is_kept = LOGITS not in prepared.repairs and (folder.path / LOGITS).exists()
    if not (learned and prepared.learned == learned and is_kept):
        return
    task = prepared.stream[learned - 1]
    recorded = read_checkpoint(folder.path / LOGITS, LOGITS_FORMAT).tensors.get(task.name)
    if recorded is None or not recorded.numel():
        return
    expected = prepared.result.scores[-1][-1].logits_sha256
    if score(recorded, task.test.labels, task.objective).logits_sha256 != expected:
        return  # they were written after a later task, and the run stopped before its result was
    batch_size = prepared.config.training.eval_batch_size
    logits = predict_splits(prepared.method, {task.name: task.test}, batch_size)[task.name]
    off = float((logits - recorded).abs().max() / recorded.abs().max().clamp_min(1e-12))
    if not off <= MOST_ROUNDED:
        raise InputError(
            f"the network answers task {task.name!r} otherwise than {folder.path} has recorded, by {off:.0%} of the "
            "largest logit: its code has changed since; put back what it was, or run again in another folder (`out`)"
        )


def _tidy(prepared: Run, folder: RunFolder) -> None:
    """Bring a folder into order before the run goes on in it."""
    folder.clear_leftovers()
    if prepared.is_new:  # what another run may have left is not of this one
        folder.forget_training()
        for name in (RESULT, CHECKPOINT):
            previous(folder.path / name).unlink(missing_ok=True)
    learned = len(prepared.result.scores)
    for damaged in prepared.repairs:
        if damaged != LOGITS:
            folder.put_back(damaged)
        elif learned:
            _write_logits(folder, last_logits(prepared, learned))
    if prepared.replanned:  # of the next task it is written which data it has, before anything is learned of them
        if prepared.in_task is None:
            folder.forget_training()
        folder.keep(RESULT)
    if not learned or prepared.repairs or prepared.replanned:
        write_result(folder.path / RESULT, prepared.result)


def _learn(prepared: Run, index: int, folder: RunFolder | None) -> Iterator[Event]:
    """Learn a task, or what is left of it, and test."""
    method, seen, training = prepared.method, prepared.stream[: index + 1], prepared.config.training
    in_task, prepared.in_task = prepared.in_task, None
    history, spent, state = TaskHistory(), 0.0, None
    if in_task is not None:
        history, spent, state = in_task.history, in_task.seconds, in_task.state
    several = prepared.request.ranks.size > 1  # what a method gathers in training may differ from process to process
    keeper = TrainingKeeper(None if several else folder, index, seen[-1].name, spent)
    if prepared.learned == index:
        done = len(history.valid_loss)
        yield TaskBegun(index, prepared.result.tasks[index], sum(method.phases(training.epochs)), done)
        method.begin_task(seen[-1])
        if method.trains:
            going = Training(method, seen, training, prepared.request.ranks, state)
            for event in going:
                if isinstance(event, EpochDone):
                    history = history.with_epoch(event, method.usage())
                    keeper.after_epoch(going, history)
                yield event
        method.end_task(seen[-1])
        if prepared.config.stream.infer:
            calibrate_task(method, seen[-1])
        if folder is not None:
            folder.keep(CHECKPOINT)
            method.save(folder.path / CHECKPOINT)
        prepared.learned = index + 1
    _record(prepared, folder, history, keeper.seconds)


def last_logits(prepared: Run, learned: int) -> dict[str, Tensor]:
    """Test logits of the first ``learned`` tasks by name, the method run on each."""
    batch_size = prepared.config.training.eval_batch_size
    return predict_splits(prepared.method, {task.name: task.test for task in prepared.stream[:learned]}, batch_size)


def last_confusion(prepared: Run, learned: int) -> Confusion | None:
    """Count what test samples of the first ``learned`` tasks are taken for if nobody names them; None if not asked."""
    if not (prepared.config.stream.infer and learned):
        return None
    batch_size = prepared.config.training.eval_batch_size
    return measure_recognition(prepared.method, prepared.stream[:learned], batch_size)


def score_row(prepared: Run, logits: Mapping[str, Tensor]) -> tuple[Score, ...]:
    """The scores of test logits, by name of the task."""
    tasks = prepared.stream[: len(logits)]
    earlier = prepared.result.scores
    return tuple(
        score(logits[task.name], task.test.labels, task.objective, (row[index] for row in earlier if index < len(row)))
        for index, task in enumerate(tasks)
    )


def _record(prepared: Run, folder: RunFolder | None, history: TaskHistory, seconds: float) -> None:
    """Test on all tasks learned, and write the logits and the result."""
    logits = last_logits(prepared, len(prepared.result.scores) + 1)
    capacity, reuse = prepared.method.capacity(), prepared.method.reuse()
    history = replace(history, capacity=None if capacity is None else asdict(capacity))
    shares = None if reuse is None else rounded_shares(reuse)
    row = score_row(prepared, logits)
    for task, of_task in zip(prepared.result.tasks, row, strict=False):
        require_finite(of_task.loss, "test loss", task.name)
    here = environment_of(prepared.request)
    found = last_confusion(prepared, len(row))
    after = prepared.result.with_row(row, history, round(seconds, 3), shares, prepared.method.remembered(), found)
    prepared.result = replace(after, environment=here)
    if folder is not None:
        _write_logits(folder, logits)
        folder.keep(RESULT)
        write_result(folder.path / RESULT, prepared.result)


def _write_logits(folder: RunFolder, logits: Mapping[str, Tensor]) -> None:
    write_checkpoint(folder.path / LOGITS, Checkpoint(dict(logits), {"format": LOGITS_FORMAT}))
