"""Sources of masks of weights: an embedding, a score, or the weights themselves.

A source makes the mask of one weight at a time. A task learns its mask by *values* of the weight's shape; a source
without values chooses by the weight alone.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hatrack import functional
from hatrack.errors import InputError
from hatrack.functional import Compensation, straight_through
from hatrack.functional.blocks import empty_like
from hatrack.support.parameters import DRAWN, type_of_choice
from hatrack.support.ranges import require_range, require_types

__all__ = [
    "Embedding",
    "Magnitude",
    "MaskSource",
    "Passed",
    "Scores",
    "apply_mask",
    "largest",
    "signed_constant",
    "straight_through",
]


def largest(values: Tensor, count: int) -> Tensor:
    """Choose a tensor's largest entries; of equal ones the first.

    Args:
        values: any shape.
        count: number of entries to choose, 0 up to all of them.

    Returns:
        Booleans of that shape, True at exactly ``count`` entries; at fewer where there are "not a number" entries,
        which are never chosen.

    Raises:
        ValueError: there are not that many entries.
    """
    flat = values.detach().flatten()
    if not 0 <= count <= len(flat):
        raise ValueError(f"{count} of {len(flat)} entries cannot be chosen")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    chosen = _largest_on_a_cpu(flat, count) if _is_plain_on_a_cpu(flat) else _largest_anywhere(flat, count)
    return chosen.view(values.shape)


def _is_plain_on_a_cpu(flat: Tensor) -> bool:
    """Return whether numpy can look at the numbers: in code that torch traces it would take them for constants."""
    is_transformed = (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )
    return flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64) and not is_transformed


def _largest_on_a_cpu(flat: Tensor, count: int) -> Tensor:
    """Choose by numpy, in a tenth of torch's time, which takes seconds where entries are nearly sorted."""
    numbers = flat.numpy()
    least = np.partition(numbers, len(numbers) - count)[-count]
    chosen = numbers >= least
    surplus = int(np.count_nonzero(chosen)) - count
    if surplus > 0:  # below 0 where entries are no numbers, which are never chosen
        chosen[np.flatnonzero(numbers == least)[-surplus:]] = False
    return torch.from_numpy(chosen)


def _largest_anywhere(flat: Tensor, count: int) -> Tensor:
    least = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat >= least
    surplus = int(chosen.sum()) - count
    if surplus > 0:
        chosen[(flat == least).nonzero()[-surplus:, 0]] = False
    return chosen


