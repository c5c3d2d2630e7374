"""Dynamic weight allocation: masks of weights generated anew for every sample, and the anchors of its embeddings."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.methods.at_once import at_once
from hatrack.methods.base import Batch, Earlier, EpochPlan, Loss, Setup
from hatrack.methods.complexity import curriculum_threshold, sample_complexity, scaled_epochs
from hatrack.methods.dwa.losses import (
    MaskMagnitude,
    anchor_loss,
    anchor_loss_of_code,
    orthogonal_candidates,
    sparsity_loss,
    sparsity_loss_of_code,
)
from hatrack.methods.dwa.masks import MaskForm, MaskGate, Usage
from hatrack.methods.dwa.network import Context, DWABackbone, DWANetwork
from hatrack.methods.importance import Fisher, averaged, fisher_diagonal
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.objectives import Classification
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task
from hatrack.support.modes import evaluation_mode
from hatrack.support.ranges import require_range

__all__ = ["DWA", "DWASettings", "DWAVariant", "choose_anchors", "positive_anchor", "simple_samples"]


class Anchors(NamedTuple):
    """Points that a task's embeddings are drawn to and pushed away from, each ``(D,)``.

    Attributes:
        positive: P.
        negative: N.
        task_negative: N_T; None where there is no earlier task.
    """

    positive: Tensor
    negative: Tensor
    task_negative: Tensor | None


def simple_samples(complexity: Tensor, below: float, most: int, generator: torch.Generator) -> Tensor:
    """Choose the samples to make anchors of: random ones less complex than a bound, or the simplest if none is.

    Args:
        complexity: ζ, ``(N,)``, N at least 1.
        below: the bound.
        most: at most so many.
        generator: on the CPU.
    """
    simple = (complexity < below).nonzero().squeeze(1)
    if not len(simple):
        return complexity.argmin().unsqueeze(0)
    return simple[torch.randperm(len(simple), generator=generator)[:most].to(simple.device)]


@torch.no_grad()
def positive_anchor(network: DWANetwork, task: str, x: Tensor) -> Tensor:
    """Measure P, the mean embedding of samples ``(N, ...)`` of a task, in evaluation mode."""
    with evaluation_mode(network):
        return network.embeddings(x, task).mean(dim=0)


@torch.no_grad()
def choose_anchors(
    network: DWANetwork,
    task: str,
    x: Tensor,
    y: Tensor,
    earlier: Sequence[Tensor],
    candidates: int,
    generator: torch.Generator,
) -> Anchors:
    """Choose the anchors of a task, from some of its samples.

    N is the one of some random vectors orthogonal to P, and N_T the one of the earlier tasks' positive anchors, with
    which the samples would have the highest cross-entropy if it were the embedding of all of them.

    Args:
        network: has a head for the task.
        task: its name.
        x: simple samples of it, ``(N, ...)``.
        y: their classes, ``(N,)``.
        earlier: positive anchors of the tasks before.
        candidates: number of vectors that N is chosen from.
        generator: draws them, on the CPU.
    """
    positive = positive_anchor(network, task, x)

    def worst(embeddings: Sequence[Tensor]) -> Tensor:
        logits = [network.logits(network.backbone(x, embedding.unsqueeze(0)), [task]) for embedding in embeddings]
        losses = torch.stack([F.cross_entropy(values, y) for values in logits])
        return embeddings[int(losses.argmax())]

    with evaluation_mode(network):
        negative = worst(list(orthogonal_candidates(positive, candidates, generator)))
        return Anchors(positive, negative, worst(earlier) if earlier else None)


class DWAVariant(enum.Enum):
    """Source of the formulas and numbers of dynamic weight allocation, which differ in paper and code."""

    PAPER = "paper"
    """The paper, "Pay attention to the task"."""

    CODE = "code"
    """The public code, ``felixnext/dwa``, with its defaults: a sparsity term of the opposite sense, sums over a batch
    of 32, norms that are not squared, plasticity as a mean over weights, and a sigmoid for masks."""


class DWANumbers(NamedTuple):
    """Values of the settings that are left to the variant where they are none; see :class:`DWASettings`."""

    anchor_strength: float
    plasticity_strength: float
    margin: float
    magnitude: MaskMagnitude
    gate: MaskGate


NUMBERS: Mapping[DWAVariant, DWANumbers] = MappingProxyType(
    {
        DWAVariant.PAPER: DWANumbers(20.0, 0.1, 1.5, MaskMagnitude.POSITIVE, MaskGate.TANH),
        DWAVariant.CODE: DWANumbers(10.0, 0.05, 1.0, MaskMagnitude.ABSOLUTE, MaskGate.SIGMOID),
    }
)
"""Values of paper and code."""

BATCH_OF_CODE = 32
"""Samples in a batch of the code, over which it sums; a mean times this is the same for batches of any size."""

FULL_TRAINING = 200
"""Epochs that the lengths of curriculum and warm-up are meant for; both shrink in proportion in shorter trainings."""


@dataclass(frozen=True)
class DWASettings:
    """Settings of DWA, with the paper's values; where it gives none, those of its author's code, or ours.

    ``variant=code`` gives the formulas and defaults of the code instead. What still differs from the code then: the
    Fisher diagonal is that of the cross-entropy in evaluation mode, not of the whole loss in training mode; and
    gradients are clipped to a norm of 1 (its own 10000 is ``gradient_norm=10000``).

    Attributes:
        variant: paper, or code. Settings that are none here have its values.
        context: processor (masks by the sample) or task (by the task's number).
        mask: tanh-of-outer (the code) or outer-of-tanh (far faster), for dense layers.
        embedding: length of an embedding; as a one-hot task number, the most tasks there can be.
        gate: tanh (the paper), or sigmoid (the code), of the entries of masks.
        anchor_strength: λ1, of the anchor loss: 20 in the paper, 10 in the code.
        plasticity_strength: λ2, of the plasticity loss: 0.1 in the paper, 0.05 in the code.
        sparsity_strength: λ3, of the sparsity loss.
        margin: α of the triplet loss: 1.5 in the paper, 1 in the code.
        delta: δ, weight of the triplets with an earlier task's anchor.
        eta: η of the plasticity loss, which the paper leaves open.
        magnitude: of a mask's entry in the plasticity loss: positive (the paper) or absolute (the code).
        allowed: μ, mean magnitude of a layer's mask that costs nothing; in the code, how far it may be below 1.
        anchor_first_task: whether the first task has an anchor loss; not so in the code.
        anchor_complexity: anchors are made of samples less complex than this (the code).
        anchor_samples: so many of them at most: 10 batches of 32 (the code).
        candidates: vectors that the negative anchor is chosen from (the code).
        fisher: estimate of the Fisher diagonal; batches, as the code's ancestor, the HAT authors' code.
        curriculum_start: complexity up to which samples are learned from in the first epoch.
        curriculum_epochs: epochs until all are, of 200; in proportion if there are fewer. 0 for no curriculum.
        warmup_epochs: first epochs with a lower learning rate, of 200; in proportion if there are fewer.
        warmup_divisor: what the learning rate is divided by in them.
        gradient_norm: largest norm of the gradient of all parameters together, our addition: with the paper's λ3 a
            single step on the sparsity loss otherwise drives the masks of layers of some hundred units to ±1 for good.
        chunk_entries: most entries of masks held at once.
    """

    variant: DWAVariant = DWAVariant.PAPER
    context: Context = Context.PROCESSOR
    mask: MaskForm = MaskForm.TANH_OF_OUTER
    embedding: int = 100
    gate: MaskGate | None = None
    anchor_strength: float | None = None
    plasticity_strength: float | None = None
    sparsity_strength: float = 500.0
    margin: float | None = None
    delta: float = 1.0
    eta: float = 1.0
    magnitude: MaskMagnitude | None = None
    allowed: float = 0.2
    anchor_first_task: bool = False
    anchor_complexity: float = 0.4
    anchor_samples: int = 320
    candidates: int = 5
    fisher: Fisher = Fisher.BATCHES
    curriculum_start: float = 0.2
    curriculum_epochs: int = 100
    warmup_epochs: int = 10
    warmup_divisor: float = 750.0
    gradient_norm: float = 1.0
    chunk_entries: int = 2**24

    def __post_init__(self) -> None:
        require_range(self, "embedding", least=2)
        require_range(self, "anchor_samples", "candidates", "chunk_entries", "warmup_divisor", least=1)
        require_range(self, "gradient_norm", above=0)
        require_range(self, "curriculum_start", "allowed", least=0, most=1)

    @property
    def numbers(self) -> DWANumbers:
        """Settings that may be left to the variant, with its values where they are none."""
        variant = NUMBERS[self.variant]
        own = {key: getattr(self, key) for key in variant._fields}
        return variant._replace(**{key: value for key, value in own.items() if value is not None})


class DWA(MultiHeadMethod):
    """Trains a :class:`~hatrack.methods.dwa.network.DWANetwork` with the loss (1) of :mod:`hatrack.methods.dwa.losses`.

    Earlier tasks are protected by penalties alone, and stem, processor and generators not even by those: it forgets.

    An epoch learns from the samples up to a complexity that grows. Anchors are chosen before every epoch: P is the mean
    embedding of simple samples; N the candidate orthogonal to P, and N_T the earlier task's P, with which all those
    samples would have the highest cross-entropy. As the anchors move, validation leaves the anchor loss out.
    """

    name = "dwa"
    description = "dynamic weight allocation: masks of weights generated from each sample; forgets"
    source = "Geilert, fork of HAT"
    objectives = (Classification,)
    settings_type = DWASettings
    earlier = Earlier({k: v for k, v in NUMBERS[DWAVariant.PAPER]._asdict().items() if k != "gate"})
    kept = ("importance",)
    network: DWANetwork
    settings: DWASettings

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.importance: dict[str, Tensor] = {}
        self.positives: list[Tensor] = []
        self._complexity = torch.zeros(0)
        self._anchors: Anchors | None = None

    def new_network(self) -> DWANetwork:
        """Make the network with its initial weights, without tasks."""
        settings, example = self.settings, torch.zeros(1, *self.setup.input_shape)
        masks = (settings.context, settings.embedding, settings.mask, settings.chunk_entries)
        generator, gate = self.setup.generator("dwa"), settings.numbers.gate
        backbone = DWABackbone(self.setup.build_backbone(), example, *masks, generator, gate)
        return DWANetwork(backbone, backbone.features).to(self.setup.device)

    def begin_task(self, task: Task) -> None:
        """Open the task's head, and measure how complex its samples are.

        Raises:
            InputError: there are as many tasks already as a one-hot embedding can tell apart.
        """
        if self.settings.context is Context.TASK and len(self.network.task_names) == self.settings.embedding:
            raise InputError(f"one-hot tasks: embedding={self.settings.embedding} tells no more tasks apart; raise it")
        super().begin_task(task)
        self._complexity = sample_complexity(task.train.load()[0]).to(self.setup.device)
        self._anchors = None

    def begin_epoch(self, epoch: int, epochs: int, samples: Batch) -> EpochPlan:
        """Choose the anchors; curriculum and warm-up, both shorter where there are fewer than 200 epochs."""
        settings = self.settings
        if self._with_anchors():
            simple, task = self._simple_samples("anchor samples", epoch), self.network.task_names[-1]
            generator = self.setup.generator("anchors", task, epoch)
            x, y = samples.x[simple], samples.y[simple]
            self._anchors = choose_anchors(self.network, task, x, y, self.positives, settings.candidates, generator)
        length = scaled_epochs(settings.curriculum_epochs, epochs, FULL_TRAINING)
        threshold = curriculum_threshold(epoch, length, settings.curriculum_start)
        is_warm = epoch > scaled_epochs(settings.warmup_epochs, epochs, FULL_TRAINING)
        rows = None if threshold == 1.0 else (self._complexity <= threshold).nonzero().squeeze(1)
        return EpochPlan(rows, 1.0 if is_warm else 1.0 / settings.warmup_divisor)

    def _with_anchors(self) -> bool:
        if self.settings.context is Context.TASK:
            return False  # a one-hot embedding is what it is
        return self.settings.anchor_first_task or len(self.network.task_names) > 1

    def _simple_samples(self, purpose: str, epoch: int = 0) -> Tensor:
        """Choose the samples to make anchors of."""
        generator, settings = self.setup.generator(purpose, self.network.task_names[-1], epoch), self.settings
        return simple_samples(self._complexity, settings.anchor_complexity, settings.anchor_samples, generator)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy, plasticity and sparsity; in training steps the anchor loss as well."""
        settings, numbers = self.settings, self.settings.numbers
        of_code = settings.variant is DWAVariant.CODE
        usage = Usage(settings.eta, numbers.magnitude, self._weighed_importance())
        result = self.network.run(batch.x, batch.tasks, batch.task_of, usage)
        logits = self.network.logits(result.features, batch.tasks, batch.task_of)
        sparsity = (sparsity_loss_of_code if of_code else sparsity_loss)(result.activity, settings.allowed)
        loss = Loss.of(logits, batch)
        loss = loss.plus(numbers.plasticity_strength * result.plasticity.sum(dim=0).mean())
        sums = BATCH_OF_CODE if of_code else 1
        loss = loss.plus(settings.sparsity_strength * sums * sparsity.sum(dim=0).mean())
        if self._anchors is not None and batch.rows is not None:
            complexity = self._complexity[batch.rows]
            shared = (result.embedding, complexity, *self._anchors, numbers.margin, settings.delta)
            anchors = anchor_loss_of_code(*shared) if of_code else anchor_loss(*shared).mean()
            loss = loss.plus(numbers.anchor_strength * anchors)
        return loss

    def _weighed_importance(self) -> Mapping[str, Tensor]:
        """Return the importance of weights, divided by their number where plasticity is a mean over them."""
        if self.settings.variant is DWAVariant.PAPER:
            return self.importance
        return {name: value / value.numel() for name, value in self.importance.items()}

    def before_step(self) -> None:
        """Clip the gradient."""
        nn.utils.clip_grad_norm_(self.trained_parameters(), self.settings.gradient_norm)

    @at_once()
    def end_task(self, task: Task) -> None:
        """Remember the task's positive anchor, and merge what its masked weights matter to it into the mean."""
        settings, tasks = self.settings, len(self.network.task_names)
        fisher = fisher_diagonal(self.network, task, settings.fisher, self.setup.generator("fisher", task.name))
        masked = {name: fisher[name] for name in self.network.backbone.layers()}
        self.importance = averaged(self.importance, masked, tasks)
        if settings.context is Context.PROCESSOR:
            x = task.train.load()[0].to(self.setup.device)[self._simple_samples("last anchor samples")]
            self.positives = [*self.positives, positive_anchor(self.network, task.name, x)]
        self._anchors = None

    def extra_state(self) -> dict[str, Tensor]:
        """Return the importance of weights, and the positive anchors by their task's number."""
        return super().extra_state() | {f"positive.{number}": value for number, value in enumerate(self.positives)}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`extra_state` gave."""
        super().load_extra_state(state)
        positives = part_of(state, "positive.")
        self.positives = [positives[str(number)] for number in range(len(positives))]
