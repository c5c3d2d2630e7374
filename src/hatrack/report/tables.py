"""Tidy tables: the content of runs as rows for people, papers and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments import RunResult
from hatrack.experiments.metrics import average_score, forgetting, forward_transfer, learning_accuracy
from hatrack.experiments.request import as_text
from hatrack.objectives import ACCURACY, Metric
from hatrack.report.recognition import UNNAMED, recognised_so_far
from hatrack.report.runs import Runs, in_use
from hatrack.report.table import AFTER, METHOD, SEED, Kind, Table, kinds_of, mean_and_sd

__all__ = ["accuracy", "curves", "data", "forgetting_ratios", "is_constant", "sensitivity", "summary"]


def summary(runs: Runs) -> Table:
    """Make a row per method, the best first: accuracy, forgetting, transfer, time, and the proof by hashes."""
    rows: list[dict[str, Any]] = []
    for label in runs.labels:
        of = list(runs.by_label[label].items())
        matrices = {seed: _matrix(run) for seed, run in of}
        alone = {seed: runs.run("independent", seed) for seed in matrices}
        rows.append(
            {
                "method": label,
                "seeds": len(of),
                **_figures(runs, label, matrices),
                **recognised_so_far([run for _, run in of], runs.learned),
                **_transfer(runs, matrices, alone),
                **mean_and_sd("used", (in_use(run.capacity) for _, run in of)),
                "memory": max((run.memory for _, run in of if run.memory is not None), default=None),
                **mean_and_sd("seconds", (sum(run.seconds) for _, run in of)),
                "unchanged": sum(all(is_constant(run, task) for task in range(runs.learned)) for _, run in of),
            }
        )
    metric = runs.metric
    if metric is not None:
        rows.sort(key=lambda row: metric.rank(float(row[runs.average])))
    score, difference = kinds_of(metric)
    name, points = ("score", "") if metric is None else (metric.name, ", in points" if metric.is_share else "")
    direction = "" if metric is None or metric == ACCURACY else f"; {metric.direction}"
    lost = "points lost since each task was learned, on the average"
    lost = lost if difference is Kind.POINTS else "what got worse since each task was learned, on the average"
    columns = (
        METHOD,
        score.column(runs.average, _title_of(metric), f"mean {name} on all tasks after the last one{direction}"),
        *UNNAMED,
        difference.column("forgetting", "forgetting", lost),
        Kind.NUMBER.column("unchanged", "same to the bit", "runs in which no output on an earlier task ever changed"),
        Kind.RATIO.column("forgetting_ratio", "ρ", "0: as good as learning all tasks at once; −1: as bad as guessing"),
        score.column(runs.learning, "learning", f"mean {name} on every task right after learning it{direction}"),
        difference.column("backward_transfer", "backward", f"what later tasks did to earlier ones{points}"),
        difference.column(
            "forward_transfer", "forward", "what earlier tasks did for later ones, against learning alone"
        ),
        Kind.PERCENT.column("used", "in use", "share of the units, or weights, that the tasks use in the end"),
        Kind.NUMBER.column("memory", "samples kept", "samples of earlier tasks that are kept to learn from again"),
        Kind.SECONDS.column("seconds", "time", "for training and testing all tasks"),
        Kind.NUMBER.column("seeds", "seeds", "number of runs"),
    )
    known = [c for c in columns if c.kind is Kind.TEXT or any(row[c.key] is not None for row in rows)]
    known = [c for c in known if c.key != "unchanged" or runs.learned > 1]  # there is no earlier task
    note = runs.weak_ratios(last=True) if any(column.key == "forgetting_ratio" for column in known) else ""
    return Table("summary", "All methods", tuple(known), tuple(rows), note).noted(runs.note_on_times)


def accuracy(runs: Runs) -> Table:
    """Make a row per method, seed, task learned last and task tested."""
    names, accuracies = runs.task_names, runs.metric == ACCURACY
    rows = (
        {
            "method": label,
            "seed": seed,
            "after": after + 1,
            "task": task + 1,
            "name": names[task],
            **({} if accuracies else {"metric": run.tasks[task].metric.name}),
            "accuracy" if accuracies else "score": score.value,
            "loss": score.loss,
            "logits_sha256": score.logits_sha256,
        }
        for label, seed, run in runs.each()
        for after, row in enumerate(run.scores)
        for task, score in enumerate(row)
    )
    columns = (
        *(METHOD, SEED, AFTER, Kind.NUMBER.column("task"), Kind.TEXT.column("name")),
        *(() if accuracies else (Kind.TEXT.column("metric"),)),
        kinds_of(runs.metric)[0].column("accuracy") if accuracies else Kind.SCORE.column("score"),
        *(Kind.RATIO.column("loss"), Kind.TEXT.column("logits_sha256", "hash of the outputs")),
    )
    what = "Accuracy" if accuracies else "Score"
    return Table("accuracy", f"{what} on every task after every task", columns, tuple(rows), runs.note_on_losses)


def curves(runs: Runs) -> Table:
    """Make a row per method and number of tasks: average accuracy, forgetting and ρ of the tasks so far (Fig. 3)."""
    rows = []
    for label in runs.labels:
        for after in range(runs.learned):
            so_far = {seed: _matrix(run)[: after + 1] for seed, run in runs.by_label[label].items()}
            rows.append(
                {
                    "method": label,
                    "after": after + 1,
                    **_figures(runs, label, so_far),
                    **recognised_so_far([*runs.by_label[label].values()], after + 1),
                    "seeds": len(so_far),
                }
            )
    columns = (
        *(METHOD, AFTER),
        kinds_of(runs.metric)[0].column(runs.average, _title_of(runs.metric)),
        kinds_of(runs.metric)[1].column("forgetting"),
        Kind.RATIO.column("forgetting_ratio", "ρ"),
        *(column for column in UNNAMED if any(row[column.key] is not None for row in rows)),
        Kind.NUMBER.column("seeds"),
    )
    return Table("curves", "Figures of the tasks so far, after every task", columns, tuple(rows), runs.weak_ratios())


def forgetting_ratios(runs: Runs) -> Table:
    """Make a row per method with ρ^{≤t}, a column per t, as the papers' tables 1, 3 and 6 have it."""
    rows = []
    for label in runs.labels:
        row: dict[str, Any] = {"method": label}
        for after in range(runs.learned):
            ratios = [runs.forgetting_ratio(label, seed, after) for seed in runs.by_label[label]]
            row |= mean_and_sd(f"after_{after + 1}", ratios)
        rows.append(row)
    known = [row for row in rows if any(value is not None for key, value in row.items() if key != "method")]
    known.sort(key=lambda row: -(row[f"after_{runs.learned}"] or 0.0))
    titles = (Kind.RATIO.column(f"after_{t}", f"ρ≤{t}") for t in range(1, runs.learned + 1))
    columns = (METHOD, *titles)
    return Table("forgetting-ratios", "Forgetting ratio after every task", columns, tuple(known), runs.weak_ratios())


