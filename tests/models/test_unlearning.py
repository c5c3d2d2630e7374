"""Forgetting a task: others keep every bit, its own is gone from memory and from files, and no room leaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import hatrack
from hatrack import Adaptive, BatchNorms, Conditioning, Fading, GuaranteeError, HATNetwork, InputError
from hatrack.models.room import GroupPlan, make_plan
from support.architectures import ARCHITECTURES
from support.changing_networks import Mixing, learn_batch, never
from support.helpers import NETS, assert_poison_harmless, attach, learn, logits, mode, open_task
from support.marks import slow_but
from support.weight_networks import KINDS
from support.weight_networks import attach as attach_weights
from support.weight_networks import learn as learn_weights
from support.zoo import QUICK


def hat(kind: str) -> Callable[[], tuple[Any, Callable[..., tuple[Tensor, Tensor]]]]:
    return lambda: (attach(kind), learn)


NETWORKS: dict[str, Callable[[], tuple[Any, Callable[..., tuple[Tensor, Tensor]]]]] = {
    **{kind: hat(kind) for kind in ("mlp", "conv-bn", "residual")},
    **{kind: (lambda kind=kind: (attach_weights(kind, "conv-bn"), learn_weights)) for kind in KINDS},
}
EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


def three_tasks(name: str) -> tuple[Any, dict[str, Tensor]]:
    net, learn_task = NETWORKS[name]()
    return net, {task: learn_task(net, task, seed)[0] for seed, task in enumerate(("first", "second", "third"))}


@EVERY_NETWORK
@pytest.mark.parametrize("task", ["first", "second", "third"])
def test_other_tasks_keep_every_bit(name: str, task: str) -> None:
    net, samples = three_tasks(name)
    before = {other: logits(net, x, other) for other, x in samples.items()}
    net.forget(task, generator=torch.Generator().manual_seed(7))
    assert task not in net.task_names
    for other in net.task_names:
        assert torch.equal(logits(net, samples[other], other), before[other])
    net.check()
    if name != "supsup":  # whose weights are all held for good, so that there is nothing free to poison
        assert_poison_harmless(net, {other: samples[other] for other in net.task_names})


@EVERY_NETWORK
def test_every_entry_that_nobody_else_uses_is_drawn_anew(name: str) -> None:
    net, _ = three_tasks(name)
    own, others = net.masking.entries_of(net.tasks[1]), [net.masking.entries_of(net.tasks[i]) for i in (0, 2)]
    shared = {id(parameter) for parameter in net.masking.shared_parameters()}
    parameters = {n: p for n, p in net.backbone.named_parameters() if id(p) in shared}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    report = net.forget("second", generator=torch.Generator().manual_seed(7))
    kept = 0
    for key, parameter in parameters.items():
        used = others[0][key] | others[1][key]
        assert torch.equal(parameter[used], before[key][used])
        if parameter.dim() > 1:
            assert not (parameter[~used] == before[key][~used]).any(), key
            assert torch.isfinite(parameter).all()
    for key, mine in own.items():
        kept += int((mine & (others[0][key] | others[1][key])).sum())
    assert report.kept == kept
    assert report.shared == {
        other: sum(int((own[key] & uses[key]).sum()) for key in own)
        for other, uses in zip(("first", "third"), others, strict=True)
    }
    assert "second is forgotten" in str(report)


@pytest.mark.slow
@EVERY_NETWORK
def test_no_capacity_leaks_over_ten_rounds(name: str) -> None:
    net, learn_task = NETWORKS[name]()
    x, _ = learn_task(net, "stays", 0)
    capacity, plan, said = net.capacity(), net.plan(), logits(net, x, "stays")
    for turn in range(10):
        learn_task(net, "comes and goes", turn + 1, steps=2)
        assert net.capacity().weights >= capacity.weights
        assert torch.equal(logits(net, x, "stays"), said)
        net.forget("comes and goes", generator=torch.Generator().manual_seed(7))
        assert net.capacity() == capacity
        assert net.plan() == plan
        assert torch.equal(logits(net, x, "stays"), said)


@EVERY_NETWORK
def test_forgetting_all_tasks_leaves_an_empty_network(name: str) -> None:
    net, _ = three_tasks(name)
    for task in net.task_names:
        net.forget(task)
    assert net.capacity().weights == 0
    never_trained = name == "supsup"  # its weights are held even before the first task
    assert any(held.any() for held in net.protected().values()) == never_trained
    assert net.probes() == {}


def words_of(path: Path) -> set[bytes]:
    """Every four bytes of the tensors of a file that are no number of common use."""
    found = set()
    for value in safetensors.torch.load_file(path).values():
        if value.is_floating_point():
            found |= {bytes(row) for row in value.contiguous().view(torch.uint8).view(-1, value.element_size()).numpy()}
    return found


@EVERY_NETWORK
def test_nothing_in_the_file_reveals_the_task(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of some hundred floats drawn anew one may have the bits of a secret by chance
    net, learn_task = NETWORKS[name]()
    learn_task(net, "stays", 0)
    net.save(tmp_path / "before")
    learn_task(net, "leaves", 1)
    own = net.state_dict()
    net.save(tmp_path / "with")
    with mode(net, False):
        probe = net.probes()["leaves"]
    kept = net.masking.entries_of(net.tasks[0])
    private = [value for key, value in own.items() if key.startswith("tasks.1.") and "extra_state" not in key]
    private += [own[f"backbone.{key}"][~used] for key, used in kept.items()]
    common = words_of(tmp_path / "before")
    secret = {
        bytes(row)
        for value in private
        if value.is_floating_point()
        for row in value.detach().contiguous().view(-1).view(torch.uint8).view(-1, value.element_size()).numpy()
    } - common
    assert len(secret & words_of(tmp_path / "with")) == len(secret)
    net.forget("leaves", generator=torch.Generator().manual_seed(7))
    net.save(tmp_path / "after")
    assert secret
    assert not secret & words_of(tmp_path / "after")
    content = (tmp_path / "after").read_bytes()
    assert b"leaves" in (tmp_path / "with").read_bytes()
    assert b"leaves" not in content
    assert probe
    for number in probe:
        assert json.dumps(number).encode() not in content
    assert {k: v.shape for k, v in safetensors.torch.load_file(tmp_path / "after").items()} == {
        k: v.shape for k, v in safetensors.torch.load_file(tmp_path / "before").items()
    }


@pytest.mark.parametrize("name", slow_but(QUICK, [name for name in ARCHITECTURES if not name.startswith("nets-")]))
def test_the_zoo_forgets(name: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    architecture = ARCHITECTURES[name]
    net = HATNetwork(architecture.build(), architecture.samples(2, generator))
    for number, task in enumerate(("a", "b", "c")):
        open_task(net, task, number)
        net.consolidate(task)
    x = architecture.samples(8, generator)
    before = {task: logits(net, x, task) for task in ("a", "c")}
    capacity = net.capacity()
    net.forget("b", generator=generator)
    assert net.capacity().weights <= capacity.weights
    for task, said in before.items():
        assert torch.equal(logits(net, x, task), said)
    assert_poison_harmless(net, dict.fromkeys(before, x))


@pytest.mark.parametrize("conditioning", [Fading(0.5), Adaptive()])
def test_holds_that_fade_or_adapt_erase_no_more(conditioning: Any) -> None:
    torch.manual_seed(0)
    net = HATNetwork(NETS["mlp"].build(), torch.zeros(2, 6), s_max=100.0, conditioning=conditioning)
    samples = {task: learn(net, task, seed)[0] for seed, task in enumerate(("a", "b", "c"))}
    before = {task: logits(net, x, task) for task, x in samples.items()}
    net.forget("b")
    for task in ("a", "c"):
        assert torch.equal(logits(net, samples[task], task), before[task])


@pytest.mark.slow
def test_earlier_files_forget_too(tmp_path: Path) -> None:
    net = attach("conv-bn")
    x, _ = learn(net, "stays", 0)
    net.save(tmp_path / "1")
    learn(net, "leaves", 1)
    net.save(tmp_path / "2")
    before, untouched = logits(net, x, "stays"), (tmp_path / "1").read_bytes()
    reports = hatrack.forget_in_files("leaves", [tmp_path / "1", tmp_path / "2"], NETS["conv-bn"].build)
    assert list(reports) == [tmp_path / "2"]
    assert (tmp_path / "1").read_bytes() == untouched
    again = hatrack.load(tmp_path / "2", NETS["conv-bn"].build())
    assert again.task_names == ("stays",)
    assert torch.equal(logits(again, x, "stays"), before)  # type: ignore[arg-type]


def test_the_first_tasks_norms_pass_on_to_the_next_task(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return NETS["conv-bn"].build()

    net = HATNetwork(build(), torch.zeros(2, *NETS["conv-bn"].shape), s_max=100.0, batch_norms=BatchNorms.SHARED)
    learn(net, "first", 0)
    x, _ = learn(net, "second", 1)
    before = logits(net, x, "second")
    net.forget("first")
    assert torch.equal(logits(net, x, "second"), before)
    net.save(tmp_path / "net")
    assert torch.equal(logits(hatrack.load(tmp_path / "net", build()), x, "second"), before)  # type: ignore[arg-type]


@pytest.mark.parametrize("conditioning", Conditioning)
@pytest.mark.parametrize("hard", [True, False])
def test_what_two_tasks_hold_between_them_is_erased_as_well(conditioning: Conditioning, hard: bool) -> None:
    """A weight from a unit of one task to a unit of another one matters to neither, whatever the paper's rule holds."""
    torch.manual_seed(0)
    net = HATNetwork(NETS["mlp"].build(), torch.zeros(2, 6), s_max=100.0, hard=hard, conditioning=conditioning)
    samples = {task: learn(net, task, seed)[0] for seed, task in enumerate(("a", "b", "c"))}
    before = {task: logits(net, x, task) for task, x in samples.items()}
    weight = net.backbone[4].weight
    old = weight.detach().clone()
    net.forget("b", generator=torch.Generator().manual_seed(7))
    for task in ("a", "c"):
        assert torch.equal(logits(net, samples[task], task), before[task])
    if hard:
        hidden, last = ("1", "4")
        between = torch.zeros_like(weight, dtype=torch.bool)
        for task in ("a", "c"):
            masks = net.masks(task)
            between |= masks[last].view(-1, 1) & masks[hidden].view(1, -1)
        assert not (weight == old)[~between].any()


