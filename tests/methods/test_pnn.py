from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hatrack.errors import CheckpointError, InputError
from hatrack.experiments.backbones import narrow_builder
from hatrack.experiments.settings import NetworkSettings
from hatrack.methods import METHODS, Batch, Setup
from hatrack.methods.narrow import expected_classes, matching_share, sections_of
from hatrack.methods.pnn import NarrowColumn
from hatrack.streams import seeded_generator
from hatrack.support.heads import linear_head
from support.toys import (
    EVERY_OPTIMIZER,
    KINDS,
    MIXTURE,
    SHAPES,
    assert_goes_on_as_without_interruption,
    assert_nothing_forgotten,
    learn,
    logits,
    make,
    setup,
    setup_of,
    tasks,
)


@KINDS
@EVERY_OPTIMIZER
def test_earlier_tasks_keep_every_bit(kind: str, optimizer: str) -> None:
    assert_nothing_forgotten(make("pnn", kind, column_width=0.5), kind, optimizer)


@pytest.mark.slow
@KINDS
def test_it_goes_on_after_loading_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption("pnn", kind, tmp_path)
    assert straight.width == after.width


@KINDS
def test_the_first_column_is_a_plain_narrow_network(kind: str) -> None:
    method, seen = make("pnn", kind, column_width=0.5, dropout=0.0), tasks(kind, 1)
    method.begin_task(seen[0])
    backbone = setup(kind, dropout=0.0).build_narrow(0.5, 0)  # type: ignore[misc]
    plain = nn.Sequential(backbone, linear_head(6, 2, seeded_generator(0, "head", "t0")))
    column = method.networks["t0"]
    assert not column.adapters
    assert all(torch.equal(a, b) for a, b in zip(column.parameters(), plain.parameters(), strict=True))
    x = torch.randn(5, *SHAPES[kind])
    assert torch.equal(column.train()(x)[0], plain.train()(x))


@KINDS
def test_adapters_carry_gradient_and_change_what_is_said(kind: str) -> None:
    method, seen = make("pnn", kind, column_width=0.5), tasks(kind)
    learn(method, seen, epochs=1)
    assert not method.networks["t0"].adapters
    for index, name in ((1, "t1"), (2, "t2")):
        adapters = method.networks[name].adapters
        layers = 3 if kind == "mlp" else 4  # every layer, the head among them
        assert len(adapters) == layers - 1
        assert all(len(adapter.scales) == index for adapter in adapters.values())
    x, y = seen[2].train.load()
    batch = Batch(x, y, ("t2",), torch.zeros_like(y), 0.0)
    method.train_mode(True)
    for column in method.networks.values():
        column.zero_grad()  # what is left of a column's own training
    method.loss(batch).value.backward()
    for parameter in method.networks["t2"].adapters.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).any())
    for name in ("t0", "t1"):
        assert all(parameter.grad is None for parameter in method.networks[name].parameters())
    said = logits(method, seen[2])
    with torch.no_grad():
        for adapter in method.networks["t2"].adapters.values():
            adapter.scales.zero_()
            adapter.reduce.bias.zero_()
    assert not torch.equal(logits(method, seen[2]), said)


def test_a_lateral_connection_by_hand() -> None:
    """Eq. 2 for a column of one layer and a head: the head's counterpart reads what the earlier head reads."""
    generator = torch.Generator().manual_seed(0)
    bodies = [nn.Sequential(nn.Linear(3, 4), nn.ReLU()) for _ in range(2)]
    heads = [linear_head(4, 2, generator) for _ in range(2)]
    first, second = (NarrowColumn(bodies[i], heads[i], torch.zeros(1, 3), i, generator) for i in range(2))
    x = torch.randn(5, 3, generator=generator)
    _, read = first(x)
    (adapter,) = second.adapters.values()
    lateral = torch.relu(adapter.scales[0] * bodies[0](x) @ adapter.reduce.weight.T + adapter.reduce.bias)
    expected = bodies[1](x) @ heads[1].weight.T + heads[1].bias + lateral @ adapter.expand.weight.T
    torch.testing.assert_close(second(x, [read])[0], expected)
    assert list(read) == ["0.0", "1"]


