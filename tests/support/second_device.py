"""A pretended GPU: tensors that lie on the CPU and obey torch's rules for two devices.

Every tensor is somewhere, by its storage. Inside :func:`second_device` a tensor is moved as on a real GPU, by ``to``,
``cuda``, ``device=...``, or by what it is computed from, and says ``cuda:0`` when it is asked for its device. Values,
storages, gradients and version counters are the real ones, so that everything runs, with the CPU's bits. What torch
refuses on a GPU is refused:

- operations on tensors of two devices, unless one is a number (a tensor of the CPU without axes in an element-wise
  operation), or an index in brackets;
- a generator of the CPU that draws on the GPU;
- a NumPy array on the memory of the GPU.

What C++ makes without being asked from Python, such as gradients that are all zeros, fits both devices. Kernels of the
GPU, streams, graphs, autocast and cuDNN are not pretended.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import resolve_name
from torch.utils import _device
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

THERE = torch.device("cuda", 0)
HERE = torch.device("cpu")

_FACTORIES = (
    *("arange", "as_tensor", "asarray", "empty", "empty_like", "empty_permuted", "empty_strided", "eye", "full"),
    *(
        "full_like",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "ones_like",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
    ),
    *("randn", "randn_like", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
    "zeros_like",
)
_NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
_OF_SAME_DEVICE = frozenset(name for name in _FACTORIES if name.endswith("_like"))

_aten = torch.ops.aten
_PACKING = {_aten._pack_padded_sequence, _aten._pack_padded_sequence_backward, _aten._pad_packed_sequence}
_COPYING = {_aten._to_copy, _aten.clone, _aten.empty_like, _aten.to}  # the last one in inference mode
_ANY = {_aten.copy_, _aten.copy, _aten._foreach_copy_, _aten.set_, _aten._to_copy, _aten.to} | _PACKING
"""Operations that may take tensors of two devices."""

_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._unsafe_index, _aten._index_put_impl_}
_NUMBERS = {*_INDEXING, _aten.masked_fill, _aten.masked_fill_, _aten.fill, _aten.fill_}
"""Operations that, besides the element-wise ones, take an axis-less tensor of the CPU as a number."""


class _Instead:
    """Descriptor in place of one of tensors': instances get another answer, and the class what it had."""

    def __init__(self, original: Any, of_instance: Callable[[Tensor], Any]) -> None:
        self._original, self._of_instance = original, of_instance

    def __get__(self, instance: Tensor | None, owner: type) -> Any:
        return self._original if instance is None else self._of_instance(instance)

    def __set__(self, instance: Tensor, value: Any) -> None:
        raise AttributeError("read-only")


