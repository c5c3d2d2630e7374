"""Changes of frozen entries by anything but a protected step: old tasks answer as before, and one warning says so."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from hatrack import GuaranteeError, HATNetwork, UnsupportedError, WeightMaskedNetwork
from hatrack.protection.frozen import FrozenEntries
from support.changing_networks import KINDS, WIDTH, Mixing, learn_batch, never
from support.helpers import CLASSES, attach, easy_task, learn, logits, loss_of, mode, open_task, progress, train

Net = HATNetwork | WeightMaskedNetwork
CHANGED = "something other than a step of a protected optimizer has changed frozen entries"


def with_weights() -> WeightMaskedNetwork:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU())
    return WeightMaskedNetwork(backbone, torch.zeros(2, 1, 6))


def two_tasks(kind: str) -> tuple[Net, Tensor, Tensor]:
    """A network with one consolidated task and one in training; samples of the old one, and what it said."""
    net: Any = with_weights() if kind == "weights" else attach(kind)
    x, y = easy_task(net.example_shape[1:], 0)
    net.add_task("old", CLASSES)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters("old"), lr=0.01))
    train(net, "old", x, y, optimizer, steps=5)
    net.consolidate("old")
    net.add_task("new", CLASSES)
    return net, x, logits(net, x, "old")


def add_to_all(net: Net) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5)


def step_unprotected(net: Net) -> None:
    x, y = easy_task(net.example_shape[1:], 1)
    optimizer = torch.optim.SGD(net.task_parameters("new"), lr=0.5, weight_decay=0.1)
    loss_of(net, "new", x, y).backward()
    optimizer.step()


def load_backbone(net: Net) -> None:
    net.backbone.load_state_dict(
        {k: v + 1 if v.is_floating_point() else v for k, v in net.backbone.state_dict().items()}
    )


def hook_after_ours(net: Net) -> None:
    x, y = easy_task(net.example_shape[1:], 1)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.05))
    optimizer.register_step_post_hook(lambda *_: [p.detach().add_(0.1) for p in net.backbone.parameters()])
    loss_of(net, "new", x, y).backward()
    optimizer.step()


def swapped_list(net: Net) -> None:
    """A parameter list swapped for one of the same length, after a step that has looked at the first."""
    x, y = easy_task(net.example_shape[1:], 1)
    parameters = net.task_parameters("new")
    halves = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 : 2 * (len(parameters) // 2)]
    optimizer = net.protect(torch.optim.SGD(halves[1], lr=0.5, weight_decay=0.1))
    for half in (halves[1], halves[0]):
        optimizer.param_groups[0]["params"] = half
        net.zero_grad()
        loss_of(net, "new", x, y).backward()
        optimizer.step()


WAYS: dict[str, Callable[[Net], None]] = {
    way.__name__: way for way in (add_to_all, step_unprotected, load_backbone, hook_after_ours, swapped_list)
}


@pytest.mark.parametrize("kind", ["mlp", "conv-bn", "residual", "weights"])
@pytest.mark.parametrize("way", WAYS)
def test_old_tasks_answer_as_before_whatever_has_written_to_the_network(kind: str, way: str) -> None:
    net, x, promised = two_tasks(kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=CHANGED)
        WAYS[way](net)
        assert torch.equal(logits(net, x, "old"), promised), "while another task is in training"
        net.consolidate("new")
    assert torch.equal(logits(net, x, "old"), promised), "afterwards"
    net.check()


@pytest.mark.parametrize("kind", ["mlp", "weights"])
def test_one_warning_names_what_was_changed_and_when(kind: str) -> None:
    net, x, promised = two_tasks(kind)
    add_to_all(net)
    with pytest.warns(UserWarning, match=rf"{CHANGED} of .*, after task 'old' was consolidated") as caught:
        answers = [logits(net, x, "old") for _ in range(3)]
    assert all(torch.equal(answer, promised) for answer in answers)
    assert len(caught) == 1


def test_a_graph_that_is_alive_is_not_disturbed_by_asking_an_old_task() -> None:
    net, x, promised = two_tasks("mlp")
    net.train()
    _, y = easy_task(net.example_shape[1:], 1)
    with torch.no_grad():
        net.backbone[1].weight.add_(0.1)  # as an optimizer does that looks around before it steps
    loss = loss_of(net, "new", x, y)
    with pytest.warns(UserWarning, match=CHANGED):
        assert torch.equal(logits(net, x, "old"), promised)
    loss.backward()


def test_an_optimizer_per_parameter_steps_in_the_middle_of_a_backward_pass() -> None:
    net, x, promised = two_tasks("mlp")
    optimizers = {p: net.protect(torch.optim.Adam([p], lr=0.01)) for p in net.task_parameters("new")}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    handles = [parameter.register_post_accumulate_grad_hook(step) for parameter in optimizers]
    net.train()
    _, y = easy_task(net.example_shape[1:], 1)
    for number in range(5):
        net.anneal(progress(number))
        loss_of(net, "new", x, y).backward()
        assert torch.equal(logits(net, x, "old"), promised)
    for handle in handles:
        handle.remove()
    net.consolidate("new")
    assert torch.equal(logits(net, x, "old"), promised)


def test_a_small_optimizer_may_step_between_forward_and_backward_of_the_rest() -> None:
    net, x, promised = two_tasks("mlp")
    *rest, last = net.task_parameters("new")
    optimizer, small = (net.protect(torch.optim.AdamW(p, lr=0.01)) for p in (rest, [last]))
    net.train()
    _, y = easy_task(net.example_shape[1:], 1)
    last.grad = torch.ones_like(last)
    loss = loss_of(net, "new", x, y)
    small.step()
    loss.backward()
    optimizer.step()
    assert torch.equal(logits(net, x, "old"), promised)


@pytest.mark.parametrize("kind", ["mlp", "residual", "weights"])
def test_a_pass_may_be_asked_for_in_the_middle_of_another_one(kind: str) -> None:
    net, x, promised = two_tasks(kind)
    net.consolidate("new")
    layer = next(part for part in net.backbone.modules() if isinstance(part, nn.Linear))
    inside = []

    def ask(*_: Any) -> None:
        handle.remove()
        inside.append(net(x, "new"))

    with mode(net, False), torch.no_grad():
        alone = net(x, "new")
        handle = layer.register_forward_hook(ask)
        assert torch.equal(net(x, "old"), promised)
    assert torch.equal(inside[0], alone)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.01)])
@pytest.mark.parametrize("kind", ["residual", "weights"])
def test_threads_ask_while_another_one_trains(kind: str, make: Any) -> None:
    net, x, promised = two_tasks(kind)
    optimizer = net.protect(make(net.task_parameters("new")))
    net.train()
    _, y = easy_task(net.example_shape[1:], 1)
    done, differing, asked = threading.Event(), [0], [0]

    def ask() -> None:
        torch.set_num_threads(1)  # which holds for the thread that calls it, in plain torch, too
        while not done.is_set():
            with torch.no_grad():
                differing[0] += not torch.equal(net(x, "old"), promised)
            asked[0] += 1

    with torch.no_grad():
        promised = net(x, "old")
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    train(net, "new", x, y, optimizer, steps=150)
    done.set()
    for thread in threads:
        thread.join()
    assert asked[0] > 50
    assert differing[0] == 0


class Failing(torch.optim.Adam):
    """Moves everything, and fails."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1.0)
        raise RuntimeError("out of memory")


