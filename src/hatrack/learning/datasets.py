"""Samples and targets out of the forms in which people have them: arrays, data sets, mappings, loaders of batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from hatrack.errors import InputError
from hatrack.learning.labels import Labels, read_labels
from hatrack.learning.samples import Combine, as_inputs, combined
from hatrack.support.inputs import Inputs

__all__ = ["TARGET_KEYS", "Data", "read_data", "read_samples"]

Data = Any
"""Samples and their targets, in one of these forms:

- a tuple of all samples ``(N, ...)`` and all targets ``(N, ...)``, as tensors, NumPy arrays or lists;
- a mapping of columns, one of them the targets (:data:`TARGET_KEYS`), such as a tokenizer's result with ``labels``;
- a ``torch`` data set, or any other iterable, of pairs of **one sample** and its target, or of mappings with a target
  each, as Hugging Face's are, which are put together. One with a length and items is asked for as many items as it is
  long; any other is read until it ends, once, so that a generator serves as well.
- a ``torch.utils.data.DataLoader``, whose items are **batches** of samples and targets; they are joined. It is read
  once, for all epochs: the size of its batches, its order and ``shuffle`` do not matter for training, which makes its
  own batches in an order that the seed decides; what it draws at random stays as it was drawn; and what ``drop_last``
  drops is not learned from.

Samples may be nested as the network takes them: a tuple or list of positional arguments, or a mapping of keyword
arguments such as a tokenizer's result. Targets are classes, integers or texts ``(N,)``; numbers to predict, floats
``(N,)`` or ``(N, K)``; or several labels, truth values or zeros and ones ``(N, L)``.
"""

TARGET_KEYS = ("label", "labels", "label_ids", "target", "targets", "y")
"""Keys that name the targets in a mapping, unless the network has an input of that name."""

_PAIRS = "give (samples, targets), a data set of pairs of a sample and its target, or a DataLoader of batches"

_ENDLESS = (itertools.cycle, itertools.repeat, itertools.count)

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def read_data(data: Data, example: Inputs, batch_axis: int, what: str = "samples") -> tuple[Inputs, Labels]:
    """Return samples as tensors, or nested tensors, and their targets.

    Args:
        data: samples and targets, in a form of :data:`Data`.
        example: an example of a batch as the network takes it.
        batch_axis: axis of every tensor among the samples that counts them.
        what: name of the samples, for messages.

    Raises:
        InputError: they have none of these forms.
    """
    pair = data if isinstance(data, tuple) and len(data) == 2 else None
    pair = _parted(data, example, what) if isinstance(data, Mapping) else pair
    if pair is not None:
        x = pair[0] if isinstance(pair[0], Mapping) else read_samples(pair[0], example, batch_axis, what)
        return as_inputs(x, what), read_labels(pair[1], _targets_of(what))
    if isinstance(data, (Tensor, str, bytes)) or hasattr(data, "__array__"):
        raise InputError(f"{what} came as a {type(data).__name__}, without targets: {_PAIRS}")
    whole = isinstance(data, DataLoader)
    what = f"batches of {what}" if whole else what
    samples, targets = [], []
    for index, item in enumerate(_items(data, what)):
        x, y = _parted(item, example, f"{what}, item {index}")
        if whole and isinstance(y, (list, tuple)) and not all(isinstance(each, str) for each in y):
            raise InputError(  # transposed by torch's default_collate
                f"{_targets_of(what)} are a {type(y).__name__}: let the data set give one tensor for each target"
            )
        if whole and isinstance(example, Tensor) and isinstance(x, list):
            raise InputError(
                f"{what}, item {index}: samples are a list of {len(x)}, one for each number of a sample, as "
                "torch collates lists: let the data set give a tensor for each sample, as by set_format('torch')"
            )
        samples.append(as_inputs(x, f"{what}, item {index}"))
        targets.append(read_labels(y, f"{_targets_of(what)}, item {index}"))
    _require_items(samples, data, what)
    combine: Combine = torch.cat if whole else torch.stack
    return combined(samples, combine, batch_axis, what), _joined(targets, combine, _targets_of(what))


def read_samples(given: Any, example: Inputs, batch_axis: int, what: str = "samples") -> Inputs:
    """Return samples as tensors, or nested tensors.

    Args:
        given: the samples, as the network takes them; or a list, a data set or another iterable of single samples; or
            a ``DataLoader`` of batches of them, that keeps their order. Targets beside samples are left out.
        example: an example of a batch as the network takes it.
        batch_axis: axis of every tensor among the samples that counts them.
        what: name of the samples, for messages.

    Raises:
        InputError: they have none of these forms.
    """
    whole = isinstance(given, DataLoader)
    if not whole and not _is_collection(given, example):
        return as_inputs(_without_target(given, example, what), what)
    if whole:
        _require_order(given, what)
    samples = [
        as_inputs(_sample_of(item, example, f"{what}, item {index}"), f"{what}, item {index}")
        for index, item in enumerate(_items(given, what))
    ]
    _require_items(samples, given, what)
    return combined(samples, torch.cat if whole else torch.stack, batch_axis, what)


# ---------------------------------------------------------------------------------------------------------- collections


def _is_collection(given: Any, example: Inputs) -> bool:
    """Return whether samples come one by one."""
    if isinstance(given, (Tensor, Mapping, str, bytes)) or hasattr(given, "__array__"):
        return False
    if isinstance(given, tuple):
        return False
    if isinstance(given, list):  # of positional arguments, of numbers, or of samples
        return isinstance(example, (Tensor, Mapping)) and any(map(_is_sample, given))
    return hasattr(given, "__iter__") or _has_items(given)


def _is_sample(given: Any) -> bool:
    """Return whether an item of a list is a sample, rather than a number or a list of numbers."""
    is_array = hasattr(given, "__array__") and not isinstance(given, np.generic)
    return is_array or isinstance(given, (Tensor, Mapping, tuple))


def _has_items(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset)


def _items(data: Any, what: str) -> Iterable[Any]:
    """Return the items of a data set.

    Where there are a length and items, these are asked for by their numbers: iterating would go on until an IndexError,
    which many data sets never raise.

    Raises:
        InputError: it has none, or no end.
    """
    if isinstance(data, DataLoader):
        if data.batch_size is None and data.batch_sampler is None:
            raise InputError(
                "a DataLoader with batch_size=None gives what its data set gives, samples or batches: give the data "
                "set itself, or a DataLoader that makes batches"
            )
        return data
    if isinstance(data, _ENDLESS):
        raise InputError(f"{what} come from itertools.{type(data).__name__}, which never ends: give every sample once")
    if _has_items(data):
        return (data[index] for index in range(len(data)))
    if not hasattr(data, "__iter__"):
        raise InputError(f"a {type(data).__name__} holds no samples with targets: {_PAIRS}")
    items: Iterable[Any] = data
    return items


def _require_items(found: Sequence[Any], data: Any, what: str) -> None:
    if not found:
        once = "; an iterator gives its items once, make it anew" if isinstance(data, Iterator) else ""
        raise InputError(f"there are no {what}{once}")


def _require_order(loader: DataLoader[Any], what: str) -> None:
    """Check that a loader gives samples in the order of its data set, so that answers can be told apart."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, _RANDOM):
        raise InputError(
            f"{what} come from a DataLoader that shuffles them, and answers would be in an order that nobody knows: "
            "make it with shuffle=False"
        )
    if loader.drop_last and _has_items(loader.dataset) and len(loader.dataset) % (loader.batch_size or 1):  # type: ignore[arg-type]
        raise InputError(f"{what} come from a DataLoader that drops the last ones: make it with drop_last=False")