class _Move(torch.autograd.Function):
    """Move with a gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, places: _Places, tensor: Tensor, device: torch.device) -> Any:
        ctx.places, ctx.device = places, places.of(tensor)
        return places.moved(tensor, device)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, ctx.places.moved(gradients[0], ctx.device), None


class _Places(TorchDispatchMode):
    """The devices of all storages, and the rules of operations."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, StorageWeakRef] = {}
        self._anywhere: dict[int, StorageWeakRef] = {}
        self._asked: list[torch.device] = []
        self.refused: list[str] = []
        self._most = 10_000

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import the compiler, for seconds

    def of(self, tensor: Tensor) -> torch.device:
        """Return the device of a tensor."""
        return THERE if self._holds(self._there, tensor) else HERE

    def _holds(self, places: dict[int, StorageWeakRef], tensor: Tensor) -> bool:
        key = _key(tensor)
        return key is not None and key in places

    def put(self, tensor: Tensor, device: torch.device | None) -> None:
        """Note where a tensor is; None stands for anywhere."""
        key = _key(tensor)
        if key is None:
            return
        self._there.pop(key, None)
        self._anywhere.pop(key, None)
        if device is None or device.type == "cuda":
            # As long as the reference lives, no other storage gets its key.
            (self._anywhere if device is None else self._there)[key] = StorageWeakRef(tensor.untyped_storage())
        if len(self._there) + len(self._anywhere) > self._most:
            for places in (self._there, self._anywhere):
                for key in [key for key, each in places.items() if each.expired()]:
                    del places[key]
            self._most = 2 * (len(self._there) + len(self._anywhere)) + 10_000

    def refusal(self, said: str) -> RuntimeError:
        """Note and return an error as torch raises it."""
        stack = traceback.extract_stack()
        where = [f"{frame.filename}:{frame.lineno}" for frame in stack if "hatrack" in frame.filename][-3:]
        self.refused.append(f"{said} [{', '.join(where)}]")
        return RuntimeError(said)

    @contextlib.contextmanager
    def asked(self, device: torch.device) -> Iterator[None]:
        """Put what operations without tensors make, and copies, on a device."""
        self._asked.append(device)
        try:
            yield
        finally:
            self._asked.pop()

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return a tensor on a device, the same one if it is there."""
        if self.of(tensor) == device:
            return tensor
        with self.asked(device):
            return tensor.detach().clone()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        there = [self._holds(self._there, each) for each in tensors]
        if any(there):
            self._check(func, args, kwargs, tensors, there)
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        if func._schema.is_mutable and str(packet).startswith("aten._foreach"):  # uncounted under a mode
            torch.autograd.graph.increment_version([each for each in args[0] if not each.is_inference()])
        if packet in (_aten.copy_, _aten.set_, _aten._foreach_copy_):
            return result
        made = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
        if packet in _PACKING:
            made = made[:1]  # lengths stay on the CPU
        if self._asked and (not tensors or packet in _COPYING):
            for each in made:
                self.put(each, self._asked[-1])
        elif not tensors:
            for each in made:
                self.put(each, None)
        elif any(there):
            for each in made:
                self.put(each, THERE)
        elif all(self._holds(self._anywhere, each) for each in tensors):
            for each in made:
                self.put(each, None)
        return result

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], there: list[bool]) -> None:
        packet = func.overloadpacket
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise self.refusal(f"Expected a 'cuda' device type for generator but found 'cpu' ({packet})")
        if packet in _ANY:
            return
        spared: set[int] = set()
        if packet in _INDEXING and self._holds(self._there, args[0]):
            spared = {id(each) for each in args[1] if each is not None}
        numbers = torch.Tag.pointwise in func.tags or packet in _NUMBERS or "_foreach" in str(packet)
        written = {
            id(each)
            for schema, value in zip(func._schema.arguments, args, strict=False)
            if schema.alias_info is not None and schema.alias_info.is_write
            for each in tree_flatten(value)[0]
        }
        for each, is_there in zip(tensors, there, strict=True):
            if is_there or each.is_meta or self._holds(self._anywhere, each) or id(each) in spared:
                continue
            if numbers and not each.dim() and id(each) not in written:
                continue
            raise self.refusal(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(when checking {packet}, shapes {[tuple(t.shape) for t in tensors]}, there {there})"
            )


def _key(tensor: Tensor) -> int | None:
    try:
        with torch._C.DisableTorchFunction():  # it is nobody's business
            return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or a wrapper without memory
        return None


def _as_device(device: Any) -> torch.device:
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return THERE if found.type == "cuda" else found


@contextlib.contextmanager
def second_device(strict: bool = True) -> Iterator[torch.device]:
    """Pretend that there is a GPU, and yield its device.

    Args:
        strict: whether a refusal that somebody caught is an error in the end: a way that is taken because the right one
            failed.
    """
    _device._device_constructors()  # remembered by torch as they are now
    resolve_name(torch.zeros)
    places = _Places()
    getset = {name: getattr(torch.Tensor, name) for name in ("device", "is_cuda", "is_cpu")}
    methods = {name: getattr(torch.Tensor, name) for name in ("to", "cpu", "cuda", "numpy", "get_device", *_NEW)}
    deepcopy = torch.Tensor.__deepcopy__
    real_device = getset["device"].__get__

    def device_of(tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            real: torch.device = real_device(tensor)
        return places.of(tensor) if real.type == "cpu" else real

    def device_asked(tensor: Tensor) -> torch.device:
        real: torch.device = real_device(tensor)  # which modes may want to hear of
        return places.of(tensor) if real.type == "cpu" else real

    def factory(name: str, original: Any) -> Any:
        @functools.wraps(original)
        def make(*args: Any, **kwargs: Any) -> Any:
            like = args[0] if name in _OF_SAME_DEVICE and args else None
            source = args[0] if name in ("as_tensor", "asarray") and args and isinstance(args[0], Tensor) else None
            given = kwargs.get("device")
            if given is None and isinstance(like, Tensor):
                return original(*args, **kwargs)
            if source is not None:
                found = original(*args, **{**kwargs, "device": None})
                return found if given is None else to(found, _as_device(given))
            if given is None and torch.get_default_device().type == "meta":
                return original(*args, **kwargs)
            device = HERE if given is None else _as_device(given)
            if device.type not in ("cpu", "cuda"):
                return original(*args, **kwargs)
            generator = kwargs.get("generator")
            if generator is not None and generator.device.type != device.type:
                raise places.refusal(f"Expected a {device.type!r} device type for generator (in torch.{name})")
            if given is not None:
                kwargs["device"] = HERE
            with places.asked(device):
                made = original(*args, **kwargs)
            if kwargs.get("out") is None:
                places.put(made, device)
            return made

        return make

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        original, rest, device = methods["to"], list(args), kwargs.pop("device", None)
        other = kwargs.pop("other", None)
        if rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
        elif rest and isinstance(rest[0], (str, torch.device, int)):
            device = rest.pop(0)
        elif rest and rest[0] is None:
            rest.pop(0)
        if other is not None:
            device, rest = device_of(other), [other.dtype, *rest]
        if rest and rest[0] is None:
            rest[0] = tensor.dtype
        rest = rest or ([] if "dtype" in kwargs else [tensor.dtype])
        if device is None or _as_device(device) == device_of(tensor):
            return original(tensor, *rest, **kwargs)
        target = _as_device(device)
        if target.type not in ("cpu", "cuda") or tensor.is_meta:
            return original(tensor, target if target.type != "cuda" else HERE, *rest, **kwargs)
        if tensor.requires_grad and torch.is_grad_enabled():
            return original(_Move.apply(places, tensor, target), *rest, **kwargs)
        copy = {"copy": True} if len(rest) < 3 else {}
        kwargs.pop("copy", None)
        with places.asked(target):
            return original(tensor, *(rest[:2] if copy else [*rest[:2], True, *rest[3:]]), **copy, **kwargs)

    def new(name: str) -> Callable[[Tensor], Any]:
        def bound(tensor: Tensor) -> Any:
            def make(*args: Any, **kwargs: Any) -> Tensor:
                given = kwargs.get("device")
                device = device_of(tensor) if given is None else _as_device(given)
                if given is not None and device.type in ("cpu", "cuda"):
                    kwargs["device"] = HERE
                with places.asked(device):
                    made: Tensor = methods[name](tensor, *args, **kwargs)
                places.put(made, device)
                return made

            return make

        return bound

    def numpy(tensor: Tensor) -> Any:
        if device_of(tensor).type == "cuda":
            places.refusal("can't convert cuda:0 device type tensor to numpy")
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return functools.partial(methods["numpy"], tensor)

    def deeply_copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = deepcopy(tensor, memo)
        if device_of(tensor).type == "cuda":
            places.put(copied, THERE)
        return copied

    answers: dict[str, Callable[[Tensor], Any]] = {
        "device": device_asked,
        "is_cuda": lambda tensor: device_of(tensor).type == "cuda",
        "is_cpu": lambda tensor: device_of(tensor).type == "cpu",
        "get_device": lambda tensor: lambda: 0 if device_of(tensor).type == "cuda" else -1,
        "to": lambda tensor: functools.partial(to, tensor),
        "cpu": lambda tensor: lambda *_, **__: to(tensor, HERE),
        "cuda": lambda tensor: lambda *_, **__: to(tensor, THERE),
        "numpy": numpy,
        **{name: new(name) for name in _NEW},
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            original = getset.get(name, methods.get(name))
            stack.enter_context(mock.patch.object(torch.Tensor, name, _Instead(original, answer), create=True))
        stack.enter_context(mock.patch.object(torch.Tensor, "__deepcopy__", deeply_copied))
        for name in _FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, factory(name, getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch.backends.cudnn, "is_acceptable", return_value=False))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_name", return_value="pretended"))
        stack.enter_context(places)
        yield THERE
    if strict:
        assert not places.refused, "\n".join(places.refused)
