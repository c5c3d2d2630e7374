"""Well-known architectures in small, with the idioms of their official code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from support.zoo import IMAGE, Architecture, pooled


def drop_path(x: Tensor, share: float, training: bool) -> Tensor:
    """Stochastic depth, as timm has it."""
    if share == 0.0 or not training:
        return x
    kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - share)
    return x * kept.div_(1 - share)


class ChannelsNorm(nn.Module):
    """ConvNeXt's layer norm, for channels first or last."""

    def __init__(self, width: int, channels_first: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        if not self.channels_first:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-6)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), ChannelsNorm(width)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width)
        self.gamma = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        h = self.gamma * self.pwconv2(self.act(self.pwconv1(h)))
        return x + drop_path(h.permute(0, 3, 1, 2), 0.1, self.training)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass through, and both halves are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            *(nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)),
        )

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        out = torch.cat((one, self.branch(other)), dim=1)
        batch, channels, height, width = out.size()
        out = torch.transpose(out.view(batch, 2, channels // 2, height, width), 1, 2).contiguous()
        return out.view(batch, -1, height, width)


class CBAM(nn.Module):
    """Attention over channels, then over places; the latter reads the mean and the largest of all channels."""

    class Channels(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))

        def forward(self, x: Tensor) -> Tensor:
            size = (x.size(2), x.size(3))
            scale = self.mlp(F.avg_pool2d(x, size, stride=size)) + self.mlp(F.max_pool2d(x, size, stride=size))
            return x * torch.sigmoid(scale).unsqueeze(2).unsqueeze(3).expand_as(x)

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
            return x * torch.sigmoid(self.conv(pooled))

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.channels, self.places = self.Channels(width), self.Places()

    def forward(self, x: Tensor) -> Tensor:
        return self.places(self.channels(x))


class BlurPool(nn.Module):
    """A fixed filter before subsampling, from anti-aliased networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", (row[:, None] * row[None, :])[None, None].repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filter, stride=2, groups=x.shape[1])


class StandardizedConv2d(nn.Conv2d):
    """Big Transfer's convolution, whose kernels have mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WindowAttention(nn.Module):
    """Swin's attention within windows, shifted by a roll, with a table of relative positions."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.table = nn.Parameter(0.1 * torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        between = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("index", between[0] * (2 * window - 1) + between[1])
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        size = self.window
        h = torch.roll(self.norm(x), shifts=(-self.shift, -self.shift), dims=(1, 2))
        h = h.view(batch, height // size, size, width // size, size, channels)
        h = h.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size * size, channels)
        q, k, v = (
            self.qkv(h).reshape(-1, size**2, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(size**2, size**2, -1).permute(2, 0, 1).contiguous()
        h = ((scores + bias.unsqueeze(0)).softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, size**2, channels)
        h = self.proj(h).view(batch, height // size, width // size, size, size, channels)
        h = h.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, height, width, channels)
        return x + drop_path(torch.roll(h, shifts=(self.shift, self.shift), dims=(1, 2)), 0.1, self.training)


class Swin(nn.Module):
    def __init__(self, width: int = 18) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, 2)
        self.blocks = nn.Sequential(WindowAttention(width, 6, 2, 0), WindowAttention(width, 6, 2, 1))
        self.merge, self.norm = nn.Linear(4 * width, 16, bias=False), nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        corners = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        return self.merge(self.norm(torch.cat(corners, -1))).mean((1, 2))


class RootMeanSquare(nn.Module):
    """LLaMA's norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed.type_as(x) * self.weight


class CausalAttention(nn.Module):
    """nanoGPT's, with a norm of queries and keys within each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = RootMeanSquare(width // heads), nn.LayerNorm(width // heads)
        self.register_buffer("bias", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        q, k, v = (
            each.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for each in self.c_attn(x).split(self.width, dim=2)
        )
        scores = (self.q_norm(q) @ self.k_norm(k).transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        return self.c_proj((F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(batch, length, width))


class GPT(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(11, width), nn.Embedding(8, width), nn.Dropout(0.1)
        self.ln_1, self.attn = ChannelsNorm(width), CausalAttention(width, 6)
        self.ln_2, self.c_fc, self.c_proj = RootMeanSquare(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(0, tokens.size(1), dtype=torch.long, device=tokens.device)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        x = x + self.attn(self.ln_1(x))
        x = x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))
        return x[:, [-1], :].squeeze(1)


class TemporalBlock(nn.Module):
    """Of a temporal convolutional network: weight norm, and the future cut off."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv1d(inputs, outputs, 2, padding=dilation, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(outputs, outputs, 2, padding=dilation, dilation=dilation))
        self.cut, self.downsample = dilation, nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.conv1(x)[:, :, : -self.cut].contiguous()), 0.1, self.training)
        h = F.relu(self.conv2(h)[:, :, : -self.cut].contiguous())
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class SplineLayer(nn.Module):
    """Of a Kolmogorov–Arnold network, with weights of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 4))
        self.base = nn.Parameter(torch.randn(outputs, inputs) / 3)
        self.spline = nn.Parameter(torch.randn(outputs, inputs, 4) / 3)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2)).view(x.size(0), -1)
        return F.linear(F.silu(x), self.base) + F.linear(bumps, self.spline.view(len(self.spline), -1))


class Experts(nn.Module):
    """A soft mixture, whose shares all tasks use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(6, 20), nn.Linear(20, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 14)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        shares = F.softmax(self.gate(x), dim=-1)
        return torch.sum(shares.unsqueeze(-1) * torch.stack([expert(x) for expert in self.experts], dim=1), dim=1)


MODELS = {
    "convnext": Architecture(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 12, 2, 2), ChannelsNorm(12, channels_first=True), ConvNeXtBlock(12), ConvNeXtBlock(12)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), ChannelsNorm(12)),
        ),
        IMAGE,
    ),
    "shufflenet-v2": Architecture(
        lambda: pooled(nn.Conv2d(2, 16, 3, padding=1), ShuffleUnit(16), ShuffleUnit(16), nn.Conv2d(16, 12, 1)), IMAGE
    ),
    "cbam-blur-pool": Architecture(
        lambda: pooled(
            *(nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), CBAM(), BlurPool(12)),
            *(nn.Conv2d(12, 14, 3), nn.ReLU(inplace=True)),
        ),
        IMAGE,
    ),
    "big-transfer": Architecture(
        lambda: pooled(
            *(StandardizedConv2d(2, 12, 3, bias=False), nn.GroupNorm(3, 12), nn.ReLU(inplace=True)),
            *(StandardizedConv2d(12, 12, 3, groups=2), nn.ReLU(inplace=True)),
        ),
        IMAGE,
    ),
    "swin": Architecture(Swin, IMAGE),
    "gpt": Architecture(GPT, None),
    "temporal-convolutions": Architecture(
        lambda: nn.Sequential(TemporalBlock(2, 12, 1), TemporalBlock(12, 12, 2), nn.Flatten()), (2, 8)
    ),
    "splines": Architecture(lambda: nn.Sequential(SplineLayer(6, 20), SplineLayer(20, 14)), (6,)),
    "experts": Architecture(Experts, (6,)),
}
