"""Settings and hooks that change after tasks were learned: said where old answers depend on them, else let be."""

from __future__ import annotations

import copy
import enum
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack.backbones import Dropout


class Scaled(nn.Module):
    """Network whose scale is a setting of the class, and whose name is a setting that decides on nothing."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.label = "one"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.norm(F.relu(self.first(x))) * self.scale)
        return y


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def net(request: pytest.FixtureRequest) -> hatrack.HATNetwork | hatrack.WeightMaskedNetwork:
    """Two consolidated tasks, asked once in evaluation mode."""
    torch.manual_seed(0)  # by chance a task uses a single unit that says nothing
    network: hatrack.HATNetwork | hatrack.WeightMaskedNetwork = request.param(Scaled(), torch.zeros(2, 6))
    for name in ("old", "new"):
        network.add_task(name, 2)
        network.consolidate(name)
    network.eval()(X, "old")
    return network


CHANGES: dict[str, Callable[[Scaled], object]] = {
    r"norm\.eps \(1e-05 before, 1\.0 now\)": lambda backbone: setattr(backbone.norm, "eps", 1.0),
    r"scale \(1\.0 before, 2\.0 now\)": lambda backbone: setattr(backbone, "scale", 2.0),
    "the hooks of second": lambda backbone: backbone.second.register_forward_hook(lambda _m, _x, y: y + 1),
    "the hooks of norm": lambda backbone: backbone.norm.register_forward_pre_hook(
        lambda _m, x: (x[0] * torch.arange(8.0),)
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_settings_that_old_answers_depend_on_are_named(what: str, net: hatrack.HATNetwork) -> None:
    CHANGES[what](net.backbone)
    with pytest.warns(UserWarning, match=f"^{what}.*tasks 'old', 'new' answer otherwise") as found:
        net(X, "new")
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X, "old")  # said once


def test_settings_that_are_put_back_say_nothing_and_give_the_old_bits(net: hatrack.HATNetwork) -> None:
    before = net(X, "old")
    net.backbone.scale = 3.0
    with pytest.warns(UserWarning, match="scale"):
        net(X, "old")
    del net.backbone.scale
    assert torch.equal(net(X, "old"), before)


def said(net: Any, name: str, x: Tensor = X) -> list[str]:
    """Ask for a task, and return what is said by the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net(x, name)
    return [str(each.message) for each in caught]


def consolidated(net: Any, name: str) -> Tensor:
    """Add a task, consolidate it, and return its answers."""
    net.add_task(name, 2)
    net.train()(X, name)
    net.consolidate(name)
    answers: Tensor = net.eval()(X, name).detach()
    return answers


def test_every_task_relies_on_the_settings_that_it_was_learned_with(net: Any) -> None:
    """A setting that was put back for older tasks was another one for those that were learned in between."""
    old = net(X, "old")
    net.backbone.scale = 3.0
    (message,) = said(net, "old")
    assert "scale (1.0 before, 3.0 now): tasks 'old', 'new' answer otherwise" in message
    later = consolidated(net, "later")
    assert said(net, "later") == []
    net.backbone.scale = 1.0
    (message,) = said(net, "old")
    assert "scale (3.0 before, 1.0 now): task 'later' answers otherwise" in message
    assert torch.equal(net(X, "old"), old)
    net.backbone.scale = 2.0
    (message,) = said(net, "later")
    assert message.startswith("scale (1.0 before, 2.0 now); scale (3.0 before, 2.0 now): tasks 'old', 'new', 'later'")
    net.backbone.scale = 3.0
    (message,) = said(net, "later")
    assert "tasks 'old', 'new' answer otherwise" in message
    assert torch.equal(net(X, "later"), later)


def test_a_task_of_an_earlier_ones_name_relies_on_nothing_of_that_one(net: Any) -> None:
    net.backbone.scale = 3.0
    assert said(net, "new")
    net.forget("new")
    consolidated(net, "new")
    net.backbone.label = "two"
    (message,) = said(net, "new")
    assert "scale (1.0 before, 3.0 now)" in message
    assert "task 'old' answers otherwise" in message


