"""Forgetting a task of a run: its folder is rewritten so that no file of it holds anything of the task."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hatrack.errors import DataError, InputError
from hatrack.experiments.backbones import build_backbone
from hatrack.experiments.comparison import FAILURE
from hatrack.experiments.continuing import require_same_forms
from hatrack.experiments.experiment import completed
from hatrack.experiments.folder import (
    CHECKPOINT,
    LOG_FOLDERS,
    LOGITS,
    LOGITS_FORMAT,
    LOGS,
    RESULT,
    TRAINING,
    note_logs,
    noted_logs,
    previous,
    require_run,
    require_whole,
)
from hatrack.experiments.recognition import measure_recognition
from hatrack.experiments.recorded import command_of, request_of, require_same_data, tasks_of
from hatrack.experiments.results import RunResult, read_result, rounded_shares, write_result
from hatrack.experiments.settings import Config, NetworkSettings, StreamSettings
from hatrack.methods import Method, Setup, find_method
from hatrack.methods.masked import MaskedMethod
from hatrack.models.base import MaskedNetwork
from hatrack.models.forgetting import Forgotten
from hatrack.models.hat import FORMAT
from hatrack.models.weight_masked import WEIGHTS_FORMAT
from hatrack.recognition import Confusion
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.storage.locks import LOCK, locked
from hatrack.streams import seeded_generator
from hatrack.support.names import unknown_name
from hatrack.train import TrainingSettings

__all__ = ["RunForgotten", "forget_in_run"]

_PATIENCE = 2.0
"""Seconds to wait for a run that is just ending."""

_WRITTEN = (CHECKPOINT, LOGITS, RESULT, TRAINING, FAILURE)
_PASSING = (TRAINING, FAILURE, *(previous(Path(name)).name for name in _WRITTEN))
"""Files about a task in training, about how the last start of the run ended, and what others were before."""

WANDB_SERVER = "https://wandb.ai, or another server, that `wandb sync` sent them to"
"""Place of curves that left this machine."""


@dataclass(frozen=True)
class RunForgotten:
    """Report on a run that has forgotten a task.

    Attributes:
        report: what was erased in the network; None if that was done by an earlier, interrupted attempt.
        rewritten: the files that held the task and do not hold it any more.
        removed: the files and folders that were removed.
        remaining: files in the folder that the run did not make and that may name the task.
        elsewhere: where curves of the run lie outside of its folder, and may name the task: folders, addresses, and the
            server that ``wandb sync`` sent them to.
        recognition: whether the result says how the tasks that are left are recognised now; None where it said nothing.
    """

    report: Forgotten | None
    rewritten: tuple[Path, ...]
    removed: tuple[Path, ...]
    remaining: tuple[Path, ...]
    elsewhere: tuple[str, ...] = ()
    recognition: bool | None = None


def forget_in_run(folder: Path | str, task: str, data: Path | None = None) -> RunForgotten:
    """Forget a task in all files of a run: the network, test logits, the result, and copies of earlier networks.

    The task's weights, head, statistics, logits, scores and name go; the result says how many tasks were forgotten. No
    data is needed; where the run recognised tasks that nobody named, that is measured again without the task if the
    data is on this machine, and else not known any more. Every file is replaced in one step, and the result first says
    what is going on, and last that it is done: after an interruption the same call finishes what is left, and nothing
    else accepts the folder until then. Afterwards the run can be verified, reported on, asked and exported, but it does
    not go on.

    Args:
        folder: the run's folder.
        task: the task's name.
        data: folder to look for data in first.

    Raises:
        InputError: the folder holds no run, or is in use, or there is no such task, or the method cannot forget.
        CheckpointError: a file is damaged or cannot be written, or forgetting another task was interrupted.
        GuaranteeError: other tasks would change. The network is as it was then.
    """
    folder = Path(folder)
    require_run(folder)
    with locked(folder, _PATIENCE):
        recorded = read_result(folder / RESULT)
        _require_forgettable(folder, recorded, task)
        return _forget(folder, recorded, task, data)


def _require_forgettable(folder: Path, recorded: RunResult, task: str) -> None:
    """Check that a run knows what belongs to a task, and that no other one is half forgotten."""
    if not issubclass(find_method(recorded.method), MaskedMethod):
        raise InputError(
            f"{folder} was made by {recorded.method}, which does not know what belongs to one task alone; "
            "tasks of hat, pmask and their kin can be forgotten"
        )
    if recorded.forgetting not in (None, task):
        require_whole(folder, recorded)
    names = [each.name for each in recorded.tasks]
    if task not in names:
        raise unknown_name("task", task, names)


def _forget(folder: Path, recorded: RunResult, task: str, data: Path | None) -> RunForgotten:
    # All that can go wrong goes wrong before anything is written.
    networks = {path: _load(path, recorded) for path in _networks(folder)}
    logits = read_checkpoint(folder / LOGITS, LOGITS_FORMAT)
    if recorded.forgetting is None:
        _require_learned(folder, recorded, networks[folder / CHECKPOINT].network.task_names, task)
    reports = {path: _forget_in(method, recorded, task) for path, method in networks.items()}
    network = networks[folder / CHECKPOINT].network
    elsewhere = tuple(_logged_elsewhere(folder))
    capacity, reuse = dataclasses.asdict(network.capacity()), rounded_shares(network.reuse())
    without = recorded.without_task(task, capacity, reuse)
    found = _recognised_now(folder, without, networks[folder / CHECKPOINT], data)
    without = without if found is None else recorded.without_task(task, capacity, reuse, found)

    write_result(folder / RESULT, replace(recorded, forgetting=task))
    note_logs(folder, elsewhere)  # the mark of what was sent is removed with the curves
    removed = tuple(_remove_passing(folder))
    rewritten = []
    for path, method in networks.items():
        if reports[path] is not None:
            method.save(path)
            rewritten.append(path)
    if task in logits.tensors:
        left = {name: value for name, value in logits.tensors.items() if name != task}
        write_checkpoint(folder / LOGITS, Checkpoint(left, logits.description))
        rewritten.append(folder / LOGITS)
    write_result(folder / RESULT, without)
    rewritten.append(folder / RESULT)
    remaining = tuple(_naming(folder, task))
    known = None if recorded.recognition is None else found is not None
    return RunForgotten(reports[folder / CHECKPOINT], tuple(rewritten), removed, remaining, elsewhere, known)


def _recognised_now(folder: Path, recorded: RunResult, method: MaskedMethod, data: Path | None) -> Confusion | None:
    """Count what the test samples of the tasks that are left are taken for.

    Args:
        folder: the run's folder.
        recorded: its record, without the task that is forgotten.
        method: the method, which has forgotten it.
        data: folder to look for data in first.

    Returns:
        The counts; None where the run did not measure them, no task is left, or the data is not here as it was.
    """
    if recorded.recognition is None or not recorded.scores:
        return None
    try:
        request = request_of(folder, recorded, data)
        experiment = request.described()
        config = experiment.config(request.method).overridden(request.overrides)
        stream = experiment.stream_of(config.stream, seed=request.seed, data_dir=data, download=False)
        stream = tasks_of(folder, recorded, stream)
        require_same_data(folder, recorded, stream)
        if not recorded.sources:
            require_same_forms(folder, recorded, stream.origins)
    except (InputError, DataError):
        return None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(recorded.environment["threads"])
        return measure_recognition(method, stream[: len(recorded.scores)], config.training.eval_batch_size)
    finally:
        torch.set_num_threads(threads)


def _require_learned(folder: Path, recorded: RunResult, present: tuple[str, ...], task: str) -> None:
    """Check that the folder's network and result agree, and that there is something to forget."""
    learned = tuple(each.name for each in recorded.tasks[: len(recorded.scores)])
    if present != learned:
        raise InputError(
            f"{folder / CHECKPOINT} has other tasks than {RESULT}; run this first: {command_of(folder, recorded)}"
        )
    if task not in present:
        raise InputError(f"in {folder} task {task!r} has not been learned yet, so there is nothing to forget")