def apply_mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Return a weight with 0 where its mask is off; a product with zero would keep infinities.

    Args:
        weight: any shape.
        mask: booleans of that shape; None keeps all entries.
    """
    return weight if mask is None else weight.masked_fill(~mask, 0.0)


class Passed(NamedTuple):
    """Masked weight in training, with its regularization cost.

    Attributes:
        weight: the masked weight, of the weight's shape.
        taken: sum of the mask over free entries, a scalar; None for a source that does not count it.
    """

    weight: Tensor
    taken: Tensor | None


class MaskSource(abc.ABC):
    """Source of masks: makes the mask of one weight, in training and finally.

    Attributes:
        kind: its name in files.
        bounded: whether values are clamped to [−6, 6] after every step.
    """

    kind: ClassVar[str]
    bounded: ClassVar[bool] = False

    @property
    def is_priced(self) -> bool:
        """Return whether masks have a regularization cost; without one, :meth:`regularization` is not asked for it."""
        return type(self).regularization is not MaskSource.regularization

    @property
    def carries(self) -> bool:
        """Return whether a task's values begin as those of the task before were when its masks were chosen."""
        return False

    def start(self, weight: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Return the initial values of a task, of the weight's shape, on the CPU; None if the source has none.

        Args:
            weight: the weight.
            generator: source of randomness on the CPU; None takes torch's global one.
        """
        return None

    @abc.abstractmethod
    def in_training(self, values: Tensor | None, progress: float) -> Tensor | None:
        """Return the mask while the task is trained, numbers in [0, 1] of the weight's shape; None uses all entries.

        Args:
            values: the task's values of the weight; None if the source has none.
            progress: position within the epoch, 0 (first batch) to 1 (last).
        """

    def passed(
        self,
        weight: Tensor,
        values: Tensor | None,
        free: Tensor,
        progress: float,
        new: Callable[[Tensor], Tensor] = empty_like,
    ) -> Passed:
        """Mask a weight by :meth:`in_training`, with a gradient for the weight and for the values.

        Args:
            weight: the weight.
            values: the task's values of it; None if the source has none.
            free: booleans of its shape, False where consolidated tasks use an entry.
            progress: position within the epoch, 0 (first batch) to 1 (last).
            new: function that returns a contiguous tensor like another one, with any values, for results.
        """
        mask = self.in_training(values, progress)
        return Passed(weight if mask is None else weight * mask.to(weight.dtype), None)

    @abc.abstractmethod
    def final(self, values: Tensor | None, weight: Tensor, used: Tensor) -> Tensor:
        """Return the final mask, booleans of the weight's shape.

        Args:
            values: the task's values of the weight; None if the source has none.
            weight: the weight.
            used: booleans of its shape, True where consolidated tasks use it.
        """

    def regularization(self, masks: Sequence[Tensor], used: Sequence[Tensor]) -> Tensor:
        """Return the regularization cost of all masks, a scalar; 0 for a source that sets their size by itself.

        Args:
            masks: the mask of every weight, numbers in [0, 1].
            used: booleans for every weight, True where consolidated tasks use it.
        """
        return torch.zeros(())


@dataclass(frozen=True)
class Embedding(MaskSource):
    """Source with an embedding value per weight: attention ``A = σ(s E)``, annealed as in HAT (Raskoti and Ghimire).

    Attributes:
        s_max: largest scale of the gates, > 0.
        compensation: arithmetic of the embedding's gradient.
    """

    kind = "embedding"
    bounded = True

    s_max: float = 400.0
    compensation: Compensation = Compensation.EXACT

    def __post_init__(self) -> None:
        require_types(self)
        try:
            functional.annealed_scale(1.0, self.s_max)
        except ValueError as error:
            raise InputError(str(error)) from error

    def start(self, weight: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw values from N(0, 1)."""
        return torch.randn(weight.shape, generator=generator, dtype=DRAWN).to(type_of_choice(weight.dtype))

    def in_training(self, values: Tensor | None, progress: float) -> Tensor:
        """Return the gate at the scale of Eq. 3, whose gradient is compensated for that scale."""
        assert values is not None
        scale = functional.annealed_scale(progress, self.s_max)
        return functional.compensated_gate(values, scale, self.s_max, self.compensation)

    def passed(
        self,
        weight: Tensor,
        values: Tensor | None,
        free: Tensor,
        progress: float,
        new: Callable[[Tensor], Tensor] = empty_like,
    ) -> Passed:
        """Return the weight times its gate, and the sum of the gates of free entries."""
        assert values is not None
        scale = functional.annealed_scale(progress, self.s_max)
        return Passed(*functional.gated_weight(weight, values, free, scale, self.s_max, self.compensation, new))

    def final(self, values: Tensor | None, weight: Tensor, used: Tensor) -> Tensor:
        """Use entries with an embedding above 0; if there is none, the largest, or the layer would be constant."""
        assert values is not None
        mask = functional.hard_attention(values.detach())
        return mask if mask.any() else largest(values, 1)

    def regularization(self, masks: Sequence[Tensor], used: Sequence[Tensor]) -> Tensor:
        """Return the share of the free weights that the task uses: Eq. 5 with weights for units."""
        return functional.attention_regularization(masks, used)


@dataclass(frozen=True)
class Scores(MaskSource):
    """Source with a score per weight, learned by a straight-through estimator; each layer uses the best weights.

    With ``keep`` these are a share with the largest ``|score|`` (edge-popup, Ramanujan et al., CVPR 2020, as in WSN,
    Kang et al., ICML 2022); without it those with scores of at least 0 (as in the authors' code of SupSup, Wortsman et
    al., NeurIPS 2020), so that the size of a mask is learned.

    Attributes:
        keep: share of each layer's weights that a task uses, above 0 and up to 1; None for scores of at least 0.
        carried: whether a task's scores begin as those of the task before ended (as in the authors' code of WSN), so
            that tasks share more weights; drawn anew otherwise, and after a task was unlearned or the network widened.
    """

    kind = "scores"

    keep: float | None = 0.5
    carried: bool = False

    def __post_init__(self) -> None:
        require_range(self, "keep", above=0, most=1)

    @property
    def carries(self) -> bool:
        """Return whether a task's scores begin as those of the task before ended."""
        return self.carried

    def start(self, weight: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw scores uniformly from ``±1/√fan_in``, as torch's layers begin."""
        bound = weight[0].numel() ** -0.5
        drawn = torch.empty(weight.shape, dtype=DRAWN).uniform_(-bound, bound, generator=generator)
        return drawn.to(type_of_choice(weight.dtype))

    def in_training(self, values: Tensor | None, progress: float) -> Tensor:
        """Return the present choice, with a gradient for every score."""
        assert values is not None
        return straight_through(values if self.keep is None else values.abs(), self._chosen(values))

    def passed(
        self,
        weight: Tensor,
        values: Tensor | None,
        free: Tensor,
        progress: float,
        new: Callable[[Tensor], Tensor] = empty_like,
    ) -> Passed:
        """Return the chosen weights, with a gradient for every score."""
        assert values is not None
        if values.dtype != weight.dtype or not _is_plain_on_a_cpu(values):
            return super().passed(weight, values, free, progress, new)
        chosen = self._chosen(values, new)
        return Passed(functional.chosen_weight(weight, values, chosen, by_size=self.keep is not None, new=new), None)

    def final(self, values: Tensor | None, weight: Tensor, used: Tensor) -> Tensor:
        """Return the present choice."""
        assert values is not None
        return self._chosen(values)

    def _chosen(self, values: Tensor, new: Callable[[Tensor], Tensor] = empty_like) -> Tensor:
        values = values.detach()
        if self.keep is None:
            mask = values >= 0
            return mask if mask.any() else largest(values, 1)
        return largest(torch.abs(values, out=new(values)), max(1, round(self.keep * values.numel())))


@dataclass(frozen=True)
class Magnitude(MaskSource):
    """Source of the largest weights: a task trains all free ones, and keeps the largest and those of earlier tasks.

    Call :meth:`hatrack.WeightMaskedNetwork.settle` between training and retraining (PackNet, Mallya and Lazebnik, CVPR
    2018).

    Attributes:
        prune_first: share of each layer's weights that the first task frees again, at least 0 and below 1.
        prune: share of the free ones that every later task frees again.
    """

    kind = "magnitude"

    prune_first: float = 0.5
    prune: float = 0.75

    def __post_init__(self) -> None:
        require_range(self, "prune_first", "prune", least=0, below=1)

    def in_training(self, values: Tensor | None, progress: float) -> None:
        """Return no mask: all weights are used."""

    def final(self, values: Tensor | None, weight: Tensor, used: Tensor) -> Tensor:
        """Use weights of earlier tasks, and all free ones but the smallest; the share is rounded to whole weights."""
        free = int((~used).sum())
        share = self.prune if used.any() else self.prune_first
        return used | largest(weight.detach().abs().masked_fill(used, -1.0), free - round(share * free))


def signed_constant(weight: Tensor) -> Tensor:
    """Return a weight of the same signs and one magnitude, ``√(2 / fan_in)``: the signed Kaiming constant.

    Ramanujan et al., CVPR 2020; the weights of SupSup, which are never trained, are such constants.

    Args:
        weight: two or more dimensions, of which the first counts the outputs.
    """
    size = float((2 / weight[0].numel()) ** 0.5)
    return torch.where(weight < 0, -size, size).to(weight.dtype)
