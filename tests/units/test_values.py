"""Dependence on the values of an input: chosen rows, numbers taken from tensors, paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork, UnsupportedError, units
from support.helpers import assert_poison_harmless

WIDTH = 24


class Indexed(nn.Module):
    """Takes six integers, of which a layer makes units, and an index or a number is made."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.table, self.enter = nn.Embedding(4, 6), nn.Linear(36, WIDTH)
        self.function, self.shape = function, shape

    def forward(self, i: Tensor) -> Tensor:
        h = self.enter(self.table(i).flatten(1)).view(-1, *self.shape)
        return self.function(h, i).flatten(1).relu()


def rows(i: Tensor) -> Tensor:
    return torch.arange(len(i))


CHOICES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], int]] = {
    "the last axis of a tuple": (lambda h, i: h[rows(i), :, i[:, -1]], (6, 4), 6),
    "the middle axis": (lambda h, i: h[rows(i), i[:, -1]], (4, 6), 6),
    "the last axis by an ellipsis": (lambda h, i: h[..., i[0]], (6, 4), 6),
    "behind a new axis": (lambda h, i: h[:, None, :, i[0]], (6, 4), 6),
    "behind a mask": (lambda h, i: h[torch.ones(len(i), dtype=torch.bool), :, i[0, 0]], (6, 4), 6),
    "behind a mask of two axes": (
        lambda h, i: h[torch.ones(len(i), 6, dtype=torch.bool), i[0, 0]].view(-1, 6),
        (6, 4),
        6,
    ),
    "behind a list": (lambda h, i: h[:, [0, 1, 2, 5], i[0, :4]], (6, 4), 6),
    "the only axis": (lambda h, i: h[:, i[0, 0] + torch.arange(12)], (WIDTH,), 1),
    "one row": (lambda h, i: h[:, i[0, 0]], (4, 6), 6),
    "one column": (lambda h, i: h[:, :, i[0, 0]], (6, 4), 6),
    "two axes": (lambda h, i: h[:, i[0], :, i[0] % 2].movedim(0, 1), (4, 3, 2), 3),
    "index_select": (lambda h, i: h.index_select(-1, i[0]), (6, 4), 6),
    "index_select by names": (lambda h, i: torch.index_select(input=h, dim=1, index=i[0]), (4, 6), 6),
    "a constant index": (lambda h, i: h[..., torch.arange(4).flip(0)], (6, 4), WIDTH),
}


@pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")
@pytest.mark.parametrize("name", CHOICES)
def test_an_index_of_the_input_couples_the_axis_that_it_chooses_from_and_no_other(name: str) -> None:
    function, shape, count = CHOICES[name]
    torch.manual_seed(0)
    example = torch.zeros(1, 6, dtype=torch.int64)
    net = HATNetwork(Indexed(function, shape), example)
    assert sum(group.size for group in net.units.groups if "enter" in group.name) == count
    x = torch.randint(0, 4, (1, 6))
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    if count > 1:
        assert_poison_harmless(net, {"a": x, "b": 3 - x})


NUMBERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "slice": lambda h, k: h[:, k : k + 6],
    "slice of one element": lambda h, k: h[:, k.view(1) :][:, :6],
    "step": lambda h, k: h[:, :: k + 1],
    "slice of the input": lambda h, k: torch.zeros(12)[k:],
    "narrow": lambda h, k: h.narrow(1, k, 6),
    "narrow by names": lambda h, k: torch.narrow(input=h, dim=1, start=k, length=6),
    "roll": lambda h, k: h.roll(k, 1),
    "roll of several": lambda h, k: torch.roll(h, (k, 1), (1, 0)),
    "select": lambda h, k: h.select(1, k),
    "split": lambda h, k: h.split(k + 1, 1),
    "sizes to split": lambda h, k: h.split([k + 1, WIDTH - 1 - k], 1),
    "tensor_split": lambda h, k: h.tensor_split(k.view(1) + 1, 1),
    "view": lambda h, k: h.view(-1, k + 1),
    "reshape": lambda h, k: h.reshape(k + 1, -1),
    "expand": lambda h, k: h.expand(k + 1, -1, -1),
    "repeat": lambda h, k: h.repeat(1, k + 1),
    "repeat_interleave": lambda h, k: h.repeat_interleave(k + 1, 1),
    "repeats": lambda h, k: torch.zeros(12).repeat_interleave(k.expand(12)),
    "new_zeros": lambda h, k: h.new_zeros(k + 1),
    "new_full": lambda h, k: h.new_full((1,), k),
    "full_like": lambda h, k: torch.full_like(h, k),
    "zeros": lambda h, k: torch.zeros(k + 1),
    "arange": lambda h, k: torch.arange(k),
    "linspace": lambda h, k: torch.linspace(0, 1, steps=k + 1),
    "axis": lambda h, k: h.flip(k),
    "one_hot": lambda h, k: torch.nn.functional.one_hot(k),
    "bincount": lambda h, k: torch.bincount(k.view(1)),
    "lengths": lambda h, k: nn.utils.rnn.pack_padded_sequence(torch.zeros(3, 1, 2), k.view(1) + 1),
    "range": lambda h, k: range(k),
    "threshold": lambda h, k: torch.nn.functional.threshold(h, k, 0.0),
}


