"""Samples and targets as tensors, of whatever they are made of: arrays, lists, numbers, nested ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.support.inputs import Inputs, require_dense

__all__ = ["Combine", "as_inputs", "as_shape", "combined", "converted", "read_targets", "require_digits"]

_TOKENIZE = "turn them into tensors first, as a tokenizer does with return_tensors='pt', padding=True"
_NUMBER = "number the classes, names, y = np.unique(labels, return_inverse=True), and give the names, classes=names"


def as_shape(given: Any) -> tuple[int, ...] | None:
    """Return the shape that a tuple or list of whole numbers is; None for anything else."""
    if not isinstance(given, (tuple, list)):
        return None
    whole = all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in given)
    return tuple(map(int, given)) if whole else None


def as_inputs(given: Any, what: str) -> Inputs:
    """Return samples, or one sample, with tensors in the place of arrays and lists of numbers.

    A list of anything else is a tuple of positional arguments, and a mapping a dictionary. Texts, None and numbers
    among nested samples are constants.

    Args:
        given: the samples.
        what: name of them, for messages.

    Raises:
        InputError: there are texts or arrays of objects among them, or something of another kind.
    """
    if isinstance(given, str):
        raise InputError(f"{what} are texts: {_TOKENIZE}")
    found = _nested(given, what)
    return tuple(found) if isinstance(found, list) else found


def _nested(given: Any, what: str) -> Any:
    if isinstance(given, Mapping):
        return {str(key): _nested(branch, f"{what}[{str(key)!r}]") for key, branch in given.items()}
    if isinstance(given, list) and given and not _holds(given, (Tensor, np.ndarray, Mapping, tuple, type(None))):
        return _tensor_of_array(_array_of_list(given, what), what, _TOKENIZE)
    if isinstance(given, (tuple, list)) and not hasattr(given, "_fields"):
        return type(given)(_nested(branch, f"{what}[{index}]") for index, branch in enumerate(given))
    if hasattr(given, "__array__") and not isinstance(given, (Tensor, np.generic)):
        return _tensor_of_array(np.asanyarray(given), what, _TOKENIZE)
    if isinstance(given, np.generic):
        return given.item()
    if isinstance(given, Tensor):
        require_dense(given)
    if isinstance(given, (Tensor, bool, int, float, str, type(None))):
        return given
    raise InputError(
        f"{what}: a {type(given).__name__} is neither a tensor nor an array of numbers; make a tensor of it"
    )


def _holds(given: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether there is something of certain kinds in nested lists."""
    if isinstance(given, list):
        return any(_holds(each, kinds) for each in given)
    return isinstance(given, kinds) or (hasattr(given, "__array__") and not isinstance(given, np.generic))


def _array_of_list(given: list[Any], what: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise InputError(f"{what}: its lists have different lengths; pad them to one length") from error


def _tensor_of_array(array: np.ndarray, what: str, of_texts: str) -> Tensor:
    """Return an array of numbers as a tensor.

    Args:
        array: the array.
        what: name of it, for messages.
        of_texts: remedy where it holds texts.

    Raises:
        InputError: it holds texts or other objects, dates, or numbers that torch has no type for; or masked values.
    """
    if array.dtype.kind in "US":
        raise InputError(f"{what} are texts: {of_texts}")
    if array.dtype.kind == "O":
        found = {type(each).__name__ for each in array.flat}
        if found <= {"str", "bytes"}:
            raise InputError(f"{what} are texts: {of_texts}")
        named = ", ".join(sorted(found)[:3]) or "nothing"
        raise InputError(
            f"{what} are an array of objects ({named}): give numbers of one type and parts of one length, "
            "as by array.astype('float32')"
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} are of type {array.dtype}, and must be numbers or truth values; convert them")
    if np.ma.isMaskedArray(array) and np.ma.getmaskarray(array).any():
        raise InputError(f"{what} have masked values: fill them, or leave their samples out")
    array = np.asarray(array)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.dtype.itemsize == 8 and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise InputError(f"{what} hold whole numbers beyond 64 bits with a sign; give floats")
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # torch reads neither the other order of bytes nor negative strides, and warns of memory that is not to be written.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def read_targets(given: Any, what: str) -> Tensor:
    """Return the targets of samples, or of one, as a tensor.

    Args:
        given: a tensor, an array, a number, or a list of these.
        what: name of them, for messages.

    Raises:
        InputError: they are texts, objects, or something else that is no number.
    """
    if isinstance(given, Tensor):
        require_dense(given)
        return given
    if isinstance(given, (str, bytes)):
        raise InputError(f"{what} are texts: {_NUMBER}")
    if isinstance(given, (bool, int, float, np.generic)):
        return _tensor_of_array(np.asarray(given), what, _NUMBER)
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, Tensor) for each in given):
        stacked: Tensor = combined(given, torch.stack, 0, what)
        return stacked
    if isinstance(given, (list, tuple)):
        return _tensor_of_array(_array_of_list(list(given), what), what, _NUMBER)
    if hasattr(given, "__array__"):
        return _tensor_of_array(np.asanyarray(given), what, _NUMBER)
    raise InputError(f"{what} must be a tensor, an array or numbers, not a {type(given).__name__}")


