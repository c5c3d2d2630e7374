"""Base of the networks that mask for their tasks and keep what these rely on, bit by bit."""

from __future__ import annotations

import abc
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from hatrack.attachment import scratch_without_gates
from hatrack.calibration import Scorer
from hatrack.capacity import Capacity
from hatrack.checkpoint import Checkpoint, description_of_modules, write_checkpoint
from hatrack.compilers import keep_compilers_out, start_compilers_inside
from hatrack.conditioning import Damper
from hatrack.errors import GuaranteeError, InputError, UnsupportedError
from hatrack.forgetting import InitialDistribution
from hatrack.guarantee import Guarantee, find_changes, find_values_that_spread, take_digests
from hatrack.guard import OptimizerGuard
from hatrack.inference import Inferred, InferringNetwork
from hatrack.masks.twins import twin
from hatrack.modes import evaluation_mode
from hatrack.movement import (
    Movement,
    OwnBuffers,
    aside,
    find_movement,
    get_buffers,
    movement_of,
    scratch_of,
    set_buffers,
)
from hatrack.multitask import MultiTaskNetwork, StateT
from hatrack.state_dependence import Copy, depends_on_state
from hatrack.tasks import TaskState
from hatrack.tryouts import random_like
from hatrack.undo import Snapshot, all_or_nothing
from hatrack.watch import Parts, Watch, count_fused_steps, stamp_of

__all__ = ["MaskedNetwork"]

_ADVICE_FOR_SEVERAL_PROCESSES = "; and broadcast net.buffers() to all processes before consolidating"

_BACKBONE = "backbone"
"""Key of what all tasks rely on."""

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)
AnswerT = TypeVar("AnswerT")