@pytest.mark.slow
def test_the_papers_width_is_found_for_the_mixture_on_alexnet() -> None:
    """The HAT paper: 7.1 million parameters, columns of 1.117 / T."""
    method = METHODS["pnn"](setup_of("alexnet", (3, 32, 32), MIXTURE), METHODS["pnn"].settings_type())
    assert method.width * 8 == pytest.approx(1.117, rel=0.02)
    for number, classes in enumerate(MIXTURE):
        method.open(f"t{number}", classes)
    total = sum(p.numel() for column in method.networks.values() for p in column.parameters())
    assert total == pytest.approx(7.1e6, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "shape"), [("mlp", (1, 28, 28)), ("resnet18", (3, 32, 32))])
def test_all_columns_have_as_many_parameters_as_the_network(network: str, shape: tuple[int, ...]) -> None:
    start = setup_of(network, shape, (10,) * 5)
    method = METHODS["pnn"](start, METHODS["pnn"].settings_type())
    for number in range(5):
        method.open(f"t{number}", 10)
    total = sum(p.numel() for column in method.networks.values() for p in column.parameters())
    assert total == pytest.approx(sum(p.numel() for p in start.build_backbone().parameters()), rel=0.05)


@pytest.mark.slow
def test_more_tasks_make_narrower_columns() -> None:
    widths = [make("pnn", expected_tasks=number).width for number in (1, 2, 4)]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3


def test_the_number_of_classes_is_taken_from_what_is_known() -> None:
    start = setup()
    assert expected_classes(start) == (10,) * 8
    known = Setup(start.build_backbone, start.input_shape, 0, start.device, start.build_narrow, (2, 3, 4))
    assert expected_classes(known) == (2, 3, 4)
    assert expected_classes(known, 2) == (2, 3)
    assert expected_classes(known, 5) == (2, 3, 4, 10, 10)


def test_the_share_whose_count_comes_nearest() -> None:
    assert round(100 * matching_share(lambda share: round(100 * share) ** 2, 1700)) == 41
    assert round(100 * matching_share(lambda share: round(100 * share) ** 2, 1750)) == 42
    assert matching_share(lambda share: round(100 * share), 500) == 1.0
    assert 0 < matching_share(lambda share: 100, 3) < 1 / 64


def test_sections_begin_with_layers() -> None:
    stem, sections = sections_of(setup_of("resnet18", (3, 32, 32)).build_narrow(0.1, 0))  # type: ignore[misc]
    assert len(list(stem.children())) == 0
    assert [len(list(section.children())) for section in sections] == [3, *[1] * 7, 3]
    with pytest.raises(InputError, match=r"must be an nn\.Sequential to be taken apart, not a Linear"):
        sections_of(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["pnn", "pathnet"])
def test_a_network_of_ones_own_is_refused(name: str) -> None:
    start = setup()
    own = Setup(start.build_backbone, start.input_shape, 0, start.device)
    with pytest.raises(InputError, match=f"{name} needs narrower copies of the network, which hatrack can make of mlp"):
        METHODS[name](own, METHODS[name].settings_type())
    assert narrow_builder(NetworkSettings(network="vit"), (3, 32, 32)) is None
    assert narrow_builder(NetworkSettings(network="mine:build"), (3, 32, 32)) is None


@pytest.mark.parametrize("name", ["packnet", "pnn", "pathnet", "er", "derpp", "gem"])
def test_another_backbone_is_refused(name: str, tmp_path: Path) -> None:
    method = make(name)
    learn(method, tasks(count=1), epochs=1)
    method.save(tmp_path / "net.hat")
    with pytest.raises(CheckpointError, match="another backbone"):
        make(name, "conv").load(tmp_path / "net.hat")


def test_wrong_settings() -> None:
    for key, value in (("expected_tasks", 0), ("column_width", 0.0), ("column_width", 1.5)):
        with pytest.raises(InputError, match=f"{key} must be"):
            make("pnn", **{key: value})
