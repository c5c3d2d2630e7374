"""Whatever makes, reads or changes a network does the same inside of torch's contexts as outside of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.compact.export import Labels, export_task
from hatrack.masks import Scores
from support.marks import slow_but

KINDS: dict[str, Callable[..., Any]] = {
    "units": HATNetwork,
    "adaptive": partial(HATNetwork, conditioning=hatrack.Adaptive()),
    "weights": WeightMaskedNetwork,
    "scores": partial(WeightMaskedNetwork, source=Scores()),
}
Context = Callable[[], AbstractContextManager[Any]]


@contextmanager
def both() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        yield


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Context] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "both": both,
    "float64 by default": lambda: default(torch.float64),
}

STEPS = (
    *("attach", "add", "head", "settle", "consolidate", "calibrate", "check", "forget", "grow", "save", "load"),
    *("state", "move", "extract", "export", "detach"),
)


class Backbone(nn.Module):
    """A network with a norm that has statistics, a recurrent layer, a table, a shared weight and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one, self.norm = nn.Linear(4, 16), nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.other = nn.Linear(16, 16)
        self.again, self.table, self.reads = nn.Linear(16, 16), nn.Embedding(5, 16), nn.GRU(16, 16, batch_first=True)
        self.again.weight = self.other.weight
        vars(self)["factor"] = torch.tensor(0.5)

    def forward(self, x: Tensor, category: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.one(torch.relu(self.enter(x))))) * self.factor
        h = torch.relu(self.other(h)) + torch.relu(self.again(self.table(category)))
        return torch.relu(self.reads(torch.stack([h, h], 1))[0][:, -1])


def backbone() -> Backbone:
    with default(torch.float32):
        return Backbone()


def head() -> nn.Module:
    with default(torch.float32):
        return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def batch(samples: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    category = torch.randint(5, (samples,), generator=generator)
    return {"x": torch.randn(samples, 4, generator=generator, dtype=torch.float32), "category": category}


def train(net: Any, task: str) -> None:
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(task), lr=0.01))
    net.train()
    for step in range(3):
        net.anneal((step + 1) / 3)
        optimizer.zero_grad()
        (F.cross_entropy(net(batch(12, step), task), torch.arange(12) % 2) + 0.1 * net.regularization()).backward()
        optimizer.step()


def answers(net: Any, *tasks: str) -> dict[str, Tensor]:
    net.eval()
    with torch.no_grad():
        return {task: net(batch(6, 99), task) for task in tasks}


def life(kind: str, folder: Path, inside: Mapping[str, Context]) -> dict[str, Tensor]:
    """Live through what a network does, some steps inside of contexts, and return all outputs and parameters."""
    torch.manual_seed(0)
    folder.mkdir()
    step = lambda name: inside.get(name, nullcontext)()  # noqa: E731
    found: dict[str, Tensor] = {}
    with step("attach"):
        net: Any = KINDS[kind](backbone(), batch(3, 0))
    for number, task in enumerate(("a", "b", "c")):
        if number == 1:
            with step("head"):
                net.add_task(task, head=head())
        else:
            with step("add"):
                net.add_task(task, 2)
        train(net, task)
        if number == 2:
            with step("settle"):
                net.settle(task)
            train(net, task)
        with step("consolidate"):
            net.consolidate(task)
        with step("check"):
            net.check()
            net.restore()
    with step("calibrate"):
        for task in ("a", "c"):
            net.calibrate(task, batch(12, 7), torch.arange(12) % 2)
    found |= {f"first {task}": value for task, value in answers(net, "a", "b", "c").items()}
    with step("forget"):
        net.forget("c")
    group = next(group.name for group in hatrack.units.analyze(backbone(), batch(3, 0)).groups if "enter" in group.name)
    with step("grow"):
        net.grow({group: 3})
    with step("state"):
        net.load_state_dict(net.state_dict())
    with step("move"):
        net.to("cpu")
        net.double().float()
    with step("save"):
        net.save(folder / "net.hat")
    with step("load"):
        heads = {"b": head()}
        net = hatrack.load(folder / "net.hat", backbone(), heads=heads)
    with step("add"):
        net.add_task("d", 2)
    train(net, "d")
    with step("consolidate"):
        net.consolidate("d")
    found |= answers(net, "a", "b", "d")
    with step("extract"):
        small = net.extract("d")
    small.requires_grad_(True)(batch(6, 99)).sum().backward()  # it can be trained on
    found["extracted"] = small(batch(6, 99)).detach()
    with step("export"):
        export_task(net, "d", folder / "d.safetensors", batch(6, 1), Labels(("x", "y")))
    assert not any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers(), *small.parameters()))
    with step("detach"):
        detached = net.detach()
    return found | {name: value.detach() for name, value in detached.state_dict().items()}


@pytest.fixture(scope="module", params=slow_but(["units", "weights"], KINDS))
def outside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Tensor]]:
    return request.param, life(request.param, tmp_path_factory.mktemp("outside") / "net", {})


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    others = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not others


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_life_inside_of_a_context_is_that_outside(
    context: str, outside: tuple[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    kind, expected = outside
    require_same(life(kind, tmp_path / "net", dict.fromkeys(STEPS, CONTEXTS[context])), expected)


@pytest.mark.slow
@pytest.mark.parametrize("outside", ["units", "weights"], indirect=True)
@pytest.mark.parametrize("step", STEPS)
def test_a_single_step_inside_of_both_contexts(
    step: str, outside: tuple[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    kind, expected = outside
    require_same(life(kind, tmp_path / "net", {step: both}), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_new_task_has_the_type_of_the_backbone_whatever_the_default_is(
    kind: str, by_default: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    x = torch.randn(3, 4, dtype=dtype)
    build = lambda: nn.Sequential(nn.Linear(4, 6, dtype=dtype), nn.ReLU(), nn.GroupNorm(2, 6, affine=False))  # noqa: E731
    with default(by_default):
        net: Any = KINDS[kind](build(), x)
        net.add_task("a", 2)
        learned = torch.promote_types(dtype, torch.float32)  # small steps would be lost in bfloat16
        assert {p.dtype for p in net.masking.tasks[0].mask_values} == {learned}
        assert {p.dtype for p in net.tasks[0].head.parameters()} == {dtype}
        net.save(tmp_path / "net.hat")
        again = hatrack.load(tmp_path / "net.hat", build())
        assert {p.dtype for p in again.tasks[0].mask_values} == {learned}
        net.consolidate("a")
        small = net.extract("a", x)
        with torch.no_grad():
            assert torch.allclose(small(x), net.eval()(x, "a"), rtol=1e-2, atol=1e-2)
            assert small(x).dtype == dtype
