"""Labelled run of a network, in which every call is seen and explained by its rule."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hatrack.errors import HatrackError, InputError, UnsupportedError
from hatrack.support.inputs import Inputs, has_shape, kind_of, tensors_in
from hatrack.support.interface import PLAIN, Interface
from hatrack.support.modes import evaluation_mode
from hatrack.support.names import in_one_line
from hatrack.support.observers import Unobserved, observed_by
from hatrack.support.transforms import TRANSFORMED, forget_compiled, outermost, place_of, why_unfollowed
from hatrack.units.coupling import touches_units
from hatrack.units.decisions import Decisions, reads_truth
from hatrack.units.functions import FACTS, QUESTIONS, FunctionNames, named_as_in_torch
from hatrack.units.graph import OUTPUT
from hatrack.units.one_path import OnePath
from hatrack.units.paths import PathRecord
from hatrack.units.rules import RuleBook, takes_parameters
from hatrack.units.rules.elementwise import CONSTANTS
from hatrack.units.rules.functional import keeps_zeros
from hatrack.units.rules.probing import ProbeError, probe
from hatrack.units.rules.registry import TURNING, takes_turned_parameters
from hatrack.units.rules.reshaping import CHOOSING
from hatrack.units.sources import Argument, Before
from hatrack.units.trace import Call, Rule, Trace
from hatrack.units.values import READING, chosen_axes, written_by
from hatrack.units.views import Views

__all__ = ["labelled_run", "runs_by_itself", "united"]

_CONSTANTS = frozenset(CONSTANTS)
_LOOKING_UP = frozenset([F.embedding, F.embedding_bag])
"""Functions whose first argument are the indices."""

_SETTING = frozenset([torch.Tensor.__setitem__])
_NAMES_OF_CONSTANTS = frozenset(function.__name__ for function in CONSTANTS)

_GATED = (nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax, nn.LocalResponseNorm)
"""Modules of torch that are followed as modules of the user's are, and mix what they are given: gates can be there."""

CHANGED_IN_PLACE = (
    "it changes a value in place that has the same memory as another one, and puts units where there were none; "
    "write the result to a new value instead"
)

STRAY = (
    "it uses a parameter that is no part of the backbone, as of a layer in a plain list or around a function, or a "
    "tensor that requires gradients and is no parameter, so that it could not be protected; use torch.nn.ModuleList, "
    "or make it a torch.nn.Parameter and an attribute of a module"
)
"""Reason for refusing parameters that a network does not own, with the remedy."""


def labelled_run(
    model: nn.Module,
    example_input: Inputs,
    trace: Trace,
    rules: RuleBook,
    interface: Interface = PLAIN,
    training: bool = False,
    grad: bool = False,
    moving: Sequence[str] = (),
    decisions: Decisions | None = None,
    record: PathRecord | None = None,
) -> Tensor | None:
    """Run a model once, in evaluation or training mode, and record what happens in a trace.

    Args:
        model: the model.
        example_input: a batch.
        trace: the record, which is added to.
        rules: explain operations.
        interface: how the model is called, and what of its result are its features.
        training: run in training mode, not in evaluation mode.
        grad: run with gradients.
        moving: names of buffers that have other values at other times.
        decisions: outcomes of truth values that are read of the input; None lets all be as they are.
        record: record of the path that the model takes, which is added to; None for none.

    Returns:
        The features; None if decisions were given on which the model raises an error on purpose.

    Raises:
        UnsupportedError: no rule explains some operations, all of which are named, or the model does not run while it
            is followed.
        InputError: the model cannot run on the example.
    """
    decisions = Decisions() if decisions is None else decisions
    run = _LabelledRun(model, trace, rules, decisions, record)
    run.note_leaves(tensors_in(example_input))
    try:
        with torch.set_grad_enabled(grad), evaluation_mode(model):
            if training:
                model.train()
            with observed_by(run, run.witness), run.modules_announced():
                run.one_path.follow(example_input, of_weights=False)
                run.one_path.follow([model.get_buffer(name) for name in moving])
                features = interface.run(model, example_input)
    except Exception as error:
        if decisions.given and decisions.ended_with(error):
            return None  # whatever it read for its message
        reason = None if isinstance(error, HatrackError) else why_unfollowed(error)
        if reason is not None:
            forget_compiled()
            if runs_by_itself(model, example_input, interface, training, grad):
                raise UnsupportedError(f"{type(model).__name__}: {reason}{place_of(error)}") from error
        if run.refusals:
            raise united(run.refusals) from error
        if isinstance(error, HatrackError):
            raise
        if decisions.given and decisions.refusal is not None:  # other values may take this way without an error
            raise decisions.refusal from error
        if runs_by_itself(model, example_input, interface, training, grad):
            raise UnsupportedError(
                f"{type(model).__name__}: it runs by itself, but not while it is followed, so what it does to units is "
                f"not known ({type(error).__name__}: {in_one_line(error)})"
            ) from error
        if isinstance(error, (RuntimeError, ValueError, IndexError)):
            shape = has_shape(kind_of(example_input, interface.batch_axis), str(interface.samples(example_input)))
            said = in_one_line(error)
            raise InputError(f"the backbone does not run on the example input of shape {shape}: {said}") from error
        raise
    if run.refusals:
        raise united(run.refusals)
    return features


