"""Making packed parts of data sets: which pictures are chosen."""

from __future__ import annotations

import torch

from hatrack.data.arrays import ImageArrays, rows_by_class
from hatrack.data.dataset import ImageDataset
from hatrack.data.packed import Identity, PackedPart
from hatrack.errors import InputError

__all__ = ["first_in_turns", "pack_dataset"]


def first_in_turns(labels: torch.Tensor, limit: int | None) -> torch.Tensor:
    """Choose the first pictures of every class, in parts as equal as the classes allow.

    The classes take turns, in the order of their labels: in every turn each gives its next picture, in the order of the
    data set, as long as it has one, until there are ``limit``. So the counts of classes differ by 1 at most, but for
    classes that are kept whole, and a larger limit chooses what a smaller one does, and more.

    Args:
        labels: int64 ``(N,)``, at least 0.
        limit: number of pictures to choose; None for all, as if it were N or more.

    Returns:
        The rows, int64, ascending.

    Raises:
        InputError: the limit is below the number of classes that occur.
    """
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    rows = rows_by_class(labels)
    if limit < len(rows):
        raise InputError(f"{limit} are fewer than the {len(rows)} classes; take {len(rows)} or more")
    turns = torch.cat([torch.arange(len(each)) for each in rows])
    # A stable order by turns keeps that of the labels within each.
    return torch.cat(rows)[turns.argsort(stable=True)[:limit]].sort().values


def pack_dataset(
    dataset: ImageDataset, licence: str, *, limit: int | None = None, test_limit: int | None = None
) -> PackedPart:
    """Choose pictures of a data set by :func:`first_in_turns`, in their order there.

    Class names, mean and standard deviation stay those of the whole, so that pictures are prepared as the whole's are.

    Args:
        dataset: the whole data set.
        licence: terms under which it is published.
        limit: number of training pictures; None for all.
        test_limit: number of test pictures; None for all.

    Raises:
        InputError: a limit is below the number of classes, or the data set is a packed part itself.
    """
    if dataset.train_counts:
        raise InputError(f"{dataset.name} is a packed part itself ({dataset.origin}); pack the whole")
    rows = []
    for part, labels, most in (("training", dataset.y_train, limit), ("test", dataset.y_test, test_limit)):
        try:
            rows.append(first_in_turns(labels, most))
        except InputError as error:
            raise InputError(f"{part} pictures of {dataset.name}: {error}") from error
    train, test = rows
    arrays = ImageArrays(dataset.x_train[train], dataset.y_train[train], dataset.x_test[test], dataset.y_test[test])
    counts = [
        tuple(labels.bincount(minlength=len(dataset.class_names)).tolist())
        for labels in (dataset.y_train, dataset.y_test)
    ]
    identity = Identity(dataset.name, dataset.class_names, dataset.mean, dataset.std)
    return PackedPart(identity, licence, dataset.origin, counts[0], counts[1], arrays)
