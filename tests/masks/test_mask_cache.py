"""The cache of the mask that was asked for last."""

from __future__ import annotations

import torch

from hatrack.masks.packing import MaskCache, pack, unpack


def test_a_mask_is_unpacked_again_only_after_a_change() -> None:
    mask = torch.tensor([True, False, True])
    packed, cache, count = pack(mask), MaskCache[torch.Tensor](), 0

    def read(bits: torch.Tensor) -> torch.Tensor:
        def unpacked() -> torch.Tensor:
            nonlocal count
            count += 1
            return unpack(bits, (3,))

        return cache.of(bits, unpacked)

    assert torch.equal(read(packed), mask)
    assert torch.equal(read(packed), mask)
    assert count == 1
    packed.copy_(pack(~mask))  # in place, which its version counts
    assert torch.equal(read(packed), ~mask)
    assert torch.equal(read(packed.clone()), ~mask), "other bits"
    assert count == 3
    cache.clear()
    read(packed)
    assert count == 4


def test_bits_without_a_count_of_changes_are_unpacked_every_time() -> None:
    cache: MaskCache[torch.Tensor] = MaskCache()
    with torch.inference_mode():
        packed = pack(torch.tensor([True, False]))
        assert cache.of(packed, lambda: unpack(packed, (2,))).tolist() == [True, False]
        packed.fill_(2)
        assert cache.of(packed, lambda: unpack(packed, (2,))).tolist() == [False, True]
