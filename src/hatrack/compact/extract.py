"""Extraction of a task: all groups are cut at once if that is exact, else halves of them; others stay whole.

A cut is checked by running the smaller network beside the gated one. Code of the user's own with a width written down
no longer fits when units are missing; the group in question then stays whole, with zeros for units that are off.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import CellType, FunctionType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hatrack.compact.cutting import PREFIX, Cut, UnfitError, cut_backbone, unflattens, with_norms
from hatrack.compact.modules import CompactNetwork, OwnHead, Summary, whole_head
from hatrack.compact.recurrent import in_one_chunk, with_equal_widths
from hatrack.errors import DOES_NOT_RUN, UnsupportedError
from hatrack.state.tryouts import agree, deviation, says_something
from hatrack.support.inputs import Inputs, device_of, tensor_of
from hatrack.support.interface import PLAIN, Interface
from hatrack.units import UnitGraph

__all__ = ["SILENT", "TOLERANCE", "TaskParts", "cut_task", "extract_task", "summarize"]

TOLERANCE = 1e-5
"""Tolerance of a logit, relative to the gated network's and to the largest logit, in float32 and float64."""

SILENT = "no samples were found whose outputs would tell a wrong cut from a right one"
"""Reason for cutting nothing where all outputs are equal, or not finite."""

_MOST_WAYS = 16
"""Largest number of choices for the sizes in ``nn.Unflatten`` that are tried."""

_OTHER_CAUSES = re.compile(
    r"same device|device type|is on (the )?(cpu|cuda|xpu|mps|meta)\b|(cuda|hip|accelerator|cudnn|cublas)\w* error"
    r"|out of memory|allocate memory|dtype|scalar type|result type|bias type|weight type"
    r"|not implemented for '|used as indices must be",
    re.IGNORECASE,
)
"""Parts of torch's messages about devices, types of numbers and memory."""


@dataclass(frozen=True)
class TaskParts:
    """Parts from which a task's network is made.

    Attributes:
        name: the task's name.
        backbone: the backbone without gates; it is left as it is.
        norms: the task's norms by the names of the layers they stand for.
        graph: the units.
        mask: units that the task uses, booleans ``(U,)``.
        head: its head.
        tried: batches to compare on, at least one, each with the gated network's logits in evaluation mode, as one
            tensor.
        interface: how the backbone is called, and what of its result are its features.
        is_own: whether the head is the user's own, and not a linear layer along the features' axis of units.
    """

    name: str
    backbone: nn.Module
    norms: Mapping[str, nn.Module]
    graph: UnitGraph
    mask: Tensor
    head: nn.Module
    tried: Sequence[tuple[Inputs, Tensor]]
    interface: Interface = PLAIN
    is_own: bool = False

    @cached_property
    def on(self) -> Tensor:
        """Units that the task uses, booleans ``(U + 1,)``; the last stands for "ungated"."""
        return torch.cat([self.mask, self.mask.new_ones(1)]).cpu()

    @property
    def device(self) -> torch.device:
        """Device of the task's network."""
        return device_of(self.tried[0][0])


@torch.no_grad()
def extract_task(source: TaskParts) -> CompactNetwork:
    """Make a task's own network, with a summary of its size.

    Raises:
        UnsupportedError: not even the whole backbone without gates gives the gated network's logits.
        RuntimeError: memory did not suffice, or torch refuses a device or a type of numbers; the error is torch's own.
    """
    best, whole = cut_task(source)
    on, graph = source.on, source.graph
    units = {g.name: int((on[g.span] if g.name not in whole else on[g.span] | True).sum()) for g in graph.groups}
    best.summary = summarize(source.name, best, _full(source), *source.tried[0], units, graph, whole, source.interface)
    return best


