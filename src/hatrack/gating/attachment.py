"""Gates and switches on a backbone: attached from outside, and detached without a trace."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.gating.attention import HeadSwitch
from hatrack.gating.gates import NO_BLOCKS, ActiveTask, InputGate
from hatrack.gating.norms import TaskNormSwitch, copy_of_norm, let_train
from hatrack.gating.partial_gradients import PartialGradient, PartialGradientSwitch, partial_gradient_for
from hatrack.gating.recurrent import RecurrentSwitch, is_recurrent, is_ungated
from hatrack.gating.used_blocks import UsedBlock
from hatrack.protection.frozen import FrozenEntries
from hatrack.state.movement import scratch_of
from hatrack.state.turns import ATTACHED, PART_OF, Turns
from hatrack.support.inputs import Inputs
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.names import prefix_of
from hatrack.units import OUTPUT, ParameterUse, UnitGraph

__all__ = ["Attachment", "attached_to", "is_gate", "mark", "scratch_without_gates", "strip_gates", "without_gates"]

PREFIX = "backbone."
"""Prefix of the names of a backbone's parameters."""

_SWITCHES = (TaskNormSwitch, PartialGradientSwitch, RecurrentSwitch, HeadSwitch)
"""Kinds of objects that replace the forward of single modules."""


_Described = tuple[torch.Size, tuple[ParameterUse, ...], tuple[ParameterUse, ...]]


class _Mark:
    """Reference of a backbone to the network that it is attached to.

    Args:
        kind: name of the network's class.
        owner: the network; None where it is not known, and counts as alive: after loading a pickle, or in a copy of the
            backbone alone.
    """

    def __init__(self, kind: str, owner: nn.Module | None) -> None:
        self.kind = kind
        self._owner = None if owner is None else weakref.ref(owner)

    @property
    def is_dead(self) -> bool:
        """Return whether the network is known to be gone."""
        return self._owner is not None and self._owner() is None

    @property
    def turns(self) -> Turns | None:
        """Turns of the network; None where it is gone or not known."""
        return _turns_of(None if self._owner is None else self._owner())

    def __deepcopy__(self, memo: dict[int, Any]) -> _Mark:
        owner = None if self._owner is None else self._owner()
        return _Mark(self.kind, None if owner is None else memo.get(id(owner)))

    def __reduce__(self) -> tuple[type[_Mark], tuple[str, None]]:
        return type(self), (self.kind, None)


class _PartMark:
    """Reference of a part of a backbone to the network that has it; None in a copy or a pickle without the network.

    Args:
        owner: the network.
    """

    def __init__(self, owner: nn.Module) -> None:
        self._owner = weakref.ref(owner)

    @property
    def turns(self) -> Turns | None:
        """Turns of the network; None where it is gone."""
        return _turns_of(self._owner())

    def __deepcopy__(self, memo: dict[int, Any]) -> _PartMark | None:
        copied = memo.get(id(self._owner()))
        return None if copied is None else _PartMark(copied)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _turns_of(owner: nn.Module | None) -> Turns | None:
    turns = getattr(owner, "turns", None)
    return turns if isinstance(turns, Turns) else None


def attached_to(backbone: nn.Module) -> str | None:
    """Return the class of the network that a backbone, or a part of it, is attached to; None if there is none.

    Where that network is gone, as after an interrupt before it got a name, its gates and switches are taken off.
    """
    modules = list(backbone.modules())
    marked = [module for module in modules if ATTACHED in vars(module)]
    if marked:
        gc.collect()  # a network refers to itself in places, so that it is gone only after this
    for module in marked:
        if vars(module)[ATTACHED].is_dead:
            strip_gates(module)
    marks: list[_Mark] = [vars(module)[ATTACHED] for module in marked if ATTACHED in vars(module)]
    if marks:
        return marks[0].kind
    return "HATNetwork" if _methods_of_gates(backbone) else None


