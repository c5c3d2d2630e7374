"""Random networks: a printable plan of steps, drawn by hypothesis, and the module that carries it out.

A plan is a list of steps, each of which takes earlier values by their number and gives one new value. A failing example
prints as a plan, and ``Plan(...).build()`` makes the network again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]
"""Shape of a value without the batch: a vector (F,), tokens (L, C) or an image (C, H, W)."""

IMAGE, FEATURES = (2, 6, 6), (6,)
VECTOR, TOKENS, PICTURE = 1, 2, 3
LARGEST = 600


@dataclass(frozen=True)
class Step:
    """One step of a plan: an operation, the numbers of the values that it takes, and its options."""

    op: str
    takes: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Plan:
    """A network: the shape of a sample and the steps, value 0 being the input."""

    shape: Shape
    steps: tuple[Step, ...]

    def build(self) -> nn.Module:
        return RandomNetwork(self)


@dataclass(frozen=True)
class Op:
    """Builder of an operation for the shapes that it takes, with its options."""

    kinds: tuple[int, ...]
    takes: int
    build: Callable[..., nn.Module]
    options: dict[str, tuple[Any, ...]]


OPS: dict[str, Op] = {}


def op(*kinds: int, takes: int = 1, **options: tuple[Any, ...]) -> Callable[[Callable[..., nn.Module]], Any]:
    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        OPS[build.__name__] = Op(kinds, takes, build, options)
        return build

    return register


class UnfitError(Exception):
    """A step that values of these shapes cannot take."""


def need(condition: bool) -> None:
    if not condition:
        raise UnfitError


class RandomNetwork(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, self.parts = plan, nn.ModuleList()
        shapes = [plan.shape]
        for step in plan.steps:
            part, shape = carried_out(step, list(self.parts), shapes)
            self.parts.append(part)
            shapes.append(shape)
        self.last = nn.Identity() if len(shapes[-1]) == VECTOR else nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, part in zip(self.plan.steps, self.parts, strict=True):
            values.append(part(*(values[number] for number in step.takes)))
        return self.last(values[-1])


def carried_out(step: Step, parts: list[nn.Module], shapes: list[Shape]) -> tuple[nn.Module, Shape]:
    """The module of a step, and the shape of the value that it gives."""
    options, taken = dict(step.options), [shapes[number] for number in step.takes]
    part = parts[options["step"]] if "step" in options else OPS[step.op].build(*taken, **options)
    if step.op == "tied":
        part, weight = nn.Linear(part.in_features, part.out_features), part.weight
        part.weight = weight
    with torch.no_grad():
        shape = tuple(part.eval()(*(torch.zeros(2, *each) for each in taken)).shape[1:])
    part.train()
    return part, shape


class Apply(nn.Module):
    """A function of values, with modules and parameters of its own if need be."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for number, part in enumerate(parts):
            setattr(self, f"part{number}", part)
        self.count = len(parts)

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values, *(getattr(self, f"part{number}") for number in range(self.count)))


# ---------------------------------------------------------------------------------------------- layers that mix units


@op(VECTOR, TOKENS, width=(8, 12, 6), bias=(True, False))
def linear(shape: Shape, width: int, bias: bool) -> nn.Module:
    return nn.Linear(shape[-1], width, bias)


@op(PICTURE, width=(8, 10, 6), kernel=(3, 1), stride=(1, 2), groups=(1, 2), dilation=(1, 2), bias=(True, False),
    padding=("zeros", "circular"))  # fmt: skip
