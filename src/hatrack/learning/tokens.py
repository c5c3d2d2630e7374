"""Whole numbers that are looked up in tables, such as tokens: errors that say which are too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hatrack.errors import InputError
from hatrack.support.inputs import Inputs, tensors_in

__all__ = ["has_tables", "naming_unknown_ids"]

_TABLES = (nn.Embedding, nn.EmbeddingBag)


def has_tables(backbone: nn.Module) -> bool:
    """Return whether a network looks anything up in a table."""
    return any(isinstance(module, _TABLES) for module in backbone.modules())


@contextmanager
def naming_unknown_ids(backbone: nn.Module, x: Inputs, what: str) -> Iterator[None]:
    """Say it in one line where a network fails in the block because of numbers that its tables do not have.

    Args:
        backbone: the network.
        x: all samples that it is run on in the block.
        what: name of the samples, for messages.

    Raises:
        InputError: a number among the samples is not in a table, and the network failed with an IndexError.
    """
    try:
        yield
    except IndexError as error:
        rows = {name: module.num_embeddings for name, module in backbone.named_modules() if isinstance(module, _TABLES)}
        whole = [tensor for tensor in tensors_in(x) if tensor.dtype in _WHOLE and tensor.numel()]
        if not rows or not whole:
            raise
        low, high = min(int(tensor.min()) for tensor in whole), max(int(tensor.max()) for tensor in whole)
        if low >= 0 and high < min(rows.values()):
            raise
        named = ", ".join(f"{name or 'the backbone'} ({count})" for name, count in rows.items())
        raise InputError(
            f"{what} hold whole numbers from {low} to {high}, and the backbone's tables have fewer rows: {named}; "
            "numbers must be from 0 to the number of rows less one"
        ) from error


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
