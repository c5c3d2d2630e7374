"""Settings of tasks' batch norms: each task keeps its own, in files as well, and hears of changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hatrack
from hatrack.gating.norms import BatchNorms
from hatrack.masks import Unmasked

X = 0.05 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())


def attach(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(build(), torch.zeros(2, 6), **settings)


@pytest.fixture(params=[hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def learn(net: Any, name: str) -> None:
    net.add_task(name, 2)
    optimizer = net.protect(torch.optim.SGD(net.task_parameters(name), lr=0.1))
    net.train()
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(net(X, name), torch.arange(len(X)) % 2).backward()
        optimizer.step()


def ask(net: Any, name: str) -> Tensor:
    with torch.no_grad():
        answer: Tensor = net.eval()(X, name)
    return answer


def two_tasks(net: Any) -> dict[str, Tensor]:
    """Learn two tasks, between which settings of the backbone's norm change; all norms have other ones in the end."""
    answers = {}
    for name, eps in (("a", 1e-2), ("b", 1e-3)):
        net.backbone[1].eps, net.backbone[1].momentum = eps, 10 * eps
        learn(net, name)
        net.consolidate(name)
        answers[name] = ask(net, name)
    net.backbone[1].eps, net.backbone[1].momentum = 1e-5, None
    assert torch.equal(ask(net, "a"), answers["a"])
    return answers


def settings_of(net: Any) -> list[tuple[float, float | None]]:
    return [(norm.eps, norm.momentum) for state in net.tasks for norm in state.batch_norms]


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
def test_files_hold_every_tasks_own_settings(eps: float, kind: Any, tmp_path: Path) -> None:
    net = attach(kind)
    answers = two_tasks(net)
    net.backbone[1].momentum = 0.7
    learn(net, "in training")
    net.save(tmp_path / "net.hat")
    backbone = build()
    backbone[1].eps = eps  # which no task has
    loaded = hatrack.load(tmp_path / "net.hat", backbone)
    assert settings_of(loaded) == settings_of(net) == [(1e-2, 0.1), (1e-3, 0.01), (1e-5, 0.7)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(torch.equal(ask(loaded, name), answer) for name, answer in answers.items())
        assert all(torch.equal(ask(net, name), answer) for name, answer in answers.items())
    assert torch.equal(ask(loaded, "in training"), ask(net, "in training"))


def test_files_of_before_have_the_backbones_settings(kind: Any, tmp_path: Path, monkeypatch: Any) -> None:
    net = attach(kind)
    net.backbone[1].eps = 1e-2
    learn(net, "a")
    net.consolidate("a")
    checkpoint = net.to_checkpoint()
    for task in checkpoint.description["tasks"]:
        del task["norms"]
    monkeypatch.setattr(net, "to_checkpoint", lambda: checkpoint)
    net.save(tmp_path / "net.hat")
    backbone = build()
    backbone[1].eps = 1e-2
    assert torch.equal(ask(hatrack.load(tmp_path / "net.hat", backbone), "a"), ask(net, "a"))
    with pytest.raises(hatrack.errors.CheckpointError, match=r"other settings: 1\.eps was 0\.01"):
        hatrack.load(tmp_path / "net.hat", build())


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    r"tasks\.0\.batch_norms\.0\.eps \(0\.01 before, 2\.0 now\)": lambda norm: setattr(norm, "eps", 2.0),
    r"the hooks of tasks\.0\.batch_norms\.0": lambda norm: norm.register_forward_hook(lambda _m, _x, y: y * 1.5),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_of_a_tasks_norms_are_named(what: str, kind: Any) -> None:
    net = attach(kind)
    answers = two_tasks(net)
    for each in (net, copy.deepcopy(net)):
        CHANGES[what](each.tasks[0].batch_norms[0])
        assert torch.equal(ask(each, "b"), answers["b"])  # of which nothing is said
        if "hooks" in what and kind is hatrack.WeightMaskedNetwork:  # whose twins have the backbone's hooks alone
            assert torch.equal(ask(each, "a"), answers["a"])
            continue
        with pytest.warns(UserWarning, match=f"^{what}: task 'a' answers otherwise") as found:
            changed = ask(each, "a")
        assert found[0].filename == __file__
        assert not torch.equal(changed, answers["a"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(ask(each, "a"), changed)  # said once


def test_what_is_put_back_gives_the_old_bits_and_further_changes_are_said(kind: Any) -> None:
    net = attach(kind)
    answers, norm = two_tasks(net), net.tasks[1].batch_norms[0]
    norm.eps = 2.0
    learn(net, "c")
    net.consolidate("c")  # which does not take the change for granted
    with pytest.warns(UserWarning, match=r"tasks\.1\.batch_norms\.0\.eps \(0\.001 before"):
        ask(net, "b")
    norm.eps = 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ask(net, "b"), answers["b"])
        norm.momentum = 0.9  # of statistics that it gathers no more
        assert torch.equal(ask(net, "b"), answers["b"])
    net.forget("a")
    norm.eps = 1.0
    with pytest.warns(UserWarning, match=r"tasks\.0\.batch_norms\.0\.eps \(0\.001 before, 1\.0 now\): task 'b'"):
        ask(net, "b")


def test_tasks_in_training_may_be_set(kind: Any) -> None:
    net = attach(kind)
    learn(net, "a")
    net.tasks[0].batch_norms[0].eps = 0.3
    ask(net, "a")
    net.consolidate("a")
    answer = ask(net, "a")
    net.tasks[0].batch_norms[0].eps = 0.2
    with pytest.warns(UserWarning, match=r"\(0\.3 before, 0\.2 now\)"):
        assert not torch.equal(ask(net, "a"), answer)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (hatrack.HATNetwork, {"batch_norms": BatchNorms.SHARED}),
        (hatrack.WeightMaskedNetwork, {"unmasked": Unmasked.FIRST_TASK}),
    ],
)
def test_norms_that_all_tasks_use_are_watched_for_all(kind: Any, settings: dict[str, Any]) -> None:
    net = attach(kind, **settings)
    for name in "ab":
        learn(net, name)
        net.consolidate(name)
    net.tasks[0].batch_norms[0].eps = 1.0
    with pytest.warns(UserWarning, match=r"tasks\.0\.batch_norms\.0\.eps .*tasks 'a', 'b' answer otherwise"):
        ask(net, "b")


