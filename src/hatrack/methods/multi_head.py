"""A plain network with a head per task, and methods that train it.

Further bases are for methods that tie the shared weights to their values before the task, each as strongly as it
matters, and for methods that compare the network in training with what it was before the task.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.functional import quadratic_distance
from hatrack.methods.base import Batch, Loss, Setup, joined
from hatrack.methods.proximal import Penalty, proximal_step, require_step_sizes
from hatrack.methods.stored import StoredMethod
from hatrack.storage.checkpoint import part_of
from hatrack.streams import Task
from hatrack.support.heads import linear_head
from hatrack.support.modes import dropping
from hatrack.support.names import unknown_name
from hatrack.support.randomness import random_numbers_apart

__all__ = ["AnchoredMethod", "DistilledMethod", "MultiHeadMethod", "MultiHeadNetwork"]

EXTRA = "method"
"""First part of the names of a method's own tensors in a file; those of the network begin otherwise."""


class MultiHeadNetwork(nn.Module):
    """A backbone shared by all tasks without protection, and a linear head per task.

    Args:
        backbone: maps a batch to features ``(N, F)``.
        features: F.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = features
        self.heads = nn.ModuleList()
        self.task_names: list[str] = []

    @classmethod
    def for_setup(cls, setup: Setup) -> MultiHeadNetwork:
        """Make a network without tasks, on the setup's device, with the seed's initial weights."""
        backbone = setup.build_backbone()
        return cls(backbone, setup.features_of(backbone)).to(setup.device)

    def add_task(self, name: str, num_classes: int, generator: torch.Generator) -> None:
        """Open a head, on the device of the backbone."""
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        self.heads.append(linear_head(self.features, num_classes, generator).to(device))
        self.task_names.append(name)

    def remove_task(self, name: str) -> None:
        """Remove the head of a task, if there is one."""
        if name in self.task_names:
            index = self.task_names.index(name)
            del self.task_names[index], self.heads[index]

    def head(self, task: str) -> nn.Linear:
        """Return the head of a task.

        Raises:
            InputError: there is no such task.
        """
        if task not in self.task_names:
            raise unknown_name("task", task, self.task_names)
        head = self.heads[self.task_names.index(task)]
        assert isinstance(head, nn.Linear)
        return head

    def num_classes(self, task: str) -> int:
        """Return the number of classes of a task."""
        return self.head(task).out_features

    def forward(self, x: Tensor, tasks: str | Sequence[str], task_of: Tensor | None = None) -> Tensor:
        """Return logits ``(N, most classes)`` of samples of one task, or of several: −inf behind a task's last class.

        Args:
            x: samples ``(N, ...)``.
            tasks: the task's name, or the names of all tasks that the samples may come from.
            task_of: index of every sample's task in ``tasks``, int64 ``(N,)``; None if there is one task.
        """
        return self.logits(self.backbone(x), tasks, task_of)

    def logits(self, features: Tensor, tasks: str | Sequence[str], task_of: Tensor | None = None) -> Tensor:
        """Return logits of features ``(N, F)``; see :meth:`forward`."""
        tasks = [tasks] if isinstance(tasks, str) else tasks
        if len(tasks) == 1:
            only: Tensor = self.head(tasks[0])(features)
            return only
        assert task_of is not None
        each = [self.head(task)(features) for task in tasks]
        widest = max(logits.shape[1] for logits in each)
        padded = [F.pad(logits, (0, widest - logits.shape[1]), value=float("-inf")) for logits in each]
        return torch.stack(padded)[task_of, torch.arange(len(features), device=features.device)]

    def frozen_copy(self) -> MultiHeadNetwork:
        """Return the network as it is now, in evaluation mode, and never to be trained."""
        frozen = copy.deepcopy(self)
        frozen.zero_grad()
        return frozen.eval().requires_grad_(False)


class MultiHeadMethod(StoredMethod):
    """Trains a :class:`MultiHeadNetwork` with the loss of each task; the base of everything that adds to that.

    Attributes:
        network: the network.
        kept: names of attributes that further tasks need beside the network, each a dictionary of tensors on the
            method's device; they are saved and loaded with it.
    """

    file_format = "hatrack.MultiHeadNetwork"
    kept: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.network = self.new_network()

    def new_network(self) -> MultiHeadNetwork:
        """Make the network with its initial weights, without tasks."""
        return MultiHeadNetwork.for_setup(self.setup)

    def open(self, name: str, num_classes: int, *_: Any) -> None:
        """Add a task's head."""
        self.network.add_task(name, num_classes, self.setup.generator("head", name))

    def give_up(self, task: str) -> None:
        """Remove the task's head."""
        self.network.remove_task(task)

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of the right head's outputs."""
        return Loss.of(self.network(batch.x, batch.tasks, batch.task_of), batch)

    def predict(self, x: Tensor, task: str) -> Tensor:
        """Return the logits of the task's head."""
        return self.network(x, task)

    def trained_modules(self) -> Sequence[nn.Module]:
        """Return the whole network; heads of other tasks get no gradient."""
        return [self.network]

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """Return the backbone's parameters by their names there: those that later tasks would overwrite."""
        return dict(self.network.backbone.named_parameters())

    def copy_of_shared(self) -> dict[str, Tensor]:
        """Return the values that :meth:`shared_parameters` have now."""
        return {name: value.detach().clone() for name, value in self.shared_parameters().items()}

    def extra_state(self) -> dict[str, Tensor]:
        """Return what further tasks need beside the network, by names of the method's choice: all that is kept."""
        return joined({kind: getattr(self, kind) for kind in self.kept})

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`extra_state` gave, on the method's device; the network is loaded already."""
        for kind in self.kept:
            setattr(self, kind, part_of(state, f"{kind}."))

    def stored_backbone(self) -> nn.Module:
        """Return the network's backbone."""
        return self.network.backbone

    def stored_settings(self) -> Mapping[str, Any]:
        """Return the method's name: all methods with such a network share one format."""
        return {"method": self.name}

    def stored_tasks(self) -> Sequence[Sequence[Any]]:
        """Return name and number of classes of every task."""
        return [(name, self.network.num_classes(name)) for name in self.network.task_names]

    def stored_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of backbone and heads, and those of :meth:`extra_state`."""
        return {**self.network.state_dict(), **joined({EXTRA: self.extra_state()})}

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up backbone, heads, and what else the method needs."""
        self.network.load_state_dict({name: v for name, v in tensors.items() if not name.startswith(f"{EXTRA}.")})
        extra = part_of(tensors, f"{EXTRA}.")
        self.load_extra_state({name: value.to(self.setup.device) for name, value in extra.items()})


