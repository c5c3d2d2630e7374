"""Hard attention to the task."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Uniform

from hatrack.errors import InputError
from hatrack.functional import EMBEDDING_BOUND, Compensation, Conditioning, GateFunction, Regularization
from hatrack.gating.norms import BatchNorms
from hatrack.methods.base import Batch, Earlier, EpochPlan, Pace, Schedule, Setup
from hatrack.methods.late_cost import Fall, Onset
from hatrack.methods.masked import MaskedMethod, Room, growth_of
from hatrack.methods.turning import TurningSettings
from hatrack.models.hat import HATNetwork
from hatrack.protection.conditioning import Fading, UnitConditioning
from hatrack.streams import Task
from hatrack.support.ranges import require_nonnegative, require_range

__all__ = ["HAT", "HATSettings", "InitialEmbedding", "MaskSchedule", "Room"]

SETTLED_SHARE = 0.15
"""Share of the epochs that train under the final mask there."""

TRAVEL, LEAST_C, MOST_C = 5.0, 0.75, 5.0
"""Way that the regulariser would take an embedding of 1 down in the time it has there, with gates as they are at the
beginning of an epoch (later they let little of it through), and bounds of the c that follows."""

ADAM_C = 2.0
"""The c of :attr:`MaskSchedule.SETTLED` with Adam, in all trainings: Adam makes steps of one size of the regulariser's
gradient and the task's together, whatever their sizes."""

NARROW, LEARNED_AT = 100, 0.5
"""Most units of a network that counts as narrow, and the fall of the loss at which a task counts as learned there.

``ADAM_C`` was chosen on wide networks. The fewer units share the cost, the more of it each one bears: most of a narrow
network is switched off before anything is learned. A smaller c would let the first tasks keep too many units. Holding c
back until the loss has fallen changes next to nothing where a task is learned in time.
"""

PAPER_C = 0.75
"""The c of the paper."""

SETTLED = "settled"
"""Name in the state of a training for whether the mask is final."""

FALL = "fall"
"""Name in the state of a training for how far the loss has fallen."""

SAME = ("s_max", "hard", "compensation", "gate_function", "regularizer", "batch_norms", "gate_inputs")
"""Settings that the network has under the same name."""


class MaskSchedule(enum.Enum):
    """Course of a mask over the training of its task."""

    PAPER = "paper"
    """Starts from N(0, 1), half of the units; the regulariser counts from the first epoch, gates move to the last."""

    SETTLED = "settled"
    """Starts from U(0, 2), all units; the regulariser sets in late, and the last epochs train under the final mask."""


class InitialEmbedding(enum.Enum):
    """Distribution that embeddings are drawn from."""

    NORMAL = "normal"
    """N(0, 1)."""

    UNIFORM = "uniform"
    """U(low, high)."""


@dataclass(frozen=True)
class HATSettings(TurningSettings):
    """Settings of HAT, with the paper's values but for the schedule of masks.

    Attributes:
        schedule: of the mask. settled: a task begins with all units, c rises from 0 between 20 and 60 % of the epochs
            (at the latest between the 10th and the 25th; between 24 and 71 % of one to three), and from 4 epochs on the
            last 15 % of them train the weights under the final mask. paper: a task begins with half of its units, and
            its mask moves to the last step; deep networks often learn nothing with it.
        s_max: largest scale of the gates; 25 to 800 work.
        c: weight of the regulariser, how compact a task has to be; 0.1 to 2.5 work. None is 0.75 with the paper's
            schedule. With the settled one it is 2 under Adam with ``embedding_lr_factor`` None, and else as much, 0.75
            to 5, as switches units off in the steps there are, as if of SGD (momentum does not count).
        learned_at: fall of the training loss, in [0, 1], up to which the settled schedule holds c back, so that a small
            network learns a task before it costs units. It is a share of the loss of answering 0 to everything, or of
            the first epoch's if that is higher. c grows as the loss falls, is whole once it has fallen so far, and is
            whole in the mask's last epoch at any rate. 0 lets c follow the epochs alone, as ``rotations`` and
            ``contrastive`` do in any case, whose losses are other ones. None is 0.5 in networks of up to 100 units that
            learn with Adam and with c and ``embedding_lr_factor`` of None, and else 0.
        hard: masks of exactly 0 and 1 once a task is learned; false keeps the sigmoid's values, which forgets a little.
        compensation: arithmetic of the embedding's gradient: exact, float32 (as the authors' code), or none.
        gate_inputs: learn which input features a task uses, too.
        capacity: fixed, or grow: layers that are nearly full get more units before a task begins.
        growth_threshold: a layer grows when a smaller share of its original width is free.
        growth_share: by how large a share of its original width.
        conditioning: which weights earlier tasks hold: cumulative (the paper) or per-task, which frees more.
        batch_norms: per-task (each task has its own), or shared (the first task's, frozen).
        gate_function: sigmoid (the paper), hard-sigmoid, arctan, softsign, or step.
        regularizer: weighted-l1 (the paper); layered-l1, where units of narrow layers cost more; l1 or l2, which count
            units again that earlier tasks use.
        embedding: what embeddings start as: normal, N(0, 1), or uniform, U(embedding_low, embedding_high); none leaves
            it to the schedule.
        embedding_low: at least 0, so that every unit starts on; 0 and 2 are the paper's choice to compress a task.
        embedding_high: at most 6.
        embedding_lr_factor: how much faster embeddings learn than weights; 10 to 50 without compensation (the paper,
            appendix D). None is 1 with SGD. With Adam it is as much, 1 to 50, as lets embeddings cross half of their
            range in the steps of all epochs; weight decay leaves them alone then.
        keep: what is left of a task's hold on its weights after one more task; 1 holds them for good, less lets old
            tasks fade to make room for new ones (the paper's "more online mode", section 2.3; with s_max near 1).
    """

    schedule: MaskSchedule = MaskSchedule.SETTLED
    s_max: float = 400.0
    c: float | None = None
    learned_at: float | None = None
    hard: bool = True
    compensation: Compensation = Compensation.EXACT
    conditioning: Conditioning = Conditioning.CUMULATIVE
    batch_norms: BatchNorms = BatchNorms.PER_TASK
    gate_inputs: bool = False
    gate_function: GateFunction = GateFunction.SIGMOID
    regularizer: Regularization = Regularization.WEIGHTED_L1
    embedding: InitialEmbedding | None = None
    embedding_low: float = 0.0
    embedding_high: float = 2.0
    embedding_lr_factor: float | None = None
    keep: float = 1.0
    capacity: Room = Room.FIXED
    growth_threshold: float = 0.2
    growth_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "s_max", above=0)
        require_range(self, "keep", most=1)
        if self.c is not None:
            require_nonnegative(self, "c")
        if self.learned_at is not None:
            require_range(self, "learned_at", least=0, most=1)
        if self.embedding_lr_factor is not None:
            require_range(self, "embedding_lr_factor", above=0)
        if not self.embedding_low < self.embedding_high <= EMBEDDING_BOUND:
            raise InputError(
                "embedding_low must be below embedding_high, and that at most 6, "
                f"not {self.embedding_low} and {self.embedding_high}"
            )
        if self.keep < 1 and self.conditioning is Conditioning.PER_TASK:
            raise InputError("keep below 1 goes with conditioning=cumulative: what fades is held by all tasks together")
        growth_of(self)


