"""Frozen entries of parameters: records of their bits, from which they are restored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hatrack.units import ParameterUse

__all__ = [
    "Backup",
    "FrozenEntries",
    "all_of",
    "any_of",
    "attention_on_entries",
    "digest",
    "digest_of_entries",
    "larger",
    "smaller",
]

_AT_ONCE = 2**18
"""Number of entries of which frozen ones are picked at once: as many as stay in a CPU's cache."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def attention_on_entries(uses: Iterable[ParameterUse], attention: Tensor, shape: torch.Size) -> Tensor:
    """Return how much the tasks so far rely on every entry of a parameter.

    The minimum over the ends of a use (Eq. 2 of the HAT paper), and the maximum over the uses of a shared parameter.

    Args:
        uses: where the parameter is used.
        attention: cumulative attention, ``(U + 1,)``, booleans or numbers in [0, 1]; the last stands for "ungated".
        shape: the parameter's shape.

    Returns:
        A tensor of that shape and of the type of ``attention``.
    """
    entries = []
    for use in uses:
        sides = [attention[side.to(attention.device)] for side in use.sides]
        entries.append(functools.reduce(smaller, sides))
    nothing = torch.zeros((), dtype=attention.dtype, device=attention.device)
    return (functools.reduce(larger, entries) if entries else nothing).expand(shape)


def smaller(one: Tensor, other: Tensor) -> Tensor:
    """Return the smaller of two attentions, entry by entry; of booleans thirty times as fast as ``torch.minimum``."""
    if one.dtype != torch.bool or other.dtype != torch.bool:
        return torch.minimum(one, other)
    return (one.view(torch.uint8) & other.view(torch.uint8)).view(torch.bool)


def larger(one: Tensor, other: Tensor) -> Tensor:
    """Return the larger of two attentions, entry by entry; see :func:`smaller`."""
    if one.dtype != torch.bool or other.dtype != torch.bool:
        return torch.maximum(one, other)
    return (one.view(torch.uint8) | other.view(torch.uint8)).view(torch.bool)


def any_of(flags: Tensor, axis: int | None = None) -> Tensor:
    """Return whether any of some booleans is True, over all or along an axis; twenty times as fast as ``torch.any``."""
    if not flags.numel() or flags.dtype != torch.bool:
        return flags.any() if axis is None else flags.any(axis)
    numbers = flags.view(torch.uint8)
    return (numbers.amax() if axis is None else numbers.amax(axis)).view(torch.bool)


def all_of(flags: Tensor, axis: int | None = None) -> Tensor:
    """Return whether all of some booleans are True, over all or along an axis; see :func:`any_of`."""
    if not flags.numel() or flags.dtype != torch.bool:
        return flags.all() if axis is None else flags.all(axis)
    numbers = flags.view(torch.uint8)
    return (numbers.amin() if axis is None else numbers.amin(axis)).view(torch.bool)


