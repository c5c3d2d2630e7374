"""HATNetwork: hard attention to the task around a network that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from hatrack.compact import CompactNetwork
from hatrack.functional import Compensation, Conditioning, GateFunction, Regularization
from hatrack.gating.gates import initial_embedding
from hatrack.gating.norms import BatchNorms
from hatrack.growth.policy import Growth
from hatrack.masks.tasks import UnitTask
from hatrack.models import widening
from hatrack.models.attaching import explains_failure
from hatrack.models.base import MaskedNetwork, read_only
from hatrack.models.gate_settings import GateSettings
from hatrack.models.own_heads import require_usable_head
from hatrack.models.taking_out import cut_units, extract_units, take_out
from hatrack.models.unit_masking import UnitMasking
from hatrack.protection.conditioning import UnitConditioning
from hatrack.state.undo import all_or_nothing, attaches_or_not
from hatrack.support.inputs import Inputs
from hatrack.support.interface import Features, Interface
from hatrack.support.modes import evaluation_mode
from hatrack.units import Role, Rule, UnitGraph, warn_of_collapse, warn_of_nothing_to_learn
from hatrack.units.signatures import Signature

__all__ = ["FORMAT", "HATNetwork"]

FORMAT = "hatrack.HATNetwork"
"""Format that files of saved networks name."""


class HATNetwork(MaskedNetwork[UnitTask]):
    """Network that learns tasks one after the other and forgets none of them.

    Gates are attached to the inputs of the backbone's layers; the backbone itself is not rewritten and is what it was
    again after :meth:`detach`. Each task has an embedding (which decides on the units it uses), a linear head, and its
    own batch norms. Parameters that have ``requires_grad=False`` now are untrained for good: what they compute is not
    gated. Once a task is consolidated, its logits never change by a single bit: for the same batch shape,
    type, device, number of threads, grad mode and library versions, in evaluation mode.

    Args:
        backbone: maps a batch to features, ``(N, …, F)``, or to a result that holds them.
        example_input: a batch of the shape that the backbone expects: a tensor; a tuple of positional arguments; or a
            mapping of keyword arguments, nested as the backbone takes them. Values do not matter, but for integers,
            truth values and masks of zeros and ones among several inputs. It is moved to the backbone's device.
        s_max: largest scale of the gates, > 0 (the paper uses 400 and advises 25 to 800).
        hard: whether masks become exactly 0 or 1 when a task is consolidated. False keeps the sigmoid's values, as the
            paper's code does; then old outputs drift a little.
        compensation: arithmetic of the embedding's gradient.
        conditioning: which entries of a weight are frozen for earlier tasks: those between units that any tasks use
            (the paper), or only those between units that one and the same task uses, which is exact too and frees more.
            Or how far they are frozen, where room for new tasks matters more than that nothing is forgotten:
            :class:`hatrack.Fading`, :class:`hatrack.Adaptive`.
        gate_function: function that turns embeddings into attention.
        regularizer: how the use of units is counted in :meth:`regularization`.
        batch_norms: whether every task has batch norms of its own, or all use the first task's.
        gate_inputs: also learn which input features a task uses, as units of a group ``inputs``; for inputs whose
            features are independent of each other (the paper, Fig. 10).
        rules: how modules treat units that hatrack does not understand by itself, by a module's name, its type, or a
            function; see :func:`hatrack.units.shared_layer`, :func:`hatrack.units.unit_by_unit` and
            :func:`hatrack.units.rule`.
        growth: when the backbone is widened before a task is added, so that the number of tasks has no bound; None
            leaves its widths as they are, unless :meth:`grow` is called.
        features: choice of the features in the backbone's result: None where the result is a tensor, a key or the name
            of an attribute, an index, or a function from the result to a tensor.
        unit_axis: axis of the features that heads act along, such as 1 for maps ``(N, C, H, W)``.
        batch_axis: axis of every input that counts samples.

    Attributes:
        backbone: the network that was given.
        tasks: the states of the tasks, in the order in which these were added.
        growth: when the backbone is widened by itself.

    Raises:
        UnsupportedError: the backbone does something that no rule explains.
        InputError: the backbone does not give features, or is inside another HATNetwork, or ``s_max`` is not
            positive and finite.
        GuaranteeError: in the leak test under random masks, an entry that should have been free changed the outputs.

    Example:
        >>> backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU())
        >>> net = HATNetwork(backbone, torch.zeros(1, 1, 28, 28))
        >>> net.add_task("shoes", num_classes=2)
        >>> net(torch.zeros(5, 1, 28, 28), "shoes").shape
        torch.Size([5, 2])
    """

    format = FORMAT
    masking: UnitMasking

    @explains_failure
    @attaches_or_not
    def __init__(
        self,
        backbone: nn.Module,
        example_input: Inputs,
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
        features: Features = None,
        unit_axis: int = -1,
        batch_axis: int = 0,
    ) -> None:
        settings = GateSettings(
            float(s_max), hard, compensation, conditioning, gate_function, regularizer, batch_norms, gate_inputs
        )
        interface = Interface(features, unit_axis, batch_axis)
        super().__init__(
            backbone,
            example_input,
            growth,
            interface,
            lambda tasks, example: UnitMasking(
                backbone, tasks, example, interface, settings, rules, self.initialization.initial_scales
            ),
        )
        warn_of_collapse(self.masking.graph)
        warn_of_nothing_to_learn(self.masking.graph)

    s_max: Final[float] = read_only("masking.settings.s_max")
    """Largest scale of the gates."""

    hard: Final[bool] = read_only("masking.settings.hard")
    """True if masks are 0 or 1."""

    compensation: Final[Compensation] = read_only("masking.settings.compensation")
    """Arithmetic of the embedding's gradient."""

    conditioning: Final[UnitConditioning] = read_only("masking.settings.conditioning")
    """Rule by which entries of weights are frozen for earlier tasks."""

    gate_function: Final[GateFunction] = read_only("masking.settings.gate_function")
    """Function that turns embeddings into attention."""

    regularizer: Final[Regularization] = read_only("masking.settings.regularizer")
    """Way in which :meth:`regularization` counts the use of units."""

    batch_norms: Final[BatchNorms] = read_only("masking.settings.batch_norms")
    """Batch norms that a task uses: its own, or the first task's."""

    gate_inputs: Final[bool] = read_only("masking.settings.gate_inputs")
    """True if input features are units."""

    @all_or_nothing()
    def add_task(
        self,
        name: str,
        num_classes: int | None = None,
        *,
        head: nn.Module | None = None,
        generator: torch.Generator | None = None,
        embedding: Tensor | Distribution | None = None,
    ) -> None:
        """Add a task with an embedding, a head, and copies of the batch norms unless it shares them.

        Args:
            name: a name that no task has yet.
            num_classes: number of outputs of a linear head, at least 1; None where ``head`` is given.
            head: head of your own, any module that maps features to outputs. It is used as it is, moved to the
                backbone's device and type, and frozen with its buffers when the task is consolidated.
            generator: source of randomness on the CPU; torch's global one if left out. If the network has a
                ``growth``, groups that are nearly full are widened first; see :meth:`grow`.
            embedding: initial values of the embedding, ``(U,)``, or the distribution of single numbers that they are
                drawn from. N(0, 1) if left out; the paper takes U(0, 2), with every unit on at first, to compress a
                single task, and k₁ in [1, 6], k₂ in [0.5, 2] for another uniform one whose formula is lost here.

        Raises:
            InputError: another task has this name, it is empty, the number of classes is below 1, both or none of
                ``num_classes`` and ``head`` are given, the head does not run on the features or shares parameters with
                another part, another task is not consolidated yet, or the embedding does not have a number in [−6, 6]
                for every unit.
            UnsupportedError: the head gives other outputs from call to call.
            GuaranteeError: parameters or buffers have another shape than they had.
        """
        self.protection.require_same_shapes()
        own = self.tasks.require_addable(name, num_classes, head)
        require_usable_head(self, name, own)
        widening.grow_if_full(self, generator)
        units = self.masking.graph.num_units
        start = None if embedding is None else initial_embedding(embedding, units, generator)
        self.masking.start_embedding(self.masking.open_task(name, own, generator), start)

    def analyze(self, example_input: Inputs) -> None:
        """Analyse the backbone on an input of another shape or type before its first task, so that its units fit both.

        Every call does so by itself; where tasks exist already, calls that would change their units are refused.

        Args:
            example_input: a batch of the other shape, or of so many samples that another path is taken.

        Raises:
            UnsupportedError: no rule explains what the backbone does with it, or it contradicts the tasks there are.
            GuaranteeError: parameters or buffers have another shape than they had.
        """
        self.masking.require_attached()
        self.protection.require_same_shapes()
        interface = self.masking.interface
        example_input = interface.accepted(example_input)
        for x in (interface.several(example_input), interface.take(example_input, slice(1))):
            for training, grad in ((False, False), (True, True)):
                signature = Signature.of(x, training, grad, interface)
                self.masking.calls.examine(x, signature, self.masking, self.change)

    @property
    def units(self) -> UnitGraph:
        """Groups of units, who writes and reads them, and every parameter's role; print it to see a table."""
        with self.turns.asking():
            graph = self.masking.graph
            of_tasks = {name: p.shape for name, p in self.named_parameters() if name not in graph.roles}
        return replace(
            graph,
            uses={**graph.uses, **dict.fromkeys(of_tasks, ())},
            roles={**graph.roles, **dict.fromkeys(of_tasks, Role.PER_TASK)},
            shapes={**graph.shapes, **of_tasks},
        )

    def extract(self, task: str, example: Inputs | None = None) -> CompactNetwork:
        """Return a consolidated task as a plain module of its own, without gates, dropout and units it does not use.

        Its logits are the gated network's up to rounding (1e-5, relative to the largest), since kernels sum in another
        order for another width; that is checked before it is returned. This network stays as it is.

        Args:
            task: the task.
            example: samples to compare on, and to count operations with; random ones if left out, integers among what
                the network looks up. Where nothing tells the outputs of samples apart, nothing is cut.

        Returns:
            The network in evaluation mode, ``summary`` saying how large it is and which groups could not be cut.

        Raises:
            InputError: there is no such task, or it is not consolidated.
            UnsupportedError: masks are soft, or the backbone without gates does not give the gated network's logits.
        """
        return take_out(self, task, example, partial(extract_units, example=example))

    @torch.no_grad()
    def logits_of_tasks(self, samples: Mapping[str, Inputs], *, batch_size: int = 1000) -> dict[str, Tensor]:
        """Return logits of many samples of several consolidated tasks, in less time than one by one.

        Every task is extracted from the weights as they are now, and its own network is asked, which has only its units
        to compute. That pays from some hundred samples per task on. A task whose weights have not moved gets
        bit-identical logits, in whichever order and with whichever others it is asked; the gated network's are the same
        up to rounding (1e-5, relative to the largest). Where masks are soft, the gated network is asked. All of it is
        done in evaluation mode.

        Args:
            samples: a batch by name of the task.
            batch_size: samples per pass; logits are reproducible to the bit for equal batches only.

        Returns:
            By name of the task ``(N, classes)``, in the order of ``samples``.

        Raises:
            InputError: there is no such task, it is not consolidated, or it has a head of its own.
            UnsupportedError: the backbone without gates does not give the gated network's logits.
        """
        results = {}
        for task, x in samples.items():
            state = self.tasks.named(task)
            state.count_classes()
            parts = self.masking.interface.split(self.masking.interface.accepted(x), batch_size)
            is_soft = state.consolidated and state.mask.dtype != torch.bool
            answer = partial(self.forward, task=task) if is_soft else take_out(self, task, None, cut_units)
            with evaluation_mode(self):
                results[task] = torch.cat([answer(part) for part in parts])
        return results