def test_a_task_in_training_is_given_up() -> None:
    net = attach("mlp")
    x, _ = learn(net, "kept")
    before, capacity = logits(net, x, "kept"), net.capacity()
    open_task(net, "given up", 1)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters("given up")))
    net(x, "given up").sum().backward()
    optimizer.step()
    with pytest.raises(InputError, match="consolidate or forget 'given up'"):
        net.forget("kept")
    own = {id(parameter) for parameter in net.tasks[1].parameters()}
    net.forget("given up")
    assert net.task_in_training is None
    assert net.capacity() == capacity
    assert torch.equal(logits(net, x, "kept"), before)
    assert not own & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    free = ~net.protected()["backbone.4.weight"]
    memory = optimizer.state[net.backbone[4].weight]["exp_avg"]
    assert not memory[free].any()


def test_what_had_moved_is_put_back_before_forgetting_and_unknown_names_change_nothing() -> None:
    net = attach("mlp")
    x, _ = learn(net, "one")
    promised = logits(net, x, "one")
    learn(net, "two", 1)
    with pytest.raises(InputError, match="there is no task"):
        net.forget("three")
    with torch.no_grad():
        net.backbone[1].weight.add_(1.0)
    with pytest.warns(UserWarning, match=r"changed frozen entries of backbone\.1\.weight"):
        net.forget("two")
    assert torch.equal(logits(net, x, "one"), promised)
    net.add_task("four", 2)
    net.backbone[1].weight.data.add_(1.0)  # which no count shows
    with pytest.raises(GuaranteeError, match="have moved"):
        net.forget("four")
    assert net.task_names == ("one", "four")