def united(refusals: Sequence[UnsupportedError]) -> UnsupportedError:
    """Unite refusals in one error that names each cause once, a line for each; blocks that are alike have one cause."""
    causes: dict[str, list[str]] = {}
    for refusal in refusals:
        kind = re.sub(r"^[^:]*:|'[^']*'", lambda name: re.sub(r"\b\d+\b", "#", name[0]), str(refusal))
        causes.setdefault(kind, []).append(str(refusal))
    lines = []
    for alike in causes.values():
        others = len(set(alike)) - 1
        lines.append(f"{alike[0]}{f'; {others} more like it' if others else ''}")
    if len(lines) == 1:
        return UnsupportedError(lines[0])
    return UnsupportedError("\n".join([f"{len(lines)} things are not understood:", *(f"- {line}" for line in lines)]))


def runs_by_itself(
    model: nn.Module, example_input: Inputs, interface: Interface = PLAIN, training: bool = False, grad: bool = False
) -> bool:
    """Return whether a model runs that failed while it was followed.

    Args:
        model: the model.
        example_input: a batch.
        interface: how the model is called, and what of its result are its features.
        training: run in training mode, not in evaluation mode.
        grad: run with gradients.
    """
    try:
        with torch.set_grad_enabled(grad), evaluation_mode(model):
            model.train(training)
            interface.run(model, example_input)
    except Exception:
        return False
    return True


