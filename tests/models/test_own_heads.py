"""Heads that users bring: any module, of one task alone, frozen with it, in every copy and file."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_doorway import KINDS, answer, attach, batch, learn
from torch import Tensor, nn

import hatrack
from hatrack import Growth, HATNetwork
from hatrack.errors import CheckpointError, GuaranteeError, InputError, UnsupportedError
from hatrack.support.inputs import tensors_in
from support.doorways import DOORWAYS
from support.helpers import mode
from support.marks import slow_but


class Several(nn.Module):
    """A head of several outputs, in a mapping."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.classes, self.box = nn.Linear(features, 3), nn.Linear(features, 4)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"classes": self.classes(features), "box": self.box(features).sigmoid()}


HEADS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "linear": ("mapping", lambda: nn.Linear(12, 2)),
    "mlp with batch norm": (
        "mapping",
        lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)),
    ),
    "several outputs": ("tuple", Several),
    "token classifier": ("token labels", lambda: nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 5))),
    "convolution": ("maps", lambda: nn.Sequential(nn.Conv2d(10, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))),
    "no parameters": ("mapping", nn.Identity),
}


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(one), tensors_in(other), strict=True))


def assert_close(one: Any, other: Any) -> None:
    for a, b in zip(tensors_in(one), tensors_in(other), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", slow_but(["several outputs", "convolution"], HEADS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_holds_for_heads_of_the_users_own(kind: str, name: str, tmp_path: Path) -> None:
    door, build = DOORWAYS[HEADS[name][0]], HEADS[name][1]
    net = attach(kind, door)
    head = build()
    x = learn(net, "a", door, head)
    assert net.tasks.named("a").head is head, "it is used as it is"
    before = answer(net, x, "a")
    learn(net, "b", door)
    learn(net, "c", door, build())
    net.save(tmp_path / "net.hat")
    loaded = hatrack.load(tmp_path / "net.hat", door.build(), heads={"a": build(), "c": build()})
    for each in (net, loaded, copy.deepcopy(net)):
        each.check()
        assert_same(answer(each, x, "a"), before)
    assert_close(net.extract("a")(x), before)
    c = answer(net, x, "c")
    net.forget("a", generator=torch.Generator().manual_seed(0))
    assert_same(answer(net, x, "c"), c)


def test_a_frozen_head_cannot_move_unnoticed() -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door)
    head = HEADS["mlp with batch norm"][1]()
    x = learn(net, "a", door, head)
    before = answer(net, x, "a")
    assert all(not parameter.requires_grad for parameter in head.parameters())
    assert all(bool(net.protected()[f"tasks.0.head.{name}"].all()) for name, _ in head.named_parameters())
    with mode(net, True):
        net(x, "a")  # does not move the statistics of the head
    assert_same(answer(net, x, "a"), before)
    with torch.no_grad():
        head[1].running_mean.add_(1)
    with pytest.raises(GuaranteeError, match="task a"):
        net.check()
    net.restore()
    assert_same(answer(net, x, "a"), before)


@pytest.mark.slow
def test_a_head_moves_along_with_the_network() -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door).double()
    x = {key: value.double() if key == "beside" else value for key, value in batch(door, 4).items()}
    net.add_task("a", head=Several())
    assert all(each.dtype == torch.float64 for each in tensors_in(net(x, "a")))


class Counting(nn.Module):
    """A head that counts its calls, and uses the count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(12, 2), 0

    def forward(self, features: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(features) * self.calls


class Moving(nn.Module):
    """A head whose buffer moves in evaluation mode."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 2)
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, features: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * features.detach().mean(0) + 0.1)
        return self.layer(features)


class Rounding(nn.Module):
    """Makes whole numbers of features."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, 0].abs().long().clamp(0, 8)


def shifted(by: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that adds sums of columns."""
    return lambda features: features + by[:12, :12].sum(0)