@dataclass(frozen=True)
class FrozenEntries:
    """Bits of one parameter's frozen entries, from which they are restored.

    Entries are selected by their bits: an ``and`` with 0 clears whatever is there, infinities and "not a number"
    included, and it runs at the speed of memory, three to five times faster than a boolean mask. All of it is a matter
    of how much memory is read: where whole rows are frozen, as in a layer that reads the input, a number per row does.

    Such a record is twice as large as the parameter. A convolution computes for so long with each weight that time to
    put it back does not count; on a CPU its record holds the bits of frozen entries alone, one after the other.

    Attributes:
        frozen: booleans of the parameter's shape, True for frozen entries.
        free_bits: integers as wide as the parameter's entries: all ones where free, 0 where frozen; a row whose entries
            are all alike may hold its number once, so that this is a view. None where the record is a compact one.
        saved_bits: the bits of the frozen entries, 0 where free; of these entries alone, in order, in a compact record.
        freedom: factor of gradients in soft mode, one minus the attention; None in hard mode.
        all_frozen: whether every entry is frozen.
    """

    frozen: Tensor
    free_bits: Tensor | None
    saved_bits: Tensor
    freedom: Tensor | None
    all_frozen: bool

    @classmethod
    def of(cls, parameter: Tensor, attention: Tensor) -> FrozenEntries | None:
        """Return the record of a parameter as it is now.

        Args:
            parameter: the parameter.
            attention: cumulative attention on its entries, of its shape, booleans (hard) or numbers in [0, 1] (soft).

        Returns:
            The record, or None when nothing is frozen.
        """
        if not any_of(attention):
            return None
        integers = _INTEGERS[parameter.element_size()]
        soft = attention.is_floating_point()
        frozen = ((attention == 1) if soft else attention).contiguous()
        freedom, all_frozen = (1 - attention).to(parameter.dtype) if soft else None, bool(all_of(frozen))
        if parameter.dim() > 2 and parameter.device.type == "cpu":
            compact = torch.masked_select(parameter.detach().view(integers), frozen)
            return cls(frozen, None, compact, freedom, all_frozen)
        rows = _by_rows(frozen)
        free_bits = rows.to(integers).sub_(1).expand(frozen.shape)
        bits, chosen = parameter.detach().view(integers), rows.to(integers).neg_()
        saved_bits = chosen.bitwise_and_(bits) if chosen.shape == bits.shape else chosen & bits
        return cls(frozen, free_bits, saved_bits, freedom, all_frozen)

    @property
    def shape(self) -> torch.Size:
        """Shape that the parameter had."""
        return self.frozen.shape

    def spot(self, tried: int, length: int) -> tuple[int, Tensor, Tensor] | None:
        """Return some entries that lie side by side in a contiguous tensor, the first of them frozen.

        Args:
            tried: number of places at which a frozen entry is looked for.
            length: largest number of entries.

        Returns:
            The index of the first one, integers that are −1 where entries are frozen and 0 elsewhere, and the saved
            bits, 0 where they are not frozen; None where no frozen entry was found.
        """
        frozen = self.frozen.reshape(-1)
        places = torch.arange(0, len(frozen), max(1, len(frozen) // tried), device=frozen.device)
        hits = places[frozen[places]]
        if not len(hits):
            return None
        start = int(hits[len(hits) // 2])
        chosen = frozen[start : start + length].to(self.saved_bits.dtype).neg_()
        if self.free_bits is not None:
            return start, chosen, self.saved_bits.reshape(-1)[start : start + length].clone()
        saved, before = torch.zeros_like(chosen), int(frozen[:start].sum())
        count = int((chosen != 0).sum())
        saved[chosen != 0] = self.saved_bits[before : before + count]
        return start, chosen, saved

    def condition(self, gradient: Tensor) -> None:
        """Clear a gradient at frozen entries, in place (Eq. 2); in soft mode scale the rest by its freedom."""
        if self.freedom is not None:
            gradient.mul_(self.freedom)
        bits = gradient.view(self.saved_bits.dtype)
        if self.free_bits is None:
            bits.masked_fill_(self.frozen, 0)
        else:
            bits.bitwise_and_(self.free_bits)

    def has_moved(self, parameter: Tensor) -> bool:
        """Return whether a frozen entry has other bits than those that were saved."""
        bits = parameter.detach().view(self.saved_bits.dtype)
        now = torch.masked_select(bits, self.frozen) if self.free_bits is None else bits & ~self.free_bits
        return not torch.equal(now, self.saved_bits)

    def restored(self, parameter: Tensor) -> Tensor:
        """Return a copy of a parameter whose frozen entries have their saved values."""
        copy = parameter.detach().clone()
        self.restore(copy)
        return copy

    def restore(self, parameter: Tensor) -> None:
        """Restore the frozen entries, in place."""
        bits = parameter.view(self.saved_bits.dtype)
        if self.all_frozen:
            bits.copy_(self.saved_bits.view(bits.shape))
            return
        if self.free_bits is None:
            bits.masked_scatter_(self.frozen, self.saved_bits)
            return
        # saved + (-1) · bits · (-1 or 0): as integers that is exact for any bits, and goes over the memory only once.
        torch.addcmul(self.saved_bits, bits, self.free_bits, value=-1, out=bits)


@dataclass(frozen=True)
class Backup:
    """Backup of a fully frozen parameter.

    Attributes:
        saved: the parameter's values.
    """

    saved: Tensor

    @classmethod
    def of(cls, parameter: Tensor) -> Backup:
        """Return the backup of a parameter as it is now."""
        return cls(parameter.detach().clone())

    @property
    def shape(self) -> torch.Size:
        """Shape that the parameter had."""
        return self.saved.shape

    @property
    def frozen(self) -> Tensor:
        """Booleans that are True everywhere, since all entries are frozen."""
        return torch.ones_like(self.saved, dtype=torch.bool)

    def spot(self, tried: int, length: int) -> tuple[int, Tensor, Tensor] | None:
        """Return some entries that lie side by side, as :meth:`FrozenEntries.spot`."""
        integers = _INTEGERS.get(self.saved.element_size())
        if integers is None or not self.saved.numel():
            return None
        flat = self.saved.reshape(-1)
        start = max(0, len(flat) - length) // 2
        saved = flat[start : start + length].clone().view(integers)
        return start, torch.full_like(saved, -1), saved

    def has_moved(self, parameter: Tensor) -> bool:
        """Return whether any bit differs from what was saved."""
        one, other = (value.detach().reshape(-1).contiguous() for value in (parameter, self.saved))
        return bool(one.numel()) and not torch.equal(one.view(torch.uint8), other.view(torch.uint8))

    def restored(self, parameter: Tensor) -> Tensor:
        """Return the saved values, which must not be written to."""
        return self.saved

    def restore(self, parameter: Tensor) -> None:
        """Restore the values, in place."""
        parameter.copy_(self.saved)


def _by_rows(frozen: Tensor) -> Tensor:
    """Return a value per row, which broadcasts to ``frozen``, if the entries of each row are alike; else ``frozen``."""
    if frozen.dim() < 2 or not frozen.numel():
        return frozen
    first = frozen.flatten(1)[:, :1].view(-1, *(1,) * (frozen.dim() - 1))
    return first if torch.equal(first.expand(frozen.shape), frozen) else frozen


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors, in the mapping's order."""
    summary = hashlib.sha256()
    for name, tensor in tensors.items():
        summary.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        summary.update(_bytes_of(tensor))
    return summary.hexdigest()


def digest_of_entries(parameter: Tensor, frozen: Tensor) -> str:
    """Return the digest of a parameter's frozen entries, and of where they are.

    Args:
        parameter: the parameter.
        frozen: booleans of its shape.

    Returns:
        ``digest({"held": frozen, "values": parameter[frozen]})``; the names are part of what is hashed, and of the
        digests in files. The entries are picked in pieces, since their indices would need more memory than they do.
    """
    summary = hashlib.sha256(f"held {frozen.dtype} {tuple(frozen.shape)}\n".encode())
    summary.update(_bytes_of(frozen))
    summary.update(f"values {parameter.dtype} ({int(frozen.count_nonzero())},)\n".encode())
    values, where = parameter.detach().reshape(-1), frozen.reshape(-1)
    pieces = zip(torch.split(values, _AT_ONCE), torch.split(where, _AT_ONCE), strict=True)
    for part, chosen in pieces:
        summary.update(_bytes_of(torch.masked_select(part, chosen)))
    return summary.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview | bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
