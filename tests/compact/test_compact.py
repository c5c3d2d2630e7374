"""Extracted tasks: smaller, plain, and what the gated network says; over the zoo, and against torch's own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import BatchNorms, HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.compact import Clear, CompactAttention, CompactGroupNorm, CompactLayerNorm, CompactRMSNorm
from hatrack.gating.attachment import without_gates
from support.architectures import ARCHITECTURES, a_task, assert_close
from support.helpers import NETS, attach, learn, logits, open_task
from support.marks import slow_but
from support.zoo import CHEAP

STAYS_WHOLE = {
    "vit-by-hand": 2,  # width // heads is written down in forward
    "vit-scaled-dot-product": 2,
    "gpt": 2,
    "convnext": 1,  # a layer norm of its own, which counts what it gets
    "big-transfer": 2,  # weights are standardised over what they read
    "grouped-dilated-transposed": 3,  # groups of a convolution need to be of one size
    "swin": 3,
    "shufflenet-v2": 3,  # channels are split in halves
    "cbam-blur-pool": 1,  # a filter for a fixed number of channels
    "splines": 1,  # a view into a fixed number of bases
}
"""How many groups of an architecture cannot be cut; all of the others'."""


@pytest.mark.parametrize("name", slow_but(CHEAP, ARCHITECTURES))
def test_it_says_what_the_gated_network_says_and_is_smaller(name: str) -> None:
    net, x, others = a_task(name)
    before = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    expected = logits(net, others, "task")
    compact = net.extract("task", x)
    summary = compact.summary
    assert summary is not None
    with torch.no_grad():
        assert_close(compact(others), expected)
    assert len(summary.whole) == STAYS_WHOLE.get(name, 0), summary.whole
    assert all(summary.whole.values())
    for group, mask in net.masks("task").items():
        assert summary.units[group] == (len(mask) if group in summary.whole else int(mask.sum()))
    if not summary.whole:
        assert summary.parameters < 0.75 * summary.full_parameters
        assert summary.flops < 0.6 * summary.full_flops
    assert summary.parameters == sum(parameter.numel() for parameter in compact.parameters())
    parts = list(compact.modules())
    assert not any(isinstance(part, (nn.Dropout, nn.Dropout2d, HATNetwork)) for part in parts)
    hooks = [hook for part in parts for hook in part._forward_pre_hooks.values()]
    assert not hooks or summary.whole
    assert all(isinstance(hook.__self__, Clear) for hook in hooks)
    assert torch.equal(logits(net, others, "task"), expected), "extraction changed the network"
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())


def test_units_of_a_chain_by_hand() -> None:
    torch.manual_seed(0)
    net = HATNetwork(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 5), nn.ReLU()), torch.zeros(1, 3)
    )
    net.add_task("t", 2, embedding=torch.tensor([1.0, -1, 1, -1, -1, -1, 1, 1, 1]))
    net.consolidate("t")
    compact = net.extract("t")
    first, _, dropout, second, _ = compact.backbone  # type: ignore[misc]
    assert torch.equal(first.weight, net.backbone[0].weight[[0, 2]])
    assert torch.equal(second.weight, net.backbone[3].weight[2:][:, [0, 2]])
    assert torch.equal(compact.head.weight, net.tasks[0].head.weight[:, 2:])
    assert isinstance(dropout, nn.Identity)
    assert compact.summary is not None
    assert compact.summary.parameters == (6 + 2) + (6 + 3) + (6 + 2)
    assert compact.summary.full_parameters == (12 + 4) + (20 + 5) + (10 + 2)
    assert (compact.summary.flops, compact.summary.full_flops) == (2 * (6 + 6 + 6), 2 * (12 + 20 + 10))
    assert "0: 2 of 4 units" in str(compact.summary)


@pytest.mark.slow
def test_several_tasks_with_norms_of_their_own_and_in_a_grown_network() -> None:
    net = attach("conv-bn")
    samples = {task: learn(net, task, seed)[0] for seed, task in enumerate(("a", "b"))}
    net.grow({"0": 6})
    samples["c"] = learn(net, "c", 2)[0]
    for task, x in samples.items():
        compact = net.extract(task)
        assert_close(compact(x), logits(net, x, task))
        assert compact.summary is not None
        assert compact.summary.units["0"] == int(net.masks(task)["0"].sum())


@pytest.mark.parametrize("norms", BatchNorms)
def test_shared_norms_and_gated_inputs(norms: BatchNorms) -> None:
    torch.manual_seed(0)
    net = HATNetwork(NETS["mlp"].build(), torch.zeros(2, 1, 6), gate_inputs=True, batch_norms=norms)
    for number in range(2):
        x, _ = learn(net, f"t{number}", number)
    compact = net.extract("t1")
    assert_close(compact(x), logits(net, x, "t1"))
    assert compact.summary is not None
    assert list(compact.summary.whole) == (["inputs"] if not net.masks("t1")["inputs"].all() else [])


