from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hatrack import GuaranteeError, HATNetwork, InputError
from hatrack.functional import condition_gradient
from hatrack.protection.conditioning import Adaptive
from hatrack.protection.frozen import FrozenEntries, attention_on_entries, digest, digest_of_entries
from hatrack.protection.hooks import keeps_entries_without_gradient
from hatrack.protection.plan import find_nonfinite
from hatrack.units import ParameterUse
from support.changing_networks import Mixing, learn_batch, never
from support.helpers import attach, easy_task, learn, logits, loss_of, open_task, train

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels-last", "dense", "dense and transposed"])
@pytest.mark.parametrize("whole_rows", [False, True])
def test_a_shield_restores_bits_and_leaves_the_rest(dtype: torch.dtype, layout: str, whole_rows: bool) -> None:
    value = torch.randn(2, 3, 4, 5).to(dtype)
    value.view(-1)[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 0.0], dtype=dtype)
    if layout == "transposed":
        value = value.permute(3, 1, 0, 2)
    if layout == "channels-last":
        value = value.to(memory_format=torch.channels_last)
    if layout.startswith("dense"):
        value = value.flatten(1) if layout == "dense" else value.flatten(1).t()
    held = torch.rand(value.shape) < 0.5
    if whole_rows:
        held = (torch.arange(len(value)) % 2 == 0).view(-1, *(1,) * (value.dim() - 1)).expand(value.shape)
    shield = FrozenEntries.of(value, held)
    assert shield is not None
    if layout.startswith("dense"):
        assert shield.free_bits is not None
        assert shield.free_bits.shape == value.shape
    else:
        assert shield.free_bits is None
        assert shield.saved_bits.shape == (held.sum(),)
    moved = value.clone().fill_(float("nan"))
    assert shield.has_moved(moved)
    assert not shield.has_moved(value)
    shield.restore(moved)
    assert bits(moved[held]) == bits(value[held])
    assert moved[~held].isnan().all()
    gradient = torch.full_like(value, float("inf"))
    shield.condition(gradient)
    assert (gradient[held] == 0).all()
    assert not torch.signbit(gradient[held]).any()
    assert gradient[~held].isinf().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_restoring_is_exact_for_any_bits(dtype: torch.dtype) -> None:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[torch.empty(0, dtype=dtype).element_size()]
    span = torch.iinfo(integers)
    ends = torch.tensor([span.min, span.min + 1, -1, 0, 1, span.max], dtype=integers)
    saved = torch.cat([ends.repeat(6), torch.randint(span.min, span.max, (200,), dtype=integers)])
    now = torch.cat([ends.repeat_interleave(6), torch.randint(span.min, span.max, (200,), dtype=integers)])
    for held in (torch.rand(len(saved)) < 0.5, torch.ones(len(saved), dtype=torch.bool)):
        shield = FrozenEntries.of(saved.view(dtype), held)
        assert shield is not None
        assert shield.all_frozen == bool(held.all())
        moved = now.clone().view(dtype)
        shield.restore(moved)
        assert torch.equal(moved.view(integers), torch.where(held, saved, now))


def test_nothing_to_hold_needs_no_shield() -> None:
    assert FrozenEntries.of(torch.ones(3), torch.zeros(3, dtype=torch.bool)) is None


@given(st.lists(st.integers(0, 4), min_size=3, max_size=3), st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_attention_on_entries_against_a_loop(outs: list[int], ins: list[int]) -> None:
    attention = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0])
    uses = [
        ParameterUse((torch.tensor(outs).view(-1, 1), torch.tensor(ins).view(1, -1))),
        ParameterUse((torch.tensor([[outs[0]]]), torch.tensor(ins).view(1, -1))),
    ]
    found = attention_on_entries(uses, attention, torch.Size([3, 2]))
    for i in range(3):
        for j in range(2):
            one = min(attention[outs[i]], attention[ins[j]])
            other = min(attention[outs[0]], attention[ins[j]])
            assert found[i, j] == max(one, other)


