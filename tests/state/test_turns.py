"""Turns of threads: those who ask a network wait while another changes it, and the other way round."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import Growth, HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.masks.calibration import Scorer
from hatrack.state.turns import Turns
from hatrack.units import UnitGraph, analyze, are_same
from support.helpers import NETS, SAMPLES, attach, learn, logits
from support.weight_networks import attach as attach_weights


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_change_waits_for_answers_and_answers_for_a_change() -> None:
    turns, log = Turns(), list[str]()
    asked, may_end = threading.Event(), threading.Event()

    def ask() -> None:
        with turns.asking():
            asked.set()
            may_end.wait(10)
            log.append("asked")

    def change() -> None:
        with turns.changing(), turns.changing(), turns.asking():
            log.append("changed")

    asker = in_thread(ask)
    asked.wait(10)
    changer = in_thread(change)
    changer.join(0.05)
    assert log == []
    may_end.set()
    asker.join(10)
    changer.join(10)
    assert log == ["asked", "changed"]


def test_two_who_ask_may_both_find_that_they_have_to_change_it() -> None:
    turns, both, done = Turns(), threading.Barrier(2), list[int]()

    def work() -> None:
        with turns.asking():
            both.wait(10)
            with turns.changing():
                done.append(1)

    threads = [in_thread(work) for _ in range(2)]
    for thread in threads:
        thread.join(10)
    assert len(done) == 2
    with turns.changing():
        pass


def test_errors_and_copies_leave_turns_free() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.asking(), turns.changing():
        raise ZeroDivisionError
    with turns.changing():
        for other in (copy.deepcopy(turns), pickle.loads(pickle.dumps(turns))):
            in_thread(lambda free=other: free.changing().__enter__()).join(10)  # type: ignore[misc]
    in_thread(lambda: turns.changing().__enter__()).join(10)


def ask_meanwhile(net: Any, x: Tensor, task: str, change: Callable[[], object]) -> list[object]:
    """Ask a task in two threads while a change is made; returns what was said otherwise, and errors."""
    expected, stop, wrong = logits(net, x, task), threading.Event(), list[object]()

    def ask() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    said = net(x, task)
            except Exception as error:
                wrong.append(error)
                return
            if not torch.allclose(said, expected, rtol=1e-4, atol=1e-5):
                wrong.append(said)

    net.eval()
    threads = [in_thread(ask) for _ in range(2)]
    try:
        change()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_nothing_of_a_forgotten_task_is_put_back_by_those_who_ask(kind: Any) -> None:
    net = attach("mlp") if kind is HATNetwork else attach_weights("pmask")
    x = torch.randn(SAMPLES, *net.example_shape[1:])
    net.add_task("kept", 3)
    net.consolidate("kept")
    kept: list[int] = []

    def forget() -> None:
        for _ in range(10):
            net.add_task("gone", 3)
            net.consolidate("gone")
            before = {name: p.detach().clone() for name, p in net.backbone.named_parameters()}
            frozen = {name: held.clone() for name, held in net.protected().items()}
            net.forget("gone")
            free = {name: frozen[name] & ~held for name, held in net.protected().items() if name in frozen}
            kept.append(
                sum(
                    int((p == before[name])[free[f"backbone.{name}"]].sum())
                    for name, p in net.backbone.named_parameters()
                    if p.dim() > 1
                )
            )

    assert ask_meanwhile(net, x, "kept", forget) == []
    assert sum(kept) == 0


@pytest.mark.slow
def test_a_network_grows_between_answers() -> None:
    backbone = NETS["mlp"].build()
    net = HATNetwork(backbone, torch.zeros(2, *NETS["mlp"].shape), growth=Growth(threshold=0.9))
    x, _ = learn(net, "first")

    def grow() -> None:
        for number in range(6):
            net.add_task(f"more {number}".replace(" ", "-"), 2)
            net.consolidate(f"more-{number}")

    assert ask_meanwhile(net, x, "first", grow) == []


class Watched(nn.Module):
    """Backbone in whose forward pass something else is done meanwhile; batch norms are refused a second call."""

    def __init__(self, meanwhile: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.meanwhile = meanwhile

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        self.meanwhile(self)
        return torch.relu(self.last(h))


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_units_are_found_on_a_copy_while_others_ask(kind: Any) -> None:
    main, asked, is_analysing = threading.get_ident(), list[object](), list[bool]()

    def ask() -> None:
        try:
            asked.append(net(x, "a").detach())
        except Exception as error:
            asked.append(error)

    def meanwhile(_: nn.Module) -> None:
        if is_analysing and threading.get_ident() == main:
            assert all(part.training for part in net.backbone.modules()), "no other thread sees another mode"
            in_thread(ask).join(10)

    net = kind(Watched(meanwhile), torch.zeros(2, 6))
    net.add_task("a", 3)
    net.consolidate("a")
    x = torch.randn(3, 6)
    expected, before = logits(net, x, "a"), state_of(net.backbone)
    net.train()
    is_analysing.append(True)
    graphs = [analyze(net.backbone, torch.zeros(2, 6)), net.masking.units_now()]
    is_analysing.clear()
    assert len(asked) >= 1
    assert all(isinstance(said, Tensor) and torch.equal(said, expected) for said in asked), asked
    assert [[group.name for group in graph.groups] for graph in graphs] == [["first", "last"]] * 2
    assert state_of(net.backbone) == before


def state_of(module: nn.Module) -> list[object]:
    """Return hooks and attributes of all parts, by identity, and their modes."""
    return [
        [
            {name: id(value) for name, value in vars(part).items()},
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
        ]
        for part in module.modules()
    ]


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_units_are_found_before_or_after_a_change(kind: Any) -> None:
    net = kind(Watched(id), torch.zeros(2, 6))
    found: list[int] = []
    asks = [
        lambda: found.append(analyze(net.backbone, torch.zeros(2, 6)).group("first").size),
        lambda: found.append(analyze(nn.Sequential(net.backbone), torch.zeros(2, 6)).group("0.first").size),
        lambda: found.append(net.masking.units_now().group("first").size),
        lambda: found.append(analyze(net.backbone.first, torch.zeros(2, 6)).features().units.numel()),
    ]
    with net.turns.changing():
        threads = [in_thread(ask) for ask in asks]
        threads[-1].join(0.05)
        assert found == []
        net.grow({"first": 3})
    for thread in threads:
        thread.join(10)
    assert found == [11, 11, 11, 11]


class Bound(nn.Module):
    """Calls a layer in a function that a copy shares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.call = lambda h: torch.relu(self.middle(h))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.call(torch.relu(self.first(x)))))


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.inner(x)