class Bounded(nn.Module):
    """Network whose units have an upper bound."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bound, self.second = nn.Linear(6, 8), nn.Hardtanh(0.0, 6.0), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.bound(self.first(x)))
        return y


@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_what_a_batch_does_not_show_is_looked_for_in_later_ones(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = kind(Bounded(), torch.zeros(2, 6))
    consolidated(network, "a")
    answers: list[list[str]] = []
    compared: list[int] = []
    compare = network.masking.tasks_changed_by

    def counted(x: Tensor, *args: Any) -> Any:
        compared.append(len(answers))
        return compare(x, *args)

    monkeypatch.setattr(network.masking, "tasks_changed_by", counted)
    network.backbone.bound.max_val = 4.0
    while len(answers) < 70:
        answers.append(said(network, "a"))
    assert not any(answers)
    assert compared == [0, 1, 2, 4, 8, 16, 32, 64], "comparing gets rare"
    while not answers[-1]:
        answers.append(said(network, "a", 100 * X))
    assert len(answers) == 129
    assert "bound.max_val (6.0 before, 4.0 now): task 'a' answers otherwise" in answers[-1][0]
    assert said(network, "a", 100 * X) == []
    network.backbone.bound.max_val = 5.0
    assert said(network, "a") == []
    network.backbone.bound.max_val = 6.0
    compared.clear()
    for _ in range(9):
        assert said(network, "a", 100 * X) == []
    assert compared == [], "nothing is left to be compared"


def test_every_further_change_is_compared_with_what_tasks_were_learned_with(net: hatrack.HATNetwork) -> None:
    net.backbone.norm.eps = 1.0
    with pytest.warns(UserWarning, match=r"norm\.eps"):
        net(X, "old")
    net.backbone.label = "two"
    with pytest.warns(UserWarning, match=r"norm\.eps \(1e-05 before, 1\.0 now\)"):
        net(X, "old")


def test_settings_and_hooks_that_answers_do_not_depend_on_are_let_be(net: hatrack.HATNetwork) -> None:
    before, seen = net(X, "old"), []
    net.backbone.label = "two"
    net.backbone.gradient_checkpointing = True
    net.backbone.norm.register_forward_hook(lambda _m, _x, y: seen.append(y))
    assert torch.equal(net(X, "old"), before)
    assert seen


def test_hooks_of_the_network_itself_stay_while_answers_are_compared(net: hatrack.HATNetwork) -> None:
    before = net(X, "old")
    handle = net.backbone.second.register_forward_hook(lambda _m, _x, y: y + 1)
    with pytest.warns(UserWarning, match="hooks of second"):
        changed = net(X, "old")
    assert not torch.equal(changed, before)
    assert torch.equal(net(X, "old"), changed)
    handle.remove()
    assert torch.equal(net(X, "old"), before)


def test_without_consolidated_tasks_nothing_is_said() -> None:
    network = hatrack.HATNetwork(Scaled(), torch.zeros(2, 6))
    network.add_task("one", 2)
    network(X, "one")
    network.backbone.scale = 2.0
    network(X, "one")


def test_copies_watch_their_own_backbone(net: hatrack.HATNetwork) -> None:
    other = copy.deepcopy(net)
    other.backbone.scale = 2.0
    net(X, "old")
    with pytest.warns(UserWarning, match="scale"):
        other(X, "old")


def test_statistics_that_are_gathered_anew_change_no_setting() -> None:
    torch.manual_seed(0)
    network = hatrack.HATNetwork(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), X)
    for name in ("old", "new"):
        network.add_task(name, 2)
        network(X, name)
        if name == "old":
            network.consolidate(name)
    with hatrack.fresh_statistics(network.train()):
        assert network.masking.watch.before_change(list(network.tasks)) is None
        network(X, "new")
    assert network.masking.watch.before_change(list(network.tasks)) is None


def test_comparing_answers_keeps_no_graph(net: hatrack.HATNetwork) -> None:
    """A graph was kept for every change: gigabytes over a long training."""
    seen: list[bool] = []
    net.backbone.second.register_forward_hook(lambda _m, _x, y: seen.append(y.requires_grad))
    with torch.no_grad():
        net(X, "old")
        assert seen
        assert not any(seen)
    x = X.clone()
    seen.clear()
    net.masking.tasks_changed_by(x, net.task_names, lambda backbone, tasks: None)
    assert seen
    assert not any(seen)


class Residual(nn.Module):
    """Network of which a part gives units that several layers read, so that a hook there makes gates anew."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.layer, self.norm = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.part(x)
        y: Tensor = self.norm(self.layer(h) + h)
        return y


