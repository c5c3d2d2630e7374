"""Rules of element-wise operations: those of one value pass its labels on, those of several couple units that meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.units.coupling import UNGATED, first_axis, is_uniform, touches_units
from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Trace

__all__ = ["CONSTANTS", "COPIES", "binary", "constant", "gated_linear_unit", "prelu", "unary"]

# What these make of a zero does not matter: units are gated where they are read, after the activation.
_ACTIVATIONS = functions(
    """
    relu relu_ relu6 elu elu_ selu selu_ celu celu_ gelu silu mish sigmoid sigmoid_ tanh tanh_ softplus softsign
    hardtanh hardtanh_ hardsigmoid hardswish leaky_relu leaky_relu_ logsigmoid tanhshrink softshrink hardshrink
    threshold threshold_ rrelu rrelu_ exp exp_ exp2 expm1 expit log log_ log1p log2 log10 logit sqrt sqrt_ rsqrt rsqrt_
    abs abs_ absolute absolute_ __abs__ neg neg_ negative negative_ __neg__ positive __pos__ square square_
    sin sin_ cos cos_ tan asin acos atan sinh cosh asinh acosh atanh arcsin arccos arctan arcsinh arccosh arctanh
    erf erfc sign sgn reciprocal reciprocal_ round floor ceil trunc fix nan_to_num isnan isinf isfinite
    logical_not __invert__
    """
)
_DROPOUTS = functions("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout")
COPIES = functions("clone contiguous detach data to float half bfloat16 double type type_as")
"""Functions that copy or convert a value."""

_ARITHMETIC = functions(
    """
    add add_ __add__ __iadd__ __radd__ sub sub_ subtract subtract_ rsub __sub__ __isub__ __rsub__
    mul mul_ multiply multiply_ __mul__ __imul__ __rmul__ div div_ divide divide_ true_divide true_divide_
    __truediv__ __itruediv__ __rtruediv__ pow pow_ __pow__ __rpow__ __ipow__ float_power
    maximum minimum fmax fmin clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ clip clip_
    hypot atan2 arctan2 lerp lerp_ addcmul addcmul_ addcdiv addcdiv_ where masked_fill masked_fill_ logaddexp
    gt ge lt le eq ne __gt__ __ge__ __lt__ __le__ __eq__ __ne__ greater greater_equal less less_equal not_equal
    logical_and logical_or logical_xor __and__ __or__ __xor__
    """
)
CONSTANTS = functions(
    "zeros_like ones_like full_like rand_like randn_like empty_like new_zeros new_ones new_full new_empty"
)
"""Functions that use nothing of a value but its shape."""


@rule(*_ACTIVATIONS, *_DROPOUTS, *COPIES)
def unary(trace: Trace, call: Call) -> Tensor:
    """Keep the unit of every position, as activations, dropout and copies do."""
    return trace.labels(call.argument(0, "input"))


@rule(*CONSTANTS)
def constant(trace: Trace, call: Call) -> Tensor:
    """Label new values of another value's shape: they belong to no unit."""
    return torch.full(call.output.shape, UNGATED)


@rule(torch.Tensor.new_tensor)
def copy_of(trace: Trace, call: Call) -> Tensor:
    """Label a copy of Python data or of a value; only the latter may belong to units."""
    given = call.argument(1, "data")
    return trace.labels(given) if isinstance(given, Tensor) else torch.full(call.output.shape, UNGATED)


@rule(*_ARITHMETIC)
def binary(trace: Trace, call: Call) -> Tensor:
    """Couple units that meet in arithmetic of several values, as in a skip connection."""
    values = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    shape = call.output.shape
    labels = torch.zeros((), dtype=torch.int64)
    for value in values:
        own = trace.labels(value)
        others = [v for v in values if v is not value and id(v) not in trace.buffers]
        if isinstance(value, nn.Parameter) and others and not any(trace.is_gated(v) for v in others):
            trace.coupling.pin(own)  # it meets the input alone, which no task gates
            own = trace.labels(value)
        if _is_broadcast(trace, own, labels, shape):
            trace.coupling.pin(own)
        elif _is_broadcast(trace, labels, own, shape):
            trace.coupling.pin(labels)
            labels = own.expand(shape)
        else:
            labels = trace.coupling.couple(labels, own)
    return labels.expand(shape)


@rule(F.glu)
def gated_linear_unit(trace: Trace, call: Call) -> Tensor:
    """Couple one half of the units with the other, whose sigmoid it is multiplied by."""
    axis = call.argument(1, "dim")
    value, gate = trace.labels(call.argument(0, "input")).chunk(2, -1 if axis is None else axis)
    return trace.coupling.couple(value, gate)


def _is_broadcast(trace: Trace, one: Tensor, other: Tensor, shape: torch.Size) -> bool:
    """Return whether a unit of one value is broadcast over several units of a layer in the other.

    Coupling would merge all of these into one; the unit that is broadcast is made always-on instead.
    """
    if not touches_units(one):
        return False
    alike = is_uniform(one)  # such as what was broadcast before, by expand
    widths = (1,) * (len(shape) - one.dim()) + tuple(one.shape)
    full = other.expand(shape)
    for axis, width in enumerate(widths):
        if (width == 1 or alike) and shape[axis] > 1 and trace.coupling.is_across(full, axis):
            return True
    return False


@rule(nn.PReLU)
def prelu(trace: Trace, call: Call) -> Tensor:
    """Use the learned slopes: one per unit, or one for all of them."""
    value, module = call.argument(0, "input"), call.target
    labels = trace.labels(value)
    if module.num_parameters == 1:
        trace.use_of(call, "weight", torch.full((1,), UNGATED))
        return labels
    units = trace.coupling.along(labels, 1)
    trace.pass_on(call, units)
    trace.use_of(call, "weight", units)
    return first_axis(units, value.dim() - 1).expand(labels.shape)
