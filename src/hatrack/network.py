"""HATNetwork: hard attention to the task around a network that stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from hatrack import functional
from hatrack.conditioning import (
    UnitConditioning,
    describe_unit_conditioning,
)
from hatrack.errors import GuaranteeError, InputError
from hatrack.forgetting import forget_in_optimizer
from hatrack.functional import Compensation, Conditioning, GateFunction, Regularization
from hatrack.gates import groups_switched_off, initial_embedding, used_units
from hatrack.growth import Growth
from hatrack.heads import linear_head
from hatrack.holding import HoldingNetwork
from hatrack.masks import twin
from hatrack.movement import StateOf
from hatrack.norm import BatchNorms
from hatrack.poison import find_leak
from hatrack.tasks import UnitTask
from hatrack.undo import all_or_nothing, attaches_or_not
from hatrack.units import Role, Rule, warn_of_collapse

__all__ = ["FORMAT", "HATNetwork"]

FORMAT = "hatrack.HATNetwork"
"""Format that files of saved networks name."""


class HATNetwork(HoldingNetwork):
    """A network that learns tasks one after the other and forgets none of them.

    Gates are attached to the inputs of the backbone's layers; the backbone itself is not rewritten and is what it was
    again after :meth:`detach`. Each task has an embedding (which decides on the units it uses), a linear head, and its
    own batch norms. Once a task is consolidated, its logits never change by a single bit: for the same batch shape,
    type, device, number of threads, grad mode and library versions, in evaluation mode.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects; its values do not matter. It is moved to the
            backbone's device.
        s_max: largest scale of the gates, > 0 (the paper uses 400 and advises 25 to 800).
        hard: whether masks become exactly 0 or 1 when a task is consolidated. False keeps the sigmoid's values, as the
            paper's code does; then old outputs drift a little.
        compensation: arithmetic of the embedding's gradient.
        conditioning: which entries of a weight earlier tasks hold: those between units that any tasks use (the paper),
            or only those between units that one and the same task uses, which is exact too and frees more. Or how far
            they hold them, where room for new tasks matters more than that nothing is forgotten: :class:`Fading`,
            :class:`Adaptive`.
        gate_function: what turns embeddings into attention.
        regularizer: how the use of units is counted in :meth:`regularization`.
        batch_norms: whether every task has batch norms of its own, or all use the first task's.
        gate_inputs: also learn which input features a task uses, as units of a group ``inputs``; for inputs whose
            features are independent of each other (the paper, Fig. 10).
        rules: how modules treat units that hatrack does not understand by itself, by a module's name, its type, or a
            function; see :func:`hatrack.units.shared_layer`, :func:`hatrack.units.unit_by_unit` and
            :func:`hatrack.units.rule`.
        growth: when the backbone is widened before a task is added, so that the number of tasks has no bound; None
            leaves its widths as they are, unless :meth:`grow` is called.

    Attributes:
        backbone: the network that was given.
        s_max: largest scale of the gates.
        hard: whether masks are 0 or 1.
        compensation: arithmetic of the embedding's gradient.
        conditioning: which entries earlier tasks hold.
        gate_function: what turns embeddings into attention.
        regularizer: how the use of units is counted.
        batch_norms: whose batch norms a task uses.
        gate_inputs: whether input features are units.
        growth: when the backbone is widened by itself.
        example_shape: shape of the example input.

    Raises:
        UnsupportedError: the backbone does something that no rule explains.
        InputError: the backbone does not give features ``(N, F)``, or is inside another HATNetwork, or ``s_max`` is not
            positive and finite.
        GuaranteeError: the attached gates were tried out with random masks, and an entry that should have been free
            changed the outputs.

    Example:
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU())
        >>> net = HATNetwork(backbone, torch.zeros(1, 1, 28, 28))
        >>> net.add_task("shoes", num_classes=2)
        >>> net(torch.zeros(5, 1, 28, 28), "shoes").shape
        torch.Size([5, 2])
    """

    format = FORMAT

    @attaches_or_not
    def __init__(
        self,
        backbone: nn.Module,
        example_input: Tensor,
        *,
        s_max: float = 400.0,
        hard: bool = True,
        compensation: Compensation = Compensation.EXACT,
        conditioning: UnitConditioning = Conditioning.CUMULATIVE,
        gate_function: GateFunction = GateFunction.SIGMOID,
        regularizer: Regularization = Regularization.WEIGHTED_L1,
        batch_norms: BatchNorms = BatchNorms.PER_TASK,
        gate_inputs: bool = False,
        rules: Mapping[Any, Rule] | None = None,
        growth: Growth | None = None,
    ) -> None:
        try:
            functional.annealed_scale(1.0, s_max)
            functional.compensated_gate(torch.zeros(1), 1.0, s_max, compensation, gate_function)
        except ValueError as error:
            raise InputError(str(error)) from error
        present = StateOf(backbone) if isinstance(backbone, nn.Module) else None
        super().__init__(backbone, example_input, growth, gate_inputs, rules)
        device = next((p.device for p in backbone.parameters()), example_input.device)
        self.s_max, self.hard = float(s_max), hard
        self.compensation, self.conditioning = compensation, conditioning
        self.gate_function, self.regularizer = gate_function, regularizer
        self.batch_norms = batch_norms
        self._off: list[str] = []
        self._free = (torch.empty(0), torch.empty(0), torch.empty(0))
        self._unpacked = (torch.empty(0), 0, torch.empty(0))
        warn_of_collapse(self._graph)
        self._set_scale(self.s_max)
        self._renew_guarantee()
        self.to(device)
        self._try_out(example_input)
        assert present is not None
        try:
            present.put_back()  # a value kept from the runs so far would not be seen to move
            self._look_for_movement(example_input.to(device))
        finally:
            present.put_back()

    def _try_out(self, example: Tensor) -> None:
        """The guarantee is shown, not believed: poison free entries under random masks and compare."""
        leak = find_leak(self._attachment, self._graph, self.backbone, example)
        if leak is not None:
            raise GuaranteeError(
                f"the gates do not hold on this network: free entries of {leak} change the outputs of a task that does "
                "not use them; a rule for one of its operations must be wrong, or state that runs change decides on "
                "what is computed"
            )

    @all_or_nothing()
    def detach(self) -> nn.Module:
        """Take all gates off again.

        Returns:
            The backbone, with its own forward and state, and the weights it has by now. The HATNetwork is of no further
            use.
        """
        self._attachment.detach(self.backbone)
        self._detached = True
        return self.backbone

    # ------------------------------------------------------------------------------------------------------- tasks

    @all_or_nothing()
    def add_task(
        self,
        name: str,
        num_classes: int,
        *,
        generator: torch.Generator | None = None,
        embedding: Tensor | Distribution | None = None,
    ) -> None:
        """Open a task: an embedding, a linear head, and copies of the batch norms unless it shares them.

        Args:
            name: a name that no task has yet.
            num_classes: number of classes, at least 1.
            generator: source of randomness on the CPU; torch's global one if left out. If the network has a
                ``growth``, groups that are nearly full are widened first; see :meth:`grow`.
            embedding: what the embedding starts as, ``(U,)``, or what it is drawn from: any distribution of single
                numbers. N(0, 1) if left out; the paper takes U(0, 2), with every unit on at first, to compress a
                single task, and k₁ in [1, 6], k₂ in [0.5, 2] for another uniform one whose formula is lost here.

        Raises:
            InputError: the name is taken or empty, the number of classes is below 1, another task is not consolidated
                yet, or the embedding does not have a number in [−6, 6] for every unit.
        """
        num_classes = self._require_addable(name, num_classes)
        self._grow_if_full(generator)
        start = None if embedding is None else initial_embedding(embedding, self._graph.num_units, generator)
        self._open_task(name, num_classes, generator)
        state = self._require_training("add_task")
        if start is not None:
            with torch.no_grad():
                state.embedding.copy_(start)
        self._off = groups_switched_off(state.embedding.detach(), self._graph.groups)  # by chance, where they are small

    def _open_task(self, name: str, num_classes: int, generator: torch.Generator | None = None) -> None:
        reference = next((p for p in self.backbone.parameters() if p.is_floating_point()), torch.empty(0))
        head = linear_head(len(self._graph.features().units), num_classes, generator)  # drawn first, as by any method
        embedding = torch.randn(self._graph.num_units, generator=generator)
        shares_norms = self.batch_norms is BatchNorms.SHARED and len(self.tasks) > 0
        norms = {} if shares_norms else self._attachment.copy_norms()
        state = UnitTask(name, num_classes, embedding, head.to(reference.dtype), norms).to(reference.device)
        state.moving = self._own_buffers()
        self.tasks.append(state)
        self._set_scale(self.s_max)
        state.train(self.training)

    def _shared_parameters(self) -> list[nn.Parameter]:
        return [
            parameter
            for name, parameter in self.backbone.named_parameters(prefix="backbone")
            if self._graph.roles[name] is not Role.PER_TASK
        ]

    def _bounded(self) -> Sequence[Tensor]:
        state = self._in_training()
        return () if state is None else (state.embedding,)

    def anneal(self, progress: float) -> None:
        """Set the scale of the gates in training (Eq. 3); it has an effect in training mode alone.

        Args:
            progress: position within the epoch, 0 (first batch) to 1 (last batch).

        Raises:
            InputError: no task is in training, or progress lies outside [0, 1].
        """
        self._require_training("anneal")
        try:
            self._set_scale(float(functional.annealed_scale(progress, self.s_max)))
        except ValueError as error:
            raise InputError(str(error)) from error

    def _set_scale(self, scale: float) -> None:
        # A tensor, since compiled code would be compiled again for every new number; a new one each time, since an
        # earlier forward pass may still wait for its backward pass.
        self._scale = torch.tensor(scale, dtype=torch.float64)

    def regularization(self) -> Tensor:
        """Share of the free units that the task in training takes (Eq. 5), to be added to the loss times ``c``.

        Of all units, where ``regularizer`` is one of the unweighted kinds.

        Raises:
            InputError: no task is in training.
        """
        state = self._require_training("regularization")
        attention = self._attention(state).to(state.embedding.dtype)
        if self.regularizer is Regularization.WEIGHTED_L1:
            free, total = self._free_units(attention.dtype)
            return torch.dot(attention, free) / total  # as functional.attention_regularization, which counts every time
        return functional.unweighted_regularization(attention, self.regularizer)

    def _free_units(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return how free units are for the task in training, ``(U,)``, and their sum: counted once per task."""
        known, free, total = self._free
        if known is not self._cumulative or free.dtype != dtype:
            free = 1.0 - self._cumulative.to(dtype)
            total = free.sum().clamp_min(torch.finfo(dtype).tiny)
            if not torch.is_inference_mode_enabled():  # whose tensors training could not use
                self._free = (self._cumulative, free, total)
        return free, total

    # --------------------------------------------------------------------------------------------------------- use

    def _features(self, x: Tensor, state: UnitTask) -> Tensor:
        attention, norms = self._attention(state), self._norms(state)
        if not self._movement.buffers:
            return self._attachment.run(self.backbone, x, attention, norms)
        return self._run_as(
            state, twin(self.backbone, {}, {}), lambda backbone: self._attachment.run(backbone, x, attention, norms)
        )

    def _features_of_random_mask(self, x: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        mask = (torch.rand(self._graph.num_units, generator=generator) < 0.5).to(x.device)
        norms = {name: norm.eval() for name, norm in self._attachment.copy_norms().items()}
        return self._attachment.run(self.backbone, x, mask, norms)

    def _norms(self, state: UnitTask) -> dict[str, nn.Module]:
        """The batch norms that a task uses: its own, or the first task's."""
        shared = self.batch_norms is BatchNorms.SHARED
        owner = self.tasks[0] if shared else state
        assert isinstance(owner, UnitTask)
        return owner.norms

    def _attention(self, state: UnitTask) -> Tensor:
        """Attention over all units: annealed while training, final otherwise; booleans where it is hard."""
        if state.consolidated:
            return self._mask_of(state)
        if not self.training:
            return self._final_mask(state)
        return functional.compensated_gate(
            state.embedding, self._scale, self.s_max, self.compensation, self.gate_function
        )

    def _mask_of(self, state: UnitTask) -> Tensor:
        """A consolidated task's mask; that of the task asked last is kept unpacked."""
        packed = state.packed
        if torch.compiler.is_compiling() or packed.is_inference():
            return state.mask
        known, version, mask = self._unpacked
        if known is not packed or version != packed._version:
            mask = state.mask
            self._unpacked = (packed, packed._version, mask)
        return mask

    def _final_mask(self, state: UnitTask) -> Tensor:
        if self.hard:
            return used_units(state.embedding.detach(), self._graph.groups)
        return functional.gate(state.embedding, self.s_max, self.gate_function)

    def _fix_mask(self, state: UnitTask) -> None:
        off = [
            name for name in groups_switched_off(state.embedding.detach(), self._graph.groups) if name not in self._off
        ]
        if off:
            left = "one unit of each stays on" if self.hard else "little of what they say is left"
            warnings.warn(
                f"task {state.name!r} has switched off all units of {', '.join(off)}; {left}. If it learned badly, "
                "weigh the regularization less (c)",
                stacklevel=4,
            )
        embedding = state.embedding
        state.freeze(self._final_mask(state))
        for optimizer in self._guard.optimizers():
            forget_in_optimizer(optimizer, [embedding], {})

    def _remove(self, state: UnitTask) -> None:
        super()._remove(state)
        self._unpacked = (torch.empty(0), 0, torch.empty(0))

    # ------------------------------------------------------------------------------------------------ keeping it

    def _settings(self) -> dict[str, object]:
        return {
            "s_max": self.s_max,
            "hard": self.hard,
            "compensation": self.compensation.value,
            "conditioning": describe_unit_conditioning(self.conditioning),
            "gate_function": self.gate_function.value,
            "regularizer": self.regularizer.value,
            "batch_norms": self.batch_norms.value,
            **super()._settings(),
        }
