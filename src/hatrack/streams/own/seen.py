"""Test samples that are training samples, too: counted for every two tasks of a stream, and named in notes.

One network learns all tasks. If one task trains on a test sample of another, the network has seen it in training, with
every method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hatrack.streams.base import Split, Task
from hatrack.streams.own.columns import TableRows, spread

__all__ = ["SeenSamples", "note_of_others", "note_of_own", "seen_samples"]

AT_ONCE = 4096
"""Number of samples that are made ready to be hashed at once."""
SHOWN = 3
"""Number of tasks that a note names."""


@dataclass(frozen=True)
class SeenSamples:
    """Test samples of a task that are identical with training samples of a task, which may be the same.

    Attributes:
        task: name of the task that trains on them.
        count: number of test samples, above 0.
        test_row: position of the first of them in the source of the test split.
        train_row: position in the source of the training split of the first sample that is identical with it.
        twins: number of samples that the task trains on and that are identical with another one of these.
        trained: number of samples that the task trains on.
    """

    task: str
    count: int
    test_row: int
    train_row: int
    twins: int
    trained: int


@dataclass(frozen=True, eq=False)
class _Trained:
    """Samples that a task trains on.

    Attributes:
        digests: the different digests, ascending, uint64 ``(D,)``.
        rows: position in the source of the first sample of each, int64 ``(D,)``.
        count: number of samples.
        twins: number of samples that are identical with another one.
    """

    digests: np.ndarray
    rows: np.ndarray
    count: int
    twins: int

    def seen_in(self, name: str, test: Split, digests: np.ndarray) -> SeenSamples | None:
        """Find test samples that are among these; None where none is.

        Args:
            name: name of the task that trains on these.
            test: the test samples.
            digests: their digests, uint64 ``(N,)``.
        """
        (places,) = np.isin(digests, self.digests).nonzero()
        if not len(places):
            return None
        first = int(places[0])
        row = int(self.rows[np.searchsorted(self.digests, digests[first])])
        return SeenSamples(name, len(places), int(test.rows[first]), row, self.twins, self.count)


def seen_samples(tasks: Sequence[Task]) -> tuple[tuple[SeenSamples, ...], ...]:
    """Find the test samples that are training samples of a task, too.

    Samples are compared as the network takes them but for their scaling, which differs between tasks: bytes of
    pictures, numbers, features of a table. Validation samples count as training samples, since training looks at them;
    where a task is tested on them, they do not count as its own.

    Args:
        tasks: the tasks, of which samples are single tensors.

    Returns:
        For every task, the tasks that train on its test samples, in their order.
    """
    trained = [_trained(task) for task in tasks]
    everything = np.unique(np.concatenate([each.digests for each in trained]))
    found = []
    for task in tasks:
        digests = _digests(task.test)
        pairs = zip(tasks, trained, strict=True) if np.isin(digests, everything).any() else ()  # most find nothing
        seen = (each.seen_in(other.name, task.test, digests) for other, each in pairs)
        found.append(tuple(each for each in seen if each is not None))
    return tuple(found)


def note_of_own(
    task: Task, seen: Sequence[SeenSamples], train_names: Sequence[str] = (), test_names: Sequence[str] = ()
) -> str:
    """Say how many test samples of a task are its own training samples, too; empty where none is.

    Args:
        task: the task.
        seen: the tasks that train on its test samples.
        train_names: places of its training samples in its files, by their position in the source; the positions if
            empty.
        test_names: places of its test samples, likewise.
    """
    own = next((each for each in seen if each.task == task.name), None)
    if own is None:
        return ""
    what = _kind_of_samples(task)
    test = test_names[own.test_row] if test_names else own.test_row
    train = train_names[own.train_row] if train_names else own.train_row
    return (
        f"{own.count:,} of {len(task.test):,} test {what} are identical with training {what} (such as {test} and "
        f"{train}){_transition([own], len(task.test), what)} tests on them are no tests"
    )


def note_of_others(tasks: Sequence[Task], seen: Sequence[Sequence[SeenSamples]]) -> str:
    """Say how many test samples of tasks are training samples of other tasks, and what to do; empty where none is.

    Args:
        tasks: the tasks.
        seen: for every task, the tasks that train on its test samples.
    """
    others = [[each for each in of if each.task != task.name] for task, of in zip(tasks, seen, strict=True)]
    pairs = [(task, max(of, key=lambda each: each.count)) for task, of in zip(tasks, others, strict=True) if of]
    if not pairs:
        return ""
    what = _kind_of_samples(tasks[0])
    counts = [f"{each.count:,} of the {len(task.test):,} of {task.name} in {each.task}" for task, each in pairs]
    shown = ", ".join(counts[:SHOWN]) + (", …" if len(counts) > SHOWN else "")
    transition = _transition([each for _, each in pairs], max(len(task.test) for task, _ in pairs), what)
    return (
        f"test {what} of tasks are identical with training {what} of other tasks ({shown}){transition} the network has "
        "seen them; let all tasks of one table or set name the same test samples (test = ... in a tasks.toml, a folder "
        "test)"
    )


def _kind_of_samples(task: Task) -> str:
    x = task.test.source
    return "pictures" if x.dtype == torch.uint8 and x.dim() == 4 else "samples"


def _transition(seen: Sequence[SeenSamples], tests: int, what: str) -> str:
    """Return the words between what was found and what follows from it, such as ", so that".

    Different things may look alike, such as rows of a few small numbers. They explain what was found where training
    samples, too, are identical with each other, at least half as often; the words say so then.

    Args:
        seen: what was found.
        tests: number of test samples, the largest if there are several tasks.
        what: samples or pictures.
    """
    found = next((each for each in seen if 2 * each.twins * tests >= each.count * each.trained), None)
    if found is None:
        return ", so that"
    said = f"{found.twins:,} of {found.trained:,} training {what} are identical with each other"
    return f", and {said}: where these are not different things that look alike,"


def _trained(task: Task) -> _Trained:
    """Return what a task trains on, with its validation samples unless it is tested on these."""
    splits = [task.train] if task.valid in (task.train, task.test) else [task.train, task.valid]
    digests = np.concatenate([_digests(split) for split in splits])
    rows = torch.cat([split.rows for split in splits]).numpy()
    order = np.argsort(rows, kind="stable")
    different, first, counts = np.unique(digests[order], return_index=True, return_counts=True)
    return _Trained(different, rows[order][first], len(rows), int(counts[counts > 1].sum()))


def _digests(split: Split) -> np.ndarray:
    """Return digests of the samples, uint64 ``(N,)``.

    Of a billion pairs of different samples, two have the same 64 bits with a probability of 5e-11.
    """
    return np.concatenate([_hashed(split, rows) for rows in torch.split(split.rows, AT_ONCE)])


def _hashed(split: Split, rows: torch.Tensor) -> np.ndarray:
    """Return digests of the samples at some positions of the source, uint64 ``(R,)``."""
    x = split.source[rows]
    if isinstance(split.transform, TableRows):
        x = spread(split.transform.columns, x)
    # Numbers are compared as such: one task may have them in fewer bits than another, and -0 is 0.
    values = (x if x.dtype == torch.uint8 else x.double() + 0.0).flatten(1).contiguous().numpy()
    joined = b"".join(hashlib.blake2b(sample, digest_size=8).digest() for sample in values)
    return np.frombuffer(joined, dtype=np.uint64)
