"""Version counters: whether anything but hatrack has touched what must not move, at the price of comparing integers.

Torch counts the changes in place of every tensor. What is noted here is the count at which a tensor was last known to
be right, and where its values lie in memory. Changes through ``.data`` and captured CUDA graphs leave no count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hatrack.guarantee import Guarantee
from hatrack.protect import Keepsake, Shield

__all__ = ["Parts", "Watch", "stamp_of"]


def stamp_of(tensor: Tensor) -> tuple[int, int]:
    """Return the count of a tensor's changes in place, and the address of its values."""
    return (-1 if tensor.is_inference() else tensor._version), tensor.data_ptr()


class Parts:
    """Record of the layers and parameters that a network has, to notice when others have been put in their place.

    Args:
        modules: by the beginning of their names, the modules whose parts are recorded.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._places: list[tuple[dict[str, Any], str, Any, str]] = []
        for prefix, root in modules.items():
            for name, module in root.named_modules(prefix=prefix):
                for table in (module._parameters, module._modules):
                    self._places += [(table, key, part, f"{name}.{key}") for key, part in table.items()]

    def replaced(self) -> list[str]:
        """Return the names of what is no longer there, or is another object; plain tensors stand in for a call."""
        names = []
        for table, key, part, name in self._places:
            present = table.get(key)
            if present is not part and (present is None or isinstance(present, (nn.Parameter, nn.Module))):
                names.append(name)
        return names


class Watch:
    """Stamps of all tensors of which entries are frozen.

    Args:
        guarantee: what must not move; all of it is right at this moment.
        touched: indices in ``guarantee.all()`` of what may have moved already.
    """

    def __init__(self, guarantee: Guarantee, touched: Collection[int] = ()) -> None:
        self.guarantee = guarantee
        self._tensors = [tensor for tensor, _ in guarantee.all()]
        self._stamps = {
            id(tensor): stamp_of(tensor) for index, (tensor, _) in enumerate(guarantee.all()) if index not in touched
        }

    def __reduce__(self) -> tuple[type[Watch], tuple[Any, ...]]:
        """Copies watch the copied tensors, which have counts of their own."""
        touched = [index for index, (tensor, _) in enumerate(self.guarantee.all()) if self.is_touched(tensor)]
        return type(self), (self.guarantee, touched)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """All tensors of which entries are frozen."""
        return self._tensors

    def is_touched(self, tensor: Tensor) -> bool:
        """Return whether something has written to a tensor since it was last known to be right."""
        return self._stamps.get(id(tensor)) != stamp_of(tensor)

    def note(self, tensor: Tensor) -> None:
        """Take a tensor for right as it is now."""
        self._stamps[id(tensor)] = stamp_of(tensor)

    def moved(self, watched: Iterable[tuple[Tensor, Shield | Keepsake]]) -> list[tuple[Tensor, Shield | Keepsake]]:
        """Return those tensors of which frozen entries have other bits; only what was touched is looked at."""
        moved = []
        for tensor, keeper in watched:
            if self.is_touched(tensor):
                stamp = stamp_of(tensor)  # before the comparison: another thread may write meanwhile
                if keeper.has_moved(tensor):
                    moved.append((tensor, keeper))
                else:
                    self._stamps[id(tensor)] = stamp
        return moved