def mark(backbone: nn.Module, owner: nn.Module | None) -> None:
    """Record the network that a backbone is attached to, so that it is not attached to a second one.

    Its parts have a record, too: who runs one of them finds out whose threads may do so meanwhile. They may come into a
    second network all the same.

    Args:
        backbone: the backbone.
        owner: the network; None to remove the records.
    """
    vars(backbone).pop(ATTACHED, None)
    for part in backbone.modules():
        vars(part).pop(PART_OF, None)
    if owner is not None:
        vars(backbone)[ATTACHED] = _Mark(type(owner).__name__, owner)
        part_mark = _PartMark(owner)
        for part in backbone.modules():
            vars(part)[PART_OF] = part_mark


def strip_gates(backbone: nn.Module) -> None:
    """Remove all gates, switches and the mark from a backbone."""
    _take_off(backbone)
    let_train(backbone)
    mark(backbone, None)


def is_gate(hook: object) -> bool:
    """Return whether a hook is that of a gate or switch, and not the user's."""
    return isinstance(getattr(hook, "__self__", None), (InputGate, HeadSwitch))


def _take_off(backbone: nn.Module) -> None:
    for module in backbone.modules():
        for number, hook in list(module._forward_pre_hooks.items()):
            if is_gate(hook):
                del module._forward_pre_hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)
        for number, hook in list(module._forward_hooks.items()):
            if is_gate(hook):
                del module._forward_hooks[number]
        if isinstance(getattr(vars(module).get("forward"), "__self__", None), _SWITCHES):
            del vars(module)["forward"]


def _methods_of_gates(backbone: nn.Module) -> list[object]:
    """Return the hooks and forward methods that gates and switches have put into a backbone."""
    modules = list(backbone.modules())
    methods = [hook for module in modules for hook in module._forward_pre_hooks.values()]
    methods += [hook for module in modules for hook in module._forward_hooks.values()]
    methods += [vars(module)["forward"] for module in modules if "forward" in vars(module)]
    return [each for each in methods if isinstance(getattr(each, "__self__", None), (InputGate, *_SWITCHES))]


def without_gates(backbone: nn.Module) -> nn.Module:
    """Copy a backbone without its gates and switches; parameters and buffers are shared with the original.

    The copy is to be read and to be copied: writing into its tensors writes into the backbone's.
    """
    tensors = (*backbone.parameters(), *backbone.buffers())
    twin = copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})
    strip_gates(twin)
    return twin


def scratch_without_gates(backbone: nn.Module) -> nn.Module:
    """Copy a backbone without gates, to be run without a trace in the original; parameters are shared.

    Untrained norms stay in evaluation mode there, too.
    """
    with torch.inference_mode(False):
        scratch = scratch_of(backbone, _methods_of_gates(backbone))  # which the copy loses at once
    _take_off(scratch)
    mark(scratch, None)
    return scratch


