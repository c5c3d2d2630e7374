"""Dropout that takes a sixth of the time of torch's on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode

__all__ = ["ENTRIES_WORTH", "Dropout"]

ENTRIES_WORTH = 2**15
"""Smallest number of entries that are dropped in this way; of fewer torch's own takes as long."""

_LEVELS = 2**16
"""Number of random numbers that an entry's may be."""

_COARSE = 2**-8
"""Probability below which, and below whose difference to 1, random numbers of 16 bits would be too coarse."""


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., JMLR 2014), as torch has it, with cheaper random numbers for large tensors on a CPU.

    Torch draws a float64 for every entry there, which is a third of a training step of the HAT paper's AlexNet. Here an
    entry takes 16 bits. The probability is rounded to a multiple of 1/65536, and what is kept is scaled by exactly
    that, so that the mean stays what it was. The bits come from the generator that torch's dropout draws from, so that
    seeds, checkpoints and resumed runs mean the same; which entries are dropped by a seed is another choice than
    torch's. Wherever anything but plain training goes on (other devices, compiling, tracing, function transforms, modes
    of functions such as a default device), and for fewer than 32,768 entries, it is torch's own.

    Attributes:
        p: probability of an entry to become 0, from 0 to 1.
        inplace: whether the input is written into, which torch's own dropout does then.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - what torch calls it
        """Return the input with random entries 0 and the others scaled, or as it is in evaluation mode."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.dropout(input, self.p, self.training, self.inplace)
        else:  # not after the return, which would be scripted, too
            return input * self._factors(input) if self.training and self._suits(input) else super().forward(input)

    def _suits(self, x: Tensor) -> bool:
        return bool(
            not torch.compiler.is_compiling()
            and type(x) is Tensor
            and x.numel() >= ENTRIES_WORTH
            and x.device.type == "cpu"
            and x.layout is torch.strided
            and x.is_floating_point()
            and not self.inplace
            and _COARSE <= self.p <= 1 - _COARSE
            and _get_current_function_mode() is None  # type: ignore[no-untyped-call]
            and not torch._C._get_tracing_state()
            and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0
        )

    def _factors(self, x: Tensor) -> Tensor:
        """Return what every entry is multiplied with: 0, or the inverse of the probability to be kept."""
        dropped = round(self.p * _LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()]
        factors = (bits >= dropped - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
        return factors.as_strided(x.shape, torch.empty_like(x, device="meta").stride())
