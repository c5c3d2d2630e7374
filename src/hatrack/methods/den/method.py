"""DEN: retrain the units that a task needs, add some where they do not do, and split those that drifted."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import InputError
from hatrack.methods.base import Batch, Loss, Schedule, Setup, joined
from hatrack.methods.den.layers import (
    DenseLayer,
    after_split,
    drift_of_units,
    free_entries,
    selected_units,
    shrunk_rows,
    silent_units,
    soft_threshold,
    units_to_split,
    widened,
    without_units,
)
from hatrack.methods.den.network import ExpandableNetwork
from hatrack.methods.proximal import proximal_step, require_step_sizes
from hatrack.methods.stored import StoredMethod
from hatrack.protection.capacity import Capacity
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task
from hatrack.support.ranges import require_nonnegative, require_range

__all__ = ["DEN", "DENSettings", "Part", "UnitChanges", "divided"]

SKIPPED = -1.0
"""Learning rate of a part of the training that makes no epoch: below any least one."""


@dataclass(frozen=True)
class DENSettings:
    """Settings of DEN, with the values of the authors' code for permuted MNIST (jaehong31/DEN, DEN_run.py).

    Its 0.0001 of weight decay, and Adam at 0.001, are settings of the training. Its losses are means over ten binary
    cross-entropies, which are several times smaller than the cross-entropy of ten classes: ``loss_threshold`` and
    ``strength`` mean less here than there.

    Attributes:
        l1: how much closer to 0 each step brings every weight in training.
        group_l1: how much shorter each step makes the vector of a unit's new weights in an expansion.
        strength: penalty on leaving the weights of the task before, ``strength / 2 · ‖θ − θ*‖²``, as a proximal step.
        loss_threshold: validation loss of the task above which the network expands after it was retrained.
        expansion: number of units that an expansion adds to every layer, and largest number of units of a layer that a
            task splits.
        split_threshold: how far a unit's weights may go, as the norm of the difference, before it is split.
    """

    l1: float = 1e-5
    group_l1: float = 1e-3
    strength: float = 0.5
    loss_threshold: float = 0.01
    expansion: int = 10
    split_threshold: float = 0.05

    def __post_init__(self) -> None:
        require_nonnegative(self, "l1", "group_l1", "strength", "loss_threshold", "split_threshold")
        require_range(self, "expansion", least=0)


class Part(enum.IntEnum):
    """Parts of a task's training, in their order."""

    HEAD = 0
    """The head alone, under the l1 norm; of the first task the whole network."""

    RETRAINING = 1
    """The units that the head depends on."""

    EXPANSION = 2
    """New units and the head; left out where the loss is below its threshold."""

    SPLITTING = 3
    """The whole network, after units that drifted have been split."""


@dataclass(frozen=True)
class UnitChanges:
    """Changes that a task made to the network.

    Attributes:
        selected: for every layer how many units the task retrained; none in the first task.
        added: for every layer how many units it added and kept.
        split: for every layer how many units it split.
    """

    selected: tuple[int, ...]
    added: tuple[int, ...]
    split: tuple[int, ...]


