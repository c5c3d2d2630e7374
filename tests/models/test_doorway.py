"""Any input and any features: nested inputs, a choice of the result, maps and tokens, with the law for each."""

from __future__ import annotations

import copy
from collections import UserDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hatrack
from hatrack import HATNetwork
from hatrack.errors import InputError
from hatrack.support.example import Example
from hatrack.support.inputs import kind_from_json, kind_of, kind_to_json, map_tensors, tensors_in
from hatrack.support.interface import Interface
from support.doorways import (
    CLASSES,
    DOORWAYS,
    KINDS,
    LENGTH,
    WORDS,
    Maps,
    Pair,
    Tokens,
    answer,
    attach,
    batch,
    learn,
    pooled,
)
from support.marks import slow_but


@pytest.mark.parametrize("name", slow_but(["tuple", "maps", "sequence first"], DOORWAYS))
@pytest.mark.parametrize("kind", KINDS)
def test_old_tasks_answer_as_before_in_every_copy(kind: str, name: str, tmp_path: Path) -> None:
    door = DOORWAYS[name]
    net = attach(kind, door)
    x = learn(net, "a", door)
    before = answer(net, x, "a")
    expected = (6, *door.features[:-1], CLASSES) if name != "maps" else (6, CLASSES, *door.features[1:])
    assert before.shape == expected
    learn(net, "b", door)
    net.save(tmp_path / "net.hat")
    function = {"features": pooled} if name == "function" else {}
    loaded = hatrack.load(tmp_path / "net.hat", door.build(), **function)
    loaded.check()
    for each in (net, loaded, copy.deepcopy(net)):
        assert torch.equal(answer(each, x, "a"), before)
        assert each.example_shape == net.example_shape
    learn(loaded, "c", door)
    assert torch.equal(answer(loaded, x, "a"), before)
    b = answer(net, x, "b")
    net.forget("a", generator=torch.Generator().manual_seed(0))
    assert torch.equal(answer(net, x, "b"), b)
    assert str(net.plan())


@pytest.mark.parametrize("name", slow_but(["mapping", "tuple", "maps"], DOORWAYS))
@pytest.mark.parametrize("kind", KINDS)
def test_an_extracted_task_takes_what_the_network_takes(kind: str, name: str) -> None:
    door = DOORWAYS[name]
    net = attach(kind, door)
    x = learn(net, "a", door)
    for example in (None, x):
        small = net.extract("a", example)
        assert torch.allclose(small(x), answer(net, x, "a"), rtol=1e-4, atol=1e-5)
    if kind == "units":
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.backbone.parameters())


@pytest.mark.parametrize("name", slow_but(["mapping"], DOORWAYS))
@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_several_tasks_are_answered_like_those_of_one(kind: str, name: str) -> None:
    door = DOORWAYS[name]
    net = attach(kind, door)
    learn(net, "a", door)
    net.add_task("b", CLASSES + 1)
    net.consolidate("b")
    x = batch(door, 5, seed=7)
    tasks = ["a", "b", "b", "a", "b"]
    mixed, axis = answer(net, x, tasks), 1 if name == "maps" else -1
    alone = {task: answer(net, x, task) for task in ("a", "b")}
    for row, task in enumerate(tasks):
        classes = alone[task].shape[axis]
        found = mixed[row].movedim(axis if axis < 0 else 0, 0)
        assert torch.allclose(found[:classes], alone[task][row].movedim(axis if axis < 0 else 0, 0), atol=1e-5)
        assert bool((found[classes:] == -torch.inf).all())


@pytest.mark.parametrize("name", slow_but(["mapping"], DOORWAYS))
def test_tasks_are_recognised_by_vectors_alone(name: str) -> None:
    door = DOORWAYS[name]
    net = attach("units", door)
    for task in ("a", "b"):
        x = learn(net, task, door)
        if len(door.features) > 1:
            with pytest.raises(InputError, match=r"recognised by features \(N, F\)"):
                net.calibrate(task, x, torch.arange(6) % CLASSES)
        else:
            net.calibrate(task, x, torch.arange(6) % CLASSES, batch_size=4)
    if len(door.features) == 1:
        assert len(net.infer(x).task_names) == 6


def test_padding_means_nothing_and_the_mask_keeps_its_meaning() -> None:
    net = attach("units", DOORWAYS["mapping"])
    x = learn(net, "a", DOORWAYS["mapping"])
    other = dict(x, ids=torch.where(x["mask"] == 1, x["ids"], (x["ids"] + 1) % WORDS))
    assert not torch.equal(other["ids"], x["ids"])
    assert torch.equal(answer(net, other, "a"), answer(net, x, "a"))


@pytest.mark.slow
def test_inputs_may_be_left_out_and_come_in_any_mapping() -> None:
    net = attach("units", DOORWAYS["mapping"])
    x = learn(net, "a", DOORWAYS["mapping"])
    assert torch.equal(answer(net, UserDict(x), "a"), answer(net, x, "a"))
    full = dict(x, mask=torch.ones(6, LENGTH, dtype=torch.long))
    without = {"ids": x["ids"], "beside": x["beside"]}
    assert torch.allclose(answer(net, without, "a"), answer(net, full, "a"), atol=1e-6)
    before = answer(net, without, "a")
    learn(net, "b", DOORWAYS["mapping"])
    assert torch.equal(answer(net, without, "a"), before)


