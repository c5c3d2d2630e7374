"""A network as a part of something larger: parent modules, averaging, checkpoints of other programs."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hatrack import GuaranteeError, HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from support.changing_networks import KINDS as MASKED
from support.changing_networks import Mixing, learn_batch, never
from support.helpers import attach, learn, logits, loss_of, open_task


def weights() -> WeightMaskedNetwork:
    torch.manual_seed(0)
    return WeightMaskedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(6, 24), nn.ReLU()), torch.zeros(2, 1, 6))


def learn_weights(net: Any, name: str, seed: int = 0) -> Tensor:
    x = torch.randn(8, 1, 6, generator=torch.Generator().manual_seed(seed))
    net.add_task(name, 3)
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(name), lr=0.01))
    net.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(net, name, x, torch.arange(8) % 3).backward()
        optimizer.step()
    net.consolidate(name)
    return x


KINDS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "mlp": (lambda: attach("mlp"), lambda net, name, seed=0: learn(net, name, seed)[0]),
    "conv-bn": (lambda: attach("conv-bn"), lambda net, name, seed=0: learn(net, name, seed)[0]),
    "weights": (weights, learn_weights),
}


class Parent(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, nn.Linear(2, 2)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parent_that_is_loaded_renews_the_plan(kind: str, assign: bool) -> None:
    build, teach = KINDS[kind]
    source = build()
    x = teach(source, "a")
    promised = logits(source, x, "a")
    target = build()
    teach(target, "a", 5)
    parent = Parent(target)
    parent.load_state_dict(
        {k: v.clone() for k, v in Parent(source).state_dict().items()} | parent.other.state_dict(prefix="other."),
        assign=assign,
    )
    assert torch.equal(logits(target, x, "a"), promised)
    teach(target, "b", 7)
    assert torch.equal(logits(target, x, "a"), promised)
    target.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_state_in_a_parent_is_refused_and_leaves_the_good_one(kind: str) -> None:
    build, teach = KINDS[kind]
    net = build()
    x = teach(net, "a")
    promised, parent = logits(net, x, "a"), Parent(net)
    bad = {k: v + 1 if v.is_floating_point() else v.clone() for k, v in parent.state_dict().items()}
    with pytest.raises(GuaranteeError, match="protected entries have moved"):
        parent.load_state_dict(bad)
    net.check()
    assert torch.equal(logits(net, x, "a"), promised)
    teach(net, "b", 3)
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_with_missing_keys_changes_nothing(kind: str) -> None:
    build, teach = KINDS[kind]
    net = build()
    x = teach(net, "a")
    promised = logits(net, x, "a")
    part = {k: v + 0 for k, v in net.state_dict().items() if not k.startswith("backbone")}
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(part)
    net.check()
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_averages_of_the_network_keep_the_law(kind: str, average: Any) -> None:
    build, teach = KINDS[kind]
    net = build()
    x = teach(net, "a")
    promised = logits(net, x, "a")
    if kind == "weights":
        net.add_task("b", 3)
    else:
        open_task(net, "b", 1)
    averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("b"), lr=0.05, momentum=0.9))
    net.train()
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(net, "b", x, torch.arange(len(x)) % 3).backward()
        optimizer.step()
        averaged.update_parameters(net)
    assert torch.equal(logits(net, x, "a"), promised)
    assert torch.equal(logits(averaged.module, x, "a"), promised)
    averaged.module.consolidate("b")
    assert torch.equal(logits(averaged.module, x, "a"), promised)


def normalised(kind: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), torch.zeros(2, 6))


def consolidated_after(net: Any, batches: int) -> Tensor:
    """Learn a task that has seen some number of batches, which norms count, and open a second one."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    net.add_task("a", 3)
    net.train()(x, "a")
    net.tasks[0].batch_norms[0].num_batches_tracked.fill_(batches)
    net.consolidate("a")
    net.add_task("b", 3)
    return x


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 100_000), st.sampled_from([0.9, 0.99, 0.999]), st.sampled_from([*MASKED]), st.booleans())
def test_counts_of_batches_outlive_averages(batches: int, decay: float, kind: Any, whole: bool) -> None:
    net = normalised(kind)
    x = consolidated_after(net, batches)
    promised = logits(net, x, "a")
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(4):
        averaged.update_parameters(net)
    if whole:
        averaged.load_state_dict(averaged.state_dict())
    else:
        assert torch.equal(logits(averaged.module, x, "a"), promised)
        averaged.update_parameters(net)
        averaged.module.check()
        averaged.update_parameters(net)
    net.load_state_dict(averaged.module.state_dict())
    assert torch.equal(logits(net, x, "a"), promised)
    assert net.tasks[0].batch_norms[0].num_batches_tracked == batches
    averaged.update_parameters(net)
    averaged.module.consolidate("b")


