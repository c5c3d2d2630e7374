"""All methods get the same for a seed, shown by hashes: tasks, order, validation split, batches, initial weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from hatrack.experiments import Run, RunRequest, prepare, run
from hatrack.masks import signed_constant
from hatrack.methods import METHODS, Batch, Loss
from hatrack.methods.den import DEN
from hatrack.methods.dwa import DWA
from hatrack.methods.independent import Independent
from hatrack.methods.masked import MaskedMethod
from hatrack.methods.multi_head import MultiHeadMethod
from hatrack.methods.pathnet import PathNet, growth
from hatrack.methods.pnn import PNN
from hatrack.protection.frozen import digest
from hatrack.streams import Split, Task, derive_seed
from hatrack.train import EpochDone
from support.marks import slow_unless

QUICK: dict[str, Any] = {"epochs": 2, "hidden": (12, 8), "limit": 40, "num_tasks": 3, "batch_size": 16}
LIKE_ALL: dict[str, dict[str, Any]] = {
    "pnn": {"column_width": 1.0},
    "pathnet": {"module_width": 1.0},
    "dwa": {"curriculum_epochs": 0},
}
"""Two make narrow networks by default, which cannot have a wider one's weights; one begins with simple samples."""

TRAINED = [name for name, method in METHODS.items() if method.trains]
ALONE = [name for name in TRAINED if name != "joint"]
"""Those whose loss is given the samples of the newest task alone; replay draws from a memory within the loss."""


@dataclass
class Epoch:
    """Hashes of what a method was given in an epoch: training batches, those after them, and dropout's randomness."""

    steps: list[str] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    dropout: str = ""
    samples: list[bytes] = field(default_factory=list)


@dataclass
class Seen:
    """Record of a run: a method's epochs by task, and its backbone's and first head's weights at the first loss."""

    epochs: dict[str, list[Epoch]] = field(default_factory=dict)
    backbone: str | None = None
    head: str = ""


def overrides(name: str) -> dict[str, Any]:
    return {**QUICK, **LIKE_ALL.get(name, {})}


@functools.cache
def prepared(name: str, seed: int = 0) -> Run:
    return prepare(RunRequest("demo", name, seed, overrides=overrides(name)))


def hash_of_split(split: Split) -> str:
    x, y = split.load()
    return digest({"x": x, "y": y})


def hashes_of_stream(tasks: Sequence[Task]) -> list[tuple[str, ...]]:
    return [(task.name, *map(hash_of_split, (task.train, task.valid, task.test))) for task in tasks]


def backbone_of(method: Any) -> nn.Module | None:
    """The network that starts with the seed's weights; None for PathNet, whose modules must all start differently."""
    if isinstance(method, DWA):
        return nn.ModuleList([method.network.backbone.stem, *(part.layer for part in method.network.backbone.masked)])
    if isinstance(method, (MultiHeadMethod, MaskedMethod)):
        backbone: nn.Module = method.network.backbone
        return backbone
    if isinstance(method, Independent):
        return next(iter(method.networks.values())).backbone
    if isinstance(method, PNN):
        return next(iter(method.networks.values())).body[0]
    if isinstance(method, DEN):
        return method.network.layers
    assert isinstance(method, PathNet)
    return None


def head_of(method: Any) -> nn.Module:
    if isinstance(method, MultiHeadMethod):
        return method.network.heads[0]
    if isinstance(method, MaskedMethod):
        return method.network.tasks[0].head
    if isinstance(method, Independent):
        return next(iter(method.networks.values())).heads[0]
    if isinstance(method, DEN):
        return next(iter(method.network.heads.values()))
    return (
        next(iter(method.networks.values())).body[1] if isinstance(method, PNN) else next(iter(method._heads.values()))
    )


def weights(module: nn.Module) -> str:
    """Without names, which differ from method to method."""
    return digest({str(index): parameter for index, parameter in enumerate(module.parameters())})


@functools.cache
def seen(name: str, epochs: int = QUICK["epochs"], seed: int = 0) -> Seen:
    """Let a method learn, and write down what its loss is given."""
    ready = prepare(RunRequest("demo", name, seed, overrides={**overrides(name), "epochs": epochs}))
    method, noted, now = ready.method, Seen(), Epoch()
    loss = method.loss

    def noting(batch: Batch) -> Loss:
        if not noted.head:
            backbone = backbone_of(method)
            noted.backbone, noted.head = backbone and weights(backbone), weights(head_of(method))
        given = digest({"x": batch.x, "y": batch.y, "progress": torch.tensor(batch.progress)})
        if torch.is_grad_enabled():
            now.dropout = now.dropout or digest({"state": torch.random.get_rng_state()})
            now.steps.append(given)
            now.samples += [row.numpy().tobytes() for row in batch.x]
        else:
            now.looks.append(given)
        return loss(batch)

    method.loss = noting  # type: ignore[method-assign]
    for event in run(ready):
        if isinstance(event, EpochDone):
            task = ready.stream[len(ready.result.scores)].name
            noted.epochs.setdefault(task, []).append(now)
            now = Epoch()
    return noted


