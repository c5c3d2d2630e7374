"""State of one task: its head, its norms, and the embedding, values or bits of its masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hatrack.errors import InputError, TrainingError
from hatrack.masks.calibration import Calibration
from hatrack.masks.packing import bytes_for, move_along, pack, unpack
from hatrack.masks.sums import TaskSums
from hatrack.state.movement import OwnBuffers, copy_of
from hatrack.support.compilers import start_compilers_inside
from hatrack.support.heads import apply_head
from hatrack.support.names import entries_below

__all__ = ["TaskState", "UnitTask", "WeightTask", "packed_mask"]


_SUMS = "sums."
"""Prefix of the names of sums in ``state_dict``."""


class FirstHead:
    """Copy of a head as it was when its task was added; copies of the task share it.

    Attributes:
        module: the copy.
    """

    def __init__(self, head: nn.Module) -> None:
        self.module = copy_of(head)

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstHead:
        return self


class TaskState(nn.Module):
    """State that belongs to one task alone, with a mask of any kind.

    Args:
        name: the task's name.
        num_classes: outputs of its linear head; None for a head of the user's own.
        head: maps features to logits, or to whatever a head of the user's own gives.
        norms: its batch norms, by the name of the layer they stand for.
        unit_axis: axis of the features that a linear head acts along.

    Attributes:
        moving: the task's values of buffers of the backbone that a forward pass moves.
        calibration: statistics of its training data by which it is recognised; None until it is calibrated.
        sums: sums over its training data by which it is recognised beside all other tasks; None until it is calibrated,
            and where its inputs have no features that all tasks share. Like masks they are in ``state_dict`` and no
            buffers: conversions of a network, and averages of several, would change bits.
        first_head: copy of the user's own head as it was when the task was added, by which moving state is found; it is
            no part of the task.
    """

    mask_names: ClassVar[tuple[str, ...]] = ()
    """Names of the mask's tensors, which are in ``state_dict`` but no buffers: averages of models would change bits."""

    def __init__(
        self, name: str, num_classes: int | None, head: nn.Module, norms: dict[str, nn.Module], unit_axis: int = -1
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.unit_axis = unit_axis
        self.consolidated = False
        self.head = head
        self._norm_names = list(norms)
        self.batch_norms = nn.ModuleList(norms.values())
        self.moving = OwnBuffers()
        self.first_head = None if num_classes is not None else FirstHead(head)
        self.calibration: Calibration | None
        self.register_module("calibration", None)
        self.sums: TaskSums | None = None

    @property
    def is_settled(self) -> bool:
        """True if the mask is final, which it may be before the task is consolidated."""
        return self.consolidated

    @property
    def norms(self) -> dict[str, nn.Module]:
        """Batch norms of the task, by the name of the layer they stand for."""
        return dict(zip(self._norm_names, self.batch_norms, strict=True))

    def classify(self, features: Tensor) -> Any:
        """Return the logits of features, with classes along their axis of units; or the outputs of the user's head."""
        if self.num_classes is None:
            return self.head(features)
        head = self.head
        assert isinstance(head, nn.Linear)
        return apply_head(head, features, self.unit_axis)

    def count_classes(self) -> int:
        """Return the number of classes.

        Raises:
            InputError: the task has a head of the user's own, whose outputs need not be logits of classes.
        """
        if self.num_classes is None:
            raise InputError(f"task {self.name!r} has a head of its own, whose outputs need not be logits of classes")
        return self.num_classes

    @property
    def linear_head(self) -> nn.Linear:
        """The head of a task that did not bring its own; others have none."""
        if not isinstance(self.head, nn.Linear):
            raise AttributeError(f"task {self.name!r} has a head of its own")  # likewise
        return self.head

    def take_norms_of(self, other: TaskState) -> None:
        """Own another task's batch norms, which this one has used already."""
        self._norm_names, self.batch_norms = other._norm_names, other.batch_norms

    def prepare_for(self, saved: Mapping[str, Tensor]) -> None:
        """Take the shapes and types of saved tensors, by their names in ``state_dict``, before they are loaded."""
        self.take_shapes_of(saved)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(saved.get(name, parameter).dtype)

    def take_shapes_of(self, saved: Mapping[str, Any]) -> None:
        """Take the shapes of saved tensors, by their names in ``state_dict``, and sums; missing parts are dropped.

        A calibration of the same shapes stays the same object, and all of it stays where the saved tensors are not
        those of a whole task.

        Raises:
            InputError: the sums are damaged.
        """
        found, sums = entries_below("calibration.", saved), entries_below(_SUMS, saved)
        is_whole = "_extra_state" in saved
        if found and not self._is_calibrated_like(found):
            device = next((tensor.device for tensor in (*self.mask_tensors(), *self.parameters())), None)
            self.calibration = Calibration.like(found).to(device)
        elif is_whole and not found:
            self.calibration = None
        if sums or is_whole:
            self.sums = TaskSums.from_tensors(sums) if sums else None

    def _is_calibrated_like(self, found: Mapping[str, Any]) -> bool:
        mine = {} if self.calibration is None else self.calibration.state_dict()
        return {name: (v.shape, v.dtype) for name, v in mine.items()} == {
            name: (v.shape, v.dtype) for name, v in found.items()
        }

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.consolidated and not bool(state_dict.get(f"{prefix}_extra_state", True)):
            error_msgs.append(f"task {self.name!r} is in training there, and consolidated here; it stays consolidated")
            return
        self.take_shapes_of(entries_below(prefix, state_dict))
        for name in self.mask_names:
            key, present = prefix + name, getattr(self, name)
            value = state_dict.get(key)
            if value is None:
                missing_keys += [key] if strict else []
            elif value.shape != present.shape:
                error_msgs.append(f"{key} has shape {tuple(value.shape)} there and {tuple(present.shape)} here")
            else:
                setattr(self, name, value.detach().to(present, copy=True))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        known = {prefix + name for name in (*self.mask_names, *self._tensors_of_sums())}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in known]

    @property
    def mask_values(self) -> Sequence[Tensor]:
        """Values that the mask is learned by; empty where there are none, or none any more."""
        return ()

    def require_numbers(self) -> None:
        """Check that the values that the mask is learned by are numbers, or else no mask would follow from them.

        Raises:
            TrainingError: an entry is not a number.
        """
        if any(bool(values.isnan().any()) for values in self.mask_values):
            raise TrainingError(
                f"values that the mask of task {self.name!r} is learned by became not a number, so that no mask "
                "follows from them; unlearn the task (forget), and learn it again with a lower learning rate (`lr`)"
            )

    def mask_tensors(self) -> list[Tensor]:
        """Return the tensors that hold the final mask, which are in ``state_dict`` but no buffers."""
        return [getattr(self, name) for name in self.mask_names]

    def _tensors_of_sums(self) -> dict[str, Tensor]:
        return {} if self.sums is None else {_SUMS + name: value for name, value in self.sums.tensors().items()}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        extra = destination.pop(f"{prefix}_extra_state")
        masks = {name: getattr(self, name) for name in self.mask_names}
        for name, value in (*masks.items(), *self._tensors_of_sums().items()):
            # A copy whatever keep_vars says, since averages of networks write into what a state_dict gives them.
            destination[prefix + name] = value.detach().clone()
        destination[f"{prefix}_extra_state"] = extra  # last, as in any module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TaskState:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self.mask_names:
            setattr(self, name, move_along(getattr(self, name), fn))
        return self

    def freeze(self) -> None:
        """End the training, and freeze all of the task's parameters and statistics."""
        self.consolidated = True
        self.train(False)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None

    def train(self, mode: bool = True) -> TaskState:
        """Set training mode, except for a consolidated task, whose norms' statistics would move."""
        if not self.consolidated or any(part.training for part in self.modules()):
            super().train(mode and not self.consolidated)
        return self

    def stay_in_evaluation(self) -> None:
        """Take norms and head of a consolidated task back to evaluation mode, which a loop over all modules may leave.

        Torch does not count what a batch norm in training mode does to its statistics, so that it must not happen.
        """
        if self.consolidated:
            own = self.head.modules() if self.num_classes is None else ()
            if any(module.training for module in (*self.batch_norms, *own)):
                self.eval()

    def get_extra_state(self) -> Tensor:
        """Return whether the task is consolidated, as part of ``state_dict``."""
        return torch.tensor(self.consolidated)

    def set_extra_state(self, state: Any) -> None:
        """Consolidate the task where a ``state_dict`` says that it is; what is consolidated stays so."""
        if bool(state):
            self.freeze()


