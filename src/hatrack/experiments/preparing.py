"""Getting a run ready to start, or to go on where it stopped."""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hatrack.data import DownloadMonitor
from hatrack.errors import CheckpointError, DamagedFileError, GuaranteeError, InputError
from hatrack.experiments.backbones import build_backbone, narrow_builder
from hatrack.experiments.continuing import (
    Difference,
    first_difference,
    of_own,
    of_record,
    of_stream,
    require_same_forms,
)
from hatrack.experiments.earlier_versions import computed_otherwise
from hatrack.experiments.experiment import completed
from hatrack.experiments.folder import (
    CHECKPOINT,
    LOGITS,
    RESULT,
    TRAINING,
    InTask,
    RunFolder,
    previous,
    require_whole,
)
from hatrack.experiments.own_method import OwnMethod
from hatrack.experiments.recognition import require_recognisable, require_recognition
from hatrack.experiments.request import RunRequest, environment_of
from hatrack.experiments.results import RunResult, Status, TaskSummary
from hatrack.experiments.settings import changed
from hatrack.experiments.sources import relative_to
from hatrack.methods import Method, Setup, find_method, require_learnable
from hatrack.objectives import TargetKind
from hatrack.storage.checkpoint import is_damaged
from hatrack.streams import TaskStream
from hatrack.train.capture import require_capturable, require_cuda

__all__ = ["Run", "finished_result", "load_method", "prepare"]