def test_in_double_precision_it_agrees_to_double_precision() -> None:
    net = attach("residual", dtype=torch.float64)
    x, _ = learn(net, "t")
    assert_close(net.extract("t")(x), logits(net, x, "t"), 1e-13)


def test_what_cannot_be_extracted_says_why() -> None:
    net = attach("mlp")
    open_task(net, "open")
    with pytest.raises(InputError, match="still in training"):
        net.extract("open")
    soft = attach("mlp", hard=False)
    learn(soft, "t")
    with pytest.raises(UnsupportedError, match="soft"):
        soft.extract("t")


@pytest.mark.parametrize("shape", [(10,), (3, 10), (10, 4, 5)])
def test_norms_are_torchs_with_zeros_for_what_is_missing(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    axis = -2 if len(shape) == 2 and shape[0] == 10 else (-1 if shape[-1] == 10 else -3)
    kept = torch.tensor([0, 2, 3, 7])
    x = 3 + torch.randn(4, *shape, dtype=torch.float64)
    cleared = torch.zeros_like(x).index_copy(axis, kept, x.index_select(axis, kept))
    weight, bias = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    parts = [each.index_select(axis, kept) for each in (weight, bias)]
    count = weight.numel()
    missing = count // 10 * 6
    expected = F.layer_norm(cleared, shape, weight, bias, 1e-5).index_select(axis, kept)
    found = CompactLayerNorm(len(shape), count, missing, 1e-5, *parts)(x.index_select(axis, kept))
    torch.testing.assert_close(found, expected)
    expected = F.rms_norm(cleared, shape, weight, None).index_select(axis, kept)
    torch.testing.assert_close(CompactRMSNorm(len(shape), count, None, parts[0])(x.index_select(axis, kept)), expected)


@pytest.mark.parametrize("shape", [(4, 12), (4, 12, 5), (4, 12, 3, 5)])
def test_group_norm_is_torchs_with_zeros_for_what_is_missing(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kept = torch.tensor([0, 1, 2, 5, 9])  # nothing is left of one of the groups 0–2, 3–5, 6–8, 9–11
    x = 3 + torch.randn(shape, dtype=torch.float64)
    cleared = torch.zeros_like(x).index_copy(1, kept, x[:, kept])
    weight, bias = torch.randn(2, 12, dtype=torch.float64)
    norm = CompactGroupNorm(kept // 3, 4, 3, 1e-5, weight[kept], bias[kept])
    torch.testing.assert_close(norm(x[:, kept]), F.group_norm(cleared, 4, weight, bias, 1e-5)[:, kept])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_attention_answers_what_torchs_answers(batch_first: bool, masked: bool) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(12, 3, batch_first=batch_first, dtype=torch.float64)
    for parameter in whole.parameters():
        parameter.normal_()
    first, second, third = whole.in_proj_weight.chunk(3)
    compact = CompactAttention(
        (first, second, third), whole.in_proj_bias, copy.deepcopy(whole.out_proj), 3, batch_first
    )
    query, key = torch.randn(4, 5, 12, dtype=torch.float64), torch.randn(4, 7, 12, dtype=torch.float64)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    masks = {}
    if masked:
        padding = torch.zeros(4, 7, dtype=torch.bool)
        padding[:, 5:] = True
        masks = {"key_padding_mask": padding, "attn_mask": torch.ones(5, 7).triu(3).bool()}
    for average in (True, False):
        expected = whole(query, key, key, average_attn_weights=average, **masks)
        found = compact(query, key, key, average_attn_weights=average, **masks)
        torch.testing.assert_close(found, expected)
    assert compact(query, key, key, need_weights=False)[1] is None


# ------------------------------------------------------------------------------------------------- many tasks at once


@pytest.mark.parametrize("kind", slow_but(["mlp"], ["mlp", "conv-bn"]))
@pytest.mark.parametrize("norms", list(BatchNorms))
def test_logits_of_tasks_are_those_of_the_gated_network_and_stay_to_the_bit(kind: str, norms: BatchNorms) -> None:
    torch.manual_seed(0)
    net = HATNetwork(NETS[kind].build(), torch.zeros(2, *NETS[kind].shape), s_max=100.0, batch_norms=norms)
    samples: dict[str, Tensor] = {}
    promised: dict[str, Tensor] = {}
    for number in range(4):
        task = f"task {number}"
        samples[task] = learn(net, task, number)[0]
        found = net.logits_of_tasks(dict(reversed(samples.items())), batch_size=7)
        assert list(found) == list(reversed(samples))
        for name, said in found.items():
            assert torch.equal(said, promised.setdefault(name, said)), name
            assert_close(said, logits(net, samples[name], name))
    assert torch.equal(net.logits_of_tasks({"task 1": samples["task 1"]}, batch_size=7)["task 1"], promised["task 1"])
    assert net.training


def test_logits_of_tasks_are_those_of_weights_that_something_else_has_moved() -> None:
    net = attach("mlp")
    x, _ = learn(net, "first")
    before = net.logits_of_tasks({"first": x})["first"]
    name, held = next((name, held) for name, held in net.protected().items() if name == "backbone.4.weight")
    with torch.no_grad():
        net.get_parameter(name)[held] += 0.1
    with pytest.warns(UserWarning, match=r"changed frozen entries of backbone\.4\.weight"):
        assert torch.equal(net.logits_of_tasks({"first": x})["first"], before)


def test_logits_of_tasks_with_soft_masks_and_of_tasks_in_training() -> None:
    soft = attach("mlp", hard=False)
    x, _ = learn(soft, "first")
    assert torch.equal(soft.logits_of_tasks({"first": x})["first"], logits(soft, x, "first"))
    soft.add_task("open", 2)
    with pytest.raises(InputError, match="still in training"):
        soft.logits_of_tasks({"open": x})


@pytest.mark.parametrize("kind", ["mlp", "conv-bn"])
def test_a_backbone_without_gates_shares_its_weights_and_nothing_else(kind: str) -> None:
    net = attach(kind)
    x, _ = learn(net, "first")
    promised, plain = logits(net, x, "first"), without_gates(net.backbone)
    assert {id(p) for p in plain.parameters()} == {id(p) for p in net.backbone.parameters()}
    plain.eval()
    alone = plain(x)
    assert torch.equal(logits(net, x, "first"), promised)
    assert net.backbone.training
    detached = net.detach().eval()
    assert torch.equal(detached(x), alone)
    HATNetwork(plain, x[:2])


def test_a_backbone_that_refuses_single_samples_is_extracted_without_a_count_of_operations() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) > 1
            return F.relu(self.b(F.relu(self.a(x))))

    net = HATNetwork(Pairs(), torch.zeros(2, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    summary = net.extract("a").summary
    assert summary is not None
    assert (summary.flops, summary.full_flops) == (0, 0)
    assert "operations" not in str(summary)


def test_a_function_that_keeps_calling_the_original_layers_is_named() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 8)
            self.rest = lambda x: F.relu(self.b(F.relu(x)))

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.a(x))

    net = HATNetwork(Closed(), torch.zeros(2, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    summary = net.extract("a").summary
    assert summary is not None
    assert all("'rest' is a function that calls the layers it was made with" in why for why in summary.whole.values())
    assert summary.whole


def test_a_batch_norm_with_a_forward_of_its_own_is_cut() -> None:
    class NormAndActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    backbone = nn.Sequential(nn.Conv2d(2, 16, 3), NormAndActivation(16), nn.Conv2d(16, 8, 3), nn.Flatten())
    net = HATNetwork(backbone, torch.zeros(2, 2, 5, 5))
    net.add_task("a", 2)
    net.consolidate("a")
    summary = net.extract("a").summary
    assert summary is not None
    assert not summary.whole
    assert summary.units["0"] == int(net.masks("a")["0"].sum()) < 16


def test_a_weight_of_two_layers_is_cleared_for_each_by_itself() -> None:
    class Tied(nn.Module):
        """Two layers with one weight, the second of which reads units of a group that cannot be cut."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.between, self.second = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.between(F.relu(self.first(x))))
            return self.second(h.view(len(x), 8))

    torch.manual_seed(0)
    x = torch.randn(16, 8)
    net = HATNetwork(Tied(), x)
    open_task(net, "a", share=0.5)
    net.consolidate("a")
    assert_close(net.extract("a", x)(x), logits(net, x, "a"))


class WideWhenLong(nn.Module):
    """Layers over sequences; long ones are scaled by the width that the hidden tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        if x.shape[1] > 4:
            h = h * (h.shape[-1] / 16.0)
        return self.second(h).mean(1)


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize("is_asked_first", [True, False])
def test_every_kind_of_inputs_that_was_asked_about_gives_the_gated_networks_logits(
    kind: type[HATNetwork | WeightMaskedNetwork], is_asked_first: bool
) -> None:
    torch.manual_seed(0)
    net, short, long = kind(WideWhenLong(), torch.zeros(2, 3, 4)), torch.randn(5, 3, 4), torch.randn(5, 8, 4)
    net.add_task("a", 3)
    if is_asked_first:
        net(long, "a")
    net.consolidate("a")
    expected = logits(net, long, "a")
    compact = net.extract("a", short)
    assert_close(compact(long), expected)
    assert_close(compact(short), logits(net, short, "a"))


def test_what_is_cut_out_of_channels_last_lies_so_too() -> None:
    """A convolution whose weight lies otherwise than its input copies one of them in every call."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net = HATNetwork(backbone, torch.zeros(1, 3, 8, 8))
    net.add_task("one", 2, generator=torch.Generator().manual_seed(1))
    net.consolidate("one")
    compact, x = net.eval().extract("one"), torch.randn(4, 3, 8, 8)
    weights = [parameter for parameter in compact.parameters() if parameter.dim() == 4]
    assert sum(weight.numel() for weight in weights) < 16 * 3 * 9 + 16 * 16 * 9
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    with torch.no_grad():
        torch.testing.assert_close(compact(x), net(x, "one"))
