"""Random samples on which the outputs of a network tell it from others, and comparisons of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hatrack.errors import DOES_NOT_RUN, UnsupportedError
from hatrack.support.example import is_mask
from hatrack.support.inputs import Inputs, map_tensors, tensors_in

__all__ = [
    "agree",
    "deviation",
    "largest",
    "memory_of",
    "random_batches",
    "random_like",
    "says_something",
    "storage_of",
]

_GUESSES = (128, 2)
"""Numbers of categories to assume for integers that index no table; the first fits every type of integer."""

_LOUD = (10.0, 30.0)
"""Factors of real numbers that reach units which are dead to others."""

_CLEAR = 1e-4
"""Smallest difference of outputs that tells networks apart, in parts of the largest output."""

_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.clone, torch.ops.aten.copy, torch.ops.aten.index_select}
"""Operations whose result has the values of their first argument, or some of them."""

_ALONG_AN_AXIS = {torch.ops.aten.index_select, torch.ops.aten.gather, torch.ops.aten.scatter, torch.ops.aten.scatter_}
"""Operations that take a tensor, an axis and indices along it."""

_OF_ROWS = {torch.ops.aten.embedding, torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only}
"""Operations that take a table and indices of rows."""


# ---------------------------------------------------------------------------------------------------------- comparisons


def largest(values: Tensor) -> float:
    """Return the largest magnitude of the finite values; 0 if there is none."""
    finite = values.detach()[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether outputs agree up to a tolerance, relative to each and to the largest finite one.

    "Not a number" and infinities have to be in the same places: a mean over no token, a logarithm of 0.

    Args:
        found: the outputs.
        expected: the expected outputs.
        tolerance: largest difference, in parts of the expected value and of the largest expected value.
    """
    if found.shape != expected.shape:
        return False
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * largest(expected), equal_nan=True)


