"""A network of dense layers that get more units, in which every task keeps the width of its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.methods.den.layers import DenseLayer
from hatrack.support.names import look_up

__all__ = ["ExpandableNetwork"]

UNIT_WISE = (nn.Dropout, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus)
"""Modules that may stand between dense layers: functions of each unit alone, whatever the width."""


class ExpandableNetwork(nn.Module):
    """Dense layers in a row, a head per task, and for every task how many units of each layer it reads.

    Args:
        backbone: an ``nn.Sequential`` of dense layers with biases, and functions of single units between them; its
            weights are taken over.

    Raises:
        InputError: it is something else.

    Attributes:
        layers: the dense layers from the input on.
        widths: for every task its time stamp, the number of units of each layer that it reads.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.heads = nn.ModuleDict()
        self.widths: dict[str, tuple[int, ...]] = {}
        between: list[list[nn.Module]] = [[]]
        for part in _parts_of(backbone):
            if isinstance(part, nn.Linear):
                self.layers.append(part)
                between.append([])
            else:
                between[-1].append(part)
        self.between = nn.ModuleList(nn.Sequential(*parts) for parts in between)

    @property
    def current_widths(self) -> tuple[int, ...]:
        """Number of units of each layer now."""
        return tuple(len(layer.bias) for layer in self.tensors())

    def tensors(self) -> tuple[DenseLayer, ...]:
        """Return weight and bias of every layer: the parameters themselves."""
        found = []
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            found.append(DenseLayer(layer.weight, layer.bias))
        return tuple(found)

    def copies(self) -> tuple[DenseLayer, ...]:
        """Return copies of all weights and biases, without gradients."""
        return tuple(DenseLayer(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in self.tensors())

    def head(self, task: str) -> nn.Linear:
        """Return the head of a task.

        Raises:
            InputError: there is no such task.
        """
        look_up("task", task, self.widths)
        head = self.heads[str(list(self.widths).index(task))]
        assert isinstance(head, nn.Linear)
        return head

    def add_task(self, name: str, head: nn.Linear) -> None:
        """Add a task that reads all units that there are now."""
        self.heads[str(len(self.widths))] = head
        self.widths[name] = self.current_widths

    def remove_newest(self) -> None:
        """Remove the task that was added last, and its head; units that it alone reads stay until layers are set."""
        self.widths.popitem()
        del self.heads[str(len(self.widths))]

    def set_layers(self, layers: Sequence[DenseLayer]) -> None:
        """Take up other layers, as new parameters, which are at least as wide as the tasks that read them."""
        for index, layer in enumerate(layers):
            self.layers[index] = _linear(layer)

    def replace(self, task: str, layers: Sequence[DenseLayer], head: DenseLayer) -> None:
        """Take up other layers, and another head of a task, which reads all their units from now on.

        All of them become new parameters.
        """
        self.set_layers(layers)
        self.heads[str(list(self.widths).index(task))] = _linear(head)
        self.widths[task] = self.current_widths

    def forward(self, x: Tensor, task: str) -> Tensor:
        """Return logits ``(N, outputs)`` of samples ``(N, ...)``, by the task's units alone.

        Raises:
            InputError: there is no such task.
        """
        widths = look_up("task", task, self.widths)
        x = self.between[0](x)
        inputs = x.shape[1]
        for layer, outputs, after in zip(self.tensors(), widths, [*self.between][1:], strict=True):
            x = after(F.linear(x, layer.weight[:outputs, :inputs], layer.bias[:outputs]))
            inputs = outputs
        logits: Tensor = self.head(task)(x)
        return logits


def _linear(layer: DenseLayer) -> nn.Linear:
    made = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], device="meta")  # draws nothing
    made.weight, made.bias = (nn.Parameter(value.detach().clone()) for value in layer)
    return made


def _parts_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the parts of a backbone that is of the one kind that can get more units, as often as they are run.

    Raises:
        InputError: it is of another kind.
    """
    remedy = "den widens trained dense layers with biases in a row, and functions between them: choose network mlp"
    if not isinstance(backbone, nn.Sequential) or type(backbone).forward is not nn.Sequential.forward:
        raise InputError(f"{remedy}; the backbone is a {type(backbone).__name__}")
    parts = list(backbone)
    layers = [index for index, part in enumerate(parts) if isinstance(part, nn.Linear)]
    if not layers:
        raise InputError(f"{remedy}; the backbone has no dense layer")
    for index, part in enumerate(parts):
        if type(part) is nn.Linear:
            fits = part.bias is not None and all(p.requires_grad for p in part.parameters()) and parts.count(part) == 1
        else:
            fits = isinstance(part, UNIT_WISE) or (isinstance(part, nn.Flatten) and index < layers[0])
        if not fits:
            raise InputError(f"{remedy}; part {index} of the backbone is {part}".replace("\n", " "))
    return parts
