"""Content of a network's file: its tensors, and a description in JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hatrack.masks.task_list import StateT
from hatrack.masks.tasks import TaskState
from hatrack.protection.structure import settings_in_json
from hatrack.storage.checkpoint import Checkpoint, description_of_modules
from hatrack.support.environment import describe_arithmetic
from hatrack.support.layouts import strides_of

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["content_of"]


def content_of(net: MaskedNetwork[StateT]) -> Checkpoint:
    """Return the content of a file of a network whose protection was checked: tensors and description."""
    masking = net.masking
    masking.notice_settings()
    left_out = {f"backbone.{name}" for name in masking.own_state.movement.attributes}  # of whatever shape
    tensors = {
        name: value
        for name, value in net.state_dict().items()
        if not name.endswith("_extra_state") and name not in left_out
    }
    probes = net.probes()
    last = next(reversed(probes), None)
    description = {
        "format": net.format,
        **masking.to_json(),
        **({} if masking.origin is None else {"growth": None if net.growth is None else asdict(net.growth)}),
        "example_input": masking.example_input.to_json(),
        **masking.interface.to_json(),
        "modules": description_of_modules(net.backbone),
        **({"untrained": list(masking.untrained)} if masking.untrained else {}),
        "tasks": [_description_of(state) for state in net.tasks],
        "digests": net.protection.digests,
        "strides": strides_of(net),
        "settings": settings_in_json(net.backbone, masking.own_state.names),
        "probe": None if last is None else {"task": last, "logits": probes[last]},  # for earlier readers
        "probes": probes,
        "arithmetic": describe_arithmetic(masking.device),
    }
    return Checkpoint(tensors, {**description, "computed_anew": sorted(left_out)})


def _description_of(state: TaskState) -> dict[str, Any]:
    """Return what a file says about a task, its tensors apart."""
    described: dict[str, Any] = {
        "name": state.name,
        "num_classes": state.num_classes,
        "consolidated": state.consolidated,
    }
    if len(state.batch_norms):
        described["norms"] = settings_in_json(state.batch_norms, gathering=True)
    if state.num_classes is not None:
        return described
    return {**described, "head": description_of_modules(state.head), "settings": settings_in_json(state.head)}
