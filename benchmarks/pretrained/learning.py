"""Ways to learn tasks from one pre-trained network: a linear probe, a network per task, and one network of masks."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

import hatrack

Inputs = Tensor | Mapping[str, Tensor]
Method = Callable[["list[Task]", int, argparse.Namespace], dict[str, Any]]
"""A way to learn tasks in a row with a seed and settings; returns what it reaches."""

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the probe's penalty that are tried on the validation part."""


class Part(Protocol):
    """Samples of a task with their labels ``(N,)``."""

    @property
    def labels(self) -> Tensor:
        """All labels."""
        ...

    def ordered(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield large batches in an order that is always the same."""
        ...

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the batches of an epoch of training."""
        ...

    def steps(self) -> int:
        """Return the number of batches of an epoch."""
        ...


@dataclass(frozen=True)
class Task:
    """Task: its name, its number of classes, and its parts."""

    name: str
    classes: int
    train: Part
    valid: Part
    test: Part


def features(backbone: nn.Module, inputs: Inputs) -> Tensor:
    """Return features ``(N, F)`` of a batch."""
    found: Tensor = backbone(inputs) if isinstance(inputs, Tensor) else backbone(**inputs)
    return found


@torch.no_grad()
def accuracy(answer: Callable[[Inputs], Tensor], part: Part) -> float:
    """Return the share of samples whose class is right."""
    right = sum(int((answer(batch).argmax(1) == labels).sum()) for batch, labels in part.ordered())
    return right / len(part.labels)


def half() -> torch.autocast:
    """Compute large products in bfloat16, in training alone: twice as fast on processors that have it."""
    return torch.autocast("cpu", torch.bfloat16)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up over a tenth of the steps, and go down to zero."""
    up = max(1, steps // 10)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / up, max(0.0, (steps - step) / max(1, steps - up)))
    )


def probe(build: Callable[[], nn.Module]) -> Method:
    """Make a linear probe: a layer on frozen features, the strength of its penalty chosen on the validation part."""

    def run(tasks: list[Task], seed: int, settings: argparse.Namespace) -> dict[str, Any]:
        backbone = build().eval()
        scores, valid = {}, {}
        for task in tasks:
            parts = {}
            for name in ("train", "valid", "test"):
                part: Part = getattr(task, name)
                with torch.no_grad():
                    pairs = [(features(backbone, batch), labels) for batch, labels in part.ordered()]
                parts[name] = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
            mean, deviation = parts["train"][0].mean(0), parts["train"][0].std(0).clamp_min(1e-6)
            scaled = {name: ((x - mean) / deviation, y) for name, (x, y) in parts.items()}
            layers = [fitted(*scaled["train"], task.classes, strength, seed) for strength in STRENGTHS]
            best = max(layers, key=lambda layer: share_of_right(layer, *scaled["valid"]))
            valid[task.name] = share_of_right(best, *scaled["valid"])
            scores[task.name] = share_of_right(best, *scaled["test"])
        return {"accuracy": scores, "validation": valid}

    return run


def fitted(x: Tensor, y: Tensor, classes: int, strength: float, seed: int) -> nn.Linear:
    """Fit a linear layer to features to the end."""
    torch.manual_seed(seed)
    layer = nn.Linear(x.shape[1], classes)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        cost = F.cross_entropy(layer(x), y) + strength * layer.weight.square().sum()
        cost.backward()
        return cost

    optimizer.step(loss)  # type: ignore[no-untyped-call,arg-type]
    return layer


def share_of_right(layer: nn.Linear, x: Tensor, y: Tensor) -> float:
    """Return the accuracy of a layer on features."""
    return float((layer(x).argmax(1) == y).float().mean())


def separate(build: Callable[[], nn.Module], lr: float) -> Method:
    """Make a method that trains a network of its own for every task; its best epoch on the validation part counts."""

    def run(tasks: list[Task], seed: int, settings: argparse.Namespace) -> dict[str, Any]:
        scores, valid = {}, {}
        for task in tasks:
            torch.manual_seed(seed)
            backbone = build()
            with torch.no_grad():
                width = features(backbone.eval(), next(iter(task.valid.ordered()))[0]).shape[1]
            head = nn.Linear(width, task.classes)
            both = nn.ModuleList([backbone, head])

            def answer(batch: Inputs, backbone: nn.Module = backbone, head: nn.Linear = head) -> Tensor:
                logits: Tensor = head(features(backbone, batch))
                return logits

            trained = [p for p in both.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
            scheduler = schedule(optimizer, settings.epochs * task.train.steps())
            generator = torch.Generator().manual_seed(seed)
            best, kept = -1.0, copy.deepcopy(both.state_dict())
            for _ in range(settings.epochs):
                both.train()
                for batch, labels in task.train.shuffled(generator):
                    with half():
                        loss = F.cross_entropy(answer(batch), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    scheduler.step()
                both.eval()
                now = accuracy(answer, task.valid)
                if now > best:
                    best, kept = now, copy.deepcopy(both.state_dict())
            both.load_state_dict(kept)
            valid[task.name], scores[task.name] = best, accuracy(answer, task.test)
            print(f"  {task.name}: {scores[task.name]:.1%}", flush=True)
        return {"accuracy": scores, "validation": valid}

    return run


def masked(
    build: Callable[[], nn.Module], lr: float, start: float | None = None, masks_lr: float | None = None
) -> Method:
    """Make a method that learns all tasks one after the other in one network of masks, and forgets none of them.

    A run that was interrupted goes on after its last task.

    Args:
        build: makes the network.
        lr: learning rate of weights.
        start: mean of the embeddings at the start of a task; None for that of the settings.
        masks_lr: learning rate of the embeddings; None for ten times that of weights.
    """

    def run(tasks: list[Task], seed: int, settings: argparse.Namespace) -> dict[str, Any]:
        saved = settings.out.with_suffix(f".{settings.method}-{seed}.hat")
        beside, chosen = saved.with_suffix(".json"), {**settings_of(settings), "lr": lr, "masks_lr": masks_lr}
        if start is not None:
            chosen["start"] = start
        digests: dict[str, str] = {}
        torch.manual_seed(seed)
        if saved.exists():
            net, known = hatrack.load(saved, build()), json.loads(beside.read_text())
            if known["settings"] != chosen:
                raise SystemExit(f"{saved} was begun with {known['settings']}; remove it to begin with {chosen}")
            digests = known["digests"]
        else:
            example = first(next(iter(tasks[0].valid.ordered()))[0], 2)
            net = hatrack.HATNetwork(build(), example, s_max=400.0)
        for task in tasks:
            if task.name in net.task_names:
                continue
            begin = time.perf_counter()
            rates = lr, 10 * lr if masks_lr is None else masks_lr
            learn(net, task, rates, settings.start if start is None else start, seed, settings)
            score, digests[task.name] = tested(net.eval(), task)
            beside.write_text(json.dumps({"settings": chosen, "digests": digests}))  # first: it may name one task more
            net.save(saved)
            print(
                f"  {task.name}: {score:.1%}, {net.usage():.0%} used, {time.perf_counter() - begin:.0f} s", flush=True
            )
        net.eval()
        valid = {task.name: accuracy(partial(net, task=task.name), task.valid) for task in tasks}
        now = {task.name: tested(net, task) for task in tasks}
        return {
            "accuracy": {name: score for name, (score, _) in now.items()},
            "validation": valid,
            "all old logits bit-identical": all(digest == digests[name] for name, (_, digest) in now.items()),
            "used": net.usage(),
            "units": sum(group.size for group in net.units.groups),
        }

    return run


def learn(
    net: hatrack.HATNetwork,
    task: Task,
    rates: tuple[float, float],
    start: float,
    seed: int,
    settings: argparse.Namespace,
) -> None:
    """Learn a task with learning rates of weights and of masks, and consolidate it."""
    generator = torch.Generator().manual_seed(seed)
    net.add_task(task.name, task.classes, generator=generator, embedding=Normal(start, 1.0))
    own = net.tasks[-1].embedding
    rest = [parameter for parameter in net.task_parameters(task.name) if parameter is not own]
    groups = [{"params": rest, "lr": rates[0]}, {"params": [own], "lr": rates[1], "weight_decay": 0.0}]
    optimizer = net.protect(torch.optim.AdamW(groups, weight_decay=0.01))
    total = task.train.steps()
    scheduler = schedule(optimizer, settings.epochs * total)
    for _ in range(settings.epochs):
        net.train()
        for step, (batch, labels) in enumerate(task.train.shuffled(generator)):
            net.anneal(step / max(1, total - 1))
            with half():
                loss = F.cross_entropy(net(batch, task.name), labels)
            loss = loss + settings.c * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rest, 1.0)
            optimizer.step()
            scheduler.step()
    net.consolidate(task.name)


def first(inputs: Inputs, samples: int) -> Inputs:
    """Return the first samples of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[:samples]
    return {key: value[:samples] for key, value in inputs.items()}


@torch.no_grad()
def tested(net: hatrack.HATNetwork, task: Task) -> tuple[float, str]:
    """Return a task's accuracy on its test part, and a digest of the logits."""
    pairs = [(net(batch, task.name), labels) for batch, labels in task.test.ordered()]
    logits, labels = torch.cat([given for given, _ in pairs]), torch.cat([labels for _, labels in pairs])
    right = float((logits.argmax(1) == labels).double().mean())
    return right, hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def settings_of(settings: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that decide on the results of a run."""
    return {name: getattr(settings, name) for name in ("epochs", "c", "start", "limit")}


def require_same_settings(settings: argparse.Namespace) -> None:
    """End the program where a file of results holds runs of other settings."""
    there = json.loads(settings.out.read_text())["settings"] if settings.out.exists() else settings_of(settings)
    if there != settings_of(settings):
        raise SystemExit(f"{settings.out} holds runs with {there}; name another file for {settings_of(settings)}")


def recorded(path: Path) -> list[dict[str, Any]]:
    """Return the runs that a file of results holds."""
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return runs
