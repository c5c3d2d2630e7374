"""The door to a network: what torch says of a backbone that cannot be attached is told in words of the backbone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.parameter import UninitializedParameter

from hatrack.errors import HatrackError, InputError, UnsupportedError
from hatrack.gating.attachment import attached_to
from hatrack.models.mode_switches import require_no_folding
from hatrack.support.inputs import Inputs
from hatrack.support.interface import Interface
from hatrack.support.names import in_one_line
from hatrack.support.transforms import forget_compiled, place_of, why_unfollowed
from hatrack.units.run import runs_by_itself

__all__ = ["explains_failure", "require_attachable"]

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def explains_failure(constructor: MethodT) -> MethodT:
    """Decorate a network's constructor so that it refuses backbones that run by themselves and cannot be attached.

    Exceptions of backbones that do not even run by themselves are raised as they are.
    """

    @functools.wraps(constructor)
    def wrapped(network: Any, backbone: nn.Module, example_input: Inputs, **settings: Any) -> None:
        try:
            constructor(network, backbone, example_input, **settings)
        except Exception as raised:
            error = raised.__cause__ if isinstance(raised, InputError) else raised  # which says what a run ended with
            reason = None if error is None else why_unfollowed(error)
            if error is None or isinstance(error, HatrackError) or (error is not raised and reason is None):
                raise
            forget_compiled()
            chosen = {key: settings[key] for key in ("features", "unit_axis", "batch_axis") if key in settings}
            interface = Interface(**chosen)
            if not runs_by_itself(backbone, interface.accepted(example_input), interface):
                raise
            said = f"it runs by itself, but cannot be attached ({type(error).__name__}: {in_one_line(error)})"
            raise UnsupportedError(f"{type(backbone).__name__}: {reason or said}{place_of(error)}") from error

    return cast(MethodT, wrapped)


def require_attachable(backbone: nn.Module) -> None:
    """Check that a network can be made around a backbone.

    Raises:
        InputError: the backbone is no module, or is inside another network of this kind.
        UnsupportedError: a parameter of it is not initialised yet, or of complex128; or weights are merged for
            evaluation.
    """
    if not isinstance(backbone, nn.Module):
        raise InputError(f"the backbone must be a torch.nn.Module, not a {type(backbone).__name__}")
    for name, parameter in backbone.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise UnsupportedError(f"{name} is not initialised yet; run the backbone once on a batch")
    owner = attached_to(backbone)
    if owner is not None:
        raise InputError(f"this backbone is already inside a {owner}: call its detach() first")
    wide = [name for name, parameter in backbone.named_parameters() if parameter.element_size() > 8]
    if wide:
        raise UnsupportedError(f"{', '.join(wide)} is of complex128, whose bits cannot be frozen; use complex64")
    require_no_folding(backbone)