class Run:
    """A run: what was asked for, what its folder holds of it, and, once it is prepared, its tasks and its method.

    Args:
        request: what was asked for.
        folder: the opened folder of the run; None opens the one of the request, if it has one.

    Attributes:
        request: what was asked for.
        experiment: the experiment.
        config: all settings; of a run that an earlier version began, those that its defaults made.
        folder: the folder of the run; None keeps nothing.
        stream: the tasks; from :meth:`prepare` on, like all that follows.
        method: the method, with the tasks learned so far.
        result: the results so far.
        learned: number of tasks that the method has learned; one more than there are results for, where a process was
            stopped between the two.
        in_task: where the training of the first task stands that there are no results for; None if it has not begun.
        repairs: names of damaged files, which are replaced by the ones before when the run goes on.
        replanned: whether the run is to have other tasks than its folder says, of which it has begun none.
        notes: what was decided by looking at the data, and what was damaged and is done about it, for people.

    Raises:
        InputError: an unknown name or setting, or the folder holds a run with other settings (they are named).
        CheckpointError: what the folder holds is damaged, and so is what was kept before it.
    """

    stream: TaskStream
    method: Method
    result: RunResult

    def __init__(self, request: RunRequest, folder: RunFolder | None = None) -> None:
        if request.seed < 0:
            raise InputError(f"the seed must be 0 or more, not {request.seed}")
        self.request = request
        self.experiment = request.described()
        self.config = self.experiment.config(request.method).overridden(request.overrides)
        if self.config.stream.infer:
            require_recognition(request.method)
        self.folder = RunFolder(request.out) if folder is None and request.out is not None else folder
        self.learned = 0
        self.in_task: InTask | None = None
        self.repairs: tuple[str, ...] = ()
        self.replanned = False
        self.notes: tuple[str, ...] = ()
        self._about_settings: tuple[str, ...] = ()
        self._require_same_run()

    @functools.cached_property
    def finished(self) -> RunResult | None:
        """The results of a run that its folder holds finished; None if it is not finished, or not begun, or damaged.

        A run that is to have further tasks is not finished. Of a preset it needs no data, and what is there is looked
        at, as one's own files are, since it may be other data than the run's.

        Raises:
            InputError: a data set is there in another form, or one's own files have changed, or a task that was learned
                is missing or in another place.
        """
        earlier = self._earlier
        if self.folder is None or earlier is None or self.folder.damaged or earlier.status is not Status.FINISHED:
            return None
        if any(is_damaged(self.folder.path / name) for name in (CHECKPOINT, LOGITS)):
            return None  # taking it up mends it
        num_tasks = self.config.stream.num_tasks
        if (own := self.experiment.own) is None:
            if earlier.config.get("num_tasks") != num_tasks:
                return None
            require_same_forms(self.folder.path, earlier, self.experiment.find_data(self.request.data))
            return earlier
        there, now = of_record(earlier), of_own(own, num_tasks)
        if (difference := first_difference(there, now)) is not None:
            self._refuse(difference)
        return earlier if len(there) == len(now) else None

    def prepare(self, monitor: DownloadMonitor | None = None) -> None:
        """Make the tasks and the method, and take up what the folder holds.

        Tasks that the run has not begun may be others than its folder says, or be more or fewer. What is damaged in the
        folder of an interrupted run is replaced by what was kept before it. ``notes`` say both.

        Args:
            monitor: told how the download of a data set goes on.

        Raises:
            InputError: the folder holds a run on other data, or a task that it has begun is missing or in another
                place, or the method has made room for as many tasks as there were; or steps are to be captured that
                cannot be.
            DataError: the data is missing or damaged.
            CheckpointError: what the folder holds is damaged, and so is what was kept before it.
        """
        request = self.request
        data = self.config.stream
        if self.experiment.own is not None and self._earlier is not None and self._earlier.knows_classes_alone:
            data = replace(data, target=TargetKind.CLASSES)  # as it was when the run began
        self.stream = self.experiment.stream_of(data, seed=request.seed, data_dir=request.data, monitor=monitor)
        require_learnable(find_method(request.method), self.stream)
        if data.infer:
            require_recognisable(self.stream)
        self._begin_or_take_up()
        trains = self.folder is not None and self.method.trains and self.learned < len(self.stream)
        if trains and self.config.training.captured:  # refused before the folder is claimed
            require_capturable(self.method)
            require_cuda(request.device)
        if self.folder is not None and self.folder.claim():
            self._require_same_run()
            self._begin_or_take_up()
        for task in self.stream:
            self.method.require_task(task)
        self.notes = (*self.stream.notes, *self._about_settings, *self.notes)

    @property
    def is_new(self) -> bool:
        """Return whether the folder holds nothing of this run yet."""
        return self._earlier is None

    def fresh_method(self, classes: tuple[int, ...] | None = None) -> Method:
        """Return the method as it is before the first task.

        Args:
            classes: numbers of classes of the tasks to come; None for those of the stream.
        """
        network, shape, seed = self.config.network, self.stream.input_shape, self.request.seed
        setup = Setup(
            lambda: build_backbone(network, shape, seed),
            shape,
            seed,
            self.request.device,
            narrow_builder(network, shape),
            tuple(task.num_classes for task in self.stream) if classes is None else classes,
        )
        return find_method(self.request.method)(setup, self.config.method)

    @property
    def _earlier(self) -> RunResult | None:
        return None if self.folder is None else self.folder.recorded

    def _begin_or_take_up(self) -> None:
        if self._earlier is not None:
            if self.folder is not None and self.experiment.own is None:
                require_same_forms(self.folder.path, self._earlier, self.stream.origins)
            self._take_up(self._earlier)
            return
        self.method = self.fresh_method()
        self.result = RunResult(
            experiment=self.experiment.name,
            method=self.request.method,
            seed=self.request.seed,
            config=self.config.flat(),
            tasks=tuple(map(TaskSummary.of, self.stream)),
            scores=(),
            capacity=None,
            epochs=(),
            seconds=(),
            environment=environment_of(self.request),
            status=Status.RUNNING,
            own_method=OwnMethod.of(self.request.method),
            **self._made_of(),
        )

    def _made_of(self) -> dict[str, Any]:
        """Return the attributes of a result that say what the tasks are made of."""
        return {
            "command": self.request.command(),
            "data": self.stream.origins,
            "sources": tuple(str(path.absolute()) for path in self.request.sources),
            "relative_sources": relative_to(self.request.out, self.request.sources),
        }

    def _take_up(self, earlier: RunResult) -> None:
        """Take up a run of which the folder holds some tasks already."""
        assert self.folder is not None
        folder, rows, repairs, notes = self.folder, len(earlier.scores), [], []
        now = of_stream(self.stream, is_own=self.experiment.own is not None)
        difference = first_difference(of_record(earlier), now)
        if difference is not None and difference.index < rows:
            self._refuse(difference)
        self.replanned = difference is not None or len(now) != len(earlier.tasks)
        if self.replanned:
            self._require_no_foresight(earlier)
        newest, kept = folder.path / CHECKPOINT, previous(folder.path / CHECKPOINT)
        if folder.damaged:
            result = folder.path / RESULT
            repairs.append(RESULT)
            notes.append(f"{result} is damaged; going on from {previous(result)}")
        try:
            self.method, self.learned = self._load(newest, earlier, needed=rows > 0)
        except (DamagedFileError, _ForeignFileError, GuaranteeError) as error:  # another backbone is no damage
            needed = rows > 1 or not isinstance(error, DamagedFileError)
            try:
                self.method, self.learned = self._load(kept, earlier, needed)
            except (CheckpointError, GuaranteeError):
                raise CheckpointError(f"{error}; or remove {folder.path} and run again") from error
            repairs.append(CHECKPOINT)
            notes.append(f"{error}; going on from {kept if self.learned else 'the beginning'}")
        index = min(rows, self.learned)
        if index < len(earlier.tasks):
            self.in_task, damage = folder.in_task(index, earlier.tasks[index].name)
            repairs += [TRAINING] if damage else []
            notes += damage
        if self.learned > rows and self.method.trains and not (self.in_task is not None and self.in_task.over):
            # What happened in the epochs of the task is lost: it is learned again, if that can be done.
            with suppress(CheckpointError, GuaranteeError):
                method, learned = self._load(kept, earlier, needed=rows > 0)
                if learned == rows:
                    self.method, self.learned = method, learned
                    repairs.append(CHECKPOINT)
        begun = max(self.learned, rows, 0 if self.in_task is None else index + 1)
        if difference is not None and difference.index < begun:
            self._refuse(difference)
        if is_damaged(folder.path / LOGITS):
            repairs.append(LOGITS)
            notes.append(f"{folder.path / LOGITS} is damaged; asking the network again")
        places = {key: self._made_of()[key] for key in ("sources", "relative_sources")}
        record = replace(earlier, **places)  # where they are now; the project may have been moved
        if self.replanned:
            config = {**earlier.config, "num_tasks": self.config.stream.num_tasks}
            record = earlier.replanned(tuple(map(TaskSummary.of, self.stream)), config=config, **self._made_of())
            notes.append(_said_of_tasks(earlier, record, begun))
        self.result = record if index == rows else record.first(index)
        self.repairs, self.notes = tuple(repairs), tuple(notes)

    def _load(self, path: Path, earlier: RunResult, needed: bool) -> tuple[Method, int]:
        """Load a method, and return how many tasks it has learned: none without a file, unless that is needed.

        Raises:
            CheckpointError: the file is damaged, or does not belong to the results, or is of another network.
        """
        method = self.fresh_method()
        if not (path.exists() or needed):
            return method, 0
        learned, rows = load_method(path, method), len(earlier.scores)
        if learned != tuple(task.name for task in earlier.tasks)[: len(learned)] or abs(len(learned) - rows) > 1:
            raise _ForeignFileError(f"{path} does not belong to {path.with_name(RESULT)}")
        return method, len(learned)

    def _refuse(self, difference: Difference) -> NoReturn:
        """Refuse to go on with a run, of which a task that it has begun is another one now."""
        files = self._other_files()
        if files is not None and not difference.is_of_data:
            raise InputError(f"{self.request.out} holds a run on {files}; choose another folder (`out`)")
        of = "" if files is None else f" (of {files})"
        remedy = f"{difference.remedy} " if difference.remedy else ""
        raise InputError(f"{self.request.out} holds a run {difference.what}{of}; {remedy}choose another folder (`out`)")

    def _require_no_foresight(self, earlier: RunResult) -> None:
        """Refuse other tasks to come where what was made for those that were to come would be another one."""
        if self.experiment.own is not None and earlier.knows_classes_alone:
            raise InputError(
                f"{self.request.out} holds a run of an earlier version, which knew classes alone and cannot go on with "
                "other tasks; choose another folder (`out`)"
            )
        there = self.fresh_method(tuple(task.classes for task in earlier.tasks)).foresight()
        if there != (now := self.fresh_method().foresight()):
            raise InputError(
                f"{self.request.out} holds a run of {self.request.method}, which shares out its parameters among the "
                f"tasks to come: {there} for {len(earlier.tasks)} there, {now} for {len(self.stream)} now; choose "
                "another folder (`out`)"
            )

    def _other_files(self) -> str | None:
        """Return whose files the folder's run and this one are made of, for a message; None where they are the same."""
        assert self._earlier is not None
        there, now = ({*self._earlier.sources}, {str(path.absolute()) for path in self.request.sources})
        if there == now:
            return None
        return " and this one is on ".join(", ".join(sorted(each)) or "no files" for each in (there, now))

    def _require_same_run(self) -> None:
        """Refuse to go on with another run, or one that has forgotten a task."""
        request, earlier = self.request, self._earlier
        if request.out is None or earlier is None:
            return
        require_whole(request.out, earlier)
        if earlier.forgotten:
            tasks = "a task was" if earlier.forgotten == 1 else f"{earlier.forgotten} tasks were"
            raise InputError(
                f"in {request.out} {tasks} forgotten, so that this run is over; choose another folder (`out`)"
            )
        if earlier.method != request.method:  # compared first: settings of different methods differ in any case
            raise InputError(
                f"{request.out} holds a run of another method ({earlier.method} there, {request.method} now); choose "
                "another folder (`out`)"
            )
        wanted = {"experiment": request.experiment, "seed": request.seed}
        if earlier.sources and request.sources:
            del wanted["experiment"]  # named after its files, which are compared with their contents
        found = {**{key: getattr(earlier, key) for key in wanted}, **self._go_on_as_recorded(earlier)}
        wanted |= self.config.flat()
        found["num_tasks"] = wanted["num_tasks"]  # the tasks themselves are compared, once they are known
        now = environment_of(request)
        for key in ("threads", "device", "processes"):
            found[key], wanted[key] = earlier.environment.get(key, 1), now.get(key, 1)
        configs = self.experiment.earlier_configs(earlier.method)
        same = {"num_tasks": wanted["num_tasks"]}
        then = [{**wanted, **each.overridden(self.request.overrides).flat(), **same} for each in configs]
        if changes := changed(found, wanted, *then):
            on = "" if (files := self._other_files()) is None or not request.sources else f" on {files},"
            raise InputError(
                f"{request.out} holds a run{on} with other settings: {changes}; choose another folder (`out`)"
            )

    def _go_on_as_recorded(self, earlier: RunResult) -> dict[str, Any]:
        """Return the settings of a record, and take those for the run's if the same request would have made them then.

        A run that an earlier version began goes on with the defaults of that version.
        """
        now = self.config.flat()
        found = {**completed(earlier.method, earlier.config), "num_tasks": now["num_tasks"]}
        then = (each.overridden(self.request.overrides) for each in self.experiment.earlier_configs(earlier.method))
        if found != now and (as_recorded := next((each for each in then if each.flat() == found), None)) is not None:
            self.config = as_recorded
            defaults = changed(found, now)
            self._about_settings = (f"an earlier version began this run; going on with its defaults: {defaults}",)
        self._about_settings += tuple(
            f"an earlier version began this run, whose {said}: what is trained now may end with other bits than it "
            "would have with that version"
            for said in computed_otherwise(earlier.method, earlier.config, self.config.flat())
        )
        own = OwnMethod.of(earlier.method)
        if own is not None and earlier.own_method is not None and earlier.own_method.is_changed_in(own):
            self._about_settings += (
                f"the file of {earlier.method} has changed since this run was begun: what is trained now may not be "
                "learned as what was before",
            )
        return found


