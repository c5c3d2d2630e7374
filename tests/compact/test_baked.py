"""Extracted tasks of masks of weights: plain modules with zeros written in, and smaller where units are dead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hatrack import InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.compact.export import Labels, export_task
from hatrack.masks import Embedding, Unmasked
from support.architectures import assert_close, onnx_says
from support.helpers import logits
from support.marks import slow_but
from support.weight_networks import BACKBONES, EVERY_KIND, attach, learn

LABELS = Labels(("a", "b", "c"))


def attached(backbone: nn.Module, shape: tuple[int, ...], **masks: Tensor) -> WeightMaskedNetwork:
    """A network with one consolidated task whose masks are given; those of other weights are full."""
    net = WeightMaskedNetwork(backbone, torch.zeros(2, *shape), source=Embedding(), unmasked=Unmasked.PER_TASK)
    net.add_task("task", 3, generator=torch.Generator().manual_seed(0))
    state = net.tasks[0]
    with torch.no_grad():
        for name, values in zip(net.masking.layout.masked, state.choice, strict=True):
            values.fill_(1.0)
            if name in masks:
                values[~masks[name]] = -1.0
    net.consolidate("task")
    return net


def off(shape: tuple[int, ...], rows: list[int], axis: int = 0) -> Tensor:
    """A mask of all but some rows (or columns) of a weight."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask.movedim(axis, 0)[rows] = False
    return mask


@EVERY_KIND
@pytest.mark.parametrize("backbone", slow_but(["mlp", "tied"], BACKBONES))
def test_it_says_what_the_masked_network_says(kind: str, backbone: str) -> None:
    net = attach(kind, backbone)
    samples = {task: learn(net, task, seed, steps=3)[0] for seed, task in enumerate(("first", "second"))}
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    for task, x in samples.items():
        compact = net.extract(task)
        summary = compact.summary
        assert summary is not None
        expected = logits(net, x, task)  # type: ignore[arg-type]
        same_shape = summary.parameters == summary.full_parameters
        with torch.no_grad():
            found = compact(x)
        assert_close(found, expected)
        if same_shape:
            assert torch.equal(found, expected)
            assert summary.bitwise
        assert summary.nonzero == sum(int(value.count_nonzero()) for value in compact.parameters())
        if not summary.whole:
            masks = net.masks(task)
            used = sum(int(mask.sum()) for mask in masks.values())
            unused = sum(mask.numel() for mask in masks.values()) - used
            assert summary.nonzero <= summary.full_parameters - unused
        assert "dead units cannot be found" not in summary.whole.get("", "")
        parts = list(compact.modules())
        assert not any(isinstance(part, (nn.Dropout, nn.Dropout2d, WeightMaskedNetwork)) for part in parts)
        assert not any(part._forward_pre_hooks for part in parts)
        again = net.backbone, compact.backbone
        assert {id(p) for p in again[0].parameters()}.isdisjoint(id(p) for p in again[1].parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if name in before)


def test_a_unit_that_nothing_reads_goes_and_takes_along_what_only_it_had_read() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())
    second = torch.ones(5, 4, dtype=torch.bool)
    second[[0, 2, 3, 4], 1] = False  # unit 1 of the first layer is read by unit 1 of the second alone
    net = attached(chain, (3,), **{"2.weight": second, "4.weight": off((6, 5), [1], 1)})  # and that by nobody
    compact = net.extract("task")
    summary = compact.summary
    assert summary is not None
    assert dict(summary.units) == {"0": 3, "2": 4, "4": 6}
    assert torch.equal(compact.backbone[0].weight, net.backbone[0].weight[[0, 2, 3]])  # type: ignore[index]
    assert summary.parameters == (9 + 3) + (12 + 4) + (24 + 6) + (18 + 3)
    assert "not 0" not in str(summary)
    x = torch.randn(20, 3)
    assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
def test_constants_become_part_of_the_biases_behind_them(bias: bool) -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 5, bias=bias), nn.Sigmoid())
    mask = off((4, 3), [0, 2])  # these are σ(bias), and nothing else
    net = attached(chain, (3,), **{"0.weight": mask})
    compact = net.extract("task")
    assert compact.summary is not None
    assert dict(compact.summary.units) == {"0": 2, "2": 5}
    first, second = net.backbone[0], net.backbone[2]  # type: ignore[index]
    expected = second.weight[:, [0, 2]] @ torch.sigmoid(first.bias[[0, 2]]) + (second.bias if bias else 0.0)
    torch.testing.assert_close(compact.backbone[2].bias, expected)  # type: ignore[index]
    x = torch.randn(20, 3)
    assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]


