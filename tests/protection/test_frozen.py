"""Parts of the records of frozen entries."""

from __future__ import annotations

import pytest
import torch

from hatrack.protection.frozen import all_of, any_of


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (0, 4), (4, 0)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_any_and_all_are_those_of_torch(shape: tuple[int, ...], share: float, dtype: torch.dtype) -> None:
    flags = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share).to(dtype)
    for axis in (None, *range(len(shape))):
        for quick, slow in ((any_of, torch.Tensor.any), (all_of, torch.Tensor.all)):
            found = quick(flags, axis)
            assert found.dtype == torch.bool
            assert torch.equal(found, slow(flags) if axis is None else slow(flags, axis))
    assert torch.equal(any_of(flags.unsqueeze(0).expand(2, *shape)), flags.any())
