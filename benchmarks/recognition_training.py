"""Training that makes tasks recognisable: plain, in quarter turns, and by contrast.

python benchmarks/recognition_training.py FOLDER --data DATA [--runs plain,turned] [--seeds 100] [--epochs 14]
    [--tested-on test] [--out benchmarks/results/recognition_training.json]

FOLDER keeps the runs, split CIFAR-10 on the quarter AlexNet, 1,500 training and 500 validation samples a task, which
are made where they are missing and taken up where they were stopped. Their networks then recognise the validation
samples of all tasks, of which none was trained on and by which every task chose its best epoch, or the test samples.
Scores are normalised by the tasks' training samples where the name says "calibrated"; a mixture adds a score's
logarithm of the softmax over tasks, times a weight, to that of the tasks' probabilities by sums. The processor time is
that of the run, with what its recogniser learns and is asked after every task.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from recording import write_record
from torch import Tensor

from hatrack import Scorer, keep_freed_memory
from hatrack.backbones import QuarterTurns
from hatrack.experiments import RunRequest, prepare, run
from hatrack.functional import turned_logits
from hatrack.recognition.scores import fit_gaussians, mahalanobis
from hatrack.support.environment import describe_environment

HERE = Path(__file__).parent
COMMON = {
    "width": 0.25,
    "limit": 2000,
    "validation": 0.25,
    "tested_on": "validation",
    "infer": True,
    "momentum": 0.9,
    "lr": 0.02,
}
NO_DROPOUT = {"dropout_early": 0.0, "dropout_late": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "turned": {"rotations": 4},
    "plain-without-dropout": NO_DROPOUT,
    "turned-without-dropout": {**NO_DROPOUT, "rotations": 4},
    "contrasted-without-dropout": {**NO_DROPOUT, "rotations": 4, "contrastive": 0.7},
}
OF_A_TASK = (Scorer.DISTANCE, Scorer.MAX_LOGIT, Scorer.ENERGY)
WEIGHTS = (0.1, 0.3, 1.0)


def normalised(own: Tensor, found: Tensor) -> Tensor:
    """Return scores in standard deviations from the mean of the task's own."""
    return (found - own.mean()) / own.std()


def likelihood(features: Tensor, head: torch.nn.Linear) -> Tensor:
    """Return the largest mean over turns of the log-probability of a class in the picture's turn, ``(N,)``."""
    turns = QuarterTurns.turns
    said = turned_logits(features, head.weight, head.bias, turns).log_softmax(2).unflatten(2, (-1, turns))
    return said.diagonal(dim1=1, dim2=3).mean(2).amax(1)


def distances(own: Tensor, labels: Tensor, found: Tensor, turns: int) -> tuple[Tensor, Tensor]:
    """Return distances by a full covariance for each turn, added up over turns: of a task's own samples, of others."""
    total_own, total = torch.zeros(len(own)), torch.zeros(len(found))
    for mine, theirs in zip(own.chunk(turns, 1), found.chunk(turns, 1), strict=True):
        used = mine.abs().sum(0) > 0
        known = fit_gaussians(mine[:, used], labels)
        total_own = total_own + mahalanobis(mine[:, used], known)
        total = total + mahalanobis(theirs[:, used], known)
    return total_own, total


@torch.no_grad()
def scores_of(method: Any, stream: Any) -> dict[str, Any]:
    """Return shares of samples whose task, and task and class, are right, by score."""
    method.train_mode(False)
    net, parts = method.network, [task.test.load() for task in stream]
    x, y = (torch.cat(of) for of in zip(*parts, strict=True))
    task_of = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(labels) for _, labels in parts]))
    classes = torch.stack([torch.cat([net(p, task.name).argmax(1) for p in x.split(500)]) for task in stream], 1)
    everyone = torch.arange(len(y))
    found: dict[str, Any] = {"named": round(float((classes[everyone, task_of] == y).float().mean()), 4)}

    def note(name: str, table: Tensor) -> None:
        chosen = table.argmax(1)
        known = chosen == task_of
        both = known & (classes[everyone, chosen] == y)
        found[name] = {"task": round(float(known.float().mean()), 4), "both": round(float(both.float().mean()), 4)}
        print(name, found[name], flush=True)

    def asked(scorer: Scorer, calibrated: bool) -> Tensor:
        answers = [net.infer(part, scorer, calibrated=calibrated) for part in x.split(500)]
        order = [answers[0].tasks.index(task.name) for task in stream]
        return torch.cat([answer.scores for answer in answers])[:, order].double()

    sums = asked(Scorer.SUMS, True)
    note("sums", sums)
    tables = {
        f"{scorer.value}{', calibrated' if calibrated else ''}": asked(scorer, calibrated)
        for scorer in OF_A_TASK
        for calibrated in (False, True)
    }
    turns = QuarterTurns.turns if method.turns else 1
    full, likely, likely_calibrated = [], [], []
    for task in stream:
        state, (mine, labels) = net.tasks.named(task.name), task.train.load()
        own, theirs = (torch.cat([net.features(p, task.name) for p in part.split(500)]) for part in (mine, x))
        full.append(normalised(*distances(own, labels, theirs, turns)))
        if method.turns:
            of_own, of_all = likelihood(own, state.head), likelihood(theirs, state.head)
            likely.append(of_all)
            likely_calibrated.append(normalised(of_own, of_all))
    tables["mahalanobis, tied covariance, calibrated"] = torch.stack(full, 1).double()
    if likely:
        tables["log-probability of class and turn"] = torch.stack(likely, 1).double()
        tables["log-probability of class and turn, calibrated"] = torch.stack(likely_calibrated, 1).double()
    for name, table in tables.items():
        note(name, table)
    for name, table in tables.items():
        for weight in WEIGHTS:
            note(f"sums and {weight} of {name}", sums.log_softmax(1) + weight * table.log_softmax(1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--runs", type=lambda text: text.split(","), default=list(RUNS))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[100])
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--tested-on", choices=["validation", "test"], default="validation")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "recognition_training.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: list[dict[str, Any]] = (
        json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.exists() else []
    )
    for seed, name in itertools.product(arguments.seeds, arguments.runs):
        if any((row["seed"], row["run"]) == (seed, name) for row in rows):
            continue
        settings = {**COMMON, "epochs": arguments.epochs, "tested_on": arguments.tested_on, **RUNS[name]}
        folder = arguments.folder / f"{name}-{seed}"
        prepared = prepare(RunRequest("split-cifar10", "hat", seed, folder, arguments.data, settings))
        before = time.process_time()
        for _ in run(prepared):
            pass
        rows.append(
            {
                "run": name,
                "seed": seed,
                "settings": settings,
                "accuracy": [round(score.value, 4) for score in prepared.result.scores[-1]],
                "processor_seconds": round(time.process_time() - before),
                "scores": scores_of(prepared.method, prepared.stream),
            }
        )
        record = {
            "about": f"samples of the {arguments.tested_on} parts",
            "command": f"python benchmarks/{Path(__file__).name} FOLDER --data DATA --epochs {arguments.epochs}"
            f" --tested-on {arguments.tested_on}",
            "environment": {**describe_environment(torch.device("cpu")), "threads": 1},
            "rows": sorted(rows, key=lambda row: (row["seed"], list(RUNS).index(row["run"]))),
        }
        write_record(arguments.out, record)


if __name__ == "__main__":
    main()
