"""Masking of units: gates on a backbone, set by the mask of each task."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hatrack import functional
from hatrack.errors import DOES_NOT_RUN, InputError, UnsupportedError
from hatrack.functional import Conditioning, Regularization
from hatrack.gating.attachment import Attachment, scratch_without_gates
from hatrack.gating.gate_kernels import gate_in_training
from hatrack.gating.gates import NO_BLOCKS, groups_switched_off, used_units
from hatrack.gating.leak_test import find_leak
from hatrack.gating.mixing import have_hooks, mixed_norms, mixes_samples
from hatrack.gating.norms import BatchNorms
from hatrack.gating.used_blocks import UsedBlock, may_take_blocks
from hatrack.growth.policy import Origin, free_units
from hatrack.growth.tasks import Places, widen_unit_tasks
from hatrack.growth.widening import Widening
from hatrack.masks.packing import MaskCache
from hatrack.masks.task_list import TaskList
from hatrack.masks.tasks import UnitTask
from hatrack.models.gate_settings import GateSettings
from hatrack.models.masking import Change, Masking
from hatrack.models.own_state import FirstRuns, OwnState
from hatrack.models.unit_calls import UnitCalls
from hatrack.protection.capacity import Capacity, measure_capacity, measure_reuse
from hatrack.protection.conditioning import Adaptive, Damper, attention_of_tasks, dampers
from hatrack.protection.plan import ProtectionPlan, attention_on_parameters
from hatrack.state.first_runs import EarlierRuns
from hatrack.state.movement import copy_of, without_trace
from hatrack.state.tryouts import random_like
from hatrack.state.turns import asking_owners
from hatrack.state.twins import twin
from hatrack.state.undo import UndoLog
from hatrack.support.compilers import keep_compilers_out, start_compilers_inside
from hatrack.support.heads import linear_head
from hatrack.support.inputs import Inputs, Kind, device_of, map_tensors
from hatrack.support.interface import Interface
from hatrack.support.parameters import DRAWN, type_of_choice
from hatrack.units import Role, Rule, Trace, UnitGraph, are_same, why_not_extended
from hatrack.units.signatures import Signature
from hatrack.units.versions import version_of_rules

__all__ = ["UnitMasking"]


WITHOUT_UNITS = "If that is code which you cannot change: hatrack.WeightMaskedNetwork masks weights, and needs no units"
"""Last remedy for networks that are not understood."""


class UnitMasking(Masking[UnitTask]):
    """Masks of units, which gates at the inputs of the backbone's layers apply.

    Args:
        backbone: the backbone of the network.
        tasks: the tasks of the network.
        example_input: a batch of the shape that the backbone expects, on any device.
        interface: how the backbone is called, and what of its result are its features.
        settings: settings of the gates.
        rules: how modules treat units that hatrack does not understand by itself.
        initial_scales: initial scales of the backbone's parameters, by name.

    Attributes:
        settings: settings of the gates.
        graph: the units of the backbone, who writes and reads them.
        attachment: the gates on the backbone.
        cumulative: cumulative attention of the consolidated tasks, ``(U,)``, booleans or numbers.
        calls: the kinds of calls that are known.
    """

    network_class = "HATNetwork"
    cause_of_leaks = (
        "a rule for one of its operations must be wrong, or state that runs change decides on what is computed"
    )

    def __init__(
        self,
        backbone: nn.Module,
        tasks: TaskList[UnitTask],
        example_input: Inputs,
        interface: Interface,
        settings: GateSettings,
        rules: Mapping[Any, Rule] | None,
        initial_scales: Mapping[str, float],
    ) -> None:
        super().__init__(backbone, tasks, example_input, interface)
        self.settings = settings
        self.calls = UnitCalls(backbone, rules, settings.gate_inputs, interface, self.example_input, self.untrained)
        device = self.device
        try:
            self.calls.trace = self.calls.follow_example(map_tensors(lambda tensor: tensor.to(device), example_input))
        except UnsupportedError as error:
            between = "\n" if "\n" in str(error) else ". "
            raise UnsupportedError(f"{error}{between}{WITHOUT_UNITS}") from error
        self.graph = self.calls.resolved(self.calls.trace)
        self.origin = Origin(dict(self.sizes), initial_scales)
        self.cumulative = self.none
        self.attachment = Attachment(self.graph, backbone, interface)
        self.watch.record(())
        self._off: list[str] = []
        self._priced = (torch.empty(0), torch.empty(0), torch.empty(0))
        self._cache: MaskCache[Tensor] = MaskCache()
        self._drop_blocks()
        self._mixing: tuple[Attachment, bool] | None = None
        self._set_scale(settings.s_max)

    @property
    def none(self) -> Tensor:
        """Attention of no task at all, booleans ``(U,)``."""
        return torch.zeros(self.graph.num_units, dtype=torch.bool, device=self.device)

    def earlier_runs(self) -> EarlierRuns:
        """Hand over runs of copies of the backbone that were made when their paths were compared."""
        return self.calls.take_runs()

    def find_own_state(self, example: Inputs, runs: FirstRuns) -> None:
        """Find the buffers that every task needs copies of; no unit may depend on them."""
        super().find_own_state(example, runs)
        moving = [name for name, _ in self.backbone.named_buffers() if name in self.own_state.names]
        if moving:
            x = self.interface.several(example)
            signature = Signature.of(x, training=False, grad=False, interface=self.interface)
            found = self.calls.follow(self.calls.trace, x, signature)
            if not are_same(self.calls.resolved(found), self.graph):
                raise UnsupportedError(
                    f"which units are used depends on values of {', '.join(moving)}, which runs change"
                )

    def adopt(self, own_state: OwnState) -> None:
        """Use another record of the state that runs move."""
        super().adopt(own_state)
        self.calls.moving = own_state.names

    def find_leak(self, batch: Inputs, is_drawn: bool = False) -> str | None:
        """Test with random masks whether free entries change outputs, and return the names of their parameters."""
        return find_leak(self.attachment, self.graph, self.backbone, batch, is_drawn=is_drawn)

    # --------------------------------------------------------------------------------------------------- kinds of calls

    def admit_kind(self, x: Inputs, change: Change) -> None:
        """Analyse a call with a new signature, or with a new number of samples."""
        self.calls.admit(x, self.training, self, change)

    def kinds_of_inputs(self) -> Sequence[Kind]:
        """Return the kinds of inputs whose calls were followed."""
        return [signature.inputs for signature in (*self.calls.taught, *self.calls.followed)]

    def forget_calls(self) -> None:
        """Follow all kinds of calls anew."""
        self.calls.forget()

    def learn(self, signature: Signature, sample: Inputs, found: Trace, change: Change) -> None:
        """Use the units that a labelled run has found, if the masks of existing tasks still fit.

        Args:
            signature: the signature of the run.
            sample: its batch.
            found: trace of all runs so far, this one included.
            change: applies changes to this masking.

        Raises:
            UnsupportedError: it contradicts existing tasks, or an entry that should be free leaks.
        """
        graph = self.calls.resolved(found)
        if not are_same(graph, self.graph):
            reason = why_not_extended(self.graph, graph) if len(self.tasks) else None
            if reason is not None:
                raise UnsupportedError(
                    f"{signature} cannot be used any more: {reason}, while tasks go by those of the inputs so far; "
                    "build the network with an example of this kind, or show it one before its first task: "
                    "net.analyze(example)"
                )
            change(lambda: self._extend(signature, found, graph))
        if not self.calls.is_of_known_shape(signature):
            self._require_no_leak_of(signature, sample)

    def _extend(self, signature: Signature, found: Trace, graph: UnitGraph) -> None:
        before = self._features_of_all_kinds()
        self.calls.trace = found
        self.calls.taught = [*self.calls.taught, signature]
        self.fit(graph)
        if not len(self.tasks):
            assert self.origin is not None
            self.origin = replace(self.origin, widths=dict(self.sizes))
        now = self._features_of_all_kinds()
        changed = {name for (name, kind), answer in before.items() if not torch.equal(answer, now[name, kind])}
        if changed:
            raise UnsupportedError(
                f"{signature} cannot be used any more: it would change the outputs of {', '.join(sorted(changed))} for "
                "other inputs; show the network an example of this kind before its first task: net.analyze(example)"
            )

    @torch.no_grad()
    def _features_of_all_kinds(self) -> dict[tuple[str, Signature], Tensor]:
        """Return features of consolidated tasks for random inputs of every shape and type that was seen so far."""
        kinds = {replace(kind, training=False, grad=False, inference=False): None for kind in self.calls.followed}
        features = {}
        with torch.inference_mode(False), self.evaluating():
            for kind in kinds:
                generator = torch.Generator().manual_seed(0)
                run = partial(self.interface.run, scratch_without_gates(self.backbone).eval())
                x = random_like(self.calls.example_of(kind, self.device), generator, run)
                for state in self.tasks.consolidated:
                    with kind.precision(self.device), suppress(*DOES_NOT_RUN):  # such as a network of whole groups
                        features[state.name, kind] = self.features(x, state).nan_to_num()
        return features

    def _require_no_leak_of(self, signature: Signature, sample: Inputs) -> None:
        with without_trace():
            backbone, attachment = copy_of(nn.ModuleList([self.backbone, self.attachment]))
            assert isinstance(attachment, Attachment)
            leak = find_leak(attachment, self.graph, backbone, sample, pairs=1)
        if leak is not None:
            raise UnsupportedError(
                f"{signature} cannot be used: free entries of {leak} change the outputs of a task that does not use "
                "them; a rule for one of its operations must be wrong, or a hook does something that no rule sees"
            )

    # -------------------------------------------------------------------------------------------------------- in a call

    def validating(self) -> AbstractContextManager[None]:
        """Return a block in which a task in training is evaluated by the part of the network that its mask uses."""
        return self.attachment.validating()

    def features_on(self, backbone: nn.Module, x: Inputs, state: UnitTask) -> Tensor:
        """Return features that the backbone, or a twin of it, computes under a task's attention and norms."""
        attention, norms = self.attention(state), self.norms(state)
        blocks = self._blocks(state, attention)
        if self.own_state.is_empty:
            return self.attachment.run(backbone, x, attention, norms, blocks)
        return self.own_state.run(
            state, twin(backbone, {}, {}), lambda backbone: self.attachment.run(backbone, x, attention, norms, blocks)
        )

    def _drop_blocks(self) -> None:
        """Find blocks anew, of a mask that is settled and of the one that was validated last."""
        self._settled_blocks: MaskCache[Mapping[str, UsedBlock]] = MaskCache()
        self._validated: tuple[Tensor, Mapping[str, UsedBlock]] = (torch.empty(0), NO_BLOCKS)

    def _blocks(self, state: UnitTask, attention: Tensor) -> Mapping[str, UsedBlock]:
        """Return the blocks of weights that a task computes with where it trains, or is validated, under a hard mask.

        Any other answer has the bits of the whole layers. Norms that later tasks share learn their statistics from
        units that are off, too.
        """
        shares = self.settings.batch_norms is BatchNorms.SHARED and bool(self.graph.per_task_modules)
        wanted = not shares if self.training else self.attachment.validates
        if not wanted or state.consolidated or attention.dtype != torch.bool:
            return NO_BLOCKS
        if attention.device.type != "cpu" or not may_take_blocks():
            return NO_BLOCKS
        if state.is_settled:
            return self._settled_blocks.of(state.packed, lambda: self.attachment.blocks_under(attention))
        mask, blocks = self._validated
        if not torch.equal(mask, attention):
            blocks = self.attachment.blocks_under(attention)
            self._validated = (attention, blocks)
        return blocks

    def mixes(self, x: Inputs, num_tasks: int) -> bool:
        """Return whether samples of several tasks go through the backbone together."""
        if not self.own_state.is_empty or self.training or num_tasks < 2:
            return False
        return self.interface.has_samples(x) and self.has_example_kind(x) and self.mixes_samples()

    def features_mixed(self, x: Inputs, states: Sequence[UnitTask], task_of: Tensor) -> Tensor | None:
        """Return features of samples of several tasks from one pass; None where that is not possible."""
        if not self.mixes(x, len(states)) or any(have_hooks(self.norms(state)) for state in states):
            return None
        attentions = [self.attention(state) for state in states]
        soft = next((each.dtype for each in attentions if each.dtype != torch.bool), torch.bool)
        attention = torch.stack([each.to(soft) for each in attentions])
        norms = mixed_norms([self.norms(state) for state in states], task_of)
        return self.attachment.run(self.backbone, x, attention[task_of], norms)

    def mixes_samples(self) -> bool:
        """Return whether samples of several tasks may go through the backbone together; tested once."""
        if self._mixing is None or self._mixing[0] is not self.attachment:
            try_out = torch.compiler.disable(mixes_samples)  # type: ignore[no-untyped-call]
            mixes = try_out(self.attachment, self.backbone, self.graph.num_units, self.example, self.interface.take)
            self._mixing = (self.attachment, mixes)
        return self._mixing[1]

    def features_of_random_mask(self, x: Inputs, seed: int) -> Tensor:
        """Return features of a batch under a mask drawn from a seed."""
        generator = torch.Generator().manual_seed(seed)
        mask = (torch.rand(self.graph.num_units, generator=generator) < 0.5).to(device_of(x))
        norms = {name: norm.eval() for name, norm in self.attachment.copy_norms().items()}
        return self.attachment.run(self.backbone, x, mask, norms)

    def used_features(self, features: Tensor, state: UnitTask) -> Tensor:
        """Return those of a task's features ``(N, F)`` that it uses."""
        if state.mask.dtype != torch.bool:
            return features
        on = torch.cat([state.mask, state.mask.new_ones(1)])
        return features[:, on[self.graph.features().units.to(on.device)]]

    def norms(self, state: UnitTask) -> dict[str, nn.Module]:
        """Return the batch norms that a task uses: its own, or the first task's."""
        return self.owner_of_norms(state).norms

    def owner_of_norms(self, state: UnitTask) -> UnitTask:
        """Return the task whose norms a task uses: itself, or the first one."""
        owner = self.tasks[0] if self.settings.batch_norms is BatchNorms.SHARED else state
        assert isinstance(owner, UnitTask)
        return owner

    def attention(self, state: UnitTask) -> Tensor:
        """Return attention over all units, ``(U,)``: annealed in training until it is settled; booleans where hard."""
        if state.is_settled:
            return self._cache.of(state.packed, lambda: state.mask)
        if not self.training:
            return self.final_mask(state)
        settings = self.settings
        return gate_in_training(
            state.embedding, self._scale, settings.s_max, settings.compensation, settings.gate_function
        )

    def final_mask(self, state: UnitTask) -> Tensor:
        """Return the mask that a task in training has if it is consolidated now, ``(U,)``."""
        if state.is_settled:
            return state.mask
        if self.settings.hard:
            return used_units(state.embedding.detach(), self.graph.groups)
        return functional.gate(state.embedding, self.settings.s_max, self.settings.gate_function)

    # --------------------------------------------------------------------------------------------------------- training

    def open_task(self, name: str, head: int | nn.Module, generator: torch.Generator | None = None) -> UnitTask:
        """Append the state of a new task: an embedding, a head, and copies of the batch norms."""
        reference = next((p for p in self.backbone.parameters() if p.is_floating_point()), torch.empty(0))
        features = len(self.graph.features().units)
        own = head if isinstance(head, nn.Module) else linear_head(features, head, generator)  # drawn before the rest
        drawn = torch.randn(self.graph.num_units, generator=generator, dtype=DRAWN)
        embedding = drawn.to(type_of_choice(reference.dtype))
        shares_norms = self.settings.batch_norms is BatchNorms.SHARED and len(self.tasks) > 0
        norms = {} if shares_norms else self.attachment.copy_norms()
        num_classes = None if isinstance(head, nn.Module) else head
        axis = self.interface.unit_axis
        state = UnitTask(name, num_classes, embedding, own.to(reference.dtype), norms, axis).to(reference.device)
        state.moving = self.own_state.for_new_task(self.backbone)
        self.tasks.append(state)
        self._set_scale(self.settings.s_max)
        state.train(self.training)
        return state

    def start_embedding(self, state: UnitTask, start: Tensor | None) -> None:
        """Set the initial values of a new task's embedding, ``(U,)``; None leaves those that were drawn."""
        if start is not None:
            with torch.no_grad():
                state.embedding.copy_(start)
        self._off = groups_switched_off(state.embedding.detach(), self.graph.groups)  # by chance, where they are small

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the backbone's parameters that a task in training trains together with its own."""
        return [
            parameter
            for name, parameter in self.backbone.named_parameters(prefix="backbone")
            if self.graph.roles[name] not in (Role.PER_TASK, Role.UNTRAINED)
        ]

    def bounded(self) -> Sequence[Tensor]:
        """Return the embedding in training."""
        state = self.tasks.in_training
        return () if state is None or state.is_settled else (state.embedding,)

    def anneal(self, progress: float | Tensor) -> None:
        """Set the scale of the gates in training (Eq. 3)."""
        self.tasks.require_training("anneal")
        if isinstance(progress, Tensor):
            progress = self._single(progress)
        try:
            self._set_scale(functional.annealed_scale(progress, self.settings.s_max))
        except ValueError as error:
            raise InputError(str(error)) from error

    def _single(self, progress: Tensor) -> Tensor:
        """Return a position within the epoch, without its gradient.

        Raises:
            InputError: it is none, as far as that can be told without waiting for a device.
        """
        if progress.dim() or progress.is_complex() or progress.device != self.device:
            raise InputError(
                f"progress is a number or a real 0-dimensional tensor on {self.device}, not one of type "
                f"{progress.dtype} and shape {tuple(progress.shape)} on {progress.device}"
            )
        progress = progress.detach()
        if progress.device.type == "cpu" and not 0.0 <= float(progress.double().numpy()) <= 1.0:
            raise InputError(f"progress must lie in [0, 1], not {progress.item():g}")
        return progress

    def _set_scale(self, scale: float | Tensor) -> None:
        # A tensor, since compiled code would be compiled again for every new number; a new one each time, since an
        # earlier forward pass may still wait for its backward pass.
        self._scale = torch.as_tensor(scale, dtype=torch.float64)

    def regularization(self) -> Tensor:
        """Return the share of the free units that the task in training uses (Eq. 5, or its like), a scalar."""
        state = self.tasks.require_training("regularization")
        dtype = torch.float32 if state.is_settled else state.embedding.dtype
        attention = self.attention(state).to(dtype)
        if self.settings.regularizer in (Regularization.WEIGHTED_L1, Regularization.LAYERED_L1):
            prices, total = self._prices(attention.dtype)
            return torch.dot(attention, prices) / total  # as functional.attention_regularization or its layered kin
        return functional.unweighted_regularization(attention, self.settings.regularizer)

    def _prices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what units cost the task in training, ``(U,)``, and the sum of that: computed once per task."""
        known, prices, total = self._priced
        if known is not self.cumulative or prices.dtype != dtype:
            prices = 1.0 - self.cumulative.to(dtype)
            if self.settings.regularizer is Regularization.LAYERED_L1:
                prices = torch.cat([functional.layer_prices(prices[group.span]) for group in self.graph.groups])
            total = prices.sum()
            total = torch.where(total > 0, total, 1.0)  # as in functional.share_taken
            if not torch.is_inference_mode_enabled():  # whose tensors training could not use
                self._priced = (self.cumulative, prices, total)
        return prices, total

    def settle(self, state: UnitTask) -> Sequence[nn.Parameter]:
        """Give a task in training its final mask, under which it goes on; return the embedding, which it loses."""
        embedding = state.embedding
        off = [name for name in groups_switched_off(embedding.detach(), self.graph.groups) if name not in self._off]
        if off:
            left = "one unit of each stays on" if self.settings.hard else "little of what they say is left"
            warnings.warn(
                f"task {state.name!r} has switched off all units of {', '.join(off)}; {left}. If it learned badly, "
                "weigh the regularization less (c)",
                stacklevel=5,
            )
        state.settle(self.final_mask(state))
        return [embedding]

    # --------------------------------------------------------------------------------------------------- frozen entries

    @property
    def per_task_modules(self) -> Sequence[str]:
        """Names of the backbone's batch norms."""
        return self.graph.per_task_modules

    def _consolidated_masks(self) -> list[Tensor]:
        return [state.mask for state in self.tasks.consolidated]

    def refresh(self) -> None:
        """Update the cumulative attention of the consolidated tasks, and drop the blocks of what was in training."""
        self._drop_blocks()
        self.cumulative = attention_of_tasks(self.settings.conditioning, self._consolidated_masks(), self.none)

    def bind(self, plan: ProtectionPlan) -> None:
        """Leave frozen entries out of gradients where that makes steps cheaper."""
        self.attachment.choose_partial_gradients(self.backbone, plan.shared)

    def attention_on_parameters(self) -> Mapping[str, Tensor]:
        """Return how much consolidated tasks rely on each entry of the backbone, by ``backbone.`` and name."""
        if isinstance(self.settings.conditioning, Adaptive):
            return {}
        masks = self._consolidated_masks()
        separate = self.settings.conditioning is Conditioning.PER_TASK
        holders = masks if separate else [self.cumulative] if masks else []
        return attention_on_parameters(self.graph, self.backbone, holders)

    def dampers(self) -> Mapping[str, Damper]:
        """Return the dampers of parameters that are frozen in part, by ``backbone.`` and name."""
        if not isinstance(self.settings.conditioning, Adaptive):
            return {}
        shapes = {
            name: p.shape
            for name, p in self.backbone.named_parameters(prefix="backbone")
            if self.graph.roles[name] is not Role.UNTRAINED
        }
        scaled = self.settings.conditioning.scaled
        return dampers(self.graph, shapes, self._consolidated_masks(), self.none, scaled)

    def rates(self) -> Tensor:
        """Return the rates that dampers go by, ``(U + 1,)``."""
        assert isinstance(self.settings.conditioning, Adaptive)
        state = self.tasks.in_training
        attention = self.none if state is None else self.attention(state)
        return self.settings.conditioning.rates(self.graph, attention, self.cumulative)

    # ------------------------------------------------------------------------------------------------------- inspection

    def masks(self, task: str) -> dict[str, Tensor]:
        """Return the units that a task uses, by group: booleans, or numbers where masks are soft."""
        state = self.tasks.named(task)
        mask = self.final_mask(state).detach()
        return {name: part.clone() for name, part in self.graph.split(mask).items()}

    @property
    def sizes(self) -> Mapping[str, int]:
        """Numbers of units, by group."""
        return {group.name: group.size for group in self.graph.groups}

    def capacity(self, num_frozen: int) -> Capacity:
        """Return the shares of units, per group and over all, and of shared weights that consolidated tasks use."""
        return measure_capacity(self.graph, self.cumulative, num_frozen)

    def usage(self) -> float:
        """Return the share of all units that tasks use, a task in training included."""
        state, used = self.tasks.in_training, self.cumulative == 1
        if state is not None:
            mask = state.mask == 1 if state.is_settled else used_units(state.embedding.detach(), self.graph.groups)
            used = used | mask
        return float(used.float().mean()) if len(used) else 0.0

    def reuse(self) -> Tensor:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``, over consolidated tasks."""
        return measure_reuse(self.graph, [mask == 1 for mask in self._consolidated_masks()])

    # ------------------------------------------------------------------------------------------------------- unlearning

    def entries_of(self, state: UnitTask) -> Mapping[str, Tensor]:
        """Return where a task's outputs depend on shared parameters, booleans by the backbone's names."""
        mask = self.final_mask(state).detach() != 0
        relied_on = attention_on_parameters(self.graph, self.backbone, [mask])
        return {name.removeprefix("backbone."): entries for name, entries in relied_on.items()}

    def remove(self, state: UnitTask, successor: UnitTask | None) -> None:
        """Remove everything about a task but its state; its successor takes over norms that all tasks use."""
        if successor is not None and self.settings.batch_norms is BatchNorms.SHARED:
            successor.take_norms_of(state)
        self._cache.clear()
        self._drop_blocks()

    # --------------------------------------------------------------------------------------------------------- widening

    def units_now(self) -> UnitGraph:
        """Return the units of the backbone, as no other thread is changing them."""
        with asking_owners(self.backbone):
            return self.graph

    def room(self, graph: UnitGraph) -> Mapping[str, float]:
        """Return the number of free units of every group."""
        return free_units(graph, self.cumulative)

    def widen_tasks(self, widening: Widening, undo_log: UndoLog) -> Places:
        """Widen masks, heads and batch norms of the tasks, which do not use the new units."""
        return widen_unit_tasks(self.tasks, widening, undo_log)

    def analyze(self) -> UnitGraph:
        """Find the units of the backbone as it is now, for all calls that were followed so far."""
        self.calls.trace = self.calls.follow_again(self.example())
        return self.calls.resolved(self.calls.trace)

    def fit(self, graph: UnitGraph) -> None:
        """Attach gates for other units in place of the present ones."""
        self.attachment.detach(self.backbone)
        self.graph = graph
        self.attachment = Attachment(graph, self.backbone, self.interface).to(self.device)
        self.watch.record(self.own_state.names)
        self.refresh()

    # --------------------------------------------------------------------------------------------- detaching and saving

    def detach(self) -> None:
        """Remove all gates from the backbone."""
        self.attachment.detach(self.backbone)

    def to_json(self) -> dict[str, Any]:
        """Return settings, widths and signatures as JSON values, with the version of the rules that found the units."""
        assert self.origin is not None
        return {
            **self.settings.to_json(),
            "rules_version": version_of_rules(self.calls.rules),
            "origin": self.origin.to_json(),
            "signatures": [signature.to_json() for signature in self.calls.taught],
            "widths": dict(self.sizes),
        }


start_compilers_inside(UnitMasking.features_mixed, UnitMasking.mixes, UnitMasking.mixes_samples)
keep_compilers_out(UnitMasking.admit_kind)