start_compilers_inside(TaskState.classify)


class UnitTask(TaskState):
    """State of a task with a mask of units.

    Args:
        name: the task's name.
        num_classes: outputs of its linear head; None for a head of the user's own.
        embedding: its initial embedding, ``(U,)``.
        head: maps features to logits, or to whatever a head of the user's own gives.
        norms: its batch norms, by the name of the layer they stand for.
        unit_axis: axis of the features that a linear head acts along.

    Attributes:
        embedding: its embedding, ``(U,)``; deleted once the mask is settled.
        packed: the final mask: bits, eight units to a byte, as :func:`hatrack.masks.packing.pack` gives
            them; the numbers themselves, ``(U,)``, where it is soft. Empty until then.
    """

    mask_names = ("packed",)
    embedding: nn.Parameter
    packed: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int | None,
        embedding: Tensor,
        head: nn.Module,
        norms: dict[str, nn.Module],
        unit_axis: int = -1,
    ) -> None:
        super().__init__(name, num_classes, head, norms, unit_axis)
        self.num_units = len(embedding)
        self.embedding = nn.Parameter(embedding)
        self.packed = torch.empty(0, dtype=torch.uint8, device=embedding.device)

    @property
    def mask(self) -> Tensor:
        """Final mask, ``(U,)``: booleans, or numbers where it is soft; there is none until it is settled."""
        if not len(self.packed) and self.num_units:
            raise AttributeError(f"task {self.name!r} has no final mask yet")  # torch.jit.trace asks for all properties
        return unpack(self.packed, (self.num_units,)) if self.packed.dtype == torch.uint8 else self.packed

    @property
    def is_settled(self) -> bool:
        """True if the mask is final, so that there is no embedding."""
        return "embedding" not in self._parameters

    @property
    def mask_values(self) -> Sequence[Tensor]:
        """The embedding, until the mask is settled."""
        return () if self.is_settled else (self.embedding,)

    def settle(self, mask: Tensor) -> None:
        """Store the final mask, booleans or numbers ``(U,)``, and drop the embedding."""
        self.packed = packed_mask(mask)
        self.embedding.grad = None
        del self.embedding

    def take_shapes_of(self, saved: Mapping[str, Any]) -> None:
        """Take the shapes of saved tensors, without an embedding if the mask is final."""
        super().take_shapes_of(saved)
        packed, embedding = saved.get("packed"), saved.get("embedding")
        if isinstance(packed, Tensor) and packed.shape in ((0,), (self._width_of(packed.dtype),)):
            self.packed = torch.empty_like(packed, device=self.packed.device)
        is_settled = bool(saved.get("_extra_state", False)) or (isinstance(packed, Tensor) and len(packed) > 0)
        if embedding is None and is_settled and not self.is_settled:
            del self.embedding
        elif isinstance(embedding, Tensor) and self.is_settled:
            empty = torch.empty(self.num_units, dtype=embedding.dtype, device=self.packed.device)
            self.embedding = nn.Parameter(empty)

    def _width_of(self, dtype: torch.dtype) -> int:
        return bytes_for(self.num_units) if dtype == torch.uint8 else self.num_units