def square(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return a function that applies a part of a layer's weight."""
    return lambda features: features @ layer.weight[:12, :12]


class Noisy(nn.Linear):
    """A head that draws random numbers in evaluation mode, too."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features + torch.randn_like(features))


def sharing(layer: nn.Linear) -> nn.Module:
    """Return a head whose weight lies in the memory of another layer's."""
    head = nn.Linear(12, 12)
    head.weight = nn.Parameter(layer.weight.detach()[:, :12])
    return head


class Unregistered(nn.Module):
    """A head that uses a layer which it does not own."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(12, 2), [use]

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(self.use[0](features))


class Centring(nn.Module):
    """A head whose plain attribute moves in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean = nn.Linear(12, 2), torch.zeros(12)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(0)
        return self.layer(features - self.mean)


class Building(nn.Module):
    """A head that makes its layer when it is called first."""

    def forward(self, features: Tensor) -> Tensor:
        if not hasattr(self, "layer"):
            self.layer = nn.Linear(12, 2)
        return self.layer(features)


NOT_ITS_OWN = "uses a tensor that is no part of it"

REFUSED: dict[str, tuple[Callable[[HATNetwork], dict[str, Any]], type[Exception], str]] = {
    "both": (
        lambda net: {"num_classes": 2, "head": nn.Linear(12, 2)},
        InputError,
        "exactly one of num_classes and head",
    ),
    "none": (lambda net: {}, InputError, "exactly one of num_classes and head"),
    "no module": (lambda net: {"head": lambda x: x}, InputError, "must be a torch.nn.Module, not a function"),
    "another width": (
        lambda net: {"head": nn.Linear(11, 2)},
        InputError,
        r"does not run on features of shape \(2, 12\)",
    ),
    "not initialised": (lambda net: {"head": nn.LazyLinear(2)}, InputError, "weight of the head .* is not initialised"),
    "a part of the backbone": (lambda net: {"head": net.backbone.out}, InputError, "is a part of this network already"),
    "a view of it": (lambda net: {"head": sharing(net.backbone.out)}, InputError, "is a part of this network already"),
    "another task's": (lambda net: {"head": net.tasks[0].head}, InputError, "is a part of this network already"),
    "a counter": (lambda net: {"head": Counting()}, UnsupportedError, "changes calls in evaluation mode"),
    "a moving buffer": (lambda net: {"head": Moving()}, UnsupportedError, "changes mean in evaluation mode"),
    "a layer in a list": (lambda net: {"head": Unregistered(nn.Linear(12, 12))}, InputError, NOT_ITS_OWN),
    "the backbone's layer": (lambda net: {"head": Unregistered(square(net.backbone.out))}, InputError, NOT_ITS_OWN),
    "a tensor of its": (
        lambda net: {"head": Unregistered(shifted(net.backbone.out.weight.detach()))},
        InputError,
        NOT_ITS_OWN,
    ),
    "a plain mean": (lambda net: {"head": Centring()}, UnsupportedError, "has changed mean, which no file holds"),
    "a layer made late": (lambda net: {"head": Building()}, InputError, "makes layers when it is called first"),
    "a table that rescales itself": (
        lambda net: {"head": nn.Sequential(Rounding(), nn.Embedding(9, 2, max_norm=1.0))},
        UnsupportedError,
        "max_norm rescales entries",
    ),
    "noise": (lambda net: {"head": Noisy(12, 2)}, UnsupportedError, "other outputs from call to call"),
}


@pytest.fixture(scope="module")
def of_one_task() -> HATNetwork:
    """Network that has learned task a; to be copied."""
    door = DOORWAYS["mapping"]
    net: HATNetwork = attach("units", door)
    learn(net, "a", door, nn.Linear(12, 2))
    return net


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_would_break_the_law_are_refused(name: str, of_one_task: HATNetwork) -> None:
    make, error, message = REFUSED[name]
    net = copy.deepcopy(of_one_task)
    with pytest.raises(error, match=message):
        net.add_task("b", **make(net))
    assert net.task_names == ("a",)
    net.add_task("b", 2)


def test_state_that_a_hook_puts_into_a_head_is_refused_when_it_is_consolidated() -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door)
    head = Unregistered(lambda features: features + getattr(head, "inner", features).mean())
    net.backbone.encoder.register_forward_hook(lambda _, args, output: setattr(head, "inner", output))
    net.add_task("a", head=head)
    net(batch(door, 4), "a")
    with pytest.raises(UnsupportedError, match="has changed inner, which no file holds"):
        net.consolidate("a")


