"""Scores of masked features beside sums, alone and mixed: split Fashion-MNIST, on validation parts.

python benchmarks/recognition_scores.py FOLDER [--seed 0] [--epochs 3]
    [--out benchmarks/results/recognition_scores.json]

FOLDER keeps the network, made with `recognition_of_sums.py`'s settings on 85 % of the training samples where it is
missing; the other 15 % are what is measured on. Scores count in standard deviations from the task's training samples. A
mixture adds the logarithm of the softmax of a score over tasks, times a weight, to that of the tasks' probabilities by
sums.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from recognition_of_sums import backbone, train
from torch import Tensor

from hatrack import Learner, Scorer
from hatrack.data import load_dataset
from hatrack.recognition import RandomFilters
from hatrack.recognition.scores import (
    compose,
    fit_gaussians,
    fit_principal_space,
    mahalanobis,
    relative_mahalanobis,
    virtual_logit,
)
from hatrack.streams import StreamOptions, TaskStream, class_stream, consecutive_groups
from hatrack.support.environment import describe_environment

DIMENSIONS, WEIGHTS = (0.1, 0.3, 0.6), (0.05, 0.2, 0.8)


def stream_of(seed: int) -> TaskStream:
    images = load_dataset("fashion-mnist")
    pairs = [(images, group) for group in consecutive_groups(images.class_names, 2)]
    return class_stream(pairs, StreamOptions(seed, validation=0.15), name="fashion-mnist-pairs")


@torch.no_grad()
def scores_of(net: Any, stream: TaskStream, x: Tensor) -> tuple[dict[str, Tensor], Tensor, list[float]]:
    """Return scores of samples by every task, ``(N, T)`` by name; its classes, ``(N, T)``; mean largest logits."""
    found: dict[str, list[Tensor]] = {}
    classes, sizes = [], []

    def add(name: str, own: Tensor, all_of_them: Tensor) -> None:
        found.setdefault(name, []).append((all_of_them - own.mean()) / own.std())

    for task in stream:
        state, (own, labels) = net.tasks.named(task.name), task.train.load()
        here, there = (torch.cat([net.masking.features(p, state) for p in part.split(2000)]) for part in (own, x))
        used = here.abs().sum(0) > 0
        answers, logits = state.classify(here), state.classify(there)
        here, there = here[:, used], there[:, used]
        add("max-logit", answers.amax(1), logits.amax(1))
        known = fit_gaussians(here, labels)
        add("mahalanobis, tied covariance", mahalanobis(here, known), mahalanobis(there, known))
        relative = (relative_mahalanobis(here, known), relative_mahalanobis(there, known))
        add("relative mahalanobis, own background", *relative)
        for share in DIMENSIONS:
            size = int(share * int(used.sum()))
            space = fit_principal_space(here, answers, state.head.weight[:, used], state.head.bias, size)
            add(
                f"ViM, {share} of the dimensions",
                *(virtual_logit(f, a, space) for f, a in ((here, answers), (there, logits))),
            )
        classes.append(logits.argmax(1))
        sizes.append(float(answers.amax(1).mean()))
        print(task.name, flush=True)
    return {name: torch.stack(of, 1).double() for name, of in found.items()}, torch.stack(classes, 1), sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stream, path = stream_of(arguments.seed), arguments.folder / f"f-{arguments.seed}.hat"
    learner = Learner.load(path, backbone()) if path.exists() else train(path, stream, arguments.seed, arguments.epochs)
    net: Any = learner.network.eval()
    parts = [task.valid.load() for task in stream]
    x, y = (torch.cat(of) for of in zip(*parts, strict=True))
    task_of = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(y) for _, y in parts]))
    scores, classes, sizes = scores_of(net, stream, x)
    for task in stream:
        net.calibrate(task.name, *task.train.load(), feature_map=RandomFilters(seed=arguments.seed))
    answers = {scorer: [net.infer(part, scorer) for part in x.split(1000)] for scorer in (Scorer.SUMS, Scorer.DISTANCE)}
    order = [answers[Scorer.SUMS][0].tasks.index(task.name) for task in stream]
    sums, distance = (torch.cat([each.scores for each in of])[:, order].double() for of in answers.values())
    found: dict[str, dict[str, float]] = {}

    def note(name: str, table: Tensor) -> None:
        chosen = table.argmax(1)
        known = chosen == task_of
        both = known & (classes.gather(1, chosen.unsqueeze(1)).squeeze(1) == y)
        found[name] = {"task": round(float(known.float().mean()), 4), "both": round(float(both.float().mean()), 4)}
        print(name, found[name], flush=True)

    note("sums", sums)
    note("distance, diagonal covariance", distance)
    for name, table in scores.items():
        note(name, table)
    for name, table in scores.items():
        for weight in WEIGHTS:
            note(f"sums and {weight} of {name}", sums + weight * torch.log_softmax(table, 1))
    logits = torch.cat([torch.stack([net(p, task.name).amax(1) for task in stream], 1) for p in x.split(2000)]).detach()
    scaled = logits / torch.tensor(sizes)
    note("TPL's soft maximum of max-logit and sums", compose(scaled.double(), sums, (1.0, 1.0)))
    report = {"seed": arguments.seed, "epochs": arguments.epochs, "samples": len(y), "scores": found}
    text = json.dumps(
        {**report, "environment": describe_environment(torch.device("cpu"))}, indent=2, ensure_ascii=False
    )
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