def deviation(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of outputs, in parts of the largest finite one.

    Args:
        found: the outputs.
        expected: the expected outputs.
    """
    if found.shape != expected.shape or not torch.equal(found.isfinite(), expected.isfinite()):
        return float("inf")
    scale = largest(expected)
    return largest(found - expected) / scale if scale else 0.0


def says_something(outputs: Tensor) -> bool:
    """Return whether outputs tell networks apart: they are finite somewhere, and differ between samples.

    Tokens that are all padding, for example, give zeros, or what biases make of them, whatever the weights are.
    Differences must be clear of tolerances, which are relative to the largest output. Outputs of a single sample must
    not all be 0.
    """
    outputs = outputs.detach()
    finite = outputs.isfinite()
    if not finite.any():
        return False
    if len(outputs) < 2:
        return bool(outputs[finite].any())
    high, low = (outputs.masked_fill(~finite, bound) for bound in (-torch.inf, torch.inf))
    return float((high.amax(0) - low.amin(0)).max()) > _CLEAR * largest(outputs)


# -------------------------------------------------------------------------------------------------------------- samples


def random_like(example: Inputs, generator: torch.Generator, run: Callable[[Any], object] | None = None) -> Inputs:
    """Draw a batch to try a network with: random, since zeros would hide much, and with integers that it accepts.

    Integers are drawn below the size of the smallest table that the network looks them up in. Among several inputs,
    integers that index no table and masks keep their values, which mean something, such as lengths. Of several draws
    the first whose outputs say something is returned.

    Args:
        example: a batch, for its shape and type.
        generator: source of randomness, on the CPU.
        run: runs the network and returns its outputs; if it fails on every draw, the example itself is returned. With
            None only real numbers are drawn, since valid integers are not known.
    """
    if run is None:
        return map_tensors(lambda x: _normal(x, generator) if x.is_floating_point() else x, example)
    return random_batches(example, generator, run, 1)[0]


def random_batches(
    example: Inputs,
    generator: torch.Generator,
    run: Callable[[Any], object],
    count: int,
    smallest: Inputs | None = None,
) -> list[Inputs]:
    """Draw several batches as :func:`random_like` does; the network is run to choose how, for the first one alone.

    Args:
        example: a batch, for its shape and type.
        generator: source of randomness, on the CPU.
        run: runs the network and returns its outputs; on the example, where there are integers, and on batches.
        count: number of batches, at least 1.
        smallest: a batch of fewer samples, which tables are found with; the example if None.
    """
    if any(tensor.is_complex() or not tensor.numel() for tensor in tensors_in(example)):
        return [example] * count
    fallback: tuple[Inputs, Callable[[], Inputs]] | None = None
    draws = _draws if isinstance(example, Tensor) else _draws_of_several
    for draw in draws(example, generator, run, example if smallest is None else smallest):
        drawn = draw()
        try:
            outputs = run(drawn)
        except (*DOES_NOT_RUN, UnsupportedError):  # this input was not asked for; the caller deals with the example's
            continue
        if not isinstance(outputs, Tensor) or says_something(outputs):
            return [drawn, *(draw() for _ in range(count - 1))]
        fallback = (drawn, draw) if fallback is None else fallback
    if fallback is None:
        return [example] * count
    return [fallback[0], *(fallback[1]() for _ in range(count - 1))]


def _draws(
    example: Tensor, generator: torch.Generator, run: Callable[[Tensor], object], smallest: Tensor
) -> Iterator[Callable[[], Tensor]]:
    """Yield ways to draw a batch, the most promising first.

    On an accelerator an index past the end of a table ends the process, so that nothing is guessed there.
    """
    checked, real = example.device.type == "cpu", example.is_floating_point()
    if real and checked:
        yield partial(_normal, example, generator)
    tables = _tables_of(smallest, [smallest], run)[0]
    bounds = [min(tables.own)] if tables.own else []
    if checked and tables.others:
        bounds.append(min(tables.others))
    if not real and (checked or not (tables.own or tables.others)):
        bounds += [int(example.max()) + 1, *_GUESSES]
    for bound in dict.fromkeys(bounds):
        if bound > 1:
            most = bound if real else 2 if example.dtype == torch.bool else torch.iinfo(example.dtype).max + 1
            yield partial(_integers, example, min(bound, most), generator)
    if real and (checked or not tables.own):
        yield partial(_normal, example, generator)
        yield partial(_positive, example, generator)  # has logarithms
        for loud in _LOUD:
            yield partial(_normal, example, generator, loud)


def _draws_of_several(
    example: Inputs, generator: torch.Generator, run: Callable[[Any], object], smallest: Inputs
) -> Iterator[Callable[[], Inputs]]:
    """Yield ways to draw a batch of several inputs, the most promising first."""
    integers = [id(tensor) for tensor in tensors_in(example) if not tensor.is_floating_point()]
    looked_up = [tensor for tensor in tensors_in(smallest) if not tensor.is_floating_point()]
    tables = zip(integers, _tables_of(smallest, looked_up, run), strict=True)
    bounds = {key: min(found.own) for key, found in tables if found.own}

    def drawn(real: Callable[[Tensor, torch.Generator], Tensor], indices: bool) -> Inputs:
        def draw(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                return tensor if is_mask(tensor) else real(tensor, generator)
            bound = bounds.get(id(tensor), 0) if indices else 0
            return tensor if bound < 2 else _integers(tensor, bound, generator)

        return map_tensors(draw, example)

    yield partial(drawn, _normal, indices=True)
    yield partial(drawn, _normal, indices=False)
    yield partial(drawn, _positive, indices=True)
    for loud in _LOUD:
        yield partial(drawn, partial(_normal, loud=loud), indices=True)


def _tables_of(batch: Inputs, inputs: Sequence[Tensor], run: Callable[[Any], object]) -> list[_Tables]:
    """Run a network once, and return for each of some inputs the sizes of the tables that it is looked up in."""
    found = [_Tables(tensor) for tensor in inputs]
    if found:
        with ExitStack() as recording, suppress(*DOES_NOT_RUN, UnsupportedError):
            for tables in found:
                recording.enter_context(tables)
            run(batch)
    return found


def _normal(example: Tensor, generator: torch.Generator, loud: float = 1.0) -> Tensor:
    return loud * torch.randn(example.shape, generator=generator).to(example.device, example.dtype)


def _positive(example: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(example.shape, generator=generator) + 0.1).to(example.device, example.dtype)


def _integers(example: Tensor, bound: int, generator: torch.Generator) -> Tensor:
    return torch.randint(bound, example.shape, generator=generator).to(example.device, example.dtype)


class _Tables(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recorder of the sizes of tables that indices are looked up in.

    Args:
        x: the input, or one of several.

    Attributes:
        own: sizes of tables that are indexed by values of the input.
        others: sizes of tables that are indexed by anything else.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own: list[int] = []
        self.others: list[int] = []
        self._copies = [x]  # alive, so that no other tensor gets their memory

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import the compiler, for seconds

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for size, index in _looked_up(func.overloadpacket, args):
            (self.own if self._is_own(index) else self.others).append(size)
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _COPIES and self._is_own(args[0]):
            self._copies.append(result)
        return result

    def _is_own(self, tensor: Tensor) -> bool:
        return any(memory_of(tensor) == memory_of(copy) for copy in self._copies)


def storage_of(tensor: Tensor) -> torch.UntypedStorage | Tensor:
    """Return the storage that a tensor and its views lie in, one object as long as any of them is there.

    A tensor without one, such as a sparse tensor, is returned itself.
    """
    with torch._C.DisableTorchFunction():
        try:
            return tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return tensor


def memory_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, which its views share, as long as any of them is there."""
    storage = storage_of(tensor)
    return id(tensor) if isinstance(storage, Tensor) else int(storage._cdata)


def _looked_up(operation: Any, args: tuple[Any, ...]) -> Iterator[tuple[int, Tensor]]:
    """Yield the sizes of the tables that an operation looks up in, with the indices."""
    if operation in _OF_ROWS:
        yield args[0].shape[0], args[1]
    elif operation in _ALONG_AN_AXIS and args[0].dim():
        yield args[0].shape[args[1]], args[2]
    elif operation is torch.ops.aten.index:
        for size, index in zip(args[0].shape, args[1], strict=False):
            if index is not None and index.dtype != torch.bool:
                yield size, index