def test_constants_of_the_last_layer_go_into_the_head() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid())
    net = attached(chain, (3,), **{"0.weight": off((4, 3), [1])})
    compact = net.extract("task")
    assert compact.head.weight.shape == (3, 3)
    x = torch.randn(20, 3)
    assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]


def images(padding: int, mode: str = "zeros") -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Softplus(),
        nn.Conv2d(4, 5, 3, padding=padding, padding_mode=mode),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@pytest.mark.parametrize(
    ("padding", "mode", "left"), [(0, "zeros", 3), (1, "zeros", 4), (1, "circular", 3), (1, "reflect", 3)]
)
def test_a_constant_channel_stays_where_its_border_would_tell(padding: int, mode: str, left: int) -> None:
    torch.manual_seed(0)
    net = attached(images(padding, mode), (2, 6, 6), **{"0.weight": off((4, 2, 3, 3), [2])})
    compact = net.extract("task")
    assert compact.summary is not None
    assert compact.summary.units["0"] == left
    x = torch.randn(20, 2, 6, 6)
    assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]


def test_zeros_go_and_what_a_norm_over_units_mixes_stays() -> None:
    torch.manual_seed(0)
    for norm, left in ((nn.Identity(), 5), (nn.LayerNorm(6), 6)):
        chain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), norm, nn.Linear(6, 5), nn.ReLU())
        with torch.no_grad():
            chain[0].bias[0] = -1.0  # after the ReLU it is 0
        net = attached(chain, (3,), **{"0.weight": off((6, 3), [0])})
        compact = net.extract("task")
        assert compact.summary is not None
        assert dict(compact.summary.units) == {"0": left, "3": 5}
        x = torch.randn(20, 3)
        assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]


class Skip(nn.Module):
    """A sum with the input: what the masked layer adds to is no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(x + torch.sigmoid(self.first(x))))


def test_what_meets_the_input_is_no_constant() -> None:
    torch.manual_seed(0)
    net = attached(Skip(), (4,), **{"first.weight": off((4, 4), [0, 1])})
    compact = net.extract("task")
    assert compact.summary is not None
    assert dict(compact.summary.units) == {"first": 4, "last": 5}
    assert compact.summary.bitwise


def test_a_layer_without_any_unit_in_use_keeps_one() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Sigmoid())
    net = attached(chain, (3,), **{"2.weight": torch.zeros(5, 4, dtype=torch.bool)})
    x = torch.randn(20, 3)
    compact = net.extract("task")
    assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mlp", "alexnet", "resnet18"])
@EVERY_KIND
def test_files_for_other_runtimes(kind: str, backbone: str, tmp_path: Path) -> None:
    net = attach(kind, backbone)
    x, _ = learn(net, "task", steps=2)
    export_task(net, "task", tmp_path / "a.safetensors", x, LABELS)
    compact = net.extract("task", x)
    compact.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    assert_close(compact(x), logits(net, x, "task"))  # type: ignore[arg-type]
    if kind == "packnet":
        onnx: Any = pytest.importorskip("onnx")
        exported = export_task(net, "task", tmp_path / "a.onnx", x, LABELS)
        assert exported.deviation < 1e-5
        assert_close(onnx_says(exported.path, x=x), logits(net, x, "task"), 1e-4)  # type: ignore[arg-type]
        assert {entry.key for entry in onnx.load(exported.path).metadata_props} >= {"task", "classes"}


def test_what_cannot_be_extracted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    net = attach("wsn")
    learn(net, "first")
    with pytest.raises(InputError, match="there is no task 'absent'"):
        net.extract("absent")
    net.add_task("second", 3)
    with pytest.raises(InputError, match="still in training: consolidate it before it is extracted"):
        net.extract("second")
    monkeypatch.setattr("hatrack.models.taking_out.bake", lambda backbone, *_: BACKBONES["mlp"][0]())
    with pytest.raises(UnsupportedError, match="zeros written in give other logits"):
        net.extract("first")