class _LabelledRun(TorchFunctionMode):
    """Observer of every function call of the model, and of every call of a module."""

    def __init__(
        self, model: nn.Module, trace: Trace, rules: RuleBook, decisions: Decisions, record: PathRecord | None
    ) -> None:
        super().__init__()
        self._trace = trace
        self._decisions = decisions
        self._record = record
        self._is_in_hook = False  # of this run, whose computations are not the network's
        self._names = FunctionNames()
        self._model = model
        self._rules = rules
        parameters = dict(model.named_parameters())
        self._parameters = {id(parameter): name for name, parameter in parameters.items()}
        self._depth = 0  # of modules with a rule that are being called: what happens inside them is theirs
        self._functions: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []  # being called, innermost last
        self.is_explaining = False  # that is, computing with labels, of which nothing is to be followed
        self.is_computing = False  # at torch's lowest level, as the witness sees it
        self.refusals: list[UnsupportedError] = []  # raised when the run is over, so that all of them are reported
        trace.parameters.update(self._parameters)
        trace.buffers.update(map(id, model.buffers()))
        self.witness = _Witness(self, trace)
        self._inside: list[tuple[str, nn.Module]] = []  # modules without a rule that are being called, innermost last
        self._arguments: list[list[Before]] = []  # of these modules
        self._views = Views(trace)
        self._leaves: dict[int, weakref.ref[Tensor]] = {}  # inputs, and what the run has made to get gradients
        self.one_path = OnePath(model, self._inside, trace, rules, decisions)
        self.one_path.follow(list(parameters.values()))

    def why_not_computed(self, operation: Any, values: list[Tensor]) -> UnsupportedError | None:
        """Return the refusal of an operation of torch's lowest level if it reads values and must not; else None."""
        if self._depth:
            return None
        return self.one_path.why_not_computed(operation, values, self._functions[-1] if self._functions else None)

    @property
    def is_following(self) -> bool:
        """Return whether torch is computing a call that the run sees, or for the run itself."""
        return bool(self._depth or self._functions or self._is_in_hook)

    @contextmanager
    def modules_announced(self) -> Iterator[None]:
        """While this lasts, modules with a rule are followed as a whole and not function by function."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                rule = self._rules.for_module(module)
                enter = partial(self._announce, name, rule)
                leave = partial(self._unseen, self._leave, name, rule)
                hooks.enter_context(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
            yield

    def _announce(self, name: str, rule: Rule | None, *args: Any) -> None:
        """Note that a module is called; a forward pre-hook."""
        if self._record is not None and not (self._is_in_hook or self.is_explaining):  # by a rule, as parametrizations
            self._record.enter(name)
        if rule is None:
            self._unseen(self._enter, name, *args)
        else:
            if not self._depth and torch._C._are_functorch_transforms_active():
                self._unseen(self._enter_known, name, *args)
            self._depth += 1

    def _unseen(self, hook: Callable[..., None], *args: Any) -> None:
        """Call a hook whose own computations, such as those of labels, are not the network's."""
        outer, self._is_in_hook = self._is_in_hook, True
        try:
            with Unobserved(self, self.witness):
                hook(*args)
        finally:
            self._is_in_hook = outer

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a module without a rule is called."""
        self._inside.append((name, module))
        own = not self._depth and (isinstance(module, _GATED) or not type(module).__module__.startswith("torch."))
        self._arguments.append(self._trace.sources.enter(name, module, args, kwargs) if own else [])

    def _enter_known(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that a module with a rule is not called inside a transform, where the rule would not hold."""
        if self._has_units_inside_transform(args, kwargs, list(module.parameters())):
            self._refuse_transform(Call(module, name, args, kwargs, None))

    def _leave(self, name: str, rule: Rule | None, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Explain the call of a module by its rule, if it has one; a forward hook, called after errors, too."""
        call = Call(module, name, args, kwargs, output)
        has_failed = output is None and sys.exc_info()[0] is not None  # the network may catch that, and go on
        if rule is None:
            self._inside.pop()
            arguments = self._arguments.pop()
            self._trace.sources.leave(arguments)
            if has_failed:
                return
            for argument, *_ in arguments:
                if (name, argument.position) in self._trace.reads:
                    self._trace.read_argument(call, argument)
            if not self._depth:
                self._note_result(call, known=False)
            return
        # Still counted as inside, so that the rule's own work on labels is not followed in its turn.
        if self._depth == 1 and not has_failed:
            self._explain(rule, call)
            self.one_path.follow(call.output)
            self._note_result(call, known=True)
        self._depth -= 1

    def _note_result(self, call: Call, known: bool) -> None:
        """Note the result of a module, at which a function behind it may have its units gated.

        Args:
            call: the module's call.
            known: whether the module has a rule; where it has none, its result may come from other places.
        """
        value, trace = call.output, self._trace
        if not isinstance(value, Tensor) or not value.is_floating_point() or not trace.is_gated(value):
            return
        if any(value is given for given in tensors_in((call.args, call.kwargs))):
            return  # which others have as well, without the gate
        if known or trace.sources.behind(value) is None:
            result = trace.sources.leave_with(call.name, value, trace.labels(value))
            if (call.name, OUTPUT) in trace.reads:
                trace.read_argument(call, result)

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_in_hook:
            return func(*args, **kwargs)
        if not self._depth and self._has_units_inside_transform(args, kwargs):
            name, own = self._names.of(func)
            if own not in FACTS:
                self._refuse_transform(Call(func, name, args, kwargs, None))
        self._functions.append((func, args, kwargs))
        try:
            name, own = self._names.of(func)
            record = None if self.is_computing else self._record  # which function that is was recorded, or cannot be
            number = None if record is None else record.call(name, own, args, kwargs)
            if self._depth or own in QUESTIONS:
                output = func(*args, **kwargs)
            elif self.one_path.may_decide(call := Call(func, name, args, kwargs, None)):
                return self.one_path.decide(call)
            else:
                output = self._watched(call)
            if reads_truth(own, args):
                self._decisions.seen.append(output)
            elif record is not None:
                record.result(number, output)
        finally:
            self._functions.pop()
        return output

    def _watched(self, call: Call) -> Any:
        """Make a call of a function that no module with a rule makes, explain it, and return its result."""
        func, args, kwargs, inputs = call.target, call.args, call.kwargs, list(tensors_in((call.args, call.kwargs)))
        with Unobserved(self, self.witness):
            refusal = self.one_path.why_not_called(call)
            self.refusals += [] if refusal is None else [refusal]
            self._pin_choices(call, inputs)
            sources, behind = self._sources(inputs)
            cleared = bool(sources) and keeps_zeros(func, args, kwargs) and self._are_cleared(inputs)
        output = func(*args, **kwargs)
        with Unobserved(self, self.witness):
            outputs = list(tensors_in(output))
            self.note_leaves(outputs)
            self._views.note(inputs, outputs)
            result = args[0] if func in _SETTING else output
            self._follow(replace(call, kwargs=named_as_in_torch(func, kwargs), output=result), inputs)
            if func not in _CONSTANTS and any(map(self.one_path.is_variable, inputs)):
                self.one_path.follow(outputs, any(map(self.one_path.depends_on_weights, inputs)))
            for value in outputs:
                if self._trace.is_gated(value):
                    self._trace.sources.remember(value, sources, cleared)
                    self._trace.sources.remember_behind(value, behind)
        return output

    def note_leaves(self, values: Iterable[Tensor]) -> None:
        """Note tensors that may get gradients, and are none of the network's."""
        self._leaves.update({id(each): weakref.ref(each) for each in values if each.requires_grad and each.is_leaf})

    def _is_stray(self, value: Tensor) -> bool:
        """Return whether a value is trained, and is no parameter of the network."""
        if id(value) in self._parameters:
            return False
        known = self._leaves.get(id(value))
        is_known = known is not None and known() is value
        return isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf and not is_known)

    def _refuse_transform(self, call: Call) -> None:
        """End the run: what a transform makes of units is told by nothing that follows.

        Raises:
            UnsupportedError: always.
        """
        self.refusals.append(self._trace.refuse(call, TRANSFORMED))
        raise self.refusals[-1]

    def _has_units_inside_transform(self, *given: Any) -> bool:
        """Return whether a call inside of a transform of torch.func is given units, or parameters of the network."""
        if not torch._C._are_functorch_transforms_active():
            return False
        values = [outermost(value) for value in tensors_in(given)]
        return any(self._trace.is_gated(value) or id(value) in self._parameters for value in values)

    def _pin_choices(self, call: Call, inputs: Sequence[Tensor]) -> None:
        """Let all tasks use the units that indices were computed from."""
        if call.target in CHOOSING:
            chosen_from = call.argument(0, "input")
            for value in inputs:
                picks = call.target in _LOOKING_UP or value is not chosen_from
                if picks and not value.is_floating_point() and value.dtype != torch.bool:
                    self._trace.coupling.pin(self._trace.labels(value))

    def _sources(self, inputs: Sequence[Tensor]) -> tuple[frozenset[Argument] | None, frozenset[Argument] | None]:
        """Return the arguments of modules that a result will come from, and those with results of modules, or None.

        Call this before a change in place.
        """
        found: list[set[Argument] | None] = [set(), set()]
        for value in inputs:
            if isinstance(value, nn.Parameter) or id(value) in self._trace.turned:
                return None, None
            if self._trace.is_gated(value):
                known = (self._trace.sources.of(value), self._trace.sources.behind(value))
                free = None in known and not touches_units(self._trace.labels(value))
                for number, sources in enumerate(known):
                    if sources is None and not free:
                        found[number] = None
                    elif found[number] is not None:
                        found[number] = (found[number] or set()) | (sources or set())
        first, second = (None if each is None else frozenset(each) for each in found)
        return first, second

    def _are_cleared(self, inputs: Sequence[Tensor]) -> bool:
        values = (value for value in inputs if value.is_floating_point())  # others are indices
        return all(self._trace.sources.is_cleared(value) for value in values)

    def _follow(self, call: Call, inputs: Sequence[Tensor]) -> None:
        """Explain the call of a function.

        Args:
            call: the call, with its arguments named as in torch.
            inputs: the tensors that it was given, ``out=`` among them.
        """
        func, name = call.target, call.name
        if name.rpartition(".")[2] in FACTS or (name.endswith("data.__set__") and call.args[0] is call.args[1]):
            return
        if any(map(self._is_stray, inputs)):
            self.refusals.append(self._trace.refuse(call, STRAY))
        parameters = [value for value in inputs if id(value) in self._parameters or id(value) in self._trace.turned]
        if func in TURNING and self._turn(call):
            return
        for value in inputs:
            if not (takes_turned_parameters(func) or (id(value) in self._parameters and takes_parameters(func))):
                self._trace.open_weight(value)
        if not parameters and not any(self._trace.is_gated(value) for value in inputs):
            return  # a function of the input and of constants belongs to no unit
        self._couple_rows_to_choose_from(call)
        written = [value for value in tensors_in(call.output) if any(value is each for each in inputs)]
        before = [self._trace.labels(value) for value in written]
        rule = self._rules.for_function(func)
        if rule is None and name.rpartition(".")[2] in READING:
            return  # in a module that is vouched for
        known = any(self._trace.is_gated(value) for value in inputs) and call.target not in CONSTANTS
        self._explain(rule or probe, call, known, probe if self._rules.is_registered(func) else None)
        for value, labels in zip(written, before, strict=True):
            same = torch.equal(self._trace.coupling.roots(labels), self._trace.labels(value))
            if not same and not self._views.write_to(value):
                self.refusals.append(self._trace.refuse(call, CHANGED_IN_PLACE))

    def _turn(self, call: Call) -> bool:
        """Note a parameter whose axes are put in another order, if the call does so: it may be a layer's weight yet."""
        value, *settings = call.args or (None,)
        known = self._trace.weight_of(value) if isinstance(value, Tensor) else None
        if known is None or not isinstance(call.output, Tensor):
            return False
        parameter, order = known
        sizes = torch.empty([2 + axis for axis in range(len(order))], device="meta")
        moved = call.target(sizes, *settings, **call.kwargs).shape
        self._trace.turned[id(call.output)] = (call.output, parameter, tuple(order[size - 2] for size in moved))
        return True

    def _explain(self, rule: Rule, call: Call, always: bool = False, otherwise: Rule | None = None) -> None:
        """Ask a rule for the labels of a result, and record them.

        A refusal is noted, and the result then counts as a constant. A failing rule is one, too: it does not mean that
        the network does not run.

        Args:
            rule: the rule.
            call: what it is to explain.
            always: as for :meth:`Trace.remember`.
            otherwise: another rule, which is asked if this one fails; None for none.
        """
        self.is_explaining = True
        try:
            self._trace.remember(call.output, rule(self._trace, call), always)
        except UnsupportedError as refusal:
            self._refuse_or_defer(call, refusal)
        except ProbeError as error:
            self._refuse_or_defer(call, self._trace.refuse(call, self._reason(error)))
        except HatrackError:
            raise
        except Exception as error:
            if otherwise is not None:
                self._explain(otherwise, call, always)
                return
            reason = f"its rule does not fit this call ({type(error).__name__}: {in_one_line(error)})"
            failure = self._trace.refuse(call, f"{reason}; {self._advice()}")
            failure.__cause__ = error
            self._refuse_or_defer(call, failure)
        finally:
            self.is_explaining = False

    def _refuse_or_defer(self, call: Call, refusal: UnsupportedError) -> None:
        """Note a refusal, or put it off where untrained parameters may make all that the call is given."""
        if not self._trace.defer(call, refusal):
            self.refusals.append(refusal)

    def _couple_rows_to_choose_from(self, call: Call) -> None:
        """Couple all rows that an index computed from the input chooses from: other inputs choose other rows."""
        own = call.name.rpartition(".")[2]
        value = call.argument(0, "input")
        if not isinstance(value, Tensor) or not self._trace.is_gated(value):
            return
        chosen: list[tuple[Any, range]] = []
        if own == "__getitem__":
            chosen = list(chosen_axes(call.args[1], value.dim()))
        elif own in ("index_select", "gather"):
            axis = call.argument(1, "dim") % value.dim()
            chosen = [(call.argument(2, "index"), range(axis, axis + 1))]
        elif own == "take_along_dim":
            axis = call.argument(2, "dim")
            axes = range(value.dim()) if axis is None else range(axis % value.dim(), axis % value.dim() + 1)
            chosen = [(call.argument(1, "indices"), axes)]
        for index, axes in chosen:
            for axis in axes if self.one_path.is_variable(index) else ():
                self._trace.coupling.merge(self._trace.labels(value), axis)

    def _reason(self, error: ProbeError) -> str:
        """Return the reason for refusing an operation without a rule, and the remedy."""
        said = f"there is no rule for this operation, and running it on other values does not tell ({error})"
        return f"{said}, so what it does to units is not known; {self._advice()}"

    def _advice(self) -> str:
        """Return the remedy for an operation without a rule."""
        advice = "register one with @hatrack.units.rule"
        name, module = self._inside[-1] if self._inside else ("", self._model)
        if name:
            advice += f", or say how {name!r} ({type(module).__name__}) as a whole treats units: "
            advice += f"HATNetwork(..., rules={{{name!r}: hatrack.units.shared_layer()}})"
        return advice


