"""Rules of recurrent layers, whose hidden units are units: rows of all gates, and columns of what reads the state.

No gate reaches between the time steps of a fused kernel. A task computes with weights in which the entries of units
that are off are cleared instead, see :class:`hatrack.gating.recurrent.RecurrentSwitch`. The entries that are left are
those whose ends it uses, so that the uses recorded here say all that the switch needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hatrack.units.coupling import UNGATED
from hatrack.units.rules.probing import joined
from hatrack.units.rules.registry import rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["cell", "pack", "recurrent", "unpack"]

_FACTORS = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
"""Number of rows of a weight for each hidden unit."""


@rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(trace: Trace, call: Call) -> Labels:
    """Read the input, and write the hidden units of every layer and direction; a projection writes units of its own."""
    module = call.target
    given = call.argument(0, "input")
    inputs = trace.read(call, given.data if isinstance(given, PackedSequence) else given, -1)
    hidden, memory = _states(trace, call)
    directions = ("", "_reverse") if module.bidirectional else ("",)
    states: list[Tensor] = []
    cells: list[Tensor] = []
    for layer in range(module.num_layers):
        outputs = []
        for suffix in directions:
            own = f"l{layer}{suffix}"
            units = _open(trace, call, f"weight_hh_{own}", module.hidden_size)
            units = _met(trace, units, memory, len(cells))
            outs = _open(trace, call, f"weight_hr_{own}", module.proj_size) if module.proj_size else units
            outs = _met(trace, outs, hidden, len(states))
            _use(trace, call, own, units, inputs, outs)
            if module.proj_size:
                trace.use_of(call, f"weight_hr_{own}", outs.view(-1, 1), units.view(1, -1))
            states.append(outs)
            cells.append(units)
            outputs.append(outs)
        inputs = torch.cat(outputs)
    sequence, last = call.output
    labels: Labels
    if isinstance(sequence, PackedSequence):
        settings = (torch.full(each.shape, UNGATED) if isinstance(each, Tensor) else () for each in sequence[1:])
        labels = (inputs.expand(sequence.data.shape), *settings)
    else:
        labels = inputs.expand(sequence.shape)
    if isinstance(last, tuple):
        return labels, (_stacked(states, last[0]), _stacked(cells, last[1]))
    return labels, _stacked(states, last)


@rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(trace: Trace, call: Call) -> Labels:
    """Read the input of one time step, and write the hidden units, which are those of the state that is given."""
    inputs = trace.read(call, call.argument(0, "input"), -1)
    units = _open(trace, call, "weight_hh", call.target.hidden_size)
    for state in _states(trace, call):
        if state is not None:
            units = joined(trace, units, trace.coupling.along(state, -1))
    _use(trace, call, "", units, inputs, units)
    if isinstance(call.output, tuple):
        return tuple(units.expand(each.shape) for each in call.output)
    return units.expand(call.output.shape)


@rule(torch._pack_padded_sequence)
def pack(trace: Trace, call: Call) -> Labels:
    """Pack the labels as the values are packed; the lengths are constants."""
    labels = trace.labels(call.args[0]).double()  # which hold labels exactly, and are packed as values are
    data, sizes = torch._pack_padded_sequence(labels, *call.args[1:], **call.kwargs)
    return data.long(), torch.full(sizes.shape, UNGATED)


@rule(torch._pad_packed_sequence)
def unpack(trace: Trace, call: Call) -> Labels:
    """Pad the labels as the values are padded: padding belongs to no unit."""
    data, sizes, batch_first, _, length = call.args
    labels, lengths = torch._pad_packed_sequence(trace.labels(data).double(), sizes, batch_first, 0.0, length)
    return labels.long(), torch.full(lengths.shape, UNGATED)


def _open(trace: Trace, call: Call, name: str, count: int) -> Tensor:
    """Return the units that a weight of the layer writes."""
    if not isinstance(getattr(call.target, name), nn.Parameter):
        raise trace.refuse(call, "it computes its weights from others, so that they cannot be cleared")
    return trace.write(replace(call, name=f"{call.name}.{name}".lstrip(".")), count)


def _states(trace: Trace, call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Return the labels of the initial hidden state and of the initial cells; the same for layers without cells."""
    given: Any = call.argument(1, "hx")
    if given is None:
        return None, None
    labels = []
    for value in given if isinstance(given, (tuple, list)) else (given,):
        if isinstance(value, nn.Parameter) and id(value) in trace.parameters:
            trace.open_parameter(trace.parameters[id(value)], value)
        labels.append(trace.labels(value))
    return labels[0], labels[-1]


def _met(trace: Trace, units: Tensor, state: Tensor | None, index: int) -> Tensor:
    """Couple units of a layer with those of its initial state, ``(layers, ..., units)``."""
    if state is None or state.shape[-1] != len(units):  # the state of a projection has another width than the cells
        return units
    return joined(trace, units, trace.coupling.along(state[index], -1))


def _use(trace: Trace, call: Call, own: str, units: Tensor, inputs: Tensor, outs: Tensor) -> None:
    """Record the ends of the weights and biases of one layer and direction."""
    rows = units.repeat(_FACTORS[next(kind for kind in _FACTORS if isinstance(call.target, kind))])
    ending = f"_{own}" if own else ""
    trace.use_of(call, f"weight_ih{ending}", rows.view(-1, 1), inputs.view(1, -1))
    trace.use_of(call, f"weight_hh{ending}", rows.view(-1, 1), outs.view(1, -1))
    if call.target.bias:
        trace.use_of(call, f"bias_ih{ending}", rows)
        trace.use_of(call, f"bias_hh{ending}", rows)


def _stacked(units: list[Tensor], state: Tensor) -> Tensor:
    """Return the labels of the last states of all layers and directions."""
    rows = torch.stack(units)
    return rows.view(len(units), *(1,) * (state.dim() - 2), -1).expand(state.shape)
