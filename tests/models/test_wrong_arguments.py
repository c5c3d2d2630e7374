"""Arguments that are no batch, no task or no group are refused in one line, with the cause, by both networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack import HATNetwork, InputError, Learner, WeightMaskedNetwork

ATTACH: dict[str, Callable[..., Any]] = {
    "units": HATNetwork,
    "weights": lambda backbone, example, **more: WeightMaskedNetwork(backbone, example, **more),
}
EVERY_KIND = pytest.mark.parametrize("kind", ATTACH)


class Folded(nn.Module):
    """Handles tokens as samples, and may leave them so."""

    def __init__(self, unfold: bool) -> None:
        super().__init__()
        self.layer, self.unfold = nn.Linear(4, 12), unfold

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.layer(x.reshape(-1, 4)))
        return h.view(len(x), -1, 12).mean(1) if self.unfold else h


class Averaged(nn.Module):
    """Takes the mean over the samples, which leaves one row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)).mean(0, keepdim=True)


@EVERY_KIND
def test_features_of_other_rows_than_samples_are_refused_with_their_cause(kind: str) -> None:
    attach = ATTACH[kind]
    folded = (
        r"features of shape \(12, 12\) for a batch of 2, not a row for every sample: your backbone folded another axis "
        r"into the batch, such as one of 6 tokens: unfold it at its end, features\.view\(2, 6, -1\)"
    )
    with pytest.raises(InputError, match=folded) as caught:
        attach(Folded(unfold=False), torch.zeros(2, 6, 4))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"\(1, 12\) for a batch of 2, .*: keep the axis of the samples"):
        attach(Averaged(), torch.zeros(2, 4))
    backbone = Folded(unfold=True)
    net = attach(backbone, torch.zeros(2, 6, 4))
    net.add_task("a", 2)
    assert net(torch.zeros(3, 6, 4), "a").shape == (3, 2)
    backbone.unfold = False
    with pytest.raises(InputError, match=r"\(18, 12\) for a batch of 3, .* such as one of 6 tokens"):
        net(torch.zeros(3, 6, 4), "a")


@EVERY_KIND
def test_a_batch_that_is_folded_later_is_refused(kind: str) -> None:
    net = ATTACH[kind](Folded(unfold=False), torch.zeros(2, 1, 4))
    net.add_task("a", 2)
    assert net(torch.zeros(3, 1, 4), "a").shape == (3, 2)
    with pytest.raises(InputError, match=r"folded another axis|the network expects \(N, 1, 4\)"):
        net(torch.zeros(3, 5, 4), "a")


def test_a_learner_says_so_at_once() -> None:
    with pytest.raises(InputError, match=r"folded another axis into the batch, such as one of 6 tokens"):
        Learner(Folded(unfold=False), (6, 4))


@EVERY_KIND
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_wherever_inputs_go(kind: str, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)], layout=layout)
    attach = ATTACH[kind]
    net = attach(Folded(unfold=True), torch.zeros(2, 6, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    calls: list[Callable[[], Any]] = [
        lambda: attach(Folded(unfold=True), nested),
        lambda: net(nested, "a"),
        lambda: net(nested, ["a", "a"]),
        lambda: net.calibrate("a", nested, torch.zeros(2).long()),
        lambda: net.infer(nested),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"nested tensors .* pad them") as caught:
            call()
        assert "\n" not in str(caught.value)


@EVERY_KIND
@pytest.mark.parametrize("groups", [0.5, None, 3, "layer", ["layer"], {"layer"}, torch.tensor(3)])
def test_growth_needs_groups_and_numbers(kind: str, groups: Any) -> None:
    net = ATTACH[kind](nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), torch.zeros(1, 4))
    before = [value.clone() for value in net.state_dict().values()]
    with pytest.raises(InputError, match=r"groups must say how many units to add to which group.*and be no") as caught:
        net.grow(groups)
    assert "\n" not in str(caught.value)
    for name in (0, None, ("0",)):
        with pytest.raises(InputError, match=r"there is no group of units"):
            net.grow({name: 2})
    for count in (0.5, "3", None, 0, True, torch.tensor(3)):
        with pytest.raises(InputError, match=r"the group '0' can grow by a whole number of units, at least 1"):
            net.grow({"0": count})
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


@EVERY_KIND
@pytest.mark.parametrize("name", [3, None, 0.5, b"a", ["a"], {"a": 1}])
def test_what_is_no_name_names_no_task(kind: str, name: Any) -> None:
    net = ATTACH[kind](nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(1, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    for call in (net.masks, net.forget, net.extract, net.consolidate, net.task_parameters):
        with pytest.raises(InputError, match=r"task"):
            call(name)
    learner = Learner(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (4,))
    for ask in (learner.forget, lambda task: learner.evaluate(task, (torch.zeros(4, 4), torch.arange(4) % 2))):
        with pytest.raises(InputError, match=r"there is no task"):
            ask(name)
    with pytest.raises(InputError, match=r"task"):
        learner.fit(name, (torch.zeros(4, 4), torch.arange(4) % 2))
    if name is not None:  # which means: recognise it
        with pytest.raises(InputError, match=r"task"):
            learner.predict(torch.zeros(4, 4), name)
