"""The network of dynamic weight allocation: a stem, a context processor that reads it, and layers with masks."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.backbones import initialize_he
from hatrack.errors import InputError
from hatrack.methods.dwa.masks import FactoredDense, MaskedConv, MaskedDense, MaskedLayer, MaskForm, MaskGate, Usage
from hatrack.methods.multi_head import MultiHeadNetwork
from hatrack.methods.narrow import sections_of
from hatrack.support.randomness import random_numbers_apart

__all__ = ["Context", "DWABackbone", "DWANetwork", "Pass", "context_processor"]

BOTTLENECK, CHANNELS = 32, 128
"""Widths of the context processor."""

NOTHING_LEARNED = Usage()
"""Usage while there are no earlier tasks."""

ADVICE = "dwa masks sequences of dense layers and convolutions, such as the networks mlp and alexnet"


class Context(enum.Enum):
    """Inputs that masks are generated from."""

    PROCESSOR = "processor"
    """The sample: an embedding that a context processor makes of the stem's output."""

    TASK = "task"
    """The task's number, one-hot: all samples of a task have the same masks.

    Of the length √D, which is our choice: the generators' Xavier weights are made for vectors of about that length.
    With the length 1, masks of dense layers start so near to 0 that nothing is learned.
    """


class Pass(NamedTuple):
    """Result of a forward pass for N samples.

    Attributes:
        features: ``(N, F)``.
        embedding: ``(N, D)``.
        activity: mean magnitude of the masks, ``(layers, N)``.
        plasticity: plasticity loss, ``(layers, N)``.
    """

    features: Tensor
    embedding: Tensor
    activity: Tensor
    plasticity: Tensor


def context_processor(shape: Sequence[int], embedding: int) -> nn.Sequential:
    """Make the module that turns the stem's output into an embedding in (−1, 1).

    For pictures: a 1×1 convolution to 32 channels, a 3×3 convolution of stride 2 (padded by 1, so that any size will
    do) to 128, ReLU, a dense layer, tanh. For vectors the dense layers of the same widths, which is our choice: the
    source has convolutional networks only.

    Args:
        shape: of what the stem gives for a sample, ``(C, H, W)`` or ``(F,)``.
        embedding: length of an embedding.

    Raises:
        InputError: it has another number of dimensions.
    """
    if len(shape) not in (1, 3):
        raise InputError(f"{ADVICE}; the first layer gives {tuple(shape)}, neither a vector nor a picture")
    if len(shape) == 1:
        first: list[nn.Module] = [nn.Linear(shape[0], BOTTLENECK), nn.Linear(BOTTLENECK, CHANNELS)]
        features = CHANNELS
    else:
        channels, height, width = shape
        first = [nn.Conv2d(channels, BOTTLENECK, 1), nn.Conv2d(BOTTLENECK, CHANNELS, 3, stride=2, padding=1)]
        features = CHANNELS * ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(features, embedding), nn.Tanh())


