"""Gates at the inputs of the layers that read units, attached from outside and removable."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence

from hatrack import functional
from hatrack.errors import InputError
from hatrack.gating.folding import FoldsGates, is_called_with_hooks_of
from hatrack.gating.recomputing import GatedInput
from hatrack.gating.used_blocks import UsedBlock
from hatrack.masks.packing import move_along
from hatrack.support.parameters import DRAWN
from hatrack.support.randomness import random_numbers_apart
from hatrack.units import Group, Reader

__all__ = [
    "NO_BLOCKS",
    "ActiveTask",
    "InputGate",
    "change_argument",
    "groups_switched_off",
    "initial_embedding",
    "used_units",
]


def used_units(embedding: Tensor, groups: Sequence[Group]) -> Tensor:
    """Return the units that a task uses once its mask is hard.

    A group without any used unit would make the output constant, so the unit with the largest embedding value stays
    on in every group.

    Args:
        embedding: the task's embedding, ``(U,)``.
        groups: the groups of the network.

    Returns:
        Booleans, ``(U,)``.
    """
    mask = functional.hard_attention(embedding)
    for group in groups:
        if not mask[group.span].any():
            mask[group.start + int(embedding[group.span].argmax())] = True
    return mask


def groups_switched_off(embedding: Tensor, groups: Sequence[Group]) -> list[str]:
    """Return the names of groups whose units a task has all switched off; groups of a single unit do not count.

    Args:
        embedding: the task's embedding, ``(U,)``.
        groups: the groups of the network.
    """
    mask = functional.hard_attention(embedding)
    return [group.name for group in groups if group.size > 1 and not mask[group.span].any()]


def initial_embedding(start: Tensor | Distribution, num_units: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the initial embedding of a task.

    Args:
        start: the embedding itself, or a distribution of single numbers.
        num_units: U.
        generator: source of randomness on the CPU; None takes torch's global one.

    Returns:
        Numbers, ``(U,)``, those of a distribution limited to [−6, 6].

    Raises:
        InputError: the embedding does not have a number in [−6, 6] for every unit, or the distribution does not give
            single real numbers.
    """
    bound = functional.EMBEDDING_BOUND
    if isinstance(start, Distribution):
        if start.batch_shape or start.event_shape:
            raise InputError(f"an embedding is drawn from a distribution of single numbers, which {start} is not")
        seed = int(torch.randint(2**62, (), generator=generator))
        with random_numbers_apart(seed):  # distributions draw from torch's global generator and take no other
            drawn: Tensor = start.sample(torch.Size([num_units]))
        return drawn.to(torch.promote_types(drawn.dtype, DRAWN)).clamp(-bound, bound)
    if start.shape != (num_units,) or not bool((start.abs() <= bound).all()):
        raise InputError(
            f"an embedding has a number in [-6, 6] for each of the {num_units} units; this one has shape "
            f"{tuple(start.shape)} and values up to {float(start.abs().max()) if start.numel() else 0.0:.3g}"
        )
    return start.detach()


