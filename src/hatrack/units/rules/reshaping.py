"""Operations that only move values about: the same operation, done to the labels, says where the units went."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["RESHAPES", "pad", "reshape"]

_VIEWS = functions("view")
_MOVED = ("input", "tensors", "tensor")
"""Names of the argument that is moved; the others only say where to."""

_RESHAPES = functions(
    *("flatten", "reshape", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "swapaxes"),
    *("swapdims", "t", "mT", "expand", "narrow", "select", "chunk", "split", "unbind", "cat", "concat", "stack"),
    *("hstack", "vstack", "dstack", "column_stack", "row_stack", "concatenate", "moveaxis", "ravel", "broadcast_to"),
    *("hsplit", "vsplit", "dsplit", "fliplr", "flipud", "adjoint", "H", "mH"),
    *("roll", "flip", "repeat", "repeat_interleave", "tile", "index_select", "__getitem__", "pixel_shuffle"),
    *("pixel_unshuffle", "channel_shuffle", "expand_as", "view_as", "reshape_as", "tensor_split", "T", "mT"),
)


RESHAPES = frozenset([*_RESHAPES, *_VIEWS])
"""Functions that only move values about."""


@rule(*_RESHAPES, *_VIEWS)
def reshape(trace: Trace, call: Call) -> Labels:
    """Flatten, permute, concatenate, split, index and their kin."""
    # Labels need not lie in memory as the values do, which is all that separates `view` from `reshape`.
    function = torch.Tensor.reshape if call.target in _VIEWS else call.target

    if call.target in _VIEWS and isinstance(call.argument(1, "dtype"), torch.dtype):
        return _bits(trace, call)
    moved, *settings = call.args or (None,)
    named = {key: value for key, value in call.kwargs.items() if key not in _MOVED}
    for value in (*settings, *named.values()):
        picks = value if isinstance(value, tuple) else (value,)
        if any(isinstance(p, Tensor) and not p.is_floating_point() and trace.is_gated(p) for p in picks):
            raise trace.refuse(call, "what one value picks of another would depend on units in a way that no gate sees")

    def labelled(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(labelled(each) for each in value)
        return trace.labels(value) if isinstance(value, Tensor) else value

    args = (labelled(moved), *settings) if call.args else ()
    kwargs = {key: value if key in named else labelled(value) for key, value in call.kwargs.items()}
    labels: Any = function(*args, **kwargs)
    return tuple(labels) if isinstance(labels, (tuple, list)) else labels


def _bits(trace: Trace, call: Call) -> Tensor:
    """The same bits taken for another type of numbers, which stay with their unit if each number stays one."""
    value = call.args[0]
    if call.output.shape != value.shape or call.output.element_size() != value.element_size():
        raise trace.refuse(call, "it takes several numbers for one, or parts of numbers, so units cannot be told")
    return trace.labels(value)


@rule(F.pad)
def pad(trace: Trace, call: Call) -> Tensor:
    """Padding: with a constant the margin belongs to no unit, else to the unit whose values are repeated there."""
    exact = trace.labels(call.argument(0, "input")).double()  # integers have no reflection; these hold labels exactly
    return F.pad(exact, call.argument(1, "pad"), mode=call.argument(2, "mode") or "constant").long()