@torch.no_grad()
def cut_task(source: TaskParts) -> tuple[CompactNetwork, dict[str, str]]:
    """Make a task's own network, with the reason by group why it could not be cut.

    Raises:
        UnsupportedError: not even the whole backbone without gates gives the gated network's logits.
    """
    name, on, graph = source.name, source.on, source.graph
    groups = [group.name for group in graph.groups if not on[group.span].all()]
    whole: dict[str, str] = {}
    if not any(says_something(logits) for _, logits in source.tried):  # any cut would seem to agree
        whole = dict.fromkeys(groups, SILENT)
        groups = []
    best = _attempt(source, groups)
    if isinstance(best, str) and not groups:
        raise UnsupportedError(f"{name!r} cannot be extracted: {best}")
    if isinstance(best, str):
        uncut = _attempt(source, [])
        if isinstance(uncut, str):
            raise UnsupportedError(f"{name!r} cannot be extracted, not even with all units: {uncut}")
        why, few = best, _few(source, uncut)
        best, whole = _cut_what_can_be(few, groups, why, uncut)
        checked = _attempt(source, [group for group in groups if group not in whole]) if few is not source else best
        if isinstance(checked, str):
            best, whole = _cut_what_can_be(source, groups, why, uncut)
        else:
            best = checked
    return best, whole


def _few(source: TaskParts, uncut: CompactNetwork) -> TaskParts:
    """Keep two samples of each batch, which is faster; return all where two are not answered like many."""
    tried = [(source.interface.take(x, slice(2)), logits[:2]) for x, logits in source.tried]
    try:
        alike = all(_agrees(tensor_of(uncut(x)), logits) for x, logits in tried)
    except DOES_NOT_RUN:
        alike = False
    return replace(source, tried=tried) if alike and any(says_something(logits) for _, logits in tried) else source


