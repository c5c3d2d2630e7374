"""WeightMaskedNetwork: a mask of weights per task around a network that stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hatrack import functional
from hatrack.attachment import mark
from hatrack.compilers import keep_compilers_out
from hatrack.errors import DOES_NOT_RUN, GuaranteeError, InputError, UnsupportedError
from hatrack.forgetting import forget_in_optimizer
from hatrack.growth import Growth
from hatrack.heads import linear_head
from hatrack.holding_weights import HoldingWeights
from hatrack.masks import (
    CostCache,
    Embedding,
    FreeWeights,
    MaskSource,
    Unmasked,
    WeightConditioning,
    WeightTask,
    apply_mask,
    count_features,
    describe,
    twin,
)
from hatrack.movement import StateOf, aside, scratch_of
from hatrack.norm import copy_of_norm
from hatrack.poison import find_leak_of_weights
from hatrack.signatures import CallKey, Signature, key_of
from hatrack.undo import all_or_nothing, attaches_or_not
from hatrack.units import stray_parameters

__all__ = ["WEIGHTS_FORMAT", "WeightMaskedNetwork"]

WEIGHTS_FORMAT = "hatrack.WeightMaskedNetwork"
"""Format that files of saved networks name."""


class WeightMaskedNetwork(HoldingWeights):
    """A network that learns tasks one after the other, each with some of its weights, and forgets none of them.

    The weights of dense, convolutional, recurrent and attention layers have a mask per task; layers compute with
    ``A ⊙ W``. Everything else (biases, norms, tokens) is copied for each task, or for the first one alone; every task
    has its own head. The backbone itself is never touched but for its weights: twins of its modules are run in its
    place. Once a task is consolidated its masks are 0 or 1, kept as bits, and its logits never change by a single bit:
    for the same batch shape, type, device, number of threads, grad mode and library versions, in evaluation mode. Only
    :class:`hatrack.masks.ElasticWeights` promises less: with them masks, biases and heads stay, and weights drift.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        example_input: a batch of the shape that the backbone expects; its values do not matter. It is moved to the
            backbone's device.
        source: where masks come from; :class:`hatrack.masks.Embedding` if left out.
        conditioning: what of the weights later tasks may change; :class:`hatrack.masks.FreeWeights` if left out.
        unmasked: whose copies a task uses of what has no mask.
        growth: when the backbone is widened before a task is added, so that the number of tasks has no bound; None
            leaves its widths as they are, unless :meth:`grow` is called. Old outputs then agree up to rounding across a
            widening, and to the bit between widenings.

    Attributes:
        backbone: the network that was given.
        source: where masks come from.
        conditioning: what of the weights later tasks may change.
        unmasked: whose copies a task uses of what has no mask.
        growth: when the backbone is widened by itself.
        tether: what draws elastic weights back; None with other conditionings.
        example_shape: shape of the example input.

    Raises:
        UnsupportedError: the backbone has no weight to mask, or a parameter that no mask could be for; or there is a
            growth, and it does something that no rule explains.
        InputError: the backbone does not give features ``(N, F)``, or is inside another network of masks.
        GuaranteeError: random masks were tried out, and an entry that should have been free changed the outputs.

    Example:
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU())
        >>> net = WeightMaskedNetwork(backbone, torch.zeros(1, 1, 28, 28))
        >>> net.add_task("shoes", num_classes=2)
        >>> net(torch.zeros(5, 1, 28, 28), "shoes").shape
        torch.Size([5, 2])
    """

    format = WEIGHTS_FORMAT

    @attaches_or_not
    def __init__(
        self,
        backbone: nn.Module,
        example_input: Tensor,
        *,
        source: MaskSource | None = None,
        conditioning: WeightConditioning | None = None,
        unmasked: Unmasked = Unmasked.PER_TASK,
        growth: Growth | None = None,
    ) -> None:
        present = StateOf(backbone) if isinstance(backbone, nn.Module) else None
        super().__init__(backbone, example_input, growth, FreeWeights() if conditioning is None else conditioning)
        self.source = Embedding() if source is None else source
        self.unmasked = unmasked
        self._seen: set[CallKey] = set()
        keep_compilers_out(WeightMaskedNetwork._admit)
        self._progress = 1.0
        self._unpacked: tuple[Tensor, int, list[Tensor]] | None = None
        self._free: list[Tensor] | None = None  # where no task uses a weight, as numbers; made when one is trained
        weight = self._weights()[0]
        self._num_features = count_features(backbone, example_input.to(weight.device))
        self._renew_guarantee()
        self.to(weight.device)
        assert present is not None
        try:
            self._try_out(example_input.to(weight.device))
            present.put_back()  # a value kept from the runs so far would not be seen to move
            self._look_for_movement(example_input.to(weight.device))
        finally:
            present.put_back()
        mark(backbone, self)

    @all_or_nothing()
    def detach(self) -> nn.Module:
        """Give the backbone back.

        Returns:
            The backbone, with the weights it has by now. The network of masks is of no further use.
        """
        mark(self.backbone, None)
        self._detached = True
        return self.backbone

    # ------------------------------------------------------------------------------------------------------- tasks

    def _open_task(self, name: str, num_classes: int, generator: torch.Generator | None = None) -> None:
        weights = self._weights()
        head = linear_head(self._num_features, num_classes, generator).to(weights[0].dtype)  # first, as by any method
        starts = [self.source.start(weight, generator) for weight in weights]
        copies, norms = self._copies() if self.unmasked is Unmasked.PER_TASK or not len(self.tasks) else ([], {})
        shapes, choice = [weight.shape for weight in weights], [values for values in starts if values is not None]
        state = WeightTask(name, num_classes, shapes, choice, copies, head, norms).to(weights[0].device)
        state.moving = self._own_buffers()
        self.tasks.append(state)
        self._progress, self._taken = 1.0, CostCache()
        state.train(self.training)

    def _copies(self) -> tuple[list[Tensor], dict[str, nn.Module]]:
        """Return what has no mask, as the backbone has it."""
        copies = [self.backbone.get_parameter(name).detach().clone() for name in self._layout.copied]
        return copies, {name: copy_of_norm(self.backbone.get_submodule(name)) for name in self._layout.norms}

    def anneal(self, progress: float) -> None:
        """Set how hard masks in training are; it has an effect in training mode alone, and on embeddings alone.

        Args:
            progress: position within the epoch, 0 (first batch) to 1 (last batch).

        Raises:
            InputError: no task is in training, or progress lies outside [0, 1].
        """
        self._require_training("anneal")
        if not 0.0 <= progress <= 1.0:
            raise InputError(f"progress must lie in [0, 1], not {progress}")
        self._progress = progress

    def regularization(self) -> Tensor:
        """Return what the source says that the masks in training cost, to be added to the loss times a strength.

        Raises:
            InputError: no task is in training.
        """
        state = self._require_training("regularization")
        device = state.head.weight.device
        taken = self._taken.of(self._moment(state))
        if taken is not None:  # the last pass has it already
            return functional.share_taken(taken, taken.new_tensor(self._num_free))
        masks = [
            torch.ones(weight.shape, device=device) if mask is None else mask * 1.0
            for mask, weight in zip(self._masks(state), self._weights(), strict=True)
        ]
        return self.source.regularization(masks, self._used).to(device)

    @all_or_nothing(lambda net: [*net.tasks.buffers(), *(t for state in net.tasks for t in state.kept())])
    def settle(self, name: str) -> None:
        """Choose a task's masks for good and go on training under them, as in retraining what was pruned.

        What the masks were learned by is dropped: take the parameters for a new optimizer from :meth:`task_parameters`.

        Raises:
            InputError: there is no such task, or its masks are settled already.
        """
        state = self._state(name)
        if state.is_settled:
            raise InputError(f"the masks of task {name!r} are settled already")
        self._settle(state, self._final_masks(state))

    def _settle(self, state: WeightTask, masks: Sequence[Tensor]) -> None:
        """Choose masks for good; what they were learned by is of no use to anybody then, optimizers included."""
        choice = list(state.choice)
        state.settle(masks)
        for optimizer in self._guard.optimizers():
            forget_in_optimizer(optimizer, choice, {})

    def _fix_mask(self, state: WeightTask) -> None:
        if not state.is_settled:
            masks = self._final_masks(state)
            single = [
                n for n, mask in zip(self._layout.masked, masks, strict=True) if int(mask.sum()) < 2 <= mask.numel()
            ]
            if single:
                warnings.warn(
                    f"task {state.name!r} has switched off all entries of {', '.join(single)} but one at most. If it "
                    "learned badly, weigh the regularization less (c), or keep more",
                    stacklevel=4,
                )
            self._settle(state, masks)
        state.close()

    def _bounded(self) -> Sequence[Tensor]:
        state = self._in_training()
        return () if state is None or not self.source.bounded else tuple(state.choice)

    # --------------------------------------------------------------------------------------------------------- use

    def _admit(self, x: Tensor) -> None:
        """Look whether a call of a new kind reaches weights past their masks, as layers in a plain list do."""
        key = key_of(x, self.training)
        if key in self._seen:
            return
        with aside():
            probe = scratch_of(self)
            copies, norms = probe._copies()
            backbone = probe._twin([weight.detach() for weight in self._weights()], copies, norms)
            try:
                strays = stray_parameters(backbone, x.detach())
            except DOES_NOT_RUN:
                return  # the call itself says what is wrong
        if strays:
            names = {id(parameter): name for name, parameter in self.backbone.named_parameters()}
            named = ", ".join(dict.fromkeys(names.get(id(stray), "a layer of no name") for stray in strays))
            raise UnsupportedError(
                f"{Signature.of(x, self.training)} cannot be used: {named} would be reached past the masks, in a way "
                "that torch does not know of, as in a list of functions (use torch.nn.ModuleList)"
            )
        self._require_still(x, self.training, backbone)
        self._seen.add(key)

    def _features(self, x: Tensor, state: WeightTask) -> Tensor:
        backbone = self._twin(self._passed(state), *self._copies_of(state))
        return self._run_as(state, backbone, lambda its: its(x))

    def _features_of_random_mask(self, x: Tensor, seed: int) -> Tensor:
        generator, (copies, norms) = torch.Generator().manual_seed(seed), self._copies()
        masks = [(torch.rand(w.shape, generator=generator) < 0.5).to(w.device) for w in self._weights()]
        passed = [apply_mask(weight, mask) for weight, mask in zip(self._weights(), masks, strict=True)]
        features: Tensor = self._twin(passed, copies, {name: norm.eval() for name, norm in norms.items()})(x)
        return features

    def _copies_of(self, state: WeightTask) -> tuple[list[Tensor], dict[str, nn.Module]]:
        """The copies that a task uses of what has no mask: parameters and norms."""
        owner = state if self.unmasked is Unmasked.PER_TASK else self._states()[0]
        return list(owner.copies), owner.norms

    def _twin(self, passed: Sequence[Tensor], copies: Sequence[Tensor], norms: Mapping[str, nn.Module]) -> nn.Module:
        """A twin of the backbone with what masks let through of the weights, and copies of what has no mask."""
        values = {id(self._part(name)): copied for name, copied in zip(self._layout.copied, copies, strict=True)}
        values |= {id(weight): value for weight, value in zip(self._weights(), passed, strict=True)}
        standing_in = {id(self.backbone.get_submodule(name)): norm for name, norm in norms.items()}
        return twin(self.backbone, values, standing_in)

    def _passed(self, state: WeightTask) -> list[Tensor]:
        """Return what a task's masks let through of the weights."""
        trains = self.conditioning.trains_weights
        weights = [weight if trains else weight.detach() for weight in self._weights()]
        if state.is_settled or not self.training:
            return [apply_mask(weight, mask) for weight, mask in zip(weights, self._masks(state), strict=True)]
        if self._free is None:
            self._free = [(~used).to(weight.dtype) for used, weight in zip(self._used, weights, strict=True)]
        each = zip(weights, self._values(state), self._free, strict=True)
        passed = [self.source.passed(weight, values, free, self._progress) for weight, values, free in each]
        taken = [part.taken for part in passed if part.taken is not None]
        self._taken.keep(self._moment(state), torch.stack(taken).sum() if taken else None)
        return [part.weight for part in passed]

    def _moment(self, state: WeightTask) -> tuple[object, ...]:
        """Return the cache key of the regularization cost."""
        values = [(id(value), value._version) for value in self._values(state) if value is not None]
        return self.training, state.is_settled, self._progress, torch.is_grad_enabled(), *values

    def _masks(self, state: WeightTask) -> Sequence[Tensor | None]:
        """The mask of every weight: annealed while training, booleans otherwise; None where all of it passes."""
        if state.is_settled:
            return self._settled_masks(state)
        if self.training:
            return [self.source.in_training(values, self._progress) for values in self._values(state)]
        return self._final_masks(state)

    @torch.no_grad()
    def _final_masks(self, state: WeightTask) -> Sequence[Tensor]:
        each = zip(self._values(state), self._weights(), self._used, strict=True)
        return [self.source.final(values, weight, used) for values, weight, used in each]

    def _values(self, state: WeightTask) -> Sequence[Tensor | None]:
        return [*state.choice] or [None] * len(self._layout.masked)

    # ----------------------------------------------------------------------------------------------- the guarantee

    def _try_out(self, example: Tensor) -> None:
        """The guarantee is shown, not believed: poison all that random masks leave free, and compare."""
        leak = self._find_leak(example)
        if leak is not None:
            raise GuaranteeError(
                f"masks do not hold on this network: free entries of {leak} change the outputs of a task that does not "
                "use them; a layer must be reached in a way that torch does not know of, as in a plain list of layers "
                "(use torch.nn.ModuleList), or be compiled already"
            )

    def _find_leak(self, example: Tensor | None = None) -> str | None:
        copies, norms = self._copies()
        for norm in norms.values():
            norm.eval()

        def features(batch: Tensor, masks: Sequence[Tensor]) -> Tensor:
            passed = [apply_mask(weight, mask) for weight, mask in zip(self._weights(), masks, strict=True)]
            answer: Tensor = self._twin(passed, copies, norms)(batch)
            return answer

        return find_leak_of_weights(
            features, self.backbone, self._layout, self._example() if example is None else example
        )

    # -------------------------------------------------------------------------------------------------- keeping it

    def _settings(self) -> dict[str, object]:
        return {
            "source": describe(self.source),
            "conditioning": describe(self.conditioning),
            "unmasked": self.unmasked.value,
            **super()._settings(),
        }