@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_hooks_that_only_observe_are_not_held_against_anyone(kind: type) -> None:
    torch.manual_seed(0)
    network = kind(Residual(), torch.zeros(2, 6))
    for name in ("old", "new"):
        network.add_task(name, 2)
        network.consolidate(name)
    promised = network.eval()(X, "old")
    seen: list[Tensor] = []
    handle = network.backbone.part.register_forward_hook(lambda _m, _x, y: seen.append(y.detach().mean()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(network(X, "old"), promised)
    assert seen
    network.backbone.part.register_forward_hook(lambda _m, _x, y: y + 1)
    with pytest.warns(UserWarning, match="^the hooks of part: tasks 'old', 'new' answer otherwise"):
        network(X, "old")
    handle.remove()


class Box(nn.Module):
    """Head of several outputs, with a slope and a rate of dropout as settings."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.drop, self.out = nn.LeakyReLU(0.1), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        y = self.out(self.drop(self.act(features)))
        return {"class": y[:, :2], "size": y[:, 2:]}


HEADS: dict[str, Callable[[Box], object]] = {
    r"tasks\.1\.head\.act\.negative_slope \(0\.1 before, 0\.9 now\)": lambda head: setattr(
        head.act, "negative_slope", 0.9
    ),
    r"the hooks of tasks\.1\.head\.out": lambda head: head.out.register_forward_hook(lambda _m, _x, y: y + 1),
}


@pytest.mark.parametrize("what", HEADS)
@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_settings_of_own_heads_are_watched(kind: type, what: str) -> None:
    torch.manual_seed(0)
    network = kind(Scaled(), torch.zeros(2, 6))
    for name, own in (("one", {"num_classes": 2}), ("own", {"head": Box()})):
        network.add_task(name, **own)
        network.consolidate(name)
    first, promised = network.eval()(X, "one"), network(X, "own")
    head = network.tasks[1].head
    head.drop.p = 0.1  # which matters in training alone
    assert torch.equal(network(X, "own")["class"], promised["class"])
    HEADS[what](head)
    assert torch.equal(network(X, "one"), first)  # of which nothing is said
    with pytest.warns(UserWarning, match=f"^{what}: task 'own' answers otherwise") as found:
        changed = network(X, "own")
    assert found[0].filename == __file__
    assert not torch.equal(changed["class"], promised["class"])


@pytest.mark.parametrize("taken", ["gates", "order"])
def test_gates_that_are_taken_away_or_put_behind_a_hook_are_noticed(taken: str) -> None:
    torch.manual_seed(0)
    network = hatrack.HATNetwork(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)), torch.zeros(2, 6))
    for name in ("old", "new"):
        network.add_task(name, 2)
        network.consolidate(name)
    if taken == "order":
        network.backbone[2].register_forward_pre_hook(lambda _, x: (x[0] + 1.0,))
        with pytest.warns(UserWarning, match="the hooks of 2"):
            network.eval()(X, "old")
        hooks = network.backbone[2]._forward_pre_hooks
        hooks.move_to_end(next(iter(hooks)))
        with pytest.warns(UserWarning, match="answer otherwise"):
            network(X, "old")
        return
    network.eval()(X, "old")
    network.backbone[2]._forward_pre_hooks.clear()
    with pytest.raises(hatrack.UnsupportedError, match="change the outputs of a task that does not use them"):
        network(X, "old")


class Mode(enum.Enum):
    PLAIN = 1
    DOUBLED = 2


class Chosen(nn.Module):
    """Network that goes by functions, enumerations, arrays and containers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.function, self.mode, self.dtype = F.relu, Mode.PLAIN, torch.float32
        self.numbers, self.table, self.pairs, self.array = [1.0], {"k": [1.0]}, ((1, 2), (3, 4)), np.ones(1)

    def after(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self.first(x)) * self.numbers[0] * self.table["k"][0] * self.pairs[0][0]
        h = h * float(self.array[0]) * getattr(self, "factor", 1.0) * self.mode.value
        y: Tensor = self.after(self.second(h.to(self.dtype).float()))
        return y


OTHERS: dict[str, Callable[[Any], object]] = {
    "function": lambda backbone: setattr(backbone, "function", F.gelu),
    "after": lambda backbone: setattr(backbone, "after", torch.tanh),
    "mode": lambda backbone: setattr(backbone, "mode", Mode.DOUBLED),
    "dtype": lambda backbone: setattr(backbone, "dtype", torch.bfloat16),
    "numbers": lambda backbone: backbone.numbers.__setitem__(0, 3.0),
    "table": lambda backbone: backbone.table["k"].__setitem__(0, 3.0),
    "pairs": lambda backbone: setattr(backbone, "pairs", ((9, 2), (3, 4))),
    "array": lambda backbone: backbone.array.__setitem__(0, 2.0),
    "factor": lambda backbone: setattr(backbone, "factor", 2.0),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_code_and_containers_are_watched_as_settings_are(kind: type, what: str) -> None:
    torch.manual_seed(0)
    network = kind(Chosen(), torch.zeros(2, 6))
    network.add_task("old", 2)
    network.consolidate("old")
    before, kept = network.eval()(X, "old"), copy.deepcopy(network.backbone)
    OTHERS[what](network.backbone)
    with pytest.warns(UserWarning, match=rf"^{what} \(.*: task 'old' answers otherwise"):
        assert not torch.equal(network(X, "old"), before)
    if what == "factor":
        del network.backbone.factor
    else:
        vars(network.backbone)[what] = vars(kept).get(what)
        if what == "after":
            del network.backbone.after
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(network(X, "old"), before), "what was put back says nothing"


def test_a_layer_of_another_class_is_noticed() -> None:
    torch.manual_seed(0)
    network = hatrack.HATNetwork(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.zeros(2, 6))
    network.add_task("old", 2)
    network.consolidate("old")
    network.eval()(X, "old")
    network.backbone[1].__class__ = nn.Tanh
    with pytest.warns(UserWarning, match=r"^the class of 1 \(ReLU before\): task 'old' answers otherwise"):
        network(X, "old")


class Halved(nn.Dropout):
    """Dropout of one's own, which reads its probability in evaluation mode, too."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        return super().forward(input) * (1.0 - self.p)


@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_a_schedule_of_dropout_has_no_call_analysed_again(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [nn.Dropout(0.1), Dropout(0.1), nn.AlphaDropout(0.1)]
    network = kind(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *layers, nn.Linear(8, 4)), X)
    for name in ("one", "two"):
        network.add_task(name, 2)
        network.train()(X, name)
        network.consolidate(name) if name == "one" else None
    promised = network.eval()(X, "one")
    asked = list[object]()
    masking, forget_calls = type(network.masking), type(network.masking).forget_calls
    monkeypatch.setattr(masking, "forget_calls", lambda self: (asked.append(self), forget_calls(self)))
    for step in range(3):
        for layer in layers:
            layer.p = 0.1 * step
        network.train()(X, "two").sum().backward()
        assert torch.equal(network.eval()(X, "one"), promised)
    assert not asked


def test_what_a_dropout_of_ones_own_does_in_evaluation_mode_is_compared() -> None:
    torch.manual_seed(0)
    network = hatrack.HATNetwork(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Halved(0.1), nn.Linear(8, 4)), X)
    network.add_task("one", 2)
    network.consolidate("one")
    network.eval()(X, "one")
    network.backbone[2].p = 0.5
    with pytest.warns(UserWarning, match=r"2\.p \(0\.1 before, 0\.5 now\): task 'one' answers otherwise"):
        network(X, "one")