def test_digest_sees_names_types_shapes_and_bits() -> None:
    a = torch.zeros(2, 3)
    different = [
        {"x": a},
        {"y": a},
        {"x": a.view(3, 2)},
        {"x": a.double()},
        {"x": -a},
        {"x": a, "y": a},
        {},
    ]
    assert len({digest(tensors) for tensors in different}) == len(different)
    assert digest({"x": torch.randn(4, 5).t()[:0]}) == digest({"x": torch.zeros(0, 4)})


def test_which_optimizers_need_no_restoring() -> None:
    def of(**settings: object) -> bool:
        return keeps_entries_without_gradient(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, **settings))

    assert of()
    assert of(foreach=True)
    assert not of(momentum=0.9)
    assert not of(weight_decay=0.1)
    assert not of(maximize=True)
    assert not keeps_entries_without_gradient(torch.optim.Adam([nn.Parameter(torch.ones(1))]))


def prepared(kind: str = "mlp") -> tuple[HATNetwork, torch.Tensor, torch.Tensor]:
    net = attach(kind)
    learn(net, "old")
    open_task(net, "new", 1)
    x, y = easy_task(net.example_shape[1:], 1)
    return net, x, y


def test_plain_sgd_conditions_the_gradient_and_others_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheap path is really taken: held entries of the gradient are cleared, and no value is written back."""
    net, x, y = prepared()
    written: list[Any] = []
    restore = FrozenEntries.restore

    def noted(entries: FrozenEntries, parameter: torch.Tensor) -> None:
        written.append(parameter)
        restore(entries, parameter)

    monkeypatch.setattr(FrozenEntries, "restore", noted)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("new"), lr=0.1))
    net.anneal(0.5)
    loss_of(net, "new", x, y).backward()
    held = net.protected()["backbone.1.weight"]
    assert net.backbone[1].weight.grad[held].any()
    optimizer.step()
    assert not net.backbone[1].weight.grad[held].any()
    assert not written
    net.check()
    net.protect(torch.optim.Adam(net.task_parameters("new"))).step()
    assert any(parameter is net.backbone[1].weight for parameter in written)
    net.check()


def full_network() -> HATNetwork:
    """A network all of whose units are taken, with a task in training."""
    net = HATNetwork(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()), torch.zeros(1, 6))
    net.add_task("old", 3, embedding=torch.full((16,), 3.0))
    net.consolidate("old")
    net.add_task("new", 3)
    return net


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_what_is_held_whole_takes_no_part_in_steps(make: type[torch.optim.Optimizer]) -> None:
    net = full_network()
    optimizer = net.protect(make(net.task_parameters("new"), lr=0.1, weight_decay=0.1))  # type: ignore[call-arg]
    held = dict(net.backbone.named_parameters())
    before = {name: bits(parameter) for name, parameter in held.items()}
    for _ in range(2):
        net.anneal(0.5)
        (net(torch.randn(4, 6), "new").square().sum() + sum(p.sum() for p in held.values())).backward()
        head = bits(net.tasks[-1].head.weight)
        optimizer.step()
        assert all(parameter.grad is None for parameter in held.values())
        assert {name: bits(parameter) for name, parameter in held.items()} == before
        assert bits(net.tasks[-1].head.weight) != head
    moments = [value for p in held.values() for value in optimizer.state.get(p, {}).values() if value is not None]
    assert not any(bool(value.any()) for value in moments), "the optimizer gathered nothing for them"
    net.check()


def test_a_hook_that_brings_a_gradient_back_moves_nothing() -> None:
    """A fully frozen parameter that gets a gradient after the hook has looked is put back."""
    net = full_network()
    optimizer = net.protect(torch.optim.Adam(net.task_parameters("new"), lr=0.1))
    weight = net.backbone[0].weight

    def disturb(*_: object) -> None:
        weight.grad = torch.ones_like(weight)

    optimizer.register_step_pre_hook(disturb)
    before = bits(weight)
    net.anneal(0.5)
    net(torch.randn(4, 6), "new").sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].any(), "the optimizer did move it"
    assert bits(weight) == before
    net.check()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_other_hooks_cannot_break_the_law(make: type[torch.optim.Optimizer], before: bool) -> None:
    """Hooks of others may change gradients after the guard has looked at them, or clear them before it looks again."""
    for net in (prepared()[0], full_network()):
        x = torch.randn(4, *net.example_shape[1:])
        task = net.task_names[0]
        promised = net.eval()(x, task).detach()
        net.train()
        optimizer = make(net.parameters(), lr=0.1)  # type: ignore[call-arg]

        def disturb(optimizer: torch.optim.Optimizer, *_: object) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.ones_like(parameter)

        if before:
            optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
        net.protect(optimizer)
        optimizer.register_step_pre_hook(disturb)
        if not before:
            optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
        for _ in range(3):
            net.anneal(0.5)
            loss_of(net, net.task_names[-1], x, torch.zeros(4, dtype=torch.int64)).backward()
            optimizer.step()
        net.check()
        assert torch.equal(net.eval()(x, task), promised)


def test_a_step_leaves_the_gradients_of_other_optimizers_alone() -> None:
    net = full_network()
    own = net.protect(torch.optim.Adam(net.task_parameters("new", new_only=True)))
    shared = net.protect(torch.optim.Adam(net.backbone.parameters()))
    net.anneal(0.5)
    net(torch.randn(4, 6), "new").sum().backward()
    own.step()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())
    shared.step()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    net.check()


def test_asking_in_inference_mode_does_not_spoil_training() -> None:
    net = full_network()
    with torch.inference_mode():
        net.regularization()
    net.train()
    net.regularization().backward()
    assert net.tasks[-1].embedding.grad is not None


def test_moving_a_network_hides_no_change_and_restore_still_helps() -> None:
    net = full_network()
    x = torch.randn(4, 6)
    promised = net.eval()(x, "old").detach()
    with torch.no_grad():
        net.backbone[0].weight.add_(1.0)
    with pytest.raises(GuaranteeError, match="restore"):
        net.cpu()
    net.restore()
    assert torch.equal(net.cpu()(x, "old"), promised)


def test_protecting_twice_is_protecting_once() -> None:
    net, _, _ = prepared()
    optimizer = torch.optim.Adam(net.task_parameters("new"))
    assert net.protect(optimizer) is optimizer
    hooks = len(optimizer._optimizer_step_post_hooks)
    assert net.protect(optimizer) is optimizer
    assert len(optimizer._optimizer_step_post_hooks) == hooks == 1


def test_a_foreign_optimizer_is_refused() -> None:
    net, _, _ = prepared()
    with pytest.raises(InputError, match="holds no parameter of the network"):
        net.protect(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=50.0), lambda p: torch.optim.Adam(p, lr=5.0)])
def test_the_embedding_stays_within_its_bounds(make: object) -> None:
    net, x, y = prepared()
    train(net, "new", x, y, net.protect(make(net.task_parameters("new"))), steps=3)  # type: ignore[operator]
    assert net.tasks[-1].embedding.abs().max() <= 6


@pytest.mark.parametrize("kind", ["mlp", "conv-bn"])
def test_without_protection_the_check_speaks_up(kind: str, tmp_path: object) -> None:
    net, x, y = prepared(kind)
    promised = logits(net, x, "old")
    train(net, "new", x, y, torch.optim.SGD(net.task_parameters("new"), lr=0.1), steps=2)
    for action in (net.check, lambda: net.save(f"{tmp_path}/net.hat")):
        with pytest.raises(GuaranteeError, match=r"protected entries have moved in backbone\..*weight"):
            action()
    assert net.task_in_training == "new"
    with pytest.warns(UserWarning, match="other than a step of a protected optimizer"):
        net.consolidate("new")
    assert torch.equal(logits(net, x, "old"), promised)


def test_a_touched_head_or_mask_is_named() -> None:
    net, _, _ = prepared()
    with torch.no_grad():
        net.tasks[0].head.bias.add_(1)
    with pytest.raises(GuaranteeError, match="task old"):
        net.check()


def test_free_entries_may_be_changed_by_hand() -> None:
    net, x, _ = prepared()
    promised = logits(net, x, "old")
    with torch.no_grad():
        for name, held in net.protected().items():
            if name.startswith("backbone."):
                net.get_parameter(name)[~held] = 7.0
    net.check()
    assert torch.equal(logits(net, x, "old"), promised)


@pytest.mark.parametrize("soft", [False, True])
def test_a_shield_conditions_as_equation_2_does(soft: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    out, inp = (torch.rand(size, generator=generator) for size in (7, 5))
    out, inp = (torch.where(side > 0.6, 1.0, side) if soft else (side > 0.5) for side in (out, inp))
    weight, gradient = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    shield = FrozenEntries.of(weight, torch.minimum(out[:, None], inp[None, :]))
    assert shield is not None
    conditioned = gradient.clone()
    shield.condition(conditioned)
    torch.testing.assert_close(conditioned, condition_gradient(gradient, out[:, None].float(), inp[None, :].float()))


def test_a_step_that_fails_leaves_nothing_to_the_next() -> None:
    def moved(fails: bool) -> torch.Tensor:
        torch.manual_seed(0)
        net = HATNetwork(Mixing(never), torch.zeros(1, 6), conditioning=Adaptive())
        x = torch.randn(5, 6)
        learn_batch(net, "a", x)
        net.add_task("b", 2, generator=torch.Generator().manual_seed(1))
        optimizer = net.protect(torch.optim.Adam(net.task_parameters("b"), lr=0.1))
        net.train()(x, "b").sum().backward()
        if fails:
            optimizer.param_groups[0]["betas"] = None
            with pytest.raises(TypeError):
                optimizer.step()
            optimizer.param_groups[0]["betas"] = (0.9, 0.999)
            optimizer.state.clear()
        optimizer.step()
        return net.backbone.out.weight.detach().clone()

    assert torch.equal(moved(True), moved(False))


@pytest.mark.parametrize("shape", [(300, 1000), (5,), (0, 3), (2, 3, 4, 4), ()])
def test_the_digest_of_frozen_entries_is_that_of_where_they_are_and_of_their_values(shape: tuple[int, ...]) -> None:
    parameter, frozen = torch.randn(shape), torch.rand(shape) < 0.5
    expected = digest({"held": frozen, "values": parameter[frozen]})
    assert digest_of_entries(parameter, frozen) == expected
    assert digest_of_entries(parameter, torch.zeros_like(frozen)) != expected or not frozen.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite_are_found_anywhere(value: float, dtype: torch.dtype) -> None:
    backbone = torch.nn.Linear(40, 30).to(dtype)
    assert find_nonfinite(backbone) == []
    for index in (0, 617, 1199):
        with torch.no_grad():
            backbone.weight.view(-1)[index] = value
        assert find_nonfinite(backbone) == ["backbone.weight"]
        torch.nn.init.zeros_(backbone.weight)


@pytest.mark.parametrize("change", ["step", "forget", "grow", "load", "put back", "restore", "parent"])
def test_what_is_asked_within_one_block_of_autocast_is_answered_with_the_weights_of_now(change: str) -> None:
    """Torch keeps converted weights until the outermost block ends, whatever is written to the weights meanwhile."""
    layers = (torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU())
    net = HATNetwork(torch.nn.Sequential(*layers), torch.zeros(1, 6))
    x = torch.randn(5, 6)
    learn_batch(net, "a", x)
    learn_batch(net, "b", x)
    other = {name: value.clone() for name, value in net.state_dict().items()}
    net.add_task("c", 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("c"), lr=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            net.train()
            net(x, "c").square().sum().backward()
            if change == "step":
                optimizer.step()
        if change != "step":
            optimizer.step()
        net.consolidate("c")
        net(x, "c").sum()
        if change == "forget":
            net.forget("b", generator=torch.Generator().manual_seed(3))
        elif change == "grow":
            net.grow({group.name: 2 for group in net.units.groups})
        elif change == "load":
            net.forget("c")
            net.load_state_dict(other)
        elif change == "parent":
            net.forget("c")
            parent = torch.nn.ModuleDict({"net": net})
            parent.load_state_dict({f"net.{name}": value for name, value in other.items()})
        elif change in ("put back", "restore"):
            with torch.no_grad():
                net.backbone[0].weight.add_(1.0)
            net.backbone(x).sum()
            if change == "restore":
                net.restore()
        names = net.task_names
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="something other than a step")
            within = [net.eval()(x, name) for name in names]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(net(x, name), answer) for name, answer in zip(names, within, strict=True))
