"""Refusal of backbones that write into their own parameters in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from hatrack.errors import UnsupportedError
from hatrack.state.comparing import is_same_tensor
from hatrack.state.undo import values_before_attaching

__all__ = ["refuses_written"]


@contextmanager
def refuses_written(named: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse a backbone whose runs in a block change its parameters, also where the block fails otherwise.

    Parameters are compared with the copies that are kept to undo attaching. Torch's version counters do not serve: they
    miss what is written through ``.data``, and count what probing writes and takes back.

    Args:
        named: the parameters by name.

    Raises:
        UnsupportedError: a run has changed one of them.
    """
    before = values_before_attaching()

    def require_unwritten(error: Exception | None) -> None:
        written = [name for name, each in named.items() if not is_same_tensor(before.get(id(each), each), each)]
        if written:
            raise UnsupportedError(
                f"running the backbone writes into its parameters, {', '.join(written)}, so that no task could have "
                "answers that stay. Compute what is needed anew in every pass, and leave the parameter as it is "
                "(weight = self.weight / self.weight.norm(), or torch.nn.utils.parametrize; an embedding without "
                "max_norm); or write after steps of the optimizer, outside of forward. A backbone that only "
                "initialises itself so is run once in training mode before it is attached"
            ) from error

    try:
        yield
    except Exception as error:
        require_unwritten(error)
        raise
    require_unwritten(None)
