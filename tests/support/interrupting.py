"""Interrupting an operation at any of our lines, as Ctrl-C would."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import hatrack
from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.masks import Magnitude
from hatrack.protection.versions import VersionWatch
from hatrack.support.scratch import ScratchMemory
from support.weight_networks import KINDS

Line = tuple[str, int]
Network = HATNetwork | WeightMaskedNetwork

PACKAGE = str(Path(hatrack.__file__).parent)
UNDO = str(Path(PACKAGE) / "state" / "undo.py")
"""Functions that put things back, and are not interrupted: that takes two signals in a row."""


@dataclass(frozen=True)
class Point:
    """A moment in an operation.

    Attributes:
        line: file and number.
        execution: which execution of the line, from 1 on.
    """

    line: Line
    execution: int

    def __str__(self) -> str:
        return f"{Path(self.line[0]).name}:{self.line[1]} ({self.execution})"


def _traced(call: Callable[[], object], visit: Callable[[Line], None]) -> None:
    """Call a function, and visit each of our lines just before it is executed."""

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            visit((frame.f_code.co_filename, frame.f_lineno))
        return local

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        return local if name.startswith(PACKAGE) and name != UNDO else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)


def points_of(call: Callable[[], object]) -> list[Point]:
    """The first and the last execution of each of our lines that a call runs through, in the order of the lines."""
    counts: Counter[Line] = Counter()
    _traced(call, lambda line: counts.update([line]))
    return [Point(line, n) for line, last in counts.items() for n in dict.fromkeys((1, last))]


def chosen(points: list[Point], most: int) -> list[Point]:
    """At most so many of the points, evenly."""
    step = max(1.0, len(points) / most)
    return [points[int(number * step)] for number in range(min(most, len(points)))]


def interrupt(call: Callable[[], object], point: Point) -> bool:
    """Call a function and interrupt it at a point; returns whether it got there."""
    counts: Counter[Line] = Counter()

    def visit(line: Line) -> None:
        counts[line] += line == point.line
        if line == point.line and counts[line] == point.execution:
            raise KeyboardInterrupt

    try:
        _traced(call, visit)
    except KeyboardInterrupt:
        return True
    return False


# -------------------------------------------------------------------------------------------------------- networks


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())


class OwnHATNetwork(HATNetwork):
    """A user's own kind of network: what is taken back must not depend on where its class is written."""


class OwnWeightMaskedNetwork(WeightMaskedNetwork):
    """Likewise, of masks of weights."""


def build(kind: str, inside: nn.Module | None = None) -> Network:
    """A small network of a kind: ``hat``, or one of the kinds of masks of weights."""
    inside = backbone() if inside is None else inside
    if kind == "hat":
        return OwnHATNetwork(inside, torch.zeros(2, 4), s_max=50.0)
    of_kind = OwnWeightMaskedNetwork if kind == "wsn" else WeightMaskedNetwork
    return of_kind(inside, torch.zeros(2, 4), **KINDS[kind])


