"""What public networks do that small examples do not: each keeps its units apart, and the law holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATNetwork, WeightMaskedNetwork, units
from hatrack.masks import Scores
from support.helpers import assert_poison_harmless, learn, logits
from support.marks import slow_unless

WIDTH, HEADS = 12, 3


class EfficientChannels(nn.Module):
    """ECA: a convolution along the channels, over their means; zeros or the other end go on at its ends."""

    def __init__(self, circular: bool = False) -> None:
        super().__init__()
        self.circular = circular
        self.conv = nn.Conv1d(1, 1, 3, padding=0 if circular else 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)).view(len(x), 1, -1)
        y = self.conv(F.pad(y, (1, 1), mode="circular") if self.circular else y)
        return x * y.view(len(x), -1, 1, 1).sigmoid().expand_as(x)


class StandardizedConv2d(nn.Conv2d):
    """Weight standardisation as timm has it, by a batch norm of the rows."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Images(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Conv2d(2, WIDTH, 3, padding=1), layer, nn.Conv2d(WIDTH, 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.after(self.layer(F.relu(self.before(x))))).mean((2, 3))


class Attention(nn.Module):
    """Attention by hand; its scores are mixed over heads, if asked for, by parameters or by a layer."""

    def __init__(self, heads: int, mixed: str = "") -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Parameter(torch.randn(heads, heads)) if mixed == "parameter" else None
        self.talk = nn.Linear(heads, heads) if mixed == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, WIDTH // self.heads)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.mT).softmax(-1)
        if self.mix is not None:
            scores = torch.einsum("bhij,hg->bgij", scores, self.mix)
        if self.talk is not None:
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


class SequencePooling(nn.Module):
    """CCT: tokens are weighed by a layer with one output."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.attention(x).softmax(1).mT @ x).squeeze(-2)


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * WIDTH**0.5 * self.scale


class Tokens(nn.Module):
    """Patches behind tokens and positions of their own, more than there are channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.enter, self.layer, self.out = nn.Linear(4, WIDTH), layer, nn.Linear(WIDTH, 14)
        self.tokens, self.positions = (nn.Parameter(torch.randn(1, n, WIDTH)) for n in (20, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.enter(x) + self.positions], 1)
        x = self.layer(x)
        return F.relu(self.out(x if x.dim() == 2 else x[:, 20:].mean(1)))


def vectors(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), layer, nn.Linear(WIDTH, 14), nn.ReLU())


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Merger(nn.Module):
    """Queries of its own, one for each token that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.queries = nn.LayerNorm(WIDTH), nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return ((self.queries @ x.mT).softmax(-1) @ x).mean(1)


class Covariance(nn.Module):
    """Products of channels, each with each, over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        covariance = torch.einsum("bnd,bne->bde", x, x) / x.shape[1]
        return self.out(x) * covariance.pow(2).mean((1, 2)).view(-1, 1, 1)


IMAGE, TOKENS, VECTOR = (2, 6, 6), (5, 4), (4,)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "efficient channel attention": (lambda: Images(EfficientChannels()), IMAGE, [WIDTH, 14]),
    "circular channel attention": (lambda: Images(EfficientChannels(circular=True)), IMAGE, [WIDTH, 14]),
    "standardised weights": (lambda: Images(StandardizedConv2d(WIDTH, WIDTH, 3, padding=1)), IMAGE, [WIDTH, WIDTH, 14]),
    "local response norm": (lambda: Images(nn.LocalResponseNorm(3)), IMAGE, [WIDTH, 14]),
    "synchronised batch norm": (lambda: Images(nn.SyncBatchNorm(WIDTH)), IMAGE, [WIDTH, 14]),
    "softmax over channels": (lambda: Images(nn.Softmax2d()), IMAGE, [WIDTH, 14]),
    "softmax": (lambda: vectors(nn.Softmax(-1)), VECTOR, [WIDTH, 14]),
    "softmin": (lambda: vectors(nn.Softmin(-1)), VECTOR, [WIDTH, 14]),
    "bilinear": (lambda: vectors(Squared()), VECTOR, [WIDTH, WIDTH, 14]),
    "a norm of tokens": (lambda: Tokens(RootMeanSquare()), TOKENS, [WIDTH, 14]),
    "pooling of a sequence": (lambda: Tokens(SequencePooling()), TOKENS, [WIDTH, 14]),
    "one head": (lambda: Tokens(Attention(1)), TOKENS, [WIDTH, WIDTH, 3 * WIDTH, 14]),
    "queries of its own": (lambda: Tokens(Merger()), TOKENS, [WIDTH, 14]),
    "covariance": (lambda: Tokens(Covariance()), TOKENS, [WIDTH, WIDTH, 14]),
    "heads mixed by parameters": (
        lambda: Tokens(Attention(HEADS, "parameter")),
        TOKENS,
        [HEADS, HEADS, WIDTH, WIDTH, 14],
    ),
    "heads mixed by a layer": (lambda: Tokens(Attention(HEADS, "layer")), TOKENS, [HEADS, HEADS, WIDTH, WIDTH, 14]),
}


def with_two_tasks(net: HATNetwork) -> dict[str, Tensor]:
    samples = {"a": learn(net, "a", 0)[0]}
    before = logits(net, samples["a"], "a")
    samples["b"] = learn(net, "b", 1)[0]
    assert torch.equal(logits(net, samples["a"], "a"), before)
    return samples


@pytest.mark.parametrize("name", slow_unless(lambda name: "head" not in name or name == "one head", CASES))
def test_units_are_kept_apart_and_the_law_holds(name: str) -> None:
    build, shape, sizes = CASES[name]
    torch.manual_seed(0)
    net = HATNetwork(build(), torch.zeros(2, *shape))
    assert sum(group.size for group in net.units.groups) >= sum(sizes)
    assert sorted(group.size for group in net.units.groups if group.size > 1) == sorted(sizes)
    samples = with_two_tasks(net)
    assert_poison_harmless(net, samples)
    compact = net.extract("a")
    expected = logits(net, samples["a"], "a")
    assert (compact(samples["a"]) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("circular", [False, True])
def test_a_convolution_along_channels_is_extracted_from_masks_of_weights(circular: bool) -> None:
    torch.manual_seed(0)
    net = WeightMaskedNetwork(Images(EfficientChannels(circular)), torch.zeros(2, *IMAGE), source=Scores(0.3))
    net.add_task("a", 3)
    with torch.no_grad():
        net.backbone.get_parameter("before.weight")[:2] = 0.0
    net.consolidate("a")
    x = torch.randn(5, *IMAGE)
    expected = logits(net, x, "a")
    assert (net.extract("a", x)(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 6))

    def forward(self, x: Tensor, context: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
        x = x if context is None else x + context.mul(2)
        return (x if scale is None else x * scale) @ self.weight


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_a_layer_is_called_with_and_without_arguments_by_name(order: tuple[int, ...]) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, WIDTH) for _ in range(3))
            self.layer = Optional()

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = F.relu(self.a(x)), F.relu(self.b(x)), F.relu(self.c(x))
            calls = [
                lambda: self.layer(a),
                lambda: self.layer(a, context=b),
                lambda: self.layer(scale=c, x=a),
                lambda: self.layer(a, b),
            ]
            return torch.stack([calls[number]() for number in order]).sum(0)

    torch.manual_seed(0)
    net = HATNetwork(Calls(), torch.zeros(2, 4), rules={"layer": units.shared_layer()})
    assert sorted(group.size for group in net.units.groups) == [6, WIDTH, WIDTH, WIDTH]
    assert_poison_harmless(net, with_two_tasks(net))
