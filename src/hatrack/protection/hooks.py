"""Optimizer hooks: whatever an optimizer does, entries that earlier tasks rely on keep their bits.

A zero gradient is not a zero change: weight decay moves a weight without gradient, and so does momentum carried over
from the task before. Entries are therefore restored after every step, through the optimizer's own hooks; only where a
zero gradient *is* a zero change, in plain SGD, clearing the gradient beforehand does the same for less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hatrack import functional
from hatrack.protection.conditioning import AdaptiveScaling
from hatrack.protection.frozen import Backup, FrozenEntries
from hatrack.protection.plan import ProtectionPlan
from hatrack.protection.source import ProtectionSource
from hatrack.protection.versions import CountsSteps, VersionWatch, count_step, has_closure
from hatrack.support.layouts import lay_gradients_out, lay_memory_out

__all__ = ["OptimizerHooks", "keeps_entries_without_gradient"]

_ELEMENTWISE = tuple(
    getattr(torch.optim, name)
    for name in "SGD Adam AdamW Adamax NAdam RAdam RMSprop Rprop Adagrad Adadelta ASGD".split()  # noqa: SIM905
)
"""Optimizers in which an entry's step depends on that entry's own gradients alone."""


_SHARED = "shared"
"""Name of the backbone's shared parameters among those whose spots are looked at."""


def keeps_entries_without_gradient(optimizer: Optimizer) -> bool:
    """Return whether a zero gradient is a zero change, bit for bit: SGD without momentum, weight decay or ascent."""
    return type(optimizer) is torch.optim.SGD and all(
        group["momentum"] == 0 and group["weight_decay"] == 0 and not group["maximize"]
        for group in optimizer.param_groups
    )


class _EntriesOfOptimizer(NamedTuple):
    """Frozen entries among the parameters of an optimizer.

    Attributes:
        plan: protection plan from which they were found.
        parameters: identities of the optimizer's parameters, in order.
        shared: its shared parameters with frozen entries, and their records.
        own: its fully frozen parameters, such as those that consolidated tasks own, and their backups.
        untrained: its untrained parameters of which there is no backup yet.
        present: the same identities as a set.
    """

    plan: weakref.ref[ProtectionPlan]
    parameters: list[int]
    shared: Sequence[tuple[nn.Parameter, FrozenEntries]]
    own: Sequence[tuple[Tensor, Backup]]
    untrained: Sequence[nn.Parameter]
    present: frozenset[int]