def conv(
    shape: Shape, width: int, kernel: int, stride: int, groups: int, dilation: int, bias: bool, padding: str
) -> nn.Module:
    groups = groups if shape[0] % groups == 0 else 1
    margin = dilation * (kernel // 2) if min(shape[1:]) >= 3 else 0
    kernel = kernel if min(shape[1:]) >= 3 else 1
    return nn.Conv2d(shape[0], width, kernel, stride, margin, dilation, groups, bias, padding)


@op(PICTURE, multiple=(1, 2), kernel=(3, 1), bias=(True, False))
def depthwise(shape: Shape, multiple: int, kernel: int, bias: bool) -> nn.Module:
    return nn.Conv2d(shape[0], multiple * shape[0], kernel, padding=kernel // 2, groups=shape[0], bias=bias)


@op(PICTURE, width=(8, 6), stride=(1, 2), groups=(1, 2), bias=(True, False))
def transposed(shape: Shape, width: int, stride: int, groups: int, bias: bool) -> nn.Module:
    need(max(shape[1:]) <= 6)
    groups = groups if shape[0] % groups == 0 else 1
    return nn.ConvTranspose2d(shape[0], width, 2, stride, groups=groups, bias=bias)


@op(TOKENS, width=(8, 6), kernel=(1, 3), groups=(1, 2))
def conv_over_tokens(shape: Shape, width: int, kernel: int, groups: int) -> nn.Module:
    groups = groups if shape[1] % groups == 0 else 1
    layer = nn.Conv1d(shape[1], width, kernel, padding=kernel // 2, groups=groups)
    return Apply(lambda x, layer: layer(x.transpose(1, 2)).transpose(1, 2), layer)


@op(VECTOR, width=(6, 8))
def weight_by_hand(shape: Shape, width: int) -> nn.Module:
    return Apply(lambda x, weight: x @ weight, nn.Parameter(torch.randn(shape[0], width) / shape[0] ** 0.5))


@op(VECTOR, TOKENS, PICTURE)
def twice(shape: Shape) -> nn.Module:
    layer = nn.Conv2d(shape[0], shape[0], 3, padding=1) if len(shape) == PICTURE else nn.Linear(shape[-1], shape[-1])
    return Apply(lambda x, layer: layer(F.relu(layer(x))), layer)


@op(TOKENS, PICTURE, hidden=(3, 5))
def mix_positions(shape: Shape, hidden: int) -> nn.Module:
    if len(shape) == TOKENS:
        up, down = nn.Linear(shape[0], hidden), nn.Linear(hidden, shape[0])
        return Apply(lambda x, up, down: x + down(F.gelu(up(x.transpose(1, 2)))).transpose(1, 2), up, down)
    return Apply(lambda x, layer: layer(x.flatten(2)).view_as(x), nn.Linear(shape[1] * shape[2], shape[1] * shape[2]))


# ------------------------------------------------------------------------------------------------ one value of another


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "gelu": lambda width: nn.GELU(),
    "sigmoid": lambda width: nn.Sigmoid(),
    "softplus": lambda width: nn.Softplus(),
    "tanh": lambda width: nn.Tanh(),
    "silu": lambda width: nn.SiLU(),
    "cos": lambda width: Apply(torch.cos),
    "one minus": lambda width: Apply(lambda x: 1 - x),
    "prelu": lambda width: nn.PReLU(),
    "prelu of each": lambda width: nn.PReLU(width),
}


@op(VECTOR, TOKENS, PICTURE, kind=tuple(ACTIVATIONS))
def activation(shape: Shape, kind: str) -> nn.Module:
    return ACTIVATIONS[kind](shape[0])


@op(VECTOR, TOKENS, PICTURE, rate=(0.1, 0.4))
def dropout(shape: Shape, rate: float) -> nn.Module:
    return nn.Dropout2d(rate) if len(shape) == PICTURE else nn.Dropout(rate)


@op(PICTURE, kind=("batch", "layer", "layer over channels", "group", "instance", "instance with statistics", "rms"))
def norm_of_image(shape: Shape, kind: str) -> nn.Module:
    width = shape[0]
    channels_last: Callable[..., Tensor] = lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
    need("instance" not in kind or shape[1] * shape[2] > 1)
    return {
        "batch": lambda: nn.BatchNorm2d(width),
        "layer": lambda: nn.LayerNorm(shape),
        "layer over channels": lambda: Apply(channels_last, nn.LayerNorm(width)),
        "group": lambda: nn.GroupNorm(2 if width % 2 == 0 else 1, width),
        "instance": lambda: nn.InstanceNorm2d(width, affine=True),
        "instance with statistics": lambda: nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        "rms": lambda: Apply(channels_last, nn.RMSNorm(width)),
    }[kind]()


@op(VECTOR, TOKENS, kind=("layer", "rms", "batch", "group", "plain"))
def norm(shape: Shape, kind: str) -> nn.Module:
    width = shape[-1]
    layer = {
        "layer": lambda: nn.LayerNorm(width),
        "rms": lambda: nn.RMSNorm(width),
        "batch": lambda: nn.BatchNorm1d(width),
        "group": lambda: nn.GroupNorm(2 if width % 2 == 0 else 1, width),
        "plain": lambda: nn.LayerNorm(width, elementwise_affine=False),
    }[kind]()
    if len(shape) == TOKENS and kind in ("batch", "group"):
        return Apply(lambda x, norm: norm(x.transpose(1, 2)).transpose(1, 2), layer)
    return layer


@op(PICTURE, kind=("max", "average", "adaptive", "upsample", "bilinear", "global"))
def pool(shape: Shape, kind: str) -> nn.Module:
    need(kind in ("adaptive", "global") or (min(shape[1:]) >= 2 and max(shape[1:]) <= 6))
    return {
        "max": nn.MaxPool2d(2),
        "average": nn.AvgPool2d(2),
        "adaptive": nn.AdaptiveAvgPool2d(2),
        "upsample": nn.Upsample(scale_factor=2),
        "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
        "global": Apply(lambda x: x.mean((2, 3), keepdim=True)),
    }[kind]


@op(PICTURE, mode=("constant", "reflect", "circular"), value=(0.0, -1.0))
def margin_of_image(shape: Shape, mode: str, value: float) -> nn.Module:
    need(min(shape[1:]) >= 2 and max(shape[1:]) <= 6)
    if mode == "constant":
        return Apply(lambda x: F.pad(x, (1, 0, 1, 0), value=value))
    return Apply(lambda x: F.pad(x, (1, 0, 1, 0), mode=mode))


@op(TOKENS, VECTOR, axis=(-1, 1), value=(0.0, -1.0))
def margin(shape: Shape, axis: int, value: float) -> nn.Module:
    need(shape[-1] <= 12)
    widths = (0, 2) if axis == -1 or len(shape) == VECTOR else (0, 0, 1, 0)
    return Apply(lambda x: F.pad(x, widths, value=value))


@op(VECTOR, TOKENS, PICTURE, kind=("flip", "roll", "shuffle", "repeat", "part", "every other"))
def move(shape: Shape, kind: str) -> nn.Module:
    # Gates make a part of a value dense in memory, and the last bits of kernels depend on that: hence `contiguous`.
    axis = 1 if len(shape) == PICTURE else -1
    width = shape[0] if len(shape) == PICTURE else shape[-1]
    need(width <= 12 if kind == "repeat" else width >= 4)
    order = torch.arange(width).roll(1).flip(0)
    return {
        "flip": Apply(lambda x: x.flip(axis)),
        "roll": Apply(lambda x: x.roll(1, axis)),
        "shuffle": Apply(lambda x: x.index_select(axis, order)),
        "repeat": Apply(lambda x: x.repeat_interleave(2, dim=axis)),
        "part": Apply(lambda x: x.narrow(axis, 1, width - 1).contiguous()),
        "every other": Apply(lambda x: (x[:, ::2] if axis == 1 else x[..., ::2]).contiguous()),
    }[kind]


@op(VECTOR, TOKENS, PICTURE,
    kind=("swap", "multiply", "add", "gate", "glu", "concatenate sum", "first and product", "of three"))  # fmt: skip
def split(shape: Shape, kind: str) -> nn.Module:
    axis = 1 if len(shape) == PICTURE else -1
    width = shape[0] if len(shape) == PICTURE else shape[-1]
    need(width >= 4 and width % (3 if kind == "of three" else 2) == 0)

    def recombined(x: Tensor) -> Tensor:
        if kind == "glu":
            return F.glu(x, axis)
        if kind == "of three":
            q, k, v = x.split(width // 3, dim=axis)
            return torch.cat([v, k * torch.sigmoid(q)], dim=axis)
        a, b = x.chunk(2, dim=axis)
        return {
            "swap": lambda: torch.cat([b, a], dim=axis),
            "multiply": lambda: a * b,
            "add": lambda: a + b,
            "gate": lambda: a * torch.sigmoid(b),
            "concatenate sum": lambda: torch.cat([a + b, b], dim=axis),
            "first and product": lambda: torch.cat([b, a * b], dim=axis),
        }[kind]()

    return Apply(recombined)


@op(VECTOR, TOKENS, PICTURE, kind=("scale", "shift", "scalar", "every position", "one per position", "exp"))
def parameter(shape: Shape, kind: str) -> nn.Module:
    each = (*shape[:1], *(1,) * (len(shape) - 1)) if len(shape) == PICTURE else shape[-1:]
    positions = (1, *shape[1:]) if len(shape) == PICTURE else (*shape[:-1], 1)
    return {
        "scale": lambda: Apply(lambda x, p: p * x, nn.Parameter(1 + 0.3 * torch.randn(each))),
        "shift": lambda: Apply(lambda x, p: x + p, nn.Parameter(torch.randn(each))),
        "scalar": lambda: Apply(lambda x, p: x * p, nn.Parameter(torch.tensor(0.7))),
        "every position": lambda: Apply(lambda x, p: x + p, nn.Parameter(torch.randn(1, *shape))),
        "one per position": lambda: Apply(lambda x, p: x * p, nn.Parameter(1 + 0.3 * torch.randn(positions))),
        "exp": lambda: Apply(lambda x, p: x / (1 + p.exp()), nn.Parameter(torch.randn(each))),
    }[kind]()


# ------------------------------------------------------------------------------------------------------ attention


@op(PICTURE, kind=("linear", "conv", "map", "positions"))
def attend(shape: Shape, kind: str) -> nn.Module:
    width = shape[0]
    if kind == "linear":
        down, up = nn.Linear(width, 3), nn.Linear(3, width)
        scale = lambda x, down, up: x * torch.sigmoid(up(F.relu(down(x.mean((2, 3))))))[..., None, None]  # noqa: E731
        return Apply(scale, down, up)
    if kind == "conv":
        layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid())
        return Apply(lambda x, layers: layers(x) * x, layers)
    if kind == "map":
        return Apply(lambda x, layer: x * torch.sigmoid(layer(x)), nn.Conv2d(width, 1, 1))
    return Apply(lambda x: x * x.flatten(2).softmax(-1).view_as(x))


@op(TOKENS, heads=(1, 2), fused=(True, False), causal=(False, True))
def attention(shape: Shape, heads: int, fused: bool, causal: bool) -> nn.Module:
    length, width = shape
    need(width % heads == 0 and length <= 50)

    def attended(x: Tensor, qkv: nn.Linear, out: nn.Linear) -> Tensor:
        q, k, v = qkv(x).reshape(len(x), length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        if fused:
            h = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            h = ((q @ k.transpose(-2, -1)) * (width // heads) ** -0.5).softmax(dim=-1) @ v
        return out(h.transpose(1, 2).reshape(len(x), length, width))

    return Apply(attended, nn.Linear(width, 3 * width), nn.Linear(width, width))


@op(TOKENS, TOKENS, takes=2, heads=(1, 2))
def module_attention(shape: Shape, other: Shape, heads: int) -> nn.Module:
    width = shape[1]
    need(width % heads == 0)
    layer = nn.MultiheadAttention(width, heads, batch_first=True, kdim=other[1], vdim=other[1])
    return Apply(lambda x, y, layer: layer(x, y, y, need_weights=False)[0], layer)


@op(TOKENS)
def class_token(shape: Shape) -> nn.Module:
    token = nn.Parameter(torch.randn(1, 1, shape[1]))
    return Apply(lambda x, token: torch.cat([token.expand(len(x), -1, -1), x], dim=1), token)


@op(TOKENS, kind=("center", "softmax", "cumulative"))
def over_tokens(shape: Shape, kind: str) -> nn.Module:
    return {
        "center": Apply(lambda x: x - x.mean(1, keepdim=True)),
        "softmax": Apply(lambda x: x.softmax(1)),
        "cumulative": Apply(lambda x: x.cumsum(1) / shape[0]),
    }[kind]


# ------------------------------------------------------------------------------------------------------ changes of kind


@op(PICTURE)
def image_to_tokens(shape: Shape) -> nn.Module:
    return Apply(lambda x: x.flatten(2).transpose(1, 2))


@op(TOKENS, PICTURE, kind=("flatten", "mean", "first", "max"))
def to_features(shape: Shape, kind: str) -> nn.Module:
    axes = (2, 3) if len(shape) == PICTURE else (1,)
    return {
        "flatten": nn.Flatten(),
        "mean": Apply(lambda x: x.mean(axes)),
        "first": Apply(lambda x: (x[:, 0] if len(shape) == TOKENS else x[..., 0, 0]).contiguous()),
        "max": Apply(lambda x: x.amax(axes)),
    }[kind]


@op(VECTOR)
def vector_to_tokens(shape: Shape) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 24), nn.Unflatten(1, (3, 8)))


@op(VECTOR)
def vector_to_image(shape: Shape) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 32), nn.Unflatten(1, (8, 2, 2)))


# ------------------------------------------------------------------------------------------------------ two values


def matched(shape: Shape, other: Shape) -> nn.Module:
    """A way from one shape to another of its kind: nothing where they are equal, so that units are coupled."""
    if shape == other:
        return nn.Identity()
    if len(shape) == PICTURE:
        layers = [nn.Conv2d(other[0], shape[0], 1)] if other[0] != shape[0] else []
        return nn.Sequential(*layers, *([nn.AdaptiveAvgPool2d(shape[1:])] if other[1:] != shape[1:] else []))
    need(other[:-1] == shape[:-1])
    return nn.Linear(other[-1], shape[-1])


COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "add in place": lambda a, b: a.clone().add_(b),
    "gate": lambda a, b: a * torch.sigmoid(b),
    "multiply": lambda a, b: a * torch.tanh(b),
    "subtract": lambda a, b: b - a,
    "maximum": torch.maximum,
    "where": lambda a, b: torch.where(a > 0, a, b),
    "interpolate": lambda a, b: torch.lerp(a, b, torch.sigmoid(a)),
}