class Counted(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.enter, self.function = nn.Linear(6, WIDTH), function

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        self.function(h, x[0, 0].long())
        return h.relu()


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_torch_takes_from_the_input_is_refused_unless_vouched_for(name: str) -> None:
    function = NUMBERS[name]
    example = torch.zeros(1, 6)
    with pytest.raises(UnsupportedError, match=r"values of the input or of units.*same_on_every_path.*test_values"):
        HATNetwork(Counted(function), example)
    HATNetwork(Counted(function), example, rules={Counted: units.same_on_every_path()})
    HATNetwork(Counted(lambda h, k: function(h, torch.zeros((), dtype=torch.int64))), example)


def written(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def value(x: Tensor) -> Tensor:
        target = torch.zeros(3)
        write(target, x.sum())
        return target[1]

    return value


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "an item": written(lambda t, v: t.__setitem__(1, v)),
    "another item, by a view": written(lambda t, v: t[1:].__setitem__(0, v)),
    "copy_": written(lambda t, v: t[1:2].copy_(v.view(1))),
    "copy_ into a view that was made before": written(lambda t, v: t.view(3, 1).t().copy_(v)),
    "fill_": written(lambda t, v: t.fill_(v)),
    "index_put_": written(lambda t, v: t.index_put_((torch.ones(1, dtype=torch.int64),), v)),
    "index_fill_": written(lambda t, v: t.index_fill_(0, torch.ones(1, dtype=torch.int64), v)),
    "masked_fill_": written(lambda t, v: t.masked_fill_(t == 0, v)),
    "a variable mask": written(lambda t, v: t.masked_fill_(v > 0, 1.0)),
    "a variable index": written(lambda t, v: t.index_add_(0, v.long().clamp(0, 2).view(1), torch.ones(1))),
    "scatter_": written(lambda t, v: t.scatter_(0, torch.ones(1, dtype=torch.int64), v.view(1))),
    "add_": written(lambda t, v: t.add_(v)),
    "out=": written(lambda t, v: torch.add(v.expand(3), 1, out=t)),
    "out= of a view": written(lambda t, v: torch.mul(v.expand(2), 2, out=t[1:])),
    "data": written(lambda t, v: setattr(t, "data", v.expand(3))),
    "set_": written(lambda t, v: t.set_(v.expand(3))),
    "detach": lambda x: x.sum().detach().view(1)[0],
    "new_tensor": lambda x: torch.zeros(1).new_tensor(x.sum()),
    "tensor": lambda x: torch.as_tensor(x.sum()),
}


class Decided(nn.Module):
    def __init__(self, reads: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.enter, self.leave, self.reads = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), reads

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        return self.leave(h).relu() if self.reads(x) else h


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_in_place_depends_on_what_is_written(name: str) -> None:
    torch.manual_seed(0)
    net = HATNetwork(Decided(lambda x: WRITES[name](x) > 0), torch.zeros(2, 6))
    assert [group.name for group in net.units.groups] == ["enter+leave"], "only one way was followed"
    positive, negative = torch.rand(4, 6), -torch.rand(4, 6)
    for task in ("a", "b"):
        net.add_task(task, 2)
        net.consolidate(task)
    assert_poison_harmless(net, {"a": positive, "b": positive})
    assert_poison_harmless(net, {"a": negative, "b": negative})


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_of_weights_decides_nothing(name: str) -> None:
    backbone = Decided(lambda x: WRITES[name](x * backbone.enter.bias[0]) > 0)
    with pytest.raises(UnsupportedError, match=r"test_values.py:\d+"):
        HATNetwork(backbone, torch.zeros(2, 6))


def test_what_is_written_of_constants_stays_constant() -> None:
    def reads(x: Tensor) -> bool:
        flags, other = torch.zeros(3), torch.zeros(3)
        flags[1] = torch.ones(())
        torch.add(flags, 1, out=flags)
        other.copy_(x[0, :3])
        return bool(flags.sum() > 0) and bool(torch.zeros_like(x).sum() == 0) and bool(x.new_ones(2).all())

    HATNetwork(Decided(reads), torch.zeros(2, 6))


TEXTS: dict[str, Callable[[Tensor], str]] = {
    "str": lambda x: str(x.sum()),
    "repr": lambda x: repr(x.sum()),
    "format": lambda x: f"{x.sum():.2f}",
    "formatted as it is": lambda x: f"{x.sum()}",
    "percent": lambda x: "%s" % x.sum(),  # noqa: UP031
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_values_too(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"values of the input or of units.*test_values"):
        HATNetwork(Decided(lambda x: "0" in TEXTS[name](x)), torch.zeros(2, 6))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_a_copy_of_units_by_new_tensor_is_of_these_units() -> None:
    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(x.new_tensor(self.enter(x)) + x.new_tensor([1.0]))

    torch.manual_seed(0)
    net = HATNetwork(Copied(), torch.zeros(2, 6))
    assert [reader.module for reader in net.units.readers] == ["leave", ""]
    net.add_task("a", 2)
    net.consolidate("a")
    assert_poison_harmless(net, {"a": torch.randn(4, 6)})


CHECKED: dict[str, Callable[[Tensor], Tensor]] = {
    "one_hot": lambda x: torch.nn.functional.one_hot((x > 0).long(), 2).flatten(1)[:, :6].float(),
    "linalg": lambda x: torch.linalg.inv(torch.eye(6) + 0.01 * x[:, :, None] * x[:, None])[:, 0],
    "inverse": lambda x: torch.inverse(torch.eye(6) + 0.01 * x[:, :, None] * x[:, None])[:, 0],
    "cholesky": lambda x: torch.linalg.cholesky(torch.eye(6) + 0.01 * x[:, :, None] * x[:, None])[:, 0],
}


class Prepared(nn.Module):
    """Makes something of the input before its only layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.function = nn.Linear(6, WIDTH), function

    def forward(self, x: Tensor) -> Tensor:
        return self.enter(self.function(x)).relu()


@pytest.mark.parametrize("name", CHECKED)
def test_functions_that_only_check_values_are_let_read_them(name: str) -> None:
    assert HATNetwork(Prepared(CHECKED[name]), torch.zeros(1, 6)).units.num_units == WIDTH


def test_a_number_of_classes_that_is_counted_depends_on_values() -> None:
    def counted(x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((x > 0).long()).flatten(1)[:, :6].float()

    with pytest.raises(UnsupportedError, match="would depend on values of the input"):
        HATNetwork(Prepared(counted), torch.zeros(1, 6))
