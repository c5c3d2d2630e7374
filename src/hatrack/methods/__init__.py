"""Methods: ways to learn tasks one after the other, each one file and one line here."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from hatrack.errors import InputError
from hatrack.methods.adahat import AdaHAT
from hatrack.methods.base import (
    Batch,
    Earlier,
    EpochPlan,
    Loss,
    Method,
    NoSettings,
    Pace,
    ParameterGroup,
    Schedule,
    Setup,
    joined,
)
from hatrack.methods.cab import CAB
from hatrack.methods.den import DEN
from hatrack.methods.derpp import DERPP
from hatrack.methods.dwa import DWA
from hatrack.methods.er import ER
from hatrack.methods.ewc import EWC
from hatrack.methods.gem import GEM
from hatrack.methods.hat import HAT
from hatrack.methods.imm import IMMMean, IMMMode
from hatrack.methods.independent import Independent
from hatrack.methods.joint import Joint
from hatrack.methods.l2 import L2
from hatrack.methods.lfl import LFL
from hatrack.methods.lwf import LWF
from hatrack.methods.mas import MAS
from hatrack.methods.packnet import PackNet
from hatrack.methods.pathnet import PathNet
from hatrack.methods.pmask import PMASK
from hatrack.methods.pnn import PNN
from hatrack.methods.random import Random
from hatrack.methods.sgd import SGD
from hatrack.methods.sgd_variants import SGDFrozen, SGDRestart
from hatrack.methods.si import SI
from hatrack.methods.supsup import SupSup
from hatrack.methods.wsn import WSN
from hatrack.streams import Task
from hatrack.support.importing import imported
from hatrack.support.names import look_up
from hatrack.support.values import require_readable

__all__ = [
    "METHODS",
    "Batch",
    "Earlier",
    "EpochPlan",
    "Loss",
    "Method",
    "NoSettings",
    "Pace",
    "ParameterGroup",
    "Schedule",
    "Setup",
    "find_method",
    "joined",
    "require_learnable",
]

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        method.name: method
        for method in (
            *(HAT, AdaHAT, SGD, SGDFrozen, SGDRestart, Joint, Independent, Random),
            *(L2, EWC, IMMMean, IMMMode, SI, MAS, CAB, LWF, LFL),
            *(PMASK, WSN, SupSup),
            *(PackNet, PNN, PathNet, DEN, DWA),
            *(ER, DERPP, GEM),
        )
    }
)
"""Every method by its name."""

_REQUIRED = ("name", "description", "source")
"""Attributes that a class of a method has to define, beside the abstract methods."""


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Args:
        name: a name in :data:`METHODS`; or ``module:Class`` for a subclass of :class:`Method` of one's own, from what
            is installed or from the working directory.

    Raises:
        InputError: there is no such method, module or class; or the class is no :class:`Method`, or lacks a part of
            one, or has settings that a file could not keep.
    """
    if not isinstance(name, str) or ":" not in name:
        return look_up("method", name, METHODS)
    kind = imported("method", name, "mymodule:MyMethod", "class of a method", Method)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise InputError(f"method {name}: it is no subclass of hatrack.methods.Method")
    if missing := [*sorted(kind.__abstractmethods__), *(key for key in _REQUIRED if not hasattr(kind, key))]:
        raise InputError(f"method {name}: its class does not define {', '.join(missing)}")
    require_readable(f"method {name}", kind.settings_type)
    if not isinstance(kind.training, Mapping):
        raise InputError(f"method {name}: its training must be settings by name, not {kind.training!r}")
    return kind


def require_learnable(method: type[Method], tasks: Iterable[Task]) -> None:
    """Check that a method can learn tasks of their kinds.

    Args:
        method: the method.
        tasks: the tasks.

    Raises:
        InputError: it cannot; the methods that can are named.
    """
    for task in tasks:
        if not method.learns(task.objective):
            weighted = " with class weights" if getattr(task.objective, "weights", None) else ""
            others = ", ".join(name for name, kind in METHODS.items() if kind.learns(task.objective))
            raise InputError(
                f"{method.name} cannot learn task {task.name!r}, which is {task.objective.kind}{weighted}; "
                f"these methods can: {others}"
            )
