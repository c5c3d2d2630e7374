"""Learning of a stream without announced switches: tasks are recognised by loss and samples, or opened anew.

Two detectors (:class:`hatrack.streams.LossDetector`) watch every batch: one its loss, the other how strange its samples
are for the sums of the task at hand (:func:`hatrack.recognition.strangeness`). All samples need labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import GuaranteeError, InputError, TrainingError
from hatrack.functional import batch_progress
from hatrack.learning.samples import as_inputs, converted, read_targets
from hatrack.methods import Batch, Method, ParameterGroup
from hatrack.methods.masked import MaskedMethod
from hatrack.objectives import Classification, TargetKind, as_targets
from hatrack.recognition import (
    ClassSums,
    FeatureMap,
    RandomFilters,
    RandomUnits,
    TaskSums,
    UntrainedPart,
    default_feature_map,
    finite_features,
    solve_ridge,
    strangeness,
)
from hatrack.state.undo import leaves_modes
from hatrack.streams import DetectorSettings, LossDetector, Split, Surprise, Task, usual_limit
from hatrack.support.inputs import Inputs, map_tensors, outside_inference
from hatrack.support.modes import plain_modes
from hatrack.support.ranges import require_range

__all__ = ["STRANGE", "Step", "UnannouncedLearner", "Usual"]

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Step:
    """Outcome of one batch.

    Attributes:
        task: the task that the batch was attributed to.
        loss: its loss with that task, before a step was made with it; where a task was opened at a switch, after
            the steps with all batches that were set aside.
        surprise: the detectors' judgement of the batch.
        opened: whether a new task was opened with it.
        strangeness: how far its samples lie from those of that task, before they were learned from: about 1 for samples
            of the task; None where samples have no shared features, or are not looked at.
    """

    task: str
    loss: float
    surprise: Surprise
    opened: bool
    strangeness: float | None = None


class Usual(NamedTuple):
    """Usual value of what a detector watches, and its deviation."""

    mean: float
    deviation: float


class _Window(NamedTuple):
    """Batch of the stream: samples, classes, and features on the CPU, float64 ``(N, D)``, if samples have any."""

    x: Inputs
    y: Tensor
    features: Tensor | None


@dataclass
class _Open:
    """Task that has begun, and has not been consolidated whole.

    Its state follows from this record (``_open`` of the learner, None where no task has one) and from ``_unwanted``,
    the name of the task that is to be removed. These are all states, and who leaves each; an error may come anywhere:

    ========  ==================================  ===================================================================
    state     what is kept                        who leaves it
    ========  ==================================  ===================================================================
    begun     ``_unwanted``; no record, or one    ``observe`` to open, once the batch is done with; ``_go_back`` to
              that the batch has made             unwanted, after an error
    open      record                              ``_consolidate`` to ending, at a switch to a new task or ``finish``
    ending    record, ``ending``                  ``_consolidate`` to ended, or to unwanted if the task diverged;
                                                  after any other error ``_make_up`` calls it again, in the next call
    ended     record, ``ending`` and ``ended``    ``_consolidate``, which drops the record once it knows the usual
                                                  loss; ``_make_up`` calls it again
    unwanted  ``_unwanted``; a record if the      ``_remove_unwanted``, at once by ``_go_back`` or ``_end``; by
              task diverged                       ``_make_up`` if an error cut that off, too
    ========  ==================================  ===================================================================

    Without a record a task is consolidated. ``_go_back`` takes up the record of before the batch, whose flags are as
    the batch left them: a task that was ended stays so, and ``_make_up`` drops its record in the next call.

    Attributes:
        task: the task; its samples are those of its first batch.
        optimizer: its optimizer.
        ending: whether its end has begun, which an error may cut off; no step is made then any more.
        ended: whether the method has ended it.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    ending: bool = False
    ended: bool = False


LEAST_FREEDOM = 10
"""Samples beyond one of every class from which it is known how much the samples of a task differ."""

STRANGE = DetectorSettings(jump=1.0)
"""Settings by which samples count as another task's; strangeness is near 1 for samples of the task at hand."""


