"""Reading saved networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from hatrack.errors import DOES_NOT_RUN, CheckpointError, GuaranteeError, HatrackError, InputError, NewerFileError
from hatrack.gating.attachment import attached_to
from hatrack.growth.policy import Growth, Origin
from hatrack.masks import Unmasked, conditioning_from, source_from
from hatrack.models.base import MaskedNetwork
from hatrack.models.forgetting import Forgotten
from hatrack.models.gate_settings import GateSettings
from hatrack.models.hat import FORMAT, HATNetwork
from hatrack.models.same_answers import other_settings, require_same_answers
from hatrack.models.weight_masked import WEIGHTS_FORMAT, WeightMaskedNetwork, with_present_names
from hatrack.protection.structure import restore_settings
from hatrack.storage.checkpoint import Checkpoint, check_backbone, read_checkpoint
from hatrack.support.example import Example
from hatrack.support.inputs import Inputs
from hatrack.support.interface import Features, Interface
from hatrack.support.layouts import lay_out
from hatrack.support.modes import plain_modes, trainable
from hatrack.support.names import in_one_line
from hatrack.support.untrained import untrained_parameters
from hatrack.units import Rule
from hatrack.units.signatures import Signature
from hatrack.units.versions import RULES_VERSION, rules_of_version

__all__ = ["forget_in_files", "load", "load_as", "network_from"]

Rules = Mapping[Any, Rule] | None
Heads = Mapping[str, nn.Module] | None
Build = Callable[[nn.Module, Inputs, Mapping[str, Any], Rules, Interface], MaskedNetwork[Any]]
NetworkT = TypeVar("NetworkT", HATNetwork, WeightMaskedNetwork)


@plain_modes()
def load(
    path: str | Path,
    backbone: nn.Module,
    *,
    heads: Mapping[str, nn.Module] | None = None,
    features: Features = None,
    rules: Mapping[Any, Rule] | None = None,
) -> HATNetwork | WeightMaskedNetwork:
    """Read a network that :meth:`hatrack.HATNetwork.save` or :meth:`hatrack.WeightMaskedNetwork.save` wrote.

    Args:
        path: the file.
        backbone: a network built as the saved one was, as wide as it was at first or as it had grown; its weights are
            overwritten.
        heads: heads built as those that tasks brought of their own, by name of the task; their weights are overwritten.
        features: choice of the features, where it was a function; a key or an index is in the file.
        rules: the rules that were given to the saved network, if any.

    Every task answers a fixed input as it did when it was saved. Outputs may differ by rounding; where torch, the kind
    of device or its digits are others than the file says, up to 2 % of the largest, and a warning says by how much.

    Returns:
        The network, in training mode as every new module, with all its tasks and their protection.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or newer, or was saved with another backbone: other
            modules, settings or code. The backbone is as it was then, but for its weights, and for its widths if the
            saved one had grown.
        GuaranteeError: the file is whole, but what its tasks rely on is not what they were consolidated with.
        InputError: the backbone is no module, or is inside another network of masks; or heads or the choice of features
            are missing.
        UnsupportedError: the backbone does something that no rule explains.
    """
    net: HATNetwork | WeightMaskedNetwork = _load(
        Path(path), backbone, (FORMAT, WEIGHTS_FORMAT), heads=heads, features=features, rules=rules
    )
    return net


@plain_modes()
def load_as(
    kind: type[NetworkT],
    path: str | Path,
    backbone: nn.Module,
    *,
    heads: Heads = None,
    features: Features = None,
    rules: Rules = None,
) -> NetworkT:
    """Read a network of one kind; otherwise as :func:`load`.

    Args:
        kind: class of the network.
        path: the file.
        backbone: a network built as the saved one was.
        heads: as for :func:`load`.
        features: as for :func:`load`.
        rules: the rules that were given to the saved network, if any.

    Raises:
        CheckpointError: the file holds another kind of network, or as in :func:`load`.
    """
    net = _load(Path(path), backbone, (kind.format,), heads=heads, features=features, rules=rules)
    assert isinstance(net, kind)
    return net


@plain_modes()
def forget_in_files(
    task: str,
    paths: Sequence[str | Path],
    build: Callable[[], nn.Module],
    *,
    generator: torch.Generator | None = None,
    build_heads: Callable[[], Mapping[str, nn.Module]] | None = None,
    features: Features = None,
    rules: Rules = None,
) -> dict[Path, Forgotten]:
    """Remove a task from saved networks, such as earlier checkpoints that still hold it; each file is replaced.

    Args:
        task: the task's name.
        paths: the files; those that do not hold the task stay as they are.
        build: builds the backbone that the files were saved with.
        generator: draws new values, on the CPU; torch's global one if left out.
        build_heads: builds the heads that tasks brought of their own, by name of the task.
        features: choice of the features, where it was a function.
        rules: the rules that were given to the saved networks, if any.

    Returns:
        By file that held the task, a report on erased entries.

    Raises:
        CheckpointError, GuaranteeError, InputError, UnsupportedError: as :func:`load`; files before that one are done.
    """
    reports = {}
    for path in map(Path, paths):
        heads = None if build_heads is None else build_heads()
        net = load(path, build(), heads=heads, features=features, rules=rules)
        if task in net.task_names:
            reports[path] = net.forget(task, generator=generator)
            net.save(path)
    return reports


def _build_hat(
    backbone: nn.Module, example: Inputs, described: Mapping[str, Any], rules: Rules, interface: Interface
) -> HATNetwork:
    rules = rules_of_version(described.get("rules_version", 1), rules)
    settings = GateSettings.from_json(described)
    growth = None if described["growth"] is None else Growth(**described["growth"])
    net = HATNetwork(backbone, example, rules=rules, growth=growth, **vars(settings), **vars(interface))
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
    if "origin" not in described:
        return False
    widths = described["widths"]  # empty in files that were saved again after loading, without growth, before 0.2.0
    return bool(widths) and bool(widths != described["origin"]["widths"])


def _widen_as_saved(net: MaskedNetwork[Any], widths: Mapping[str, int]) -> None:
    """Widen a network that has no tasks yet to the widths of a file; one that has grown already may have them."""
    graph = net.masking.units_now()
    net.masking.record_widths(graph)
    present = {group.name: group.size for group in graph.groups}
    if present.keys() != widths.keys() or any(widths[name] < size for name, size in present.items()):
        raise InputError(f"it had groups of units {dict(widths)}, and this one has {present}")
    missing = {name: widths[name] - size for name, size in present.items() if widths[name] > size}
    if missing:
        net.grow(missing, generator=torch.Generator().manual_seed(0))  # the new weights are overwritten


def _build_weights(
    backbone: nn.Module, example: Inputs, described: Mapping[str, Any], rules: Rules, interface: Interface
) -> WeightMaskedNetwork:
    net = WeightMaskedNetwork(
        backbone,
        example,
        source=source_from(described["source"]),
        conditioning=conditioning_from(described["conditioning"]),
        unmasked=Unmasked(described["unmasked"]),
        growth=None if described.get("growth") is None else Growth(**described["growth"]),
        **vars(interface),
    )
    return net


_BUILDERS: Mapping[str, Build] = MappingProxyType({FORMAT: _build_hat, WEIGHTS_FORMAT: _build_weights})


def _load(
    path: Path, backbone: nn.Module, formats: Sequence[str], *, heads: Heads, features: Features, rules: Rules
) -> Any:
    if not isinstance(backbone, nn.Module):
        raise InputError(f"the backbone must be a torch.nn.Module, not a {type(backbone).__name__}")
    checkpoint = read_checkpoint(path, *formats)
    return network_from(path, checkpoint, backbone, heads=heads, features=features, rules=rules)


@plain_modes()
def network_from(
    path: Path,
    checkpoint: Checkpoint,
    backbone: nn.Module,
    *,
    heads: Heads = None,
    features: Features = None,
    rules: Rules = None,
) -> Any:
    """Build the network that a checkpoint holds; otherwise as :func:`load`.

    Args:
        path: the file, for messages.
        checkpoint: content of the file.
        backbone: a network built as the saved one was.
        heads: as for :func:`load`.
        features: as for :func:`load`.
        rules: the rules that were given to the saved network, if any.
    """
    described = checkpoint.description
    if described.get("rules_version", 1) > RULES_VERSION:
        raise NewerFileError(
            f"{path} holds a network whose units were found by a newer hatrack than this one; upgrade it"
        )
    check_backbone(path, described["modules"], backbone)
    own_heads = _own_heads(path, described["tasks"], heads or {})
    try:
        interface = Interface.from_json(described, features)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _require_same_untrained(path, described.get("untrained", ()), untrained_parameters(backbone))
    present = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    computed = {name: present[name] for name in described.get("computed_anew", ()) if name in present}
    state: dict[str, Any] = {**with_present_names(checkpoint.tensors), **computed}
    of_backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    if not _has_grown(described):  # else it may have to be widened before it matches
        _require_match(path, of_backbone, present)
    example = Example.from_json(described["example_input"]).batch()
    settings = other_settings(described, backbone, own_heads)
    try:
        net = _BUILDERS[described["format"]](backbone, example, described, rules, interface)
        _grow_as_saved(net, described)
    except (HatrackError, *DOES_NOT_RUN) as error:
        widened = isinstance(error, InputError) and _has_grown(described)
        if attached_to(backbone) is not None or not (widened or settings):
            raise
        reason = f"{error}" if widened else f"it cannot be attached ({in_one_line(error)})"
        said = f"{_other_backbone(path, settings)}{';' if settings else ':'} {reason}"
        raise CheckpointError(f"{said}; {_REMEDY}") from error
    for index, task in enumerate(described["tasks"]):
        head = own_heads.get(task["name"], task["num_classes"])
        opened = net.masking.open_task(task["name"], head, torch.Generator().manual_seed(0))  # overwritten below
        own = f"tasks.{index}."
        state[f"{own}_extra_state"] = torch.tensor(task["consolidated"])
        opened.prepare_for({n.removeprefix(own): v for n, v in state.items() if n.startswith(own)})
        restore_settings(opened.batch_norms, task.get("norms", {}))
    state["_extra_state"] = described["digests"]
    if "strides" in described:  # else it is of before, and parameters lie as they do
        lay_out(net, described["strides"])
    try:
        _require_match(path, state, net.state_dict(), settings)
        net.load_state_dict(state)
        require_same_answers(path, net, described)
    except GuaranteeError as error:
        net.detach()
        reason = "its protected entries are not those that its tasks were consolidated with"
        if settings:  # by which other units may be found, and other entries be protected
            said = f"{_other_backbone(path, settings)}; and with these {reason}"
            raise CheckpointError(f"{said}; {_REMEDY}, or else use an earlier copy") from error
        remedy = f"if code of the backbone has changed, {_REMEDY}; else use an earlier copy"
        raise GuaranteeError(f"{path}: {reason}; {remedy}") from error
    except CheckpointError:
        net.detach()
        raise
    return net


def _own_heads(path: Path, tasks: Sequence[Mapping[str, Any]], heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the heads of the tasks that brought their own, which must fit the file.

    Raises:
        InputError: heads are missing, or of tasks that brought none.
        CheckpointError: a head is built otherwise than the saved one.
    """
    wanted = {task["name"]: task["head"] for task in tasks if "head" in task}
    missing = [name for name in wanted if name not in heads]
    unknown = [name for name in heads if name not in wanted]
    if missing:
        raise InputError(
            f"{path}: {', '.join(map(repr, missing))} brought heads of their own, which a file does not hold: give "
            f"modules built alike, heads={{{missing[0]!r}: ...}}"
        )
    if unknown:
        raise InputError(f"{path} holds no task with a head of its own named {', '.join(map(repr, unknown))}")
    for name, modules in wanted.items():
        try:
            check_backbone(path, modules, heads[name])
        except CheckpointError as error:
            reason = str(error).partition(": ")[2].replace("build the backbone", "build the head")
            raise CheckpointError(f"{path}: the head of task {name!r} is another one: {reason}") from error
    for head in heads.values():
        trainable(head)
    return dict(heads)