class MaskedNetwork(InferringNetwork[StateT]):
    """A network that forgets no task: each has a mask, and what consolidated tasks rely on is held.

    A subclass decides what is masked and where masks come from, and says which entries of the backbone's parameters
    the masks of consolidated tasks hold (:meth:`_attention_on_parameters`). The rest follows: optimizers are guarded,
    digests show that nothing moved, and both survive conversions, copies and files.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects.

    Attributes:
        format: what saved networks call themselves.
    """

    format: ClassVar[str]

    def __init__(self, backbone: nn.Module, example_input: Tensor) -> None:
        super().__init__(backbone, example_input)
        wide = [name for name, parameter in backbone.named_parameters() if parameter.element_size() > 8]
        if wide:
            raise UnsupportedError(f"{', '.join(wide)} is of complex128, whose bits cannot be frozen; use complex64")
        self._digests: dict[str, str] = {}
        self._initialization = InitialDistribution.of(backbone)
        asking = (MaskedNetwork._forward_one, MaskedNetwork._forward_mixed, MaskedNetwork._asked)
        start_compilers_inside(*asking, _answer_one, _answer_mixed)
        keep_compilers_out(
            *(
                MaskedNetwork._look_at,
                MaskedNetwork._relies_on_frozen,
                MaskedNetwork._is_as_it_must_be,
                MaskedNetwork._ask_copy,
                MaskedNetwork._unspoilt,
            ),
            _is_transformed,
        )
        self._guarantee = Guarantee((), ())
        self._watch = Watch(self._guarantee)
        self._parts = Parts(self)
        self._frozen: dict[str, list[Tensor]] = {}  # tensors with frozen entries, by what answers rely on
        count_fused_steps()
        self._reported: dict[int, tuple[int, int]] = {}  # stamps of what was warned of
        self._is_copy = False
        self._loading: Snapshot | None = None
        self.register_load_state_dict_post_hook(_finish_loading)  # type: ignore[no-untyped-call]
        self._movement = Movement((), ())
        self._guard = OptimizerGuard(self._present_watch, self._bounded, self._rates, self._report)

    # --------------------------------------------------------------------------------- what a kind of mask decides on

    @abc.abstractmethod
    def detach(self) -> nn.Module:
        """Leave the backbone as it was, but for the weights that it has by now, and return it."""

    @abc.abstractmethod
    def anneal(self, progress: float) -> None:
        """Set how hard masks in training are, by the position within the epoch, 0 (first batch) to 1 (last)."""

    @abc.abstractmethod
    def regularization(self) -> Tensor:
        """Return what keeps the mask in training small, a scalar to be added to the loss times a strength."""

    @abc.abstractmethod
    def masks(self, task: str) -> dict[str, Tensor]:
        """Return what a task uses, by name; for a task in training, what consolidating it now would give."""

    @abc.abstractmethod
    def capacity(self) -> Capacity:
        """Shares of the network that consolidated tasks use."""

    @abc.abstractmethod
    def usage(self) -> float:
        """Share of units, or of weights where masks are about weights, that tasks use: :meth:`capacity`, cheaply.

        A task in training counts with what consolidating it now would give.
        """

    @abc.abstractmethod
    def reuse(self) -> Tensor:
        """Share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks."""

    @abc.abstractmethod
    def _attention_on_parameters(self) -> Mapping[str, Tensor]:
        """Return how much consolidated tasks rely on each entry of the backbone, by ``backbone.`` and name.

        Booleans, or numbers in [0, 1], of the parameter's shape; what is left out is held by nobody.
        """

    @abc.abstractmethod
    def _fix_mask(self, state: StateT) -> None:
        """End the training of a task: give it its final mask, and freeze it."""

    @abc.abstractmethod
    def _shared_parameters(self) -> list[nn.Parameter]:
        """The backbone's parameters that a task in training trains together with its own."""

    @abc.abstractmethod
    def _per_task_modules(self) -> Sequence[str]:
        """Names of the backbone's modules that tasks have copies of, so that no task looks at the originals."""

    @abc.abstractmethod
    def _settings(self) -> dict[str, object]:
        """The settings of this kind of network as JSON values, for a file."""

    @abc.abstractmethod
    def _bounded(self) -> Sequence[Tensor]:
        """Tensors in training that are clamped to [−6, 6] after every step."""

    def _dampers(self) -> Mapping[str, Damper]:
        """Return what scales steps of parameters that are frozen in part, by ``backbone.`` and name."""
        return {}

    def _rates(self) -> Tensor:
        """Return what dampers go by at present, a number per unit and a last one; empty where there are no dampers."""
        return torch.empty(0)

    # ---------------------------------------------------------------------------------------------------- training

    def task_parameters(self, name: str, *, new_only: bool = False) -> list[nn.Parameter]:
        """The parameters to train for a task.

        Args:
            name: the task in training.
            new_only: leave the backbone out, for an optimizer that has it already from the task before.

        Returns:
            The task's own (embedding, head, norms), and the backbone's shared parameters.

        Raises:
            InputError: there is no such task, or it is consolidated, so that nothing of it may move.
        """
        state = self._state(name)
        if state.consolidated:
            raise InputError(f"task {name!r} is consolidated and cannot be trained again; add a new task")
        return [*([] if new_only else self._shared_parameters()), *state.parameters()]

    def task_buffers(self, name: str) -> list[Tensor]:
        """The buffers that training a task may change: the backbone's, and the task's own, such as its statistics.

        And its mask, which is no buffer.

        Raises:
            InputError: there is no such task.
        """
        state = self._state(name)
        return [*self.backbone.buffers(), *state.buffers(), *state.kept()]

    def protect(self, optimizer: OptimizerT) -> OptimizerT:
        """Make every later step of an optimizer keep what consolidated tasks rely on.

        Once per optimizer is enough, also if tasks are consolidated afterwards. After each step an embedding in
        training is clamped to [−6, 6] as well. Gradients are conditioned (Eq. 2) when the step begins: clipping their
        norm before it counts entries that are held, too, but for those whose gradient is not computed to begin with.

        Returns:
            The optimizer.

        Raises:
            InputError: the optimizer holds no parameter of this network.
        """
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"protect takes a torch optimizer, not a {type(optimizer).__name__}")
        own = {id(parameter) for parameter in self.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise InputError("this optimizer holds no parameter of the network; build it from net.task_parameters(...)")
        self._guard.protect(optimizer)
        return optimizer

    @all_or_nothing(lambda net: [*net.tasks.buffers(), *(t for state in net.tasks for t in state.kept())])
    def consolidate(self, name: str) -> None:
        """End the training of a task: its mask becomes final, and all that it relies on is protected from now on.

        Raises:
            InputError: there is no such task, or it is consolidated already.
            GuaranteeError: protected entries moved in a way that leaves no trace, so that they could not be put back;
                nothing is changed then.
        """
        self._require_attached()
        state = self._state(name)
        if state.consolidated:
            raise InputError(f"task {name!r} is consolidated already")
        self._put_back()
        self.check()
        self._require_finite()
        with torch.inference_mode(False), torch.no_grad():
            self._fix_mask(state)
            self._renew_guarantee()
            self._digests = self._take_digests(checked=self._digests)
        self._guard.forget_unfinished(f"task {name!r} was consolidated")

    # ----------------------------------------------------------------------------------------------- the guarantee

    def protected(self) -> dict[str, Tensor]:
        """For every name of ``named_parameters()`` a bool tensor of its shape, True where an entry must not move."""
        held = self._guarantee.held()
        return {
            name: held[id(p)].clone() if id(p) in held else torch.zeros_like(p, dtype=torch.bool)
            for name, p in self.named_parameters()
        }

    def check(self) -> None:
        """Compare what consolidated tasks rely on with the digest taken when the last one was consolidated.

        Raises:
            GuaranteeError: something moved, for example because an optimizer was not given to :meth:`protect`; or a
                weight became infinite or not a number, which spoils the outputs of tasks that do not even use it.
        """
        self._require_same_parts()
        self._require_unmoved(self._digests)
        if self._digests:
            self._require_finite()

    def _require_finite(self) -> None:
        spoilt = find_values_that_spread(self.backbone)
        if spoilt:
            raise GuaranteeError(
                f"values in {', '.join(spoilt)} became infinite or not a number, and would spoil the outputs of "
                "consolidated tasks; call restore() or load the last saved network, and lower the learning rate"
            )

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what consolidated tasks rely on, after training went wrong.

        Entries that must not move get the bits that they had when the last task was consolidated, and weights that
        became infinite or not a number are set to 0. What the task in training has learned meanwhile stays.

        Raises:
            GuaranteeError: something that no copy is kept of has moved, such as a buffer of the backbone.
        """
        for parameter, keeper in self._guarantee.all():
            keeper.restore(parameter)
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._guard.forget_unfinished("restore()")
        self.check()

    def _require_unmoved(self, digests: Mapping[str, str]) -> None:
        moved = find_changes(digests, self._take_digests())
        if moved:
            raise GuaranteeError(
                f"protected entries have moved in {', '.join(moved)}: consolidated tasks would no longer give their "
                "old outputs; call restore() or load the last saved network, and pass every optimizer through "
                f"net.protect(...){_ADVICE_FOR_SEVERAL_PROCESSES if distributed.is_initialized() else ''}"
            )

    def _present_watch(self) -> Watch:
        return self._watch

    @torch.inference_mode(False)
    def _renew_guarantee(self) -> None:
        held = self._attention_on_parameters()
        buffers = self._frozen_buffers()
        states = self._consolidated_states()
        self._guarantee = Guarantee.around(held, self.backbone, states, self._dampers(), buffers)
        self._watch = Watch(self._guarantee)
        own = {_key(state): f"tasks.{index}" for index, state in enumerate(self._states()) if state.consolidated}
        self._parts = Parts(self, {_BACKBONE: "backbone", **own})
        shared = [*(parameter for parameter, _ in self._guarantee.shared), *buffers]
        self._frozen = {_BACKBONE: shared, **{_key(s): [*s.parameters(), *s.buffers()] for s in states}}

    def _keys_of(self, states: Sequence[StateT]) -> list[str]:
        """Keys of what answers of tasks rely on; all of them may use the first task's norms and copies."""
        return [_BACKBONE, *map(_key, self._states()[:1]), *map(_key, states)]

    def _require_same_parts(self, keys: Sequence[str] | None = None) -> None:
        """Check that nobody has put other layers or parameters into the network.

        Args:
            keys: of the parts to look at; all of them if left out.

        Raises:
            GuaranteeError: somebody has.
        """
        replaced = self._parts.replaced(keys)
        if replaced:
            raise GuaranteeError(
                f"{', '.join(replaced)} has been replaced, pruned, parametrized or converted since the network was "
                "attached, and consolidated tasks would give other outputs; put back what was there (new values go "
                "into the old parameters, as load_state_dict does), or detach() and attach the backbone anew"
            )

    def _frozen_buffers(self) -> list[Tensor]:
        """The backbone's buffers that all tasks share, which no task may move once one is consolidated."""
        if not self._consolidated_states():
            return []
        per_task = set(self._per_task_modules())
        return [
            buffer
            for name, module in self.backbone.named_modules()
            if name not in per_task
            for own, buffer in module.named_buffers(prefix=name, recurse=False)
            if own not in (*self._movement.buffers, *self._movement.attributes)
        ]

    # ------------------------------------------------------------------------------------------- state that moves

    @abc.abstractmethod
    def _features_of_random_mask(self, x: Tensor, seed: int) -> Tensor:
        """Features of a batch under a mask drawn from a seed, for trying things out."""

    def _look_for_movement(self, example: Tensor) -> None:
        """Find the buffers that every task has to have of its own.

        Raises:
            UnsupportedError: other state moves, and outputs depend on it.
        """
        x = self._several(example)
        generator = torch.Generator().manual_seed(0)
        scratch = scratch_of(self.backbone).eval()
        examples = [random_like(x, generator, scratch) for _ in range(2)]
        movement = find_movement(self.backbone, [*examples, x], self._per_task_modules())
        if movement.attributes:
            self._require_independent(movement.attributes, examples[0], lambda backbone: backbone.train()(examples[1]))
        self._movement = movement

    def _example(self) -> Tensor:
        device = next((parameter.device for parameter in self.backbone.parameters()), None)
        return torch.zeros(self.example_shape, dtype=self._example_dtype, device=device)

    def _several(self, example: Tensor) -> Tensor:
        return torch.cat([example, example]) if len(example) == 1 else example

    @torch.no_grad()
    def _require_still(self, x: Tensor, training: bool, scratch: nn.Module) -> None:
        """Look whether a call of a new kind moves state that no call so far has moved.

        Args:
            x: the batch.
            training: whether the call is made in training mode.
            scratch: a copy of the backbone that was run on the batch.

        Raises:
            UnsupportedError: it does, and outputs depend on it.
        """

        def run(backbone: nn.Module) -> object:
            with aside(), torch.no_grad():
                return backbone.train(training)(x.detach())

        found = movement_of(self.backbone, scratch, self._per_task_modules()).beyond(self._movement)
        moved = Movement((), (*found.buffers, *found.attributes))  # too late for buffers to become each task's own
        shared = (*self._movement.attributes, *moved.attributes)
        if not shared:
            return
        generator = torch.Generator().manual_seed(0)
        asked = random_like(self._several(self._example()), generator, scratch_without_gates(self.backbone).eval())
        if moved.attributes:
            self._require_independent(shared, asked, run)
        self._require_independent(shared, x.detach(), run if moved.attributes else None)
        if moved.attributes:
            self.check()
            self._movement = self._movement.with_those_of(moved)
            self._renew_guarantee()
            self._digests = self._take_digests(checked=self._digests)

    def _copy_to_try(self) -> Copy:
        copy = scratch_of(self).eval()
        return Copy(copy.backbone, lambda x, seed: copy.eval()._features_of_random_mask(x, seed))

    def _require_independent(self, names: Sequence[str], x: Tensor, move: Callable[[nn.Module], object] | None) -> None:
        """Check that outputs do not depend on state that all tasks share.

        Args:
            names: names of the attributes and buffers that runs move.
            x: the batch to ask about.
            move: runs a backbone in a way that moves them; None where that was tried already.
        """
        if depends_on_state(self._copy_to_try, names, x, move):
            raise UnsupportedError(
                f"running the backbone changes {', '.join(names)}, and its outputs depend on that: what one task does "
                "would change the outputs of others; keep such state in a buffer of one shape "
                "(self.register_buffer), which every task then has its own of, or compute it anew in every pass"
            )

    def _own_buffers(self) -> OwnBuffers:
        """A new task's buffers, which begin as the backbone's."""
        return OwnBuffers([value.detach().clone() for value in get_buffers(self.backbone, self._movement.buffers)])

    def _run_as(self, state: StateT, backbone: nn.Module, run: Callable[[nn.Module], Tensor]) -> Tensor:
        """Run a backbone with a task's own buffers, which only a task in training moves.

        Args:
            state: the task.
            backbone: a twin of the backbone, whose buffers are replaced.
            run: gives the features that the twin computes.
        """
        names = self._movement.buffers
        own = state.moving.values
        set_buffers(backbone, names, [value.clone() for value in own] if state.consolidated else own)
        features = run(backbone)
        if not state.consolidated:
            state.moving.replace(get_buffers(backbone, names))
        return features

    def _put_back(self) -> None:
        """Put back frozen entries that something other than a protected step has moved, and warn of it."""
        self._require_same_parts()
        with torch.inference_mode(False), torch.no_grad():
            moved = self._watch.moved(self._guarantee.all())
            for tensor, keeper in moved:
                keeper.restore(tensor)
                self._watch.note(tensor)
        if moved:
            self._report([tensor for tensor, _ in moved])

    def _report(self, moved: Sequence[Tensor]) -> None:
        """Warn that frozen entries have been moved, once for each change."""
        new = [tensor for tensor in moved if self._reported.get(id(tensor)) != stamp_of(tensor)]
        self._reported.update({id(tensor): stamp_of(tensor) for tensor in new})
        if new:
            names = {id(value): name for name, value in (*self.named_parameters(), *self.named_buffers())}
            named = ", ".join(names.get(id(tensor), "a parameter that is no longer there") for tensor in new)
            warnings.warn(
                f"something other than a step of a protected optimizer has changed frozen entries of {named}, after "
                f"{self._guard.moment}; consolidated tasks answer as before, since these entries are put back. Pass "
                "every optimizer through net.protect(...), and let nothing else write to the backbone"
                f"{_ADVICE_FOR_SEVERAL_PROCESSES if distributed.is_initialized() else ''}",
                stacklevel=4,
            )

    # ---------------------------------------------------------------------------------------------------- answers

    def _asked(
        self, states: Sequence[StateT], ask: Callable[[MaskedNetwork[StateT], Sequence[StateT]], AnswerT]
    ) -> AnswerT:
        """Answer for tasks with the entries that consolidated ones rely on, whatever goes on meanwhile.

        Where an optimizer is in the middle of a step, or something else has moved frozen entries while a task is in
        training (a graph may be alive that needs the parameters as they are), a copy of the network answers.

        Args:
            states: the tasks.
            ask: gives the answer of a network, for its states of these tasks.
        """
        if self._is_copy or _is_transformed():
            return ask(self, states)
        count = self._guard.count
        if self._is_as_it_must_be(states):
            answer = ask(self, states)
            if self._guard.count == count or not self._relies_on_frozen(states):
                return self._unspoilt(states, answer)
        return self._unspoilt(states, self._ask_copy(states, ask))

    def _unspoilt(self, states: Sequence[StateT], answer: AnswerT) -> AnswerT:
        """Return an answer, unless a task that has diverged has spoilt it: zero times infinity is not a number.

        Raises:
            GuaranteeError: it has.
        """
        if self._in_training() is not None and self._relies_on_frozen(states):
            logits = answer.logits if isinstance(answer, Inferred) else answer
            if isinstance(logits, Tensor) and bool(logits.detach().isnan().any()):
                self._require_finite()
        return answer

    @staticmethod
    def _relies_on_frozen(states: Sequence[StateT]) -> bool:
        return any(state.consolidated for state in states)

    def _is_as_it_must_be(self, states: Sequence[StateT]) -> bool:
        """Return whether tasks may be asked of the network itself; puts back what has moved where that does no harm."""
        if not self._relies_on_frozen(states):
            return True
        count = self._guard.count
        if self._guard.is_stepping:
            return False
        relied_on = (tensor for key in self._keys_of(states) for tensor in self._frozen.get(key, ()))
        if not any(map(self._watch.is_touched, relied_on)):
            return True
        if self._in_training() is None:
            self._put_back()
            return True
        moved = self._watch.moved(self._guarantee.all())
        if self._guard.is_stepping or self._guard.count != count:
            return False  # a step has begun meanwhile, and it puts back what it moves
        if moved:
            self._report([tensor for tensor, _ in moved])
        return not moved

    def _ask_copy(
        self, states: Sequence[StateT], ask: Callable[[MaskedNetwork[StateT], Sequence[StateT]], AnswerT]
    ) -> AnswerT:
        copy = self._with_frozen_entries()
        index = {id(state): number for number, state in enumerate(self._states())}
        return ask(copy, [copy._states()[index[id(state)]] for state in states])

    @torch.no_grad()
    def _with_frozen_entries(self) -> MaskedNetwork[StateT]:
        """A copy of the network that shares all but tensors with frozen entries, which hold these as they must be."""
        with torch.inference_mode(False):
            values = {}
            for tensor, keeper in self._guarantee.all():
                value = keeper.restored(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                values[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
        copy = twin(self, values, {})
        assert isinstance(copy, MaskedNetwork)
        copy._is_copy = True
        return copy

    def _admit(self, x: Tensor) -> None:
        """Look at a call of a kind that was not seen yet before it is answered; nothing to do where all are alike."""

    def _look_at(self, x: Tensor, states: Sequence[StateT]) -> None:
        """Admit an input for tasks, unless torch only follows the computation, or a copy answers for the network."""
        if not self._is_copy and not _is_transformed():
            self._require_same_parts(self._keys_of(states))
            if isinstance(x, Tensor) and x.dim() and len(x):  # else the call itself says what is wrong
                self._admit(x)

    def _forward_one(self, x: Tensor, state: StateT) -> Tensor:
        self._look_at(x, [state])
        return self._asked([state], partial(_answer_one, x))

    def _forward_mixed(self, x: Tensor, states: Sequence[StateT], task_of: Tensor) -> Tensor:
        if self.training and not self._is_copy:  # one by one: a copy may answer for old tasks, not for that in training
            return super()._forward_mixed(x, states, task_of)
        self._look_at(x, states)
        return self._asked(states, partial(_answer_mixed, x, task_of))

    def _infer(self, x: Tensor, states: Sequence[StateT], scorer: Scorer, calibrated: bool) -> Inferred:
        with torch.no_grad(), evaluation_mode(self):
            self._look_at(x, states)
        return self._asked(states, lambda net, its: InferringNetwork._infer(net, x, its, scorer, calibrated))

    def _take_digests(self, checked: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        states, per_task = self._consolidated_states(), self._per_task_modules()
        movable = (*self._movement.buffers, *self._movement.attributes)
        return take_digests(self._guarantee, self.backbone, states, (*per_task, *movable), checked)

    # -------------------------------------------------------------------------------------------------- keeping it

    def save(self, path: str | Path) -> None:
        """Write the network to one file (safetensors with JSON), atomically; :func:`hatrack.load` reads it.

        Raises:
            GuaranteeError: protected entries moved since the last task was consolidated; nothing is written then.
            CheckpointError: the file cannot be written; what was there before is still there.
        """
        write_checkpoint(Path(path), self.to_checkpoint())

    def to_checkpoint(self) -> Checkpoint:
        """Return the content of a file: tensors and description.

        Raises:
            GuaranteeError: protected entries moved since the last task was consolidated.
        """
        self._require_attached()
        self.check()
        left_out = {f"backbone.{name}" for name in self._movement.attributes}  # computed anew, of whatever shape
        tensors = {
            name: value
            for name, value in self.state_dict().items()
            if not name.endswith("_extra_state") and name not in left_out
        }
        return Checkpoint(tensors, {**self._description(), "computed_anew": sorted(left_out)})

    def _description(self) -> dict[str, object]:
        return {
            "format": self.format,
            **self._settings(),
            "example_input": {"shape": list(self.example_shape), "dtype": str(self._example_dtype).partition(".")[2]},
            "modules": description_of_modules(self.backbone),
            "tasks": [
                {"name": s.name, "num_classes": s.num_classes, "consolidated": s.consolidated} for s in self._states()
            ],
            "digests": self._digests,
            "probe": self.probe(),
        }

    @all_or_nothing()
    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Moves and conversions (``to``, ``cuda``, ``half``) take the protection along.

        A conversion to fewer digits changes the outputs of consolidated tasks; a warning says so, and new digests are
        taken for what they are from then on.

        Raises:
            GuaranteeError: protected entries had moved before a conversion, which would hide it.
            InputError: the device is "meta", which keeps no values.
        """
        if fn(torch.zeros(1)).device.type == "meta":
            raise InputError(
                'a network of masks cannot go to the device "meta", where all that its tasks rely on would be lost; '
                "move a copy of the backbone there, before it is attached"
            )
        self._require_same_parts()
        converting = fn(torch.zeros(1)).dtype != torch.float32 or fn(torch.zeros(1).double()).dtype != torch.float64
        relied_on = [parameter.detach().clone() for parameter, _ in self._guarantee.all()] if converting else []
        if converting or self._digests:  # what has moved would be kept as if it were right
            self.check()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if any(not torch.equal(fn(before).to(before.dtype), before) for before in relied_on):
            warnings.warn(
                "this conversion rounds weights: the outputs of consolidated tasks are other ones from here on, and "
                "converting back does not bring the old ones back; convert a copy (copy.deepcopy) to keep them",
                stacklevel=4,
            )
        self._example_dtype = fn(torch.zeros(1, dtype=self._example_dtype)).dtype
        self._renew_guarantee()
        if converting:
            self._digests = self._take_digests()
        return self

    def get_extra_state(self) -> Tensor:
        """Return the digests, as part of ``state_dict``, so that a change cannot be hidden by saving and loading it.

        They are JSON in a tensor of bytes, ``(B,)``, since many programs keep nothing but tensors.
        """
        return torch.tensor(list(json.dumps(self._digests, sort_keys=True).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor | Mapping[str, str]) -> None:
        """Take over the digests of a ``state_dict``, as bytes or, as earlier versions had them, by name.

        Raises:
            InputError: they are neither.
        """
        try:
            self._digests = json.loads(bytes(state.tolist())) if isinstance(state, Tensor) else dict(state)
        except (TypeError, ValueError) as error:
            raise InputError(f"the digests (_extra_state) in this state_dict are damaged: {error}") from error

    @all_or_nothing(lambda net: [*net.parameters(), *net.buffers(), *(t for s in net.tasks for t in s.kept())])
    def load_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Take over a ``state_dict`` of a network with the same tasks; what it calls consolidated is protected.

        Loading it as a part of a larger module does the same. If anything goes wrong, the network is as it was.

        Raises:
            GuaranteeError: its protected entries are not those that its tasks were consolidated with.
            InputError: it is of a network with other consolidated tasks.
        """
        return super().load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self._require_same_parts()
        self._loading = Snapshot(self, values_of=[*self.parameters(), *self.buffers()])
        super()._load_from_state_dict(*args, **kwargs)

    def _finish_loading(self) -> None:
        """Renew the plan once all of a ``state_dict`` is here, or go back if it is not what it says."""
        before, self._loading = self._loading, None
        there = {name.removeprefix("task ") for name in self._digests if name.startswith("task ")}
        here = {state.name for state in self._consolidated_states()}
        try:
            if there != here:
                raise InputError(
                    f"this state_dict is of a network with consolidated tasks {sorted(there)}, and this one would have "
                    f"{sorted(here)}; add the same tasks first, or keep whole networks with net.save and hatrack.load"
                )
            self._renew_guarantee()
            self._require_unmoved(self._digests)
        except BaseException:
            if before is not None:  # what was here is still good
                before.restore()
            raise


def _key(state: TaskState) -> str:
    """Key of what a task alone relies on."""
    return f"task {state.name}"


def _finish_loading(module: nn.Module, _: object) -> None:
    """Tell a network that it, and all that is inside it, has been loaded; torch calls this in larger modules, too."""
    assert isinstance(module, MaskedNetwork)
    module._finish_loading()


def _answer_one(x: Tensor, net: MaskedNetwork[StateT], states: Sequence[StateT]) -> Tensor:
    return MultiTaskNetwork._forward_one(net, x, states[0])


def _answer_mixed(x: Tensor, task_of: Tensor, net: MaskedNetwork[StateT], states: Sequence[StateT]) -> Tensor:
    return MultiTaskNetwork._forward_mixed(net, x, states, task_of)


def _is_transformed() -> bool:
    """Return whether torch only follows the computation, or runs it with other parameters, as in exporting."""
    return torch.compiler.is_compiling() or bool(
        torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active()
    )
