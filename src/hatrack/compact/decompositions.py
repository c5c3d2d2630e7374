"""Decompositions of operations that ONNX does not have into operations that it has.

ONNX has no adaptive maximum pooling but to a single value. Where the size of the images is fixed, its windows are too:
along an axis of length L, window i of n goes from ``⌊i L / n⌋`` up to ``⌈(i + 1) L / n⌉``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["adaptive_maximum", "without_adaptive_maxima"]


def adaptive_maximum(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Compute adaptive maximum pooling by slices.

    Args:
        x: values ``(..., L1, L2, ...)``, with as many last axes as there are sizes.
        sizes: new lengths of these axes.

    Returns:
        The result of ``torch.nn.functional.adaptive_max_pool1d`` (2d, 3d).
    """
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        length = int(x.shape[axis])
        ends = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        x = torch.cat([x.narrow(axis, start, end - start).amax(axis, keepdim=True) for start, end in ends], axis)
    return x


def _with_places(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    maxima = adaptive_maximum(x, sizes)
    return maxima, torch.zeros_like(maxima, dtype=torch.int64)  # positions of the maxima, which are not used


_ATEN = torch.ops.aten
_POOLS = tuple(getattr(_ATEN, f"adaptive_max_pool{axes}d").default for axes in (1, 2, 3))


def without_adaptive_maxima(program: Any) -> Any:
    """Write out adaptive maximum pooling in an exported program, unless it uses the positions of the maxima."""
    pools = [node for node in program.graph.nodes if node.target in _POOLS]
    if not pools or any(_asks_for_places(node) for node in pools):
        return program
    table: dict[Any, Callable[..., Any]] = dict.fromkeys(_POOLS, _with_places)
    return program.run_decompositions(table)


def _asks_for_places(node: Any) -> bool:
    parts = [(user.args[1], user) for user in node.users if user.target is operator.getitem]
    return len(parts) < len(node.users) or any(part.users for index, part in parts if index != 0)