class DWABackbone(nn.Module):
    """A sequential backbone whose layers after the first are masked, anew for every sample.

    The first dense or convolutional layer with all that follows it up to the next one (activation, dropout, pooling) is
    the stem, which has no mask. A backbone without a second layer has no masks at all.

    Args:
        backbone: an ``nn.Sequential`` of dense layers, convolutions and layers without parameters, which becomes part
            of this one.
        example: one sample ``(1, ...)``.
        context: what masks are generated from.
        embedding: length of an embedding, D.
        form: of the masks of dense layers.
        chunk_entries: most entries of the masks held at once; see :class:`~hatrack.methods.dwa.masks.MaskedLayer`.
        generator: draws the initial weights of processor and generators: He for convolutions, Xavier for dense layers.
        gate: bounds the entries of masks.

    Attributes:
        features: F.
        embedding: D.
        context: see above.

    Raises:
        InputError: the backbone is not of that kind.
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self,
        backbone: nn.Module,
        example: Tensor,
        context: Context,
        embedding: int,
        form: MaskForm,
        chunk_entries: int,
        generator: torch.Generator,
        gate: MaskGate = MaskGate.TANH,
    ) -> None:
        super().__init__()
        _check(backbone)
        before, (first, *later) = sections_of(backbone)
        assert isinstance(before, nn.Sequential)
        self.stem = nn.Sequential(*before, *first.children())
        self.embedding, self.context = embedding, context
        parts = [list(section.children()) for section in later]
        # Layers draw initial weights from torch's global generator when made; they get others at once.
        with random_numbers_apart(), torch.no_grad():
            self.masked = nn.ModuleList(_masked(layer, embedding, form, chunk_entries, gate) for layer, *_ in parts)
            self.after = nn.ModuleList(nn.Sequential(*after) for _, *after in parts)
            stem_shape = self.stem.eval()(example).shape[1:]
            self.processor = context_processor(stem_shape, embedding) if context is Context.PROCESSOR else None
            for part in (self.processor, *(module for module in self.masked)):
                _initialize(part, generator)
            self.features: int = self.eval().run(example, example.new_zeros(1, embedding)).features.shape[1]
        self.train()

    def layers(self) -> dict[str, MaskedLayer]:
        """Return the masked layers by the names that their weights have among this module's parameters."""
        named = {f"masked.{number}.layer.weight": layer for number, layer in enumerate(self.masked)}
        return {name: layer for name, layer in named.items() if isinstance(layer, MaskedLayer)}

    def embeddings(self, x: Tensor) -> Tensor:
        """Return the context processor's embeddings ``(N, D)`` of samples; there must be such a processor."""
        assert self.processor is not None
        embeddings: Tensor = self.processor(self.stem(x))
        return embeddings

    def run(self, x: Tensor, embedding: Tensor | None = None, usage: Usage = NOTHING_LEARNED) -> Pass:
        """Run samples through the network.

        Args:
            x: samples ``(N, ...)``.
            embedding: ``(N, D)``, or ``(1, D)`` for all samples, instead of the context processor's.
            usage: what is important, by the names of :meth:`layers`, and how its use is measured.
        """
        x = self.stem(x)
        if embedding is None:
            assert self.processor is not None
            embedding = self.processor(x)
        assert embedding is not None
        nothing = x.new_zeros(0, len(x))
        activity, plasticity = [nothing], [nothing]
        for (name, layer), after in zip(self.layers().items(), self.after, strict=True):
            if isinstance(layer.layer, nn.Linear) and x.dim() != 2:
                raise InputError(f"{ADVICE}; a dense layer reads {tuple(x.shape[1:])} and no vector: flatten before it")
            result = layer(x, embedding, usage.importance.get(name), usage)
            x = after(result.output)
            activity.append(result.activity.expand(1, len(x)))
            plasticity.append(result.plasticity.expand(1, len(x)))
        return Pass(x, embedding.expand(len(x), -1), torch.cat(activity), torch.cat(plasticity))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return features ``(N, F)``."""
        return self.run(x, embedding).features


class DWANetwork(MultiHeadNetwork):
    """A :class:`DWABackbone` and a linear head per task."""

    backbone: DWABackbone

    def run(
        self, x: Tensor, tasks: Sequence[str], task_of: Tensor | None = None, usage: Usage = NOTHING_LEARNED
    ) -> Pass:
        """Run samples of one task, or of several, through the backbone; see :meth:`DWABackbone.run`."""
        embedding = None
        if self.backbone.context is Context.TASK:
            embedding = self._one_hot(tasks).to(x)  # one for all samples
            if len(tasks) > 1:
                embedding = embedding[task_of]
        return self.backbone.run(x, embedding, usage)

    def _one_hot(self, tasks: Sequence[str]) -> Tensor:
        numbers = torch.tensor([self.task_names.index(task) for task in tasks])
        length = self.backbone.embedding
        one_hot: Tensor = F.one_hot(numbers, length) * length**0.5
        return one_hot

    def embeddings(self, x: Tensor, task: str) -> Tensor:
        """Return the embeddings ``(N, D)`` that the masks of samples ``(N, ...)`` of a task are generated from."""
        if self.backbone.context is Context.TASK:
            return self._one_hot([task]).to(x).expand(len(x), -1)
        return self.backbone.embeddings(x)

    def forward(self, x: Tensor, tasks: str | Sequence[str], task_of: Tensor | None = None) -> Tensor:
        """Return logits ``(N, most classes)``, as of any :class:`~hatrack.methods.multi_head.MultiHeadNetwork`."""
        tasks = [tasks] if isinstance(tasks, str) else tasks
        for task in tasks:
            self.head(task)  # an unknown name is an error
        return self.logits(self.run(x, tasks, task_of).features, tasks, task_of)


def _masked(layer: nn.Module, embedding: int, form: MaskForm, chunk_entries: int, gate: MaskGate) -> MaskedLayer:
    if isinstance(layer, nn.Conv2d):
        return MaskedConv(layer, embedding, chunk_entries, gate)
    assert isinstance(layer, nn.Linear)
    kind = MaskedDense if form is MaskForm.TANH_OF_OUTER else FactoredDense
    return kind(layer, embedding, chunk_entries, gate)


def _initialize(module: nn.Module | None, generator: torch.Generator) -> None:
    """Draw initial weights: He for convolutions and Xavier for dense layers, but for the masked layer's own weights."""
    for name, part in () if module is None else module.named_children():
        if name != "layer":
            initialize_he(part, generator)


def _check(backbone: nn.Module) -> None:
    """Refuse what is no sequence of dense layers, plain convolutions and layers without parameters."""
    if not isinstance(backbone, nn.Sequential):
        raise InputError(f"{ADVICE}; this one is a {type(backbone).__name__}, which is no nn.Sequential")
    for name, part in backbone.named_children():
        plain = type(part) is nn.Linear or (
            type(part) is nn.Conv2d and part.groups == 1 and part.padding_mode == "zeros"
        )
        if not plain and any(True for _ in (*part.parameters(), *part.buffers())):
            raise InputError(f"{ADVICE}; {type(part).__name__} {name!r} is neither")
    if not any(True for _ in backbone.parameters()):
        raise InputError(f"{ADVICE}; this one has no such layer")