def _require_same_untrained(path: Path, saved: Collection[str], present: Collection[str]) -> None:
    """Check that the parameters of a backbone are untrained that were so when a network was saved.

    Raises:
        CheckpointError: others are, so that other units would be gated.
    """
    wrong = [(False, [name for name in saved if name not in present])]
    wrong += [(True, [name for name in present if name not in saved])]
    for trained, names in wrong:
        if names:
            named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise CheckpointError(
                f"{path} was saved with a network in which {named} had requires_grad={trained}: call "
                f"requires_grad_({trained}) on {'it' if len(names) == 1 else 'them'} before loading"
            )


_REMEDY = "build it exactly as it was"


def _other_backbone(path: Path, settings: Sequence[str]) -> str:
    """Return the beginning of a message: a backbone is another one, and some of its settings are the likely cause."""
    if not settings:
        return f"{path} was saved with another backbone"
    more = f" and {len(settings) - 3} more" if len(settings) > 3 else ""
    return f"{path} was saved with another backbone, with other settings: {'; '.join(settings[:3])}{more}"


def _require_match(
    path: Path, file: Mapping[str, Any], network: Mapping[str, Any], settings: Sequence[str] = ()
) -> None:
    """Check that a file and a network hold tensors of the same names, shapes and types.

    Args:
        path: the file.
        file: tensors of the file.
        network: tensors of the network.
        settings: settings that differ, by which other units may be found.

    Raises:
        CheckpointError: they hold others.
    """
    difference = next(_differences(file, network), None)
    if difference is not None:
        said = f"{_other_backbone(path, settings)}{';' if settings else ':'} {difference}"
        raise CheckpointError(f"{said}; {_REMEDY}")


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
