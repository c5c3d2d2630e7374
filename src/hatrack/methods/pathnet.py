"""PathNet: evolution chooses which modules of each layer a task uses and trains; its winners are kept for good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.capacity import Capacity
from hatrack.checkpoint import (
    Checkpoint,
    check_backbone,
    description_of_modules,
    part_of,
    read_checkpoint,
    write_checkpoint,
)
from hatrack.errors import CheckpointError, InputError
from hatrack.heads import linear_head
from hatrack.methods.base import Batch, Loss, Method, Setup
from hatrack.methods.narrow import (
    expected_classes,
    matching_share,
    narrow_builder_of,
    number_of_parameters,
    parameters_with_heads,
    sections_of,
)
from hatrack.names import unknown_name
from hatrack.streams import Task, derive_seed, seeded_generator

__all__ = ["PathNet", "PathNetSettings", "growth", "mutated", "random_genes"]

FORMAT = "hatrack.PathNet"
INDIVIDUALS = 2
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
        module_width: share of the backbone's units in a module, instead of the one that makes all modules together have
            as many parameters as the backbone, heads included.
    """

    modules: int = 16
    active: int = 3
    generations: int = 20
    module_width: float | None = None

    def __post_init__(self) -> None:
        for key in ("modules", "active", "generations"):
            if getattr(self, key) < 1:
                raise InputError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.active > self.modules:
            raise InputError(f"active must be at most modules, {self.modules}, not {self.active}")
        if self.module_width is not None and not 0.0 < self.module_width <= 1.0:
            raise InputError(f"module_width must be above 0 and up to 1, or none, not {self.module_width}")


@dataclass(frozen=True)
class _Champion:
    """The best path of a task so far, and the weights that it had when it was the best."""

    loss: float
    genes: Genes
    state: Mapping[str, Tensor]


def random_genes(layers: int, modules: int, active: int, generator: torch.Generator) -> Genes:
    """A path that takes ``active`` different modules of every layer."""
    return tuple(tuple(torch.randperm(modules, generator=generator)[:active].tolist()) for _ in range(layers))


def mutated(genes: Genes, modules: int, generator: torch.Generator) -> Genes:
    """A copy in which each gene moves, with probability ``1 / (N·L)``, by −2 to 2, around the end (section 2.1)."""
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
    """How many times as large a sum of several modules' outputs is as one output, as root mean squares.

    ``√(N (1 − 1/π) + N² / π)`` for N independent, rectified normal numbers, whose mean square is 1/2, and whose squared
    mean is 1/(2π).
    """
    return math.sqrt(modules * (1 - 1 / math.pi) + modules**2 / math.pi)


