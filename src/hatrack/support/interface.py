"""Interface of a backbone: how it is called with a batch, and what of its result the heads read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.support.compilers import keep_compilers_out
from hatrack.support.inputs import Inputs, kind_of, map_tensors, require_dense, tensors_in

__all__ = ["PLAIN", "Features", "Interface"]

Features = str | int | Callable[[Any], Tensor] | None
"""Choice of the features in a backbone's result: None where the result is a tensor, the features themselves; a key or
the name of an attribute; an index; or a function from the result to a tensor."""

_FLATTEN = "leave out its last layer, since every task brings a head of its own, and flatten what is left"
_PICK = "say which part of it the heads read, as by HATNetwork(..., features='last_hidden_state')"


@dataclass(frozen=True)
class Interface:
    """Interface of a backbone.

    Attributes:
        features: choice of the features in its result.
        unit_axis: axis of the features that counts units; −1 for ``(N, …, F)``, 1 for maps such as ``(N, C, H, W)``.
        batch_axis: axis of every tensor among the inputs that counts samples; tensors without axes have none.
    """

    features: Features = None
    unit_axis: int = -1
    batch_axis: int = 0

    def __post_init__(self) -> None:
        if self.features is not None and not isinstance(self.features, (str, int)) and not callable(self.features):
            raise InputError("features must be a key, an index, or a function from the backbone's result to a tensor")
        if not isinstance(self.unit_axis, int) or self.unit_axis == 0:
            raise InputError(f"unit_axis must be an axis behind that of the samples, not {self.unit_axis!r}")
        if not isinstance(self.batch_axis, int) or self.batch_axis < 0:
            raise InputError(f"batch_axis must count from the front, not be {self.batch_axis!r}")

    # ------------------------------------------------------------------------------------------------------------ calls

    def run(self, backbone: nn.Module, inputs: Inputs) -> Tensor:
        """Call a backbone, and return its features.

        Args:
            backbone: the backbone, or a module that is called alike.
            inputs: a batch.

        Raises:
            InputError: the result does not have the features.
        """
        if isinstance(inputs, Tensor):
            output = backbone(inputs)
        elif isinstance(inputs, Mapping):
            output = backbone(**inputs)
        else:
            output = backbone(*inputs)
        return self._picked(output)

    def _picked(self, output: Any) -> Tensor:
        features = self.features
        try:
            if features is None:
                picked = output
            elif isinstance(features, str):
                picked = output[features] if isinstance(output, Mapping) else getattr(output, features)
            else:
                picked = output[features] if isinstance(features, int) else features(output)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            if callable(features):
                raise
            raise InputError(f"the backbone's result has no features {features!r}: {_described(output)}") from error
        if not isinstance(picked, Tensor):
            remedy = _PICK if features is None else "choose a tensor"
            raise InputError(f"the features are no tensor, but {_described(picked)}; {remedy}")
        return picked

    def axis_of(self, features: Tensor) -> int:
        """Return the axis that counts units, negative.

        Raises:
            InputError: the features do not have it.
        """
        axis = self.unit_axis - features.dim() if self.unit_axis > 0 else self.unit_axis
        if features.dim() < 2 or not -features.dim() < axis < 0:
            found = tuple(features.shape)
            raise InputError(f"the backbone must map a batch to features (N, …, F), and gave {found}; {_FLATTEN}")
        return axis

    def require_rows(self, features: Tensor, inputs: Inputs) -> None:
        """Check that features have a row for every sample.

        Args:
            features: the features of a batch.
            inputs: the batch.

        Raises:
            InputError: they have more or fewer; the likely cause is named.
        """
        rows, samples = (len(features) if features.dim() else 0), self.samples(inputs)
        if rows == samples:
            return
        shape = tuple(features.shape)
        if rows > samples and rows % samples == 0:
            why = (
                f"your backbone folded another axis into the batch, such as one of {rows // samples} tokens: unfold it "
                f"at its end, features.view({samples}, {rows // samples}, -1), and take the mean over axis 1 for one "
                "answer per sample"
            )
        else:
            why = "keep the axis of the samples, and let it come first"
        raise InputError(
            f"the backbone gave features of shape {shape} for a batch of {samples}, not a row for every sample: {why}"
        )

    # ------------------------------------------------------------------------------------------------------------ batch

    def accepted(self, inputs: Inputs) -> Inputs:
        """Return inputs as they are; a mapping of keyword arguments as a plain dictionary.

        Raises:
            InputError: they are neither a tensor nor nested tensors, or have different numbers of samples; or a tensor
                is sparse, or nested in torch's own sense.
        """
        for tensor in tensors_in(inputs):
            require_dense(tensor)
        if isinstance(inputs, Tensor):
            return inputs
        if isinstance(inputs, list) or not isinstance(inputs, (tuple, Mapping)):
            raise InputError(
                "inputs are a tensor, a tuple of positional arguments or a mapping of keyword arguments, not a "
                f"{type(inputs).__name__}"
            )
        plain = {str(key): value for key, value in inputs.items()} if isinstance(inputs, Mapping) else inputs
        kind_of(plain, self.batch_axis)
        self.samples(plain)
        return plain

    def samples(self, inputs: Inputs) -> int:
        """Return the number of samples of a batch.

        Raises:
            InputError: its tensors have different numbers of them, or none has an axis that counts them.
        """
        counts = {t.shape[self.batch_axis] if t.dim() > self.batch_axis else -1 for t in tensors_in(inputs) if t.dim()}
        if len(counts) != 1 or counts == {-1}:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs)) or "no tensor at all"
            raise InputError(
                f"the inputs do not have one number of samples along axis {self.batch_axis}: {shapes}; keep tensors "
                "that are the same for all samples in the backbone"
            )
        return counts.pop()

    def has_samples(self, inputs: Inputs) -> bool:
        """Return whether there is a batch with a sample at least, as far as that can be told."""
        if isinstance(inputs, Tensor):
            return inputs.dim() > self.batch_axis and bool(inputs.shape[self.batch_axis])
        return any(tensor.dim() for tensor in tensors_in(inputs)) and bool(self.samples(inputs))

    def take(self, inputs: Inputs, rows: slice | Tensor) -> Inputs:
        """Return some samples of a batch, by a slice or by indices, int64 ``(n,)``."""
        where = (*(slice(None),) * self.batch_axis, rows)
        return map_tensors(lambda tensor: tensor[where] if tensor.dim() else tensor, inputs)

    def joined(self, batches: Sequence[Inputs]) -> Inputs:
        """Return one batch of the samples of several, whose kind is that of the first."""
        columns = [iter(list(tensors_in(batch))) for batch in batches[1:]]

        def join(tensor: Tensor) -> Tensor:
            others = [next(column) for column in columns]
            return torch.cat([tensor, *others], self.batch_axis) if tensor.dim() else tensor

        return map_tensors(join, batches[0])

    def repeated(self, inputs: Inputs, times: int) -> Inputs:
        """Return a batch with all samples of another, several times."""
        return self.joined([inputs] * times)

    def several(self, inputs: Inputs) -> Inputs:
        """Return a batch of at least two samples: the batch itself, or its only sample twice."""
        return self.repeated(inputs, 2) if self.samples(inputs) == 1 else inputs

    def split(self, inputs: Inputs, size: int) -> list[Inputs]:
        """Return a batch in parts of a size; the last may be smaller."""
        count = self.samples(inputs)
        return [self.take(inputs, slice(start, start + size)) for start in range(0, max(count, 1), size)]

    def to_json(self) -> dict[str, Any]:
        """Return the choices as JSON values; nothing for an interface like :data:`PLAIN`, as in earlier files."""
        if self == PLAIN:
            return {}
        features = {"function": True} if callable(self.features) else self.features
        return {"interface": {"features": features, "unit_axis": self.unit_axis, "batch_axis": self.batch_axis}}

    @classmethod
    def from_json(cls, described: Mapping[str, Any], features: Features) -> Interface:
        """Make the interface that :meth:`to_json` described.

        Args:
            described: the description of a network.
            features: choice of features that the user gives again; None for the saved one.

        Raises:
            InputError: the saved choice was a function, and none is given.
        """
        saved = dict(described.get("interface", {}))
        its = saved.pop("features", None)
        if isinstance(its, Mapping) and features is None:
            raise InputError("its features are picked by a function, which a file cannot hold: give it, features=...")
        return cls(its if features is None else features, **saved)


keep_compilers_out(Interface.accepted, Interface.samples, Interface.has_samples)

PLAIN = Interface()
"""Interface of a backbone that maps a batch to features ``(N, F)``."""


def _described(output: Any) -> str:
    """Return what a result is made of, for a message."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output))}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