@op(VECTOR, TOKENS, PICTURE, takes=2, kind=tuple(COMBINATIONS))
def combine(shape: Shape, other: Shape, kind: str) -> nn.Module:
    return Apply(lambda a, b, way: COMBINATIONS[kind](a, way(b)), matched(shape, other))


@op(VECTOR, TOKENS, PICTURE, takes=2, first=(True, False))
def concatenate(shape: Shape, other: Shape, first: bool) -> nn.Module:
    axis = 1 if len(shape) == PICTURE else -1
    width = 0 if len(shape) == PICTURE else -1
    need(shape[width] + other[width] <= 40 and (len(shape) != TOKENS or shape[0] == other[0]))
    way = matched(shape, (other[0], *shape[1:])) if len(shape) == PICTURE and shape[1:] == other[1:] else nn.Identity()
    if len(shape) == PICTURE and shape[1:] != other[1:]:
        way = nn.AdaptiveAvgPool2d(shape[1:])
    return Apply(lambda a, b, way: torch.cat([a, way(b)] if first else [way(b), a], dim=axis), way)


@op(TOKENS, takes=2)
def more_tokens(shape: Shape, other: Shape) -> nn.Module:
    need(shape[1] == other[1] and shape[0] + other[0] <= 20)
    return Apply(lambda a, b: torch.cat([a, b], dim=1))


