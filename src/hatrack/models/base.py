"""Network of tasks: one backbone, a mask and a head for every task, and the protection of what these rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack.errors import InputError, UnsupportedError
from hatrack.gating.attachment import mark
from hatrack.gating.norms import let_train
from hatrack.growth.policy import Growth
from hatrack.masks.calibration import Scorer
from hatrack.masks.task_list import StateT, TaskList
from hatrack.models import unlearning, widening
from hatrack.models.answering import (
    ask,
    features_of,
    fixed_logits,
    is_transformed,
    joined,
    logits_of,
    logits_of_mixed,
)
from hatrack.models.attaching import require_attachable
from hatrack.models.calibrating import calibrate
from hatrack.models.converting import convert
from hatrack.models.forgetting import Forgotten, InitialDistribution
from hatrack.models.masking import Masking
from hatrack.models.own_heads import require_same_state, require_usable_head
from hatrack.models.own_state import FirstRuns
from hatrack.models.rewritten import refuses_written
from hatrack.models.room import Plan, make_plan
from hatrack.models.saving import content_of
from hatrack.models.state_dicts import StateLoading, extra_state_of
from hatrack.protection.capacity import Capacity
from hatrack.protection.protection import Protection
from hatrack.recognition import FeatureMap, Inferred, RecogniserCache, choose_scorer, infer_by_sums, infer_task
from hatrack.state.movement import StateOf
from hatrack.state.turns import Turns
from hatrack.state.undo import all_or_nothing
from hatrack.storage.checkpoint import Checkpoint, write_checkpoint
from hatrack.support.compilers import keep_compilers_out, start_compilers_inside
from hatrack.support.inputs import Inputs, device_of, map_tensors, outside_inference
from hatrack.support.interface import Interface
from hatrack.support.modes import plain_modes
from hatrack.support.names import entries_below
from hatrack.support.notebook import html_table
from hatrack.support.parameters import divided
from hatrack.support.ranges import require_above_zero

__all__ = ["MaskedNetwork", "read_only"]

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def read_only(path: str) -> Any:
    """Make a property that reads an attribute of a part of a network, and cannot be assigned to.

    Args:
        path: path of the attribute from the network, such as ``masking.example_shape``.
    """
    return property(attrgetter(path))


class MaskedNetwork(nn.Module, Generic[StateT]):
    """Network of tasks with a mask each, in which everything that consolidated tasks rely on is frozen.

    It is made of parts: ``tasks`` (their heads and all else that they own), ``masking`` (the part of the backbone that
    each task uses, and how it computes with it), and ``protection`` (the frozen entries of both).

    Attributes:
        format: name that files give to saved networks.
        backbone: the network that was given.
        tasks: the states of the tasks, in the order in which these were added.
        masking: the masks of the tasks.
        protection: the protection of what consolidated tasks rely on.
        turns: turns of the threads that ask the network or change it.
        growth: policy by which the backbone is widened by itself; None for never.
        recognisers: the last solution of the tasks' sums, by which :meth:`infer` recognises tasks.
        initialization: distribution of the backbone's parameters when the network was made.
        loading: the loading of a ``state_dict`` that is under way.

    Args:
        backbone: a network that maps samples to features.
        example_input: a batch of the shape that it expects.
        growth: policy by which it is widened by itself; None for never.
        interface: how it is called, and what of its result are its features.
        build_masking: makes the masks of a list of tasks, given it and the example input.

    Raises:
        UnsupportedError: the backbone does something for which the masks cannot answer.
        InputError: the backbone does not give features, or is inside another network of masks.
        GuaranteeError: random masks were tried out, and an entry that should have been free changed the outputs.
    """

    format: ClassVar[str]
    masking: Masking[StateT]
    tasks: TaskList[StateT]

    def __init__(
        self,
        backbone: nn.Module,
        example_input: Inputs,
        growth: Growth | None,
        interface: Interface,
        build_masking: Callable[[TaskList[StateT], Inputs], Masking[StateT]],
    ) -> None:
        super().__init__()
        require_attachable(backbone)
        example_input = map_tensors(outside_inference, interface.accepted(example_input))
        state = StateOf(backbone)
        self.turns = Turns()
        self.backbone = backbone
        self.tasks = TaskList()
        self.growth = growth
        self.recognisers = RecogniserCache()
        self.initialization = InitialDistribution.of(backbone)
        parameters = dict(backbone.named_parameters())
        with refuses_written(parameters):
            self.masking = build_masking(self.tasks, example_input)
        self.protection = Protection(self, self.masking)
        mark(backbone, self)
        self.loading = StateLoading()
        self.register_load_state_dict_post_hook(_finish_loading)  # type: ignore[no-untyped-call]
        if growth is not None:
            self.masking.record_widths(self.masking.units_now())  # which are refused where it could never grow
        self.to(self.masking.device)  # which derives the protection, too
        device = self.masking.device
        example_input = map_tensors(lambda tensor: tensor.to(device), example_input)
        try:
            with refuses_written(parameters):
                runs = FirstRuns(self.masking, example_input)
                self.masking.require_no_leak(runs.drawn)
                state.put_back()  # a value that the runs so far have left would not be seen to move
                self.masking.find_own_state(example_input, runs)
        finally:
            state.put_back()

    def detach(self) -> nn.Module:
        """Detach the backbone from the network, and return it.

        Returns:
            The backbone, with its own forward and state, and the weights it has by now. The network is of no further
            use.
        """
        self._detach()
        return self.backbone

    @all_or_nothing()
    def _detach(self) -> None:
        self.masking.detach()
        let_train(self.backbone)
        self.masking.is_attached = False
        mark(self.backbone, None)

    example_shape: Final[Any] = read_only("masking.example_input.shape")
    """Shape of the example input, a :class:`torch.Size`; of several inputs, the same structure of shapes."""

    # ------------------------------------------------------------------------------------------------------------ tasks

    task_names: Final[tuple[str, ...]] = read_only("tasks.names")
    """Names of all tasks, in the order in which they were added."""

    @property
    def task_in_training(self) -> str | None:
        """Name of the task that was added and is not consolidated yet."""
        state = self.tasks.in_training
        return None if state is None else state.name

    @all_or_nothing()
    def add_task(
        self,
        name: str,
        num_classes: int | None = None,
        *,
        head: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add a task; where the network has a ``growth``, groups that are nearly full are widened first.

        Args:
            name: a name that no task has yet.
            num_classes: number of outputs of a linear head, at least 1; None where ``head`` is given.
            head: head of your own, any module that maps features to outputs. It is used as it is, moved to the
                backbone's device and type, and frozen with its buffers when the task is consolidated.
            generator: source of randomness on the CPU; torch's global one if left out.

        Raises:
            InputError: another task has this name, it is empty, the number of classes is below 1, both or none of
                ``num_classes`` and ``head`` are given, the head does not run on the features or shares parameters with
                another part, or another task is not consolidated yet.
            UnsupportedError: the head gives other outputs from call to call.
            GuaranteeError: parameters or buffers have another shape than they had.
        """
        self.protection.require_same_shapes()
        own = self.tasks.require_addable(name, num_classes, head)
        require_usable_head(self, name, own)
        widening.grow_if_full(self, generator)
        self.masking.open_task(name, own, generator)

    def task_parameters(self, name: str, *, new_only: bool = False) -> list[nn.Parameter]:
        """Return the parameters to train for a task.

        Args:
            name: the task in training.
            new_only: leave the backbone out, for an optimizer that has it already from the task before.

        Returns:
            The task's own (embedding, head, norms), and the backbone's shared parameters.

        Raises:
            InputError: there is no such task, or it is consolidated, so that nothing of it may move.
        """
        state = self.tasks.named(name)
        if state.consolidated:
            raise InputError(f"task {name!r} is consolidated and cannot be trained again; add a new task")
        return [*([] if new_only else self.masking.shared_parameters()), *state.parameters()]

    def parameter_groups(
        self, task: str, lr: float, *, embedding_lr_factor: float = 10.0, new_only: bool = False
    ) -> list[dict[str, Any]]:
        """Return the parameters to train for a task as groups for Adam or AdamW, embeddings apart.

        Steps of Adam are of the learning rate's size, however large gradients are. With a rate for weights an
        embedding stays near where it began for some hundred steps: hardly a unit is switched off, and later tasks find
        none that is free. Embeddings have no weight decay, either. For SGD take :meth:`task_parameters`.

        Args:
            task: the task in training.
            lr: learning rate of weights, a finite number above 0, or a 0-dimensional tensor with one.
            embedding_lr_factor: how much faster embeddings learn than weights, such a number.
            new_only: leave the backbone out, for an optimizer that has it already from the task before.

        Returns:
            Groups of weights and of embeddings; of weights and scores alone where no mask is learned by an embedding,
            such as that of a settled task. Together they hold what :meth:`task_parameters` gives.

        Raises:
            InputError: there is no such task, or it is consolidated; or a number is not finite and above 0.
        """
        require_above_zero(lr=lr, embedding_lr_factor=embedding_lr_factor)
        of_mask = lr * embedding_lr_factor
        require_above_zero(**{"lr times embedding_lr_factor": of_mask})
        weights, masks = divided(self.task_parameters(task, new_only=new_only), self.masking.bounded())
        of_weights = {"params": weights, "lr": lr}
        return [of_weights, {"params": masks, "lr": of_mask, "weight_decay": 0.0}] if masks else [of_weights]

    def task_buffers(self, name: str) -> list[Tensor]:
        """Return the buffers that training a task may change: the backbone's and the task's own; and its mask.

        Raises:
            InputError: there is no such task.
        """
        state = self.tasks.named(name)
        return [*self.backbone.buffers(), *state.buffers(), *state.mask_tensors()]

    def anneal(self, progress: float | Tensor) -> None:
        """Set how hard masks in training are (Eq. 3); it has an effect in training mode alone.

        Args:
            progress: position within the epoch, 0 (first batch) to 1 (last batch). For masks of units it may be a
                0-dimensional tensor on the network's device, which is computed with and not read: a captured CUDA graph
                takes its value anew. So on a GPU its range is not checked.

        Raises:
            InputError: no task is in training, progress is a number outside [0, 1], or a tensor of another shape or
                on another device.
        """
        self.masking.anneal(progress)

    def regularization(self) -> Tensor:
        """Return the regularization cost of the mask in training, a scalar to be added to the loss times a strength.

        For masks of units it is the share of the free units that the task uses (Eq. 5); of all units, where the
        ``regularizer`` is one of the unweighted kinds. For masks of weights it is what their source computes.

        Raises:
            InputError: no task is in training.
        """
        return self.masking.regularization()

    def protect(self, optimizer: OptimizerT) -> OptimizerT:
        """Make every later step of an optimizer leave frozen entries as they are.

        Once per optimizer is enough, also if tasks are consolidated afterwards. After each step an embedding in
        training is clamped to [−6, 6] as well. Gradients are conditioned (Eq. 2) when the step begins: clipping their
        norm before it counts frozen entries, too, but for those whose gradient is not computed to begin with.

        Returns:
            The optimizer.

        Raises:
            InputError: the optimizer holds no parameter of this network.
        """
        return self.protection.protect(optimizer)

    def validating(self) -> AbstractContextManager[None]:
        """Return a block in which evaluation of the task in training is faster, and rounded otherwise.

        Where that pays, layers compute with the rows and columns of their weights alone that the task's mask uses::

            with net.eval().validating(), torch.no_grad():
                loss = F.cross_entropy(net(x, "shoes"), y)

        Other threads, other tasks and training are as without. So are answers outside of such a block: these have the
        bits that the task keeps once it is consolidated.
        """
        return self.masking.validating()

    @all_or_nothing(lambda net: net.tasks.tensors())
    def settle(self, name: str) -> None:
        """Make a task's mask final before training goes on under it, as in retraining after pruning.

        The parameters that the mask was learned by (an embedding, scores) are dropped: take those for a new optimizer
        from :meth:`task_parameters`. Later steps train weights alone, under exactly the mask that is frozen in the end.

        Raises:
            InputError: there is no such task, or its mask is settled already.
            TrainingError: what the mask was learned by became not a number; nothing is changed then.
        """
        self.masking.require_attached()
        state = self.tasks.named(name)
        if state.is_settled:
            raise InputError(f"the mask of task {name!r} is settled already")
        state.require_numbers()
        self.protection.hooks.remove(self.masking.settle(state))

    def is_settled(self, name: str) -> bool:
        """Return whether a task's mask is final.

        Raises:
            InputError: there is no such task.
        """
        return self.tasks.named(name).is_settled

    @all_or_nothing(lambda net: net.tasks.tensors())
    def consolidate(self, name: str) -> None:
        """End the training of a task: its mask becomes final, and all that it relies on is frozen from now on.

        Raises:
            InputError: there is no such task, or it is consolidated already.
            GuaranteeError: protected entries moved in a way that leaves no trace, so that they could not be put back;
                nothing is changed then.
            TrainingError: what the mask was learned by became not a number; nothing is changed then.
            UnsupportedError: the task's own head has changed state that files do not hold.
        """
        self.masking.require_attached()
        state = self.tasks.named(name)
        if state.consolidated:
            raise InputError(f"task {name!r} is consolidated already")
        require_same_state(state)
        self.protection.put_back()
        self.protection.check()
        self.protection.require_finite()
        state.require_numbers()
        with torch.inference_mode(False), torch.no_grad():
            self.protection.hooks.remove(() if state.is_settled else self.masking.settle(state))
            state.freeze()
            self.renew(keep_compared=True)
        self.protection.hooks.drop_unfinished(f"task {name!r} was consolidated")

    def renew(self, *, keep_compared: bool = False) -> None:
        """Derive the protection and its digests again from the present masks and parameters.

        Args:
            keep_compared: keep the digests of tasks, which were compared just now; False takes them anew.
        """
        self.renew_protection()
        self.protection.renew_digests(keep_compared=keep_compared)

    def renew_protection(self) -> None:
        """Derive the protection again from the present masks and parameters; digests stay those of earlier values.

        It is for those who have changed masks or parameters so that consolidated tasks answer as before.
        """
        with torch.inference_mode(False):
            self.masking.refresh()
            self.protection.renew()
            self.masking.bind(self.protection.plan)
            self.masking.watch.record_tasks()

    # ---------------------------------------------------------------------------------------------------------- answers

    def forward(self, x: Inputs, task: str | Sequence[str]) -> Any:
        """Return logits of a batch, or the outputs of the task's own head.

        In evaluation mode samples of several tasks go through the network together where it keeps samples apart; else
        every task's samples go through by themselves. Logits are those of the tasks one by one, up to rounding.

        Args:
            x: the batch, of the example input's structure: a tensor; a tuple of the backbone's positional arguments; or
                a mapping of its keyword arguments.
            task: name of one task, or one name per sample.

        Returns:
            ``(N, classes)``; for a task per sample ``(N, most classes)``, filled with −inf behind a task's last class.
            Other axes of the features stay: classes are where these have their units. A head of the task's own decides
            for itself.

        Raises:
            InputError: a task is unknown, or the batch does not have the shape that the backbone expects; or several
                tasks are named, and one of them has a head of its own.
        """
        self.masking.require_attached()
        interface = self.masking.interface
        x = interface.accepted(x)
        if isinstance(task, str):
            return self._forward_one(x, self.tasks.named(task))
        if not isinstance(task, Sequence):
            raise InputError(f"name a task, or a task per sample; {task!r} is neither")
        samples = interface.samples(x)
        if len(task) != samples:
            raise InputError(f"{len(task)} tasks were named for {samples} samples; name one task, or one per sample")
        names = list(dict.fromkeys(task))
        numbers = {name: number for number, name in enumerate(names)}
        task_of = torch.tensor([numbers[name] for name in task], dtype=torch.int64, device=device_of(x))
        states = [self.tasks.named(name) for name in names]
        for state in states:
            state.count_classes()
        return self._forward_mixed(x, states, task_of)

    def features(self, x: Inputs, task: str) -> Tensor:
        """Return features of a batch under a task's mask, as the task's head reads them.

        For losses and scores of features; gradients go through them as through logits.

        Args:
            x: the batch, as :meth:`forward` takes it.
            task: name of the task.

        Returns:
            ``(N, F)``, with zeros for the units that the task does not use; other axes of the features stay.

        Raises:
            InputError: there is no such task, or the batch does not have the shape that the backbone expects.
        """
        self.masking.require_attached()
        x, state = self.masking.interface.accepted(x), self.tasks.named(task)
        self.admit(x, [state])
        return ask(self, [state], partial(_features_of_one, x))

    def _forward_one(self, x: Inputs, state: StateT) -> Any:
        self.admit(x, [state])
        return ask(self, [state], partial(_answer_one, x))

    def _forward_mixed(self, x: Inputs, states: Sequence[StateT], task_of: Tensor) -> Tensor:
        if self.training:  # one by one: a copy may answer for old tasks, not for that in training
            return joined(self.masking.interface, x, states, task_of, None, self._forward_one)
        self.admit(x, states)
        return ask(self, states, partial(_answer_mixed, x, task_of))

    def admit(self, x: Inputs, states: Sequence[StateT]) -> None:
        """Check that the guarantee holds for a call, and analyse it if it is of a new kind; skipped while torch traces.

        Args:
            x: the input.
            states: the tasks to be answered for.

        Raises:
            GuaranteeError: parts of the network have been replaced.
            UnsupportedError: the guarantee would not hold for such calls.
        """
        if is_transformed():
            return
        with self.turns.asking():
            self.protection.require_same_parts(states)
            if self.masking.interface.has_samples(x):  # else the call itself says what is wrong
                self.masking.admit(x, states, self.change)

    @all_or_nothing()
    def change(self, change: Callable[[], None]) -> None:
        """Change the masking and renew the protection; all of it happens, or nothing.

        Args:
            change: function that changes the masking so that consolidated tasks answer as before.

        Raises:
            GuaranteeError: protected entries had moved before.
        """
        self.protection.check()
        with torch.inference_mode(False), torch.no_grad():
            change()
            self.renew(keep_compared=True)

    def probes(self) -> dict[str, list[float]]:
        """Return the logits of all consolidated tasks of a fixed input, in evaluation mode, by task."""
        states = self.tasks.consolidated
        with self.masking.evaluating():  # once for all of them, not for each
            return {state.name: fixed_logits(self.masking, state).double().flatten().tolist() for state in states}

    def infer(self, x: Inputs, scorer: Scorer | None = None, *, calibrated: bool = True) -> Inferred:
        """Recognise the task of each sample, and give that task's logits, in one pass where samples stay apart.

        By sums (:attr:`Scorer.SUMS`) tasks are told apart on features of the input that all share, and only the task
        that was recognised is asked. By other scores all tasks are asked. Scores of tasks that were trained separately
        do not compare well by themselves; calibrated, each counts in standard deviations from the mean of its task's
        training samples.

        Args:
            x: samples, as :meth:`forward` takes them.
            scorer: score by which a sample's task is recognised; None takes the sums, or distances where no task has
                sums, as in files of earlier versions, and for samples that are not one tensor of real numbers unless
                features are those of an untrained part.
            calibrated: use the tasks' calibrations; sums need none.

        Raises:
            InputError: no task is consolidated, or one was not calibrated although that is needed (always for sums and
                distances); or a task has a head of its own, features have further axes, or, for sums, samples hold
                values that are not finite.
        """
        self.masking.require_attached()
        x = self.masking.interface.accepted(x)
        states = self.tasks.consolidated
        if not states:
            raise InputError("there is no consolidated task yet to recognise")
        scorer = choose_scorer(states, scorer, calibrated)
        with torch.no_grad(), self.masking.evaluating():
            self.admit(x, states)
            if scorer is not Scorer.SUMS and self.masking.mixes(x, len(states)):
                self.admit(self.masking.interface.repeated(x, len(states)), states)
        if scorer is not Scorer.SUMS:
            return ask(self, states, lambda masking, asked: infer_task(masking, asked, x, scorer, calibrated))
        recogniser = self.recognisers.of({state.name: state.sums for state in states if state.sums is not None})
        return ask(self, states, lambda masking, asked: infer_by_sums(masking, asked, x, recogniser))

    @all_or_nothing()
    def calibrate(
        self, name: str, x: Inputs, y: Tensor, *, batch_size: int = 500, feature_map: FeatureMap | None = None
    ) -> None:
        """Measure the statistics of a consolidated task's training data by which :meth:`infer` recognises the task.

        They are saved with the network, frozen as all of the task, and removed with it. No samples are stored. Where
        samples are one tensor of real numbers, or features are those of an untrained part of the backbone, the
        statistics hold sums over shared features, at most 32 MB for a task by default; they add up to the same in any
        order of tasks.

        Args:
            name: the task.
            x: its training samples, as :meth:`forward` takes them.
            y: their classes, int64 ``(N,)``.
            batch_size: samples per pass.
            feature_map: the features of the sums, the same for all tasks; None takes that of the tasks so far, or
                :func:`hatrack.recognition.default_feature_map` for the first. A pre-trained part of the backbone that
                is untrained gives :class:`hatrack.recognition.UntrainedPart`.

        Raises:
            InputError: there is no such task, it is not consolidated, samples and classes do not fit, the task has a
                head of its own, or features have further axes; or samples hold values that are not finite, training
                would change the features, or other tasks have sums of other features.
            GuaranteeError: protected entries had moved before.
        """
        calibrate(self, name, x, y, batch_size, feature_map)

    # ---------------------------------------------------------------------------------------------------- the guarantee

    def protected(self) -> dict[str, Tensor]:
        """Return, by name of every parameter, booleans of its shape: True where an entry must not move.

        All entries of untrained parameters are among these, before the first task as well.
        """
        frozen = self.protection.plan.frozen()
        return {
            name: frozen[id(p)].clone() if id(p) in frozen else torch.zeros_like(p, dtype=torch.bool)
            for name, p in self.named_parameters()
        }

    def check(self) -> None:
        """Compare all frozen entries with the digests that were taken when the last task was consolidated.

        Raises:
            GuaranteeError: something moved, for example because an optimizer was not given to :meth:`protect`; or a
                weight became infinite or not a number, which spoils the outputs of tasks that do not even use it.
        """
        self.protection.check()

    def restore(self) -> None:
        """Restore all frozen entries after training went wrong.

        Frozen entries get the bits that they had when the last task was consolidated, and weights that became infinite
        or not a number are set to 0. What the task in training has learned meanwhile stays.

        Raises:
            GuaranteeError: something that no copy is kept of has moved, such as a buffer of the backbone.
        """
        self.protection.restore()

    # ------------------------------------------------------------------------------------------------------- inspection

    def _repr_html_(self) -> str:
        """Show the tasks, as a notebook does; ``repr`` has all modules."""
        rows = [
            (
                state.name,
                type(state.head).__name__ if state.num_classes is None else state.num_classes,
                "consolidated" if state.consolidated else "in training",
            )
            for state in self.tasks
        ]
        what = f"{type(self).__name__} around {type(self.backbone).__name__}"
        if not self.masking.is_attached:
            return html_table(f"{what}, detached", ("task", "outputs", "state"), rows)
        used = f"{self.usage():.1%} of what masks are about is in use" if rows else "no task yet"
        return html_table(what, ("task", "outputs", "state"), rows, [used])

    def masks(self, task: str) -> dict[str, Tensor]:
        """Return the mask of a task: units by group, ``(units of the group,)``, or weights by name, of their shapes.

        Booleans, or numbers where masks are soft. For a task in training it is the mask it would have if it were
        consolidated now.

        Raises:
            InputError: there is no such task.
        """
        return self.masking.masks(task)

    def capacity(self) -> Capacity:
        """Return the shares of units, per group and over all, and of shared weights that consolidated tasks use.

        Where masks are about weights, it is the share of the weights per parameter and over all.
        """
        return self.masking.capacity(self.protection.plan.num_frozen())

    def usage(self) -> float:
        """Return the share of units, or of masked weights, that tasks use: :meth:`capacity`, cheaply.

        A task in training counts with the mask that it would have if it were consolidated now.
        """
        return self.masking.usage()

    def reuse(self) -> Tensor:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks.

        As in Fig. 6 of the HAT paper.
        """
        return self.masking.reuse()

    def plan(self) -> Plan:
        """Return the room left per group of units (or masked parameter), and roughly for how many more tasks.

        Raises:
            GuaranteeError: parameters or buffers have another shape than they had.
        """
        self.protection.require_same_shapes()
        return make_plan(self.masking.sizes, [self.masks(state.name) for state in self.tasks.consolidated])

    def plot(self) -> Any:
        """Draw what consolidated tasks use of every layer, how full these are after every task, and what tasks share.

        Returns:
            A :class:`~hatrack.report.network_plot.NetworkPlot`: a notebook shows it, ``save`` writes it to a file, and
            ``chart`` is altair's.

        Raises:
            InputError: no task is consolidated, or altair and vl-convert are not installed: ``pip install
                'hatrack[report]'``.
        """
        # The one way up from here: who draws knows networks, and networks need know nothing of drawing.
        return import_module("hatrack.report.network_plot").plot_network(self)

    # ------------------------------------------------------------------------------------------ unlearning and widening

    @all_or_nothing(lambda net: [*net.backbone.parameters(), *net.backbone.buffers(), *net.buffers()])
    def forget(self, name: str, *, generator: torch.Generator | None = None) -> Forgotten:
        """Unlearn a task exactly: remove its masks, head and norms, and all weights that no other task uses.

        These are drawn anew and are free again; their earlier values are not stored. All other tasks stay
        bit-identical. Weights that other tasks use too stay as they are, though the forgotten task may have shaped
        them; the report says how many, and with whom they are shared. Also gives up a task in training. Files that were
        saved before still hold the task: see :func:`hatrack.forget_in_files`.

        Args:
            name: the task.
            generator: draws new values, on the CPU; torch's global one if left out.

        Returns:
            Numbers of erased entries, and of entries shared with other tasks.

        Raises:
            InputError: there is no such task, or another one is in training.
            GuaranteeError: protected entries had moved before, or other tasks would change; nothing is changed then.
        """
        return unlearning.unlearn(self, name, generator)

    @all_or_nothing(lambda net: [*net.backbone.parameters(), *net.backbone.buffers()])
    def grow(self, groups: Mapping[str, int], *, generator: torch.Generator | None = None) -> None:
        """Widen the backbone in place: more units for later tasks, which no task so far uses.

        The parameters stay the same objects, and the state of optimizers that :meth:`protect` knows is widened (others
        have to be made anew); what one remembers in another form than a parameter's, as Adafactor does, is dropped.
        Outputs of consolidated tasks agree with those before up to rounding, since kernels sum in another order for
        another shape (about 1e-6 of their scale in float32); between widenings they stay bit-identical as ever. New
        entries are uniform, of the scale that the layer's had at first.

        Gradients that were not used yet are dropped. Code from ``torch.compile`` is compiled again. With several
        processes grow on all of them before the next task's wrapper is made, which shares the new weights.

        Args:
            groups: how many units to add to each group, at least 1; the groups of ``net.units``, or of
                :func:`hatrack.units.analyze` where masks are about weights.
            generator: source of randomness on the CPU; torch's global one if left out.

        Raises:
            InputError: there is no such group, or it cannot be widened, or the backbone does not run when it is (the
                message names the group, the reason and a remedy); or a task is in training.
            GuaranteeError: protected entries had moved before, or outputs would change. Nothing is changed then.
        """
        widening.grow(self, groups, generator)

    # ----------------------------------------------------------------------------------------------- saving and loading

    def save(self, path: str | Path) -> None:
        """Write the network to one file (safetensors with JSON), atomically; :func:`hatrack.load` reads it.

        Raises:
            GuaranteeError: protected entries moved since the last task was consolidated; nothing is written then.
            CheckpointError: the file cannot be written; an older file stays as it is.
        """
        write_checkpoint(Path(path), self.to_checkpoint())

    @plain_modes()
    def to_checkpoint(self) -> Checkpoint:
        """Return the content of a file: tensors and description.

        Raises:
            GuaranteeError: protected entries moved since the last task was consolidated.
        """
        with self.turns.asking():  # another thread that unlearns a task or widens the network does so before or after
            self.masking.require_attached()
            self.check()
            self.protection.report_layouts(stacklevel=6)
            return content_of(self)

    def _replicate_for_data_parallel(self) -> MaskedNetwork[StateT]:
        """Refuse replicas, which would compute with the original's gates and masks.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "torch.nn.DataParallel makes replicas that share gates and masks; use "
            "torch.nn.parallel.DistributedDataParallel, one process per device"
        )

    @all_or_nothing()
    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Move or convert the network (``to``, ``cuda``, ``half``), and derive the protection again.

        A conversion to fewer digits changes the outputs of consolidated tasks; a warning says so, and new digests are
        taken of the converted values. Another memory format may change last bits, which a warning says, too.

        Raises:
            GuaranteeError: protected entries had moved before a conversion, which would hide it.
            InputError: the device is "meta", which keeps no values.
        """
        convert(self, fn, partial(super()._apply, fn, recurse))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.protection.put_back_counters()  # now, since torch takes the values of parts, such as tasks, after this
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def get_extra_state(self) -> Tensor:
        """Return the digests, as part of ``state_dict``, so that a change cannot be hidden by saving and loading it.

        With them are the strides of what does not lie in memory row by row, since last bits of outputs depend on these.
        Both are JSON in a tensor of bytes, ``(B,)``, since many programs keep nothing but tensors.
        """
        self.protection.report_layouts(stacklevel=6)
        return extra_state_of(self)

    def set_extra_state(self, state: Tensor | Mapping[str, Any]) -> None:
        """Load the digests of a ``state_dict``, and lay parameters out in memory as they lay in its network.

        Args:
            state: JSON in a tensor of bytes, ``(B,)``; or digests by name, as in earlier versions. Where it holds no
                strides, as in earlier versions, parameters lie as they do.

        Raises:
            InputError: it is neither.
        """
        self.loading.take(state, self)

    @all_or_nothing(lambda net: [*net.parameters(), *net.buffers(), *net.tasks.tensors()])
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a ``state_dict`` of a network with the same tasks; those that it calls consolidated are protected.

        A task that is in training here may be consolidated there, but not the other way round: what is consolidated
        stays so. Load a snapshot of a task in training, such as that of its best epoch, before the task is
        consolidated. Loading the network as a part of a larger module does the same. If anything goes wrong, the
        network is as it was.

        Raises:
            GuaranteeError: its protected entries are not those that its tasks were consolidated with.
            InputError: it is of a network with other consolidated tasks, or a task that is consolidated here is in
                training there; or it has other widths, as after :meth:`grow`: the message says by how many units this
                network has to grow first.
        """
        return super().load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self.protection.require_same_parts()
        widening.require_same_widths(self, entries_below(prefix, state_dict))
        self.loading.begin(self)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _finish_loading(module: nn.Module, _: object) -> None:
    """Finish the loading of a network; torch calls this also where it is a part of a larger module."""
    assert isinstance(module, MaskedNetwork)
    module.loading.finish(module)


def _answer_one(x: Inputs, masking: Masking[StateT], states: Sequence[StateT]) -> Any:
    return logits_of(masking, x, states[0])


def _features_of_one(x: Inputs, masking: Masking[StateT], states: Sequence[StateT]) -> Tensor:
    return features_of(masking, x, states[0])


def _answer_mixed(x: Inputs, task_of: Tensor, masking: Masking[StateT], states: Sequence[StateT]) -> Tensor:
    return logits_of_mixed(masking, x, states, task_of)


start_compilers_inside(
    MaskedNetwork.forward, MaskedNetwork._forward_one, MaskedNetwork._forward_mixed, _answer_one, _answer_mixed
)
keep_compilers_out(MaskedNetwork.admit)