def converted(given: Inputs, example: Inputs, what: str) -> Inputs:
    """Return samples of the structure and the types of an example.

    None stands for an argument that is left out, for which the network has a default.

    Args:
        given: samples as from :func:`as_inputs`.
        example: an example of a batch.
        what: name of the samples, for messages.

    Raises:
        InputError: they are nested in another way than the example, have other keys, another number of values or axes,
            or hold values that its types have not.
    """
    ours, theirs = _container(example), _container(given)
    if ours != theirs:
        remedy = "; stack a list of samples, torch.stack(x)" if isinstance(given, tuple) else ""
        raise InputError(f"{what} are {theirs}, and the network was made for {ours}{remedy}")
    return _retyped(given, example, what)


def _container(given: Any) -> str:
    if isinstance(given, Mapping):
        return "a mapping of keyword arguments"
    if isinstance(given, (tuple, list)):
        return "a tuple of positional arguments"
    return "one tensor" if isinstance(given, Tensor) else f"a {type(given).__name__}"


def _retyped(given: Any, example: Any, what: str) -> Any:
    if isinstance(given, Tensor) and isinstance(example, Tensor):
        if given.dim() != example.dim():
            raise InputError(
                f"{what} have shape {tuple(given.shape)}, of {given.dim()} axes, and the network was made for "
                f"{example.dim()} axes, the samples' own among them"
            )
        return _of_type(given, example.dtype, what)
    if isinstance(given, Tensor) and isinstance(example, (bool, int, float)):  # a flag that every sample had
        values = set(given.tolist()) if given.dim() == 1 else set()
        if len(values) != 1:
            raise InputError(f"{what} differ among the samples, and the network was made for the constant {example}")
        return type(example)(values.pop())
    if isinstance(given, Mapping) and isinstance(example, Mapping):
        _require_keys(given, example, what)
        return {key: _retyped(branch, example[key], f"{what}[{key!r}]") for key, branch in given.items()}
    if isinstance(given, (tuple, list)) and isinstance(example, (tuple, list)):
        if len(given) != len(example):
            raise InputError(
                f"{what} are {len(given)} values, and the network was made for {len(example)}: give all of them, None "
                "for what is to be left out"
            )
        parts = zip(given, example, strict=True)
        return type(given)(_retyped(branch, like, f"{what}[{i}]") for i, (branch, like) in enumerate(parts))
    if given is not None and example is not None and _container(given) != _container(example):
        raise InputError(f"{what} is {_container(given)}, and the network was made for {_container(example)}")
    return given


def _require_keys(given: Mapping[str, Any], example: Mapping[str, Any], what: str) -> None:
    """Check that a mapping has the keys of the example: a network may well answer without one, and otherwise.

    Raises:
        InputError: keys are left out, or are further ones.
    """
    missing, further = ([key for key in one if key not in other] for one, other in ((example, given), (given, example)))
    if further:
        beside = f" and leave out {', '.join(map(repr, missing))}" if missing else ""
        raise InputError(
            f"{what} have {', '.join(map(repr, further))}{beside}, and the network was made for "
            f"{', '.join(map(repr, example))}: leave out all others, or make the network with an example that has them"
        )
    if missing:
        raise InputError(
            f"{what} leave out {', '.join(map(repr, missing))}, which the network was made with: give it, or None to "
            "say that it is left out"
        )