@op(PICTURE, takes=2)
def scale_channels(shape: Shape, other: Shape) -> nn.Module:
    return Apply(lambda a, b, layer: a * layer(b.mean((2, 3)))[..., None, None], nn.Linear(other[0], shape[0]))


# ------------------------------------------------------------------------------------------------------ drawing


@st.composite
def plans(draw: st.DrawFn, shape: Shape, most: int = 10) -> Plan:
    """Plans for samples of a shape, that begin with a layer that has units; what does not fit is left out."""
    first = "conv" if len(shape) == PICTURE else "linear"
    steps = [Step(first, (0,), draw_options(draw, first))]
    part, after = carried_out(steps[0], [], [shape])
    parts, shapes = [part], [shape, after]
    for _ in range(draw(st.integers(1, most))):
        step = draw_step(draw, steps, shapes)
        try:
            part, after = carried_out(step, parts, shapes)
            need(math.prod(after) <= LARGEST)
        except UnfitError:
            continue
        steps.append(step)
        parts.append(part)
        shapes.append(after)
    return Plan(shape, tuple(steps))


def draw_options(draw: st.DrawFn, name: str) -> tuple[tuple[str, Any], ...]:
    return tuple((option, draw(st.sampled_from(choices))) for option, choices in OPS[name].options.items())