class Attachment(nn.Module):
    """All gates and switches of one network.

    It has no parameters; it is a module so that its index tensors move along with the network.

    Args:
        graph: the units of the backbone.
        backbone: the backbone to attach to.
        interface: how the backbone is called, and what of its result are its features.

    Attributes:
        partial_gradients: partial gradients by the names of layers; layers missing here compute all of theirs.
    """

    def __init__(self, graph: UnitGraph, backbone: nn.Module, interface: Interface = PLAIN) -> None:
        super().__init__()
        self._interface = interface
        self._active = ActiveTask([group.size for group in graph.groups])
        modules = dict(backbone.named_modules())
        gates = [InputGate(reader, graph.num_units, self._active) for reader in graph.readers]
        self.gates = nn.ModuleList(gates)
        for reader, gate in zip(graph.readers[:-1], gates[:-1], strict=True):
            if reader.argument == OUTPUT:
                modules[reader.module].register_forward_hook(gate.after)
            else:
                modules[reader.module].register_forward_pre_hook(gate.before, with_kwargs=True)
        self._norms = {name: TaskNormSwitch(name, modules[name], self._active) for name in graph.per_task_modules}
        self.partial_gradients: dict[str, PartialGradient] = {}
        self._weighted = {
            name: PartialGradientSwitch(name, module, self.partial_gradients, self._active)
            for name, module in modules.items()
            if PartialGradientSwitch.fits(module) and module.get_parameter("weight").requires_grad
        }
        self._described = {
            name: found for name in self._weighted if (found := _described(modules[name], backbone, graph))
        }
        self.recurrent = nn.ModuleList(
            RecurrentSwitch(name, module, graph.uses, prefix_of(name), self._active)
            for name, module in modules.items()
            if is_recurrent(module, graph.uses, prefix_of(name))
            and not is_ungated(module, graph.uses, prefix_of(name), graph.num_units)
        )
        self.attention = nn.ModuleList(
            HeadSwitch(modules[name], channels, self._active)
            for name, channels in graph.heads.items()
            if bool((channels != graph.num_units).any())  # else all are ungated, as where they are untrained
        )
        for switch in self.attention:
            assert isinstance(switch, HeadSwitch)
            switch.module.register_forward_pre_hook(switch.before)
        switches: list[Any] = [*self._norms.values(), *self._weighted.values(), *self.recurrent, *self.attention]
        for switch in switches:
            vars(switch.module)["forward"] = switch.forward

    def run(
        self,
        backbone: nn.Module,
        x: Inputs,
        attention: Tensor,
        norms: dict[str, nn.Module],
        blocks: Mapping[str, UsedBlock] = NO_BLOCKS,
    ) -> Tensor:
        """Compute features of a batch under a task's attention and norms, gated as its head reads them.

        Args:
            backbone: the backbone that was attached to.
            x: the batch.
            attention: ``(U,)``, booleans or numbers in [0, 1].
            norms: the task's norms, by the name of the layer they stand for.
            blocks: blocks of weights to compute with, as :meth:`blocks_under` finds them.

        Returns:
            Features, with units along the axis that the interface says.
        """
        outer = self._active.activate(attention, norms, blocks)
        try:
            features: Tensor = self.gates[-1](self._interface.run(backbone, x))
            return features
        finally:
            self._active.go_back_to(outer)

    def choose_partial_gradients(
        self, backbone: nn.Module, frozen: Iterable[tuple[nn.Parameter, FrozenEntries]]
    ) -> None:
        """Leave frozen entries out of gradients where that pays.

        Args:
            backbone: the backbone that was attached to.
            frozen: parameters with their frozen entries.
        """
        records = {id(parameter): entries for parameter, entries in frozen}
        self.partial_gradients.clear()
        for name in self._weighted:
            weight = backbone.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            entries = records.get(id(weight))
            partial = None if entries is None else partial_gradient_for(entries.frozen)
            if partial is not None:
                self.partial_gradients[name] = replace(partial, weight=weight)

    @property
    def validates(self) -> bool:
        """Return whether this thread validates a task in training."""
        return self._active.validates

    def validating(self) -> AbstractContextManager[None]:
        """Return a block in which this thread validates a task in training."""
        return self._active.validating()

    @torch.inference_mode(False)  # training could not use what is made there
    def blocks_under(self, mask: Tensor) -> Mapping[str, UsedBlock]:
        """Return the blocks of weights that a mask uses, by the names of layers; the others need their whole weights.

        Args:
            mask: booleans, ``(U,)``.
        """
        found = {name: UsedBlock.under(mask, *described) for name, described in self._described.items()}
        return {name: block for name, block in found.items() if block is not None}

    def copy_norms(self) -> dict[str, nn.Module]:
        """Copy the backbone's batch norms for a new task, by the name of the layer they stand for."""
        return {name: copy_of_norm(switch.module) for name, switch in self._norms.items()}

    def detach(self, backbone: nn.Module) -> None:
        """Remove all gates and switches from the backbone."""
        _take_off(backbone)
        self._norms, self._weighted, self._described = {}, {}, {}
        self.recurrent, self.attention = nn.ModuleList(), nn.ModuleList()


def _described(module: nn.Module, backbone: nn.Module, graph: UnitGraph) -> _Described | None:
    """Return the shape of a layer's weight and what its weight and bias are used for; None where that is not known.

    A bias that is computed from others is not among the parameters.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters(prefix="backbone")}
    weight, bias = module.get_parameter("weight"), module.bias
    uses = graph.uses.get(names[id(weight)])
    of_bias = () if bias is None else graph.uses.get(names.get(id(bias), ""))
    return None if uses is None or of_bias is None else (weight.shape, uses, of_bias)
