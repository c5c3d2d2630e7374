"""Gates of Eq. 1 and their compensated gradient, each as a single kernel of a GPU.

There, small operations cost what it takes to launch them, and a gate with its gradient is some twenty of these. Torch's
jiterator compiles a kernel when it is first called, by the compiler that torch itself brings along.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hatrack.functional import GATE_FLUSH, SATURATION_BOUND, Compensation, GateFunction, compensated_gate

__all__ = ["GATE", "GRADIENT", "LIMITS", "gate_in_training"]

GATE = """
template <typename T> T hat_gate(T e, T scale, T flush) {
    const T a = T(1) / (T(1) + exp(-(scale * e)));
    return a < flush ? T(0) : a;
}
"""
"""Attention ``σ(s·e)``, and 0 below a bound."""

GRADIENT = """
template <typename T> T hat_gradient(T gradient, T e, T scale, T s_max, T bound, T lowest, T tiny) {
    const T sigma = T(1) / (T(1) + exp(-e));
    const T x = scale * e;
    const T reach = bound - (x < T(0) ? -x : x);
    const T decay = reach > T(0) ? T(1) : (reach <= lowest ? T(0) : exp(reach));
    const T slope = (s_max * sigma) * (T(1) - sigma) * decay;
    return gradient * (slope < tiny ? T(0) : slope);
}
"""
"""Gradient of an embedding from that of its gate: times ``s_max · σ(e)(1 − σ(e))``, which decays beyond a bound."""

_FLOAT32 = torch.finfo(torch.float32)

# The exponent is a little above that of the least normal number, as in hatrack.functional, for the same bits of 0.
LIMITS = {"bound": SATURATION_BOUND, "lowest": math.log(_FLOAT32.tiny) + 0.5, "tiny": _FLOAT32.tiny}
"""Size of a scaled embedding beyond which slopes decay, the exponent up to which nothing is left, the least slope: the
last numbers of the kernel, in its order."""


def gate_in_training(
    e: Tensor, scale: float | Tensor, s_max: float, compensation: Compensation, function: GateFunction
) -> Tensor:
    """Compute :func:`hatrack.functional.compensated_gate`, on a GPU by one kernel for it and one for its gradient.

    Kernels are for plain float32 tensors, the sigmoid and exact compensation, outside of ``torch.compile``, where torch
    can compile them; anything else is computed step by step.

    Args:
        e: embedding, any shape, within [-6, 6].
        scale: the gate's present scale, > 0; a number, or a 0-dimensional tensor.
        s_max: largest scale, > 0.
        compensation: which arithmetic the gradient follows.
        function: the gate function.
    """
    usual = compensation is Compensation.EXACT and function is GateFunction.SIGMOID
    plain = usual and not torch.compiler.is_compiling() and type(e) in (Tensor, torch.nn.Parameter)
    if plain and e.is_cuda and e.dtype == torch.float32 and _compiles(e.get_device()):
        fused: Tensor = _FusedGate.apply(e, scale, s_max)  # type: ignore[no-untyped-call]
        return fused
    return compensated_gate(e, scale, s_max, compensation, function)


class _FusedGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, e: Tensor, scale: float | Tensor, s_max: float) -> Tensor:
        ctx.scale, ctx.s_max = scale, s_max
        ctx.save_for_backward(e)
        return _kernel(GATE, scale, e, flush=GATE_FLUSH)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (e,) = ctx.saved_tensors
        return _kernel(GRADIENT, ctx.scale, gradient, e, s_max=ctx.s_max, **LIMITS), None, None


def _kernel(code: str, scale: float | Tensor, *tensors: Tensor, **numbers: float) -> Tensor:
    """Run a kernel of some tensors, the scale, and numbers.

    A scale on the GPU stays there, and a captured graph reads it anew; one on the CPU is a number.
    """
    names = tuple(numbers)
    if isinstance(scale, Tensor) and scale.is_cuda:
        of_tensor = _compiled(code, names)
        return of_tensor(*tensors, scale, **numbers)
    return _compiled(code, ("scale", *names))(*tensors, scale=float(scale), **numbers)


@functools.cache
def _compiled(code: str, names: tuple[str, ...]) -> Callable[..., Tensor]:
    make: Any = torch.cuda.jiterator._create_jit_fn  # documented under this name, its underscore notwithstanding
    kernel: Callable[..., Tensor] = make(code, **dict.fromkeys(names, 1.0))
    return kernel


@functools.cache
def _compiles(device: int) -> bool:
    """Return whether kernels can be compiled for a GPU; tried once."""
    try:
        return float(_kernel(GATE, 1.0, torch.zeros((), device=f"cuda:{device}"), flush=GATE_FLUSH)) == 0.5
    except (AssertionError, RuntimeError):  # no GPU that torch knows, or no compiler for it
        return False
