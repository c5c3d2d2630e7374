"""Sums over a task's training samples, by which it is told apart from other tasks; no sample is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.state.comparing import is_same_tensor

__all__ = ["TaskSums"]

_GRAM, _TARGETS, _MAP, _SHAPE = "gram", "targets", "feature_map", "sample_shape"


@dataclass(frozen=True, eq=False)
class TaskSums:
    """Sums of products of features and targets over a task's training samples.

    They are on the CPU whatever device the network is on, and of float64 whatever it is converted to: sums of
    thousands of products in fewer digits would not add up to the same in another order.

    Attributes:
        feature_map: description of the features, JSON with sorted keys; sums of different features do not add up.
        gram: upper triangle of HᵀH, row by row, float64 ``(D (D + 1) / 2,)``, of the features H ``(N, D)``.
        targets: HᵀY, float64 ``(D, C)``, of the one-hot classes Y ``(N, C)``.
        sample_shape: shape of a sample; features of pictures of another size are of another scale.
    """

    feature_map: str
    gram: Tensor
    targets: Tensor
    sample_shape: tuple[int, ...]

    @classmethod
    def of(cls, feature_map: str, gram: Tensor, targets: Tensor, sample_shape: tuple[int, ...]) -> TaskSums:
        """Make sums of a square matrix.

        Args:
            feature_map: description of the features.
            gram: HᵀH, float64 ``(D, D)``; its upper triangle is read.
            targets: HᵀY, float64 ``(D, C)``.
            sample_shape: shape of a sample.
        """
        rows, columns = torch.triu_indices(*gram.shape, device="cpu").unbind()
        return cls(feature_map, gram[rows, columns], targets, sample_shape)

    @property
    def num_features(self) -> int:
        """Number of features, D."""
        return len(self.targets)

    @property
    def num_bytes(self) -> int:
        """Memory that the sums take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.gram, self.targets))

    def square(self) -> Tensor:
        """Return HᵀH, ``(D, D)``."""
        size = self.num_features
        rows, columns = torch.triu_indices(size, size).unbind()
        full = self.gram.new_empty(size, size)
        full[rows, columns] = self.gram
        full[columns, rows] = self.gram
        return full

    def is_same(self, other: TaskSums) -> bool:
        """Return whether other sums have the same bits."""
        mine, theirs = self.tensors(), other.tensors()
        return all(is_same_tensor(mine[name], theirs[name]) for name in mine)

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors by name, as a ``state_dict`` holds them; the description as bytes."""
        described = torch.tensor(list(self.feature_map.encode()), dtype=torch.uint8)
        shape = torch.tensor(self.sample_shape, dtype=torch.int64)
        return {_GRAM: self.gram, _TARGETS: self.targets, _MAP: described, _SHAPE: shape}

    @classmethod
    def from_tensors(cls, saved: Mapping[str, Any]) -> TaskSums:
        """Make the sums that :meth:`tensors` gave; tensors are copied to the CPU.

        Raises:
            InputError: a tensor is missing, or they are not sums of this form.
        """
        missing = {_GRAM, _TARGETS, _MAP, _SHAPE} - saved.keys()
        if missing:
            raise InputError(f"sums of a task are damaged: {', '.join(sorted(missing))} is missing")
        gram, targets = (saved[name].detach().to("cpu", copy=True) for name in (_GRAM, _TARGETS))
        size = len(targets) if targets.dim() == 2 else -1
        if gram.shape != (size * (size + 1) // 2,) or {gram.dtype, targets.dtype} != {torch.float64}:
            raise InputError(
                "sums of a task are damaged: they must be float64, of shapes (D (D + 1) / 2,) and (D, C), and are "
                f"{gram.dtype} {tuple(gram.shape)} and {targets.dtype} {tuple(targets.shape)}; calibrate the task anew"
            )
        try:
            described = bytes(saved[_MAP].tolist()).decode()
        except ValueError as error:
            raise InputError(
                f"sums of a task are damaged: the description of their features is no text ({error}); calibrate the "
                "task anew"
            ) from error
        return cls(described, gram, targets, tuple(saved[_SHAPE].tolist()))

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskSums:
        return self  # nothing writes into it, and copies of networks would take as much memory again
