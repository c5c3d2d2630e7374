"""PathNet: evolution chooses which modules of each layer a task uses and trains; its winners are kept for good."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hatrack.errors import CheckpointError, InputError
from hatrack.methods.base import Batch, Earlier, Loss, Schedule, Setup, joined
from hatrack.methods.narrow import (
    expected_classes,
    matching_share,
    narrow_builder_of,
    number_of_parameters,
    parameters_with_heads,
    sections_of,
)
from hatrack.methods.stored import StoredMethod
from hatrack.protection.capacity import Capacity
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task, derive_seed
from hatrack.support.names import look_up
from hatrack.support.ranges import require_range

__all__ = ["GenerationSchedule", "PathNet", "PathNetSettings", "growth", "mutated", "random_genes"]

INDIVIDUALS = 2


class GenerationSchedule(enum.Enum):
    """Learning rate and patience that a path begins a generation with."""

    CARRIED = "carried"
    """The winner goes on where it was, and the mutated copy begins at the winner's learning rate. A path whose rate has
    fallen below the least one is not trained any more."""

    ANEW = "anew"
    """Both begin as at first, in every generation."""


ALL_PATIENCE = 0
"""Patience of a path that has just been copied: that of the settings."""

UNBEGUN = Schedule(0.0, 0)
"""Schedule, in a file, of a path that begins with the settings'."""

Genes = tuple[tuple[int, ...], ...]
"""For every layer the numbers of the modules that a path takes; one that is named twice counts once."""


@dataclass(frozen=True)
class PathNetSettings:
    """Settings of PathNet, with the HAT paper's values.

    Attributes:
        modules: number of modules in every layer; 10 or 20 in the method's own paper. The HAT authors' code says that
            20 with 5 of them active learned nothing on their network.
        active: how many of them a path takes at most; 3 of 10, or 5 of 20, in the method's own paper.
        generations: rounds of the tournament; at most one per epoch.
        schedule: learning rate and patience in a generation: carried over from the one before, as in the HAT authors'
            code, or anew.
        module_width: share of the backbone's units in a module, instead of the one that makes all modules together have
            as many parameters as the backbone, heads included.
    """

    modules: int = 16
    active: int = 3
    generations: int = 20
    schedule: GenerationSchedule = GenerationSchedule.CARRIED
    module_width: float | None = None

    def __post_init__(self) -> None:
        require_range(self, "modules", "active", "generations", least=1)
        require_range(self, "module_width", above=0, most=1)
        if self.active > self.modules:
            raise InputError(f"active must be at most modules, {self.modules}, not {self.active}")


def random_genes(layers: int, modules: int, active: int, generator: torch.Generator) -> Genes:
    """Draw a path that takes ``active`` different modules of every layer."""
    return tuple(tuple(torch.randperm(modules, generator=generator)[:active].tolist()) for _ in range(layers))


def mutated(genes: Genes, modules: int, generator: torch.Generator) -> Genes:
    """Draw a copy in which each gene moves with probability ``1 / (N·L)`` by −2 to 2, around the end (section 2.1)."""
    probability = 1 / sum(map(len, genes))
    result = []
    for layer in genes:
        moves = torch.rand(len(layer), generator=generator) < probability
        by = torch.randint(-2, 3, (len(layer),), generator=generator)
        result.append(tuple(((torch.tensor(layer) + moves * by) % modules).tolist()))
    return tuple(result)


def _genes(path: Tensor) -> Genes:
    return tuple(map(tuple, path.tolist()))


def growth(modules: int) -> float:
    """Return how many times as large a sum of several modules' outputs is as one output, as root mean squares.

    ``√(N (1 − 1/π) + N² / π)`` for N independent, rectified normal numbers, whose mean square is 1/2, and whose squared
    mean is 1/(2π).
    """
    return math.sqrt(modules * (1 - 1 / math.pi) + modules**2 / math.pi)