class PathNet(Method):
    """Layers of modules whose outputs are summed; a path takes some of each layer, and a tournament chooses the path.

    A generation trains two paths, one after the other, for ``epochs // generations`` epochs each, as the HAT paper does
    (so a task may take up to twice ``epochs``). The one with the lowest validation loss so far wins: its weights as
    they were then are taken up again, and the other path becomes a mutated copy. Modules of a task's winner are frozen,
    in evaluation mode, and later tasks may use them; all others start anew for the next task, with other weights.

    A module is a narrow copy of one layer, with what follows it (norm, activation, pooling), or of one residual block.
    The learning rate starts anew in every part of the training.
    """

    name = "pathnet"
    description = "evolved paths through layers of modules; the modules of a task's path are frozen"
    source = "Fernando et al., 2017"
    settings_type = PathNetSettings
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
        self._champion: _Champion | None = None
        self._genes: Genes = ()
        self._generator = torch.Generator()

    def _matching_width(self) -> float:
        classes, modules = expected_classes(self.setup), int(self.settings.modules)

        def count(share: float) -> int:
            copy = self._build(share, self.setup.seed).eval()
            with torch.no_grad():
                features: int = copy(torch.zeros(1, *self.setup.input_shape)).shape[1]
            return modules * number_of_parameters(copy) + sum(classes) * (features + 1)

        return matching_share(count, parameters_with_heads(self.setup, classes))

    def _make_modules(self) -> None:
        """Make all modules of the first task."""
        copies = [self._copy(number) for number in range(self.settings.modules)]
        self.stem = copies[0][0].to(self.setup.device)
        layers = zip(*(sections for _, sections in copies), strict=True)
        self.layers = nn.ModuleList(nn.ModuleList(layer) for layer in layers).to(self.setup.device)
        with torch.no_grad():
            network = self._build(self.width, self.setup.seed).eval()
            self._features = network(torch.zeros(1, *self.setup.input_shape)).shape[1]

    def _copy(self, number: int) -> tuple[nn.Module, list[nn.Module]]:
        """One module of every layer, with initial weights that belong to its number and to the task.

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
        """A module."""
        modules = self.layers[layer]
        assert isinstance(modules, nn.ModuleList)
        return modules[number]

    def begin_task(self, task: Task) -> None:
        """Let all modules that belong to no task start anew; draw the first two paths."""
        for number in range(self.settings.modules) if self.paths else ():
            for layer, fresh in enumerate(self._copy(number)[1]):
                if (layer, number) not in self.frozen:
                    self.module(layer, number).load_state_dict(fresh.state_dict())
        self._add_head(task.name, task.num_classes)
        self._generator = seeded_generator(self.setup.seed, "paths", task.name)
        shape = (len(self.layers), self.settings.modules, self.settings.active)
        self._individuals = [random_genes(*shape, self._generator) for _ in range(INDIVIDUALS)]
        self._genes, self._champion = self._individuals[0], None

    def _add_head(self, name: str, num_classes: int) -> None:
        head = linear_head(self._features, num_classes, seeded_generator(self.setup.seed, "head", name))
        self._heads[name] = head.to(self.setup.device)

    def phases(self, epochs: int) -> Sequence[int]:
        """A part for each path of each generation."""
        generations: int = min(self.settings.generations, epochs)
        return (epochs // generations,) * (INDIVIDUALS * generations)

    def begin_phase(self, index: int) -> None:
        """Take the path whose turn it is."""
        self._genes = self._individuals[index % INDIVIDUALS]

    def end_phase(self, index: int, valid_loss: float) -> None:
        """Compare the path with the best so far; after a generation the best goes on, beside a mutated copy."""
        if self._champion is None or valid_loss < self._champion.loss:
            state = {name: value.clone() for name, value in self._trained().state_dict().items()}
            self._champion = _Champion(valid_loss, self._genes, state)
        if index % INDIVIDUALS == INDIVIDUALS - 1:
            self._genes = self._champion.genes
            self._trained().load_state_dict(dict(self._champion.state))
            self._individuals = [self._genes, mutated(self._genes, self.settings.modules, self._generator)]

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
        """Cross-entropy along the path whose turn it is."""
        logits = self._forward(batch.x, batch.tasks[0], self._genes)
        return Loss(F.cross_entropy(logits, batch.y), logits)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Logits along the task's path."""
        if task not in self.paths:
            raise unknown_name("task", task, tuple(self.paths))
        return self._forward(x, task, self.paths[task])

    def _trained(self) -> nn.ModuleDict:
        """What is in training: the modules of the path that no earlier task holds, and the newest head."""
        trained: dict[str, nn.Module] = {"stem": self.stem}
        if self._heads:
            trained["head"] = self._head_in_training
        for layer, numbers in enumerate(self._genes):
            free = (number for number in sorted(set(numbers)) if (layer, number) not in self.frozen)
            trained |= {f"{layer}_{number}": self.module(layer, number) for number in free}
        return nn.ModuleDict(trained)

    def trained_modules(self) -> Sequence[nn.Module]:
        """The free modules of the path, and the task's head."""
        return list(self._trained().values())

    def trained_parameters(self) -> list[nn.Parameter]:
        """Theirs."""
        return list(self._trained().parameters())

    def training_state(self) -> dict[str, Tensor]:
        """All modules and the head, the paths of the tournament, and the best path so far with its weights."""
        state = {f"layers.{name}": value for name, value in self.layers.state_dict().items()}
        state |= {f"stem.{name}": value for name, value in self.stem.state_dict().items()}
        state |= {f"head.{name}": value for name, value in self._head_in_training.state_dict().items()}
        state |= {"individuals": torch.tensor(self._individuals), "genes": torch.tensor(self._genes)}
        state["generator"] = self._generator.get_state()
        if self._champion is not None:
            state |= {f"champion.state.{name}": value for name, value in self._champion.state.items()}
            state["champion.genes"] = torch.tensor(self._champion.genes)
            state["champion.loss"] = torch.tensor(self._champion.loss, dtype=torch.float64)
        return state

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        self.layers.load_state_dict(part_of(state, "layers."))
        self.stem.load_state_dict(part_of(state, "stem."))
        self._head_in_training.load_state_dict(part_of(state, "head."))
        self._individuals = [_genes(path) for path in state["individuals"]]
        self._genes = _genes(state["genes"])
        self._generator.set_state(state["generator"])
        if "champion.loss" in state:
            weights = {n: v.to(self.setup.device) for n, v in part_of(state, "champion.state.").items()}
            self._champion = _Champion(float(state["champion.loss"]), _genes(state["champion.genes"]), weights)

    @property
    def _head_in_training(self) -> nn.Linear:
        return list(self._heads.values())[-1]

    def capacity(self) -> Capacity:
        """Share of the modules that belong to a task's path, by layer; in all, of their parameters."""
        modules = self.settings.modules
        held = [sum((layer, number) in self.frozen for number in range(modules)) for layer in range(len(self.layers))]
        sizes = [number_of_parameters(self.module(layer, 0)) for layer in range(len(self.layers))]
        shares = {f"layer{layer}": number / modules for layer, number in enumerate(held, start=1)}
        used = sum(number * size for number, size in zip(held, sizes, strict=True))
        entries = modules * sum(sizes)
        return Capacity(shares, None, used / max(1, entries), entries)

    def save(self, path: Path) -> None:
        """Write paths, heads and frozen modules; all others start anew with the next task anyway."""
        tensors = {f"head.{task}.{k}": v for task, head in self._heads.items() for k, v in head.state_dict().items()}
        for layer, number in self.frozen:
            state = self.module(layer, number).state_dict()
            tensors |= {f"{layer}.{number}.{name}": value for name, value in state.items()}
        description = {
            "format": FORMAT,
            "modules": description_of_modules(self.setup.build_backbone()),
            "per_layer": self.settings.modules,
            "width": self.width,
            "tasks": [[name, self._heads[name].out_features, genes] for name, genes in self.paths.items()],
        }
        write_checkpoint(path, Checkpoint(tensors, description))

    def load(self, path: Path) -> tuple[str, ...]:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: it was saved with another backbone or number of modules.
        """
        checkpoint = read_checkpoint(path, FORMAT)
        check_backbone(path, checkpoint.description["modules"], self.setup.build_backbone())
        saved = checkpoint.description["per_layer"]
        if saved != self.settings.modules:
            raise CheckpointError(f"{path} was saved with modules={saved}, not {self.settings.modules}")
        if self.width != checkpoint.description["width"]:
            self.width = checkpoint.description["width"]
            self._make_modules()

        for name, num_classes, genes in checkpoint.description["tasks"]:
            self._add_head(name, num_classes)
            self._heads[name].load_state_dict(part_of(checkpoint.tensors, f"head.{name}."))
            self._freeze(name, tuple(map(tuple, genes)))
        for layer, number in self.frozen:
            self.module(layer, number).load_state_dict(part_of(checkpoint.tensors, f"{layer}.{number}."))
        return tuple(self.paths)
