"""Reading saved networks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hatrack.checkpoint import check_backbone, read_checkpoint
from hatrack.errors import CheckpointError, GuaranteeError
from hatrack.functional import Compensation
from hatrack.network import FORMAT, HATNetwork

__all__ = ["load"]


def load(path: str | Path, backbone: nn.Module) -> HATNetwork:
    """Read a network that :meth:`hatrack.HATNetwork.save` wrote.

    Args:
        path: the file.
        backbone: a network built as the saved one was; its weights are overwritten.

    Returns:
        The network, in training mode as every new module, with all its tasks and their protection.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or newer, or was saved with another backbone. The
            backbone is as it was then.
        UnsupportedError: the backbone does something that no rule explains.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, FORMAT)
    described = checkpoint.description
    check_backbone(path, described["modules"], backbone)
    example = torch.zeros(
        described["example_input"]["shape"], dtype=getattr(torch, described["example_input"]["dtype"])
    )
    net = HATNetwork(
        backbone,
        example,
        s_max=described["s_max"],
        hard=described["hard"],
        compensation=Compensation(described["compensation"]),
    )
    state = dict(checkpoint.tensors)
    for index, task in enumerate(described["tasks"]):
        net._open_task(task["name"], task["num_classes"])
        state[f"tasks.{index}._extra_state"] = torch.tensor(task["consolidated"])
    mismatches = _mismatches(net, state)
    if mismatches:
        net.detach()
        raise CheckpointError(f"{path} was saved with another backbone: {mismatches[0]}; build it exactly as it was")
    net.load_state_dict(state)  # type: ignore[no-untyped-call]
    if net._digests != described["digests"]:
        net.detach()
        raise GuaranteeError(f"{path}: its protected entries are not those that its tasks were consolidated with")
    return net


def _mismatches(net: HATNetwork, state: dict[str, torch.Tensor]) -> list[str]:
    present = {name: value for name, value in net.state_dict().items() if not name.endswith("_extra_state")}
    saved = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    missing = [f"{name} is missing in the file" for name in present if name not in saved]
    extra = [f"{name} is missing in this one" for name in saved if name not in present]
    shapes = [
        f"{name} has shape {tuple(saved[name].shape)} in the file and {tuple(value.shape)} here"
        for name, value in present.items()
        if name in saved and saved[name].shape != value.shape
    ]
    return [*shapes, *missing, *extra]
