"""Element-wise operations: of one value they pass its labels on, of two they couple what meets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.units.coupling import UNGATED, touches_units
from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Trace

__all__ = ["CONSTANTS", "COPIES", "binary", "constant", "gated_linear_unit", "prelu", "unary"]

# Whatever these do to a zero does not matter: units are gated where they are read, after the activation.
_ACTIVATIONS = functions(
    *("relu", "relu_", "relu6", "elu", "elu_", "selu", "selu_", "celu", "celu_", "gelu", "silu", "mish"),
    *("sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "softsign", "hardtanh", "hardtanh_", "hardsigmoid"),
    *("hardswish", "leaky_relu", "leaky_relu_", "logsigmoid", "tanhshrink", "softshrink", "hardshrink", "threshold"),
    *("threshold_", "rrelu", "rrelu_", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "abs", "neg", "square", "sin"),
    *("cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "exp2", "log2"),
    *("log10", "sign", "reciprocal", "round", "floor", "ceil", "trunc", "nan_to_num", "square_", "__abs__"),
    *("__neg__", "expit", "logit", "isnan", "isfinite", "logical_not", "__invert__", "negative", "absolute", "fix"),
    *("arcsin", "arccos", "arctan", "arcsinh", "arccosh", "arctanh", "positive", "__pos__", "sgn", "isinf"),
    *("abs_", "absolute_", "neg_", "negative_", "exp_", "log_", "sqrt_", "rsqrt_", "sin_", "cos_", "reciprocal_"),
)
_DROPOUTS = functions(
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
)
COPIES = functions(
    "clone", "contiguous", "detach", "data", "to", "float", "half", "bfloat16", "double", "type", "type_as"
)
_ARITHMETIC = functions(
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "true_divide", "maximum", "minimum", "pow"),
    *("__add__", "__iadd__", "__radd__", "__sub__", "__isub__", "__rsub__", "rsub", "__mul__", "__imul__", "__rmul__"),
    *("__truediv__", "__itruediv__", "__rtruediv__", "__pow__", "__rpow__", "clamp", "clamp_min", "clamp_max", "fmax"),
    *(
        "fmin",
        "hypot",
        "atan2",
        "lerp",
        "lerp_",
        "addcmul",
        "addcdiv",
        "where",
        "masked_fill",
        "masked_fill_",
        "logaddexp",
    ),
    *("gt", "ge", "lt", "le", "eq", "ne", "__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__"),
    *("logical_and", "logical_or", "__and__", "__or__", "clip", "multiply", "multiply_", "subtract", "subtract_"),
    *("divide", "divide_", "true_divide_", "arctan2", "float_power", "clamp_", "clip_", "clamp_min_", "clamp_max_"),
    *("greater", "greater_equal", "less", "less_equal", "not_equal", "logical_xor", "__xor__", "pow_", "__ipow__"),
    *("addcmul_", "addcdiv_"),
)
CONSTANTS = functions("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like")
CONSTANTS += functions("new_zeros", "new_ones", "new_full", "new_empty")
"""Functions that take nothing from a value but its shape."""


@rule(*_ACTIVATIONS, *_DROPOUTS, *COPIES)
def unary(trace: Trace, call: Call) -> Tensor:
    """Activations, dropout and copies: every position keeps its unit."""
    return trace.labels(call.argument(0, "input"))


@rule(*CONSTANTS)
def constant(trace: Trace, call: Call) -> Tensor:
    """New values of another's shape belong to no unit."""
    return torch.full(call.output.shape, UNGATED)


@rule(*functions("new_tensor"))
def copy_of(trace: Trace, call: Call) -> Tensor:
    """A copy of what is given, which belongs to no unit unless it is a value."""
    given = call.argument(1, "data")
    return trace.labels(given) if isinstance(given, Tensor) else torch.full(call.output.shape, UNGATED)


@rule(*_ARITHMETIC)
def binary(trace: Trace, call: Call) -> Tensor:
    """Arithmetic of two values: units that meet are coupled, as in a skip connection."""
    values = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    shape = call.output.shape
    labels = torch.zeros((), dtype=torch.int64)
    for value in values:
        own = trace.labels(value)
        others = [v for v in values if v is not value and id(v) not in trace.buffers]
        if isinstance(value, nn.Parameter) and others and not any(trace.is_gated(v) for v in others):
            trace.coupling.pin(own)  # it meets the input alone, which no task gates
            own = trace.labels(value)
        if _spreads(trace, own, labels, shape):
            trace.coupling.pin(own)
        elif _spreads(trace, labels, own, shape):
            trace.coupling.pin(labels)
            labels = own.expand(shape)
        else:
            labels = trace.coupling.couple(labels, own)
    return labels.expand(shape)


@rule(F.glu)
def gated_linear_unit(trace: Trace, call: Call) -> Tensor:
    """One half of the units times the sigmoid of the other."""
    axis = call.argument(1, "dim")
    value, gate = trace.labels(call.argument(0, "input")).chunk(2, -1 if axis is None else axis)
    return trace.coupling.couple(value, gate)


def _spreads(trace: Trace, one: Tensor, other: Tensor, shape: torch.Size) -> bool:
    """Return whether a unit of the one value is broadcast over several units of a layer in the other.

    Coupling would then merge all of these into one; the unit that is spread is made always-on instead.
    """
    widths = (1,) * (len(shape) - one.dim()) + tuple(one.shape)
    full = other.expand(shape)
    for axis, width in enumerate(widths):
        if width == 1 and shape[axis] > 1 and trace.coupling.is_across(full, axis):
            return touches_units(one)
    return False


@rule(nn.PReLU)
def prelu(trace: Trace, call: Call) -> Tensor:
    """A learned slope: one per unit, or one for all of them."""
    value, module = call.argument(0, "input"), call.target
    labels = trace.labels(value)
    if module.num_parameters == 1:
        trace.use_of(call, "weight", torch.full((1,), UNGATED))
        return labels
    units = trace.coupling.along(labels, 1)
    trace.pass_on(call, units)
    trace.use_of(call, "weight", units)
    return units.view(-1, *(1,) * (value.dim() - 2)).expand(labels.shape)
