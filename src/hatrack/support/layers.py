"""Layers of torch, and classes that derive from them."""

from __future__ import annotations

from torch import nn

__all__ = ["overrides_forward"]


def overrides_forward(module: nn.Module, kind: type) -> bool:
    """Return whether the class of a module computes in another way than a layer of torch that it derives from."""
    names = ("forward", "_conv_forward")
    return any(getattr(type(module), name, None) is not getattr(kind, name, None) for name in names)
