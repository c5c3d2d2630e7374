"""The methods that mask weights: what they have in common, and what sets each apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hatrack
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments import EXPERIMENTS
from hatrack.methods import METHODS
from hatrack.methods.masked import WeightMaskedMethod
from hatrack.train import OptimizerKind
from support.marks import slow_but
from support.toys import (
    EVERY_OPTIMIZER,
    KINDS,
    accuracy,
    assert_goes_on_as_without_interruption,
    assert_nothing_forgotten,
    learn,
    logits,
    make,
    rival_tasks,
    tasks,
)

NAMES = [name for name, method in METHODS.items() if issubclass(method, WeightMaskedMethod)]
EVERY_METHOD = pytest.mark.parametrize("name", NAMES)
ADAM = {"optimizer": OptimizerKind.ADAM, "lr": 0.01}


@EVERY_METHOD
@pytest.mark.parametrize("kind", slow_but(["mlp"], ["mlp", "conv"]))
@EVERY_OPTIMIZER
def test_earlier_tasks_keep_every_bit(name: str, kind: str, optimizer: str) -> None:
    assert_nothing_forgotten(make(name, kind), kind, optimizer)


@pytest.mark.slow
@EVERY_METHOD
@KINDS
def test_it_goes_on_after_loading_as_if_nothing_had_happened(name: str, kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption(name, kind, tmp_path)
    for task in straight.network.task_names:
        masks = after.network.masks(task)
        assert all(torch.equal(masks[weight], mask) for weight, mask in straight.network.masks(task).items())


@pytest.mark.slow
@KINDS
def test_pmask_with_ewc_goes_on_after_loading_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    straight, after = assert_goes_on_as_without_interruption("pmask", kind, tmp_path, ewc=100.0)
    wanted, found = straight.network.quadratic_penalty, after.network.quadratic_penalty
    for name, value in wanted.importance.items():
        assert value.any()
        assert torch.equal(found.importance[name], value)
        assert torch.equal(found.anchors[name], wanted.anchors[name])
    with pytest.raises(CheckpointError, match="with other settings"):
        make("pmask", kind).load(tmp_path / "net.hat")


@pytest.mark.slow
def test_pmask_with_ewc_moves_what_earlier_tasks_use_the_less_the_stronger_it_is() -> None:
    moved = []
    for ewc in (1.0, 10000.0):
        method, seen = make("pmask", ewc=ewc), tasks(count=2)
        learn(method, seen[:1], epochs=5, **ADAM)
        before, used = (
            method.network.quadratic_penalty.anchors["dense2.weight"].clone(),
            method.network.masks("t0")["dense2.weight"],
        )
        learn(method, seen, first=1, epochs=5, **ADAM)
        change = method.network.backbone.get_parameter("dense2.weight").detach() - before
        moved.append(float(change[used].abs().mean()))
    assert moved[0] > 1.5 * moved[1] > 0.0


@pytest.mark.slow
@EVERY_METHOD
def test_the_first_of_three_rivals_is_still_known(name: str) -> None:
    seen = rival_tasks()
    shares = {"prune_first": 0.7, "prune": 0.6} if name == "packnet" else {}  # its own leave a small network too little
    method = make(name, dropout=0.0, **shares)
    learn(method, seen, epochs=20, **ADAM)
    assert accuracy(method, seen[0]) > 0.85
    assert all(accuracy(method, task) > 0.75 for task in seen)
    capacity = method.capacity()
    assert capacity.units is None
    assert 0.0 < capacity.weights <= 1.0


@EVERY_METHOD
def test_the_library_reads_a_methods_file(name: str, tmp_path: Path) -> None:
    method, seen = make(name), tasks(count=1)
    learn(method, seen)
    method.save(tmp_path / "net.hat")
    net = hatrack.load(tmp_path / "net.hat", make(name).network.detach()).eval()
    x, _ = seen[0].test.load()
    with torch.no_grad():
        assert torch.equal(net(x, seen[0].name), logits(method, seen[0]))


@EVERY_METHOD
def test_a_file_of_another_such_method_is_refused(name: str, tmp_path: Path) -> None:
    other = NAMES[NAMES.index(name) - 1]
    make(other).save(tmp_path / "net.hat")
    with pytest.raises(CheckpointError, match="saved by another method, or with other settings"):
        make(name).load(tmp_path / "net.hat")


@pytest.mark.slow
def test_pmask_takes_fewer_weights_the_stronger_it_is_told_to() -> None:
    shares = []
    for c in (0.0, 20.0):
        method = make("pmask", c=c)
        learn(method, tasks(count=1), epochs=20, **ADAM)
        shares.append(method.capacity().weights)
    assert shares[1] < shares[0] - 0.1


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_wsn_takes_the_share_that_it_is_told_to(keep: float) -> None:
    method = make("wsn", keep=keep)
    learn(method, tasks(count=1), epochs=1)
    for mask in method.network.masks("t0").values():
        assert int(mask.sum()) == max(1, round(keep * mask.numel()))


def test_supsup_has_weights_of_one_size_per_layer_that_never_move() -> None:
    plain, method = make("sgd"), make("supsup")
    signs = {name: weight.sign() for name, weight in plain.network.backbone.named_parameters() if weight.dim() == 2}
    before = {name: method.network.backbone.get_parameter(name).clone() for name in signs}
    for name, weight in before.items():
        assert torch.equal(weight.sign(), signs[name])
        assert weight.abs().unique().tolist() == pytest.approx([(2 / weight.shape[1]) ** 0.5])
    learn(method, tasks(count=2), optimizer=OptimizerKind.ADAMW, lr=0.1, weight_decay=0.5)
    assert all(torch.equal(method.network.backbone.get_parameter(name), weight) for name, weight in before.items())
    assert not torch.equal(*(method.network.masks(task)["dense2.weight"] for task in method.network.task_names))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pmask", {"s_max": 0.0}, "s_max must be"),
        ("pmask", {"ewc": -1.0}, "ewc must be a finite number, 0 or more"),
        ("wsn", {"keep": 0.0}, "keep must be above 0"),
        ("supsup", {"keep": 2.0}, "keep must be above 0"),
        ("packnet", {"prune": 1.0}, "prune must be"),
    ],
)
def test_wrong_settings(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(name, **settings)


@pytest.mark.parametrize("name", ["pmask", "wsn", "supsup"])
def test_an_experiment_takes_the_optimizer_of_the_methods_source(name: str) -> None:
    training = EXPERIMENTS["split-mnist"].config(name).training
    assert (training.optimizer, training.lr) == (OptimizerKind.ADAM, 0.001)
    assert training.epochs == EXPERIMENTS["split-mnist"].config("hat").training.epochs
    overridden = EXPERIMENTS["split-mnist"].config(name).overridden({"optimizer": "sgd"})
    assert overridden.training.optimizer is OptimizerKind.SGD