def data(runs: Runs) -> Table:
    """Make a row per task: classes and numbers of samples (Table 2)."""
    one = runs.any
    sizes = ("classes", "train", "valid", "test")
    rows = tuple(
        {"task": number, "name": name, "metric": task.metric.name, **{key: getattr(task, key) for key in sizes}}
        for number, (task, name) in enumerate(zip(one.tasks, runs.task_names, strict=False), start=1)
    )
    numbers = [Kind.NUMBER.column(key) for key in sizes]
    if runs.metric != ACCURACY:
        numbers = [Kind.TEXT.column("metric"), Kind.NUMBER.column("classes", "outputs"), *numbers[1:]]
    return Table(
        "data", "The tasks", (Kind.NUMBER.column("task"), Kind.TEXT.column("name"), *numbers), rows, runs.note_on_tests
    )


def sensitivity(runs: Runs) -> Table:
    """Make a row per value of the one setting in which the runs of a method differ: accuracy and forgetting (Fig. 4).

    Raises:
        InputError: no method was run with several values of one setting, or one differs in several settings.
    """
    configs: dict[str, list[Mapping[str, Any]]] = {}
    for _, _, run in runs.each():
        configs.setdefault(run.method, []).append(run.config)
    varied = {key for of in configs.values() for key in of[0] if len({repr(one.get(key)) for one in of}) > 1}
    if len(varied) != 1:
        found = f"these differ in {', '.join(sorted(varied))}" if varied else "these do not differ"
        raise InputError(f"sensitivity is about runs that differ in one setting, such as s_max; {found}")
    key = varied.pop()
    by_label = {row["method"]: row for row in summary(runs).rows}
    rows = []
    for label, of in runs.by_label.items():
        run = next(iter(of.values()))
        if label != run.method:
            figures = {k: v for k, v in by_label[label].items() if k.startswith(("average", "forgetting"))}
            rows.append({"method": run.method, key: _plain(run.config.get(key)), **figures})
    rows.sort(key=lambda row: (row["method"], isinstance(row[key], str), row[key]))
    columns = (
        *(METHOD, Kind.NUMBER.column(key), kinds_of(runs.metric)[0].column(runs.average, _title_of(runs.metric))),
        kinds_of(runs.metric)[1].column("forgetting"),
    )
    return Table("sensitivity", f"Sensitivity to {key}", columns, tuple(rows))


