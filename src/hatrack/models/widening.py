"""Widening of a network in place, between tasks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Generic

import torch
from torch import Tensor

from hatrack.errors import GuaranteeError, HatrackError, InputError
from hatrack.growth.layers import Layer, Side
from hatrack.growth.policy import plan_growth, require_growable
from hatrack.growth.tasks import widen_optimizer
from hatrack.growth.widening import DEPENDS_ON_WIDTH, WidthError, why_it_fails, widen
from hatrack.masks.task_list import StateT
from hatrack.models.answering import fixed_logits
from hatrack.state.tryouts import largest
from hatrack.state.undo import Snapshot, UndoLog
from hatrack.support.names import prefix_of
from hatrack.units import UnitGraph

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["grow", "grow_if_full", "require_same_widths"]


def grow(net: MaskedNetwork[StateT], groups: Mapping[str, int], generator: torch.Generator | None) -> None:
    """Widen a network; the caller undoes all of it after an error.

    Args:
        net: the network.
        groups: numbers of units to add, by group.
        generator: source of randomness on the CPU; torch's global one if None.

    Raises:
        InputError: there is no such group, it cannot be widened, or a task is in training.
        GuaranteeError: protected entries had moved before, or outputs would change.
    """
    masking = net.masking
    masking.require_attached()
    net.protection.require_same_shapes()
    if not isinstance(groups, Mapping):
        raise InputError(
            "groups must say how many units to add to which group, such as {'fc1': 8}, and be no "
            f"{type(groups).__name__}, {groups!r}; net.units names the groups"
        )
    graph, training = masking.units_now(), net.tasks.in_training
    masking.record_widths(graph)
    require_growable(groups, graph)
    if training is not None:
        raise InputError(f"the network grows between tasks: consolidate {training.name!r} first")
    net.protection.put_back()
    net.protection.check()
    attempts = _Attempts(net, graph)
    try:
        attempts.widen(groups, generator)
    except (InputError, GuaranteeError) as error:
        refusals = attempts.refusals(groups) if len(groups) > 1 else {}
        if not refusals:
            raise
        first, *others = refusals
        more = f"; nor can {', '.join(map(repr, others))} be widened" if others else ""
        raise type(refusals[first])(f"{refusals[first]}{more}") from error
    with torch.inference_mode(False), torch.no_grad():
        net.protection.renew_digests()


class _Attempts(Generic[StateT]):
    """Attempts at widening a network, with its answers and its state of before.

    :meth:`widen` leaves the network to the caller, widened or, after an error, partly so. The others return what
    stands against a widening, and leave the network as it was when this was made.

    Args:
        net: the network. The caller has put back and checked what is frozen: widening must keep the answers of now.
        graph: its units.
        values_of: tensors whose values are copied, since tests write into them and may be interrupted.
    """

    def __init__(self, net: MaskedNetwork[StateT], graph: UnitGraph, values_of: Iterable[Tensor] = ()) -> None:
        self._net, self._graph = net, graph
        self._before = _answers(net)
        self._snapshot = Snapshot(net, net.protection.hooks.optimizers(), values_of)

    def widen(self, groups: Mapping[str, int], generator: torch.Generator | None) -> None:
        """Widen the network and test it; digests stay those of before, and an error leaves what was done until then.

        Args:
            groups: numbers of units to add, by group.
            generator: source of randomness on the CPU; torch's global one if None.

        Raises:
            InputError: the groups cannot be widened, or the network does not run when they are.
            GuaranteeError: outputs of consolidated tasks would change.
        """
        net, names = self._net, ", ".join(map(repr, groups))
        with torch.inference_mode(False), torch.no_grad():
            _widen(net, self._graph, groups, generator, UndoLog())
            net.renew_protection()
            try:
                differing = _differing(self._before, _answers(net))
                leak = net.masking.find_leak(net.masking.example())
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # it ran on these samples before
                reason = f"{why_it_fails(error)}; {DEPENDS_ON_WIDTH}"
                raise WidthError(f"{names} cannot be widened: {reason}") from error
            if differing:
                raise GuaranteeError(
                    f"widening {names} would change the outputs of {', '.join(differing)}; nothing was changed. "
                    f"{DEPENDS_ON_WIDTH[0].upper()}{DEPENDS_ON_WIDTH[1:]}"
                )
            if leak is not None:
                raise GuaranteeError(f"widening {names} would change what protects {leak}; nothing was changed")

    def refusal_of(self, groups: Mapping[str, int]) -> HatrackError | None:
        """Return the error that widening some groups together raises, None if it works; it is undone either way."""
        try:
            self.widen(groups, torch.Generator())
        except (InputError, GuaranteeError) as error:
            return error
        finally:
            self._snapshot.restore()
        return None

    def refusals(self, groups: Mapping[str, int]) -> dict[str, HatrackError]:
        """Return the errors of groups that cannot be widened, alone or together with those before them, by name.

        All is undone, and so is what :meth:`widen` has left.
        """
        self._snapshot.restore()
        possible: dict[str, int] = {}
        refusals: dict[str, HatrackError] = {}
        for name, count in groups.items():
            refusal = self.refusal_of({**possible, name: count})
            if refusal is None:
                possible[name] = count
            else:
                alone = self.refusal_of({name: count}) if possible else refusal
                refusals[name] = refusal if alone is None else alone
        return refusals


def _widen(
    net: MaskedNetwork[StateT],
    graph: UnitGraph,
    groups: Mapping[str, int],
    generator: torch.Generator | None,
    undo_log: UndoLog,
) -> None:
    """Widen a backbone together with its tasks and the state of optimizers.

    Args:
        net: the network.
        graph: the units as they are.
        groups: numbers of units to add, by group.
        generator: source of randomness on the CPU; torch's global one if None.
        undo_log: records all changes.

    Raises:
        InputError: one of the groups cannot be widened.
    """
    masking = net.masking
    assert masking.origin is not None
    masking.detach()
    scales = masking.origin.initial_scales
    widening = widen(net.backbone, graph, groups, masking.analyze, scales, generator, undo_log)
    places = {**widening.places(), **masking.widen_tasks(widening, undo_log)}
    for optimizer in net.protection.hooks.optimizers():
        widen_optimizer(optimizer, places, undo_log)
    masking.fit(widening.graph)


def grow_if_full(net: MaskedNetwork[StateT], generator: torch.Generator | None) -> None:
    """Widen the groups of which too little is free by the network's policy, as far as they can be.

    Args:
        net: the network.
        generator: source of randomness on the CPU; torch's global one if None.
    """
    masking = net.masking
    if net.growth is None or not masking.is_attached:
        return
    graph = masking.units_now()
    masking.record_widths(graph)
    assert masking.origin is not None
    wanted = plan_growth(net.growth, masking.room(graph), masking.origin.widths)
    if not wanted:
        return
    net.protection.put_back()
    net.protection.check()
    attempts = _Attempts(net, graph, [*net.backbone.parameters(), *net.backbone.buffers()])
    refusal = attempts.refusal_of(wanted)
    if refusal is None:
        refusals = {}
    elif len(wanted) == 1:
        refusals = dict.fromkeys(wanted, refusal)
    else:
        refusals = attempts.refusals(wanted)
    del attempts  # with the copies that it holds
    possible = {name: count for name, count in wanted.items() if name not in refusals}
    _warn_of(refusals, bool(possible))
    if possible:
        net.grow(possible, generator=generator)


def _warn_of(refusals: Mapping[str, HatrackError], others_grow: bool) -> None:
    """Warn of full groups that stay as they are.

    Where others grow, those are passed over in silence that no network could widen (of a layer norm, say), and groups
    are named that stand still because of the user's own code.

    Args:
        refusals: the reasons, by group.
        others_grow: whether other groups grow.
    """
    own = {name: why for name, why in refusals.items() if isinstance(why, (WidthError, GuaranteeError))}
    named = own if others_grow else refusals
    if named:
        names, reason = ", ".join(map(repr, named)), next(iter((own or named).values()))
        subject = f"{names} cannot grow, though nearly full" if others_grow else f"no full group can grow: {names}"
        warnings.warn(
            f"{subject}: {str(reason).replace('; nothing was changed', '')}. Later tasks share what is left of them; "
            "net.growth = None ends growth",
            stacklevel=6,  # of whoever calls add_task: grow_if_full, add_task and two of all_or_nothing are between
        )


def _answers(net: MaskedNetwork[StateT]) -> dict[str, Tensor]:
    return {state.name: fixed_logits(net.masking, state, 16) for state in net.tasks.consolidated}


def _differing(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tasks whose logits changed by more than rounding in kernels of another shape.

    Args:
        before: logits of every task on the same samples before.
        now: logits by the same names now.
    """
    differing = []
    for name, logits in before.items():
        # On a GPU products may be rounded to ten bits (TF32), whatever the type.
        tolerance = max(_rounding(logits.dtype), 0.01 if logits.is_cuda else 0.0)
        if not torch.allclose(now[name], logits, rtol=0.0, atol=tolerance * largest(logits), equal_nan=True):
            differing.append(name)
    return differing