def change_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, keyword: str, change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Change one argument of a call, as a forward pre-hook does.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        position: position of the argument.
        keyword: its name, for a call that gives it by name.
        change: maps the argument to its new value.

    Returns:
        Positional and keyword arguments with the change; as they were where the argument is not given.
    """
    if position < len(args):
        given = args[position]
        return (args if given is None else (*args[:position], change(given), *args[position + 1 :])), kwargs
    given = kwargs.get(keyword)
    return args, kwargs if given is None else {**kwargs, keyword: change(given)}


_Parts = Mapping[tuple[int, int], Tensor]

_Outer = tuple[
    Tensor | None,
    Tensor | None,
    Tensor | None,
    _Parts | None,
    GatedInput | None,
    dict[str, nn.Module] | None,
    Mapping[str, UsedBlock],
]

NO_BLOCKS: Mapping[str, UsedBlock] = {}
"""Blocks of layers that all compute with their whole weights."""


_NOTHING: AbstractContextManager[None] = nullcontext()


def _with_ungated(attention: Tensor) -> Tensor:
    """Return attention ``(…, U)`` with a 1 behind it, which stands for "ungated"."""
    return torch.cat([attention, attention.new_ones((*attention.shape[:-1], 1))], dim=-1)


class _State:
    """Attention and norms that are active in one thread."""

    def __init__(self) -> None:
        self.soft: Tensor | None = None
        self.attention: Tensor | None = None
        self.cleared: Tensor | None = None
        self.parts: _Parts | None = None
        self.latest: GatedInput | None = None
        self.left: tuple[nn.Module, Tensor | UsedBlock] | None = None
        self.norms: dict[str, nn.Module] | None = None
        self.blocks = NO_BLOCKS
        self.validates = False


class _StateOfThread(threading.local):
    """Holder of one state for every thread; torch.compile loses what is written to such an object in a graph."""

    def __init__(self) -> None:
        self.state = _State()


class ActiveTask:
    """State of the gates and norms of one network during the forward pass that is under way.

    Every thread has its own, so that several of them can ask one network about different tasks at the same time.

    Args:
        sizes: numbers of units of the groups, which lie one behind the other.
    """

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        self._sizes = tuple(sizes)
        self._own = _StateOfThread()

    def __reduce__(self) -> tuple[type[ActiveTask], tuple[tuple[int, ...]]]:
        """Start copies without an active task, as every thread starts."""
        return type(self), (self._sizes,)

    @property
    def attention(self) -> Tensor | None:
        """Numbers in [0, 1], ``(U + 1,)``, to multiply with; the last is 1 and stands for "ungated".

        None when the mask is hard. A row per sample, ``(N, U + 1)``, where samples belong to several tasks.
        """
        state = self._own.state
        if state.attention is not None or state.soft is None:
            return state.attention
        whole = _with_ungated(state.soft)
        # A part of the backbone may run without gradients, or in inference mode: the rest must not learn through that.
        same_mode = (
            whole.requires_grad == state.soft.requires_grad and whole.is_inference() == state.soft.is_inference()
        )
        if same_mode:
            state.attention = whole
        return whole

    @property
    def cleared(self) -> Tensor | None:
        """Booleans, ``(U + 1,)``, True where a hard mask is off; the last is False. None when the mask is soft."""
        return self._own.state.cleared

    def part(self, start: int, stop: int) -> Tensor | None:
        """Return a group's part of an attention that is to be learned, by where it lies; None for anything else."""
        parts = self._own.state.parts
        return None if parts is None else parts.get((start, stop))

    def gated(self, value: Tensor, gates: Tensor) -> Tensor:
        """Return ``value * gates``, and remember it for the layer that it is given to."""
        made = value * gates
        if gates.requires_grad and GatedInput.is_worth(made):  # or else a product keeps no value to make it again
            self._own.state.latest = GatedInput(made, value, gates)
        return made

    def leave(self, module: nn.Module, gates: Tensor | UsedBlock) -> None:
        """Leave the gates of its input, or the block that they leave, to a layer whose own forward is called next."""
        self._own.state.left = module, gates

    def gates_left_to(self, module: nn.Module) -> Tensor | UsedBlock | None:
        """Return what was left to a layer, once; None where its input is gated, or no task is active."""
        state = self._own.state
        (layer, gates), state.left = state.left or (None, None), None
        return gates if layer is module else None

    def not_kept(self, given: Tensor) -> AbstractContextManager[None]:
        """Return what is to be around a layer's computing with its input, so that a large gated one is not kept."""
        latest = self._own.state.latest
        return _NOTHING if latest is None or not latest.is_input(given) else latest.not_kept()

    @property
    def norms(self) -> dict[str, nn.Module] | None:
        """The active task's own norms by the name of the layer they stand for; None when no task is active."""
        return self._own.state.norms

    @property
    def validates(self) -> bool:
        """Return whether this thread validates."""
        return self._own.state.validates

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Note that this thread validates, within a block."""
        state = self._own.state
        outer, state.validates = state.validates, True
        try:
            yield
        finally:
            state.validates = outer

    def block(self, name: str) -> UsedBlock | None:
        """Return the block of its weight that a layer is to compute with; None where it is the whole weight."""
        return self._own.state.blocks.get(name)

    def activate(
        self, attention: Tensor, norms: dict[str, nn.Module], blocks: Mapping[str, UsedBlock] = NO_BLOCKS
    ) -> _Outer:
        """Use a task's attention, ``(U,)``, booleans (hard) or numbers (soft), and its norms; or a row per sample.

        Args:
            attention: the attention.
            norms: the norms, by the name of the layer they stand for.
            blocks: blocks of weights to compute with, by the names of layers.

        Returns:
            State before, for :meth:`go_back_to`: a pass may begin in the middle of another one.
        """
        state = self._own.state
        outer = state.soft, state.attention, state.cleared, state.parts, state.latest, state.norms, state.blocks
        state.soft, state.attention, state.cleared, state.parts, state.latest = None, None, None, None, None
        state.left = None
        if attention.dtype == torch.bool:
            last = (*attention.shape[:-1], 1)
            state.cleared = torch.cat([~attention, attention.new_zeros(last)], dim=-1)
        else:
            state.soft = attention
            if torch.compiler.is_compiling():  # which fuses all of this, and cannot ask in which mode a tensor was made
                state.attention = _with_ungated(attention)
            elif attention.requires_grad and attention.dim() == 1:
                state.parts = self._parts_of(attention)
        state.norms, state.blocks = norms, blocks
        return outer

    def _parts_of(self, attention: Tensor) -> _Parts | None:
        """Cut attention into groups at once: the gradient of each slice would be as long as all of them together."""
        if sum(self._sizes) != len(attention):
            return None
        ends = [0, *itertools.accumulate(self._sizes)]
        return dict(zip(itertools.pairwise(ends), torch.split(attention, list(self._sizes)), strict=True))

    def require_forward(self) -> None:
        """Raise if there is no active task because the backbone is being recomputed for a backward pass.

        Raises:
            InputError: it is; the recomputed values would be others than those of the forward pass.
        """
        if torch._C._current_graph_task_id() != -1:
            raise InputError(
                "a part of the backbone is recomputed in the backward pass, where its task is not known: checkpoint "
                "the network as a whole instead, torch.utils.checkpoint.checkpoint(net, x, task, use_reentrant=False)"
            )

    def go_back_to(self, outer: _Outer) -> None:
        """Use the attention and norms that were active before; with none, the backbone runs as without gates."""
        state = self._own.state
        state.soft, state.attention, state.cleared, state.parts, state.latest, state.norms, state.blocks = outer
        state.left = None


class InputGate(nn.Module):
    """Gate at the input of one reader, applied by a forward pre-hook, after activation, pooling and dropout.

    Args:
        reader: units that the layer reads, and their axis.
        num_units: number of units of the network.
        active: the state shared by all gates of the network.
    """

    units: Tensor

    def __init__(self, reader: Reader, num_units: int, active: ActiveTask) -> None:
        super().__init__()
        self._active = active
        self._argument, self._keyword = reader.argument, reader.keyword
        self._trailing = (1,) * (-reader.axis - 1)
        self.units = reader.units.clone()  # not a buffer, since averaging buffers over models would spoil it
        first, last = int(reader.units[0]), int(reader.units[-1])
        times = int((reader.units == first).sum())
        each = torch.arange(first, last + 1).repeat_interleave(times) if first <= last < num_units else None
        self._times = times if each is not None and torch.equal(reader.units, each) else 0  # 0: in no such order
        self._group = first, last + 1
        self._span = slice(*self._group) if self._times == 1 else None
        self._is_open = bool((reader.units == num_units).all())  # as that of the heads, where they read no unit

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InputGate:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.units = move_along(self.units, fn)
        return self

    def forward(self, value: Any) -> Any:
        """Gate a value whose units lie along the reader's axis; the value itself while no task is active.

        A hard mask clears with ``masked_fill``: a product with zero would keep infinities as "not a number".
        """
        if isinstance(value, PackedSequence):
            return PackedSequence(self(value.data), *value[1:])
        active = self._active
        if self._is_open:
            return value
        if active.cleared is not None:
            return value.masked_fill(self._pick(active.cleared, value), 0.0)
        gates = self._soft(value)
        if gates is not None:
            return active.gated(value, gates)
        active.require_forward()
        return value

    def _soft(self, value: Tensor) -> Tensor | None:
        """Return the gates of a value, of a shape that broadcasts to its own; None where no mask is soft."""
        own, attention = self._own_part(), self._active.attention
        if own is not None:
            return own.view(-1, *self._trailing).to(value.dtype)
        return None if attention is None else self._pick(attention, value).to(value.dtype)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gate one of the layer's arguments, or leave that to the layer: the forward pre-hook."""
        return change_argument(args, kwargs, self._argument, self._keyword, lambda value: self._for(module, value))

    def _for(self, module: nn.Module, value: Any) -> Any:
        """Return what a layer is to be given for a value."""
        folding = None if self._is_open or self._argument else FoldsGates.of(module)
        if folding is None:
            return self(value)
        block = folding.block_for(module, value)
        if block is not None and block.stands_for(len(self.units), -1 - len(self._trailing)):
            self._active.leave(module, block)
            return value
        if (
            self._active.cleared is None
            and folding.folds(module, value)
            and is_called_with_hooks_of(module, InputGate)  # others are to see gated inputs, and may call the network
        ):
            gates = self._soft(value)
            if gates is not None and folding.takes(module, gates):
                self._active.leave(module, gates)
                return value
        return self(value)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Gate the layer's result: the forward hook."""
        return self(output)

    def _own_part(self) -> Tensor | None:
        """Return the attention of the group that the layer reads, each as often as it reads it; None for other units.

        Several numbers for a unit, as behind ``flatten``, are picked one by one on a CPU, so that their gradients are
        added up in the order in which they always were. A GPU would sort indices for that, kernel by kernel.
        """
        part = self._active.part(*self._group) if self._times else None
        if part is None or self._times == 1:
            return part
        return None if part.device.type == "cpu" else part.unsqueeze(1).expand(-1, self._times).reshape(-1)

    def _pick(self, per_unit: Tensor, value: Tensor) -> Tensor:
        picked = per_unit[..., self._span] if self._span is not None else per_unit.index_select(-1, self.units)
        if per_unit.dim() == 1:
            return picked.view(-1, *self._trailing)
        between = value.dim() - 2 - len(self._trailing)
        if between < 0 or len(value) != len(picked):
            raise ValueError("the first axis of what a layer reads does not count samples")
        return picked.view(len(picked), *(1,) * between, -1, *self._trailing)
