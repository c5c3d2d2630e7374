"""Names of the functions that torch can intercept, and of their arguments."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch.overrides import resolve_name

from hatrack.support.names import words

__all__ = ["FACTS", "QUESTIONS", "FunctionNames", "function_name", "named_as_in_torch"]

FACTS = words(
    """
    size dim shape dtype device ndim numel nelement stride layout names itemsize element_size get_device output_nr
    __len__ is_cuda is_cpu is_mps is_xpu is_leaf is_contiguous is_floating_point is_complex is_signed is_sparse
    is_sparse_csr is_quantized is_meta is_nested is_inference _is_view _version requires_grad requires_grad_ grad _grad
    grad_fn _grad_fn retain_grad retains_grad register_hook register_post_accumulate_grad_hook _backward_hooks
    _post_accumulate_grad_hooks
    """
)
"""Names of functions that ask about a tensor and not about its values; they say nothing about units."""

QUESTIONS = FACTS - words("requires_grad_ grad _grad")
"""Names of those whose answer is no tensor."""


def function_name(function: Any) -> str:
    """Return the name of a function that torch can intercept."""
    name: str = resolve_name(function) or getattr(function, "__name__", repr(function))
    return name.removesuffix(".__get__")


class FunctionNames:
    """Names of the functions that a run calls, found once each: torch takes longer for that than for many a result."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[str, str]] = {}

    def of(self, function: Any) -> tuple[str, str]:
        """Return the full name of a function, as from :func:`function_name`, and its last part."""
        try:
            known = self._known.get(function)
        except TypeError:  # not hashable
            return _both(function)
        if known is None:
            known = self._known[function] = _both(function)
        return known


def _both(function: Any) -> tuple[str, str]:
    name = function_name(function)
    return name, name.rpartition(".")[2]


_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}
"""NumPy's names of arguments, which torch accepts in place of its own."""


def named_as_in_torch(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Rename arguments as rules expect them, and drop ``out=``, which is the result and no operand."""
    if isinstance(function, FunctionType):  # written in Python: its names are its own
        return kwargs
    return {_NUMPY.get(name, name): value for name, value in kwargs.items() if name != "out"}
