"""Rules of operations that only move values: the same operation, applied to the labels, tells where units went."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.support.inputs import map_tensors
from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["CHOOSING", "RESHAPES", "pad", "reshape"]

_VIEWS = functions("view")
_MOVED = ("input", "tensors", "tensor")
"""Names of the argument that is moved; the others only say where to."""

_RESHAPES = functions(
    """
    flatten unflatten ravel reshape reshape_as view_as squeeze unsqueeze permute transpose movedim moveaxis swapaxes
    swapdims t T mT H mH adjoint expand expand_as broadcast_to narrow select index_select __getitem__
    chunk split tensor_split hsplit vsplit dsplit unbind cat concat concatenate stack hstack vstack dstack column_stack
    row_stack roll flip fliplr flipud repeat repeat_interleave tile pixel_shuffle pixel_unshuffle channel_shuffle
    """
)

CHOOSING = frozenset(
    functions(
        """
        __getitem__ __setitem__ index_select gather take_along_dim take put put_ index_put index_put_ index_add
        index_add_ index_copy index_copy_ index_fill index_fill_ scatter scatter_ scatter_add scatter_add_
        scatter_reduce scatter_reduce_ repeat_interleave embedding embedding_bag
        """
    )
)
"""Functions with integers that say which entries go where: they are choices for all units, so all tasks use them."""

RESHAPES = frozenset([*_RESHAPES, *_VIEWS])
"""Functions that only move values."""


@rule(*_RESHAPES, *_VIEWS)
def reshape(trace: Trace, call: Call) -> Labels:
    """Apply the operation to the labels: flatten, permute, concatenate, split, index and the like."""
    # Labels need not lie in memory as the values do, which is all that separates `view` from `reshape`.
    function = torch.Tensor.reshape if call.target in _VIEWS else call.target

    if call.target in _VIEWS and isinstance(call.argument(1, "dtype"), torch.dtype):
        return _bits(trace, call)
    moved, *settings = call.args or (None,)
    named = {key: value for key, value in call.kwargs.items() if key not in _MOVED}
    settings, named = (map_tensors(lambda each: each.cpu(), own) for own in (settings, named))  # where labels are

    args = (_labelled(trace, moved), *settings) if call.args else ()
    kwargs = {key: named[key] if key in named else _labelled(trace, value) for key, value in call.kwargs.items()}
    labels: Any = function(*args, **kwargs)
    return tuple(labels) if isinstance(labels, (tuple, list)) else labels


def _labelled(trace: Trace, value: Any) -> Any:
    """Return an argument with labels in the place of tensors."""
    if isinstance(value, (tuple, list)):
        return type(value)(_labelled(trace, each) for each in value)
    return trace.labels(value) if isinstance(value, Tensor) else value


def _bits(trace: Trace, call: Call) -> Tensor:
    """Label bits that are read as another type of numbers; each number must stay one number."""
    value = call.args[0]
    if call.output.shape != value.shape or call.output.element_size() != value.element_size():
        raise trace.refuse(call, "it takes several numbers for one, or parts of numbers, so units cannot be told")
    return trace.labels(value)


@rule(F.pad)
def pad(trace: Trace, call: Call) -> Tensor:
    """Label padding: a constant margin belongs to no unit, any other to the unit whose values are repeated there."""
    exact = trace.labels(call.argument(0, "input")).double()  # integers have no reflection; these hold labels exactly
    return F.pad(exact, call.argument(1, "pad"), mode=call.argument(2, "mode") or "constant").long()