@pytest.mark.slow
def test_weight_norm_of_either_kind_may_be_in_a_head(tmp_path: Path) -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.utils.weight_norm(nn.Linear(12, 2))
    x = learn(net, "a", door, old)
    before = answer(net, x, "a")
    learn(net, "b", door, nn.utils.parametrizations.weight_norm(nn.Linear(12, 2)))
    assert_same(answer(net, x, "a"), before)


def test_what_needs_classes_is_refused_in_one_line(tmp_path: Path) -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door)
    x = learn(net, "own", door, nn.Linear(12, 3))
    learn(net, "classes", door)
    refusals: list[Callable[[], Any]] = [
        lambda: net(x, ["own", "classes"] * 3),
        lambda: net.calibrate("own", x, torch.zeros(6).long()),
        lambda: net.infer(x),
        lambda: net.logits_of_tasks({"own": x}),
    ]
    for refused in refusals:
        with pytest.raises(InputError, match="task 'own' has a head of its own"):
            refused()


@pytest.mark.slow
def test_files_name_heads_that_are_missing_or_others(tmp_path: Path) -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door)
    learn(net, "a", door, nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 1)))
    net.save(tmp_path / "net.hat")

    def load(**options: Any) -> Any:
        return hatrack.load(tmp_path / "net.hat", door.build(), **options)

    with pytest.raises(InputError, match=r"'a' brought heads of their own.*heads=\{'a': \.\.\.\}"):
        load()
    with pytest.raises(InputError, match="no task with a head of its own named 'b'"):
        load(heads={"a": nn.Linear(12, 1), "b": nn.Linear(12, 1)})
    with pytest.raises(CheckpointError, match="the head of task 'a' is another one"):
        load(heads={"a": nn.Linear(12, 1)})
    with pytest.raises(CheckpointError, match=r"tasks\.0\.head\.0\.weight has shape \(4, 12\) in the file"):
        load(heads={"a": nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 1))})


@pytest.mark.slow
def test_files_of_tasks_with_heads_are_unlearned(tmp_path: Path) -> None:
    door = DOORWAYS["mapping"]
    net = attach("units", door)
    learn(net, "a", door, nn.Linear(12, 1))
    x = learn(net, "b", door, Several())
    before = answer(net, x, "b")
    net.save(tmp_path / "net.hat")
    reports = hatrack.forget_in_files(
        "a", [tmp_path / "net.hat"], door.build, build_heads=lambda: {"a": nn.Linear(12, 1), "b": Several()}
    )
    assert len(reports) == 1
    again = hatrack.load(tmp_path / "net.hat", door.build(), heads={"b": Several()})
    assert_same(answer(again, x, "b"), before)


