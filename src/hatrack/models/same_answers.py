"""Comparison of a network that was read with its file: does every task answer as it did when the file was written?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hatrack.errors import CheckpointError
from hatrack.models.base import MaskedNetwork
from hatrack.protection.structure import settings_in_json
from hatrack.state.tryouts import agree, deviation
from hatrack.support.environment import describe_arithmetic

__all__ = ["other_settings", "require_same_answers"]

_NEAR = 1e-5
"""Deviation of outputs that rounding explains, in parts of the largest output, in float32.

Over 42 networks of the tests, one thread and two, oneDNN and none, the oldest instructions of the processor and the
newest, and float64 differ by 1e-6 at most.
"""

_FAR = 0.02
"""Largest deviation where torch, the device or its arithmetic are others: TF32 or bfloat16 in the place of float32."""

_MARGIN = 10
"""Number of times by which two computations may differ more than one of them differs from float64."""


def require_same_answers(path: Path, net: MaskedNetwork[Any], described: Mapping[str, Any]) -> None:
    """Check that all tasks give their saved logits: a stride, a slope or code may differ though all weights fit.

    Where torch, the device and its arithmetic are those that the file names, outputs may differ by rounding alone. Else
    they may differ further, and a warning says by how much, and why.

    Args:
        path: the file, for messages.
        net: the network that was read.
        described: description in the file.

    Raises:
        CheckpointError: some task gives other outputs.
    """
    last = described["probe"]
    saved = described.get("probes", {} if last is None else {last["task"]: last["logits"]})
    now = net.probes()
    pairs = {task: (_numbers(now[task]), _numbers(saved[task])) for task in saved if task in now}
    far, moved = _beyond(pairs, _NEAR), _beyond(pairs, 0.0)
    settings = other_settings(described, net.backbone, {state.name: state.head for state in net.tasks}) if moved else []
    if settings and not far:
        _warn(
            f"{path}: settings are others than when it was saved: {'; '.join(settings[:3])}; and outputs of task "
            f"{next(iter(moved))!r} differ in their last digits, by rounding or because of these; set them back "
            "for the saved outputs"
        )
    bound = max(_NEAR, _MARGIN * _rounding(net, {task: pairs[task][0] for task in far})) if far else _NEAR
    far = far if settings else _beyond(far, bound)
    if not far:
        return
    task = max(far, key=lambda name: deviation(*far[name]))
    by = f"by {deviation(*far[task]):.1e} of the largest"
    if settings:  # by which outputs may differ as little as by rounding
        raise CheckpointError(
            f"{path} was saved with other settings: {'; '.join(settings[:3])}; and task {task!r} gives other outputs "
            f"with these, {by}; build the backbone and heads exactly as they were"
        )
    by = f"{by}, where rounding explains {bound:.0e}"
    arithmetic = _other_arithmetic(described, describe_arithmetic(net.masking.device))
    if not arithmetic or _beyond(far, _FAR):
        raise CheckpointError(
            f"{path} was saved with another backbone: its weights fit, but task {task!r} gives other outputs, {by}; "
            "build the backbone exactly as it was, with the same code"
        )
    _warn(
        f"{path}: task {task!r} gives other outputs than when it was saved, {by}. {'; '.join(arithmetic)}: that may be "
        "why, and so may be other code in the backbone's forward"
    )


def _warn(message: str) -> None:
    # In the line of whoever calls load: network_from, _load and load are between, and two of plain_modes.
    warnings.warn(message, stacklevel=8)


def other_settings(
    described: Mapping[str, Any], backbone: nn.Module, heads: Mapping[str, nn.Module] | None = None
) -> list[str]:
    """Return how settings of a backbone and of heads differ from those in a file, in words.

    Args:
        described: description in the file.
        backbone: the backbone.
        heads: the heads by name of their task; those that are missing are not compared.
    """
    pairs = [("", described.get("settings", {}), settings_in_json(backbone))]
    for task in described["tasks"]:
        if "settings" in task and heads is not None and task["name"] in heads:
            whose = f"the head of task {task['name']!r}"
            pairs.append((whose, task["settings"], settings_in_json(heads[task["name"]])))
    return [
        f"{' '.join(filter(None, (whose, name)))}.{key} was {value!r} and is {present[name][key]!r}".lstrip(".")
        for whose, saved, present in pairs
        for name, settings in saved.items()
        for key, value in settings.items()
        if key in present.get(name, {}) and present[name][key] != value
    ]


_Pairs = Mapping[str, tuple[Tensor, Tensor]]


def _numbers(logits: Sequence[float]) -> Tensor:
    return torch.tensor(logits, dtype=torch.float64)


def _beyond(pairs: _Pairs, bound: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Return those pairs of outputs that do not agree."""
    return {task: pair for task, pair in pairs.items() if not agree(*pair, bound)}


def _rounding(net: MaskedNetwork[Any], logits: Mapping[str, Tensor]) -> float:
    """Return by how much outputs differ from those that the network would give in float64, in parts of the largest.

    It is more than usual where a network has a type of fewer digits, computes in TF32, or makes rounding errors larger.

    Args:
        net: the network; a copy is run.
        logits: outputs by name of their task.
    """
    try:
        exact = copy.deepcopy(net).double().probes()
    except Exception:  # whatever a backbone may raise that is not made for this type, or for copies
        return 0.0
    found = [deviation(given, _numbers(exact[task])) for task, given in logits.items() if task in exact]
    return max((each for each in found if each < float("inf")), default=0.0)


def _other_arithmetic(described: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how what outputs are computed with differs from what a file says, in words."""
    saved = described.get("arithmetic")
    return (
        ["The file does not say what its outputs were computed with"] if saved is None else list(_changes(saved, now))
    )


def _changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, value in now.items():
        if saved.get(key) != value:
            yield f"{key} was {saved.get(key)!r} then, and is {value!r} here"