class OptimizerHooks(CountsSteps):
    """Pair of hooks around the steps of the optimizers of one network.

    Args:
        watch: returns the version counters of the present protection plan.
        source: masks of the tasks, for the embeddings in training and the rates of dampers.
        report: called with shared parameters whose frozen entries something else has moved before a step.
        require_same_shapes: called before a step, to refuse one that would fail at a parameter of another shape.

    Attributes:
        count: grows when a step begins and when it ends; while it stays the same, no step has moved anything.
    """

    def __init__(
        self,
        watch: Callable[[], VersionWatch],
        source: ProtectionSource,
        report: Callable[[Sequence[Tensor]], None],
        require_same_shapes: Callable[[], None],
    ) -> None:
        self._watch = watch
        self._source = source
        self._report = report
        self._require_same_shapes = require_same_shapes
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self.count = 0
        self._last_event = "the network was made"
        self._look_up_anew()

    def _look_up_anew(self) -> None:
        self._entries: weakref.WeakKeyDictionary[Optimizer, _EntriesOfOptimizer] = weakref.WeakKeyDictionary()
        self._stepping: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._before: weakref.WeakKeyDictionary[Optimizer, list[tuple[Tensor, Tensor, Tensor]]]
        self._before = weakref.WeakKeyDictionary()  # parameters whose present step is to be scaled
        # Parameters whose gradients are scaled for the present step, with their own gradients and the scaled ones.
        self._scaled: weakref.WeakKeyDictionary[Optimizer, list[tuple[Tensor, Tensor, Tensor]]]
        self._scaled = weakref.WeakKeyDictionary()
        # Values of untrained parameters at the beginning of a step that might move them though they have no gradient.
        self._saved: weakref.WeakKeyDictionary[Optimizer, list[tuple[Tensor, Backup]]] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Copies have no optimizers yet: those of the original do not call them."""
        left_out = ("_entries", "_stepping", "_before", "_scaled", "_saved")
        return {**{key: value for key, value in vars(self).items() if key not in left_out}, "_optimizers": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, which has no optimizers yet."""
        vars(self).update(state)
        self._look_up_anew()

    @property
    def last_event(self) -> str:
        """Description of the last step or other event, for messages."""
        return self._last_event

    def drop_unfinished(self, event: str) -> None:
        """Regard all steps as ended, such as one that an error has interrupted.

        Args:
            event: description of the present event, for messages.
        """
        self._stepping, self._last_event = weakref.WeakSet(), event
        self.count += 1

    @property
    def is_stepping(self) -> bool:
        """Return whether a step is under way in any thread, or was interrupted by an error."""
        return bool(self._stepping)

    def protect(self, optimizer: Optimizer) -> None:
        """Put the hooks around all later steps of an optimizer; a second call for the same one changes nothing."""
        self._optimizers = [reference for reference in self._optimizers if reference() is not None]
        if any(reference() is optimizer for reference in self._optimizers):
            return
        optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)
        self._optimizers.append(weakref.ref(optimizer))

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers that have the hooks and are still in use."""
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def lay_memory_out(self) -> None:
        """Lay out what optimizers remember of parameters as these lie in memory, after their layout has changed."""
        for optimizer in self.optimizers():
            lay_memory_out(optimizer)

    def remove(
        self, parameters: Sequence[nn.Parameter], erased: Mapping[nn.Parameter, Tensor] = MappingProxyType({})
    ) -> None:
        """Remove parameters from all optimizers, and clear what these remember of erased entries.

        Args:
            parameters: parameters that the network no longer has.
            erased: booleans by parameter, True for entries that were erased.
        """
        removed = {id(parameter) for parameter in parameters}
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in removed]
            for parameter in parameters:
                optimizer.state.pop(parameter, None)
            for parameter, where in erased.items():
                memory = optimizer.state.get(parameter, {})
                for key, value in list(memory.items()):
                    if isinstance(value, Tensor) and value.shape == where.shape:
                        memory[key] = value.masked_fill(where.to(value.device), 0.0)  # new, so that this can be undone

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step pre-hook: drop gradients of fully frozen parameters, and condition others where the step needs it."""
        watch, found = self._watch(), self._entries_of(optimizer)
        shapes = [(p.shape, r.shape) for p, r in found.shared] + [(tensor.shape, r.shape) for tensor, r in found.own]
        if any(now != before for now, before in shapes):
            self._require_same_shapes()
        is_inside = optimizer in self._stepping  # a class whose step calls that of its base class has the hooks twice
        self._stepping.add(optimizer)
        self.count += 1
        self._give_gradients_back(optimizer)  # those of a step that has failed
        for parameter in (*(own for own, _ in found.own), *found.untrained):
            parameter.grad = None
        restored, skips = _is_restored_after(optimizer, args, kwargs), _skips_without_gradient(optimizer, args, kwargs)
        if skips or not found.untrained:
            self._saved.pop(optimizer, None)
        elif not is_inside:
            self._saved[optimizer] = [(parameter, Backup.of(parameter)) for parameter in found.untrained]
        watch.look_closer(_SHARED, (parameter for parameter, _ in watch.plan.shared))
        moved = watch.moved(found.shared)
        count_step(optimizer)
        if moved:  # by something else: a step that trusts in gradients alone would not put it back
            for parameter, entries in moved:
                entries.restore(parameter)
            self._report([parameter for parameter, _ in moved])
        for parameter, entries in found.shared:
            gradient = parameter.grad
            if gradient is None or gradient.is_sparse:
                continue
            if skips and entries.all_frozen:  # then there is nothing to put back, either
                parameter.grad = None
                continue
            # Where entries are put back anyway, their gradients matter only if they reach other entries' steps.
            steps_mix_entries = type(optimizer) not in _ELEMENTWISE
            if not restored or entries.freedom is not None or steps_mix_entries:
                if 0 in gradient.stride() and gradient.numel() > 1:  # expanded: entries share memory
                    parameter.grad = gradient = gradient.clone(memory_format=torch.contiguous_format)
                entries.condition(gradient)
        if watch.plan.damped:
            in_time = not has_closure(args, kwargs)
            self._damp(optimizer, found, in_time=in_time, in_proportion=not restored)

    def _entries_of(self, optimizer: Optimizer) -> _EntriesOfOptimizer:
        """Return the frozen entries among the parameters of an optimizer.

        They are found again when tasks or the optimizer's parameters change, so that a step costs the same after a
        hundred tasks.
        """
        plan = self._watch().plan
        parameters = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        known = self._entries.get(optimizer)
        if known is not None and known.plan() is plan and known.parameters == parameters:
            return known
        present = frozenset(parameters)
        shared = [pair for pair in plan.shared if id(pair[0]) in present]
        own = [pair for pair in plan.own if id(pair[0]) in present]
        saved = {id(parameter) for parameter, _ in own}
        untrained = [each for each in plan.untrained if id(each) in present and id(each) not in saved]
        self._entries[optimizer] = _EntriesOfOptimizer(weakref.ref(plan), parameters, shared, own, untrained, present)
        return self._entries[optimizer]

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step post-hook: restore frozen entries where the step may have moved them, and clamp embeddings.

        Nothing is written to parameters that the optimizer does not have: a graph may be alive that needs them.
        """
        watch, found = self._watch(), self._entries_of(optimizer)
        restored, skips = _is_restored_after(optimizer, args, kwargs), _skips_without_gradient(optimizer, args, kwargs)
        for parameter, entries in found.shared:
            unmoved = skips and parameter.grad is None
            if (restored and not unmoved) or (parameter.grad is not None and parameter.grad.is_sparse):
                entries.restore(parameter)
            watch.note(parameter)
        for own, backup in found.own:
            if not skips:  # they may move what has no gradient
                backup.restore(own)
            if watch.is_touched(own) and not backup.has_moved(own):
                watch.note(own)
        for untrained, backup in self._saved.get(optimizer, []):
            backup.restore(untrained)
        self._give_gradients_back(optimizer)
        for moved, before, freedom in self._before.pop(optimizer, []):
            moved.copy_(torch.lerp(before, moved, freedom))
        for embedding in self._source.bounded():
            if id(embedding) in found.present:
                embedding.clamp_(-functional.EMBEDDING_BOUND, functional.EMBEDDING_BOUND)
        torch.clear_autocast_cache()  # within torch.autocast it holds the weights of before the step
        self._stepping.discard(optimizer)
        self._last_event = f"the last step of {type(optimizer).__name__}"
        self.count += 1

    def _give_gradients_back(self, optimizer: Optimizer) -> None:
        """Put gradients that were scaled for a step back to what they were."""
        for parameter, gradient, scaled in self._scaled.pop(optimizer, []):
            if parameter.grad is scaled:
                parameter.grad = gradient

    def _damp(self, optimizer: Optimizer, found: _EntriesOfOptimizer, *, in_time: bool, in_proportion: bool) -> None:
        """Scale gradients for a step, or record parameters whose steps are to be scaled, with their values now.

        Optimizers such as Adam undo most of a scaled gradient by the scale that they learn for it, which is what
        :attr:`AdaptiveScaling.GRADIENTS` asks for.

        Args:
            optimizer: the optimizer that is about to make a step.
            found: its entries.
            in_time: whether gradients are there when the step begins.
            in_proportion: whether they are, and steps are in proportion to them.
        """
        rates = self._source.rates()
        before: list[tuple[Tensor, Tensor, Tensor]] = []
        scaled: list[tuple[Tensor, Tensor, Tensor]] = []
        self._before[optimizer], self._scaled[optimizer] = before, scaled
        for parameter, damper in self._watch().plan.damped:
            if id(parameter) not in found.present:
                continue
            freedom = damper.freedom(rates).to(parameter.dtype)
            if not (in_proportion or (in_time and damper.scaled is AdaptiveScaling.GRADIENTS)):
                before.append((parameter, parameter.detach().clone(), freedom))
            elif parameter.grad is not None:
                gradient, parameter.grad = parameter.grad, parameter.grad * freedom
                scaled.append((parameter, gradient, parameter.grad))


def _is_restored_after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether frozen entries are restored after a step; a closure makes gradients too late to condition."""
    trusted = _has_no_other_hooks(optimizer) and keeps_entries_without_gradient(optimizer)
    return has_closure(args, kwargs) or not trusted


def _skips_without_gradient(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a step leaves a parameter as it is that has no gradient when the step begins."""
    return _has_no_other_hooks(optimizer) and not has_closure(args, kwargs) and type(optimizer) in _ELEMENTWISE


def _has_no_other_hooks(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has no other hooks that change numbers, and might change gradients after these."""
    before = [hook for hook in optimizer._optimizer_step_pre_hooks.values() if hook is not lay_gradients_out]
    return len(before) == len(optimizer._optimizer_step_post_hooks) == 1