def draw_step(draw: st.DrawFn, steps: list[Step], shapes: list[Shape]) -> Step:
    newest = len(shapes) - 1
    value = newest - draw(st.integers(0, min(2, newest - 1)))  # mostly what was made last; never the input itself
    kind = len(shapes[value])
    repeatable = [n for n, step in enumerate(steps) if can_repeat(step, shapes, shapes[value])]
    tieable = [n for n in repeatable if steps[n].op == "linear"]
    names = [name for name, each in OPS.items() if kind in each.kinds]
    names += ["again"] * bool(repeatable) + ["tied"] * bool(tieable)
    name = draw(st.sampled_from(names))
    if name in ("again", "tied"):
        chosen = draw(st.sampled_from(repeatable if name == "again" else tieable))
        return Step(name, (value,), (("step", chosen),))
    takes = [value]
    if OPS[name].takes == 2:
        takes.append(draw(st.sampled_from([n for n, shape in enumerate(shapes) if len(shape) == kind])))
    return Step(name, tuple(takes), draw_options(draw, name))


def can_repeat(step: Step, shapes: list[Shape], shape: Shape) -> bool:
    """Return whether a step takes one value of this shape and has no statistics, which would be shared."""
    statistics = any(value in ("batch", "instance with statistics") for _, value in step.options)
    return (
        len(step.takes) == 1 and shapes[step.takes[0]] == shape and not statistics and step.op not in ("again", "tied")
    )