def test_what_the_try_outs_draw_keeps_masks_and_lengths() -> None:
    seen: list[dict[str, Tensor]] = []

    class Watched(Tokens):
        def forward(self, ids: Tensor, mask: Tensor, beside: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            seen.append({"ids": ids, "mask": mask, "beside": beside})
            return super().forward(ids, mask, beside)

    example = batch(DOORWAYS["mapping"], 2)
    del example["pool"]
    example["beside"] = torch.zeros(2, 3)
    rows = {tuple(row) for row in example["mask"].tolist()}
    HATNetwork(Watched(), example, features="pooled")
    assert all(tuple(row) in rows for call in seen for row in call["mask"].tolist())
    assert all(int(call["ids"].max()) < WORDS for call in seen)
    assert any(bool(call["beside"].any()) for call in seen), "real numbers are drawn"
    given = example["ids"].tolist()
    assert any(row not in given for call in seen for row in call["ids"].tolist()), "tokens are drawn"


NAMED = namedtuple("Named", ["one", "other"])

MISTAKES: dict[str, tuple[Any, str]] = {
    "a list": (lambda: HATNetwork(Pair(), [torch.zeros(1, 4)], features=1), "a tuple of positional arguments"),
    "an array": (lambda: HATNetwork(Pair(), (torch.zeros(1, 4), object()), features=1), "an? object among the inputs"),
    "a named tuple": (
        lambda: HATNetwork(Pair(), (torch.zeros(1, 4), NAMED(torch.zeros(1, 5), torch.zeros(1, 5))), features=1),
        "a Named among the inputs could not be made again: give plain tuples",
    ),
    "no tensor": (lambda: HATNetwork(Pair(), (1, 2)), "one number of samples along axis 0: no tensor at all"),
    "other counts": (
        lambda: HATNetwork(Pair(), (torch.zeros(2, 4), (torch.zeros(3, 5), torch.zeros(2, 5))), features=1),
        r"one number of samples along axis 0: \(2, 4\), \(3, 5\), \(2, 5\)",
    ),
    "nothing chosen": (lambda: HATNetwork(Tokens(), {"ids": torch.zeros(1, 3).long()}), "features='last_hidden_state'"),
    "no such key": (
        lambda: HATNetwork(Tokens(), {"ids": torch.zeros(1, 3).long()}, features="last"),
        "no features 'last': a dict with 'tokens', 'pooled'",
    ),
    "no such index": (
        lambda: HATNetwork(Pair(), (torch.zeros(1, 4), (torch.zeros(1, 5),) * 2), features=2),
        "no features 2: a tuple of 2",
    ),
    "maps read along their width": (
        lambda: HATNetwork(Maps(), torch.zeros(1, 2, 8, 8)),
        r"features of shape \(N, 10, 8, 8\) have their units along axis 1.*unit_axis=1",
    ),
    "samples for units": (
        lambda: HATNetwork(Maps(), torch.zeros(1, 2, 8, 8), unit_axis=0),
        "behind that of the samples",
    ),
    "gated inputs": (
        lambda: HATNetwork(Pair(), (torch.zeros(1, 4), (torch.zeros(1, 5),) * 2), features=1, gate_inputs=True),
        "one tensor of real numbers",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    mistake, message = MISTAKES[name]
    with pytest.raises(InputError, match=message):
        mistake()


@pytest.mark.slow
def test_a_function_for_features_is_given_again(tmp_path: Path) -> None:
    door = DOORWAYS["function"]
    net = attach("units", door)
    learn(net, "a", door)
    net.save(tmp_path / "net.hat")
    with pytest.raises(InputError, match=r"picked by a function.*features=\.\.\."):
        hatrack.load(tmp_path / "net.hat", door.build())
    with pytest.raises(hatrack.errors.CheckpointError, match="gives other outputs"):
        hatrack.load(tmp_path / "net.hat", door.build(), features=lambda output: output["tokens"].amax(1))


TREES: list[Any] = [
    torch.zeros(3, 2),
    (torch.zeros(3, 2), None, 1, 2.5, True, "text"),
    {"a": torch.ones(3, 2).long(), "b": [torch.zeros(3), (torch.zeros(()), {"c": torch.ones(3, 4)})]},
    {"x": torch.zeros(2, 3).t(), "empty": {}, "none": ()},
]


@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_kinds_and_examples_survive_json(tree: Any) -> None:
    import json

    kind = kind_of(tree)
    assert kind_from_json(json.loads(json.dumps(kind_to_json(kind)))) == kind
    example = Example.of(tree, Interface())
    again = Example.from_json(json.loads(json.dumps(example.to_json())))
    assert again.kind == example.kind
    assert kind_of(again.batch()) == kind_of(example.batch()) == kind
    for restored, original in zip(tensors_in(again.batch()), tensors_in(tree), strict=True):
        if not isinstance(tree, Tensor) and not original.is_floating_point():
            assert torch.equal(restored, original), "integers keep their values"
    assert {t.shape[0] for t in tensors_in(example.batch(5)) if t.dim()} == {5}


def test_batches_are_cut_and_joined_along_their_axis() -> None:
    interface = Interface(batch_axis=1)
    x = {"a": torch.arange(12).view(3, 4), "b": (torch.arange(8).view(1, 4, 2), torch.tensor(7)), "c": None}
    parts = interface.split(x, 3)
    assert [interface.samples(part) for part in parts] == [3, 1]
    together = interface.joined(parts)
    for one, other in zip(tensors_in(together), tensors_in(x), strict=True):
        assert torch.equal(one, other)
    picked = interface.take(x, torch.tensor([2, 0]))
    assert picked["a"].tolist() == [[2, 0], [6, 4], [10, 8]]
    assert picked["b"][1] == 7
    assert interface.samples(interface.several(interface.take(x, slice(1)))) == 2
    assert map_tensors(lambda t: t + 1, x)["c"] is None