def _of_type(given: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return a tensor of another type, real numbers rounded to fewer digits and whole ones as they are."""
    if given.dtype == dtype:
        return given
    if given.is_complex():
        raise InputError(f"{what} are complex, {given.dtype}, and the network was made for {dtype}: give real numbers")
    changed = given.to(dtype)
    if not dtype.is_floating_point and not torch.equal(changed.to(given.dtype), given):
        raise InputError(
            f"{what} are {given.dtype} with values that {dtype}, the type in the example, has not; convert them, or "
            "make the network with an example of their type"
        )
    return changed


def require_digits(given: Inputs, example: Inputs, what: str, axis: int = 0) -> None:
    """Check that what varies among samples is left in the types of an example: float32 has seven digits.

    Args:
        given: samples, before they are converted.
        example: an example of a batch.
        what: name of the samples, for messages.
        axis: axis of every tensor that counts the samples.

    Raises:
        InputError: a number varies in digits alone that float32 has not, such as a time in seconds since 1970.
    """
    if isinstance(given, Tensor) and isinstance(example, Tensor):
        if example.dtype == torch.float32 and given.dtype in _WIDE and given.dim() > axis and given.shape[axis] > 1:
            wide = given.double().movedim(axis, 0)
            largest, deviation = wide.abs().amax(0), wide.std(0)
            varies = (wide.amax(0) > wide.amin(0)) & (deviation > 1e-13 * largest)  # else a trace of computing
            worst = (varies & (deviation < 10 * torch.finfo(torch.float32).eps * largest)).nonzero()
            if len(worst):
                place = tuple(worst[0].tolist())
                raise InputError(
                    f"{what} vary by {float(deviation[place]):.3g} around {float(wide.mean(0)[place]):.6g} at "
                    f"{list(place)}, of which float32 keeps too little: subtract what all samples have in common"
                )
    elif isinstance(given, Mapping) and isinstance(example, Mapping):
        for key in given.keys() & example.keys():
            require_digits(given[key], example[key], f"{what}[{key!r}]", axis)
    elif isinstance(given, (tuple, list)) and isinstance(example, (tuple, list)):
        for index, (branch, like) in enumerate(zip(given, example, strict=False)):
            require_digits(branch, like, f"{what}[{index}]", axis)


_WIDE = (torch.float64, torch.int64, torch.int32)
"""Types with more digits than float32."""


Combine = Callable[[list[Tensor], int], Tensor]
"""Way to put tensors together along an axis: ``torch.stack`` for single samples, ``torch.cat`` for batches."""


def combined(parts: Sequence[Any], combine: Combine, axis: int, what: str) -> Any:
    """Combine nested tensors of one structure, tensor by tensor; numbers of samples become tensors, too.

    Args:
        parts: single samples, or batches.
        combine: way to put their tensors together.
        axis: axis of the result that counts samples.
        what: name of the samples, for messages.

    Raises:
        InputError: their structures, shapes or constants differ.
    """
    first = parts[0]
    if all(isinstance(part, Mapping) and part.keys() == first.keys() for part in parts):
        return {key: combined([part[key] for part in parts], combine, axis, f"{what}[{key!r}]") for key in first}
    if all(isinstance(part, (tuple, list)) and len(part) == len(first) for part in parts):
        return type(first)(
            combined(each, combine, axis, f"{what}[{i}]") for i, each in enumerate(zip(*parts, strict=True))
        )
    constants = (bool, int, float, str, type(None)) if combine is torch.cat else (str, type(None))
    if all(isinstance(part, constants) and part == first for part in parts):
        return first
    tensors = [torch.as_tensor(part) if isinstance(part, (bool, int, float)) else part for part in parts]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise InputError(f"{what} are nested in different ways, or hold different texts; give all the same structure")
    try:
        return combine(tensors, axis)
    except (RuntimeError, TypeError, IndexError) as error:
        shapes = list(dict.fromkeys(str(tuple(tensor.shape)) for tensor in tensors))[:2]
        why = f"have different shapes, such as {' and '.join(shapes)}; bring all to one, as by padding"
        why = why if len(shapes) > 1 else f"of shape {shapes[0]} cannot be put together: {str(error).splitlines()[0]}"
        raise InputError(f"{what} {why}") from error