class HAT(MaskedMethod):
    """Trains a :class:`~hatrack.HATNetwork`."""

    name = "hat"
    description = "hard attention to the task: a mask of units per task, nothing forgotten"
    source = "Serrà et al., ICML 2018"
    settings_type = HATSettings
    capturable = True
    choices = (*SAME, "conditioning")
    earlier = Earlier(
        {"learned_at": 0.0},
        before=Earlier(
            {"learned_at": 0.0, "embedding_lr_factor": 1.0},
            before=Earlier(
                {
                    "schedule": MaskSchedule.PAPER,
                    "c": PAPER_C,
                    "learned_at": 0.0,
                    "embedding": InitialEmbedding.NORMAL,
                    "embedding_lr_factor": 1.0,
                }
            ),
        ),
    )
    network: HATNetwork
    settings: HATSettings

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._strength = self._whole = PAPER_C
        self._reached: float | None = None
        self._fall: Fall | None = None  # None where the regulariser follows the epochs alone
        self.network = HATNetwork(
            self.build_backbone(),
            setup.example_input,
            **vars(setup.interface),
            conditioning=self.conditioning(),
            growth=growth_of(settings),
            **{key: getattr(settings, key) for key in SAME},
        ).to(setup.device)

    def conditioning(self) -> UnitConditioning:
        """Return how earlier tasks keep weights from changing."""
        return self.settings.conditioning if self.settings.keep == 1.0 else Fading(self.settings.keep)

    @property
    def settles(self) -> bool:
        """True if the last epochs of a task train under its final mask."""
        return self.settings.schedule is MaskSchedule.SETTLED

    @property
    def is_capturable(self) -> bool:
        """True for plain steps: contrast and quarter turns draw on the CPU, and holds that fade are not tried."""
        plain = isinstance(self.conditioning(), Conditioning) and not self.turns and not self.contrastive
        return self.capturable and plain

    def open_task(self, task: Task, generator: torch.Generator) -> None:
        """Add the task to the network with an embedding of the schedule's distribution, or that of the settings."""
        kind = self.settings.embedding
        uniform = self.settles if kind is None else kind is InitialEmbedding.UNIFORM
        start = Uniform(self.settings.embedding_low, self.settings.embedding_high) if uniform else None
        self.network.add_task(task.name, task.num_classes, generator=generator, embedding=start)
        self._strength = self._whole = PAPER_C if self.settings.c is None else self.settings.c
        self._fall = None

    def mask_phases(self, epochs: int) -> Sequence[int]:
        """Divide the epochs into those that learn the mask, and those that train under it."""
        settled = round(SETTLED_SHARE * epochs) if self.settles else 0
        return (epochs - settled, settled) if settled else (epochs,)

    def begin_mask_phase(self, index: int) -> None:
        """Make the mask final before the last part."""
        task = self.network.task_in_training
        if index == 1 and task is not None:
            self.network.settle(task)
            self._strength = 0.0

    def begin_epoch(self, epoch: int, epochs: int, samples: Batch) -> EpochPlan:
        """Set the weight of the regulariser for an epoch: it sets in late, and later where little is learned."""
        if self.settles and not self._is_settled:
            total = epochs / (1 - SETTLED_SHARE)
            onset = Onset.of(total)
            if self.settings.c is None and self.pace is not None:
                self._whole = self._strength_for(self.pace, onset.middle, epochs, total)
            if epoch == 1 and self._learned_at and not (self.turns or self.contrastive):
                state = self.network.tasks.require_training("begin_epoch")
                self._fall = Fall.before(samples, state.num_classes)
            fallen = 1.0 if self._fall is None else min(self._fall.share / self._learned_at, 1.0)
            self._strength = self._whole * onset.share(epoch) * max(fallen, onset.share_at_least(epoch, epochs))
        return super().begin_epoch(epoch, epochs, samples)

    @property
    def _learned_at(self) -> float:
        """Fall of the loss at which c is whole, as in :attr:`HATSettings.learned_at`, without None."""
        if self.settings.learned_at is not None:
            return self.settings.learned_at
        by_steps = self.pace is not None and self.pace.adaptive and self.settings.embedding_lr_factor is None
        is_narrow = self.network.masking.graph.num_units <= NARROW
        return LEARNED_AT if by_steps and is_narrow and self.settings.c is None else 0.0

    def note_loss(self, loss: float) -> None:
        """Note how far the loss has fallen."""
        self._fall = None if self._fall is None else self._fall.after(loss)

    def _strength_for(self, pace: Pace, first: float, last: float, epochs: float) -> float:
        """Return the c for a task: ``ADAM_C`` with Adam; with SGD, within bounds, what moves embeddings by ``TRAVEL``.

        ``ADAM_C`` goes with embeddings that learn faster, too. Where it is said how fast, c follows from the steps as
        with SGD, so that runs of before these were chosen for Adam are what they were.

        In the first step of an epoch of the first task an embedding of 1 moves by lr · c · s_max σ'(1) over the number
        of units: R of Eq. 5 is a mean, so that wide networks and short trainings need a larger c. Of later tasks it is
        a mean over the free units, which makes these dearer the fewer there are.

        Args:
            pace: the steps there will be.
            first: number of epochs before c acts, counting it as whole from the middle of its rise on.
            last: number of epochs that learn the mask.
            epochs: number of all epochs.
        """
        if pace.adaptive and self.settings.embedding_lr_factor is None:
            return ADAM_C
        slope = math.exp(-1.0) / (1.0 + math.exp(-1.0)) ** 2
        steps = pace.mean_lr(first / epochs, last / epochs) * pace.batches * (last - first)
        moved = steps * self.settings.s_max * slope / max(self.network.masking.graph.num_units, 1)
        return min(max(TRAVEL / max(moved, 1e-12), LEAST_C), MOST_C)

    def schedule(self, index: int, fresh: Schedule) -> Schedule:
        """Go on with the learning rate that the mask was learned with to the end."""
        if self.trains_head_alone or self._reached is None or not index:
            return fresh
        return fresh._replace(lr=self._reached)

    def continues(self, index: int) -> bool:
        """Return True for the part under the final mask, which is short."""
        return index == 1 and self.settles and not self.begins_head(index)

    def begins_learned(self, index: int, epochs: int) -> bool:
        """Return True for a part under the final mask of a single epoch, beside which there is none to choose.

        With SGD at its full rate that epoch may well be a bad one; of two and more the best is taken.
        """
        return epochs == 1 and self.continues(index)

    def goes_on(self, index: int, left: int, reached: Schedule, least: float) -> bool:
        """Return whether weights are trained under the final mask, for which lr must be left, or the head alone is."""
        return reached.lr >= least or self.trains_head_after(index)

    def end_phase(self, index: int, reached: Schedule) -> None:
        """Note the learning rate."""
        super().end_phase(index, reached)
        self._reached = reached.lr

    @property
    def _is_settled(self) -> bool:
        task = self.network.task_in_training
        return task is not None and self.network.is_settled(task)

    def training_state(self) -> Mapping[str, Tensor]:
        """Return what is trained, whether the mask is final, and how far the loss has fallen."""
        final = {SETTLED: torch.tensor(True)} if self._is_settled else {}
        fall = {} if self._fall is None else {FALL: self._fall.to_tensor()}
        return {**super().training_state(), **final, **fall}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`training_state` gave."""
        if SETTLED in state:
            self.begin_mask_phase(1)
        if FALL in state:
            self._fall = Fall.from_tensor(state[FALL])
        super().load_training_state({name: value for name, value in state.items() if name not in (SETTLED, FALL)})

    @property
    def embedding_lr_factor(self) -> float | None:
        """Factor of the embeddings' learning rate, by the settings."""
        return self.settings.embedding_lr_factor

    def strength(self) -> float:
        """Return the c of Eq. 4, the weight of the share of free units that the task takes; whole in validation."""
        return self._strength if self.network.training or self._is_settled else self._whole