def test_a_step_that_fails_leaves_old_answers_and_a_network_that_goes_on() -> None:
    net, x, promised = two_tasks("mlp")
    net.train()
    _, y = easy_task(net.example_shape[1:], 1)
    optimizer = net.protect(Failing(net.task_parameters("new")))
    loss_of(net, "new", x, y).backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert torch.equal(logits(net, x, "old"), promised)
    with pytest.warns(UserWarning, match=CHANGED):
        net.consolidate("new")
    assert torch.equal(logits(net, x, "old"), promised)
    learn(net, "third", 2)
    assert torch.equal(logits(net, x, "old"), promised)


def test_a_closure_may_ask_old_tasks() -> None:
    net, x, promised = two_tasks("mlp")
    net.train()
    _, y = easy_task(net.example_shape[1:], 1)
    optimizer = net.protect(torch.optim.LBFGS(net.task_parameters("new"), lr=0.1, max_iter=4))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, "new", x, y)
        loss.backward()
        assert torch.equal(logits(net, x, "old"), promised)
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert torch.equal(logits(net, x, "old"), promised)


def test_copies_watch_their_own_tensors() -> None:
    net, x, promised = two_tasks("conv-bn")
    twin = copy.deepcopy(net)
    add_to_all(twin)
    assert torch.equal(logits(net, x, "old"), promised)
    with pytest.warns(UserWarning, match=CHANGED):
        assert torch.equal(logits(twin, x, "old"), promised)
    add_to_all(net)
    late = copy.deepcopy(net)  # of a network that was changed already
    with pytest.warns(UserWarning, match=CHANGED):
        assert torch.equal(logits(late, x, "old"), promised)