def test_features_that_a_head_takes_cannot_grow() -> None:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()), torch.zeros(1, 4))
    net.add_task("a", head=nn.Linear(6, 1))
    net.consolidate("a")
    with pytest.raises(InputError, match="task 'a' brought a head of its own, for 6 features"):
        net.grow({"2": 2})
    x = torch.randn(5, 4)
    before = answer(net, x, "a")
    net.grow({"0": 2}, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(answer(net, x, "a"), before, atol=1e-6)


def test_a_network_that_grows_by_itself_leaves_such_features_alone() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    net = HATNetwork(backbone, torch.zeros(1, 4), growth=Growth(threshold=0.9))
    for task in ("a", "b", "c"):
        net.add_task(task, head=nn.Linear(6, 1))
        net.consolidate(task)
    widths = {group.name: group.size for group in net.units.groups}
    assert widths["2"] == 6
    assert widths["0"] > 8


@pytest.mark.slow
@given(st.lists(st.booleans(), min_size=2, max_size=5), st.integers(0, 3))
def test_own_and_linear_heads_live_beside_each_other(own: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    door = DOORWAYS["tuple"]
    net = attach("units", door)
    promised: dict[str, tuple[Any, Any]] = {}
    for number, brings in enumerate(own):
        name = f"task {number}"
        x = learn(net, name, door, Several() if brings else None, steps=2)
        promised[name] = (x, answer(net, x, name))
        for task, (samples, said) in promised.items():
            assert_same(answer(net, samples, task), said)
    net.check()


class ForMany(nn.Module):
    """Head that does something else for many samples."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(12, 2), what
        self.others = [nn.Linear(12, 2)]
        self.kept: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        said: Tensor = self.layer(features)
        if len(features) < 5:
            return said
        if self.what == "keeps":
            self.kept = features.mean() if self.kept is None else self.kept
            return said + self.kept
        noise: Tensor = torch.randn_like(said) if self.what == "draws" else self.others[0](features)
        return said + noise


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("keeps", "changes kept in evaluation mode"),
        ("draws", "gives other outputs from call to call"),
        ("uses another's", "uses a tensor that is no part of it"),
    ],
)
def test_a_head_is_tried_with_many_samples(what: str, message: str, of_one_task: HATNetwork) -> None:
    net = copy.deepcopy(of_one_task)
    with pytest.raises((UnsupportedError, InputError), match=message):
        net.add_task("b", head=ForMany(what))


class Scaled(nn.Module):
    """Head with a setting that no file's tensors hold."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(12, 3), factor

    def forward(self, features: Tensor) -> Tensor:
        said: Tensor = self.layer(features)
        return said * self.factor


def activated(**settings: Any) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.LayerNorm(12, eps=settings.get("eps", 1e-5)),
        nn.GELU(approximate=settings.get("approximate", "none")),
        nn.Linear(12, 12),
        nn.LeakyReLU(settings.get("slope", 0.1)),
        nn.Dropout(settings.get("p", 0.1)),
    )


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize(
    ("settings", "factor", "said"),
    [
        ({}, 5.0, r"the head of task 'a'\.factor was 1\.0 and is 5\.0; and task 'a'"),
        ({"eps": 1e-3}, 1.0, r"1\.eps was 1e-05 and is 0\.001"),
        ({"approximate": "tanh"}, 1.0, r"2\.approximate was 'none' and is 'tanh'"),
        ({"slope": 0.11}, 1.0, r"4\.negative_slope was 0\.1 and is 0\.11"),
    ],
)
def test_other_settings_are_refused_where_a_task_answers_otherwise(
    kind: Any, settings: dict[str, Any], factor: float, said: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = kind(activated(), torch.randn(4, 6))
    net.add_task("a", head=Scaled(1.0))
    net.consolidate("a")
    net.add_task("b", 3)
    with torch.no_grad():
        net.tasks[1].head.weight.zero_()
    net.consolidate("b")
    net.save(tmp_path / "net.hat")
    with pytest.raises(CheckpointError, match=f"was saved with other settings: {said}"):
        hatrack.load(tmp_path / "net.hat", activated(**settings), heads={"a": Scaled(factor)})
    again = hatrack.load(tmp_path / "net.hat", activated(p=0.5), heads={"a": Scaled(1.0)})
    x = torch.randn(5, 6)
    assert all(torch.equal(again.eval()(x, task), net.eval()(x, task)) for task in "ab")
