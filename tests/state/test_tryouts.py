"""Samples for trying out networks, whose outputs say something, and the consequences where there are none."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
import hatrack.compact.extract
from hatrack import HATNetwork, InputError, WeightMaskedNetwork
from hatrack.compact.extract import SILENT
from hatrack.errors import DOES_NOT_RUN
from hatrack.gating.attachment import Attachment
from hatrack.gating.leak_test import find_leak
from hatrack.masks import Embedding
from hatrack.state.tryouts import agree, deviation, random_like, says_something
from hatrack.units import analyze
from support.architectures import assert_close
from support.helpers import logits, open_task
from support.marks import slow_but

TOKENS = 50


class RMS(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Tokens(nn.Module):
    """A block of a language model without biases, whose tokens of number 0 are padding: zeros give zeros throughout."""

    def __init__(self, look_up: str = "embedding", padding: int | None = 0, pool: str = "mean") -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32, padding_idx=padding)
        self.first, self.last = RMS(32), RMS(32)
        self.up, self.down = nn.Linear(32, 48, bias=False), nn.Linear(48, 32, bias=False)
        self.look_up, self.pool = look_up, pool

    def forward(self, x: Tensor) -> Tensor:
        if self.look_up == "rows":
            h = self.embed.weight[x.long()]
        elif self.look_up == "one-hot":
            h = F.one_hot(x.long(), TOKENS).float() @ self.embed.weight
        else:
            h = self.embed(x.to(torch.int64) if x.is_floating_point() else x)
        h = self.last(h + self.down(F.silu(self.up(self.first(h)))))
        if self.pool == "mean":
            return h.mean(1)
        kept = (x != 0).float().unsqueeze(-1)
        return (h * kept).sum(1) / kept.sum(1)


class Columns(nn.Module):
    """Two columns of categories with tables of their own, one with an offset in one table, and a number in integers."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Embedding(3, 16, padding_idx=0), nn.Embedding(200, 16, padding_idx=0)
        self.number = nn.Linear(1, 16, bias=False)
        self.norm, self.dense = RMS(16), nn.Linear(16, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.few(x[:, 0]) + self.many(x[:, 1]) + self.number(x[:, 2:].float() / 100)
        return torch.relu(self.dense(self.norm(h)))


class Pixels(nn.Module):
    """Integers that nothing is looked up by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(9, 24, bias=False), RMS(24), nn.Linear(24, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.norm(self.first(x.float() / 255))))


class Logarithm(nn.Module):
    """Real numbers that all have to be positive: spectra, for example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(9, 24, bias=False), RMS(24), nn.Linear(24, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.norm(self.first(torch.log(x)))))