def _said_of_tasks(earlier: RunResult, record: RunResult, begun: int) -> str:
    """Say which tasks a run has from now on."""
    names = ", ".join(task.name for task in record.tasks[begun:])
    tasks = "1 task" if len(earlier.tasks) == 1 else f"{len(earlier.tasks)} tasks"
    now = f"going on after {begun} of them with {names}" if names else f"it ends after {begun} of them"
    return f"the run was begun with {tasks}; {now}"


class _ForeignFileError(CheckpointError):
    """A whole file that belongs to another run."""


def prepare(request: RunRequest, monitor: DownloadMonitor | None = None) -> Run:
    """Set up a run, or take up one that was interrupted or is finished.

    Args:
        request: what to run.
        monitor: told how the download of a data set goes on.

    Raises:
        InputError, DataError, CheckpointError: as :class:`Run` and :meth:`Run.prepare`.
    """
    run = Run(request)
    run.prepare(monitor)
    return run


def finished_result(request: RunRequest) -> RunResult | None:
    """The result of a run that its folder holds finished, as :attr:`Run.finished`; presets need no data.

    Raises:
        InputError, CheckpointError: as :class:`Run`.
    """
    return Run(request).finished


def load_method(path: Path, method: Method) -> tuple[str, ...]:
    """Load a method, and return the names of the tasks that it has learned.

    Raises:
        CheckpointError: the file is damaged, or of another network.
    """
    try:
        return method.load(path)
    except RuntimeError as error:  # weights that fit in name and not in shape
        raise CheckpointError(
            f"{path} was saved with another backbone, whose weights had other shapes; build it exactly as it was"
        ) from error
