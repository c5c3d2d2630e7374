"""Mixed batches: several tasks in one forward pass, with attention and norms for every sample.

Gates then take a row of attention per sample, so the first axis of the values that they gate must count samples. Some
networks fold windows or sequences into that axis, and are run task by task instead. A test tells which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hatrack.errors import DOES_NOT_RUN
from hatrack.gating.attachment import Attachment
from hatrack.state.tryouts import agree, random_like, says_something
from hatrack.support.inputs import Inputs, device_of, tensors_in
from hatrack.support.modes import evaluation_mode

__all__ = ["MixedNorm", "have_hooks", "layer_that_mixes", "mixed_norms", "mixes_samples"]


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
        """Normalise a batch ``(N, C, ...)``; the result has its shape.

        Raises:
            ValueError: there are not as many samples as tasks of samples.
        """
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


_Take = Callable[[Inputs, Tensor], Inputs]


@torch.no_grad()
def mixes_samples(
    attachment: Attachment, backbone: nn.Module, num_units: int, batch: Callable[[int], Inputs], take: _Take
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
    try:
        with evaluation_mode(backbone):
            for runs in _runs(attachment, backbone, num_units, batch):
                mixed = runs.mixed()
                expected = torch.empty_like(mixed)
                for rows, alone in runs.alone(take):  # each sees its own samples alone: a network may couple them
                    expected[rows] = alone()
                if not says_something(expected) or not agree(mixed, expected, _TOLERANCE):
                    return False
    except DOES_NOT_RUN:
        return False
    return True


@torch.no_grad()
def layer_that_mixes(
    attachment: Attachment, backbone: nn.Module, num_units: int, batch: Callable[[int], Inputs], take: _Take
) -> str:
    """Return for a message where a network does not keep the samples of a mixed batch apart; "" if that is not seen.

    Args:
        attachment: the gates.
        backbone: a network for which :func:`mixes_samples` is False.
        num_units: number of units, U.
        batch: makes a batch of a number of samples, for its shape and type.
        take: takes samples out of a batch by their numbers.
    """
    layer = None
    with suppress(*DOES_NOT_RUN), evaluation_mode(backbone), _Calls(backbone) as calls:
        for runs in _runs(attachment, backbone, num_units, batch):
            mixed = calls.of(runs.mixed)
            for rows, alone in runs.alone(take):
                layer = layer or _first_difference(mixed, calls.of(alone), rows)
    return (
        f": {layer!r} ({type(backbone.get_submodule(layer)).__name__}) computes with the gates of one task"
        if layer
        else ""
    )


_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Runs:
    """Runs of a batch of samples of several tasks, mixed and each by itself.

    Attributes:
        x: the batch.
        task_of: index of the task of every sample, int64 ``(N,)``.
        masks: masks of the tasks, booleans ``(tasks, U)``.
        norms: norms of all tasks.
        run: runs the network on a batch under attention and norms.
    """

    x: Inputs
    task_of: Tensor
    masks: Tensor
    norms: dict[str, nn.Module]
    run: Callable[[Inputs, Tensor, dict[str, nn.Module]], Tensor]

    def mixed(self) -> Tensor:
        """Return features of all samples in one pass."""
        norms = mixed_norms([self.norms] * len(self.masks), self.task_of)
        return self.run(self.x, self.masks[self.task_of], norms)

    def alone(self, take: _Take) -> Iterator[tuple[Tensor, Callable[[], Tensor]]]:
        """Yield the samples of each task that has some, int64 ``(n,)``, and what computes their features alone."""
        for task, mask in enumerate(self.masks):
            rows = (self.task_of == task).nonzero().flatten()
            if len(rows):
                yield rows, partial(self.run, take(self.x, rows), mask, self.norms)


def _runs(
    attachment: Attachment, backbone: nn.Module, num_units: int, batch: Callable[[int], Inputs]
) -> Iterator[_Runs]:
    """Yield runs of batches of two sizes, of three tasks with random masks; the backbone is in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    norms = {name: norm.eval() for name, norm in attachment.copy_norms().items()}
    device = device_of(batch(2))
    masks = (torch.rand(3, num_units, generator=generator) < 0.7).to(device)
    run = partial(attachment.run, backbone)
    for size in (5, 7):
        x = random_like(batch(size), generator, lambda x: run(x, masks[0], norms))
        yield _Runs(x, torch.randint(3, (size,), generator=generator).to(device), masks, norms, run)


class _Calls:
    """Recorder of the calls of a network's modules while a block lasts.

    Args:
        backbone: the network.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self._begun: list[str] = []
        self._ended: list[tuple[str, Any]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> _Calls:
        for name, module in self._backbone.named_modules():
            if name:
                begin = partial(lambda name, *_: self._begun.append(name), name)
                self._handles.append(module.register_forward_pre_hook(begin, prepend=True))
                self._handles.append(module.register_forward_hook(partial(self._end, name), prepend=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _end(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._begun.pop()
        self._ended.append((name, next(tensors_in(output), None)))

    def of(self, compute: Callable[[], Tensor]) -> list[tuple[str, Tensor | None]]:
        """Return names of the modules in the order in which their calls end, with their results.

        If a call does not end, its module is the last, without a result.
        """
        self._begun, self._ended = [], []
        try:
            compute()
        except DOES_NOT_RUN:
            return [*self._ended, *((name, None) for name in self._begun[-1:])]
        return self._ended


def _first_difference(
    mixed: Sequence[tuple[str, Tensor | None]], alone: Sequence[tuple[str, Tensor | None]], rows: Tensor
) -> str | None:
    """Return the name of the first module whose results for some samples differ; None if there is none."""
    for (name, together), (_, expected) in zip(mixed, alone, strict=False):
        if together is None or expected is None:
            if together is not expected:
                return name
        elif not together.dim() or len(together) <= int(rows.max()) or not agree(together[rows], expected, _TOLERANCE):
            return name
    return None
