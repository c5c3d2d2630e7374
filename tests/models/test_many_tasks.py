"""Many tasks on a tiny network; ``benchmarks/soak.py`` does a thousand, and two hundred as a run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Uniform
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.protection import plan
from hatrack.protection.versions import VersionWatch
from support.marks import is_deep

TASKS = 200 if is_deep() else 100


def backbone() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())


@pytest.mark.slow
def test_many_tasks_on_a_full_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = HATNetwork(backbone(), torch.zeros(1, 4))
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    promised = {}
    for number in range(TASKS):
        name = f"t{number}"
        net.train()
        net.add_task(name, 2)
        optimizer = net.protect(torch.optim.SGD(net.task_parameters(name), lr=0.1, momentum=0.9))
        for progress in (0.0, 1.0):
            net.anneal(progress)
            optimizer.zero_grad()
            (F.cross_entropy(net(x, name), y) + net.regularization()).backward()
            optimizer.step()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "task .* has switched off")
            net.consolidate(name)
        promised[name] = net.eval()(x, name).detach()
    assert net.capacity().weights > 0.9, "there was hardly any room left long before the last"
    assert net.reuse().shape == (TASKS, TASKS)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", backbone()).eval()
    for name, logits in promised.items():
        assert torch.equal(net(x, name), logits)
        assert torch.equal(again(x, name), logits)


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
@pytest.mark.parametrize("weight", [0.75, 5.0, 2.0**16])
def test_tasks_of_a_full_network_learn_whatever_the_regularizer_weighs(kind: type, weight: float) -> None:
    net = kind(backbone(), torch.zeros(1, 4))
    net.add_task("all", 2, **({"embedding": Uniform(1.0, 2.0)} if kind is HATNetwork else {}))
    if kind is WeightMaskedNetwork:
        for values in net.tasks[0].parameters():
            values.data.fill_(1.0)
    net.consolidate("all")
    assert net.capacity().weights == 1.0
    net.add_task("late", 2)
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    (F.cross_entropy(net(x, "late"), y) + weight * net.regularization()).backward()
    gradients = [parameter.grad for parameter in net.task_parameters("late", new_only=True)]
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_consolidating_takes_the_digest_of_every_task_once(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    net = HATNetwork(backbone(), torch.zeros(1, 4))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "task .* has switched off")
        for name in ("a", "b", "c"):
            net.add_task(name, 2)
            net.consolidate(name)
        net.add_task("d", 2)
        taken, whole = [], plan.digest
        monkeypatch.setattr(plan, "digest", lambda values: taken.append(list(values)) or whole(values))
        net.consolidate("d")
    of_tasks = [names for names in taken if "packed" in names]
    assert len(of_tasks) == 4, "a, b and c to check them, and d"
    before = dict(net.protection.digests)
    net.protection.renew_digests()
    assert net.protection.digests == before


def test_asking_looks_at_what_the_answer_relies_on_however_many_tasks_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[Tensor] = []
    is_touched = VersionWatch.is_touched

    def counting(watch: VersionWatch, tensor: Tensor) -> bool:
        looked_at.append(tensor)
        return is_touched(watch, tensor)

    net = HATNetwork(backbone(), torch.zeros(1, 4)).eval()
    counts = []
    monkeypatch.setattr(VersionWatch, "is_touched", counting)
    for number in range(12):
        net.add_task(f"t{number}", 2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "task .* has switched off")
            net.consolidate(f"t{number}")
        looked_at.clear()
        net(torch.zeros(2, 4), f"t{number}")
        counts.append(len(looked_at))
    assert len(set(counts[2:])) == 1
    with torch.no_grad():
        net.tasks[7].head.weight.add_(1.0)
    promised = net(torch.zeros(2, 4), "t3")
    with pytest.warns(UserWarning, match="something other than a step"):
        net(torch.zeros(2, 4), "t7")
    assert torch.equal(net(torch.zeros(2, 4), "t3"), promised)