def _plain(value: Any) -> float | str:
    """Return the value of a setting as a number, or as the text that sets it."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else as_text(value)


def is_constant(run: RunResult, task: int) -> bool:
    """Return whether the outputs on a task stayed the same to the bit from when it was learned to the end."""
    column = [row[task].logits_sha256 for row in run.scores[task:]]
    return all(one == next_one for one, next_one in pairwise(column))


def _title_of(metric: Metric | None) -> str:
    """Return the title of the column of a metric, with its direction where that could be doubted."""
    if metric is None:
        return "score"
    return metric.name if metric.is_share else f"{metric.name} ({metric.direction})"


def _matrix(run: RunResult) -> list[list[float]]:
    return [[score.value for score in row] for row in run.scores]


def _figures(runs: Runs, label: str, matrices: Mapping[int, Sequence[Sequence[float]]]) -> dict[str, float | None]:
    """Return score, forgetting and forgetting ratio of the tasks so far, given the scores of every seed."""
    metric = runs.metric
    if metric is None:
        return {key: None for each in (runs.average, "forgetting", "forgetting_ratio") for key in (each, f"{each}_sd")}
    lost = (forgetting(matrix, larger_is_better=metric.larger_is_better) for matrix in matrices.values())
    ratios = (runs.forgetting_ratio(label, seed, len(matrix) - 1) for seed, matrix in matrices.items())
    return {
        **mean_and_sd(runs.average, map(average_score, matrices.values())),
        **mean_and_sd("forgetting", lost if runs.learned > 1 else [None]),
        **mean_and_sd("forgetting_ratio", ratios),
    }


def _transfer(
    runs: Runs, matrices: Mapping[int, Sequence[Sequence[float]]], alone: Mapping[int, RunResult | None]
) -> dict[str, float | None]:
    """Return the score right after learning, backward and forward transfer, given the scores of every seed."""
    metric = runs.metric
    keys = (runs.learning, "backward_transfer", "forward_transfer")
    if metric is None:
        return {key: None for each in keys for key in (each, f"{each}_sd")}
    larger = metric.larger_is_better

    def forward(matrix: Sequence[Sequence[float]], alone: RunResult | None) -> float | None:
        if alone is None:
            return None
        own = [alone.scores[task][task].value for task in range(len(matrix))]
        return forward_transfer(matrix, own, larger_is_better=larger)

    values = matrices.values()
    return {
        **mean_and_sd(runs.learning, map(learning_accuracy, values)),
        **mean_and_sd(
            "backward_transfer",
            [None] if runs.learned < 2 else (0.0 - forgetting(each, larger_is_better=larger) for each in values),
        ),
        **mean_and_sd("forward_transfer", (forward(matrices[seed], alone[seed]) for seed in matrices)),
    }
