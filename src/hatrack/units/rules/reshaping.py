"""Operations that only move values about: the same operation, done to the labels, says where the units went."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Labels, Trace

__all__ = ["reshape"]

_VIEWS = functions("view")
_RESHAPES = functions(
    *("flatten", "reshape", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "swapaxes"),
    *("swapdims", "t", "mT", "expand", "narrow", "select"),
)


@rule(*_RESHAPES, *_VIEWS)
def reshape(trace: Trace, call: Call) -> Labels:
    """Flatten, reshape, permute and their kin."""
    # Labels need not lie in memory as the values do, which is all that separates `view` from `reshape`.
    function = torch.Tensor.reshape if call.target in _VIEWS else call.target

    def labelled(value: Any) -> Any:
        return trace.labels(value) if isinstance(value, Tensor) else value

    arguments = [labelled(value) for value in call.args]
    keywords = {name: labelled(value) for name, value in call.kwargs.items()}
    labels: Tensor = function(*arguments, **keywords)
    return labels