def test_a_grown_network_forgets() -> None:
    net = attach("mlp")
    x, _ = learn(net, "one")
    net.grow({"1": 8})
    learn(net, "two", 1)
    before, width = logits(net, x, "one"), net.backbone[1].out_features
    net.forget("two")
    assert torch.equal(logits(net, x, "one"), before)
    assert net.backbone[1].out_features == width


def test_a_plan_by_hand() -> None:
    on = torch.tensor([True] * 4 + [False] * 16)
    two = torch.tensor([False] * 2 + [True] * 6 + [False] * 12)  # two shared, four new ones
    assert make_plan({"a": 20, "b": 10}, []).tasks_left is None
    plan = make_plan({"a": 20, "b": 10}, [{"a": on, "b": on[:10]}, {"a": two, "b": on[:10]}])
    assert plan.groups == {"a": GroupPlan(20, 12, 4.0, 3), "b": GroupPlan(10, 6, 2.0, 3)}
    assert (plan.tasks, plan.tasks_left, plan.bottleneck) == (2, 3, "a")
    assert "roughly 3 more tasks fit, by a" in str(plan)


def test_a_networks_plan_agrees_with_its_capacity() -> None:
    for net in (attach("conv-bn"), attach_weights("wsn", "mlp")):
        assert net.plan().tasks_left is None
        (learn if isinstance(net, HATNetwork) else learn_weights)(net, "one")  # type: ignore[arg-type]
        plan, capacity = net.plan(), net.capacity()
        for name, share in capacity.groups.items():
            assert plan.groups[name].free / plan.groups[name].size == pytest.approx(1 - share)
        assert plan.tasks_left == min(part.tasks_left for part in plan.groups.values() if part.tasks_left is not None)


def test_nothing_of_a_forgotten_mask_is_kept() -> None:
    torch.manual_seed(0)
    net = HATNetwork(Mixing(never), torch.zeros(1, 6))
    learn_batch(net, "a", torch.randn(5, 6))
    logits(net, torch.randn(5, 6), "a")
    mask = net.tasks[0].mask
    net.forget("a")
    kept = [value for value in vars(net).values() if isinstance(value, tuple)]
    tensors = [each for value in kept for each in value if isinstance(each, Tensor)]
    assert not any(each.shape == mask.shape and each.dtype == mask.dtype for each in tensors)
