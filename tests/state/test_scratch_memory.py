"""Scratch memory: used again once nothing refers to it, and never before."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatrack.support.scratch import ScratchMemory

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]


def is_on_memory_of(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(TYPES))
def test_tensors_are_like_torchs_own(shape: list[int], dtype: torch.dtype) -> None:
    memory, like = ScratchMemory(), torch.zeros(shape, dtype=dtype)
    found, own = memory.empty_like(like), torch.empty_like(like)
    assert (found.shape, found.dtype, found.stride()) == (own.shape, own.dtype, own.stride())
    assert found.data_ptr() % 64 == 0
    assert found.is_contiguous()
    assert found._base is None, "views are treated otherwise by autograd"
    assert torch.equal(found.copy_(like), like)
    assert memory.empty_like(torch.zeros(3, 4).T).is_contiguous()


@pytest.mark.parametrize("refer", ["itself", "view", "detached", "storage", "graph", "numpy"])
def test_memory_is_used_again_only_once_nothing_refers_to_it(refer: str) -> None:
    memory, like, weight = ScratchMemory(), torch.zeros(50), torch.ones(50, requires_grad=True)

    def hand_out() -> tuple[int, object]:
        first = memory.empty_like(like).fill_(7.0)
        references = {
            "itself": lambda: first,
            "view": lambda: first[3:5],
            "detached": first.detach,
            "storage": first.untyped_storage,
            "graph": lambda: (weight * first).sum(),
            "numpy": first.numpy,
        }
        return first.data_ptr(), references[refer]()

    address, holder = hand_out()
    second = memory.empty_like(like).fill_(1.0)
    assert second.data_ptr() != address, "somebody else's memory"
    if refer == "graph":
        assert isinstance(holder, Tensor)
        holder.backward()
        assert weight.grad is not None
        assert (weight.grad == 7.0).all()
    del holder, second
    weight.grad = None
    found = [memory.empty_like(like) for _ in range(2)]
    assert address in {each.data_ptr() for each in found}, "memory is lost"


def test_a_gradient_keeps_its_memory_until_it_is_dropped() -> None:
    memory, parameter = ScratchMemory(), torch.zeros(50, requires_grad=True)

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.sum()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return memory.empty_like(parameter).fill_(float(gradient))

    addresses = []
    for _ in range(3):
        parameter.grad = None
        Own.apply(parameter).backward()
        assert parameter.grad is not None
        addresses.append(parameter.grad.data_ptr())
    assert len(set(addresses)) == 1
    (3.0 * Own.apply(parameter)).backward()  # added to what is there, on memory of its own
    assert (parameter.grad == 4.0).all()


def test_other_sizes_copies_and_cleared_memory_begin_anew() -> None:
    memory = ScratchMemory()
    address = memory.empty_like(torch.zeros(50)).data_ptr()
    kept = memory.empty_like(torch.zeros(60))
    assert kept.data_ptr() != address
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert not other._blocks
        assert other.empty_like(torch.zeros(50)).data_ptr() != address
    kept.fill_(2.0)
    memory.clear()
    memory.empty_like(torch.zeros(60)).fill_(3.0)
    assert (kept == 2.0).all()


def test_nothing_is_managed_where_torch_has_ways_of_its_own() -> None:
    memory, like = ScratchMemory(), torch.zeros(50)
    with torch.inference_mode():
        assert memory.empty_like(like).is_inference()
    assert memory.empty_like(torch.zeros(50, device="meta")).device.type == "meta"
    assert not memory.empty_like(torch.zeros(0, 5)).numel()
    assert not memory._blocks


def test_threads_do_not_share_memory() -> None:
    memory, like, failed = ScratchMemory(), torch.zeros(1000), []

    def work(number: int) -> None:
        for _ in range(200):
            tensor = memory.empty_like(like).fill_(float(number))
            if not bool((tensor == float(number)).all()):
                failed.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(memory._blocks) <= 8, "each thread needs a second block while its first is alive"