def samples(seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(6) % 2


def train(net: Network, name: str, optimizer: torch.optim.Optimizer) -> None:
    x, y = samples(len(net.tasks))
    net.train()
    for progress in (0.0, 1.0):
        net.anneal(progress)
        optimizer.zero_grad()
        (F.cross_entropy(net(x, name), y) + 0.1 * net.regularization()).backward()
        optimizer.step()


def open_and_train(net: Network, name: str) -> torch.optim.Optimizer:
    """Open a task and take some steps."""
    net.add_task(name, 2, generator=torch.Generator().manual_seed(len(net.tasks)))
    if isinstance(net, WeightMaskedNetwork) and isinstance(net.source, Magnitude):
        train(net, name, net.protect(torch.optim.Adam(net.task_parameters(name), lr=0.01)))
    optimizer = net.protect(torch.optim.Adam(net.task_parameters(name), lr=0.01))
    train(net, name, optimizer)
    return optimizer


def learned(kind: str, tasks: int = 2) -> Network:
    """A network that has learned some tasks."""
    net = build(kind)
    for number in range(tasks):
        open_and_train(net, f"t{number}")
        net.consolidate(f"t{number}")
    return net


@dataclass
class Case:
    """A network just before an operation.

    Attributes:
        net: the network.
        optimizer: one that is protected and was used; None if there is none.
        loaded: a ``state_dict`` to take over.
    """

    net: Network
    optimizer: torch.optim.Optimizer | None = None
    loaded: dict[str, Any] | None = None

    def copy(self) -> Case:
        """The same once more; the copy's optimizer is protected, too."""
        net, optimizer = copy.deepcopy((self.net, self.optimizer))
        for original, twin in zip(self.net.parameters(), net.parameters(), strict=True):
            twin.grad = None if original.grad is None else original.grad.clone()  # which deepcopy leaves out
        if optimizer is not None:
            optimizer._optimizer_step_pre_hooks.clear()
            optimizer._optimizer_step_post_hooks.clear()
            net.protect(optimizer)
        return Case(net, optimizer, self.loaded)


def _with_task(kind: str) -> Case:
    net = learned(kind)
    return Case(net, open_and_train(net, "new"))


def _to_load(kind: str) -> Case:
    net = learned(kind)
    net.add_task("new", 2)
    finished = copy.deepcopy(net)
    finished.consolidate("new")
    return Case(net, None, finished.state_dict())


def _adding(case: Case) -> None:
    case.net.add_task("added", 2, generator=torch.Generator().manual_seed(9))


def _growing(case: Case) -> None:
    case.net.grow({"0": 2}, generator=torch.Generator().manual_seed(9))


OPERATIONS: dict[str, tuple[Callable[[str], Case], Callable[[Case], object]]] = {
    "add_task": (lambda kind: Case(learned(kind)), _adding),
    "consolidate": (_with_task, lambda case: case.net.consolidate("new")),
    "settle": (_with_task, lambda case: case.net.settle("new")),  # type: ignore[union-attr]
    "forget": (_with_task, lambda case: case.net.forget("new", generator=torch.Generator().manual_seed(9))),
    "forget-old": (
        lambda kind: Case(learned(kind)),
        lambda case: case.net.forget("t0", generator=torch.Generator().manual_seed(9)),
    ),
    "grow": (lambda kind: Case(learned(kind)), _growing),
    "calibrate": (lambda kind: Case(learned(kind)), lambda case: case.net.calibrate("t1", *samples())),
    "load_state_dict": (_to_load, lambda case: case.net.load_state_dict(case.loaded)),
    "double": (_with_task, lambda case: case.net.double()),
    "detach": (lambda kind: Case(learned(kind)), lambda case: case.net.detach()),
}
"""Preparation of a network for each operation, and the operation."""

EVERY_KIND = ("hat", *KINDS)


def operations_of(kind: str) -> Iterator[str]:
    """The operations that there are for a kind."""
    for name in OPERATIONS:
        if name != "settle" or kind not in ("hat", "packnet"):
            yield name


# ------------------------------------------------------------------------------------------------------ comparing


def bits(module: nn.Module) -> dict[str, Any]:
    """Record everything that a module consists of: values, modes, marks of gradients and hooks."""
    found: dict[str, Any] = {name: value for name, value in module.state_dict().items() if "_extra_state" not in name}
    for name, part in module.named_modules():
        hooks = [len(value) for key, value in vars(part).items() if key.endswith("hooks") and hasattr(value, "__len__")]
        found[f"{name} facts"] = (part.training, hooks, sorted(vars(part)), list(part._modules), list(part._parameters))
    for name, parameter in module.named_parameters():
        found[f"{name} gradient"] = parameter.grad
        found[f"{name} trains"] = parameter.requires_grad
    if isinstance(module, (HATNetwork, WeightMaskedNetwork)):
        found["tasks"] = [(state.name, state.consolidated, state.training) for state in module.tasks]
        found["detached"] = not module.masking.is_attached
        found["digests"] = dict(module.protection.digests)
        found["protected"] = dict(module.protected())
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in found.items()}