# -------------------------------------------------------------------------------------------------- samples and targets


def _parted(item: Any, example: Inputs, what: str) -> tuple[Any, Any]:
    """Return the samples and the targets of an item, a pair or a mapping.

    Raises:
        InputError: it is neither, or has no target, or more than one.
    """
    if isinstance(item, Mapping):
        found = _target_keys(item, example)
        if len(found) != 1:
            said = f"the targets {' and '.join(map(repr, found))}" if found else f"the keys {_listed(item)}"
            raise InputError(
                f"{what}: a mapping with {said} must have one for the targets, such as 'label'; or give pairs of "
                "samples and targets, (x, y)"
            )
        rest = {key: value for key, value in item.items() if key != found[0]}
        return _unwrapped(rest, example, what), item[found[0]]
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
    raise InputError(
        f"{what} is a {type(item).__name__}{size}, and must be a pair of samples and targets, (x, y); put several "
        "inputs into one tuple or mapping"
    )


def _sample_of(item: Any, example: Inputs, what: str) -> Any:
    """Return the samples of an item of which targets may be a part."""
    if isinstance(item, (tuple, list)) and not hasattr(item, "_fields"):
        inner = bool(item) and isinstance(item[0], (tuple, list))
        if isinstance(example, (tuple, list)) and not (len(item) == 2 and inner):
            return item  # the positional arguments themselves
        if len(item) in (1, 2) and (inner or isinstance(item[0], Mapping) or hasattr(item[0], "__array__")):
            return _sample_of(item[0], example, what) if isinstance(item[0], Mapping) else item[0]
    if isinstance(item, Mapping):
        return _unwrapped(_without_target(item, example, what), example, what)
    return item


def _without_target(given: Any, example: Inputs, what: str) -> Any:
    """Return a mapping that holds targets without them; all else as it is."""
    found = _target_keys(given, example) if isinstance(given, Mapping) else []
    if not found:
        return given
    return _unwrapped({key: value for key, value in given.items() if key not in found}, example, what)


def _target_keys(given: Mapping[Any, Any], example: Inputs) -> list[Any]:
    inputs: Any = example if isinstance(example, Mapping) else ()
    return [key for key in given if key in TARGET_KEYS and key not in inputs]


def _unwrapped(columns: Any, example: Inputs, what: str) -> Any:
    """Return the only column of a mapping where the network takes one tensor; all else as it is."""
    if not isinstance(example, Tensor) or not isinstance(columns, Mapping) or not columns:
        return columns
    if len(columns) > 1:
        raise InputError(
            f"{what}: the network takes one tensor, and a mapping holds {_listed(columns)}: leave all but one out"
        )
    return next(iter(columns.values()))


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(repr(key) for key in keys) or "of nothing"


def _targets_of(what: str) -> str:
    return what.replace("samples", "targets", 1)


def _joined(targets: list[Labels], combine: Combine, what: str) -> Labels:
    """Return the targets of all items as one; texts in one tuple."""
    texts = [each for each in targets if isinstance(each, tuple)]
    if not texts:
        joined: Tensor = combined(targets, combine, 0, what)
        return joined
    if len(texts) < len(targets):
        raise InputError(f"{what} are texts for some samples and numbers for others; give all of one kind")
    return tuple(itertools.chain.from_iterable(texts))
