"""Protection of one network: its plan, digests, optimizer hooks, and version counters for all other changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from hatrack.errors import GuaranteeError, InputError
from hatrack.masks.tasks import TaskState
from hatrack.protection.final_masks import FinalMasks
from hatrack.protection.frozen import Backup, FrozenEntries
from hatrack.protection.hooks import OptimizerHooks
from hatrack.protection.plan import ProtectionPlan, find_changes, find_nonfinite, take_digests
from hatrack.protection.source import ProtectionSource
from hatrack.protection.structure import Parts, Reshaped
from hatrack.protection.versions import VersionWatch, count_fused_steps, is_shared, stamp_of
from hatrack.state.comparing import is_same_tensor
from hatrack.support.compilers import keep_compilers_out

__all__ = ["Protection"]

_ADVICE_FOR_SEVERAL_PROCESSES = "; and broadcast net.buffers() to all processes before consolidating"

_BACKBONE = "backbone"
"""Key of the parts that all tasks rely on."""

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


_Place = tuple[dict[str, "Tensor | None"], str, Tensor, str]
"""A buffer: the table that it is in, its key there, itself, and its name in the network."""


class Protection:
    """Protection of what the consolidated tasks of a network rely on.

    Args:
        network: the network, for the names of its parts.
        masks: the masks of its tasks.

    Attributes:
        digests: digests of everything that is frozen, by name, taken when it was frozen.
        hooks: the hooks around steps of optimizers.
    """

    def __init__(self, network: nn.Module, masks: ProtectionSource) -> None:
        self._network, self._masks = network, masks
        self.digests: dict[str, str] = {}
        self._plan = ProtectionPlan((), ())
        self._watch = VersionWatch(self._plan)
        self._parts = Parts(network)
        self._relied_on: dict[str, list[Tensor]] = {}  # tensors with frozen entries, by key of the part
        self._buffers: dict[str, list[tuple[Tensor, torch.Size]]] = {}  # frozen buffers with their shapes, likewise
        self._places: dict[str, list[_Place]] = {}  # of frozen buffers, by key of the part
        self._reported: dict[int, tuple[int, int]] = {}  # stamps of tensors that a warning has named
        self._layouts: list[tuple[Tensor, torch.Size, tuple[int, ...]]] = []  # of tensors with frozen entries
        self._counters: list[tuple[Tensor, FrozenEntries | Backup]] = []  # of batches, by frozen norms
        self._final_masks = FinalMasks()
        self._recorded_names: dict[int, str] = {}  # of parameters and buffers, by identity
        self.hooks = OptimizerHooks(self._present_watch, masks, self._report, self.require_same_shapes)
        count_fused_steps()

    def _present_watch(self) -> VersionWatch:
        return self._watch

    # --------------------------------------------------------------------------------------------------------- the plan

    @property
    def plan(self) -> ProtectionPlan:
        """Immutable record of all frozen entries and their bits."""
        return self._plan

    @torch.inference_mode(False)
    def renew(self) -> None:
        """Derive the plan again from the masks and the present values of parameters."""
        self.report_layouts(stacklevel=7)  # before those of now are taken for the ones that tasks were learned with
        masks, backbone, tasks, buffers = self._masks, self._masks.backbone, self._masks.tasks, self._frozen_buffers()
        attention, dampers, untrained = masks.attention_on_parameters(), masks.dampers(), masks.untrained
        self._plan = ProtectionPlan.derive(attention, backbone, tasks.consolidated, dampers, buffers, untrained)
        self._watch = VersionWatch(self._plan)
        norms = (module for module in self._network.modules() if isinstance(module, _NormBase))
        counters = {id(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None}
        self._counters = [(tensor, record) for tensor, record in self._plan.own if id(tensor) in counters]
        self._layouts = [_layout(tensor) for tensor, _ in self._plan.all() if tensor.dim() > 1]
        own = {_key(state): f"tasks.{index}" for index, state in enumerate(tasks) if state.consolidated}
        self._parts = Parts(self._network, {_BACKBONE: "backbone", **own})
        shared = [*(parameter for parameter, _ in self._plan.shared), *self._plan.untrained, *buffers]
        self._relied_on = {_BACKBONE: shared, **{_key(s): [*s.parameters(), *s.buffers()] for s in tasks.consolidated}}
        of_parts = {_BACKBONE: buffers, **{_key(s): list(s.buffers()) for s in tasks.consolidated}}
        self._buffers = {key: [(each, each.shape) for each in found] for key, found in of_parts.items()}
        self._recorded_names = self._names()
        self._final_masks = FinalMasks((own[_key(state)], state) for state in tasks.consolidated)

    def _frozen_buffers(self) -> list[Tensor]:
        """Return buffers of the backbone that all tasks share, which are frozen once a task is consolidated."""
        self._places = {}
        tasks = self._masks.tasks.consolidated
        if not tasks:
            return []
        for index, state in enumerate(tasks):
            self._places[_key(state)] = [
                (module._buffers, own, buffer, ".".join(filter(None, ("tasks", str(index), part, name, own))))
                for part in ("batch_norms", "head")
                for name, module in state.get_submodule(part).named_modules()
                for own, buffer in module._buffers.items()
                if buffer is not None
            ]
        of_backbone = self._places[_BACKBONE] = []
        left_out = set(self._masks.per_task_buffers)
        for name, module in self._masks.backbone.named_modules():
            for own, buffer in module._buffers.items() if name not in left_out else ():
                path = f"{name}.{own}".lstrip(".")
                if buffer is not None and path not in left_out:
                    of_backbone.append((module._buffers, own, buffer, f"{_BACKBONE}.{path}"))
        return list({id(buffer): buffer for _, _, buffer, _ in of_backbone}.values())

    def renew_digests(self, *, keep_compared: bool = False) -> None:
        """Take the digests of everything that is frozen now.

        Args:
            keep_compared: keep the digests of tasks, which were compared just now; False takes them anew.
        """
        self.digests = self._present_digests(self.digests if keep_compared else MappingProxyType({}))

    def _present_digests(self, checked: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """Return digests of everything that is frozen, as it is now; those of checked tasks are not taken again."""
        masks = self._masks
        return take_digests(self._plan, masks.backbone, masks.tasks.consolidated, masks.per_task_buffers, checked)

    # ------------------------------------------------------------------------------------------------------- optimizers

    def protect(self, optimizer: OptimizerT) -> OptimizerT:
        """Put the hooks around the steps of an optimizer, and return it.

        Raises:
            InputError: it is no optimizer, or holds no parameter of the network.
        """
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"protect takes a torch optimizer, not a {type(optimizer).__name__}")
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise InputError(
                f"a {type(optimizer).__name__} has no hooks of its own: protect the optimizer that it stands around, "
                "before accelerator.prepare"
            )
        own = {id(parameter) for parameter in self._network.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise InputError("this optimizer holds no parameter of the network; build it from net.task_parameters(...)")
        self.hooks.protect(optimizer)
        return optimizer

    # ----------------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Compare everything that is frozen with its digests.

        Raises:
            GuaranteeError: something moved, or was replaced, or is infinite or not a number.
        """
        self.require_same_parts()
        self.put_back_counters()
        moved = self.find_moved()
        if moved:
            raise GuaranteeError(
                f"protected entries have moved in {', '.join(moved)}{self._tensors_beside(moved)}: consolidated tasks "
                "would no longer give their old outputs; call restore() or load the last saved network, and pass every "
                "optimizer through "
                f"net.protect(...){_ADVICE_FOR_SEVERAL_PROCESSES if distributed.is_initialized() else ''}"
            )
        if self.digests:
            self.require_finite()

    def find_moved(self) -> list[str]:
        """Return the names of parameters, buffers and tasks whose digests are not those of when they were frozen."""
        return find_changes(self.digests, self._present_digests())

    def _tensors_beside(self, moved: Sequence[str]) -> str:
        """Return in parentheses, for a message, the names of moved tensors that are not among those of moved digests.

        These are tensors of tasks: one digest, with the name of its task, stands for all of them.
        """
        names = self._names()
        found = [_name_in(names, tensor) for tensor, record in self._plan.all() if record.has_moved(tensor)]
        others = [name for name in (*found, *self._final_masks.moved()) if name not in moved]
        return f" ({', '.join(others[:3])}{' and more' if len(others) > 3 else ''})" if others else ""

    def require_finite(self) -> None:
        """Check that all parameters of the backbone are finite, since others reach outputs past masks.

        Raises:
            GuaranteeError: values are infinite or not a number.
        """
        nonfinite = find_nonfinite(self._masks.backbone, self._masks.untrained)
        if nonfinite:
            raise GuaranteeError(
                f"values in {', '.join(nonfinite)} became infinite or not a number, and would spoil the outputs of "
                "consolidated tasks; call restore() or load the last saved network, and lower the learning rate"
            )

    def require_same_parts(self, states: Iterable[TaskState] | None = None) -> None:
        """Check that the network still has the layers and parameters that were recorded.

        Args:
            states: tasks whose answers rely on the parts to look at; all parts if left out.

        Raises:
            GuaranteeError: some were replaced, added, converted or given another shape, or untrained parameters are to
                be trained.
        """
        self._require_untrained()
        keys = None if states is None else self._keys_of(states)
        self._require_same_buffers([*self._places] if keys is None else keys)
        replaced = self._parts.replaced(keys)
        if replaced:
            raise GuaranteeError(
                f"{', '.join(replaced)} has been replaced, pruned, parametrized or converted since the network was "
                "attached, and consolidated tasks would give other outputs; put back what was there (new values go "
                "into the old parameters, as load_state_dict does); detach() and attaching anew would lose all tasks"
            )
        self.require_same_shapes(keys)

    def require_same_shapes(self, keys: Iterable[str] | None = None) -> None:
        """Check that parameters and frozen buffers have the shapes that were recorded.

        Args:
            keys: keys of the parts to look at; all of them if None.

        Raises:
            GuaranteeError: some have other ones.
        """
        reshaped = self._parts.reshaped(keys)
        wanted = self._buffers if keys is None else [key for key in keys if key in self._buffers]
        changed = [(each, shape) for key in wanted for each, shape in self._buffers[key] if each.shape != shape]
        if changed:
            names = self._names()
            reshaped += [Reshaped(_name_in(names, each), shape, each.shape) for each, shape in changed]
        if reshaped:
            each = ", ".join(f"{name} has shape {tuple(now)} and had {tuple(was)}" for name, was, now in reshaped)
            _, was, now = reshaped[0]
            appended = len(now) == len(was) > 0 and now[1:] == was[1:] and now[0] > was[0]
            cut = f"parameter.data = parameter.data[:{was[0]}]" if appended else "parameter.data = values"
            raise GuaranteeError(
                f"{each} when it was attached or its tasks were consolidated, and masks and frozen entries belong to "
                f"that shape: give it values of its own shape again ({cut}); or resize the backbone before it is "
                "attached: detach(), resize, and attach it anew, without the tasks so far"
            )

    def _require_untrained(self) -> None:
        """Check that parameters that were untrained when the network was attached still are.

        Raises:
            GuaranteeError: some are not.
        """
        trained = [parameter for parameter in self._plan.untrained if parameter.requires_grad]
        if trained:
            names = self._names()
            named = ", ".join(_name_in(names, parameter) for parameter in trained)
            raise GuaranteeError(
                f"{named} had requires_grad=False when the network was attached, so that no task gates what it "
                "computes, and it must not be trained now: call requires_grad_(False) on it; to train it, detach(), "
                "turn it on, and attach the backbone anew, which loses all tasks"
            )

    def _require_same_buffers(self, keys: Iterable[str]) -> None:
        """Check that frozen buffers are the recorded ones; others of the same bits give way to them.

        Args:
            keys: keys of the parts to look at.

        Raises:
            GuaranteeError: some were replaced by others or removed.
        """
        replaced = []
        for table, own, buffer, name in (place for key in dict.fromkeys(keys) for place in self._places.get(key, ())):
            present = table.get(own)
            if present is buffer:
                continue
            if present is not None and present.device == buffer.device and is_same_tensor(present, buffer):
                table[own] = buffer  # as of a network that registers a constant in every pass
            else:
                replaced.append(name)
        if replaced:
            raise GuaranteeError(
                f"{', '.join(replaced)} has been replaced, and consolidated tasks would give other outputs; put back "
                "the buffer that was there; detach() and attaching anew would lose all tasks"
            )

    def _keys_of(self, states: Iterable[TaskState]) -> list[str]:
        """Return keys of the parts that answers rely on; all tasks may use the first one's norms and copies."""
        return [_BACKBONE, *map(_key, filter(None, (self._masks.tasks.first, *states)))]

    def prepare_answer(self, states: Sequence[TaskState]) -> bool:
        """Restore moved entries where no graph can need them, and return whether the network itself may answer.

        Args:
            states: the tasks to be answered for, some of them consolidated.
        """
        count = self.hooks.count
        if self.hooks.is_stepping:
            return False
        self._put_back_masks(states)  # at once, since no graph holds them
        self.report_layouts(stacklevel=8)  # also after protected steps, which leave another layout as it is
        if not self._is_touched(states) and not self._are_moved_unseen(states):
            return True
        if any(map(is_shared, self._relied_on_by(states))):
            return False  # another process may be in the middle of a step, and put back later what it moves
        self.put_back_counters()
        if self._masks.tasks.in_training is None:
            self.put_back()
            return True
        moved = self._watch.moved(self._plan.all())
        if self.hooks.is_stepping or self.hooks.count != count:
            return False  # a step has begun meanwhile, and it puts back what it moves
        if moved:
            self._report([tensor for tensor, _ in moved])
        return not moved

    def has_moved(self, states: Sequence[TaskState]) -> bool:
        """Return whether frozen entries have moved since an answer was prepared, as by another thread.

        Args:
            states: the tasks that are answered for.
        """
        return self._is_touched(states) and bool(self._watch.moved(self._plan.all()))

    def _is_touched(self, states: Iterable[TaskState]) -> bool:
        return any(map(self._watch.is_touched, self._relied_on_by(states)))

    def _are_moved_unseen(self, states: Iterable[TaskState]) -> bool:
        return any(self._watch.look_closer(key, self._relied_on.get(key, ())) for key in self._keys_of(states))

    def _relied_on_by(self, states: Iterable[TaskState]) -> Iterator[Tensor]:
        return (tensor for key in self._keys_of(states) for tensor in self._relied_on.get(key, ()))

    def require_in_place(self, states: Sequence[TaskState]) -> None:
        """Check that frozen entries have their saved values, where these could not be put back.

        Args:
            states: the tasks to be answered for, some of them consolidated.

        Raises:
            GuaranteeError: they have not.
        """
        may_have_moved = self._is_touched(states) or self._are_moved_unseen(states)
        moved = self._watch.moved(self._plan.all()) if may_have_moved else []
        if moved:
            names = self._recorded_names  # while torch exports, other tensors lie in the places of parameters
            raise GuaranteeError(
                f"frozen entries of {', '.join(_name_in(names, tensor) for tensor, _ in moved)} have moved, and they "
                "cannot be put back inside of a transform of torch.func, or while torch traces or exports the network: "
                "call net.restore() before, and pass every optimizer through net.protect(...)"
            )
        self._put_back_masks(states)

    # ----------------------------------------------------------------------------------------------------- putting back

    def put_back(self) -> None:
        """Restore frozen entries that something other than a protected step has moved, and warn of it.

        Raises:
            GuaranteeError: layers or parameters were replaced.
        """
        self.require_same_parts()
        self.put_back_counters()
        self._put_back_masks()
        with torch.inference_mode(False), torch.no_grad():
            moved = self._watch.moved(self._plan.all())
            for tensor, record in moved:
                record.restore(tensor)
                self._watch.note(tensor)
        if moved:
            torch.clear_autocast_cache()  # within torch.autocast it holds what was there before
            self._report([tensor for tensor, _ in moved])

    def put_back_counters(self) -> None:
        """Restore the numbers of batches that frozen norms have seen.

        It is done without a warning, since no output depends on them. Averages of networks change them: 0.9 times 24
        and 0.1 times 24 make 23 where fractions are cut off.
        """
        with torch.inference_mode(False), torch.no_grad():
            for tensor, record in self._watch.moved(self._counters):
                record.restore(tensor)
                self._watch.note(tensor)

    def _put_back_masks(self, states: Sequence[TaskState] | None = None) -> None:
        moved = self._final_masks.put_back(states)
        if moved:
            self._warn(", ".join(moved))

    @torch.no_grad()
    def restore(self) -> None:
        """Restore all frozen entries, and set values that are infinite or not a number to 0.

        Raises:
            GuaranteeError: something that no copy is kept of has moved, or has another shape.
        """
        self.require_same_shapes()
        self._final_masks.put_back()
        for tensor, record in self._plan.all():
            record.restore(tensor)
        untrained = {id(parameter) for parameter in self._plan.untrained}
        for parameter in self._network.parameters():
            if parameter.is_floating_point() and id(parameter) not in untrained:
                parameter.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        torch.clear_autocast_cache()  # likewise
        self.hooks.drop_unfinished("restore()")
        self.check()

    @torch.no_grad()
    def frozen_values(self) -> dict[int, Tensor]:
        """Return by identity of every tensor with frozen entries a copy in which these have their saved values."""
        values: dict[int, Tensor] = {}
        with torch.inference_mode(False):
            for tensor, record in self._plan.all():
                value = record.restored(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                values[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
        return values

    def _names(self) -> dict[int, str]:
        """Return names of all parameters and buffers by their identity."""
        network = self._network
        return {id(value): name for name, value in (*network.named_parameters(), *network.named_buffers())}

    def take_layouts(self) -> None:
        """Take the present memory layouts for those that tasks were learned with, as a state that is loaded says."""
        self._layouts = [_layout(tensor) for tensor, _, _ in self._layouts]

    def report_layouts(self, stacklevel: int) -> None:
        """Warn where tensors with frozen entries have another memory layout than before, once for each change.

        Args:
            stacklevel: number of calls from here to whoever is warned.
        """
        laid = [each for each, shape, strides in self._layouts if each.shape == shape and each.stride() != strides]
        if not laid:
            return
        self.take_layouts()
        names, more = self._names(), f" and {len(laid) - 3} more" if len(laid) > 3 else ""
        warnings.warn(
            f"{', '.join(_name_in(names, each) for each in laid[:3])}{more}: values lie otherwise in memory now, as "
            "after net.to(memory_format=...): kernels sum in another order for another layout, so that consolidated "
            "tasks may answer with other last bits from here on. Lay networks out before their first task; the former "
            "layout brings the former bits back",
            stacklevel=stacklevel,
        )

    def _report(self, moved: Sequence[Tensor]) -> None:
        """Warn that frozen entries have been moved, once for each change."""
        new = [tensor for tensor in moved if self._reported.get(id(tensor)) != stamp_of(tensor)]
        self._reported.update({id(tensor): stamp_of(tensor) for tensor in new})
        if new:
            names = self._names()
            self._warn(", ".join(_name_in(names, tensor) for tensor in new), stacklevel=5)

    def _warn(self, named: str, stacklevel: int = 4) -> None:
        warnings.warn(
            f"something other than a step of a protected optimizer has changed frozen entries of {named}, after "
            f"{self.hooks.last_event}; consolidated tasks answer as before, since these entries are put back. Pass "
            "every optimizer through net.protect(...), and let nothing else write to the backbone"
            f"{_ADVICE_FOR_SEVERAL_PROCESSES if distributed.is_initialized() else ''}",
            stacklevel=stacklevel,
        )


def _name_in(names: Mapping[int, str], tensor: Tensor) -> str:
    return names.get(id(tensor), "a parameter that is no longer there")


def _layout(tensor: Tensor) -> tuple[Tensor, torch.Size, tuple[int, ...]]:
    """Return a tensor, its shape and its strides."""
    return tensor, tensor.shape, tensor.stride()


def _key(state: TaskState) -> str:
    """Return the key of the parts that a task alone relies on."""
    return f"task {state.name}"


keep_compilers_out(Protection.prepare_answer, Protection.has_moved)
