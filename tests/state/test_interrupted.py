"""Operations are all or nothing: interrupted anywhere, a network is as before or as after, and goes on."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from hatrack import GuaranteeError, HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.gating.norms import copy_of_norm
from hatrack.state.undo import Snapshot
from support.interrupting import (
    EVERY_KIND,
    Case,
    backbone,
    bits,
    build,
    fault_of_construction,
    faults,
    faults_of_construction,
    interrupt,
    learned,
    open_and_train,
    operations_of,
    points_of,
    same,
    samples,
    state_of,
)
from support.marks import examples, slow_but, slow_unless

POINTS = examples(80)
"""Per operation and kind; benchmarks/interruptions.py tries all."""


@pytest.mark.parametrize("kind", slow_but(["pmask"], EVERY_KIND))
def test_an_interrupted_constructor_leaves_the_backbone_as_it_was(kind: str) -> None:
    tried, found = faults_of_construction(kind, POINTS)
    assert tried == POINTS
    assert found == {}


@pytest.mark.parametrize(
    ("kind", "operation"),
    slow_unless(
        lambda kind, operation: (kind, operation) in (("hat", "consolidate"), ("pmask", "add_task")),
        [(kind, name) for kind in EVERY_KIND for name in operations_of(kind)],
    ),
)
def test_an_interrupted_operation_leaves_the_network_as_before_or_as_after(kind: str, operation: str) -> None:
    tried, found = faults(kind, operation, POINTS)
    assert tried > 5
    assert found == {}


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_an_interrupt_while_a_mode_of_torch_is_entered_leaves_none_on(
    kind: str, mode: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are the lines that are interrupted above; these are torch's, right after a guard was made."""
    enter, count = mode.__enter__, 0

    def interrupted(self: object) -> object:
        nonlocal count
        entered, count = enter(self), count + 1
        if count == number:
            raise KeyboardInterrupt
        return entered

    trained = build(kind)
    open_and_train(trained, "a")
    for number in range(1, 100):
        net, count = copy.deepcopy(trained), 0
        monkeypatch.setattr(mode, "__enter__", interrupted)
        try:
            net.consolidate("a")
            break
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.undo()
        assert torch.is_grad_enabled(), f"gradients are off after interrupt {number}"
        assert not torch.is_inference_mode_enabled(), f"inference mode is on after interrupt {number}"
    assert number > 2, "modes were entered"


