"""Recorded runs: loading the network of a run, verifying it, and comparing a run with the same run made again."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hatrack.data import DownloadMonitor
from hatrack.errors import CheckpointError, DamagedFileError, DataError, InputError
from hatrack.experiments.continuing import data_seen, first_difference, of_record, of_stream, other_data, same_lines
from hatrack.experiments.earlier_versions import computed_otherwise
from hatrack.experiments.experiment import completed
from hatrack.experiments.folder import CHECKPOINT, LOGITS, LOGITS_FORMAT, RESULT, previous, require_run, require_whole
from hatrack.experiments.preparing import Run, load_method, prepare
from hatrack.experiments.recognition import Recognition
from hatrack.experiments.request import RunRequest
from hatrack.experiments.results import RunResult, read_result
from hatrack.experiments.running import last_confusion, last_logits, score_row
from hatrack.experiments.sources import located, seen_from
from hatrack.objectives import ACCURACY, Metric, TargetKind
from hatrack.recognition import Confusion
from hatrack.storage.checkpoint import read_checkpoint
from hatrack.streams import Task, TaskStream, own_stream
from hatrack.support.environment import describe_environment, deterministic_cuda
from hatrack.train import Score, score

__all__ = [
    "TOLERANCE",
    "RecognitionVerdict",
    "Reproduction",
    "TaskAgain",
    "Verification",
    "command_of",
    "load_recorded",
    "recorded_result",
    "recorded_run",
    "request_of",
    "require_same_data",
    "require_same_origins",
    "tasks_of",
    "verify",
]


def command_of(folder: Path, recorded: RunResult) -> str:
    """Return the command that makes a run, with one's own files where they are now.

    Args:
        folder: the run's folder.
        recorded: its record.
    """
    now = dict(zip(recorded.sources, located(folder, recorded.sources, recorded.relative_sources), strict=True))
    return shlex.join(str(now.get(word, word)) for word in shlex.split(recorded.command))


def recorded_result(folder: Path) -> RunResult:
    """The record of a run.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned.
        CheckpointError: its record is damaged, or forgetting a task was interrupted.
    """
    require_run(folder)
    recorded = read_result(folder / RESULT)
    require_whole(folder, recorded)
    if not recorded.scores and recorded.forgotten:
        raise InputError(f"in {folder} all tasks that were learned have been forgotten; choose another run")
    if not recorded.scores:
        raise InputError(f"in {folder} no task has been learned yet; run this first: {command_of(folder, recorded)}")
    return recorded


def recorded_run(folder: Path, data: Path | None = None, out: Path | None = None) -> tuple[RunResult, RunRequest]:
    """The record of a run, and what to ask for to get the same one again.

    The number of threads is set to the recorded one for this process, since the last bits depend on it.

    Args:
        folder: the run's folder.
        data: folder to look for data in first.
        out: the folder of the new run; None keeps nothing.

    Raises:
        InputError, CheckpointError: as :func:`recorded_result`.
    """
    recorded = recorded_result(folder)
    torch.set_num_threads(recorded.environment["threads"])
    on_cuda = recorded.environment["device"] != "cpu" and torch.cuda.is_available()
    device = deterministic_cuda() if on_cuda else None
    return recorded, request_of(folder, recorded, data, out, device)


def request_of(
    folder: Path,
    recorded: RunResult,
    data: Path | None,
    out: Path | None = None,
    device: torch.device | None = None,
) -> RunRequest:
    """Return what to ask for to get the run of a record again.

    One's own files are looked for where they were, and else where they were as seen from the run's folder, since a
    project may have been moved. A warning says so, and whether they are the same.

    Args:
        folder: the run's folder.
        recorded: its record.
        data: folder to look for data in first.
        out: the folder of the new run; None keeps nothing.
        device: where to train; None for the CPU.

    Raises:
        InputError: one's own files are gone.
        DataError: one cannot be opened.
    """
    sources = _sources_of(folder, recorded)
    config = completed(recorded.method, recorded.config)
    if sources and recorded.knows_classes_alone:
        config = {**config, "target": TargetKind.CLASSES.value}
    asked = (recorded.experiment, recorded.method, recorded.seed, out, data, config)
    return RunRequest(*asked, device or torch.device("cpu"), sources)


def _sources_of(folder: Path, recorded: RunResult) -> tuple[Path, ...]:
    """Return the files that a run's own tasks are made of, where they are now."""
    there, beside = tuple(map(Path, recorded.sources)), seen_from(folder, recorded.relative_sources)
    gone = [path for path in there if not path.exists()]
    if len(beside) != len(there) or beside == there or not all(path.exists() for path in beside):
        if gone:
            also = "" if beside in ((), there) else f", and is not at {beside[there.index(gone[0])]} either"
            raise InputError(
                f"{gone[0]}, which {folder} was made of, is gone{also}; put it back there, as classes and "
                "preprocessing are in it"
            )
        return there
    if not gone and _are_of(recorded, there):
        return there
    is_same = _are_of(recorded, beside)
    if not gone and not is_same:
        return there
    lost = gone[0] if gone else there[0]
    found = beside[there.index(lost)]
    warnings.warn(
        f"{lost} {'is gone' if gone else 'has other data than the run'}; taking {found}, "
        f"{'whose data is that of the run' if is_same else 'whose data is not that of the run either'}",
        stacklevel=3,
    )
    return beside