class _Witness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Observer of every computation at torch's lowest level, also where Python is bypassed, as in scripted functions.

    Nothing may be computed of a unit outside the calls that the run sees: the result would count as a constant.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import the compiler, for seconds

    def __init__(self, run: _LabelledRun, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = weakref.proxy(run)  # which refers to this: a cycle would keep all values of the run in memory
        self._trace = trace
        self._refused = False

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._run.is_explaining:
            return func(*args, **kwargs)
        tensors = list(tensors_in((args, kwargs)))
        # Raised when the run is over: not every caller lets exceptions through.
        refusal = self._run.why_not_computed(func, tensors)
        unseen = not self._run.is_following and any(self._trace.is_gated(value) for value in tensors)
        if unseen and not self._refused:  # the first one alone, since the others follow from it
            call = Call(func, str(func), args, kwargs, None)
            reason = "it was computed where no function of torch was called from Python, as scripted functions do"
            refusal = self._trace.refuse(call, f"{reason}; write the operation in plain Python")
            self._refused = True
        if refusal is not None:
            self._run.refusals.append(refusal)
        outer, self._run.is_computing = self._run.is_computing, True
        try:
            output = func(*args, **kwargs)
        finally:
            self._run.is_computing = outer
        one_path = self._run.one_path
        if any(map(one_path.is_variable, tensors)) and func.overloadpacket.__name__ not in _NAMES_OF_CONSTANTS:
            of_weights = any(map(one_path.depends_on_weights, tensors))
            one_path.follow([output, *written_by(func, args, kwargs)], of_weights)
        return output
