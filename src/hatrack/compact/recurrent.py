"""Cutting of unused hidden units out of recurrent layers, whose layers and directions all keep the same number."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from hatrack.gating.recurrent import is_recurrent
from hatrack.units import UnitGraph

__all__ = ["cut_recurrent", "in_one_chunk", "with_equal_widths"]


def with_equal_widths(keep: Tensor, backbone: nn.Module, graph: UnitGraph, prefix: str) -> Tensor:
    """Keep further units, so that all layers and directions of a recurrent layer are left with the same number.

    Args:
        keep: the units that stay, booleans ``(U + 1,)``.
        backbone: the network.
        graph: its units.
        prefix: what comes before the names of its parameters.

    Returns:
        The units that stay then.
    """
    keep = keep.clone()
    changed = True
    while changed:  # a unit that is added may belong to another recurrent layer as well
        changed = False
        for name, module in backbone.named_modules():
            own = f"{prefix}{name}."
            for widths in _widths(module, graph, own) if is_recurrent(module, graph.uses, own) else ():
                most = max(int(keep[units].sum()) for units in widths)
                for units in widths:
                    while int(keep[units].sum()) < most:
                        keep[units[~keep[units]][0]] = True
                        changed = True
    return keep


def cut_recurrent(module: nn.Module, graph: UnitGraph, prefix: str, keep: Tensor, on: Tensor) -> str | None:
    """Cut hidden units and inputs out of a recurrent layer in place, and clear what stays though it is off.

    Args:
        module: the layer.
        graph: the units of the network.
        prefix: what comes before the layer's own names of its parameters.
        keep: the units that stay, booleans ``(U + 1,)``.
        on: the units that the task uses, likewise.

    Returns:
        The reason why the layer cannot be cut; None if it is.
    """
    sizes = [{int(keep[units].sum()) for units in widths} for widths in _widths(module, graph, prefix)]
    if any(len(each) > 1 or 0 in each for each in sizes):
        return "its layers would have different numbers of units"
    for own, parameter in list(module.named_parameters()):
        value = parameter.detach()
        for axis, side in enumerate(graph.uses[prefix + own][0].sides):
            units = side.flatten()
            value = value.index_select(axis, keep[units].nonzero().flatten().to(value.device))
            value.movedim(axis, 0)[~on[units[keep[units]]]] = 0.0
        setattr(module, own, nn.Parameter(value.clone()))
    attributes = vars(module)
    attributes["hidden_size"] = sizes[0].pop()
    if len(sizes) > 1:
        attributes["proj_size"] = sizes[1].pop()
    first = next(own for own, _ in module.named_parameters() if own.startswith("weight_ih"))
    attributes["input_size"] = module.get_parameter(first).shape[1]
    return None


def in_one_chunk(network: nn.Module) -> None:
    """Lay the weights of each recurrent layer of a copied network side by side in memory.

    On a GPU cuDNN reads them so. Copies of weights lie apart, and torch would put them together at every call, with a
    warning. Elsewhere nothing is done, and no value changes anywhere.
    """
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def _widths(module: nn.Module, graph: UnitGraph, prefix: str) -> Iterator[list[Tensor]]:
    """Yield the units of each layer and direction: those of the cells, then of projections if there are any."""
    sides = {own: graph.uses[prefix + own][0].sides for own, _ in module.named_parameters() if "weight_hh" in own}
    size = module.hidden_size
    assert isinstance(size, int)
    yield [each[0].flatten()[:size] for each in sides.values()]
    if getattr(module, "proj_size", 0):
        yield [each[1].flatten() for each in sides.values()]