class Nothing(nn.Module):
    """A network that says the same to all samples that one can draw, and something to tokens of a high number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(100_000, 32), RMS(32)
        self.dense = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seldom = (x >= 99_990).unsqueeze(-1)
        return self.dense(self.norm((self.embed(x) * seldom).sum(1)))


def tokens(count: int) -> Tensor:
    return torch.randint(1, TOKENS, (count, 9))


def columns(count: int) -> Tensor:
    return torch.stack([torch.randint(1, high, (count,)) for high in (3, 200, 100)], 1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "padding": (Tokens, tokens),
    "no padding": (lambda: Tokens(padding=None), tokens),
    "32 bits": (Tokens, lambda n: tokens(n).int()),
    "rows of a parameter": (lambda: Tokens("rows"), tokens),
    "one-hot": (lambda: Tokens("one-hot"), tokens),
    "categories as real numbers": (Tokens, lambda n: tokens(n).float()),
    "mean over what is no padding": (lambda: Tokens(pool="masked"), tokens),
    "columns": (Columns, columns),
    "pixels": (Pixels, lambda n: torch.randint(0, 256, (n, 9), dtype=torch.uint8)),
    "logarithm": (Logarithm, lambda n: torch.rand(n, 9) + 0.1),
}


def consolidated(build: Callable[[], nn.Module], samples: Callable[[int], Tensor]) -> HATNetwork:
    torch.manual_seed(0)
    net = HATNetwork(build(), samples(1))
    open_task(net, "task", 1, 0.5)
    net.consolidate("task")
    return net


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("shown", slow_but(["nothing", "samples"], ["nothing", "zeros", "one sample", "samples"]))
@torch.no_grad()
def test_an_extracted_task_says_what_the_gated_network_says_to_real_samples(kind: str, shown: str) -> None:
    build, samples = NETWORKS[kind]
    net = consolidated(build, samples)
    x = samples(40)
    expected = logits(net, x, "task")
    example = {"nothing": None, "zeros": torch.zeros_like(samples(8)), "one sample": x[:1], "samples": samples(8)}
    compact = net.extract("task", example[shown])
    assert_close(compact(x), expected)
    assert_close(net.logits_of_tasks({"task": x})["task"], expected)
    assert compact.summary is not None
    assert SILENT not in compact.summary.whole.values()
    assert compact.summary.deviation < 1e-5
    assert any(compact.summary.units[g] < size for g, size in compact.summary.full_units.items()), "nothing was cut"


@pytest.mark.slow
@torch.no_grad()
def test_where_no_outputs_say_anything_nothing_is_cut() -> None:
    net = consolidated(Nothing, lambda n: torch.randint(1, 1000, (n, 9)))
    compact = net.extract("task")
    assert compact.summary is not None
    assert set(compact.summary.whole.values()) == {SILENT}
    x = torch.randint(99_990, 100_000, (8, 9))
    assert_close(compact(x), logits(net, x, "task"))
    told = net.extract("task", x)
    assert told.summary is not None
    assert SILENT not in told.summary.whole.values()
    assert_close(told(x), logits(net, x, "task"))


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_a_task_of_masked_weights_is_extracted_as_it_is(kind: str, tmp_path: Path) -> None:
    build, samples = NETWORKS[kind]
    torch.manual_seed(0)
    net = WeightMaskedNetwork(build(), samples(1), source=Embedding())
    net.add_task("task", 3, generator=torch.Generator().manual_seed(0))
    for values in net.tasks[0].choice:
        values.copy_((torch.rand(len(values), *[1] * (values.dim() - 1)) - 0.4).expand_as(values))  # whole rows
    net.consolidate("task")
    x = samples(40)
    expected = logits(net, x, "task")  # type: ignore[arg-type]
    compact = net.extract("task")
    assert_close(compact(x), expected)
    assert_close(net.extract("task", torch.zeros_like(x[:8]))(x), expected)
    assert compact.summary is not None
    if kind != "logarithm":  # of odd samples it has none, so that no unit is seen to be constant
        assert compact.summary.parameters < compact.summary.full_parameters
    net.save(tmp_path / "net.hat")
    assert torch.equal(logits(hatrack.load(tmp_path / "net.hat", build()), x, "task"), expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_loaded_whatever_it_says_to_zeros(kind: str, tmp_path: Path) -> None:
    build, samples = NETWORKS[kind]
    net = consolidated(build, samples)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", build())
    x = samples(8)
    assert torch.equal(logits(again, x, "task"), logits(net, x, "task"))


def test_tokens_are_drawn_when_gates_are_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = Tokens().eval()
    example = torch.zeros(2, 9, dtype=torch.int64)
    graph = analyze(backbone, example, "backbone.")
    attachment = Attachment(graph, backbone)
    asked: list[Tensor] = []
    run = attachment.run
    monkeypatch.setattr(attachment, "run", lambda net, x, *rest: (asked.append(x), run(net, x, *rest))[1])
    assert find_leak(attachment, graph, backbone, example) is None
    assert len(asked[-1].unique()) > 5


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32])
def test_what_is_drawn_fits_the_smallest_table_that_the_input_indexes(dtype: torch.dtype) -> None:
    small, large, positions = nn.Embedding(3, 4), nn.Embedding(300, 4), nn.Embedding(2, 4)

    def run(x: Tensor) -> Tensor:
        x = x.int()
        return small(x[:, :2]) + large(x[:, 2:]) + positions(torch.arange(2))

    drawn = random_like(torch.zeros(16, 4, dtype=dtype), torch.Generator().manual_seed(0), run)
    assert drawn.dtype == dtype
    assert drawn.double().unique().tolist() == ([0, 1] if dtype == torch.bool else [0, 1, 2])


@pytest.mark.parametrize("error", [AssertionError, KeyError, TypeError, ZeroDivisionError, AttributeError, IndexError])
def test_where_a_network_runs_on_nothing_that_was_drawn_it_is_the_example(error: type[Exception]) -> None:
    def run(x: Tensor) -> Tensor:
        if x.any():
            raise error("only zeros are understood")
        return x.float()

    for example in (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64)):
        assert random_like(example, torch.Generator(), run) is example


NAN, INF = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([[1.0, 2.0], [1.0, 3.0]], True),
        ([[1.0, NAN], [2.0, NAN]], True),
        ([[NAN, NAN], [1.0, 2.0], [1.0, 3.0]], True),
        ([[1.0, 2.0]], True),
        ([[0.0, 0.0]], False),
        ([[1.0, 2.0], [1.0, 2.0]], False),
        ([[1.0, 2.0], [1.0, 2.00001]], False),
        ([[1.0, NAN], [NAN, 2.0]], False),
        ([[NAN, INF], [-INF, NAN]], False),
        ([], False),
    ],
)
def test_which_outputs_say_something(outputs: list[list[float]], says: bool) -> None:
    assert says_something(torch.tensor(outputs)) == says


def test_outputs_agree_where_what_is_no_number_is_in_the_same_places() -> None:
    one = torch.tensor([1.0, NAN, INF, 100.0])
    cases: list[tuple[list[float], Any]] = [
        ([1.0, NAN, INF, 100.0], True),
        ([1.0005, NAN, INF, 100.0], True),  # the tolerance goes by the largest, too
        ([1.1, NAN, INF, 100.0], False),
        ([1.0, 1.0, INF, 100.0], False),
        ([1.0, NAN, -INF, 100.0], False),
        ([NAN, NAN, INF, 100.0], False),
    ]
    for other, same in cases:
        assert agree(torch.tensor(other), one, 1e-5) == same, other
    assert not agree(one[:2], one, 1.0)
    assert agree(one[1:2], one[1:2], 1e-5)
    assert deviation(torch.tensor([2.0, NAN, INF, 100.0]), one) == pytest.approx(0.01)
    assert deviation(torch.tensor([1.0, 1.0, INF, 100.0]), one) == INF
    assert deviation(one[1:3], one[1:3]) == 0.0


class Particular(nn.Module):
    """A network whose forward raises where one of its layers is not as wide as it was built."""

    def __init__(self, error: type[Exception] | Exception) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(9, 32), nn.Linear(32, 24), nn.Linear(24, 16)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if h.shape[1] != 32:
            raise self.error
        return torch.relu(self.third(torch.relu(self.second(h))))


@pytest.mark.parametrize("error", DOES_NOT_RUN)
@torch.no_grad()
def test_a_layer_whose_width_a_forward_insists_on_stays_whole(error: type[Exception]) -> None:
    net = consolidated(lambda: Particular(error), lambda n: torch.randn(n, 9))
    x = torch.randn(20, 9)
    compact = net.extract("task")
    assert_close(compact(x), logits(net, x, "task"))
    assert_close(net.logits_of_tasks({"task": x})["task"], logits(net, x, "task"))
    assert compact.summary is not None
    assert compact.summary.whole == {"first": f"its forward has widths written down ({error.__name__})"}


OTHER_CAUSES: dict[str, Callable[[], object]] = {
    "type of a product": lambda: torch.zeros(2, 2) @ torch.zeros(2, 2).double(),
    "type of a layer": lambda: nn.Linear(2, 2)(torch.zeros(2, 2).double()),
    "type of a convolution": lambda: nn.Conv1d(2, 2, 1)(torch.zeros(2, 2, 2).double()),
    "type of what is written": lambda: torch.zeros(2).long().add_(torch.zeros(2)),
    "type of an index": lambda: torch.zeros(2)[torch.zeros(2)],
    "memory": lambda: torch.empty(2**62, dtype=torch.uint8),
}
"""Calls that fail for another reason than a shape."""


@pytest.mark.parametrize("cause", OTHER_CAUSES)
@torch.no_grad()
def test_an_error_that_is_not_about_shapes_is_not_explained_by_widths(cause: str) -> None:
    with pytest.raises((RuntimeError, IndexError)) as raised:
        OTHER_CAUSES[cause]()
    net = consolidated(lambda: Particular(raised.value), lambda n: torch.randn(n, 9))
    with pytest.raises(type(raised.value), match=re.escape(str(raised.value))):
        net.extract("task")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "Expected all tensors to be on the same device, but got index is on cpu, different from others on cuda:0",
        "expected self and mask to be on the same device, but got mask on cpu and self on cuda:0",
        "CUDA error: device-side assert triggered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
@torch.no_grad()
def test_an_error_of_a_gpu_is_passed_on(said: str) -> None:
    net = consolidated(lambda: Particular(RuntimeError(said)), lambda n: torch.randn(n, 9))
    with pytest.raises(RuntimeError, match=re.escape(said)):
        net.extract("task")


SHAPES: dict[str, Callable[[], object]] = {
    "product": lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    "layer": lambda: nn.Linear(2, 2)(torch.zeros(2, 3)),
    "convolution": lambda: nn.Conv2d(3, 2, 1)(torch.zeros(1, 2, 4, 4)),
    "sum": lambda: torch.zeros(2) + torch.zeros(3),
    "view": lambda: torch.zeros(6).view(4, 2),
    "concatenation": lambda: torch.cat([torch.zeros(2, 2), torch.zeros(3, 3)]),
    "split": lambda: torch.zeros(5).split([2, 2]),
    "norm": lambda: F.layer_norm(torch.zeros(2, 3), (4,)),
    "einsum": lambda: torch.einsum("ij,jk->ik", torch.zeros(2, 3), torch.zeros(2, 3)),
    "unpacking": lambda: [first for first, _, _ in [torch.zeros(2)]],
    "index": lambda: torch.zeros(2)[5],
    "recurrent layer": lambda: nn.LSTM(2, 3)(torch.zeros(4, 1, 5)),
}
"""Calls that fail because of a shape."""


@pytest.mark.parametrize("call", SHAPES)
@torch.no_grad()
def test_an_error_about_a_shape_is_explained_by_widths(call: str) -> None:
    with pytest.raises((RuntimeError, ValueError, IndexError)) as raised:
        SHAPES[call]()
    net = consolidated(lambda: Particular(raised.value), lambda n: torch.randn(n, 9))
    summary = net.extract("task").summary
    assert summary is not None
    assert list(summary.whole) == ["first"]
    assert summary.whole["first"].startswith("its forward has widths written down")


@pytest.mark.parametrize("kind", [error for error in vars(hatrack.errors).values() if isinstance(error, type)])
def test_no_refusal_but_of_an_input_is_taken_for_a_network_that_does_not_run(kind: type[Exception]) -> None:
    assert issubclass(kind, DOES_NOT_RUN) == (kind is InputError)


class Insistent(nn.Module):
    """Layers of which some have to be as wide as they were built, maybe only where several samples are asked."""

    def __init__(self, insists: Collection[int], several: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(9, 12) for _ in range(16))
        self.after = nn.ModuleList(nn.Linear(12, 3) for _ in range(16))
        self.insists, self.several = insists, several

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for number, (layer, after) in enumerate(zip(self.layers, self.after, strict=True)):
            h = F.silu(layer(x))
            assert h.shape[1] == 12 or number not in self.insists or len(x) < self.several
            parts.append(after(h))
        return torch.cat(parts, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("insists", "several", "attempts"),
    [((7,), 0, 11), ((0, 15), 0, 19), ((3,), 3, 22), (range(1, 16, 2), 0, 40)],
)
@torch.no_grad()
def test_groups_that_stay_whole_are_found_by_halves(
    insists: Collection[int], several: int, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = consolidated(lambda: Insistent(insists, several), lambda n: torch.randn(n, 9))
    made: list[int] = []
    attempt = hatrack.compact.extract._attempt
    monkeypatch.setattr(
        "hatrack.compact.extract._attempt", lambda source, cut: (made.append(len(cut)), attempt(source, cut))[1]
    )
    x = torch.randn(20, 9)
    compact = net.extract("task")
    assert compact.summary is not None
    assert list(compact.summary.whole) == [f"layers.{number}" for number in insists]
    assert_close(compact(x), logits(net, x, "task"))
    assert len(made) <= attempts
