"""DistributedDataParallel: the law on every rank, and the same network on all of them.

The recipe, which differs from the one for a single process in three lines::

    net.add_task("shoes", num_classes=2)
    parallel = DistributedDataParallel(net, find_unused_parameters=True)  # anew for every task: it has new parameters
    optimizer = net.protect(torch.optim.SGD(net.task_parameters("shoes"), lr=0.05))
    for progress, (x, y) in hatrack.with_progress(loader):  # every rank has its own share of the samples
        net.anneal(progress)
        loss = F.cross_entropy(parallel(x, "shoes"), y) + 0.75 * net.regularization()
        ...
    for buffer in net.buffers():  # each rank's batch norms have seen other samples: all take those of rank 0
        torch.distributed.broadcast(buffer, 0)
    net.consolidate("shoes")  # on every rank

``find_unused_parameters`` is for the backbone's own batch norms, of which every task has copies.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hatrack import HATNetwork
from support.helpers import CLASSES, SAMPLES, assert_poison_harmless, attach, easy_task, logits, open_task, progress

pytestmark = pytest.mark.slow

RANKS = 2


def train_on_this_rank(net: HATNetwork, task: str, x: Tensor, y: Tensor) -> None:
    rank = distributed.get_rank()
    parallel = DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=0.01, weight_decay=0.1))
    parallel.train()
    for step in range(6):
        net.anneal(progress(step))
        optimizer.zero_grad()
        own = slice(rank, None, RANKS)
        (F.cross_entropy(parallel(x[own], task), y[own]) + 0.1 * net.regularization()).backward()
        optimizer.step()


def share_buffers(net: HATNetwork) -> None:
    for buffer in net.buffers():
        distributed.broadcast(buffer, 0)


def assert_same_on_all_ranks(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        of_rank_0 = value.detach().clone()
        distributed.broadcast(of_rank_0, 0)
        assert torch.equal(value, of_rank_0), name


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}


def keep_the_law(kind: str, grows: int = 0) -> None:
    net = attach(kind)
    samples: dict[str, Tensor] = {}
    promised: dict[str, Tensor] = {}
    for number in range(3):
        task = f"task {number}"
        x, y = easy_task(net.example_shape[1:], number)
        if number and grows:  # every rank draws other weights, and takes those of rank 0 when it is wrapped
            generator = torch.Generator().manual_seed(distributed.get_rank())
            net.grow({group.name: grows for group in net.units.groups}, generator=generator)
            for earlier, kept in promised.items():
                torch.testing.assert_close(logits(net, samples[earlier], earlier), kept)
                promised[earlier] = logits(net, samples[earlier], earlier)
        open_task(net, task, number)
        before = {name: parameter.detach().clone() for name, parameter in net.backbone.named_parameters()}
        train_on_this_rank(net, task, x, y)
        assert any(not torch.equal(parameter, before[name]) for name, parameter in net.backbone.named_parameters())
        share_buffers(net)
        net.consolidate(task)
        samples[task], promised[task] = x, logits(net, x, task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
        assert_same_on_all_ranks(state_of(net) | promised)
    net.check()
    assert_poison_harmless(net, samples)


def forget_to_share_buffers() -> None:
    """Rank 1 promises what its own statistics say, and the next wrapping overwrites them: it keeps its word."""
    net = attach("conv-bn")
    x, y = easy_task(net.example_shape[1:], 0)
    open_task(net, "a")
    train_on_this_rank(net, "a", x, y)
    net.consolidate("a")
    open_task(net, "b", 1)
    train_on_this_rank(net, "b", x, y)
    if distributed.get_rank() == 0:
        net.consolidate("b")
    else:
        with pytest.warns(UserWarning, match=r"broadcast net\.buffers\(\) to all processes"):
            net.consolidate("b")


def on_every_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    try:
        keep_the_law("mlp")
        keep_the_law("conv-bn")
        keep_the_law("conv-bn", grows=3)
        forget_to_share_buffers()
        distributed.barrier()
        gc.collect()  # wrappers that are left in reference cycles must not outlive the process group
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")
def test_the_law_holds_on_every_rank(tmp_path: Path) -> None:
    assert SAMPLES % RANKS == 0
    assert SAMPLES // RANKS >= CLASSES
    multiprocessing.spawn(on_every_rank, (str(tmp_path),), nprocs=RANKS)