@pytest.mark.parametrize("kind", MASKED)
def test_averages_through_states_leave_masks_as_they_are(kind: Any) -> None:
    net = normalised(kind)
    x = consolidated_after(net, 24)
    promised, averaged = logits(net, x, "a"), copy.deepcopy(net)
    for _ in range(3):
        for mean, value in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
            mean.copy_(0.9 * mean + 0.1 * value)
    assert all(torch.equal(mask, net.masks("a")[name]) for name, mask in averaged.masks("a").items())
    averaged.restore()
    assert torch.equal(logits(averaged, x, "a"), promised)
    net.load_state_dict(averaged.state_dict())
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("kind", MASKED)
def test_what_has_moved_is_named_and_states_are_told_from_steps(kind: Any) -> None:
    net = normalised(kind)
    consolidated_after(net, 24)
    state = copy.deepcopy(net.state_dict())
    state["tasks.0.batch_norms.0.num_batches_tracked"] -= 1
    with pytest.raises(GuaranteeError, match=r"moved in task a: this state_dict .* as after .* an average of states"):
        net.load_state_dict(state)
    net.tasks[0].batch_norms[0].running_mean.data.add_(1)
    with pytest.raises(GuaranteeError, match=r"moved in task a \(tasks\.0\.batch_norms\.0\.running_mean\): "):
        net.check()


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_tensors_alone(kind: str, tmp_path: Path) -> None:
    build, teach = KINDS[kind]
    net = build()
    x = teach(net, "a")
    assert all(isinstance(value, Tensor) for value in net.state_dict().values())
    safetensors.torch.save_model(net, str(tmp_path / "net.safetensors"))
    again = build()
    again.add_task("a", 3)
    safetensors.torch.load_model(again, str(tmp_path / "net.safetensors"))
    assert torch.equal(logits(again, x, "a"), logits(net, x, "a"))
    teach(again, "b", 2)
    assert torch.equal(logits(again, x, "a"), logits(net, x, "a"))


def test_digests_in_the_form_of_before_are_read_and_damaged_ones_are_refused() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    state = net.state_dict()
    digests = json.loads(bytes(state["_extra_state"].tolist()))
    assert digests
    net.load_state_dict(state | {"_extra_state": digests})
    with pytest.raises(InputError, match=r"digests .* are damaged"):
        net.load_state_dict(state | {"_extra_state": state["_extra_state"][:-3]})
    net.check()
    assert len(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_loaded_by_themselves(copied: Any) -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    other = attach("mlp", seed=3)
    learn(other, "a", 4)
    promised, twin = logits(net, x, "a"), copied(net)
    Parent(twin).net.load_state_dict(other.state_dict())
    assert torch.equal(logits(twin, x, "a"), logits(other, x, "a"))
    assert torch.equal(logits(net, x, "a"), promised)


def test_the_device_without_values_is_refused() -> None:
    net = attach("mlp")
    x, _ = learn(net, "a")
    promised = logits(net, x, "a")
    with pytest.raises(InputError, match='cannot go to the device "meta"'):
        net.to("meta")
    assert isinstance(net, HATNetwork)
    assert torch.equal(logits(net, x, "a"), promised)


@pytest.mark.parametrize("kind", MASKED)
def test_a_state_with_other_tasks_says_so(kind: Any) -> None:
    nets = [kind(Mixing(never), torch.zeros(1, 6)) for _ in range(2)]
    learn_batch(nets[0], "a", torch.randn(5, 6))
    nets[1].add_task("b", 2)
    nets[1].consolidate("b")
    with pytest.raises(InputError, match=r"consolidated tasks \['a'\].*\['b'\].*add the same tasks first"):
        nets[1].load_state_dict(nets[0].state_dict())


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: nn.Sequential(nn.Identity(), net)])
def test_replicas_that_would_share_gates_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = HATNetwork(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), torch.zeros(2, 4))
    with pytest.raises(UnsupportedError, match="DistributedDataParallel"):
        _ = [part._replicate_for_data_parallel() for part in wrap(net).modules()]  # as torch.nn.parallel.replicate does


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_what_would_put_other_values_in_the_place_of_all_is_refused(kind: Any) -> None:
    net = kind(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), torch.zeros(2, 6))
    net.to_empty(device="cpu")  # nothing relies on anything yet
    for parameter in net.backbone.parameters():
        nn.init.normal_(parameter)
    net.add_task("old", 2)
    net.consolidate("old")
    x = torch.randn(4, 6)
    before = net.eval()(x, "old")
    for change in (
        lambda: nn.ModuleList([net]).to_empty(device="cpu"),
        lambda: net._apply(lambda tensor: tensor.clamp(-0.01, 0.01) if tensor.is_floating_point() else tensor),
        lambda: net._apply(lambda tensor: 2 * tensor),
    ):
        with pytest.raises(InputError, match="would put other values in the place of all"):
            change()
    assert torch.equal(net(x, "old"), before)
    net.double().float()
    net.check()