class UnannouncedLearner:
    """Learner that trains a method on batches whose task is not named.

    Every batch is first tested with the task at hand: its loss, and how strange its samples are for the sums of
    features that all tasks share. A batch that seems to be another task's by either is set aside; once a detector is
    sure, it is tested with every known task. Where both are usual for some, the one for which samples are least strange
    is the task at hand from now on: it answers, and is not trained any further unless it is the one still in training.
    Otherwise the task in training is consolidated and a new one opened, which learns first from the batches that were
    set aside. If the suspicion passes, they are learned from late.

    How long a task will be is not known, so that HAT neither settles a mask nor lets c set in late: with its default
    schedule a task begins with all units, under the whole c, 0.75 if left open, from the first batch on.

    Samples are compared by classes, so that two tasks of the same samples with other labels are two tasks. Where
    samples are not one tensor of real numbers, as tokens or nested tensors, the loss alone decides, and a switch
    between tasks whose labels the task at hand predicts as well is not seen.

    Whatever is raised, an interrupt included, earlier tasks stay as they are, and the call can be repeated: the batch
    counts as not seen, a task that it had opened is removed, and the next call ends a task whose end was cut off. Steps
    that were made in a task that was open before stay made. With methods that let later tasks change earlier ones, so
    do those of the task that is removed, in what it shares with others.

    Tasks are called ``found-1``, ``found-2``, ... in the order in which they are opened. There are no epochs and no
    validation: the annealing of the gates runs through once in ``cycle`` steps, again and again.

    Args:
        method: a new method; it must be able to predict earlier tasks while it trains one.
        classes: number of classes of each task's head, as many as the largest task may have.
        optimizer: makes the optimizer of a task from its parameters; or from groups of them, as torch's optimizers
            take, where the method has an ``embedding_lr_factor``. It is not known here how many steps there will be, so
            that embeddings learn as fast as weights otherwise.
        detector: settings by which a loss counts as another task's; those of :class:`DetectorSettings` if None.
        strange: settings by which samples count as another task's; None goes by the loss alone.
        feature_map: features in which samples are compared; None for fewer than
            :func:`hatrack.recognition.default_feature_map` gives, since every batch is looked at. An untrained part
            of the backbone (:class:`hatrack.recognition.UntrainedPart`) is for methods with masks, and samples of any
            kind.
        announced: whether switches are told by :meth:`announce` alone, and not detected.
        cycle: steps from the softest gates to the hardest, at least 1.

    Raises:
        InputError: the cycle is below 1, the method is to train in parts that are shares of epochs, or it has no
            untrained part.

    Attributes:
        tasks: names of the tasks found so far.
        current: the task at hand; None before the first batch.
        cycle: steps from the softest gates to the hardest.
    """

    def __init__(
        self,
        method: Method,
        classes: int,
        optimizer: MakeOptimizer,
        *,
        detector: DetectorSettings | None = None,
        strange: DetectorSettings | None = STRANGE,
        feature_map: FeatureMap | None = None,
        announced: bool = False,
        cycle: int = 25,
    ) -> None:
        self.method = method
        self.cycle = cycle
        require_range(self, "cycle", least=1)
        if getattr(method.settings, "contrastive", 0.0):
            raise InputError(f"contrastive is a share of the epochs, and here {method.name} has none: leave it at 0")
        if isinstance(feature_map, UntrainedPart) and not isinstance(method, MaskedMethod):
            raise InputError(f"{method.name} has no part that stays untrained: take hat, or another feature_map")
        self.tasks: list[str] = []
        self.current: str | None = None
        self._classes = classes
        self._make_optimizer = optimizer
        self._detecting = not announced
        self._settings = detector or DetectorSettings()
        self._detector = LossDetector(self._settings)
        self._strange = strange
        self._sample_detector = LossDetector(strange or STRANGE)
        self._feature_map = feature_map
        self._sample_shape: tuple[int, ...] = ()
        self._sums: dict[str, ClassSums] = {}
        self._open: _Open | None = None  # see there for the states of a task
        self._unwanted: str | None = None  # name of a task to be removed, which has begun or may have
        self._steps = 0
        self._usual: dict[str, Usual] = {}  # of the loss, by task
        self._usually_strange: dict[str, Usual] = {}
        self._suspicious: list[_Window] = []
        self._recent: list[_Window] = []
        self._announced = False

    def announce(self) -> None:
        """Announce that the next batches are of another task: a known one if one fits, else a new one.

        As when a switch is detected, this is decided after ``patience`` batches.
        """
        self._announced, self._suspicious = True, []

    @leaves_modes
    @plain_modes()
    @torch.enable_grad()
    def observe(self, x: Inputs, y: Tensor) -> Step:
        """Attribute a batch to a task, and learn from it.

        Args:
            x: samples ``(N, ...)``, nested as the method's setup says; NumPy arrays serve as tensors.
            y: their classes within their task, integers ``(N,)`` from 0 to ``classes`` − 1.

        Raises:
            InputError: samples are of another kind or not finite, or classes are none or not as many as samples.
            TrainingError: the loss with the task at hand is not a finite number, and the batch is not learned from;
                :meth:`finish` removes the task if its weights are lost. Or the task in training could not be
                consolidated, and was removed.
        """
        self._make_up()
        before = {name: copy.copy(v) if isinstance(v, LossDetector) else v for name, v in vars(self).items()}
        try:
            step = self._observe(x, y)
            self._unwanted = None
            return step
        except BaseException:
            self._go_back(before)
            raise

    def _observe(self, x: Inputs, y: Tensor) -> Step:
        x, y = self._read(x, y)
        window = _Window(x, y, self._features(x))
        if self.current is None:
            self._announced = False  # the first task begins, announced or not
            first, loss = self._open_task(window, [window])
            return Step(first, loss, Surprise.SWITCH, opened=True)
        loss, strange = self.loss_of(self.current, [(x, y)]), self._strangeness(self.current, window)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of the batch with task {self.current!r} is {loss}: samples or weights are too large; bring "
                "samples to about one scale, or take a smaller learning rate"
            )
        if self._announced:
            self._suspicious = [*self._suspicious, window]
            if len(self._suspicious) < self._settings.patience:
                return Step(self.current, loss, Surprise.SUSPICIOUS, opened=False, strangeness=strange)
            self._announced = False
            return self._switch(self._suspicious)
        found = {self._detector.observe(loss)}
        if strange is not None:
            found.add(self._sample_detector.observe(strange))
        surprise = next(each for each in (Surprise.SWITCH, Surprise.SUSPICIOUS, Surprise.USUAL) if each in found)
        if not self._detecting:
            surprise = Surprise.USUAL
        if surprise is Surprise.SWITCH:
            return self._switch([*self._suspicious, window])
        if surprise is Surprise.SUSPICIOUS:
            self._suspicious = [*self._suspicious, window]
            return Step(self.current, loss, surprise, opened=False, strangeness=strange)
        batches, self._suspicious = [*self._suspicious, window], []  # a suspicion that has passed is learned from, too
        self._train(batches)
        return Step(self.current, loss, surprise, opened=False, strangeness=strange)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles take.

        Raises:
            InputError: a task is in training: the optimizer of a copy would not be kept from frozen weights.
        """
        if self._open is not None:
            raise InputError(f"task {self._open.task.name!r} is in training: a learner is copied after finish() alone")
        return dict(self.__dict__)

    @leaves_modes
    @plain_modes()
    @torch.enable_grad()
    def finish(self) -> None:
        """Consolidate the task in training, after the last batch; batches that were set aside are dropped.

        Raises:
            TrainingError: it diverged; the task is removed, and batches to come are told from the others.
        """
        self._make_up()
        self._end()
        self._suspicious = []

    def _end(self) -> None:
        """Consolidate the task in training, or remove it if it diverged."""
        try:
            self._consolidate()
        except BaseException:
            self._remove_unwanted()
            raise

    def _read(self, x: Inputs, y: Tensor) -> tuple[Inputs, Tensor]:
        """Return samples and classes as tensors on the method's device."""
        setup = self.method.setup
        x = setup.interface.accepted(converted(as_inputs(x, "samples"), setup.example_input, "samples"))
        y = as_targets(read_targets(y, "classes"), TargetKind.CLASSES, "classes")
        samples = setup.interface.samples(x)
        if len(y) != samples or int(y.max()) >= self._classes:
            raise InputError(f"{samples} samples need as many classes from 0 to {self._classes - 1}, not {y.tolist()}")
        return map_tensors(lambda tensor: outside_inference(tensor).to(setup.device), x), outside_inference(y).to(
            setup.device
        )

    def recognise(self, x: Inputs) -> list[str]:
        """Return for every sample the likeliest of the tasks found, by :class:`hatrack.recognition.RidgeRecogniser`.

        Args:
            x: samples ``(N, ...)``, without labels.

        Raises:
            InputError: samples are not one tensor of real numbers of the shape that was learned, or are not finite; or
                no task was found yet, or samples were not looked at (``strange=None``).
        """
        setup = self.method.setup
        x = setup.interface.accepted(converted(as_inputs(x, "samples"), setup.example_input, "samples"))
        if self._strange is None:
            raise InputError("tasks are not recognised where samples are not looked at: leave out strange=None")
        if not self._sums or self._feature_map is None or not self._feature_map.suits(x):
            raise InputError("tasks are recognised once some are found, of samples that are one tensor of real numbers")
        numbers = self._numbers(self._feature_map, x)
        shape = tuple(numbers.shape[1:])
        if shape != self._sample_shape:
            raise InputError(f"samples have the shape {shape}, and those of the tasks found {self._sample_shape}")
        described = self._feature_map.describe()
        recogniser = solve_ridge(
            {
                task: TaskSums.of(described, sums.gram, sums.targets, self._sample_shape)
                for task, sums in self._sums.items()
            }
        )
        found = recogniser.log_probabilities(numbers).argmax(1)
        return [recogniser.tasks[index] for index in found.tolist()]

    def _features(self, x: Inputs) -> Tensor | None:
        """Return features in which samples are compared; None if they have none, or nobody looks at them."""
        is_real = isinstance(x, Tensor) and x.is_floating_point()
        if self._strange is None or not (is_real or isinstance(self._feature_map, UntrainedPart)):
            return None
        if self._feature_map is None:
            self._feature_map = _small_map(x.movedim(self.method.setup.interface.batch_axis, 0).shape[1:])
        if not self._sample_shape and isinstance(self.method, MaskedMethod):
            self._feature_map.require_fixed(x, self.method.network.masking)
        numbers = self._numbers(self._feature_map, x)
        self._sample_shape = tuple(numbers.shape[1:])
        return finite_features(self._feature_map, numbers)

    def _numbers(self, feature_map: FeatureMap, x: Inputs) -> Tensor:
        """Return the numbers that features are computed of, ``(N, ...)``."""
        if isinstance(self.method, MaskedMethod):
            return feature_map.read(x, self.method.network.masking)
        numbers: Tensor = x.movedim(self.method.setup.interface.batch_axis, 0)
        return numbers

    def _strangeness(self, task: str, window: _Window) -> float | None:
        """Return how strange a batch is for a task that was found; None if its samples are not compared."""
        if window.features is None or task not in self._sums or self._sums[task].freedom < LEAST_FREEDOM:
            return None
        return strangeness(self._sums[task], window.features, window.y.cpu())

    def loss_of(self, task: str, batches: Iterable[tuple[Inputs, Tensor]]) -> float:
        """Return the mean cross-entropy of batches with a task that was found, in evaluation mode.

        Args:
            task: name of the task.
            batches: samples ``(N, ...)`` and classes, int64 ``(N,)``, of every batch, on the method's device.
        """
        self.method.train_mode(False)
        with torch.no_grad():
            losses = [float(F.cross_entropy(self._logits(x, y, task), y)) for x, y in batches]
        return sum(losses) / len(losses)

    def best_task(self, x: Inputs, y: Tensor) -> str:
        """Return the task found whose loss on some labelled samples is the lowest.

        Args:
            x: samples ``(N, ...)``.
            y: their classes, int64 ``(N,)``.
        """
        x, y = self._read(x, y)
        return min(self.tasks, key=lambda task: self.loss_of(task, [(x, y)]))

    def _in_training(self, task: str | None) -> bool:
        """Return whether steps may be made in a task, which answers as it does in training: its end has not begun."""
        return self._is_open(task) and not (self._open is not None and self._open.ending)

    def _is_open(self, task: str | None) -> bool:
        """Return whether a task has a record, its end begun or not: its detectors are those of now, not of its end."""
        return self._open is not None and self._open.task.name == task

    def _logits(self, x: Inputs, y: Tensor, task: str) -> Tensor:
        if self._in_training(task):
            return self.method.loss(self._batch(x, y, progress=1.0)).logits
        return self.method.predict(x, task)

    def _switch(self, batches: list[_Window]) -> Step:
        """Attribute batches to a known or a new task, which becomes the one at hand."""
        self._suspicious = []
        self._note_usual()
        known = {
            task: (self._usual_strangeness(task, batches), median(self.loss_of(task, [(x, y)]) for x, y, _ in batches))
            for task in self.tasks
            if task != self.current
        }
        fits = [task for task, (strange, loss) in known.items() if self._is_usual(task, strange, loss)]
        x, y, _ = batches[-1]
        if not fits:
            self._consolidate()
            new, _ = self._open_task(batches[-1], batches)
            return Step(new, self.loss_of(new, [(x, y)]), Surprise.SWITCH, opened=True)
        fitting = min(fits, key=lambda task: known[task])
        self._resume(fitting)
        self._train(batches)
        strange, loss = known[fitting]
        compared = strange if fitting in self._sums else None
        return Step(fitting, loss, Surprise.SWITCH, opened=False, strangeness=compared)

    def _note_usual(self) -> None:
        """Take note of what is usual for the task at hand, while it is the one in training."""
        if self.current is not None and self._is_open(self.current):
            loss, strange = self._detector, self._sample_detector
            self._usual = {**self._usual, self.current: Usual(loss.mean, loss.deviation)}
            self._usually_strange = {**self._usually_strange, self.current: Usual(strange.mean, strange.deviation)}

    def _usual_strangeness(self, task: str, batches: Sequence[_Window]) -> float:
        """Return the median strangeness of batches for a task; 0 where samples are not compared.

        The first of them may still be of the task before, if that was suspicious by chance.
        """
        found = [strange for each in batches if (strange := self._strangeness(task, each)) is not None]
        return median(found) if found else 0.0

    def _is_usual(self, task: str, strange: float, loss: float) -> bool:
        """Return whether strangeness and loss are usual for a task."""
        if self._strange is not None and strange > usual_limit(*self._usually_strange[task], self._strange):
            return False
        return loss <= usual_limit(*self._usual[task], self._settings)

    def _open_task(self, first: _Window, batches: Sequence[_Window]) -> tuple[str, float]:
        """Open a new task, which becomes the one at hand, and learn from batches.

        Returns:
            Its name, and the loss of the first batch before that.
        """
        x, y, _ = first
        name = f"found-{len(self.tasks) + 1}"
        kept = map_tensors(lambda tensor: tensor.cpu(), x)
        window = Split(kept, torch.arange(len(y)), y.cpu(), interface=self.method.setup.interface)
        task = Task(name, Classification(tuple(map(str, range(self._classes)))), window, window, window)
        self._unwanted = name  # until the batch that opens it is done with
        with self.method.beginning():
            self.method.begin_task(task)
            optimizer = self.method.protect(self._optimizer_of(self.method.parameter_groups()))
        self._open = _Open(task, optimizer)
        self._steps = 0
        self.tasks = [*self.tasks, name]
        self.current = name
        self._recent = []
        self._detector.restart()
        self._sample_detector.restart()
        loss = self.loss_of(name, [(x, y)])
        self._train(batches)
        return name, loss

    def _go_back(self, before: Mapping[str, Any]) -> None:
        """Take back what a batch has changed; a task that it has ended stays ended, and one that it has opened goes.

        Args:
            before: attributes of this learner before the batch; their values are replaced, never written into.
        """
        opened = next((task for task in self.tasks if task not in before["tasks"]), self._unwanted)
        vars(self).update({**before, "_unwanted": opened})
        self._remove_unwanted()

    def _make_up(self) -> None:
        """Do what an error has cut off: remove a task that did not come about, or consolidate one."""
        self._remove_unwanted()
        if self._open is not None and self._open.ending:
            self._end()

    def _remove_unwanted(self) -> None:
        """Remove a task that did not come about, or has diverged; the last of the others is at hand in its place."""
        name = self._unwanted
        if name is None:
            return
        self.method.give_up(name)
        if name in self.tasks:
            self.tasks = [task for task in self.tasks if task != name]
            self._open, self._recent, self._suspicious = None, [], []
            for known in ("_sums", "_usual", "_usually_strange"):
                setattr(self, known, {task: value for task, value in vars(self)[known].items() if task != name})
        if self.current is not None and self.current not in self.tasks:
            self._resume(self.tasks[-1] if self.tasks else None)
        self._unwanted = None

    def _resume(self, task: str | None) -> None:
        """Go on with a task that is consolidated; None if there is none."""
        self.current = task
        if task is not None:
            self._detector.resume(*self._usual[task])
            self._sample_detector.resume(*self._usually_strange[task])

    def _optimizer_of(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        """Make the optimizer of a task; embeddings learn faster than weights where the method's settings say so."""
        if len(groups) == 1:
            return self._make_optimizer(groups[0].parameters)
        optimizer = self._make_optimizer([{"params": group.parameters} for group in groups])
        for made, group in zip(optimizer.param_groups, groups, strict=True):
            made["lr"] *= group.lr_factor
        return optimizer

    def _train(self, batches: Iterable[_Window]) -> None:
        """Make one step per batch, if the task at hand is the one in training."""
        if not self._in_training(self.current):
            return
        assert self._open is not None
        assert self.current is not None
        optimizer = self._open.optimizer
        self.method.train_mode(True)
        for window in batches:
            x, y, features = window
            if features is not None:
                new = ClassSums.of([(features, y.cpu())], self._classes)
                known = self._sums.get(self.current)
                self._sums = {**self._sums, self.current: new if known is None else known.plus(new)}
            progress = batch_progress(self._steps % self.cycle, self.cycle)
            loss = self.method.loss(self._batch(x, y, progress)).value
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self._steps += 1
            self._recent = [*self._recent[1 - self._settings.memory :], window]

    def _batch(self, x: Inputs, y: Tensor, progress: float) -> Batch:
        assert self._open is not None
        return Batch(
            x, y, (self._open.task.name,), torch.zeros_like(y), progress, interface=self.method.setup.interface
        )

    def _consolidate(self) -> None:
        """End the task in training; its usual loss is that of its last batches, as its masks have become hard."""
        if self._open is None:
            return
        self._note_usual()
        name = self._open.task.name
        self._open.ending = True
        if not self._open.ended:
            try:
                self.method.end_task(self._open.task)
            except (GuaranteeError, TrainingError) as error:  # which every further try would meet again
                self._unwanted = name
                raise TrainingError(f"task {name!r} diverged and was removed: {error}") from error
            self._open.ended = True
        _, deviation = self._usual.get(name, (0.0, 0.0))
        usual = Usual(self.loss_of(name, [(x, y) for x, y, _ in self._recent]), deviation)
        self._usual, self._open = {**self._usual, name: usual}, None


def _small_map(shape: Sequence[int]) -> FeatureMap:
    """Return a map of a few hundred features for samples of a shape."""
    usual = default_feature_map(shape)
    if isinstance(usual, RandomFilters):
        return RandomFilters(filters=min(36, usual.filters), regions=4)
    assert isinstance(usual, RandomUnits)
    return RandomUnits(units=min(500, usual.units), inputs=usual.inputs)
