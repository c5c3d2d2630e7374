"""Rules by hand, for modules and functions that hatrack does not understand by itself.

Nothing inside is looked at, so all its parameters are frozen with the first consolidated task. That is exact, at a
price: later tasks use the layer as it is, and cannot train it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hatrack.support.inputs import tensors_in
from hatrack.support.untrained import is_untrained_norm
from hatrack.units.coupling import UNGATED, first_axis
from hatrack.units.sources import arguments_of
from hatrack.units.trace import Call, Labels, Rule, Trace

__all__ = ["shared_layer", "unit_by_unit"]


def shared_layer(*, reads: int = -1, writes: int = -1) -> Rule:
    """Make a rule for a module that reads the units of its inputs and writes units of its own, such as an LSTM.

    Its inputs are gated; the units that it returns are gated where they are read in turn.

    Args:
        reads: the axis of every input that counts units, negative.
        writes: the axis of every result that counts units, negative.

    Example:
        >>> from hatrack import HATNetwork, units
        >>> class Sequences(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.memory, self.out = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 6)
        ...     def forward(self, x):
        ...         return torch.relu(self.out(self.memory(x)[0][:, -1]))
        >>> net = HATNetwork(Sequences(), torch.zeros(1, 5, 4), rules={"memory": units.shared_layer()})
        >>> [group.name for group in net.units.groups]
        ['memory', 'out']
    """

    def explain(trace: Trace, call: Call) -> Labels:
        module = call.target
        if not isinstance(module, nn.Module):
            raise trace.refuse(call, "only the inputs of a module can be gated; call the function from a module")
        _freeze_wholly(trace, call)
        for position, name, value in arguments_of(module, call.args, call.kwargs):
            _read(trace, call, value, reads, position, name)
        widths = {value.shape[writes] for value in _floats(call.output)}
        if len(widths) != 1:
            raise trace.refuse(call, f"its results have {sorted(widths)} units along axis {writes}, not one number")
        outputs = trace.write(call, widths.pop())
        return _labels_like(call.output, outputs, writes)

    return explain


def unit_by_unit() -> Rule:
    """Make a rule for a module or function that treats every unit by itself.

    Its result must have the shape of its first input, and no other input may have units.
    """

    def explain(trace: Trace, call: Call) -> Tensor:
        values = list(_floats((call.args, call.kwargs)))
        if not values or not isinstance(call.output, Tensor) or call.output.shape != values[0].shape:
            raise trace.refuse(call, "its result does not have the shape of its first input, so units cannot be told")
        if any(trace.is_gated(other) for other in values[1:]):
            raise trace.refuse(call, "units meet in it; unit_by_unit is for what has a single gated input")
        if isinstance(call.target, nn.Module):
            _freeze_wholly(trace, call)
        return trace.labels(values[0])

    return explain


def _freeze_wholly(trace: Trace, call: Call) -> None:
    for name, module in call.target.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats and not is_untrained_norm(module):
            raise trace.refuse(
                call, f"the statistics of {name!r} inside it would move; give it no rule, or other norms"
            )
    for parameter in call.target.parameters():
        trace.use(parameter, torch.tensor(UNGATED))


def _read(trace: Trace, call: Call, value: Any, axis: int, position: int, name: str) -> None:
    if isinstance(value, Tensor) and value.is_floating_point():
        trace.read(call, value, axis, argument=position, keyword=name)
    elif any(trace.is_gated(inner) for inner in _floats(value)):
        raise trace.refuse(call, f"units come in inside a {type(value).__name__}, where no gate reaches them")


def _floats(tree: Any) -> Iterator[Tensor]:
    return (tensor for tensor in tensors_in(tree) if tensor.is_floating_point())


def _labels_like(output: Any, units: Tensor, axis: int) -> Labels:
    if isinstance(output, (tuple, list)):
        return tuple(_labels_like(each, units, axis) for each in output)
    if isinstance(output, Tensor) and output.is_floating_point():
        return first_axis(units, -axis).expand(output.shape)
    shape = output.shape if isinstance(output, Tensor) else ()
    return torch.full(shape, UNGATED)