def memory(optimizer: torch.optim.Optimizer | None) -> list[Any]:
    """Record the parameters and the memory of an optimizer."""
    if optimizer is None:
        return []
    found: list[Any] = []
    for group in optimizer.param_groups:
        found.append(len(group["params"]))
        for parameter in group["params"]:
            found.append(tuple(parameter.shape))
            found += [v.clone() for v in optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor)]
    return found


def same(one: Any, other: Any) -> bool:
    """Equal to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def logits(net: Network) -> dict[str, Tensor]:
    """Return the logits of consolidated tasks."""
    x, _ = samples()
    x = x.to(next(net.backbone.parameters()).dtype)
    modes = {part: part.training for part in net.modules()}
    net.eval()
    with torch.no_grad():
        found = {state.name: net(x, state.name) for state in net.tasks.consolidated}
    for part, mode in modes.items():
        part.training = mode
    return found


@dataclass(frozen=True)
class Looks:
    """Records of a case before and after an operation."""

    before: tuple[Any, Any, Any]
    after: tuple[Any, Any, Any]


def look(case: Case) -> tuple[Any, Any, Any]:
    attached = case.net.masking.is_attached
    return bits(case.net), memory(case.optimizer), logits(case.net) if attached else {}


class StatePickler(pickle.Pickler):
    """Writes all that can be reached from an object, what its copies leave out as well."""

    def reducer_override(self, value: Any) -> Any:
        """Return the parts of an object that pickle would not write, or not alike for equal ones."""
        if isinstance(value, Tensor):
            entries = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            return _parts, (type(value), str(value.dtype), value.shape, value.requires_grad, value.grad, entries)
        if isinstance(value, ScratchMemory):  # whose blocks hold nothing that anyone reads again
            return _parts, (ScratchMemory,)
        if isinstance(value, torch.Generator):
            return _parts, (torch.Generator, value.get_state())
        if isinstance(value, VersionWatch):  # stamps are counts and addresses: what matters is whether they still agree
            return _parts, (VersionWatch, [value.is_touched(tensor) for tensor, _ in value.plan.all()])
        if isinstance(value, weakref.ref):
            return _parts, (weakref.ref, value())
        if isinstance(value, (weakref.WeakKeyDictionary, weakref.WeakSet)):
            return _parts, (type(value), list(value.items() if isinstance(value, weakref.WeakKeyDictionary) else value))
        if isinstance(value, Optimizer):  # whose hooks torch numbers from the start of the process on
            numbered = {key: list(part.values()) for key, part in vars(value).items() if key.endswith("_hooks")}
            return _parts, (type(value), {**vars(value), **numbered})
        if isinstance(value, nn.Module) or (
            type(value).__module__.startswith("hatrack.") and hasattr(value, "__dict__")
        ):
            return _parts, (type(value), vars(value))
        return NotImplemented


def _parts(*values: object) -> None:
    """Stand for an object in a state, which is compared and never read."""


def state_of(*values: object) -> bytes:
    """Record all of some objects, so that equal records mean that they go on alike."""
    written = io.BytesIO()
    StatePickler(written, protocol=5).dump(values)
    return written.getvalue()


def is_a_mode_left_on() -> bool:
    """Return whether torch is in another mode than at the start."""
    stacks = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    saving = torch._C._autograd._top_saved_tensors_default_hooks(False)
    follows = torch._C._is_torch_function_enabled()
    return bool(stacks) or saving is not None or not follows or not torch.is_grad_enabled()


def leave_modes() -> None:
    """Put torch into the mode of the start, in which later tests look for it."""
    torch._C._set_torch_function_state(torch._C._TorchFunctionState.ENABLED)  # type: ignore[attr-defined]
    torch.set_grad_enabled(True)
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack():
        torch._C._pop_torch_dispatch_stack(None)
    while torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def fault_of(case: Case, operation: str, looks: Looks) -> str | None:
    """Describe a fault of a network whose operation was interrupted; None if there is none. The network goes on."""
    if is_a_mode_left_on():
        leave_modes()
        return "a mode of torch is left on"
    now = look(case)
    if not same(now, looks.before):
        if not same(now, looks.after):
            keys = [key for key, value in now[0].items() if not same(value, looks.before[0].get(key))]
            return f"neither as before nor as after: {keys[:5]}"
        return None
    try:
        OPERATIONS[operation][1](case)
        if operation == "detach":
            build("hat", case.net.backbone)
            return None
        if case.net.task_in_training is not None:
            case.net.consolidate(case.net.task_in_training)
        case.net.check()
        if operation != "double":
            open_and_train(case.net, "later")
            case.net.consolidate("later")
            case.net.check()
            promised = {n: v for n, v in looks.after[2].items() if n in case.net.task_names}
            said = logits(case.net)
            if operation != "forget-old" and not all(same(said[name], value) for name, value in promised.items()):
                return "an old task says something else"
    except Exception as error:
        return f"cannot go on: {type(error).__name__}: {error}"
    return None


def looks_of(kind: str, operation: str) -> tuple[Case, list[Point], Looks]:
    """A prepared case, the points of an operation, and what it looks like before and after."""
    prepare, act = OPERATIONS[operation]
    case = prepare(kind)
    before = look(case)
    twin = case.copy()
    points = points_of(lambda: act(twin))
    return case, points, Looks(before, look(twin))


def faults(kind: str, operation: str, most: int | None = None) -> tuple[int, dict[str, str]]:
    """Interrupt an operation; returns at how many points, and what went wrong, by point.

    Points that leave equal states behind are judged together, by one network that goes on.
    """
    case, points, looks = looks_of(kind, operation)
    points = points if most is None else chosen(points, most)
    act = OPERATIONS[operation][1]
    judged: dict[bytes, str | None] = {}
    found = {}
    twin = case.copy()
    before = state_of(twin.net, twin.optimizer)
    for point in points:
        interrupt(lambda twin=twin: act(twin), point)
        mode = is_a_mode_left_on()
        after = state_of(twin.net, twin.optimizer)
        if mode or after not in judged:
            fault = fault_of(twin, operation, looks)
            if not mode:
                judged[after] = fault
            twin = case.copy()
        else:
            fault = judged[after]
            twin = twin if after == before else case.copy()
        if fault is not None:
            found[str(point)] = fault
    return len(points), found


def faults_of_construction(kind: str, most: int | None = None) -> tuple[int, dict[str, str]]:
    """The same for the constructor."""
    build(kind)  # some lines run once per process
    points = points_of(lambda: build(kind))
    judged: dict[bytes, str | None] = {}
    found = {}
    points = points if most is None else chosen(points, most)
    for point in points:
        inside = backbone()
        before = bits(inside)
        interrupt(lambda inside=inside: build(kind, inside), point)
        mode = is_a_mode_left_on()
        after = state_of(inside)
        if mode or after not in judged:
            fault = fault_of_construction(kind, inside, before)
            if not mode:
                judged[after] = fault
        else:
            fault = judged[after]
        if fault is not None:
            found[str(point)] = fault
    return len(points), found


def fault_of_construction(kind: str, inside: nn.Module, before: dict[str, Any]) -> str | None:
    """Describe a fault of a backbone whose network was interrupted; None if there is none."""
    if is_a_mode_left_on():
        leave_modes()
        return "a mode of torch is left on"
    now = bits(inside)
    if not same(now, before):
        return f"not as before: {[key for key, value in now.items() if not same(value, before.get(key))][:5]}"
    try:
        net = build(kind, inside)
        open_and_train(net, "first")
        net.consolidate("first")
        net.check()
    except Exception as error:
        return f"cannot go on: {type(error).__name__}: {error}"
    return None