def _are_of(recorded: RunResult, sources: Sequence[Path]) -> bool:
    """Return whether files, or those that a file names, are all there and as a run recorded them."""
    try:
        return same_lines(recorded.data, own_stream(sources).origins())
    except (InputError, DataError):
        return False


def require_same_origins(folder: Path, recorded: RunResult, request: RunRequest) -> None:
    """Refuse to make a run again of other data than it was made of, before anything is read.

    Args:
        folder: the run's folder.
        recorded: its record.
        request: what to ask for to get it again.

    Raises:
        InputError: the data of a task that was learned, or a data set of a preset, is there in another form.
        DataError: a file of one's own tasks cannot be opened.
    """
    lines = request.described().find_data(request.data, recorded.config.get("num_tasks"))
    if said := other_data(data_seen(recorded), lines):
        raise InputError(
            f"{folder} holds a run on other data ({said}), so that it cannot be made again; give that data (`data_dir`)"
        )


def load_recorded(
    folder: Path, recorded: RunResult, request: RunRequest, monitor: DownloadMonitor | None = None
) -> Run:
    """Load the network of a run.

    Args:
        folder: the run's folder.
        recorded: its record.
        request: what to ask for to get it again, without a folder.
        monitor: told how the download of a data set goes on.

    Returns:
        The run with its method loaded; its stream has the run's tasks alone, without those that were forgotten.

    Raises:
        InputError: the data lacks one of its tasks, or has changed so that the network does not fit it.
        CheckpointError: the network is damaged, or not the one of the record.
        DataError: the data is missing.
    """
    prepared = prepare(request, monitor)
    prepared.stream = tasks_of(folder, recorded, prepared.stream)
    try:
        learned = load_method(folder / CHECKPOINT, prepared.method)
    except DamagedFileError as error:
        mend = f"{command_of(folder, recorded)} `out={shlex.quote(str(folder))}`"
        raise DamagedFileError(f"{error}; or mend it: {mend}") from error
    except CheckpointError:
        require_same_data(folder, recorded, prepared.stream)
        raise
    names = tuple(task.name for task in recorded.tasks[: len(recorded.scores)])
    if len(learned) == len(names) + 1:  # the run was stopped before the row of the last one
        prepared.method = prepared.fresh_method()
        learned = load_method(previous(folder / CHECKPOINT), prepared.method)
    if learned != names:
        raise CheckpointError(f"{folder / CHECKPOINT} does not belong to {folder / RESULT}; its tasks are others")
    return prepared


def require_same_data(folder: Path, recorded: RunResult, stream: TaskStream, *, counts_alone: bool = False) -> None:
    """Refuse to read a run with other data than it was made of.

    Args:
        folder: the run's folder.
        recorded: its record.
        stream: its tasks.
        counts_alone: whether files may have changed that have as many samples as before.

    Raises:
        InputError: the data of a task that was learned has changed.
    """
    learned = slice(len(recorded.scores))
    there, now = of_record(recorded)[learned], of_stream(stream, is_own=bool(recorded.sources))[learned]
    if counts_alone:
        there = tuple(replace(task, data=None) for task in there)
    if (difference := first_difference(there, now)) is not None:
        raise InputError(
            f"{folder} holds a run {difference.what}; {f'{difference.remedy} ' if difference.remedy else ''}put the "
            "data back as it was: classes and preprocessing are in it"
        )


def tasks_of(folder: Path, recorded: RunResult, stream: TaskStream) -> TaskStream:
    """Return a stream with the tasks of a run alone, without those that were forgotten.

    Args:
        folder: the run's folder.
        recorded: its record.
        stream: the tasks of the run's data.

    Raises:
        InputError: one of the run's tasks is not among them.
    """
    by_name = {task.name: task for task in stream}
    names = [task.name for task in recorded.tasks]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(f"{folder} has learned {missing[0]!r}, which the data does not have any more")
    return replace(stream, tasks=tuple(by_name[name] for name in names))


