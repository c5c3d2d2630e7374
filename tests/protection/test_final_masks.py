"""Final masks and sums of calibrated tasks: whatever loads or averages them past the network, old answers stay."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hatrack import GuaranteeError, InputError, load
from support.old_task import KINDS, X, Y, backbone, says, with_old_task


def inverted(value: Tensor) -> Tensor:
    """Other values of any type."""
    if value.dtype == torch.bool:
        return value
    return -3 * value if value.is_floating_point() else ~value


def of_another(net: Any) -> None:
    state = {
        name: inverted(value) for name, value in net.tasks.state_dict().items() if "sums" not in name or "gram" in name
    }
    net.tasks.load_state_dict(state | {k: v for k, v in net.tasks.state_dict().items() if k not in state})


def in_place(state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in state.items():
            if not name.endswith("_extra_state"):
                value.copy_(inverted(value))


CHANGES: dict[str, Callable[[Any], object]] = {
    "all tasks loaded": of_another,
    "bits of one task loaded": lambda net: net.tasks[0].load_state_dict(
        {"packed": inverted(net.tasks[0].packed)}, strict=False
    ),
    "bits inverted": lambda net: net.tasks[0].packed.bitwise_not_(),
    "assigned": lambda net: setattr(net.tasks[0], "packed", inverted(net.tasks[0].packed)),
    "state_dict in place": lambda net: in_place(net.state_dict()),
    "state_dict(keep_vars=True) in place": lambda net: in_place(net.state_dict(keep_vars=True)),
    "sums assigned": lambda net: setattr(net.tasks[0], "sums", None),
}


@pytest.mark.parametrize("in_training", [False, True], ids=["done", "in training"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_old_answers_stay(kind: str, change: str, in_training: bool, tmp_path: Any) -> None:
    net = with_old_task(kind)
    if not in_training:
        net.forget("new")
    net.calibrate("old", X, Y)
    net.eval()
    before, found = says(net), net.infer(X).logits
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        with contextlib.suppress(GuaranteeError):  # where digests are compared at once
            CHANGES[change](net)
        assert torch.equal(net(X, "old"), before)
        assert torch.equal(net.infer(X).logits, found)
    assert all("consolidated tasks answer as before" in str(warning.message) for warning in said)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what has been said
        net.restore()
        net.check()
        net.save(tmp_path / "net.hat")
        if in_training:
            net.consolidate("new")
        assert torch.equal(net(X, "old"), before)
        again: Any = load(tmp_path / "net.hat", backbone())
    assert torch.equal(again.eval()(X, "old"), before)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bits_are_named(kind: str) -> None:
    net = with_old_task(kind).eval()
    net.tasks[0].packed.bitwise_not_()
    with pytest.raises(GuaranteeError, match=r"moved in task old \(tasks\.0\.packed\).*restore\(\)"):
        net.check()
    before = says(with_old_task(kind))
    with torch.no_grad(), pytest.warns(UserWarning, match=r"frozen entries of tasks\.0\.packed.*answer as before"):
        assert torch.equal(net(X, "old"), before)


@pytest.mark.parametrize("kind", KINDS)
def test_averages_in_place_leave_calibrated_tasks_whole(kind: str, tmp_path: Any) -> None:
    """The usual idiom: weights need not have changed for last bits of what is averaged to move."""
    net = with_old_task(kind).eval()
    net.calibrate("old", X, Y)
    before = net.infer(X).logits
    average = {name: value.clone() for name, value in net.state_dict().items()}
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(average[name].mul_(0.9).add_(value, alpha=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(net.infer(X).logits, before)
        net.restore()
        net.consolidate("new")
        net.save(tmp_path / "net.hat")


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_loaded_with_its_masks(kind: str) -> None:
    """A whole state_dict of other tasks of the same names is no change past the network."""
    one, other = with_old_task(kind, seed=0), with_old_task(kind, seed=1)
    other.calibrate("old", X, Y)
    answer = says(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.load_state_dict(other.state_dict())
        assert torch.equal(says(one), answer)
        with torch.no_grad():
            one.eval()
            assert torch.equal(one(X, "old"), answer)
            assert torch.equal(one.infer(X).logits, other.eval().infer(X).logits)
        one.check()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_sums_are_refused_in_a_line(kind: str) -> None:
    net = with_old_task(kind).eval()
    net.calibrate("old", X, Y)
    before = says(net)
    state = net.state_dict()
    state["tasks.0.sums.feature_map"].bitwise_not_()
    with pytest.raises(InputError, match="sums of a task are damaged"):
        net.load_state_dict(state)
    assert torch.equal(says(net), before)
