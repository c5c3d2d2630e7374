"""Results of any size, without training."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from hatrack.experiments import RunResult, Status, TaskHistory, TaskSummary
from hatrack.experiments.recognition import Recognition
from hatrack.recognition import Confusion
from hatrack.train import Score

METHODS = ("hat", "pmask", "packnet", "wsn", "ewc", "si", "mas", "lwf", "er", "derpp", "gem", "sgd", "joint", "random")
MASKED = ("hat", "pmask", "packnet", "wsn")


def synthetic(
    method: str, seed: int, tasks: int, *, names: str = "task-{}", epochs: int = 5, classes: int = 2
) -> RunResult:
    """A finished run: methods with masks keep everything to the bit, others lose a point per further task."""
    draw = random.Random(f"{method} {seed}")
    keeps = method in (*MASKED, "random")
    start = [0.5 if method == "random" else 0.9 + 0.05 * draw.random() for _ in range(tasks)]

    def cell(row: int, task: int) -> Score:
        lost = 0.0 if keeps else 0.01 * (row - task)
        bits = f"{method}{seed}{task}" if keeps else f"{method}{seed}{task}{row}"
        return Score(0.3, round(start[task] - lost, 4), f"{random.Random(bits).getrandbits(256):064x}")

    def history(task: int) -> TaskHistory:
        share = (task + 1) / (tasks + 1)
        masked = method in MASKED
        capacity = {"groups": {"one": share, "two": share / 2}, "units": share, "weights": share, "parameters": 9}
        curve = tuple(0.5 + 0.4 * epoch / epochs for epoch in range(epochs))
        return TaskHistory(capacity if masked else None, curve, curve, curve, (share,) * epochs if masked else ())

    reuse = tuple(tuple(1.0 if i == j else 0.4 for j in range(tasks)) for i in range(tasks))
    return RunResult(
        experiment="split-mnist",
        method=method,
        seed=seed,
        command=f"hatrack run split-mnist --method {method} --seed {seed}",
        config={"lr": 0.05, "hidden": [200, 200], **({"s_max": 400.0} if method == "hat" else {})},
        tasks=tuple(TaskSummary(names.format(index + 1), classes, 100, 20, 50) for index in range(tasks)),
        scores=tuple(tuple(cell(row, task) for task in range(row + 1)) for row in range(tasks)),
        capacity=history(tasks - 1).capacity,
        epochs=(epochs,) * tasks,
        seconds=(2.0,) * tasks,
        environment={"torch": "2.6", "threads": 1, "device": "cpu"},
        status=Status.FINISHED,
        data=("mnist: idx files",),
        history=tuple(history(task) for task in range(tasks)),
        reuse=reuse if method in MASKED else None,
    )


def recognised(run: RunResult) -> RunResult:
    """The run as if its tasks had been recognised, too: of five samples of a class one is taken for the next class."""
    found = Recognition()
    classes = [task.classes for task in run.tasks]
    for learned in range(1, len(run.tasks) + 1):
        total = sum(classes[:learned])
        counts = 40 * torch.eye(total, dtype=torch.int64) + 10 * torch.eye(total, dtype=torch.int64).roll(1, 1)
        areas = tuple(0.9 + 0.01 * task for task in range(learned)) if learned > 1 else ()
        names = tuple(task.name for task in run.tasks[:learned])
        found = found.with_row(Confusion(names, tuple(classes[:learned]), counts, areas))
    return replace(run, recognition=found, config={**run.config, "infer": True})
