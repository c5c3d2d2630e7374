"""Protection as an invariant: whatever an optimizer does, entries that earlier tasks rely on keep their bits.

A zero gradient is not a zero change: weight decay moves a weight without gradient, and so does momentum carried over
from the task before. Entries are therefore put back after every step, through the optimizer's own hooks; only where a
zero gradient *is* a zero change, in plain SGD, clearing the gradient beforehand does the same for less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from hatrack import functional
from hatrack.guarantee import Guarantee

__all__ = ["OptimizerGuard", "keeps_entries_without_gradient"]

_ELEMENTWISE = tuple(
    getattr(torch.optim, name)
    for name in "SGD Adam AdamW Adamax NAdam RAdam RMSprop Rprop Adagrad Adadelta ASGD".split()  # noqa: SIM905
)
"""Optimizers in which an entry's step depends on that entry's own gradients alone."""


def keeps_entries_without_gradient(optimizer: Optimizer) -> bool:
    """Whether a zero gradient is a zero change, bit for bit: SGD without momentum, weight decay or ascent."""
    return type(optimizer) is torch.optim.SGD and all(
        group["momentum"] == 0 and group["weight_decay"] == 0 and not group["maximize"]
        for group in optimizer.param_groups
    )


class _Found(NamedTuple):
    """What was found of an optimizer, and for which guarantee and numbers of parameters.

    Attributes:
        guarantee: what must not move.
        counts: number of the optimizer's parameters, group by group.
        frozen: the consolidated tasks' own parameters among them.
        whole: its shared parameters of which every entry is held, by identity.
    """

    guarantee: weakref.ref[Guarantee]
    counts: list[int]
    frozen: Sequence[Tensor]
    whole: frozenset[int]


class OptimizerGuard:
    """The pair of hooks around the steps of the optimizers of one network.

    Args:
        guarantee: gives what must not move at present.
        bounded: gives the embeddings in training, which are kept within their bounds.
        rates: gives what dampers go by, a number per unit.
    """

    def __init__(
        self,
        guarantee: Callable[[], Guarantee],
        bounded: Callable[[], Sequence[Tensor]],
        rates: Callable[[], Tensor],
    ) -> None:
        self._guarantee = guarantee
        self._bounded = bounded
        self._rates = rates
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []
        self._guarded: list[weakref.ref[Optimizer]] = []
        self._found: weakref.WeakKeyDictionary[Optimizer, _Found] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """A copy guards no optimizer yet: those of the original do not call it."""
        return {**{key: value for key, value in vars(self).items() if key != "_found"}, "_guarded": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look up anew what optimizers hold."""
        vars(self).update(state, _found=weakref.WeakKeyDictionary())

    def protect(self, optimizer: Optimizer) -> None:
        """Guard all later steps of an optimizer; a second call for the same one changes nothing."""
        self._guarded = [reference for reference in self._guarded if reference() is not None]
        if any(reference() is optimizer for reference in self._guarded):
            return
        optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)
        self._guarded.append(weakref.ref(optimizer))

    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are guarded and still in use."""
        return [optimizer for reference in self._guarded if (optimizer := reference()) is not None]

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step pre-hook: drop gradients of frozen parameters, condition the others where that is called for."""
        found = self._found_in(optimizer)
        for parameter in found.frozen:
            parameter.grad = None
        restored, skips = _restores(optimizer, args, kwargs), _skips_without_gradient(optimizer, args, kwargs)
        for parameter, shield in self._guarantee().shared:
            gradient = parameter.grad
            if gradient is None or gradient.is_sparse:
                continue
            if skips and id(parameter) in found.whole:  # then there is nothing to put back, either
                parameter.grad = None
                continue
            # Where entries are put back anyway, their gradients matter only if they reach other entries' steps.
            steps_mix_entries = type(optimizer) not in _ELEMENTWISE
            if not restored or shield.freedom is not None or steps_mix_entries:
                shield.condition(gradient)
        if self._guarantee().damped:
            self._damp(scale_gradients=not restored)

    def _found_in(self, optimizer: Optimizer) -> _Found:
        """What an optimizer holds of consolidated tasks, as one carried over from task to task does.

        Looked up when tasks or the optimizer's parameters change: a step costs the same after a hundred tasks.
        """
        guarantee, counts = self._guarantee(), [len(group["params"]) for group in optimizer.param_groups]
        known = self._found.get(optimizer)
        if known is not None and known.guarantee() is guarantee and known.counts == counts:
            return known
        present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        frozen = [parameter for parameter, _ in guarantee.own if id(parameter) in present]
        whole = frozenset(id(p) for p, shield in guarantee.shared if shield.whole and id(p) in present)
        self._found[optimizer] = _Found(weakref.ref(guarantee), counts, frozen, whole)
        return self._found[optimizer]

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Step post-hook: put held entries back where the step may have moved them; clamp embeddings."""
        restored, skips = _restores(optimizer, args, kwargs), _skips_without_gradient(optimizer, args, kwargs)
        for parameter, shield in self._guarantee().shared:
            unmoved = skips and parameter.grad is None
            if (restored and not unmoved) or (parameter.grad is not None and parameter.grad.is_sparse):
                shield.restore(parameter)
        if not skips:  # they may move what has no gradient
            for parameter, keepsake in self._guarantee().own:
                keepsake.restore(parameter)
        for moved, before, freedom in self._before:
            moved.copy_(torch.lerp(before, moved, freedom))
        self._before = []
        for embedding in self._bounded():
            embedding.clamp_(-functional.EMBEDDING_BOUND, functional.EMBEDDING_BOUND)

    def _damp(self, scale_gradients: bool) -> None:
        """Scale what is to come: the gradients, where steps are in proportion to them; the steps themselves elsewhere.

        Optimizers such as Adam would undo a scaled gradient by the scale that they learn for it.
        """
        rates = self._rates()
        for parameter, damper in self._guarantee().damped:
            freedom = damper.freedom(rates).to(parameter.dtype)
            if not scale_gradients:
                self._before.append((parameter, parameter.detach().clone(), freedom))
            elif parameter.grad is not None:
                parameter.grad.mul_(freedom)


def _restores(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether held entries are put back after this step; with a closure gradients come too late to be conditioned."""
    trusted = _alone(optimizer) and keeps_entries_without_gradient(optimizer)
    return _has_closure(args, kwargs) or not trusted


def _skips_without_gradient(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step surely leaves alone a parameter that has no gradient when it begins."""
    return _alone(optimizer) and not _has_closure(args, kwargs) and type(optimizer) in _ELEMENTWISE


def _alone(optimizer: Optimizer) -> bool:
    """Whether gradients are, during a step and just after it, what the guard left: nobody else has hooks there."""
    return len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step was called with a closure; torch counts the optimizer itself as a hook's first argument."""
    return (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
