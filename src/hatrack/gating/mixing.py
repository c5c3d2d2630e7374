"""Mixed batches: several tasks in one forward pass, with attention and norms for every sample.

Gates then take a row of attention per sample, so the first axis of the values that they gate must count samples. Some
networks fold windows or sequences into that axis, and are run task by task instead. A test tells which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import DOES_NOT_RUN
from hatrack.gating.attachment import Attachment
from hatrack.state.tryouts import agree, random_like, says_something
from hatrack.support.inputs import Inputs, device_of
from hatrack.support.modes import evaluation_mode

__all__ = ["MixedNorm", "have_hooks", "mixed_norms", "mixes_samples"]


class MixedNorm(nn.Module):
    """Batch norms of several tasks in evaluation mode, which normalise every sample by those of its own task.

    Args:
        norms: the tasks' norms, with statistics.
        task_of: index of the task of every sample, int64 ``(N,)``.
    """

    def __init__(self, norms: Sequence[nn.Module], task_of: Tensor) -> None:
        super().__init__()
        self._norms, self._task_of = list(norms), task_of

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch ``(N, C, ...)``; the result has its shape."""
        first: Any = self._norms[0]
        if len(x) != len(self._task_of):
            raise ValueError("the first axis does not count samples")
        shift, scale = self._of_tasks("running_mean"), torch.rsqrt(self._of_tasks("running_var") + self._eps())
        if getattr(first, "weight", None) is not None:
            scale = scale * self._of_tasks("weight")
        rows = (len(x), -1, *(1,) * (x.dim() - 2))
        result = (x - shift[self._task_of].view(rows)) * scale[self._task_of].view(rows)
        if getattr(first, "bias", None) is not None:
            result = result + self._of_tasks("bias")[self._task_of].view(rows)
        return result

    def _eps(self) -> Any:
        """Return what is added to variances: a number, or ``(T, 1)`` where the norms of tasks differ in it."""
        norms: list[Any] = self._norms
        eps = [norm.eps for norm in norms]
        return eps[0] if len(set(eps)) == 1 else torch.tensor(eps).to(norms[0].running_var).unsqueeze(1)

    def _of_tasks(self, name: str) -> Tensor:
        return torch.stack([getattr(norm, name) for norm in self._norms])


def have_hooks(norms: Mapping[str, nn.Module]) -> bool:
    """Return whether a norm has hooks, which one pass over samples of several tasks would not call.

    Args:
        norms: a task's norms by name.
    """
    return any(norm._forward_hooks or norm._forward_pre_hooks for norm in norms.values())


def mixed_norms(norms: Sequence[Mapping[str, nn.Module]], task_of: Tensor) -> dict[str, nn.Module]:
    """Combine the norms of several tasks, by the name of the layer that they stand for.

    Args:
        norms: norms of each task by name.
        task_of: index of the task of every sample, int64 ``(N,)``.

    Raises:
        ValueError: a norm has no running statistics, so that samples of several tasks would share theirs.
    """
    names = list(norms[0])
    if any(getattr(each[name], "running_mean", None) is None for each in norms for name in names):
        raise ValueError("norms without running statistics look at the whole batch")
    return {name: MixedNorm([each[name] for each in norms], task_of) for name in names}


@torch.no_grad()
def mixes_samples(
    attachment: Attachment,
    backbone: nn.Module,
    num_units: int,
    batch: Callable[[int], Inputs],
    take: Callable[[Inputs, Tensor], Inputs],
) -> bool:
    """Test whether every sample of a mixed batch has the features that it has in a batch of its task alone.

    Two sizes of batches are tried, since an axis that does not count samples may have one of them by accident.

    Args:
        attachment: the gates.
        backbone: the network.
        num_units: number of units, U.
        batch: makes a batch of a number of samples, for its shape and type.
        take: takes samples out of a batch by their numbers.
    """
    generator = torch.Generator().manual_seed(0)
    norms = {name: norm.eval() for name, norm in attachment.copy_norms().items()}
    device = device_of(batch(2))
    masks = (torch.rand(3, num_units, generator=generator) < 0.7).to(device)
    try:
        with evaluation_mode(backbone):
            for size in (5, 7):
                x = random_like(batch(size), generator, lambda x: attachment.run(backbone, x, masks[0], norms))
                task_of = torch.randint(3, (size,), generator=generator).to(device)
                mixed = attachment.run(backbone, x, masks[task_of], mixed_norms([norms] * 3, task_of))
                expected = torch.empty_like(mixed)
                for task, mask in enumerate(masks):  # each sees its own samples alone: a network may couple them
                    rows = (task_of == task).nonzero().flatten()
                    if len(rows):
                        expected[rows] = attachment.run(backbone, take(x, rows), mask, norms)
                if not says_something(expected) or not agree(mixed, expected, 1e-3):
                    return False
    except DOES_NOT_RUN:
        return False
    return True