@pytest.mark.parametrize("name", METHODS)
def test_the_stream_is_the_same(name: str) -> None:
    expected = hashes_of_stream(prepared("sgd").stream)
    assert hashes_of_stream(prepared(name).stream) == expected
    assert len({part for hashes in expected for part in hashes}) == 4 * 3  # no two parts are equal by accident


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_may_build_on_is_the_same(name: str) -> None:
    setup, expected = prepared(name).method.setup, prepared("sgd").method.setup
    assert (setup.seed, setup.input_shape, setup.classes) == (expected.seed, expected.input_shape, expected.classes)
    build = setup.build_narrow
    assert build is not None
    once, again, full = setup.build_backbone(), setup.build_backbone(), build(1.0, setup.seed)
    assert weights(once) == weights(again) == weights(full) == weights(expected.build_backbone())


@pytest.mark.parametrize("name", slow_unless(lambda name: name not in ("cab", "dwa"), TRAINED))
def test_training_starts_from_the_same_weights(name: str) -> None:
    start, expected = seen(name), seen("sgd")
    backbone = prepared("sgd").method.setup.build_backbone()
    assert expected.backbone == weights(backbone)
    if name == "supsup":  # which keeps the signs alone
        for parameter in backbone.parameters():
            parameter.data = signed_constant(parameter.data) if parameter.dim() > 1 else parameter.data
    assert start.backbone == (None if name == "pathnet" else weights(backbone))
    assert start.head == expected.head


def test_pathnets_modules_depend_on_the_seed_alone() -> None:
    """The way of drawing a layer's weights is shared with other methods; the draw and its scale are not."""
    method = prepared("pathnet").method
    assert isinstance(method, PathNet)
    setup = method.setup
    assert setup.build_narrow is not None
    for number in range(method.settings.modules):
        build = setup.build_narrow(1.0, derive_seed(setup.seed, "module", 0, number))
        for layer in (build.get_submodule("dense1"), build.get_submodule("dense2")):
            layer.weight.data /= growth(method.settings.active)
        modules = nn.ModuleList(method.module(layer, number) for layer in range(len(method.layers)))
        assert weights(modules) == weights(build)


@pytest.mark.parametrize("name", slow_unless(lambda name: name not in ("cab", "dwa"), ALONE))
def test_batches_are_the_same_in_every_epoch(name: str) -> None:
    given = seen(name).epochs
    longest = max(map(len, given.values()))  # PathNet takes twice the epochs, each with an order of its own
    expected = seen("sgd", longest).epochs
    assert list(given) == list(expected)
    assert {len(epochs) for epochs in given.values()} == {longest}
    assert longest == (4 if name == "pathnet" else 2)
    for task, epochs in given.items():
        for one, other in zip(epochs, expected[task], strict=True):
            assert one.steps == other.steps
            assert len(set(one.steps)) == len(one.steps) == 3  # 34 samples in batches of 16
            assert one.looks == other.looks
            assert one.dropout == other.dropout
        assert all(one.steps != other.steps and one.looks == other.looks for one, other in pairwise(epochs))


def test_joint_sees_the_first_task_as_all_do_and_later_ones_beside_all_before() -> None:
    joint, alone = seen("joint").epochs, seen("sgd").epochs
    first, *_ = alone
    assert [epoch.steps for epoch in joint[first]] == [epoch.steps for epoch in alone[first]]
    for number, task in enumerate(alone):
        union = sorted(sample for earlier in list(alone)[: number + 1] for sample in alone[earlier][0].samples)
        for mixed, plain in zip(joint[task], alone[task], strict=True):
            assert sorted(mixed.samples) == union
            assert mixed.dropout == plain.dropout


def test_another_seed_changes_each_of_them() -> None:
    """Or equal hashes would mean nothing."""
    one, other = (seen("sgd", seed=seed) for seed in (0, 1))
    assert one.backbone != other.backbone
    assert one.head != other.head
    streams = [hashes_of_stream(prepared("sgd", seed).stream) for seed in (0, 1)]
    assert all(a[1] != b[1] and a[2] != b[2] for a, b in zip(*streams, strict=True))  # validation is another draw
    for task in one.epochs:
        for a, b in zip(one.epochs[task], other.epochs[task], strict=True):
            assert not set(a.steps) & set(b.steps)
            assert a.dropout != b.dropout
