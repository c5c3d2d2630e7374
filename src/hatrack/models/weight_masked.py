"""WeightMaskedNetwork: a mask of weights per task around a network that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from hatrack.compact import CompactNetwork
from hatrack.errors import InputError
from hatrack.growth.policy import Growth
from hatrack.masks import (
    CarriedValues,
    ElasticWeights,
    Embedding,
    FreeWeights,
    MaskSource,
    QuadraticPenalty,
    Unmasked,
    WeightConditioning,
    WeightRole,
    WeightTask,
)
from hatrack.models.attaching import explains_failure
from hatrack.models.base import MaskedNetwork, read_only
from hatrack.models.taking_out import extract_weights, take_out
from hatrack.models.weight_masking import WeightMasking
from hatrack.state.undo import all_or_nothing, attaches_or_not
from hatrack.support.inputs import Inputs
from hatrack.support.interface import Features, Interface

__all__ = ["WEIGHTS_FORMAT", "WeightMaskedNetwork", "with_present_names"]

WEIGHTS_FORMAT = "hatrack.WeightMaskedNetwork"

_EARLIER = "tether."
"""Beginning of the names that tensors of the quadratic penalty had in files of earlier versions."""
"""Format that files of saved networks name."""


class WeightMaskedNetwork(MaskedNetwork[WeightTask]):
    """Network that learns tasks one after the other, each with some of its weights, and forgets none of them.

    The weights of dense, convolutional, recurrent and attention layers have a mask per task; layers compute with
    ``A ⊙ W``. Everything else (biases, norms, tokens) is copied for each task, or for the first one alone; every task
    has its own head. Parameters that have ``requires_grad=False`` now are untrained for good, and are used as they are.
    The backbone itself is never touched but for its weights: twins of its modules are run in its
    place. Once a task is consolidated its masks are 0 or 1, kept as bits, and its logits never change by a single bit:
    for the same batch shape, type, device, number of threads, grad mode and library versions, in evaluation mode. Only
    :class:`hatrack.masks.ElasticWeights` promises less: with them masks, biases and heads stay, and weights drift.

    Args:
        backbone: maps a batch to features, ``(N, …, F)``, or to a result that holds them.
        example_input: a batch of the shape that the backbone expects: a tensor; a tuple of positional arguments; or a
            mapping of keyword arguments, nested as the backbone takes them. Values do not matter, but for integers,
            truth values and masks of zeros and ones among several inputs. It is moved to the backbone's device.
        source: source of the masks; :class:`hatrack.masks.Embedding` if left out.
        conditioning: rule by which later tasks may change weights; :class:`hatrack.masks.FreeWeights` if left out.
        unmasked: owner of the copies of parameters without masks.
        growth: when the backbone is widened before a task is added, so that the number of tasks has no bound; None
            leaves its widths as they are, unless :meth:`grow` is called. Old outputs then agree up to rounding across a
            widening, and to the bit between widenings.
        features: choice of the features in the backbone's result: None where the result is a tensor, a key or the name
            of an attribute, an index, or a function from the result to a tensor.
        unit_axis: axis of the features that heads act along, such as 1 for maps ``(N, C, H, W)``.
        batch_axis: axis of every input that counts samples.

    Attributes:
        backbone: the network that was given.
        source: source of the masks.
        conditioning: rule by which later tasks may change weights.
        unmasked: owner of the copies of parameters without masks.
        growth: when the backbone is widened by itself.
        quadratic_penalty: quadratic penalty on elastic weights; None with other conditionings.
        carried: values that the masks of the next task are learned from; None where its source draws them anew.
        example_shape: shape of the example input.

    Raises:
        UnsupportedError: the backbone has no weight to mask, or a parameter that no mask could be for; or there is a
            growth, and it does something that no rule explains.
        InputError: the backbone does not give features, or is inside another network of masks.
        GuaranteeError: random masks were tried out, and an entry that should have been free changed the outputs.

    Example:
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU())
        >>> net = WeightMaskedNetwork(backbone, torch.zeros(1, 1, 28, 28))
        >>> net.add_task("shoes", num_classes=2)
        >>> net(torch.zeros(5, 1, 28, 28), "shoes").shape
        torch.Size([5, 2])
    """

    format = WEIGHTS_FORMAT
    masking: WeightMasking
    quadratic_penalty: QuadraticPenalty | None
    carried: CarriedValues | None

    @explains_failure
    @attaches_or_not
    def __init__(
        self,
        backbone: nn.Module,
        example_input: Inputs,
        *,
        source: MaskSource | None = None,
        conditioning: WeightConditioning | None = None,
        unmasked: Unmasked = Unmasked.PER_TASK,
        growth: Growth | None = None,
        features: Features = None,
        unit_axis: int = -1,
        batch_axis: int = 0,
    ) -> None:
        interface = Interface(features, unit_axis, batch_axis)
        source = Embedding() if source is None else source
        conditioning = FreeWeights() if conditioning is None else conditioning
        super().__init__(
            backbone,
            example_input,
            growth,
            interface,
            lambda tasks, example: WeightMasking(
                backbone, tasks, example, interface, source, conditioning, unmasked, self.initialization.initial_scales
            ),
        )
        self.register_module("quadratic_penalty", self.masking.penalty)
        self.register_module("carried", self.masking.carried)

    source: Final[MaskSource] = read_only("masking.source")
    """Source of masks."""

    conditioning: Final[WeightConditioning] = read_only("masking.conditioning")
    """Rule by which later tasks may change weights."""

    unmasked: Final[Unmasked] = read_only("masking.unmasked")
    """Owner of the copies of parameters without masks: each task, or the first one."""

    @property
    def roles(self) -> dict[str, WeightRole]:
        """Role of every parameter of ``named_parameters()``, by name."""
        masked = {f"backbone.{name}" for name in self.masking.layout.masked}
        roles = dict.fromkeys((name for name, _ in self.named_parameters()), WeightRole.PER_TASK)
        roles |= dict.fromkeys(masked, WeightRole.MASKED)
        return roles | {f"backbone.{name}": WeightRole.UNTRAINED for name in self.masking.untrained}

    def penalty(self) -> Tensor:
        """Return the cost of leaving where elastic weights were, to be added to the loss: ``λ/2 Σ F (θ − θ*)²``.

        A scalar; 0 with other conditionings, and before :meth:`anchor` was called.
        """
        if self.quadratic_penalty is None or not self.tasks.consolidated:
            return torch.zeros((), device=self.masking.device)
        assert isinstance(self.conditioning, ElasticWeights)
        return self.conditioning.strength / 2 * self.quadratic_penalty.distance(self.masking.named_weights())

    @all_or_nothing(lambda net: () if net.quadratic_penalty is None else net.quadratic_penalty.buffers())
    def anchor(self, importance: Mapping[str, Tensor]) -> None:
        """Anchor elastic weights where they are now, once after every task; importance adds up over tasks.

        Args:
            importance: how much every entry of the weights matters to the task, none negative, by the names of
                :meth:`masks`; such as the diagonal of the Fisher information under the task's mask.

        Raises:
            InputError: the network does not have elastic weights, or these are not its weights.
        """
        if self.quadratic_penalty is None:
            raise InputError("anchor acts on elastic weights; give the network conditioning=ElasticWeights(...)")
        weights = self.masking.named_weights()
        if {name: value.shape for name, value in importance.items()} != {n: w.shape for n, w in weights.items()}:
            raise InputError(f"anchor takes a tensor of its shape for every weight: {', '.join(weights)}")
        self.quadratic_penalty.anchor(weights, importance)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        present = with_present_names(state_dict, prefix)
        if present.keys() != state_dict.keys():  # in place, since torch loads the parts from it, too
            state_dict.clear()
            state_dict.update(present)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extract(self, task: str, example: Inputs | None = None) -> CompactNetwork:
        """Return a consolidated task as a plain module of its own: masks are written into the weights as zeros.

        Units that are dead then are cut out, and logits are this network's up to rounding (1e-5, relative to the
        largest), which is checked. What is dead is seen by looking at ``example`` and at random samples near and far: a
        backbone whose own code switches on what samples are like is best shown real ones of all kinds. Where no unit is
        dead, as is usual for masks of weights, the shape stays, and logits are the same to the bit; ``summary`` says
        which, and how many weights are not 0. This network stays as it is.

        Args:
            task: the task.
            example: samples to compare on, and to count operations with; random ones if left out, which is not enough
                where inputs are integers.

        Returns:
            The network in evaluation mode.

        Raises:
            InputError: there is no such task, or it is not consolidated.
            UnsupportedError: the backbone with zeros written in does not give this network's logits.
        """
        return take_out(self, task, example, partial(extract_weights, example=example))


def with_present_names(tensors: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return tensors of a network by the names that they have now; they may be those of an earlier version.

    Args:
        tensors: the tensors by name.
        prefix: what their names begin with, where the network is a part of a larger module.
    """
    old = f"{prefix}{_EARLIER}"
    return {
        f"{prefix}quadratic_penalty.{name.removeprefix(old)}" if name.startswith(old) else name: value
        for name, value in tensors.items()
    }
