"""Reading saved networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hatrack.errors import CheckpointError, GuaranteeError, InputError
from hatrack.gating.attachment import attached_to
from hatrack.growth.policy import Growth, Origin
from hatrack.masks import Unmasked, conditioning_from, source_from
from hatrack.models.base import MaskedNetwork
from hatrack.models.forgetting import Forgotten
from hatrack.models.gate_settings import GateSettings
from hatrack.models.hat import FORMAT, HATNetwork
from hatrack.models.weight_masked import WEIGHTS_FORMAT, WeightMaskedNetwork
from hatrack.state.tryouts import agree
from hatrack.storage.checkpoint import Checkpoint, check_backbone, read_checkpoint
from hatrack.units import Rule
from hatrack.units.signatures import Signature

__all__ = ["forget_in_files", "load", "load_as", "network_from"]

Rules = Mapping[Any, Rule] | None
Build = Callable[[nn.Module, Tensor, Mapping[str, Any], Rules], MaskedNetwork[Any]]
NetworkT = TypeVar("NetworkT", HATNetwork, WeightMaskedNetwork)


def load(
    path: str | Path, backbone: nn.Module, *, rules: Mapping[Any, Rule] | None = None
) -> HATNetwork | WeightMaskedNetwork:
    """Read a network that :meth:`hatrack.HATNetwork.save` or :meth:`hatrack.WeightMaskedNetwork.save` wrote.

    Args:
        path: the file.
        backbone: a network built as the saved one was, as wide as it was at first or as it had grown; its weights are
            overwritten.
        rules: the rules that were given to the saved network, if any.

    Returns:
        The network, in training mode as every new module, with all its tasks and their protection.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or newer, or was saved with another backbone. The
            backbone is as it was then, but for its weights, and for its widths if the saved one had grown.
        GuaranteeError: the file is whole, but what its tasks rely on is not what they were consolidated with.
        InputError: the backbone is no module, or is inside another network of masks.
        UnsupportedError: the backbone does something that no rule explains.
    """
    net: HATNetwork | WeightMaskedNetwork = _load(Path(path), backbone, rules, (FORMAT, WEIGHTS_FORMAT))
    return net


def load_as(kind: type[NetworkT], path: str | Path, backbone: nn.Module, *, rules: Rules = None) -> NetworkT:
    """Read a network of one kind; otherwise as :func:`load`.

    Args:
        kind: class of the network.
        path: the file.
        backbone: a network built as the saved one was.
        rules: the rules that were given to the saved network, if any.

    Raises:
        CheckpointError: the file holds another kind of network, or as in :func:`load`.
    """
    net = _load(Path(path), backbone, rules, (kind.format,))
    assert isinstance(net, kind)
    return net


def forget_in_files(
    task: str,
    paths: Sequence[str | Path],
    build: Callable[[], nn.Module],
    *,
    generator: torch.Generator | None = None,
    rules: Rules = None,
) -> dict[Path, Forgotten]:
    """Remove a task from saved networks, such as earlier checkpoints that still hold it; each file is replaced.

    Args:
        task: the task's name.
        paths: the files; those that do not hold the task stay as they are.
        build: builds the backbone that the files were saved with.
        generator: draws new values, on the CPU; torch's global one if left out.
        rules: the rules that were given to the saved networks, if any.

    Returns:
        By file that held the task, a report on erased entries.

    Raises:
        CheckpointError, GuaranteeError, InputError, UnsupportedError: as :func:`load`; files before that one are done.
    """
    reports = {}
    for path in map(Path, paths):
        net = load(path, build(), rules=rules)
        if task in net.task_names:
            reports[path] = net.forget(task, generator=generator)
            net.save(path)
    return reports


def _build_hat(backbone: nn.Module, example: Tensor, described: Mapping[str, Any], rules: Rules) -> HATNetwork:
    settings = GateSettings.from_json(described)
    growth = None if described["growth"] is None else Growth(**described["growth"])
    net = HATNetwork(backbone, example, rules=rules, growth=growth, **vars(settings))
    for signature in map(Signature.from_json, described.get("signatures", [])):
        net.masking.calls.replay(signature, net.masking.device, net.masking, net.change)
    return net


def _grow_as_saved(net: MaskedNetwork[Any], described: Mapping[str, Any]) -> None:
    """Widen a network without tasks as a file says, and set its original widths."""
    if "origin" in described:
        net.masking.origin = Origin.from_json(described["origin"])
    if _has_grown(described):
        try:
            _widen_as_saved(net, described["widths"])
        except InputError:
            net.detach()
            raise


def _has_grown(described: Mapping[str, Any]) -> bool:
    return "origin" in described and bool(described["widths"] != described["origin"]["widths"])


def _widen_as_saved(net: MaskedNetwork[Any], widths: Mapping[str, int]) -> None:
    """Widen a network that has no tasks yet to the widths of a file; one that has grown already may have them."""
    present = {group.name: group.size for group in net.masking.units_now().groups}
    if present.keys() != widths.keys() or any(widths[name] < size for name, size in present.items()):
        raise InputError(f"it had groups of units {dict(widths)}, and this one has {present}")
    missing = {name: widths[name] - size for name, size in present.items() if widths[name] > size}
    if missing:
        net.grow(missing, generator=torch.Generator().manual_seed(0))  # the new weights are overwritten


def _build_weights(
    backbone: nn.Module, example: Tensor, described: Mapping[str, Any], rules: Rules
) -> WeightMaskedNetwork:
    net = WeightMaskedNetwork(
        backbone,
        example,
        source=source_from(described["source"]),
        conditioning=conditioning_from(described["conditioning"]),
        unmasked=Unmasked(described["unmasked"]),
        growth=None if described.get("growth") is None else Growth(**described["growth"]),
    )
    return net


_BUILDERS: Mapping[str, Build] = MappingProxyType({FORMAT: _build_hat, WEIGHTS_FORMAT: _build_weights})


def _load(path: Path, backbone: nn.Module, rules: Rules, formats: Sequence[str]) -> Any:
    if not isinstance(backbone, nn.Module):
        raise InputError(f"the backbone must be a torch.nn.Module, not a {type(backbone).__name__}")
    return network_from(path, read_checkpoint(path, *formats), backbone, rules)


def network_from(path: Path, checkpoint: Checkpoint, backbone: nn.Module, rules: Rules = None) -> Any:
    """Build the network that a checkpoint holds; otherwise as :func:`load`.

    Args:
        path: the file, for messages.
        checkpoint: content of the file.
        backbone: a network built as the saved one was.
        rules: the rules that were given to the saved network, if any.
    """
    described = checkpoint.description
    check_backbone(path, described["modules"], backbone)
    present = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    computed = {name: present[name] for name in described.get("computed_anew", ()) if name in present}
    state: dict[str, Any] = {**checkpoint.tensors, **computed}
    of_backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    if not _has_grown(described):  # else it may have to be widened before it matches
        _require_match(path, of_backbone, present)
    example = torch.zeros(
        described["example_input"]["shape"], dtype=getattr(torch, described["example_input"]["dtype"])
    )
    try:
        net = _BUILDERS[described["format"]](backbone, example, described, rules)
        _grow_as_saved(net, described)
    except InputError as error:
        if not _has_grown(described) or attached_to(backbone) is not None:
            raise
        reason = f"{path} was saved with another backbone: {error}"
        raise CheckpointError(f"{reason}; build it exactly as it was") from error
    for index, task in enumerate(described["tasks"]):
        opened = net.masking.open_task(
            task["name"], task["num_classes"], torch.Generator().manual_seed(0)
        )  # overwritten below
        own = f"tasks.{index}."
        state[f"{own}_extra_state"] = torch.tensor(task["consolidated"])
        opened.prepare_for({n.removeprefix(own): v for n, v in state.items() if n.startswith(own)})
    state["_extra_state"] = described["digests"]
    try:
        _require_match(path, state, net.state_dict())
        net.load_state_dict(state)
        _require_same_answer(path, net, described["probe"])
    except GuaranteeError as error:
        net.detach()
        reason = "its protected entries are not those that its tasks were consolidated with"
        raise GuaranteeError(f"{path}: {reason}; use an earlier copy") from error
    except CheckpointError:
        net.detach()
        raise
    return net


def _require_same_answer(path: Path, net: MaskedNetwork[Any], saved: dict[str, Any] | None) -> None:
    """Check that the last task gives its saved logits: a stride or a slope may differ though all weights fit."""
    now = net.probe()
    if saved is None or now is None:
        return
    ours, theirs = torch.tensor(now["logits"]), torch.tensor(saved["logits"])
    if not agree(ours, theirs, 0.02):
        raise CheckpointError(
            f"{path} was saved with another backbone: its weights fit, but task {saved['task']!r} gives other outputs; "
            "build the backbone exactly as it was"
        )


def _require_match(path: Path, file: Mapping[str, Any], network: Mapping[str, Any]) -> None:
    """Check that a file and a network hold tensors of the same names, shapes and types."""
    difference = next(_differences(file, network), None)
    if difference is not None:
        raise CheckpointError(f"{path} was saved with another backbone: {difference}; build it exactly as it was")


def _differences(file: Mapping[str, Any], network: Mapping[str, Any]) -> Iterator[str]:
    """Yield how tensors in a file differ from those of a network, the most telling differences first."""
    ours, theirs = (
        {name: value for name, value in state.items() if not name.endswith("_extra_state")} for state in (network, file)
    )
    common = [name for name in ours if name in theirs]
    for name in common:
        if theirs[name].shape != ours[name].shape:
            yield f"{name} has shape {tuple(theirs[name].shape)} in the file and {tuple(ours[name].shape)} here"
    for name in common:
        if theirs[name].dtype != ours[name].dtype:
            yield f"{name} has type {theirs[name].dtype} in the file and {ours[name].dtype} here"
    yield from (f"{name} is missing in the file" for name in ours if name not in theirs)
    yield from (f"{name} is missing in this one" for name in theirs if name not in ours)