class PathNet(StoredMethod):
    """Layers of modules whose outputs are summed; a path takes some of each layer, and a tournament chooses the path.

    A generation trains two paths, one after the other, for ``epochs // generations`` epochs each, as the HAT paper does
    (so a task may take up to twice ``epochs``). The one with the lowest validation loss so far wins: its weights as
    they were then are taken up again, and the other path becomes a mutated copy. Modules of a task's winner are frozen,
    in evaluation mode, and later tasks may use them; all others start anew for the next task, with other weights.

    A module is a narrow copy of one layer, with what follows it (norm, activation, pooling), or of one residual block.
    """

    name = "pathnet"
    description = (
        "evolved paths through layers of modules; the modules of a task's path are frozen; two paths learn, each for "
        "up to `epochs`"
    )
    source = "Fernando et al., 2017"
    settings_type = PathNetSettings
    training = MappingProxyType({"clip_norm": 1000.0})
    earlier = Earlier({"schedule": GenerationSchedule.ANEW}, {})
    file_format = "hatrack.PathNet"
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = MappingProxyType({"generations": (5, 10, 20, 50, 100, 200)})

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self._build = narrow_builder_of(setup, self.name)
        self.width = settings.module_width or self._matching_width()
        self.paths: dict[str, Genes] = {}
        self.frozen: set[tuple[int, int]] = set()
        self._make_modules()
        self._heads: dict[str, nn.Linear] = {}
        self._individuals: list[Genes] = []
        self._champion: dict[str, Tensor] = {}  # loss, genes and state (the weights) of the task's best path so far
        self._schedules: list[Schedule | None] = [None] * INDIVIDUALS  # None: the beginning
        self._winner = 0  # which individual of this generation is the champion, or was in the one before
        self._genes: Genes = ()
        self._generator = torch.Generator()

    def _matching_width(self) -> float:
        classes, modules = expected_classes(self.setup), int(self.settings.modules)

        def count(share: float) -> int:
            copy = self._build(share, self.setup.seed)
            return modules * number_of_parameters(copy) + sum(classes) * (self.setup.features_of(copy) + 1)

        return matching_share(count, parameters_with_heads(self.setup, classes))

    def foresight(self) -> str:
        """Say how wide modules are."""
        return f"modules of {self.width} of the units"

    def _make_modules(self) -> None:
        """Make all modules of the first task."""
        copies = [self._copy(number) for number in range(self.settings.modules)]
        self.stem = copies[0][0].to(self.setup.device)
        layers = zip(*(sections for _, sections in copies), strict=True)
        self.layers = nn.ModuleList(nn.ModuleList(layer) for layer in layers).to(self.setup.device)
        self._features = self.setup.features_of(self._build(self.width, self.setup.seed))

    def _copy(self, number: int) -> tuple[nn.Module, list[nn.Module]]:
        """Make one module of every layer, with initial weights that belong to its number and to the task.

        They are divided by :func:`growth`, so that the sum of a layer's modules starts about as large as the output of
        one would, instead of growing from layer to layer until the first steps diverge.
        """
        copy = self._build(self.width, derive_seed(self.setup.seed, "module", len(self.paths), number))
        with torch.no_grad():
            for layer in copy.modules():
                if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
                    layer.weight /= growth(self.settings.active)
        return sections_of(copy)

    def module(self, layer: int, number: int) -> nn.Module:
        """Return a module by its layer and its number there, both from 0."""
        modules = self.layers[layer]
        assert isinstance(modules, nn.ModuleList)
        return modules[number]

    def begin_task(self, task: Task) -> None:
        """Let all modules that belong to no task start anew; draw the first two paths."""
        if self.paths:
            self._start_free_modules_anew()
        super().begin_task(task)
        self._generator = self.setup.generator("paths", task.name)
        shape = (len(self.layers), self.settings.modules, self.settings.active)
        self._individuals = [random_genes(*shape, self._generator) for _ in range(INDIVIDUALS)]
        self._genes, self._champion = self._individuals[0], {}
        self._schedules, self._winner = [None] * INDIVIDUALS, 0

    def give_up(self, task: str) -> None:
        """Remove the task's head and path; modules of it alone are free again, and start anew with the next task."""
        if task not in self._heads:
            return
        self.paths.pop(task, None)
        self.frozen = {(layer, n) for genes in self.paths.values() for layer, row in enumerate(genes) for n in row}
        for layer, number in product(range(len(self.layers)), range(self.settings.modules)):
            if (layer, number) not in self.frozen:
                self.module(layer, number).requires_grad_(True)
        if not self.paths:  # a first task begins with the modules that there are
            self._start_free_modules_anew()
        self._genes, self._champion = (), {}
        del self._heads[task]

    def _start_free_modules_anew(self) -> None:
        for number in range(self.settings.modules):
            for layer, fresh in enumerate(self._copy(number)[1]):
                if (layer, number) not in self.frozen:
                    self.module(layer, number).load_state_dict(fresh.state_dict())

    def open(self, name: str, num_classes: int, *path: Sequence[Sequence[int]]) -> None:
        """Make a task's head, and freeze its path if that is known."""
        self._heads[name] = self.setup.head(self._features, name, num_classes).to(self.setup.device)
        for genes in path:
            self._freeze(name, tuple(map(tuple, genes)))

    def phases(self, epochs: int) -> Sequence[int]:
        """Return a part for each path of each generation."""
        generations: int = min(self.settings.generations, epochs)
        return (epochs // generations,) * (INDIVIDUALS * generations)

    def begin_phase(self, index: int) -> None:
        """Take the path whose turn it is."""
        self._genes = self._individuals[index % INDIVIDUALS]

    def schedule(self, index: int, fresh: Schedule) -> Schedule:
        """Return where the path's schedule stands, or where the winner's stood when the path was copied from it."""
        if self.settings.schedule is GenerationSchedule.ANEW:
            return fresh
        carried = self._schedules[index % INDIVIDUALS]
        return fresh if carried is None else carried._replace(patience=carried.patience or fresh.patience)

    def goes_on(self, index: int, left: int, reached: Schedule, least: float) -> bool:
        """Return whether the other path of this generation, or the winner in the next one, will make an epoch."""
        if self.settings.schedule is GenerationSchedule.ANEW:
            return True
        place, other = index % INDIVIDUALS, self._schedules[-1]
        if place < INDIVIDUALS - 1 and (other is None or other.lr >= least):
            return True
        if left < INDIVIDUALS - place:  # the last generation
            return False
        wins = self._beats_champion(reached.best_loss) or self._winner == place
        winner = reached if wins else self._schedules[self._winner]
        return winner is None or winner.lr >= least

    def _beats_champion(self, loss: float) -> bool:
        return not self._champion or loss < float(self._champion["loss"])

    def end_phase(self, index: int, reached: Schedule) -> None:
        """Compare the path with the best so far; after a generation the best goes on, beside a mutated copy."""
        place = index % INDIVIDUALS
        self._schedules[place] = reached
        if self._beats_champion(reached.best_loss):
            weights = {name: value.clone() for name, value in self._trained().state_dict().items()}
            best = {"loss": torch.tensor(reached.best_loss, dtype=torch.float64), "genes": torch.tensor(self._genes)}
            self._champion, self._winner = best | joined({"state": weights}), place
        if place == INDIVIDUALS - 1:
            self._genes = _genes(self._champion["genes"])
            self._trained().load_state_dict(part_of(self._champion, "state."))
            self._individuals = [self._genes, mutated(self._genes, self.settings.modules, self._generator)]
            winner = self._schedules[self._winner]
            assert winner is not None
            copied = Schedule(winner.lr, ALL_PATIENCE)
            self._schedules, self._winner = [winner, copied], 0

    def end_task(self, task: Task) -> None:
        """Freeze the winner's path."""
        self._freeze(task.name, self._genes)

    def _freeze(self, task: str, genes: Genes) -> None:
        self.paths[task] = genes
        for layer, numbers in enumerate(genes):
            for number in numbers:
                self.frozen.add((layer, number))
                self.module(layer, number).eval().requires_grad_(False)

    def _forward(self, x: Tensor, task: str, genes: Genes) -> Tensor:
        x = self.stem(x)
        for layer, numbers in enumerate(genes):
            x = torch.stack([self.module(layer, number)(x) for number in sorted(set(numbers))]).sum(dim=0)
        logits: Tensor = self._heads[task](x)
        return logits

    def loss(self, batch: Batch) -> Loss:
        """Return the loss along the path whose turn it is."""
        return Loss.of(self._forward(batch.x, batch.tasks[0], self._genes), batch)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Return the logits along the task's path."""
        return self._forward(x, task, look_up("task", task, self.paths))

    def _trained(self) -> nn.ModuleDict:
        """Return the modules in training: those of the path that no earlier task froze, stem and newest head."""
        trained: dict[str, nn.Module] = {"stem": self.stem}
        if self._heads:
            trained["head"] = self._parts()["head"]
        for layer, numbers in enumerate(self._genes):
            free = (number for number in sorted(set(numbers)) if (layer, number) not in self.frozen)
            trained |= {f"{layer}_{number}": self.module(layer, number) for number in free}
        return nn.ModuleDict(trained)

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the free modules of the path, and the task's head."""
        return list(self._trained().values())

    def training_state(self) -> dict[str, Tensor]:
        """Return all modules, the head, the paths of the tournament, and the best path so far with its weights."""
        paths = {"individuals": torch.tensor(self._individuals), "genes": torch.tensor(self._genes)}
        paths["winner"] = torch.tensor(self._winner)
        numbers = [schedule or UNBEGUN for schedule in self._schedules]
        paths["schedules"] = torch.tensor(numbers, dtype=torch.float64)
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**paths, "generator": self._generator.get_state(), **joined({**parts, "champion": self._champion})}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`training_state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(part_of(state, f"{name}."))
        self._individuals = [_genes(path) for path in state["individuals"]]
        self._genes = _genes(state["genes"])
        self._generator.set_state(state["generator"])
        self._champion = part_of(state, "champion.")
        if "schedules" in state:  # not in files of earlier versions, where schedules began anew
            self._winner = int(state["winner"])
            found = [Schedule(lr, int(patience), loss) for lr, patience, loss in state["schedules"].tolist()]
            self._schedules = [None if schedule == UNBEGUN else schedule for schedule in found]

    def _parts(self) -> Mapping[str, nn.Module]:
        return {"layers": self.layers, "stem": self.stem, "head": list(self._heads.values())[-1]}

    def capacity(self) -> Capacity:
        """Return the share of the modules that belong to a task's path, by layer; in all, of their parameters."""
        modules, frozen = self.settings.modules, Counter(layer for layer, _ in self.frozen)
        sizes = [number_of_parameters(self.module(layer, 0)) for layer in range(len(self.layers))]
        shares = {f"layer{layer + 1}": frozen[layer] / modules for layer in range(len(sizes))}
        used = sum(frozen[layer] * size for layer, size in enumerate(sizes))
        entries = modules * sum(sizes)
        return Capacity(shares, None, used / max(1, entries), entries)

    def stored_settings(self) -> Mapping[str, Any]:
        """Return how many modules a layer has, and how wide they are."""
        return {"per_layer": self.settings.modules, "width": self.width}

    def restore_settings(self, path: Path, description: Mapping[str, Any]) -> None:
        """Take up the width of the modules; their number must be that of the settings."""
        saved = description["per_layer"]
        if saved != self.settings.modules:
            raise CheckpointError(f"{path} was saved with modules={saved}, not {self.settings.modules}")
        if self.width != description["width"]:
            self.width = description["width"]
            self._make_modules()

    def stored_tasks(self) -> Sequence[Sequence[Any]]:
        """Return name, number of classes and path of every task."""
        return [(name, self._heads[name].out_features, genes) for name, genes in self.paths.items()]

    def _stored_modules(self) -> dict[str, nn.Module]:
        heads: dict[str, nn.Module] = {f"head.{task}": head for task, head in self._heads.items()}
        return heads | {f"{layer}.{number}": self.module(layer, number) for layer, number in self.frozen}

    def stored_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of heads and frozen modules; all others start anew with the next task anyway."""
        return joined({name: module.state_dict() for name, module in self._stored_modules().items()})

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Give heads and frozen modules their tensors."""
        for name, module in self._stored_modules().items():
            module.load_state_dict(part_of(tensors, f"{name}."))
