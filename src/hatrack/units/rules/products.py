"""Rules of products of values, as in attention written by hand, and of layers written as a product with a parameter.

The axis that is summed is read where it is a layer's input and a gate can stand before it. Where none can, the units of
a layer's input are always on, and those of other products are merged.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.units.coupling import UNGATED, is_constant, is_uniform
from hatrack.units.rules import functional
from hatrack.units.rules.probing import joined, probe
from hatrack.units.rules.registry import functions, rule
from hatrack.units.trace import Call, Trace

__all__ = ["einsum", "grouped_product", "linear", "matrix_product", "product", "sum_with_product"]

Terms = list[tuple[str, Tensor]]
"""Factors of a product, each with a letter for every axis."""

_FIRST = 256
"""Code of the first letter for axes without a name, counted from the last one; no equation uses such letters."""


@rule(*functions("matmul mm bmm __matmul__"))
def matrix_product(trace: Trace, call: Call) -> Tensor:
    """Label a product of two matrices, of batches of them, or of vectors."""
    other = call.argument(1, "mat2")  # which is what torch.mm and torch.bmm call it
    other = call.argument(1, "other") if other is None else other
    return _product(trace, call, call.argument(0, "input"), other).expand(call.output.shape)


@rule(*functions("addmm baddbmm"))
def sum_with_product(trace: Trace, call: Call) -> Tensor:
    """Label a product of two matrices, or of batches of them, plus another value such as a bias."""
    own = "mat" if call.argument(1, "mat1") is not None else "batch"
    first, second = call.argument(1, f"{own}1"), call.argument(2, f"{own}2")
    labels = _product(trace, call, first, second).expand(call.output.shape)
    added = call.argument(0, "input")
    trace.open_weight(added)
    return joined(trace, labels, trace.labels(added).expand(call.output.shape))


@rule(torch.einsum)
def einsum(trace: Trace, call: Call) -> Tensor:
    """Label a product of any number of values in Einstein's notation."""
    equation, *operands = call.args  # torch has turned numbers for axes into letters before
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        right = "..." + "".join(sorted(letter for letter in set(left) if letter.isalpha() and left.count(letter) == 1))
    unnamed = [
        value.dim() - len(term.replace("...", "")) for term, value in zip(left.split(","), operands, strict=True)
    ]
    terms = [
        (term.replace("...", _letters(count)), value)
        for term, count, value in zip(left.split(","), unnamed, operands, strict=True)
    ]
    if any(len(set(letters)) < len(letters) for letters, _ in terms):
        for value in operands:
            trace.open_weight(value)
        labels = probe(trace, call)  # a diagonal
        assert isinstance(labels, Tensor)
        return labels
    result = right.replace("...", _letters(max(unnamed)))
    return product(trace, call, terms, result).expand(call.output.shape)


@rule(F.linear)
def linear(trace: Trace, call: Call) -> Tensor:
    """Label a dense layer that is called as a function, with a weight ``(out, in)`` whose axes may be turned."""
    weight = call.argument(1, "weight")
    known = trace.weight_of(weight)
    if weight.dim() < 2 or known is None:
        trace.open_weight(weight)
    if isinstance(weight, nn.Parameter) or weight.dim() < 2 or known is None:
        return functional.linear(trace, call)
    value, bias = call.argument(0, "input"), call.argument(2, "bias")
    letters = _letters(value.dim() - 1)
    labels = product(trace, call, [(letters + "i", value), ("oi", weight)], letters + "o").expand(call.output.shape)
    if isinstance(bias, nn.Parameter) and trace.weight_of(bias) is not None:
        trace.use(bias, trace.coupling.along(labels, -1))
    elif isinstance(bias, Tensor):
        trace.open_weight(bias)
        labels = trace.coupling.couple(labels, trace.labels(bias))
    return labels


@rule(*functions("grouped_mm _grouped_mm"))
def grouped_product(trace: Trace, call: Call) -> Tensor:
    """Label a product of rows with one of several matrices each, as a mixture of experts has it.

    Which matrix a row meets depends on values, so that all of them write the same units.
    """
    first, second = call.argument(0, "mat_a"), call.argument(1, "mat_b")
    starts, bias = call.argument(2, "offs"), call.argument(3, "bias")
    if isinstance(bias, Tensor) or (first.dim(), second.dim()) != (2, 3):
        for value in (first, second, bias):
            trace.open_weight(value)
        labels = probe(trace, call)
        assert isinstance(labels, Tensor)
        return labels
    if isinstance(starts, Tensor):
        trace.coupling.pin(trace.labels(starts))
    return product(trace, call, [("si", first), ("eio", second)], "so").expand(call.output.shape)