def test_batches_of_several_tasks_use_the_settings_of_each() -> None:
    net = attach(hatrack.HATNetwork)
    answers = two_tasks(net)
    with torch.no_grad():
        mixed = net.eval()(X, ["a", "b"] * 4)
    assert net.masking.mixes(X, 2)
    for number, name in enumerate("ab"):
        assert torch.allclose(mixed[number::2], answers[name][number::2], atol=1e-6)
    net.tasks[0].batch_norms[0].register_forward_hook(lambda _m, _x, y: y * 1.5)
    with torch.no_grad(), pytest.warns(UserWarning, match="the hooks of"):
        mixed = net(X, ["a", "b"] * 4)
    for number, name in enumerate("ab"):
        assert torch.allclose(mixed[number::2], ask(net, name)[number::2], atol=1e-6)


def test_growing_keeps_settings_and_says_nothing() -> None:
    net = attach(hatrack.HATNetwork)
    answers = two_tasks(net)
    net.grow({net.units.groups[0].name: 4}, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(torch.allclose(ask(net, name), answer, atol=1e-6) for name, answer in answers.items())
    assert settings_of(net) == [(1e-2, 0.1), (1e-3, 0.01)]
    net.tasks[0].batch_norms[0].eps = 2.0
    with pytest.warns(UserWarning, match=r"eps \(0\.01 before, 2\.0 now\): task 'a'"):
        ask(net, "a")


@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_a_file_does_not_take_up_a_changed_setting_without_a_word(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = kind(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)), torch.zeros(2, 6))
    net.add_task("a", 2)
    net.consolidate("a")
    net.eval()(torch.randn(3, 6), "a")
    net.tasks.named("a").batch_norms[0].eps = 0.5
    with pytest.warns(UserWarning, match=r"eps \(1e-05 before, 0\.5 now\): task 'a' answers otherwise"):
        net.save(tmp_path / "net.hat")


@pytest.mark.parametrize("asked_between", [False, True])
def test_changed_settings_of_shared_norms_are_said_though_their_owner_is_forgotten(asked_between: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
    net = hatrack.HATNetwork(nn.Sequential(*layers), torch.zeros(2, 6), batch_norms=BatchNorms.SHARED)
    for name in ("a", "b"):
        net.add_task(name, 2)
        net.consolidate(name)
    x = torch.randn(3, 6)
    net.eval()(x, "b")
    net.tasks.named("a").batch_norms[0].eps = 0.5

    def go_on() -> None:
        if asked_between:
            net(x, "b")
        net.forget("a")
        net(x, "b")

    with pytest.warns(UserWarning, match=r"eps \(1e-05 before, 0\.5 now\)"):
        go_on()


def _as_tent(norm: nn.BatchNorm1d) -> None:
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


def _as_adabn(norm: nn.BatchNorm1d) -> None:
    assert norm.running_mean is not None
    norm.running_mean = torch.zeros_like(norm.running_mean)


@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
@pytest.mark.parametrize("replace", [_as_tent, _as_adabn])
def test_statistics_of_tasks_that_are_replaced_are_refused(
    kind: Any, replace: Callable[[nn.BatchNorm1d], None]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    net = kind(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), x)
    for task in ("one", "two"):
        net.add_task(task, 2)
        net.train()(x, task)
        net.consolidate(task)
    promised, kept = net.eval()(x, "one"), dict(net.tasks[0].batch_norms.named_buffers())
    norm = next(part for part in net.tasks[0].batch_norms.modules() if isinstance(part, nn.BatchNorm1d))
    replace(norm)
    for call in (lambda: net(x, "one"), net.check, net.to_checkpoint):
        with pytest.raises(hatrack.GuaranteeError, match=r"tasks\.0\.batch_norms\.\w+\.running_mean"):
            call()
    norm.track_running_stats = True
    for name, buffer in kept.items():
        owner, _, own = name.rpartition(".")
        net.tasks[0].batch_norms.get_submodule(owner)._buffers[own] = buffer
    assert torch.equal(net(x, "one"), promised)
    net.check()


@pytest.mark.parametrize("kind", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_buffers_of_own_heads_that_are_replaced_are_refused(kind: Any) -> None:
    head = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3))
    x = torch.randn(8, 6)
    net = kind(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), x)
    net.add_task("own", head=head)
    net.consolidate("own")
    net.eval()(x, "own")
    net.tasks[0].head[1].running_var = 4.0 * net.tasks[0].head[1].running_var
    with pytest.raises(hatrack.GuaranteeError, match=r"tasks\.0\.head\.1\.running_var has been replaced"):
        net(x, "own")