def test_an_interrupt_while_autocast_is_entered_leaves_no_weights_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that stays open keeps the weights that it has cast, whatever becomes of them."""
    enter, count = torch.autocast.__enter__, 0

    def interrupted(self: torch.autocast) -> object:
        nonlocal count
        entered, count = enter(self), count + 1
        if count == number:
            raise KeyboardInterrupt
        return entered

    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for number in range(1, 100):
        net, count = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), 0
        monkeypatch.setattr(torch.autocast, "__enter__", interrupted)
        try:
            HATNetwork(net, torch.zeros(1, 6))
            break
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.undo()
        assert not torch.is_autocast_enabled("cpu")
        said = []
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                said.append(layer(x).detach())
            with torch.no_grad():
                layer.weight.add_(1.0)
        assert not torch.equal(*said), f"old weights are used after interrupt {number}"
    assert number > 2, "autocast was entered"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hat", "packnet"])
def test_without_undoing_interrupts_do_harm_so_that_these_tests_say_something(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "restore", lambda self: None)
    assert faults(kind, "consolidate", POINTS)[1]
    if kind == "hat":
        assert faults_of_construction(kind, POINTS)[1]


@pytest.mark.parametrize("kind", ["hat", "packnet"])
def test_states_are_told_apart_by_all_that_a_network_remembers(kind: str) -> None:
    case = Case(learned(kind))
    case.optimizer = open_and_train(case.net, "new")
    twin = case.copy()
    before = state_of(twin.net, twin.optimizer)
    assert state_of(*vars(case.copy()).values()) == state_of(*vars(twin).values())
    changes = [
        lambda twin: next(twin.net.backbone.parameters()).data.view(-1)[0].mul_(2.0),
        lambda twin: setattr(next(twin.net.backbone.parameters()), "grad", None),
        lambda twin: setattr(twin.net.protection.hooks, "count", twin.net.protection.hooks.count + 1),
        lambda twin: twin.net.protection.hooks._stepping.add(twin.optimizer),
        lambda twin: twin.net.backbone.register_forward_hook(print),
        lambda twin: twin.optimizer.state.clear(),
        lambda twin: twin.optimizer._optimizer_step_post_hooks.clear(),
        lambda twin: twin.net.eval(),
    ]
    for number, change in enumerate(changes):
        twin = case.copy()
        change(twin)  # type: ignore[no-untyped-call]
        assert state_of(twin.net, twin.optimizer) != before, number


def test_copying_a_norm_never_touches_it() -> None:
    net = build("hat")
    norm = net.backbone.get_submodule("1")
    switch = vars(norm)["forward"]
    before = bits(norm)
    for point in points_of(lambda: copy_of_norm(norm)):
        interrupt(lambda: copy_of_norm(norm), point)
        assert vars(norm)["forward"] == switch
        assert same(bits(norm), before)
    twin = copy_of_norm(norm)
    assert "forward" not in vars(twin)
    assert type(twin) is type(norm)


class Odd(nn.Module):
    """A module that a rule is made for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def test_a_rule_that_fails_leaves_no_hooks() -> None:
    def rule(*args: object) -> object:
        raise KeyError("no such thing")

    inside = nn.Sequential(nn.Linear(4, 8), Odd(), nn.ReLU(), nn.Linear(8, 6))
    before = bits(inside)
    with pytest.raises(UnsupportedError, match=r"KeyError: .*no such thing"):
        HATNetwork(inside, torch.zeros(2, 4), rules={"1": rule})  # type: ignore[dict-item]
    assert same(bits(inside), before)
    inside[1] = nn.Identity()
    HATNetwork(inside, torch.zeros(2, 4))


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("missing", [True, False])
def test_a_state_dict_that_does_not_fit_changes_nothing(kind: str, missing: bool) -> None:
    net = learned(kind)
    said = look_at(net)
    before = bits(net)
    state = copy.deepcopy(net.state_dict())
    state["backbone.0.weight"] += 1.0
    if missing:
        del state["backbone.0.bias"]
    with pytest.raises((RuntimeError, GuaranteeError), match=r"Missing key|protected entries have moved"):
        net.load_state_dict(state)
    assert same(bits(net), before)
    assert same(look_at(net), said)
    net.check()
    net.restore()


# --------------------------------------------------------------------------------------------- networks that are gone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hat", "wsn"])
def test_a_backbone_whose_network_is_gone_can_be_attached_again(kind: str) -> None:
    inside = backbone()
    before = bits(inside)
    build(kind, inside)  # and the network gets no name, as when it is interrupted just before
    gc.collect()
    net = build(kind, inside)
    net.detach()
    assert same(bits(inside), before)
    assert fault_of_construction(kind, inside, before) is None


@pytest.mark.parametrize("kind", slow_but(["hat"], ["hat", "wsn"]))
def test_a_part_of_a_larger_backbone_whose_network_is_gone_is_freed(kind: str) -> None:
    inside = nn.Sequential(backbone(), nn.Linear(6, 5), nn.ReLU())
    build(kind, inside[0])
    assert build(kind, inside).example_shape == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hat", "wsn"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_the_backbone_of_a_copy_is_the_copys(kind: str, how: str) -> None:
    net = learned(kind)
    twin = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    name = type(net).__name__
    with pytest.raises(InputError, match=f"already inside a {name}"):
        build(kind, twin.backbone)
    said = look_at(twin)
    del net
    gc.collect()
    with pytest.raises(InputError, match=f"already inside a {name}"):
        build(kind, twin.backbone)
    assert same(look_at(twin), said)
    open_and_train(twin, "later")
    twin.consolidate("later")
    assert twin.detach() is twin.backbone
    build(kind, twin.backbone)


def look_at(net: HATNetwork | WeightMaskedNetwork) -> dict[str, torch.Tensor]:
    """Return the logits of a network's tasks."""
    net.eval()
    with torch.no_grad():
        return {name: net(samples()[0], name) for name in net.task_names}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hat", "wsn"])
def test_the_backbone_alone_copied_counts_as_inside(kind: str) -> None:
    net = build(kind)
    twin = copy.deepcopy(net.backbone)
    with pytest.raises(InputError, match="already inside"):
        build(kind, twin)


def test_torch_follows_functions_again_where_an_interrupt_has_kept_it_from_that() -> None:
    class Stopping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._C.DisableTorchFunction().__enter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HATNetwork(nn.Sequential(nn.Linear(4, 8), Stopping()), torch.zeros(2, 4))
    assert torch._C._is_torch_function_enabled()
