"""Networks in which some parameters are untrained: miniatures of how pretrained networks are adapted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH, TOKENS = 12, 5


class Encoder(nn.Module):
    """A pretrained part: embeddings, positions, attention and a norm, over tokens ``(N, 5)``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, WIDTH), nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.positions[: x.shape[1]]
        q, k, v = self.query(h), self.key(h), self.value(h)
        h = self.norm(h + (q @ k.transpose(1, 2) / 4).softmax(-1) @ v)
        return h + self.adapt(self.down(torch.relu(self.up(h))))

    def adapt(self, x: Tensor) -> Tensor:
        return x


class LoRA(nn.Module):
    """A dense layer that stays as it is, and a product of two small ones beside it."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.b(self.a(x))


class Adapted(Encoder):
    """An encoder with an adapter, a bottleneck whose result is added."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.into, self.out_of = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def adapt(self, x: Tensor) -> Tensor:
        return x + self.out_of(torch.relu(self.into(x)))


class Scaled(Encoder):
    """An encoder with learned scales, as IA3 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def adapt(self, x: Tensor) -> Tensor:
        return x * self.scale


class Mean(nn.Module):
    """Features of an encoder: means over tokens, and a trained layer behind them if asked for."""

    def __init__(self, encoder: Encoder, width: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.out = None if width is None else nn.Linear(WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x).mean(1)
        return h if self.out is None else torch.relu(self.out(h))


def lora() -> nn.Module:
    encoder = Encoder().requires_grad_(False)
    encoder.query, encoder.value, encoder.up = LoRA(encoder.query), LoRA(encoder.value), LoRA(encoder.up)
    return Mean(encoder)


def only_biases() -> nn.Module:
    encoder = Encoder().requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return Mean(encoder)


ADAPTED: dict[str, Callable[[], nn.Module]] = {
    "lora": lora,
    "adapter": lambda: Mean(Adapted()),
    "layer behind": lambda: Mean(Encoder().requires_grad_(False), 16),
    "biases": only_biases,
    "scales": lambda: Mean(Scaled()),
    "nothing trained": lambda: Mean(Encoder()).requires_grad_(False),
}
"""Ways to adapt a pretrained encoder, from those that have units of their own to those that have nothing to learn."""

WITHOUT_UNITS = ("biases", "scales", "nothing trained")


def tokens(samples: int, seed: int = 0) -> Tensor:
    return torch.randint(20, (samples, TOKENS), generator=torch.Generator().manual_seed(seed))


def untrain_some(network: nn.Module, share: float, seed: int) -> list[str]:
    """Turn off a random share of the parameters of a network, whole modules and single ones; return their names."""
    generator = torch.Generator().manual_seed(seed)
    for module in list(network.modules())[1:]:
        if float(torch.rand((), generator=generator)) < share / 2:
            module.requires_grad_(False)
    for parameter in network.parameters():
        if float(torch.rand((), generator=generator)) < share / 2:
            parameter.requires_grad_(False)
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