TOLERANCE = 1e-5
"""Tolerance of logits, relative and absolute, where the environment is not the one that made them."""


SAMPLES_MOVED = 1e-3
"""Largest share of a task's samples (at least one) that may change class in another environment, where rounding decides
close calls."""


@dataclass(frozen=True)
class TaskVerdict:
    """Comparison of a task's test with what is recorded.

    Attributes:
        task: its name.
        score: score now, in the metric of the task.
        recorded: score in the result.
        metric: that metric.
        agrees: whether logits (and with them the score) are as recorded: to the bit in the same environment, else
            within the tolerance.
        constant: whether the recorded hashes of this task are the same in every row.
        recognition: how many of its samples are recognised without its name; None where that was not measured.
    """

    task: str
    score: float
    recorded: float
    agrees: bool
    constant: bool
    metric: Metric = ACCURACY
    recognition: RecognitionVerdict | None = None


@dataclass(frozen=True)
class RecognitionVerdict:
    """Comparison of what the samples of a task are taken for with what is recorded.

    Attributes:
        share: share of samples whose task and class are recognised now.
        recorded: the recorded share; None where a task was forgotten since, so that it is not known any more.
        agrees: whether as many samples are taken for every class as recorded: all in the same environment, else all
            but :data:`SAMPLES_MOVED`.
    """

    share: float
    recorded: float | None
    agrees: bool


@dataclass(frozen=True)
class Verification:
    """Result of verifying a run.

    Attributes:
        result: the run's record.
        verdicts: one per task learned.
        bitwise: whether hashes were compared, or logits within :data:`TOLERANCE`.
        differences: what differs between the environment and data of the run and these; empty if ``bitwise``.
        other_data: lines about the data that is not the run's, there and now; empty where it is the run's, and where
            the record does not say.
    """

    result: RunResult
    verdicts: tuple[TaskVerdict, ...]
    bitwise: bool
    differences: tuple[str, ...]
    other_data: str = ""

    @property
    def holds(self) -> bool:
        """Return whether every task came out as recorded."""
        return all(
            verdict.agrees and (verdict.recognition is None or verdict.recognition.agrees) for verdict in self.verdicts
        )

    @property
    def knows_data(self) -> bool:
        """Return whether the network was tested on the data of the run, as far as that is recorded."""
        return "data" not in self.differences

    @property
    def verdict(self) -> str:
        """The verdict in a line, with the data that it was reached on where that is not the run's."""
        if self.knows_data:
            return "verified" if self.holds else "not verified: the network is not the one of the run"
        which = f"other data than the run's ({self.other_data})" if self.other_data else "data unknown to the run"
        if self.holds:
            return f"verified, but on {which}; the network answers on it as it did in the run"
        return f"not verified: this is {which}, which says nothing of the network; give the run's data (`data_dir`)"