def test_several_tasks_in_one_batch_and_extraction_see_no_change_either() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    learn(net, "b", 1)
    names = ["a", "b"] * (len(x) // 2)
    with mode(net, False), torch.no_grad():
        mixed = net(x, names)
        alone = F.pad(net.extract("a", x)(x), (0, 0))
    open_task(net, "c", 2)
    add_to_all(net)
    with mode(net, False), torch.no_grad():
        with pytest.warns(UserWarning, match=CHANGED):
            assert torch.equal(net(x, names), mixed)
        assert torch.equal(net.extract("a", x)(x), alone)


REPLACEMENTS: dict[str, Callable[[Net], object]] = {
    "a parameter": lambda net: setattr(net.backbone[1], "weight", nn.Parameter(torch.randn(32, 6))),
    "a layer": lambda net: net.backbone.__setitem__(1, nn.Linear(6, 32)),
    "a head": lambda net: setattr(net.tasks[0], "head", nn.Linear(32, CLASSES)),
    "pruned": lambda net: prune.l1_unstructured(net.backbone[1], "weight", 0.5),
    "weight norm": lambda net: parametrizations.weight_norm(net.backbone[1]),
    "no bias": lambda net: setattr(net.backbone[1], "bias", None),
}


@pytest.mark.parametrize("name", REPLACEMENTS)
@pytest.mark.parametrize("masks", ["units", "weights"])
def test_other_objects_in_the_place_of_layers_are_refused_at_once(name: str, masks: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(6, 32), nn.ReLU())
    net: Net = (
        HATNetwork(backbone, torch.zeros(2, 6))
        if masks == "units"
        else WeightMaskedNetwork(backbone, torch.zeros(2, 6))
    )
    net.add_task("old", CLASSES)
    net.consolidate("old")
    net.add_task("new", CLASSES)
    REPLACEMENTS[name](net)
    for use in (
        lambda: net(torch.randn(3, 6), "old"),
        net.check,
        lambda: net.consolidate("new"),
        lambda: net.save(tmp_path / "net.hat"),
        lambda: net.forget("new"),
    ):
        with pytest.raises(GuaranteeError, match="has been replaced, pruned, parametrized or converted since"):
            use()


def test_values_for_a_single_call_may_stand_in() -> None:
    net, x, promised = two_tasks("mlp")
    net.eval()
    with torch.no_grad():
        values = {name: value.clone() for name, value in net.named_parameters()}
        assert torch.equal(torch.func.functional_call(net, values, (x, "old")), promised)
        values["tasks.0.head.bias"] += 1.0
        other = torch.func.functional_call(net, values, (x, "old"))
        torch.testing.assert_close(other, promised + 1.0)
        assert torch.equal(net(x, "old"), promised)


@pytest.mark.parametrize("kind", ["mlp", "weights"])
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_between_fused_steps_bits_are_compared_only_if_something_has_changed_them(
    kind: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing all that is frozen takes longer than a step."""
    net, x, promised = two_tasks(kind)
    optimizer = net.protect(make(net.task_parameters("new"), lr=0.1, weight_decay=0.1, fused=True))
    compared: list[FrozenEntries] = []
    whole = FrozenEntries.has_moved

    def has_moved(entries: FrozenEntries, parameter: Tensor) -> bool:
        compared.append(entries)
        return whole(entries, parameter)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(net, "new", x, torch.zeros(len(x), dtype=torch.int64)).backward()
        optimizer.step()

    monkeypatch.setattr(FrozenEntries, "has_moved", has_moved)
    for _ in range(3):
        step()
    assert not compared
    load_backbone(net)
    with pytest.warns(UserWarning, match=CHANGED):
        step()
    assert compared
    assert torch.equal(logits(net, x, "old"), promised)


@pytest.mark.parametrize("kind", ["mlp", "weights"])
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_protected_fused_steps_count_as_others(kind: str, make: Any) -> None:
    """What is kept from one pass to the next is known to be old by these counts."""
    net, x, _ = two_tasks(kind)
    optimizer = net.protect(make(net.task_parameters("new"), lr=0.1, fused=True))
    loss_of(net, "new", x, torch.zeros(len(x), dtype=torch.int64)).backward()
    before = {p: (p._version, p.detach().clone()) for p in net.task_parameters("new")}
    optimizer.step()
    moved = [p for p, (_, values) in before.items() if not torch.equal(p, values)]
    assert moved
    assert all(p._version > before[p][0] for p in moved)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_fused_steps_count_as_others(make: Any) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    x = torch.randn(5, 6)
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    net.add_task("b", 2)
    optimizer = make(net.backbone.parameters(), lr=0.1, fused=True)
    net.train()(x, "b").sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="something other than a step of a protected optimizer"):
        assert torch.equal(logits(net, x, "a"), promised)


def test_a_task_that_diverges_does_not_answer_for_others() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    x = torch.randn(5, 6)
    learn_batch(net, "a", x)
    promised = logits(net, x, "a")
    net.add_task("b", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=1e38))
    for _ in range(3):
        optimizer.zero_grad()
        net.train()(x, "b").square().sum().backward()
        optimizer.step()
    with pytest.raises(GuaranteeError, match=r"infinite or not a number.*restore\(\)"):
        logits(net, x, "a")
    net.restore()
    assert torch.equal(logits(net, x, "a"), promised)


REPLACED: dict[str, Callable[[Net], object]] = {
    "the backbone": lambda net: setattr(net, "backbone", Mixing(never)),
    "one more layer": lambda net: net.backbone.add_module("more", nn.Tanh()),
    "another type": lambda net: net.backbone.double(),
    "another forward": lambda net: setattr(net.backbone.out, "forward", lambda h: h[:, :WIDTH] + 1.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REPLACED)
def test_other_parts_are_refused_by_everything(name: str, kind: Any) -> None:
    torch.manual_seed(0)
    net = kind(Mixing(never), torch.zeros(1, 6))
    learn_batch(net, "a", torch.randn(5, 6))
    state = net.state_dict()
    REPLACED[name](net)
    for use in (
        lambda: net(torch.randn(3, 6), "a"),
        net.check,
        lambda: net.to("cpu"),
        lambda: net.load_state_dict(state),
        lambda: nn.ModuleDict({"net": net}).load_state_dict({f"net.{name}": value for name, value in state.items()}),
    ):
        with pytest.raises(GuaranteeError, match="has been replaced, pruned, parametrized or converted since"):
            use()


def test_a_mixed_batch_trains_while_something_else_has_written() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    x = torch.randn(6, 6)
    learn_batch(net, "a", x)
    net.add_task("b", 2)
    net.train()
    with torch.no_grad():
        net.backbone.out.weight.add_(0.1)
    with pytest.warns(UserWarning, match="something other than a step"):
        net(x, ["a", "b"] * 3)[1::2].sum().backward()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())


def test_a_refused_call_undoes_nothing_of_another_thread() -> None:
    inside, go = threading.Event(), threading.Event()

    def where(module: nn.Module, x: Tensor) -> bool:
        if len(x) == 3 and threading.current_thread() is not threading.main_thread():
            inside.set()
            go.wait(20)
        return len(x) == 3

    torch.manual_seed(0)
    net = HATNetwork(Mixing(where), torch.zeros(1, 6))
    x, refused = torch.randn(5, 6), []
    learn_batch(net, "a", x)
    net.eval()

    def ask() -> None:
        try:
            net(torch.randn(3, 6), "a")
        except UnsupportedError as error:
            refused.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    assert inside.wait(20)
    threading.Timer(0.1, go.set).start()
    learn_batch(net, "b", x, 1)  # which waits until the other thread has its answer, and opens the task then
    assert go.is_set()
    asker.join()
    assert refused
    assert net.task_names == ("a", "b")
    net.check()