def _rounding(dtype: torch.dtype) -> float:
    """Return how far logits may move by rounding when sums are made in another order, relative to the largest one.

    In types of less than 32 bits sums are made in float32, and only results are rounded to the type: nearly all stay,
    and few move by a last digit. On a CPU logits of networks of up to seven layers moved by 0.4 eps at most, those in
    float32 by 2. A hundred eps of bfloat16 would be 78 %.
    """
    info = torch.finfo(dtype)
    return (4 if info.bits < 32 else 100) * info.eps


# -------------------------------------------------------------------------------------------------------- other widths


def require_same_widths(net: MaskedNetwork[StateT], state: Mapping[str, object]) -> None:
    """Check that the parameters in a ``state_dict`` have the shapes of a network's.

    Args:
        net: the network.
        state: tensors by the network's names.

    Raises:
        InputError: some have other shapes, as when one of the two networks has grown.
    """
    own = dict(net.named_parameters())
    there = {name: value.shape for name in own if isinstance(value := state.get(name), Tensor)}
    others = [name for name in there if there[name] != own[name].shape and own[name].dim() > 0]
    if not others:
        return
    named = [f"{name} has shape {tuple(there[name])} there and {tuple(own[name].shape)} here" for name in others[:3]]
    more = f", and {len(others) - 3} more" if len(others) > 3 else ""
    added = _units_missing(net, there)
    when = "first" if net.tasks.in_training is None else "before the task in training is added"
    remedy = f"grow this one {when}, net.grow({added})" if added else "build and widen this one as that one was"
    raise InputError(
        f"this state_dict is of a network of other widths: {', '.join(named)}{more}. To load it, {remedy}; or keep "
        "whole networks with net.save and hatrack.load, which widens by itself"
    )


def _units_missing(net: MaskedNetwork[StateT], shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """Return the numbers of units, by group, by which a backbone has to grow; empty where that is not what it takes.

    Args:
        net: the network.
        shapes: shapes that the parameters are to have, by the network's names.
    """
    try:
        graph = net.masking.units_now()
    except HatrackError:
        return {}
    added: dict[str, int] = {}
    for group in graph.groups:
        for name, units in graph.outputs.items():
            layer = Layer.of(net.backbone.get_submodule(name)) if bool(group.owns(units).all()) else None
            for own, axes in {} if layer is None else layer.tensors.items():
                shape = shapes.get(f"{prefix_of(name)}{own}")
                if shape is None or Side.OUTPUTS not in axes:
                    continue
                missing, rest = divmod((shape[axes.index(Side.OUTPUTS)] - len(units)) * group.size, len(units))
                if rest or missing < 0 or added.get(group.name, missing) != missing:
                    return {}
                added[group.name] = missing
    return {name: missing for name, missing in added.items() if missing}