def readers(graph: UnitGraph) -> dict[str, list[str]]:
    return {group.name: list(group.readers) for group in graph.groups}


def test_a_model_that_no_network_has_is_analysed_itself() -> None:
    x = torch.zeros(2, 6)
    assert readers(analyze(Bound(), x)) == {"first": ["middle"], "middle": ["last"], "last": [""]}
    assert readers(analyze(Locked(nn.Linear(6, 8)), x)) == {"inner": [""]}
    with pytest.raises(UnsupportedError, match="uninitialized"):
        analyze(nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU()), x)
    model, called = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), list[nn.Module]()
    model[0].register_forward_hook(lambda layer, *_: called.append(layer))
    analyze(model, x)
    assert called == [model[0]]
    assert all(not name.startswith("_hatrack") for part in model.modules() for name in vars(part))


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_all_who_look_at_a_bound_layer_in_a_network_see_the_same(kind: Any) -> None:
    torch.manual_seed(0)
    backbone, x = Bound(), torch.zeros(2, 6)
    backbone.middle.requires_grad_(kind is HATNetwork)  # masks of weights do not reach it, and it is refused then
    net = kind(backbone, x)
    net.add_task("a", 3)
    net.consolidate("a")
    for _ in range(2):
        assert are_same(analyze(backbone, x, "backbone."), net.masking.units_now())
        with pytest.raises(InputError, match="what is behind 'first' mixes"):
            net.grow({"first": 3})
        net.grow({"last": 3})
        net.check()
    assert readers(analyze(net.detach(), x))["first"] == ["middle"]


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_parts_of_a_network_are_analysed_in_a_copy_until_it_is_gone(kind: Any) -> None:
    x, called = torch.zeros(2, 6), list[nn.Module]()
    net = kind(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)), x)
    first = net.backbone[0]
    first.register_forward_hook(lambda layer, *_: called.append(layer))

    def is_copied(part: nn.Module) -> bool:
        called.clear()
        analyze(part, x)
        return called[0] not in list(part.modules())

    twin = copy.deepcopy(net)
    assert all(map(is_copied, (net.backbone, first, nn.Sequential(first), twin.backbone, twin.backbone[0])))
    assert not is_copied(copy.deepcopy(first)), "no network has the copy"
    for whole in (net.backbone, first):
        with pytest.raises(UnsupportedError, match=r"cannot be copied \(TypeError: .*lock.*detach\(\)"):
            analyze(Locked(whole), x)
    backbone = net.detach()
    assert not is_copied(first)
    assert not is_copied(backbone)
    analyze(Locked(backbone), x)


def test_a_turn_leaves_no_garbage() -> None:
    """Every call makes one: cycles would keep the collector busy."""
    turns = Turns()
    gc.collect()
    gc.disable()
    try:
        with turns.asking(), turns.changing():
            pass
        assert gc.collect() == 0
    finally:
        gc.enable()


def with_two_tasks(kind: Any) -> Any:
    net = attach("mlp") if kind is HATNetwork else attach_weights("pmask")
    for task in ("a", "b"):
        net.add_task(task, 3)
        net.consolidate(task)
    return net.eval()


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize("question", ["one", "mixed", "features", "inferred"])
def test_a_task_that_another_thread_unlearns_just_before_the_answer_is_refused(
    kind: Any, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = with_two_tasks(kind)
    x = torch.randn(SAMPLES, *net.example_shape[1:])
    questions: dict[str, Callable[[], object]] = {
        "one": lambda: net(x, "a"),
        "mixed": lambda: net(x, ["a"] + ["b"] * (len(x) - 1)),
        "features": lambda: net.features(x, "a"),
        "inferred": lambda: net.infer(x, Scorer.MAX_LOGIT, calibrated=False),
    }
    admit = kind.admit

    def admit_and_lose(self: Any, x: Tensor, states: Any) -> None:
        admit(self, x, states)
        in_thread(lambda: "a" in net.task_names and net.forget("a")).join(30)

    monkeypatch.setattr(kind, "admit", admit_and_lose)
    with pytest.raises(InputError, match="'a' was unlearned by another thread"), torch.no_grad():
        questions[question]()


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_what_is_saved_is_the_network_before_a_change_or_after(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = with_two_tasks(kind)
    before = net.to_checkpoint()
    check, unlearners = kind.check, list[threading.Thread]()

    def check_and_begin_to_unlearn(self: Any) -> None:
        check(self)
        if not unlearners:
            unlearners.append(in_thread(lambda: net.forget("a")))
            unlearners[0].join(0.2)

    monkeypatch.setattr(kind, "check", check_and_begin_to_unlearn)
    saved = net.to_checkpoint()
    unlearners[0].join(30)
    assert net.task_names == ("b",)
    assert saved.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(saved.tensors[name], value) for name, value in before.tensors.items())