def packed_mask(mask: Tensor) -> Tensor:
    """Pack a mask ``(U,)`` for storage: booleans into bits, numbers as they are."""
    return pack(mask) if mask.dtype == torch.bool else mask.detach().clone()


class WeightTask(TaskState):
    """State of a task with masks of weights: values while it is trained, then one bit per weight.

    Args:
        name: the task's name.
        num_classes: outputs of its linear head; None for a head of the user's own.
        shapes: shapes of the weights with masks.
        choice: the values that each mask is learned by, of the weights' shapes; empty where the source has none.
        copies: its copies of parameters without masks.
        head: maps features to logits, or to whatever a head of the user's own gives.
        norms: its batch norms, by the name of the layer they stand for.
        unit_axis: axis of the features that a linear head acts along.

    Attributes:
        shapes: shapes of the weights with masks.
        choice: the values that each mask is learned by; empty once the masks are settled.
        copies: its copies of parameters without masks.
        packed: the bits of the masks, weight after weight, each beginning with a new byte; zeros until settled.
        settled: whether the masks are final, as a part of ``state_dict``.
    """

    mask_names = ("packed", "settled")
    packed: Tensor
    settled: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int | None,
        shapes: Sequence[torch.Size],
        choice: Sequence[Tensor],
        copies: Sequence[Tensor],
        head: nn.Module,
        norms: dict[str, nn.Module],
        unit_axis: int = -1,
    ) -> None:
        super().__init__(name, num_classes, head, norms, unit_axis)
        self.shapes = tuple(shapes)
        self.choice = nn.ParameterList(nn.Parameter(values) for values in choice)
        self.copies = nn.ParameterList(nn.Parameter(value) for value in copies)
        self.packed = torch.zeros(sum(self._bytes), dtype=torch.uint8)
        self.settled = torch.tensor(False)
        self._is_settled = False  # a copy outside of tensors, since reading one of another device takes time

    @property
    def is_settled(self) -> bool:
        """True if the masks are final."""
        return self._is_settled

    @property
    def mask_values(self) -> Sequence[Tensor]:
        """The values that each mask is learned by, until the masks are settled."""
        return tuple(self.choice)

    @property
    def _bytes(self) -> list[int]:
        return [bytes_for(shape.numel()) for shape in self.shapes]

    def mask(self, index: int) -> Tensor:
        """Return the settled mask of one weight, booleans of its shape."""
        start = sum(self._bytes[:index])
        return unpack(self.packed[start : start + self._bytes[index]], self.shapes[index])

    def settle(self, masks: Sequence[Tensor]) -> None:
        """Store the final masks of all weights, and drop the values that they were learned by."""
        self.packed.copy_(self.packed_of(masks))
        self.settled.fill_(True)
        self._is_settled = True
        self._drop_choice()

    @staticmethod
    def packed_of(masks: Sequence[Tensor]) -> Tensor:
        """Pack the masks of all weights one after the other, as in :attr:`packed`."""
        return torch.cat([pack(mask) for mask in masks] or [torch.zeros(0, dtype=torch.uint8)])

    def _drop_choice(self) -> None:
        for values in self.choice:
            values.grad = None
        if self.choice:  # else it stays the same object: a new one would count as a part that was replaced
            self.choice = nn.ParameterList()

    def take_shapes_of(self, saved: Mapping[str, Any]) -> None:
        """Take the shapes of saved tensors, without a choice if the masks are settled."""
        super().take_shapes_of(saved)
        if "settled" not in saved:
            return
        self._is_settled = bool(saved["settled"])
        if self.is_settled:
            self._drop_choice()
        elif not self.choice:
            values = [value.detach() for name, value in saved.items() if name.startswith("choice.")]
            self.choice = nn.ParameterList(nn.Parameter(value.to(self.packed.device, copy=True)) for value in values)
