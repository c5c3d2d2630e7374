"""Masking of weights: twins of the backbone's modules compute with masked weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from hatrack import functional
from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.gating.leak_test import find_leak_of_weights
from hatrack.gating.norms import copy_of_norm
from hatrack.growth.layers import Layer, Side
from hatrack.growth.policy import Origin
from hatrack.growth.tasks import Places, widen_penalty, widen_weight_tasks
from hatrack.growth.widening import Widening
from hatrack.masks import (
    CarriedValues,
    CostCache,
    ElasticWeights,
    MaskSource,
    QuadraticPenalty,
    Unmasked,
    WeightConditioning,
    WeightTask,
    apply_mask,
    count_features,
    describe,
    lay_out,
    twin,
    union,
)
from hatrack.masks.packing import MaskCache
from hatrack.masks.task_list import TaskList
from hatrack.models.masking import Change, Masking
from hatrack.protection.capacity import Capacity, common_entries
from hatrack.state.movement import scratch_of, without_trace
from hatrack.state.undo import UndoLog
from hatrack.support.compilers import keep_compilers_out
from hatrack.support.heads import linear_head
from hatrack.support.inputs import Inputs, Kind, kind_of, map_tensors
from hatrack.support.interface import Interface
from hatrack.support.scratch import ScratchMemory
from hatrack.units import UnitGraph, analyze, stray_parameters
from hatrack.units.signatures import CallKey, Signature, key_of
from hatrack.units.versions import HEADS_ALWAYS_ON

__all__ = ["WeightMasking"]


class WeightMasking(Masking[WeightTask]):
    """Masks of weights: dense, convolutional, recurrent and attention layers compute with ``A ⊙ W``.

    Everything else (biases, norms, tokens) is copied for each task, or for the first one alone, but for untrained
    parameters, which all tasks read as they are. Units matter to nothing but widening: the backbone is analysed when it
    may have to grow, and not before.

    Args:
        backbone: the backbone of the network.
        tasks: the tasks of the network.
        example_input: a batch of the shape that the backbone expects.
        interface: how the backbone is called, and what of its result are its features.
        source: source of the masks.
        conditioning: rule by which later tasks may change weights.
        unmasked: owner of the copies of parameters without masks.
        scale: initial scales of the backbone's parameters, by name.

    Attributes:
        source: source of the masks.
        conditioning: rule by which later tasks may change weights.
        unmasked: owner of the copies of parameters without masks.
        layout: the parameters of the backbone by their roles.
        penalty: quadratic penalty on elastic weights; None with other conditionings. It is a part of the network.
        carried: values that the next task begins with; None where the source draws them. It is a part of the network.
        used: where any consolidated task uses a weight, booleans per weight.
    """

    network_class = "WeightMaskedNetwork"
    cause_of_leaks = (
        "a layer must be reached in a way that torch does not know of, as in a plain list of layers (use "
        "torch.nn.ModuleList), or be compiled already"
    )
    penalty: QuadraticPenalty | None
    carried: CarriedValues | None

    def __init__(
        self,
        backbone: nn.Module,
        tasks: TaskList[WeightTask],
        example_input: Inputs,
        interface: Interface,
        source: MaskSource,
        conditioning: WeightConditioning,
        unmasked: Unmasked,
        scale: Mapping[str, float],
    ) -> None:
        super().__init__(backbone, tasks, example_input, interface)
        self.source, self.conditioning, self.unmasked = source, conditioning, unmasked
        self.layout = lay_out(backbone)
        self._scale, self._widths = scale, {}  # type: ignore[var-annotated]
        vars(self)["penalty"] = (
            QuadraticPenalty(self.named_weights()) if isinstance(conditioning, ElasticWeights) else None
        )
        vars(self)["carried"] = CarriedValues(self.named_weights()) if source.carries else None
        device = self.device
        example_input = map_tensors(lambda tensor: tensor.to(device), example_input)
        self._num_features = count_features(backbone, example_input, interface)
        self._seen: dict[CallKey, Kind] = {}
        self._progress = 1.0
        self._cache: MaskCache[Sequence[Tensor]] = MaskCache()
        self._free: list[Tensor] | None = None  # what :attr:`used` leaves; made when a task is trained
        self._scratch = ScratchMemory()

    def weights(self) -> list[nn.Parameter]:
        """Return the weights with masks."""
        return [self._part(name) for name in self.layout.masked]

    def named_weights(self) -> dict[str, Tensor]:
        """Return the weights with masks, by the backbone's names."""
        return dict(zip(self.layout.masked, self.weights(), strict=True))

    def _part(self, name: str) -> nn.Parameter:
        """Return a parameter of the backbone, or what ``torch.func.functional_call`` has put in its place."""
        part: nn.Parameter = attrgetter(name)(self.backbone)
        return part

    def find_leak(self, batch: Inputs, is_drawn: bool = False) -> str | None:
        """Test with random masks whether free entries change outputs, and return the names of their parameters."""
        return find_leak_of_weights(self._features_under_masks(), self.backbone, self.layout, batch, is_drawn)

    def _features_under_masks(self) -> Callable[[Inputs, Sequence[Tensor]], Tensor]:
        """Return a function that computes features of a batch under any masks, with new copies of unmasked parts."""
        copies, norms = self.new_copies()
        for norm in norms.values():
            norm.eval()

        def features(x: Inputs, masks: Sequence[Tensor]) -> Tensor:
            weights = [apply_mask(weight, mask) for weight, mask in zip(self.weights(), masks, strict=True)]
            return self.interface.run(self.twin_of_backbone(weights, copies, norms), x)

        return features

    # -------------------------------------------------------------------------------------------------------- in a call

    def kinds_of_inputs(self) -> Sequence[Kind]:
        """Return the kinds of inputs of the calls that were looked at."""
        return [*self._seen.values()]

    def forget_calls(self) -> None:
        """Keep what is known: layers that torch does not know of were looked for, which settings do not bring."""

    def admit_kind(self, x: Inputs, change: Change) -> None:
        """Check that a call of a new kind uses no weight without its mask, as layers in a plain list do."""
        key = key_of(x, self.training, self.interface)
        if key in self._seen:
            return
        with without_trace():
            weights = [weight.detach() for weight in self.weights()]
            backbone = self.twin_of_backbone(weights, *self.new_copies(), scratch_of(self.backbone))
            try:
                strays = stray_parameters(backbone, map_tensors(Tensor.detach, x), self.interface)
            except DOES_NOT_RUN:
                return  # the call itself says what is wrong
        if strays:
            names = {id(parameter): name for name, parameter in self.backbone.named_parameters()}
            named = ", ".join(dict.fromkeys(names.get(id(stray), "a layer of no name") for stray in strays))
            signature = Signature.of(x, self.training, interface=self.interface)
            raise UnsupportedError(
                f"{signature} cannot be used: {named} would be reached past the masks, in a way "
                "that torch does not know of, as in a list of functions (use torch.nn.ModuleList)"
            )
        self.note_movement(x, self.training, backbone, change)
        self._seen[key] = kind_of(x, self.interface.batch_axis)

    def features_on(self, backbone: nn.Module, x: Inputs, state: WeightTask) -> Tensor:
        """Return features that the backbone, or a twin of it, computes under a task's masks."""
        backbone = self.twin_of_backbone(self._masked_weights(state), *self.copies_of(state), backbone)
        return self.own_state.run(state, backbone, lambda copy: self.interface.run(copy, x))

    def features_of_random_mask(self, x: Inputs, seed: int) -> Tensor:
        """Return features of a batch under masks drawn from a seed."""
        generator = torch.Generator().manual_seed(seed)
        masks = [(torch.rand(w.shape, generator=generator) < 0.5).to(w.device) for w in self.weights()]
        return self._features_under_masks()(x, masks)

    def twin_of_backbone(
        self,
        masked: Sequence[Tensor],
        copies: Sequence[Tensor],
        norms: Mapping[str, nn.Module],
        scratch: nn.Module | None = None,
    ) -> nn.Module:
        """Return a twin of the backbone that computes with other tensors.

        Args:
            masked: the masked weights.
            copies: copies of the parameters that have no mask.
            norms: copies of the batch norms.
            scratch: a copy of the backbone with the same parameters to make the twin of; the backbone if left out.
        """
        backbone = self.backbone if scratch is None else scratch
        values = {id(self._part(name)): copied for name, copied in zip(self.layout.copied, copies, strict=True)}
        values |= {id(weight): value for weight, value in zip(self.weights(), masked, strict=True)}
        standing_in = {id(backbone.get_submodule(name)): norm for name, norm in norms.items()}
        return twin(backbone, values, standing_in)

    def new_copies(self) -> tuple[list[Tensor], dict[str, nn.Module]]:
        """Return new copies of the backbone's parameters without masks, and of its norms."""
        copies = [self.backbone.get_parameter(name).detach().clone() for name in self.layout.copied]
        return copies, {name: copy_of_norm(self.backbone.get_submodule(name)) for name in self.layout.norms}

    def copies_of(self, state: WeightTask) -> tuple[list[Tensor], dict[str, nn.Module]]:
        """Return the copies of parameters without masks, and of norms, that a task uses."""
        owner = self.owner_of_norms(state)
        return list(owner.copies), owner.norms

    def owner_of_norms(self, state: WeightTask) -> WeightTask:
        """Return the task whose copies and norms a task uses: itself, or the first one."""
        owner = state if self.unmasked is Unmasked.PER_TASK else self.tasks[0]
        assert isinstance(owner, WeightTask)
        return owner

    def _masked_weights(self, state: WeightTask) -> list[Tensor]:
        """Return the weights under a task's masks."""
        trains = self.conditioning.trains_weights
        weights = [weight if trains else weight.detach() for weight in self.weights()]
        if state.is_settled or not self.training:
            return [apply_mask(weight, mask) for weight, mask in zip(weights, self._masks(state), strict=True)]
        if self._free is None:
            self._free = [~used for used in self.used]
        each = zip(weights, self._values(state), self._free, strict=True)
        new = self._scratch.empty_like
        masked = [self.source.passed(weight, values, free, self._progress, new) for weight, values, free in each]
        costs = [part.taken for part in masked if part.taken is not None]
        self._cost.keep(self._cost_key(state), torch.stack(costs).sum() if costs else None)
        return [part.weight for part in masked]

    def _cost_key(self, state: WeightTask) -> tuple[object, ...]:
        """Return the cache key of the regularization cost."""
        values = [(id(value), value._version) for value in self._values(state) if value is not None]
        return self.training, state.is_settled, self._progress, torch.is_grad_enabled(), *values

    def _masks(self, state: WeightTask) -> Sequence[Tensor | None]:
        """Return the mask of every weight: annealed in training, booleans otherwise; None where all of it passes."""
        if state.is_settled:
            return self.settled_masks(state)
        if self.training:
            return [self.source.in_training(values, self._progress) for values in self._values(state)]
        return self.final_masks(state)

    @torch.no_grad()
    def final_masks(self, state: WeightTask) -> Sequence[Tensor]:
        """Return the masks that a task in training has if it is consolidated now, booleans."""
        each = zip(self._values(state), self.weights(), self.used, strict=True)
        return [self.source.final(values, weight, used) for values, weight, used in each]

    def settled_masks(self, state: WeightTask) -> Sequence[Tensor]:
        """Return the final masks of a task, booleans; the last task's are cached."""
        return self._cache.of(state.packed, lambda: [state.mask(index) for index in range(len(self.layout.masked))])

    def _values(self, state: WeightTask) -> Sequence[Tensor | None]:
        return [*state.choice] or [None] * len(self.layout.masked)

    # --------------------------------------------------------------------------------------------------------- training

    def open_task(self, name: str, head: int | nn.Module, generator: torch.Generator | None = None) -> WeightTask:
        """Append the state of a new task: the values that its masks are learned by, a head, and copies."""
        weights = self.weights()
        reference = next((p for p in self.backbone.parameters() if p.is_floating_point()), torch.empty(0))
        reference = weights[0] if weights else reference
        own = head if isinstance(head, nn.Module) else linear_head(self._num_features, head, generator)  # drawn first
        num_classes = None if isinstance(head, nn.Module) else head
        starts = [self.source.start(weight, generator) for weight in weights]
        if self.carried is not None and (before := self.carried.values) is not None:
            starts = [value.detach().clone() for value in before]
        copies, norms = self.new_copies() if self.unmasked is Unmasked.PER_TASK or not len(self.tasks) else ([], {})
        shapes, choice = [weight.shape for weight in weights], [values for values in starts if values is not None]
        own = own.to(reference.dtype)
        axis = self.interface.unit_axis
        state = WeightTask(name, num_classes, shapes, choice, copies, own, norms, axis).to(reference.device)
        state.moving = self.own_state.for_new_task(self.backbone)
        self.tasks.append(state)
        self._progress, self._cost = 1.0, CostCache()
        state.train(self.training)
        return state

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the weights with masks, where tasks train them."""
        return self.weights() if self.conditioning.trains_weights else []

    def bounded(self) -> Sequence[Tensor]:
        """Return the values that the masks in training are learned by, where their source bounds them."""
        state = self.tasks.in_training
        return () if state is None or not self.source.bounded else tuple(state.choice)

    def anneal(self, progress: float | Tensor) -> None:
        """Set how hard masks in training are; it has an effect on embeddings alone."""
        self.tasks.require_training("anneal")
        progress = float(progress)
        if not 0.0 <= progress <= 1.0:
            raise InputError(f"progress must lie in [0, 1], not {progress}")
        self._progress = progress

    def regularization(self) -> Tensor:
        """Return the cost of the masks in training, which their source defines, a scalar."""
        state = self.tasks.require_training("regularization")
        device = self.device
        cost = self._cost.of(self._cost_key(state))
        if cost is not None:  # the last pass has it already
            return functional.share_taken(cost, cost.new_tensor(self._num_free))
        if not self.source.is_priced:  # which loops may add and differentiate as they do any other
            return torch.zeros((), device=device, requires_grad=self.training and torch.is_grad_enabled())
        masks = [
            torch.ones(weight.shape, device=device) if mask is None else mask * 1.0
            for mask, weight in zip(self._masks(state), self.weights(), strict=True)
        ]
        return self.source.regularization(masks, self.used).to(device) if masks else torch.zeros((), device=device)

    def settle(self, state: WeightTask) -> Sequence[nn.Parameter]:
        """Give a task in training its final masks, under which it goes on; return what they were learned by."""
        choice = list(state.choice)
        state.settle(self.final_masks(state))
        if self.carried is not None:
            self.carried.keep(choice)
        masks = zip(self.layout.masked, self.settled_masks(state), strict=True)
        single = [name for name, mask in masks if int(mask.sum()) < 2 <= mask.numel()]
        if single:
            warnings.warn(
                f"task {state.name!r} has switched off all entries of {', '.join(single)} but one at most. If it "
                "learned badly, weigh the regularization less (c), or keep more",
                stacklevel=5,
            )
        return choice

    # --------------------------------------------------------------------------------------------------- frozen entries

    @property
    def per_task_modules(self) -> Sequence[str]:
        """Names of the backbone's batch norms."""
        return self.layout.norms

    def refresh(self) -> None:
        """Update which weights consolidated tasks use."""
        states = self.tasks.consolidated
        self.used = [
            union([state.mask(index) for state in states], weight) for index, weight in enumerate(self.weights())
        ]
        self._num_free = sum(int((~used).sum()) for used in self.used)
        self._free = None
        self._scratch.clear()
        self._cost = CostCache()

    def attention_on_parameters(self) -> Mapping[str, Tensor]:
        """Return where consolidated tasks rely on weights, by ``backbone.`` and name."""
        states = self.tasks.consolidated
        return {
            f"backbone.{name}": self.conditioning.attention([state.mask(index) for state in states], weight)
            for index, (name, weight) in enumerate(zip(self.layout.masked, self.weights(), strict=True))
        }

    # ------------------------------------------------------------------------------------------------------- inspection

    def masks(self, task: str) -> dict[str, Tensor]:
        """Return the weights that a task uses, by the backbone's names: booleans of their shapes."""
        masks = self._present_masks(self.tasks.named(task))
        return {name: mask.clone() for name, mask in zip(self.layout.masked, masks, strict=True)}

    def _present_masks(self, state: WeightTask) -> Sequence[Tensor]:
        return self.settled_masks(state) if state.is_settled else self.final_masks(state)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Numbers of weights, by the backbone's names."""
        return {name: weight.numel() for name, weight in self.named_weights().items()}

    def capacity(self, num_frozen: int) -> Capacity:
        """Return the share of the weights that consolidated tasks use, per parameter and over all."""
        shares = {name: float(used.float().mean()) for name, used in zip(self.layout.masked, self.used, strict=True)}
        entries = sum(used.numel() for used in self.used)
        return Capacity(shares, None, (entries - self._num_free) / entries if entries else 0.0, entries)

    def usage(self) -> float:
        """Return the share of all masked weights that tasks use, a task in training included."""
        state, used = self.tasks.in_training, self.used
        if state is not None:
            used = [its | mask for its, mask in zip(used, self._present_masks(state), strict=True)]
        return sum(int(mask.sum()) for mask in used) / max(1, sum(mask.numel() for mask in used))

    def reuse(self) -> Tensor:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks."""
        states = self.tasks.consolidated
        common = torch.zeros(len(states), len(states), dtype=torch.int64)
        for index in range(len(self.layout.masked)):
            common += common_entries([state.mask(index) for state in states])
        return common / common.diagonal().clamp_min(1).unsqueeze(1)

    # ------------------------------------------------------------------------------------------------------- unlearning

    def entries_of(self, state: WeightTask) -> Mapping[str, Tensor]:
        """Return where a task uses weights, booleans by the backbone's names."""
        return self.masks(state.name)

    def remove(self, state: WeightTask, successor: WeightTask | None) -> None:
        """Remove everything about a task but its state; its successor takes over copies that all tasks use."""
        if successor is not None and self.unmasked is not Unmasked.PER_TASK:
            successor.take_norms_of(state)
            successor.copies = state.copies
        if self.carried is not None:
            self.carried.drop(self.weights())
        self._cache.clear()

    def release(self, erased: Mapping[str, Tensor]) -> None:
        """Release weights that were drawn anew from the penalty on moving them."""
        if self.penalty is not None:
            self.penalty.release(self.named_weights(), erased)

    # --------------------------------------------------------------------------------------------------------- widening

    def analyze(self) -> UnitGraph:
        """Find the units of the backbone as it is now."""
        return analyze(
            self.backbone,
            self.example(),
            prefix="backbone.",
            rules=HEADS_ALWAYS_ON,  # no layer that can be widened writes or reads heads
            interface=self.interface,
            untrained=self.untrained,
        )

    def record_widths(self, graph: UnitGraph) -> None:
        """Record the present widths, and the first time those before any widening."""
        self._widths = {group.name: group.size for group in graph.groups}
        if self.origin is None:
            self.origin = Origin(dict(self._widths), self._scale)

    def room(self, graph: UnitGraph) -> Mapping[str, float]:
        """Return by group the number of free units that would leave as many free weights in its layers."""
        free: dict[str, float] = {}
        for name, used in zip(self.layout.masked, self.used, strict=True):
            owner, _, own = name.rpartition(".")
            layer, units = Layer.of(self.backbone.get_submodule(owner)), graph.outputs.get(owner)
            if layer is None or units is None:
                continue
            rows = used.movedim(layer.tensors[own].index(Side.OUTPUTS), 0)
            for group in graph.groups:
                mine = rows[(units >= group.start) & (units < group.start + group.size)]
                if len(mine):
                    room = group.size * float((~mine).double().mean())
                    free[group.name] = min(room, free.get(group.name, room))
        return free

    def widen_tasks(self, widening: Widening, undo_log: UndoLog) -> Places:
        """Widen masks, copies, heads and batch norms of the tasks, and the penalty on elastic weights."""
        if self.penalty is not None:
            widen_penalty(self.penalty, self.backbone, widening, undo_log)
        if self.carried is not None:
            for name, value in self.carried.dropped(self.weights()).items():
                undo_log.set_attribute(self.carried, name, value)
        return widen_weight_tasks(self.tasks, self.backbone, self.layout, widening, undo_log)

    def fit(self, graph: UnitGraph) -> None:
        """Use other units of the backbone from now on, after it was widened or analysed again."""
        self._num_features = len(graph.features().units)
        self.record_widths(graph)
        self.refresh()

    # --------------------------------------------------------------------------------------------- detaching and saving

    def detach(self) -> None:
        """Do nothing, since nothing was put on the backbone."""

    def to_json(self) -> dict[str, Any]:
        """Return settings and widths as JSON values."""
        settings = {
            "source": describe(self.source),
            "conditioning": describe(self.conditioning),
            "unmasked": self.unmasked.value,
        }
        return (
            settings
            if self.origin is None
            else {**settings, "origin": self.origin.to_json(), "widths": self._widths or dict(self.origin.widths)}
        )


keep_compilers_out(WeightMasking.admit_kind, WeightMasking.features_on)