def product(trace: Trace, call: Call, terms: Terms, result: str) -> Tensor:
    """Label a product of values, summed over the axes that the result does not have.

    Args:
        trace: the trace.
        call: the call that computes it.
        terms: the factors.
        result: the letters of the result's axes.

    Returns:
        Labels that can be expanded to the result's shape.
    """
    layer = _layer(trace, call, terms, result)
    if layer is not None:
        return layer
    for _, value in terms:
        trace.open_weight(value)
    summed = [(value, axis) for letters, value in terms for axis, own in enumerate(letters) if own not in result]
    known = trace.read_products(call, summed)
    factors = [
        (value, _placed(trace.labels(value), letters, result), [letters.find(letter) for letter in result])
        for letters, value in terms
    ]
    if not known and trace.read_outer_product(call, factors):
        return torch.full((1,) * len(result), UNGATED)
    labels = torch.full((1,) * len(result), UNGATED)
    for letters, value in terms:
        own = trace.labels(value)
        if known and any(value is each for each, _ in summed):
            own = torch.full_like(own, UNGATED)
        for axis, letter in enumerate(letters):
            if letter not in result:
                own = trace.coupling.merge(own, axis)
        labels = trace.coupling.meet(labels, _placed(own, letters, result))
    return labels


def _product(trace: Trace, call: Call, first: Tensor, second: Tensor) -> Tensor:
    """Label ``first @ second``."""
    one = _letters(first.dim() - 2) + ("ij" if first.dim() > 1 else "j")
    other = _letters(second.dim() - 2) + ("jk" if second.dim() > 1 else "j")
    result = _letters(max(first.dim(), second.dim()) - 2) + "".join(x for x in "ik" if x in one + other)
    return product(trace, call, [(one, first), (other, second)], result)


def _layer(trace: Trace, call: Call, terms: Terms, result: str) -> Tensor | None:
    """Label a product of a value and a parameter that is a layer's weight; return None for any other product.

    An axis that both have and that is not summed counts layers that lie side by side, such as experts.
    """
    factors = sorted(terms, key=lambda term: trace.weight_of(term[1]) is not None)
    if [trace.weight_of(value) is not None for _, value in factors] != [False, True]:
        return None
    (letters, value), (ends, weight) = factors
    known = trace.weight_of(weight)
    assert known is not None
    parameter, order = known
    free = "".join(letter for letter in ends if letter in result)
    summed = [letter for letter in letters if letter not in result]
    beside = [letter for letter in free if letter in letters]
    if len(summed) != 1 or summed[0] not in ends or len(beside) == len(free):
        return None
    labels, axis = trace.labels(value), letters.index(summed[0])
    if value.shape[axis] != weight.shape[ends.index(summed[0])]:
        return None
    if is_constant(labels, axis) and not is_uniform(labels) and not beside:  # mixes tokens in one way for all units
        trace.use(parameter, torch.full((1,), UNGATED))
        return _placed(labels.narrow(axis, 0, 1), letters, result)
    for number, letter in enumerate(letters):
        labels = labels if letter in ends else trace.coupling.merge(labels, number)
    inputs = _placed(labels, letters, ends)
    if trace.is_readable(value):
        trace.read_inside(call, value)
    else:
        trace.coupling.pin(inputs)  # which leaves the units apart that are written
    # What is not 0 where a unit is off, as after a norm, reaches all units that are written: all weights count.
    behind = inputs if trace.sources.is_cleared(value) else torch.full_like(inputs, UNGATED)
    sizes = [size for letter, size in zip(ends, weight.shape, strict=True) if letter in free]
    place = replace(call, name=trace.parameters[id(parameter)])
    outputs = trace.write(place, math.prod(sizes)).view(sizes)
    sides = (_placed(outputs, free, ends), behind)
    trace.use(parameter, *(side.permute([order.index(axis) for axis in range(len(ends))]) for side in sides))
    return _placed(outputs, free, result)


def _placed(labels: Tensor, letters: str, result: str) -> Tensor:
    """Give labels the axes of a result, in its order: axes that it does not have are dropped, new ones are 1 wide."""
    for axis in reversed(range(len(letters))):
        if letters[axis] not in result:
            labels = labels.select(axis, 0)
    kept = [letter for letter in letters if letter in result]
    labels = labels.permute([kept.index(letter) for letter in result if letter in kept])
    return labels[tuple(slice(None) if letter in kept else None for letter in result)]


def _letters(count: int) -> str:
    """Return letters for axes that have no name."""
    return "".join(chr(_FIRST + number) for number in reversed(range(count)))