class AnchoredMethod(MultiHeadMethod):
    """Penalises ``scale · Σ Ω (θ − θ*)²`` over the backbone's parameters, from the second task on.

    The penalty is a proximal step after every step of the optimizer, or a term of the loss where the settings have a
    ``penalty`` that is explicit; see :mod:`hatrack.methods.proximal`. Validation looks at loss and penalty together in
    both cases. Heads are left out: those of earlier tasks get no gradient, and so stay where they are. A subclass calls
    :meth:`hold` at the end of each task.

    Attributes:
        anchor: θ* by name; empty in the first task.
        importance: Ω by name; empty if all parameters matter alike.
    """

    kept: ClassVar[tuple[str, ...]] = ("anchor", "importance")

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.anchor: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """Return the backbone's parameters that training may move, by their names there."""
        return {name: p for name, p in super().shared_parameters().items() if p.requires_grad}

    @property
    def is_explicit(self) -> bool:
        """Return whether the penalty is a term of the loss."""
        return getattr(self.settings, "penalty", Penalty.PROXIMAL) is Penalty.EXPLICIT

    def scale(self) -> float:
        """Return the factor of the distance: the strength, or half of it, as the paper has it."""
        strength: float = self.settings.strength
        return strength

    def hold(self, importance: Mapping[str, Tensor] | None = None) -> None:
        """Anchor the weights where they are now: from the next task on it costs something to move them.

        Args:
            importance: how much every entry matters, none negative, by the names of the parameters in the backbone; all
                alike if left out.
        """
        self.anchor = self.copy_of_shared()
        self.importance = dict(importance or {})

    def loss(self, batch: Batch) -> Loss:
        """Return the task's loss and the penalty; the task's loss alone where a proximal step stands for the penalty.

        Such a step is made only in training, and so the penalty is left out while gradients are recorded.
        """
        loss = super().loss(batch)
        if not self.anchor or (torch.is_grad_enabled() and not self.is_explicit):
            return loss
        distance = quadratic_distance(self.shared_parameters(), self.anchor, self.importance or None)
        return loss.plus(self.scale() * distance)

    def protect(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Have the proximal step follow the optimizer's, before :meth:`after_step`; return the optimizer.

        Raises:
            InputError: the penalty is proximal, and the optimizer is not SGD, Adam or AdamW.
        """
        if not self.is_explicit:
            require_step_sizes(optimizer)
            optimizer.register_step_post_hook(lambda stepped, *_: self.draw_back(stepped))
        return super().protect(optimizer)

    def draw_back(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the proximal step that belongs to a step of the optimizer; none in the first task."""
        if self.anchor:
            proximal_step(optimizer, self.shared_parameters(), self.anchor, self.importance or None, self.scale())


class DistilledMethod(MultiHeadMethod):
    """Keeps a frozen copy of the network from before the task; settings have ``matched_dropout``.

    Attributes:
        old: that copy, in evaluation mode; None in the first task.
    """

    def __init__(self, setup: Setup, settings: Any) -> None:
        super().__init__(setup, settings)
        self.old: MultiHeadNetwork | None = None

    def begin_task(self, task: Task) -> None:
        """Copy the network, and open the task's head."""
        if self.network.task_names:
            self.old = self.network.frozen_copy()
        super().begin_task(task)

    def loss(self, batch: Batch) -> Loss:
        """Return the task's loss, and from the second task on the distance from the old network, too."""
        if self.old is None:
            return super().loss(batch)
        features, old_features = self.both_features(batch.x, self.old)
        logits = self.network.head(batch.tasks[0])(features)
        penalty = self.settings.strength * self.distance(self.old, features, old_features)
        return Loss.of(logits, batch).plus(penalty)

    def both_features(self, x: Tensor, old: MultiHeadNetwork) -> tuple[Tensor, Tensor]:
        """Return features ``(N, F)`` of both backbones, those of the old one without gradient.

        Where the settings ask for it both are under one and the same dropout in training.
        """
        if self.settings.matched_dropout and self.network.training:
            with random_numbers_apart(), torch.no_grad(), dropping(old):
                old_features = old.backbone(x)
        else:
            with torch.no_grad():
                old_features = old.backbone(x)
        return self.network.backbone(x), old_features

    @abc.abstractmethod
    def distance(self, old: MultiHeadNetwork, features: Tensor, old_features: Tensor) -> Tensor:
        """Return how far the network has gone from the old one on a batch of new samples, a scalar.

        Args:
            old: the old network.
            features: what the backbone gives, ``(N, F)``.
            old_features: what the old backbone gives, of the same shape and without gradient.
        """