def _load(path: Path, recorded: RunResult) -> MaskedMethod:
    """The method of a run with a network of it, made from what the files say alone."""
    kind = find_method(recorded.method)
    config = Config(StreamSettings(), NetworkSettings(), TrainingSettings(), kind.settings_type())
    config = config.overridden(completed(recorded.method, recorded.config))
    description = read_checkpoint(path, FORMAT, WEIGHTS_FORMAT).description
    shape = tuple(description["example_input"]["shape"][1:])

    def build() -> torch.nn.Module:
        return build_backbone(config.network, shape, recorded.seed)

    method: Method = kind(Setup(build, shape, recorded.seed, torch.device("cpu")), config.method)
    method.load(path)
    assert isinstance(method, MaskedMethod)
    return method


def _forget_in(method: MaskedMethod, recorded: RunResult, task: str) -> Forgotten | None:
    """Forget a task in a network that was loaded; None if it does not have it."""
    network = method.network
    assert isinstance(network, MaskedNetwork)
    if task not in network.task_names:
        return None
    # Nothing of the task decides on what is drawn: its name could be guessed from that.
    return network.forget(task, generator=seeded_generator(recorded.seed, "forget", recorded.forgotten))


def _networks(folder: Path) -> list[Path]:
    """The networks in a folder, copies of earlier ones first."""
    others = {folder / CHECKPOINT, previous(folder / CHECKPOINT)}
    return [*sorted(set(folder.glob("*.hat")) - others), folder / CHECKPOINT]


def _remove_passing(folder: Path) -> Iterator[Path]:
    """Remove what nobody needs any more and may hold a task: logs, previous copies, half-written files."""
    half_written = tuple(f".{name}." for name in (*_WRITTEN, *_PASSING))
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name in LOG_FOLDERS:  # their curves are named after tasks
            shutil.rmtree(path)
            yield path
        elif path.is_file() and (path.name in _PASSING or path.name.startswith(half_written)):
            path.unlink()
            yield path


def _logged_elsewhere(folder: Path) -> Iterator[str]:
    """Say where curves of a run lie outside of its folder."""
    noted = noted_logs(folder)
    yield from (place for place in noted if "://" in place or Path(place).exists())
    sent = any((folder / "wandb").glob("*/*.synced"))  # the mark that W&B leaves beside what it has sent
    if sent and WANDB_SERVER not in noted:
        yield WANDB_SERVER


def _naming(folder: Path, task: str) -> Iterator[Path]:
    """Files that the run did not make and that may name a task."""
    word = re.compile(rb"(?<![\w-])" + re.escape(task.encode()) + rb"(?![\w-])")
    made = {folder / name for name in (CHECKPOINT, LOGITS, RESULT, LOCK, LOGS)}
    for path in sorted(folder.rglob("*")):
        elsewhere = any((parent / RESULT).exists() for parent in path.parents if folder in parent.parents)
        if path.is_file() and path not in made and not elsewhere and word.search(path.read_bytes()):
            yield path