def verify(folder: Path, data: Path | None = None, monitor: DownloadMonitor | None = None) -> Verification:
    """Derive the last row of a run again from its saved network.

    The number of threads is set to the recorded one for this process, since the last bits depend on it.

    Args:
        folder: the run's folder.
        data: folder to look for data in first.
        monitor: told how the download of a data set goes on.

    Raises:
        InputError: the folder holds no run, or one in which no task was learned, or a task has other numbers of samples
            or classes than it had.
        CheckpointError: a file is damaged.
        DataError: the data is missing.
    """
    recorded, request = recorded_run(folder, data)
    prepared = load_recorded(folder, recorded, request, monitor)
    require_same_data(folder, recorded, prepared.stream, counts_alone=True)
    logits = last_logits(prepared, len(recorded.scores))
    now = describe_environment(request.device)
    differences = tuple(key for key in now if now[key] != recorded.environment.get(key))
    if not (recorded.data or recorded.forgotten) or not same_lines(recorded.data, prepared.stream.origins):
        differences += ("data",)
    row = score_row(prepared, logits)
    found = last_confusion(prepared, len(recorded.scores))
    exactly = not differences and not recorded.forgotten  # after forgetting it was measured where that was done
    recognition = [None] * len(row) if found is None else _compare(recorded.recognition, found, exactly)
    saved = {} if not differences else read_checkpoint(folder / LOGITS, LOGITS_FORMAT).tensors
    verdicts = []
    for index, (task, now_scored) in enumerate(zip(recorded.tasks[: len(row)], row, strict=True)):
        before = recorded.scores[-1][index]
        if differences:
            theirs = _recorded_logits(folder, saved, task.name, before, prepared.stream[index])
            agrees = torch.allclose(logits[task.name], theirs, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            agrees = now_scored.logits_sha256 == before.logits_sha256 and now_scored.value == before.value
        hashes = {scores[index].logits_sha256 for scores in recorded.scores[index:]}
        constant = len(hashes) == 1
        scores = (now_scored.value, before.value)
        verdicts.append(TaskVerdict(task.name, *scores, agrees, constant, task.metric, recognition[index]))
    others = other_data(recorded.data, prepared.stream.origins)
    return Verification(recorded, tuple(verdicts), not differences, differences, others)


def _compare(recorded: Recognition | None, found: Confusion, exactly: bool) -> list[RecognitionVerdict | None]:
    """Compare what the samples of every task are taken for with what is recorded."""
    shares = None if recorded is None else recorded.class_incremental[-1]
    known = None if recorded is None else recorded.class_confusion
    verdicts: list[RecognitionVerdict | None] = []
    ends = torch.tensor(found.classes).cumsum(0).tolist()
    for index, (share, samples) in enumerate(zip(found.class_incremental, found.samples, strict=True)):
        before = None if shares is None else shares[index]
        moved = 0.0 if before is None else abs(share - before) * samples
        if known is not None:
            rows = slice(ends[index] - found.classes[index], ends[index])
            moved = float((torch.tensor(known)[rows] - found.counts[rows]).abs().sum()) / 2
        agrees = moved < 0.5 if exactly else moved <= max(1.0, SAMPLES_MOVED * samples)
        verdicts.append(RecognitionVerdict(share, before, agrees))
    return verdicts


def _recorded_logits(folder: Path, saved: Mapping[str, Tensor], name: str, recorded: Score, task: Task) -> Tensor:
    """The logits that a run kept, after checking that they are those whose hash it recorded."""
    logits = saved.get(name)
    if logits is None or score(logits, task.test.labels, task.objective).logits_sha256 != recorded.logits_sha256:
        raise CheckpointError(f"{folder / LOGITS} does not belong to {folder / RESULT}: its logits have another hash")
    return logits


@dataclass(frozen=True)
class TaskAgain:
    """A task in both runs, after the last task that both have learned.

    Attributes:
        task: its name.
        recorded: score in the recorded run.
        again: score in the new one.
        metric: metric of both.
        same_bits: whether the hashes of its test logits are the same after this and every other task.
        same_recognition: whether as many of its samples are recognised without its name; None if not measured.
    """

    task: str
    recorded: float
    again: float
    same_bits: bool
    metric: Metric = ACCURACY
    same_recognition: bool | None = None


@dataclass(frozen=True)
class Reproduction:
    """Report on a run that was made again.

    Attributes:
        tasks: one entry per task that both have learned.
        differences: what differs between the environments and the data of the two.
        otherwise: what the version that made the recorded run computed in another way, such as ``dropout was drawn in
            another way``.
    """

    tasks: tuple[TaskAgain, ...]
    differences: tuple[str, ...]
    otherwise: tuple[str, ...] = ()

    @classmethod
    def of(cls, recorded: RunResult, again: RunResult) -> Reproduction:
        """Compare a run with one that was made of its settings."""
        learned = min(len(recorded.scores), len(again.scores))
        tasks = []
        for index, task in enumerate(recorded.tasks[:learned]):
            rows = range(index, learned)
            same = all(
                recorded.scores[row][index].logits_sha256 == again.scores[row][index].logits_sha256 for row in rows
            )
            before, now = recorded.scores[learned - 1][index], again.scores[learned - 1][index]
            recognised = _same_recognition(recorded.recognition, again.recognition, index)
            tasks.append(TaskAgain(task.name, before.value, now.value, same, task.metric, recognised))
        keys = {**again.environment, **recorded.environment}
        differences = [key for key in keys if recorded.environment.get(key) != again.environment.get(key)]
        differences += [] if same_lines(recorded.data, again.data) else ["data"]
        otherwise = computed_otherwise(recorded.method, recorded.config, again.config)
        return cls(tuple(tasks), tuple(differences), otherwise)

    @property
    def exact(self) -> bool:
        """Return whether every test logit after every task has the same bits, and as many samples are recognised."""
        return all(task.same_bits and task.same_recognition is not False for task in self.tasks)


def _same_recognition(recorded: Recognition | None, again: Recognition | None, task: int) -> bool | None:
    """Return whether a task is recognised as often after every task that both runs have learned; None if unknown."""
    if recorded is None or again is None:
        return None
    pairs = (
        (before[task], now[task])
        for rows in ("class_incremental", "task_recognised")
        for before, now in zip(getattr(recorded, rows)[task:], getattr(again, rows)[task:], strict=False)
    )
    return all(before == now for before, now in pairs)
