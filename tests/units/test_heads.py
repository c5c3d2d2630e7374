"""Heads of nn.MultiheadAttention as units: law, leak test, extraction, copies and files, and what soft gates do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import hatrack
from hatrack import Conditioning, Growth, HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.compact import CompactAttention
from hatrack.units import Role, heads_always_on
from support.helpers import CLASSES, assert_poison_harmless, learn, logits, mode, open_task
from support.marks import slow_but

INPUTS, WIDTH, TOKENS = 6, 8, 4
Run = Callable[[Any, Tensor], Tensor]


class Tokens(nn.Module):
    """A dense layer, an attention, and a layer that reads what it returns."""

    def __init__(self, attention: nn.Module, run: Run, features: int) -> None:
        super().__init__()
        self.lift, self.other, self.attention = nn.Linear(INPUTS, WIDTH), nn.Linear(INPUTS, 6), attention
        self.last, self.run = nn.Linear(features, 10), run

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.run(self, x)))


class Own(nn.MultiheadAttention):
    """A class of one's own that computes as torch's does."""


def plain(m: Any, x: Tensor) -> Tensor:
    h = m.lift(x)
    return m.attention(h, h, h, need_weights=False)[0].mean(1)


def across(m: Any, x: Tensor) -> Tensor:
    y = m.other(x)
    return m.attention(m.lift(x), value=y, key=y)[0].mean(1)


def sequence_first(m: Any, x: Tensor) -> Tensor:
    h = m.lift(x).transpose(0, 1)
    return m.attention(h, h, h)[0].mean(0)


def with_weights(m: Any, x: Tensor) -> Tensor:
    h = m.lift(x)
    attended, shares = m.attention(h, h, h)
    return torch.cat([attended.mean(1), shares.flatten(1)], -1)


def with_weights_of_heads(m: Any, x: Tensor) -> Tensor:
    h = m.lift(x)
    attended, shares = m.attention(h, h, h, attn_mask=slopes(m, x), average_attn_weights=False)
    return torch.cat([attended.mean(1), shares[..., 0].flatten(1)], -1)


def masked(m: Any, x: Tensor) -> Tensor:
    h, causal = m.lift(x), torch.ones(TOKENS, TOKENS).triu(1).bool()
    padding = torch.arange(TOKENS).expand(len(x), -1) > 2
    return m.attention(h, h, h, key_padding_mask=padding, attn_mask=causal, need_weights=False)[0].mean(1)


def causal(m: Any, x: Tensor) -> Tensor:
    h, mask = m.lift(x), nn.Transformer.generate_square_subsequent_mask(TOKENS)
    return m.attention(h, h, h, attn_mask=mask, is_causal=True, need_weights=False)[0].mean(1)


def masked_by_head(m: Any, x: Tensor) -> Tensor:
    h = m.lift(x)
    return m.attention(h, h, h, attn_mask=slopes(m, x), need_weights=False)[0].mean(1)


def slopes(m: Any, x: Tensor) -> Tensor:
    """A mask for every sample and head, of which none is like another."""
    heads = torch.arange(1.0, m.attention.num_heads + 1).view(-1, 1, 1)
    return (heads * torch.arange(TOKENS)).expand(-1, TOKENS, -1).repeat(len(x), 1, 1)


def twice(m: Any, x: Tensor) -> Tensor:
    h = m.lift(x)
    h = h + m.attention(h, h, h, need_weights=False)[0]
    return (h + m.attention(h, h, h, need_weights=False)[0]).mean(1)


def encoder(m: Any, x: Tensor) -> Tensor:
    return m.attention(m.lift(x)).mean(1)


def decoder(m: Any, x: Tensor) -> Tensor:
    return m.attention(m.lift(x), F.pad(m.other(x), (0, 2))).mean(1)


def fused(heads: int = 4, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(WIDTH, heads, **{"batch_first": True, **settings})


def normed() -> nn.Module:
    return parametrizations.weight_norm(nn.MultiheadAttention(WIDTH, 4, batch_first=True), "in_proj_weight")


LAYER = {"nhead": 4, "dim_feedforward": 10, "batch_first": True}
CASES: dict[str, tuple[Callable[[], nn.Module], Run, int]] = {
    "plain": (fused(dropout=0.1), plain, WIDTH),
    "keys and values of other widths": (fused(kdim=6, vdim=6), across, WIDTH),
    "sequence first, no bias": (fused(batch_first=False, bias=False), sequence_first, WIDTH),
    "further keys": (fused(add_bias_kv=True, add_zero_attn=True), masked, WIDTH),
    "weights": (fused(), with_weights, WIDTH + TOKENS**2),
    "weights of heads": (fused(add_bias_kv=True), with_weights_of_heads, WIDTH + 4 * TOKENS),
    "masked": (fused(), masked, WIDTH),
    "causal": (fused(), causal, WIDTH),
    "masked by head": (fused(), masked_by_head, WIDTH),
    "called twice": (fused(), twice, WIDTH),
    "a head": (fused(1), plain, WIDTH),
    "a head, keys and values of other widths": (fused(1, kdim=6, vdim=6, add_bias_kv=True), across, WIDTH),
    "a class of one's own": (lambda: Own(WIDTH, 4, batch_first=True), plain, WIDTH),
    "weight norm": (normed, plain, WIDTH),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(WIDTH, **LAYER), encoder, WIDTH),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(WIDTH, **LAYER), decoder, WIDTH),
}
QUICK = ("keys and values of other widths", "a head")


def build(name: str) -> nn.Module:
    attention, run, features = CASES[name]
    torch.manual_seed(0)
    return Tokens(attention(), run, features)


def attach(name: str, **settings: Any) -> HATNetwork:
    return HATNetwork(build(name), torch.zeros(2, TOKENS, INPUTS), **settings)


def inside(net: HATNetwork) -> dict[str, Tensor]:
    """The channels of every fused attention, by its name."""
    return dict(net.masking.graph.heads)


@pytest.mark.parametrize("name", slow_but(QUICK, CASES))
def test_old_tasks_keep_every_bit_and_free_entries_may_hold_anything(name: str) -> None:
    net = attach(name)
    assert inside(net), "no attention has heads that are units"
    samples, promised = {}, {}
    for number in range(2):
        task = f"task {number}"
        before = {key: value.detach().clone() for key, value in net.backbone.named_parameters()}
        samples[task], _ = learn(net, task, number, steps=3)
        moved = [key for key, value in net.backbone.named_parameters() if not torch.equal(value, before[key])]
        assert any("attention" in key for key in moved), "nothing of the attention is trained any more"
        promised[task] = logits(net, samples[task], task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
    assert_poison_harmless(net, samples)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_belongs_to_free_heads_may_be_no_number(name: str) -> None:
    net = attach(name)
    open_task(net, "a", 1)
    net.consolidate("a")
    x = torch.randn(3, TOKENS, INPUTS)
    kept, used = logits(net, x, "a"), torch.cat([net.tasks[0].mask, torch.tensor([True])])
    for part, channels in inside(net).items():
        module = net.backbone.get_submodule(part)
        scores, values = ~used[channels]
        assert scores.any()
        assert values.any()
        rows = torch.cat([scores, scores, values])
        if module.in_proj_weight is None:
            own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            for weight, free in zip(own, (scores, scores, values), strict=True):
                weight[free] = torch.nan
        elif isinstance(module.in_proj_weight, nn.Parameter):  # and not computed from others
            module.in_proj_weight[rows] = torch.nan
        if module.in_proj_bias is not None:
            module.in_proj_bias[rows] = torch.nan
        if module.bias_k is not None:
            module.bias_k[..., scores], module.bias_v[..., values] = torch.nan, torch.inf
        module.out_proj.weight[:, values] = torch.inf
    assert torch.equal(logits(net, x, "a"), kept)


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_extracted_with_its_heads_alone(name: str) -> None:
    net = attach(name)
    open_task(net, "a", 1, share=0.5)
    net.consolidate("a")
    x = torch.randn(8, TOKENS, INPUTS)
    small = net.extract("a", x)
    torch.testing.assert_close(small(x), logits(net, x, "a"), rtol=1e-5, atol=1e-6)
    inner = [group.name for group in net.units.groups if group.name.rpartition(".")[2] in ("heads", "scores", "values")]
    if name == "a class of one's own":
        assert set(inner) <= small.summary.whole.keys()
        return
    assert not small.summary.whole, small.summary.whole
    compact = [module for module in small.backbone.modules() if isinstance(module, CompactAttention)]
    assert len(compact) == len(inside(net))
    assert all(len(each.values) == WIDTH // 2 for each in compact)
    assert all(small.summary.units[group] * 2 == small.summary.full_units[group] for group in inner)


class Pair(nn.Module):
    """Two attentions that have weights in common, and heads of their own."""

    def __init__(self, common: str) -> None:
        super().__init__()
        self.first, self.second = fused()(), fused()()
        setattr(self.second, common, getattr(self.first, common))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x, x, x)[0])
        return self.second(x, x, x)[0]


@pytest.mark.parametrize("common", slow_but(["out_proj"], ["in_proj_weight", "out_proj"]))
def test_attentions_with_weights_in_common_have_heads_of_their_own(common: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Tokens(Pair(common), encoder, WIDTH), torch.zeros(2, TOKENS, INPUTS))
    names = [group.name for group in net.units.groups]
    assert {"attention.first.heads", "attention.second.heads"} <= set(names)
    x, _ = learn(net, "a")
    kept = logits(net, x, "a")
    learn(net, "b", 1)
    assert torch.equal(logits(net, x, "a"), kept)
    assert_poison_harmless(net, {"a": x})
    small = net.extract("a", x)
    assert not small.summary.whole
    torch.testing.assert_close(small(x), kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "a head", "encoder layer"])
def test_detached_it_is_what_it_was(name: str) -> None:
    x, backbone = torch.randn(3, TOKENS, INPUTS), build(name).eval()
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        before = backbone(x)
        net = HATNetwork(backbone, x)
        net.add_task("a", 2)
        net.tasks[0].embedding.fill_(1.0)
        torch.testing.assert_close(net.eval()(x, "a"), net.tasks[0].head(before))
        assert not [key for key in net.state_dict() if "masking" in key]
        net.detach()
        assert torch.equal(backbone(x), before)
    for module in backbone.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert backbone.state_dict().keys() == state.keys()


def test_one_unit_per_head_decides_on_all_that_belongs_to_it() -> None:
    net = attach("keys and values of other widths")
    graph = net.units
    assert graph.group("attention.heads").size == 4
    assert graph.group("attention.heads").readers == ("attention",)
    for own in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
        assert graph.roles[f"backbone.attention.{own}"] is Role.MIXING
    assert graph.roles["backbone.attention.in_proj_bias"] is Role.PER_UNIT
    for number in range(2):
        net.add_task(f"{number}", 2)
        with torch.no_grad():
            embedding = net.tasks[number].embedding.fill_(1.0)
            embedding[graph.group("attention.heads").span] = -1.0
            embedding[graph.group("attention.heads").start + number] = 1.0
        net.consolidate(f"{number}")
    protected, frozen = net.protected(), torch.arange(WIDTH) < 4
    for own in "qkv":
        assert torch.equal(protected[f"backbone.attention.{own}_proj_weight"].all(1), frozen), (
            "two of four heads are used, with two channels each"
        )
    assert torch.equal(protected["backbone.attention.in_proj_bias"], frozen.repeat(3))
    assert torch.equal(protected["backbone.attention.out_proj.weight"].all(0), frozen)
    assert not protected["backbone.attention.q_proj_weight"][~frozen].any()


def test_a_single_head_has_units_for_its_channels() -> None:
    units = attach("a head, keys and values of other widths").units
    sizes = {group.name: group.size for group in units.groups}
    assert sizes["attention.scores"] == sizes["attention.values"] == WIDTH
    assert units.roles["backbone.attention.bias_k"] is units.roles["backbone.attention.bias_v"] is Role.PER_UNIT


@pytest.mark.parametrize("heads", [4, 1])
def test_soft_gates_are_those_of_the_heads_results(heads: int) -> None:
    net = attach("plain" if heads > 1 else "a head")
    net.add_task("a", 2)
    net.train()
    net.backbone.attention.dropout = 0.0
    net.anneal(0.0)
    x = torch.randn(3, TOKENS, INPUTS)
    found = net(x, "a")
    gates = torch.sigmoid(net.tasks[0].embedding / 400.0)
    of = {group.name: gates[group.span] for group in net.units.groups}
    m, width = net.backbone, WIDTH // heads
    h = m.lift(x) * of["lift"]
    q, k, v = F.linear(h, m.attention.in_proj_weight, m.attention.in_proj_bias).chunk(3, -1)
    values = of["attention.heads"].repeat_interleave(width) if heads > 1 else of["attention.values"]
    q = q if heads > 1 else q * of["attention.scores"]
    q, k, v = (each.unflatten(-1, (heads, width)).transpose(1, 2) for each in (q, k, v))
    attended = (torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(width), -1) @ v).transpose(1, 2).flatten(2)
    h = m.attention.out_proj(attended * values) * of["attention"]
    features = torch.relu(m.last(h.mean(1))) * of["last"]
    torch.testing.assert_close(found, net.tasks[0].head(features))
    found.sum().backward()
    gradient = net.tasks[0].embedding.grad
    assert all(bool((gradient[group.span] != 0).all()) for group in net.units.groups if "attention." in group.name)


@pytest.mark.parametrize("name", ["plain", "weights", "masked by head", "a head", "further keys"])
@pytest.mark.parametrize("hard", [True, False])
def test_samples_of_several_tasks_go_through_together(name: str, hard: bool) -> None:
    net = attach(name, hard=hard)
    for number, task in enumerate(("a", "b")):
        open_task(net, task, number, share=0.5)
        net.consolidate(task)
    assert net.masking.mixes_samples()
    x, order = torch.randn(6, TOKENS, INPUTS), [0, 1, 1, 0, 1, 1]
    with mode(net, False), torch.no_grad():
        mixed = net(x, [("a", "b")[number] for number in order])
        alone = torch.stack([net(x, task) for task in ("a", "b")])
    torch.testing.assert_close(mixed, alone[order, torch.arange(6)], rtol=1e-5, atol=1e-5)


def test_what_does_not_count_samples_first_is_answered_task_by_task() -> None:
    net = attach("sequence first, no bias")
    for number, task in enumerate(("a", "b")):
        learn(net, task, number)
    assert not net.masking.mixes_samples()
    x = torch.randn(TOKENS, TOKENS, INPUTS)  # as many samples as tokens
    mixed = net.eval()(x, ["a", "b"] * 2)
    torch.testing.assert_close(mixed[1], logits(net, x, "b")[1])


@pytest.mark.slow
def test_copies_and_files_say_the_same_and_learn_on(tmp_path: Path) -> None:
    net = attach("encoder layer", conditioning=Conditioning.PER_TASK)
    x, _ = learn(net, "a")
    kept = logits(net, x, "a")
    net.save(tmp_path / "net.hat")
    for again in (copy.deepcopy(net), hatrack.load(tmp_path / "net.hat", build("encoder layer"))):
        assert torch.equal(logits(again, x, "a"), kept)
        learn(again, "b", 1)
        assert torch.equal(logits(again, x, "a"), kept)
    assert net.task_names == ("a",)


def test_unlearning_frees_the_heads_of_a_task() -> None:
    net = attach("plain")
    x, _ = learn(net, "a")
    learn(net, "b", 1)
    kept, used = logits(net, x, "a"), net.capacity().groups["attention.heads"]
    net.forget("b", generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(net, x, "a"), kept)
    assert net.capacity().groups["attention.heads"] < used


def test_heads_cannot_be_added() -> None:
    net = attach("plain", growth=Growth(threshold=1.0))
    with pytest.raises(InputError, match=r"cannot be widened \(attention.heads by 1\): .*'attention.heads'.* no layer"):
        net.grow({"attention.heads": 1})
    x, _ = learn(net, "a")
    kept = logits(net, x, "a")
    net.add_task("b", CLASSES)  # which widens the last layer
    assert net.units.group("last").size > 10
    assert net.units.group("attention.heads").size == 4
    torch.testing.assert_close(logits(net, x, "a"), kept)


# ------------------------------------------------------------------------------------------------------------ untrained


def untrained_but(network: nn.Module, *trained: str) -> nn.Module:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    return network


@pytest.mark.parametrize(
    ("trained", "gated"),
    [
        (("in_proj", "last"), True),
        (("in_proj_bias", "out_proj", "last"), False),
        (("last",), False),
    ],
)
def test_heads_that_untrained_weights_make_are_ungated(trained: tuple[str, ...], gated: bool) -> None:
    backbone = untrained_but(build("plain"), *trained)
    net = HATNetwork(backbone, torch.zeros(2, TOKENS, INPUTS))
    assert ("attention.heads" in [group.name for group in net.units.groups]) == gated
    assert len(net.masking.attachment.attention) == int(gated)
    x, _ = learn(net, "a")
    kept = logits(net, x, "a")
    learn(net, "b", 1)
    assert torch.equal(logits(net, x, "a"), kept)
    assert_poison_harmless(net, {"a": x})


def test_of_weights_apart_one_untrained_one_is_enough() -> None:
    backbone = build("keys and values of other widths")
    backbone.attention.v_proj_weight.requires_grad_(False)
    net = HATNetwork(backbone, torch.zeros(2, TOKENS, INPUTS))
    assert "attention.heads" not in [group.name for group in net.units.groups]
    assert net.units.roles["backbone.attention.in_proj_bias"] is Role.WHOLE


def test_an_encoder_layer_of_which_attention_alone_is_trained_takes_no_way_past_it() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(INPUTS, 2, 10, batch_first=True)
    net = HATNetwork(untrained_but(layer, "in_proj"), torch.zeros(2, TOKENS, INPUTS))
    assert [(group.name, group.size) for group in net.units.groups] == [("self_attn.heads", 2)]
    for number, task in enumerate(("a", "b")):
        net.add_task(task, 2)
        with torch.no_grad():
            net.tasks[number].embedding.copy_(torch.tensor([1.0, -1.0])[[number, 1 - number]])
        net.consolidate(task)
    x = torch.randn(3, TOKENS, INPUTS)
    with torch.no_grad(), mode(net, False):
        for task, head in zip(("a", "b"), (0, 1), strict=True):
            own = copy.deepcopy(net).detach().eval()
            own.self_attn.out_proj.weight[:, 3 * (1 - head) : 3 * (2 - head)] = 0.0
            torch.testing.assert_close(net(x, task), net.tasks[head].head(own(x)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_refused() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(INPUTS, 2, 10, batch_first=True)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = untrained_but(nn.TransformerEncoder(layer, 1), "in_proj")

        def forward(self, x: Tensor) -> Tensor:
            padding = (torch.arange(TOKENS) > 2).expand(len(x), -1)
            return self.encoder(x, src_key_padding_mask=padding).mean(1)

    with pytest.raises(UnsupportedError, match="build it with enable_nested_tensor=False"):
        HATNetwork(Padded(), torch.zeros(2, TOKENS, INPUTS))


# ----------------------------------------------------------------------------------------------------------- elsewhere


def test_masks_of_weights_know_of_no_heads() -> None:
    net = WeightMaskedNetwork(build("plain"), torch.zeros(2, TOKENS, INPUTS), growth=Growth())
    assert [group.name for group in net.masking.units_now().groups] == ["lift", "attention", "last"]
    assert type(net.backbone.attention).forward is nn.MultiheadAttention.forward
    assert "forward" not in vars(net.backbone.attention)


def test_heads_can_stay_always_on() -> None:
    net = attach("plain", rules={nn.MultiheadAttention: heads_always_on})
    assert [group.name for group in net.units.groups] == ["lift", "attention", "last"]
    assert not net.masking.graph.heads
    x, _ = learn(net, "a")
    before = net.backbone.attention.in_proj_bias.detach().clone()
    learn(net, "b", 1)
    assert torch.equal(net.backbone.attention.in_proj_bias, before)
    assert_poison_harmless(net, {"a": x})