def _cut_what_can_be(
    source: TaskParts, groups: Sequence[str], why: str, uncut: CompactNetwork
) -> tuple[CompactNetwork, dict[str, str]]:
    """Cut halves of groups, and halves of halves that cannot be cut, with groups of one kind beside each other.

    Blocks that are alike mostly fail alike, so that few attempts are needed.

    Args:
        source: the parts of the task's network.
        groups: names of groups that cannot all be cut.
        why: the reason.
        uncut: the network with all units.

    Returns:
        The network without unused units of as many groups as possible, and by group why others stay whole.
    """
    best, cut, whole = uncut, list[str](), dict[str, str]()
    pending: list[tuple[Sequence[str], str, Sequence[str]]]  # groups, why they failed with others, and which these were
    pending = [(sorted(groups, key=lambda group: re.sub(r"\d+", "", group)), why, ())]
    while pending:
        those, reason, others = pending.pop()
        if not set(others) <= set(cut):  # with all of them they have failed already
            trial = _attempt(source, [*cut, *those])
            if not isinstance(trial, str):
                best = trial
                cut.extend(those)
                continue
            reason = trial
        if len(those) == 1:
            whole[those[0]] = reason
        else:
            first, second = those[: len(those) // 2], those[len(those) // 2 :]
            pending += [(second, reason, first), (first, reason, second)]
    return best, {group: whole[group] for group in groups if group in whole}


@torch.no_grad()
def summarize(
    name: str,
    network: CompactNetwork,
    full: nn.Module,
    x: Inputs,
    expected: Tensor,
    units: Mapping[str, int],
    graph: UnitGraph | None,
    whole: Mapping[str, str],
    interface: Interface = PLAIN,
) -> Summary:
    """Summarize a network: its size, and the deviation of its logits.

    Args:
        name: the task's name.
        network: its network.
        full: the whole network with the task's head and norms.
        x: samples to compare on.
        expected: the masked network's logits of them.
        units: number of units that are left, by group.
        graph: the units of the whole network; None if they are not known.
        whole: reason by group why it could not be cut.
        interface: how the backbone is called.
    """
    logits, single = tensor_of(network(x)), interface.take(x, slice(1))
    return Summary(
        name,
        dict(units),
        {} if graph is None else {group.name: group.size for group in graph.groups},
        _parameters(network),
        _parameters(full),
        _flops(network, single),
        _flops(full, single),
        dict(whole),
        deviation(logits, expected),
        sum(int(parameter.count_nonzero()) for parameter in network.parameters()),
        torch.equal(logits, expected),
    )


def _attempt(source: TaskParts, cut: Collection[str]) -> CompactNetwork | str:
    """Make a network without the unused units of some groups, or return why it differs from the gated one."""
    keep = torch.ones_like(source.on)
    for group in source.graph.groups:
        if group.name in cut:
            keep[group.span] = source.on[group.span]
    keep = with_equal_widths(keep, source.backbone, source.graph, PREFIX)
    reason = _why_not_to_size(source.backbone)
    for sizes in _ways(source.backbone, bool(cut)):
        try:
            network = _network(source, Cut(source.graph, source.on, keep, source.device), sizes)
            found = [tensor_of(network(x)) for x, _ in source.tried]
        except UnfitError as error:
            return str(error)
        except DOES_NOT_RUN as error:
            if not _may_be_about_shapes(error):  # devices, dtypes and memory fail in every attempt, whatever is cut
                raise
            said = " ".join(str(error).split())[:120] or type(error).__name__
            why = _why_not_to_size(source.backbone) if cut else "a copy of its backbone does not run without gates"
            reason = f"{why} ({said})"
            continue
        pairs = [(logits, expected) for logits, (_, expected) in zip(found, source.tried, strict=True)]
        if all(_agrees(logits, expected) for logits, expected in pairs):
            return network
        reason = f"logits would differ by {max(deviation(*pair) for pair in pairs):.1e} of the largest"
    return reason


def _may_be_about_shapes(error: BaseException) -> bool:
    """Return whether an error may come from a width; those of devices, types of numbers and memory do not."""
    named = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError")
    return not named and not _OTHER_CAUSES.search(str(error))


def _why_not_to_size(backbone: nn.Module) -> str:
    """Return the likely reason why a backbone does not run with fewer units."""
    for name, module in backbone.named_modules():
        for attribute, value in vars(module).items():
            cells = (value.__closure__ or ()) if isinstance(value, FunctionType) else ()
            if any(isinstance(_content(cell), nn.Module) for cell in cells):
                where = f"{name}.{attribute}".lstrip(".")
                return (
                    f"{where!r} is a function that calls the layers it was made with, also in a copy; make it a method"
                )
    return "its forward has widths written down"


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _network(source: TaskParts, cut: Cut, sizes: tuple[int | None, ...]) -> CompactNetwork:
    backbone = with_norms(copy.deepcopy(source.backbone), source.norms).eval()
    for module, axis in zip(unflattens(backbone), sizes, strict=True):
        if axis is not None:
            whole = [int(size) for size in module.unflattened_size]
            module.unflattened_size = (*whole[:axis], -1, *whole[axis + 1 :])
    cut_backbone(backbone, cut)
    in_one_chunk(backbone)
    network = CompactNetwork(backbone, _cut_head(source, cut), interface=source.interface).eval()
    return network.requires_grad_(False)


def _cut_head(source: TaskParts, cut: Cut) -> nn.Module:
    """Return a task's head for the features that are left."""
    features, axis = cut.graph.features().units, source.interface.unit_axis
    kept, off = cut.kept(features), cut.off(features)
    if source.is_own:
        if len(kept) == len(features) and not off.any():
            return OwnHead(copy.deepcopy(source.head))
        used, sources = cut.on[features].to(cut.device), (~off).nonzero().flatten()
        return OwnHead(copy.deepcopy(source.head), used, sources, axis)
    assert isinstance(source.head, nn.Linear)
    weight = source.head.weight.detach()[:, kept].clone()
    weight[:, off] = 0.0
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    head.weight, head.bias = nn.Parameter(weight), nn.Parameter(source.head.bias.detach().clone())
    return whole_head(head, axis, is_own=False)


def _full(source: TaskParts) -> CompactNetwork:
    """Make the whole network with the task's norms and head, for comparison."""
    everything = torch.ones_like(source.on)
    return _network(
        source, Cut(source.graph, everything, everything, source.device), (None,) * len(unflattens(source.backbone))
    )


def _ways(backbone: nn.Module, cut: bool) -> Iterator[tuple[int | None, ...]]:
    """Yield choices of the size in each ``nn.Unflatten`` that adapts to the units left; no adaptation first."""
    modules = unflattens(backbone)
    yield (None,) * len(modules)
    if cut and modules:
        choices = itertools.product(*(range(len(module.unflattened_size)) for module in modules))
        yield from itertools.islice(choices, _MOST_WAYS)


def _agrees(logits: Tensor, expected: Tensor) -> bool:
    return agree(logits, expected, max(TOLERANCE, 100 * torch.finfo(expected.dtype).eps))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _flops(network: nn.Module, x: Inputs) -> int:
    """Count operations; return 0 where torch's counter fails, or where one sample alone does not run."""
    try:
        with FlopCounterMode(display=False) as counter:
            network(x)
    except DOES_NOT_RUN:
        return 0
    return int(counter.get_total_flops())