def divided(epochs: int) -> tuple[int, int, int, int]:
    """Divide the epochs of a later task among the parts of its training; see :class:`Part`.

    A tenth goes to the head (at least one of four epochs or more), and equal shares to the others, of which the
    retraining gets what is left over, and is the last to be without.
    """
    head = max(1, epochs // 10) if epochs >= 4 else 0
    splitting = (epochs - head) // 3
    expansion = (epochs - head - splitting) // 2
    return head, epochs - head - splitting - expansion, expansion, splitting


class DEN(StoredMethod):
    """Widens dense layers where a task needs it; a task reads no unit that came after it (its time stamp).

    A task trains its head alone, then the units that the sparse head depends on, near their values of the task before.
    If the loss is still above its threshold, every layer gets more units, of which those stay that the group sparsity
    leaves a weight. Units whose weights went too far are split, and all is trained once more, near the old values.
    Those moves change what earlier tasks compute: old tasks keep the width of their time, and are forgotten a little.

    As the paper, and unlike the authors' code: the search begins at all outputs of the head and not at the first one;
    units are split whether or not the network was expanded; the furthest are split first, where the code takes the
    nearest above the threshold; a copy takes the place of its original in what is the task's own, where the code
    doubles it. The epochs of a task are divided among the parts, where the code gives each as many.

    Raises:
        InputError: the backbone is no row of dense layers.

    Attributes:
        network: the network.
        changes: what each task did to it, by the task's name.
    """

    name = "den"
    description = (
        "dynamically expandable: selected units are retrained, layers get more, and those that drift are split"
    )
    source = "Yoon et al., ICLR 2018"
    settings_type = DENSettings
    training = MappingProxyType({"optimizer": "adam", "lr": 0.001, "weight_decay": 0.0001})
    file_format = "hatrack.DynamicallyExpandableNetwork"

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = ExpandableNetwork(setup.build_backbone()).to(setup.device)
        self.changes: dict[str, UnitChanges] = {}
        self._task = ""
        self._before: tuple[DenseLayer, ...] = ()  # the layers before the task; none in the first one
        self._division: tuple[int, ...] = ()
        self._part = Part.HEAD
        self._free: tuple[Tensor, ...] | None = None  # entries in training, by parameter; None: all of them
        self._kept: tuple[Tensor, ...] = ()  # values of those parameters, for the entries that are not
        self._anchor: dict[str, Tensor] = {}  # values before the task, by layer and name; 0 where units are new
        self._is_old: dict[str, Tensor] = {}  # 1 where they are old, 0 where they are new
        self._expands = False
        self._changes = UnitChanges((), (), ())

    # Tasks and files

    def begin_task(self, task: Task) -> None:
        """Remember the layers, and open the task's head.

        Until a part begins, all is trained, near the old values: so it stays where a training has no parts, as in
        learning without being told of task switches. Nothing grows there.
        """
        self._before = self.network.copies() if self.network.widths else ()
        super().begin_task(task)
        none = (0,) * len(self.network.layers)
        self._task, self._part, self._changes = task.name, Part.SPLITTING, UnitChanges(none, none, none)
        self._free, self._expands = None, False
        self._keep()

    def give_up(self, task: str) -> None:
        """Remove the task's head and its units, and give the layers the weights that they had before the task.

        So earlier tasks answer as they did then. A first task leaves a network with its initial weights; of one that
        was ended no copy is kept, and its units stay.
        """
        if task not in self.network.widths:
            return
        if len(self.network.widths) == 1:
            self.network = ExpandableNetwork(self.setup.build_backbone()).to(self.setup.device)
        else:
            if self._before:
                self.network.set_layers(self._before)
            self.network.remove_newest()
        self.changes.pop(task, None)
        self._forget_training()

    def open(self, name: str, num_classes: int, *learned: Any) -> None:
        """Make a task's head; of one that was learned, widen the network to the width of its time."""
        for widths, selected, added, split in learned:
            self._make_room(widths)
            self.changes[name] = UnitChanges(tuple(selected), tuple(added), tuple(split))
        features = self.network.current_widths[-1]
        self.network.add_task(name, self.setup.head(features, name, num_classes).to(self.setup.device))

    def _make_room(self, widths: Sequence[int]) -> None:
        """Widen the layers by zeros, for tensors to come."""
        layers, inputs = [], self.network.tensors()[0].weight.shape[1]
        for layer, outputs in zip(self.network.tensors(), widths, strict=True):
            empty = DenseLayer(layer.weight.new_zeros(outputs, inputs), layer.bias.new_zeros(outputs))
            layers.append(widened(layer, empty))
            inputs = outputs
        self.network.set_layers(layers)

    def end_task(self, task: Task) -> None:
        """Stamp the task with the widths of now."""
        self.changes[task.name] = self._changes
        self._forget_training()

    def _forget_training(self) -> None:
        self._before, self._free, self._kept, self._anchor, self._is_old = (), None, (), {}, {}

    def stored_tasks(self) -> Sequence[Sequence[Any]]:
        """Return name, number of classes, time stamp and changes of every task.

        Raises:
            InputError: a task is in training, whose changes are not known yet.
        """
        unstamped = [name for name in self.network.widths if name not in self.changes]
        if unstamped:
            raise InputError(f"task {unstamped[0]!r} is in training and has no time stamp yet; end it before saving")
        stored = []
        for name, widths in self.network.widths.items():
            changes = self.changes[name]
            learned = (widths, changes.selected, changes.added, changes.split)
            stored.append((name, self.network.head(name).out_features, learned))
        return stored

    def stored_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of layers and heads."""
        return self.network.state_dict()

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up layers and heads."""
        self.network.load_state_dict(dict(tensors))

    # Loss and answers

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of the task's outputs; penalties are steps of their own, and no part of it."""
        return Loss.of(self.network(batch.x, batch.tasks[0]), batch)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Return the logits of a task, computed with the width of its time."""
        return self.network(x, task)

    # Parts of the training

    @property
    def _is_first(self) -> bool:
        return not self._before

    def phases(self, epochs: int) -> Sequence[int]:
        """Return one part for the first task, and the four of :class:`Part` for others."""
        self._division = (epochs,) if self._is_first else divided(epochs)
        return self._division

    @torch.no_grad()
    def begin_phase(self, index: int) -> None:
        """Select, expand or split."""
        self._part, self._free = Part(index), None
        if self._part is Part.RETRAINING:
            self._select()
        elif self._part is Part.EXPANSION and self._expands:
            self._expand()
        elif self._part is Part.SPLITTING and self._division[Part.SPLITTING]:
            self._split()
        self._keep()

    def schedule(self, index: int, fresh: Schedule) -> Schedule:
        """Skip the expansion where the loss is below its threshold."""
        return fresh._replace(lr=SKIPPED) if index == Part.EXPANSION and not self._expands else fresh

    def goes_on(self, index: int, left: int, reached: Schedule, least: float) -> bool:
        """Return whether a part that makes an epoch will follow."""
        if index == Part.HEAD:
            return True
        return self._division[Part.SPLITTING] > 0 or (index == Part.RETRAINING and self._must_expand(reached.best_loss))

    def end_phase(self, index: int, reached: Schedule) -> None:
        """Decide on an expansion after the retraining; cut units without weights after the expansion."""
        if index == Part.RETRAINING:
            self._expands = self._must_expand(reached.best_loss)
        elif index == Part.EXPANSION and self._expands:
            self._cut_silent()

    def _must_expand(self, loss: float) -> bool:
        return self._division[Part.EXPANSION] > 0 and loss > self.settings.loss_threshold

    def _head(self) -> DenseLayer:
        head = self.network.head(self._task)
        return DenseLayer(head.weight, head.bias)

    def _select(self) -> None:
        layers, head = self.network.tensors(), self._head()
        units = selected_units(layers, head.weight)
        self._changes = UnitChanges(tuple(int(own.sum()) for own in units), self._changes.added, self._changes.split)
        of_head = DenseLayer(units[-1].expand_as(head.weight), torch.ones_like(head.bias, dtype=torch.bool))
        self._train_only(free_entries(layers, units), of_head)

    def _expand(self) -> None:
        number, generator = self.settings.expansion, self.setup.generator("expansion", self._task)
        old, head = self.network.tensors(), self._head()
        layers, free = [], []
        inputs = old[0].weight.shape[1]
        for layer in old:
            outputs = len(layer.bias) + number
            fresh = _fresh(layer, outputs, inputs, generator)
            layers.append(widened(layer, fresh))
            free.append(_new_entries(layer, fresh))
            inputs = outputs
        wide = widened(head, _fresh(head, len(head.bias), inputs, generator))
        self._changes = UnitChanges(self._changes.selected, (number,) * len(old), self._changes.split)
        self.network.replace(self._task, layers, wide)
        self._train_only(free, DenseLayer(*(torch.ones_like(value, dtype=torch.bool) for value in wide)))

    @torch.no_grad()
    def _cut_silent(self) -> None:
        layers, head, added = self.network.tensors(), self._head(), self._changes.added
        removed = [silent_units(layer, len(layer.bias) - new) for layer, new in zip(layers, added, strict=True)]
        kept, weight = without_units(layers, head.weight, removed)
        left = tuple(new - int(cut.sum()) for new, cut in zip(added, removed, strict=True))
        self._changes = UnitChanges(self._changes.selected, left, self._changes.split)
        self.network.replace(self._task, kept, DenseLayer(weight, head.bias))

    def _split(self) -> None:
        now, head = self.network.copies(), self._head()
        settings = self.settings
        split = [
            units_to_split(drift_of_units(layer.weight, old.weight), settings.split_threshold, settings.expansion)
            for layer, old in zip(now, self._before, strict=True)
        ]
        layers, weight = after_split(now, self._before, head.weight, split)
        self._changes = UnitChanges(self._changes.selected, self._changes.added, tuple(map(len, split)))
        self.network.replace(self._task, layers, DenseLayer(weight, head.bias))

    # Steps

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the network; heads of other tasks, and the layers while the head is trained alone, get no step."""
        return [self.network]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the task's head alone in the first part of a later task; the layers, too, in all others."""
        head = [*self.network.head(self._task).parameters()]
        if self._part is Part.HEAD and not self._is_first:
            return head
        return [*self.network.layers.parameters(), *head]

    def _train_only(self, layers: Sequence[DenseLayer], head: DenseLayer) -> None:
        """Say which entries are in training: booleans for the layers, and for the head."""
        self._free = tuple(value for layer in (*layers, head) for value in layer)

    def _keep(self) -> None:
        """Remember what steps have to put back and to draw back to, as wide as the layers are now."""
        free = () if self._free is None else self.trained_parameters()
        self._kept = tuple(parameter.detach().clone() for parameter in free)
        self._anchor, self._is_old = {}, {}
        for index, (layer, old) in enumerate(zip(self.network.tensors(), self._before, strict=False)):
            zeros = DenseLayer(*(torch.zeros_like(value) for value in layer))
            ones = DenseLayer(*(torch.ones_like(value) for value in old))
            for name, value, is_old in zip(("weight", "bias"), widened(old, zeros), widened(ones, zeros), strict=True):
                self._anchor[f"{index}.{name}"], self._is_old[f"{index}.{name}"] = value, is_old

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Have the proximal steps follow the optimizer's; return the optimizer.

        Raises:
            InputError: the optimizer is not SGD, Adam or AdamW.
        """
        require_step_sizes(optimizer)
        optimizer.register_step_post_hook(lambda stepped, *_: self.draw_back(stepped))
        return super().protect(optimizer)

    @torch.no_grad()
    def draw_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Draw old weights towards their values before the task; none in the first task."""
        if self._is_first:
            return
        names = ("weight", "bias")
        parameters = {
            f"{index}.{name}": getattr(layer, name) for index, layer in enumerate(self.network.layers) for name in names
        }
        proximal_step(optimizer, parameters, self._anchor, self._is_old, self.settings.strength / 2)

    @torch.no_grad()
    def after_step(self) -> None:
        """Make weights sparse, and in an expansion groups of new ones; put back what is not in training."""
        trained = self.trained_parameters()
        for index, parameter in enumerate(trained):
            if parameter.dim() == 2:
                parameter.copy_(soft_threshold(parameter, self.settings.l1))
                if self._free is not None and self._part is Part.EXPANSION and index < 2 * len(self.network.layers):
                    parameter.copy_(shrunk_rows(parameter, self._free[index], self.settings.group_l1))
        for parameter, free, kept in zip(trained, self._free or (), self._kept, strict=False):
            parameter.copy_(torch.where(free, parameter, kept))

    # Going on

    def training_state(self) -> dict[str, Tensor]:
        """Return layers and head of now, which entries are in training, and what the task has done so far."""
        values = [value for layer in (*self.network.tensors(), self._head()) for value in layer]
        parts: dict[str, Mapping[str, Tensor]] = {
            "value": {str(index): value.detach() for index, value in enumerate(values)},
            "free": {str(index): free for index, free in enumerate(self._free or ())},
        }
        changes = (self._changes.selected, self._changes.added, self._changes.split)
        return {"part": torch.tensor(int(self._part)), "changes": torch.tensor(changes), **joined(parts)}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`training_state` gave."""
        self._part = Part(int(state["part"]))
        self._changes = UnitChanges(*(tuple(numbers) for numbers in state["changes"].tolist()))
        device, values = self.setup.device, part_of(state, "value.")
        pairs = [values[str(index)].to(device) for index in range(len(values))]
        *layers, head = (DenseLayer(*pairs[index : index + 2]) for index in range(0, len(pairs), 2))
        self.network.replace(self._task, layers, head)
        free = part_of(state, "free.")
        self._free = tuple(free[str(index)].to(device) for index in range(len(free))) or None
        self._expands = self._part is Part.EXPANSION
        self._keep()

    # What is in use

    def usage(self) -> float:
        """Return the share of the layers' weights that are not 0."""
        return self.capacity().weights

    def capacity(self) -> Capacity:
        """Return the share of the weights that are not 0, by layer and in all; their number grows with the network."""
        layers = self.network.tensors()
        used = [int(layer.weight.count_nonzero()) for layer in layers]
        sizes = [layer.weight.numel() for layer in layers]
        shares = {f"dense{n}": of / size for n, (of, size) in enumerate(zip(used, sizes, strict=True), start=1)}
        return Capacity(
            shares, None, sum(used) / sum(sizes), sum(layer.weight.numel() + len(layer.bias) for layer in layers)
        )


def _fresh(old: DenseLayer, outputs: int, inputs: int, generator: torch.Generator) -> DenseLayer:
    """Draw a layer of another size on the CPU, Xavier-uniform with biases of 0, and move it to where the old one is."""
    weight = nn.init.xavier_uniform_(torch.empty(outputs, inputs), generator=generator)
    return DenseLayer(weight.to(old.weight), torch.zeros(outputs).to(old.bias))


def _new_entries(old: DenseLayer, wide: DenseLayer) -> DenseLayer:
    """Return which entries of a layer that was widened are new, as booleans."""
    values = (torch.zeros_like(value, dtype=torch.bool) for value in old)
    return widened(DenseLayer(*values), DenseLayer(*(torch.ones_like(value, dtype=torch.bool) for value in wide)))
