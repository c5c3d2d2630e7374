"""A file is read only into a backbone that computes what the saved one did; what rounding cannot explain is said."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import CheckpointError, HATNetwork, WeightMaskedNetwork
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

KINDS = {"units": HATNetwork, "weights": WeightMaskedNetwork}


class Scaled(nn.Module):
    """A network whose code may differ though its class, its weights and its settings are the same."""

    def __init__(self, factor: float = 1.0, far: float = 0.0) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Linear(4, 16), nn.Linear(3, 16), nn.Linear(16, 16)
        vars(self)["_code"] = lambda x: (x * factor + far) - far  # a function is no setting

    def forward(self, image: Tensor, beside: Tensor) -> Tensor:
        return torch.relu(self.out(torch.relu(self._code(self.one(image)) + self.other(beside))))


def batch(samples: int) -> dict[str, Tensor]:
    return {"image": torch.randn(samples, 4), "beside": torch.randn(samples, 3)}


def learned(kind: str, backbone: nn.Module, path: Path) -> Any:
    torch.manual_seed(0)
    net = KINDS[kind](backbone, batch(4))
    for name in ("a", "b"):
        net.add_task(name, 3)
        optimizer = net.protect(torch.optim.Adam(net.task_parameters(name), lr=0.01))
        net.train()
        for step in range(4):
            net.anneal((step + 1) / 4)
            optimizer.zero_grad()
            F.cross_entropy(net(batch(12), name), torch.arange(12) % 3).backward()
            optimizer.step()
        net.consolidate(name)
    net.save(path)
    return net


def rewritten(path: Path, **changes: Any) -> Path:
    """Write a file anew with other entries in its description; None takes one away."""
    whole = read_checkpoint(path)
    described = {**whole.description, **changes}
    for key in [key for key, value in changes.items() if value is None]:
        del described[key]
    write_checkpoint(path.with_name("other.hat"), Checkpoint(whole.tensors, described))
    return path.with_name("other.hat")


def moved(path: Path, by: float) -> dict[str, list[float]]:
    """Return the saved outputs of all tasks, the first of each moved by a part of the largest."""
    probes = read_checkpoint(path).description["probes"]
    return {task: [v[0] + by * max(map(abs, v)), *v[1:]] for task, v in probes.items()}


@pytest.mark.parametrize("factor", [1.0003, 1.01, 1.05, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_other_code_is_refused(kind: str, factor: float, tmp_path: Path) -> None:
    learned(kind, Scaled(), tmp_path / "net.hat")
    hatrack.load(tmp_path / "net.hat", Scaled())
    with pytest.raises(CheckpointError, match=r"'[ab]' gives other outputs, by \S+ of the largest, where rounding"):
        hatrack.load(tmp_path / "net.hat", Scaled(factor))


ARITHMETIC: dict[str, tuple[Any, str]] = {
    "older file": (None, "does not say what its outputs were computed with"),
    "torch": ({"torch": "1.0", "device": "cpu"}, "torch was '1.0' then"),
    "device": ({"torch": torch.__version__, "device": "Some GPU"}, "device was 'Some GPU' then, and is 'cpu' here"),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_what_is_computed_with_something_else_may_differ_further_and_a_warning_says_so(
    case: str, tmp_path: Path
) -> None:
    learned("units", Scaled(), tmp_path / "net.hat")
    arithmetic, said = ARITHMETIC[case]
    hatrack.load(rewritten(tmp_path / "net.hat", arithmetic=arithmetic), Scaled())
    probes = moved(tmp_path / "net.hat", 1e-3)
    with pytest.warns(UserWarning, match=rf"by 1\.0e-03 of the largest.*{said}.*other code") as caught:
        hatrack.load(rewritten(tmp_path / "net.hat", arithmetic=arithmetic, probes=probes), Scaled())
    assert caught[0].filename == __file__
    probes = moved(tmp_path / "net.hat", 0.1)
    with pytest.raises(CheckpointError, match="was saved with another backbone"):
        hatrack.load(rewritten(tmp_path / "net.hat", arithmetic=arithmetic, probes=probes), Scaled())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "net.hat"
    learned("units", Scaled(), path)
    return path


@settings(max_examples=12)
@given(by=st.floats(-7, -0.5).map(lambda power: 10**power), here=st.booleans())
def test_an_output_that_moved_is_read_in_silence_or_with_a_warning_or_not_at_all(
    by: float, here: bool, saved: Path
) -> None:
    path, changes = saved, {} if here else {"arithmetic": None}
    changed = rewritten(path, probes=moved(path, by), **changes)
    outcome = "silence"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            hatrack.load(changed, Scaled())
        except CheckpointError:
            outcome = "refused"
        else:
            outcome = "warned" if caught else outcome
    bounds = 1e-5, 1e-5 if here else 0.02  # up to twice as much for the largest output itself
    if by < 0.9 * bounds[0]:
        assert outcome == "silence"
    elif 2.1 * bounds[0] < by:
        assert outcome == "refused" if by > 2.1 * bounds[1] else outcome in ("warned", "refused")
        assert outcome == "warned" or by > 0.9 * bounds[1]


def test_a_network_of_few_digits_or_of_large_errors_may_differ_by_what_it_rounds(tmp_path: Path) -> None:
    path = tmp_path / "net.hat"
    learned("units", Scaled(far=3000.0), path)  # which leaves 1e-4 of each value
    hatrack.load(rewritten(path, probes=moved(path, 1e-4)), Scaled(far=3000.0))
    with pytest.raises(CheckpointError, match="where rounding explains"):
        hatrack.load(rewritten(path, probes=moved(path, 0.05)), Scaled(far=3000.0))
    net = learned("units", Scaled(), path)
    with pytest.warns(UserWarning, match="rounds weights"):
        net.bfloat16()
    net.save(path)
    hatrack.load(rewritten(path, probes=moved(path, 1e-3)), Scaled().bfloat16())
    with pytest.raises(CheckpointError, match="gives other outputs"):
        hatrack.load(rewritten(path, probes=moved(path, 0.3)), Scaled().bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_moves_the_last_digits_alone_is_said(kind: str, tmp_path: Path) -> None:
    build = lambda eps, drop: nn.Sequential(  # noqa: E731
        nn.Linear(4, 16), nn.LayerNorm(16, eps=eps), nn.ReLU(), nn.Dropout(drop)
    )
    torch.manual_seed(0)
    net: Any = KINDS[kind](build(1e-5, 0.1), torch.randn(3, 4))
    net.add_task("a", 3)
    net.consolidate("a")
    net.save(tmp_path / "net.hat")
    hatrack.load(tmp_path / "net.hat", build(1e-5, 0.5))  # which has no effect on answers
    with pytest.warns(UserWarning, match=r"1\.eps was 1e-05 and is 1\.02e-05; .* 'a' differ in their last digits"):
        hatrack.load(tmp_path / "net.hat", build(1.02e-5, 0.1))


class Heads(nn.Module):
    """Attention written by hand: how many heads there are decides which channels are one unit."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        parts = [m(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v)]
        return torch.relu(self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2).mean(1)))


class Folded(nn.Module):
    """A network that takes channels together: how many decides how many units there are."""

    def __init__(self, together: int = 2) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).unflatten(2, (-1, self.together))
        return torch.relu(self.out((h * h.sum(-1, keepdim=True)).flatten(2).mean(1)))


@pytest.mark.parametrize("others", [1, 4, 8, 3])
@pytest.mark.parametrize("build", [Heads, Folded])
def test_a_setting_by_which_units_are_other_ones_is_named(build: Any, others: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = HATNetwork(build(), torch.zeros(2, 5, 8))
    for name in ("a", "b"):
        net.add_task(name, 2)
        net.consolidate(name)
    net.save(tmp_path / "net.hat")
    name = next(key for key, value in vars(build()).items() if value == 2 and key[0] != "_")
    with pytest.raises(CheckpointError, match=rf"with other settings: {name} was 2 and is {others}[ ;]"):
        hatrack.load(tmp_path / "net.hat", build(others))
    assert hatrack.load(tmp_path / "net.hat", build()).task_names == ("a", "b")
