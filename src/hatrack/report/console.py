"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.experiments import Comparison, Reproduction, RunResult, Verification
from hatrack.experiments.plan import REFERENCES
from hatrack.experiments.recorded import TaskAgain
from hatrack.experiments.statistics import Spread, spread
from hatrack.experiments.tuning import Candidate, best, tied
from hatrack.objectives import ACCURACY, Classification, Metric
from hatrack.objectives.metrics import readable
from hatrack.report.conditions import conditions, learned_test_samples
from hatrack.report.table import joined
from hatrack.report.weak_ratios import weak_ratios

__all__ = [
    "accuracy_table",
    "comparison_table",
    "forgetting_line",
    "kinds_line",
    "reproduction_table",
    "share_in_use",
    "tuning_table",
    "verification_table",
]

# Sky blue, yellow and vermilion of Okabe and Ito's palette can be told apart with any colour vision.
_KEPT, _FADED, _LOST = "#56b4e9", "#f0e442", "#d55e00"


def accuracy_table(result: RunResult, title: str | None = None) -> Table:
    """Show the matrix of scores, such as accuracies: a row after every task, a column for every task, and the proof.

    An entry's colour says what became of it since the task was learned: kept, up to two points lost (0.02
    of a metric that is no share), or more. The last
    row says whether the test logits of a column stayed the same to the bit, by their hashes.

    Args:
        result: a run with at least one task learned.
        title: above the table; by default experiment, method and seed.
    """
    learned = len(result.scores)
    title = title or f"{result.experiment} · {result.method} · seed {result.seed}"
    table = Table(
        title=f"{title}\n[dim]{_what(result)}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("after task", no_wrap=True)
    for index in range(learned):
        table.add_column(str(index + 1), justify="right", no_wrap=True, min_width=4)
    for index, row in enumerate(result.scores):
        cells = [
            Text(_cell(score.value, result.tasks[task].metric), _colour(result, index, task))
            for task, score in enumerate(row)
        ]
        table.add_row(f"{index + 1} {result.tasks[index].name}", *cells, end_section=index == learned - 1)
    table.add_row("logits", *(Text(word, style) for word, style in map(_proof, _hash_columns(result))))
    return table


def forgetting_line(result: RunResult) -> str:
    """Say in one sentence: the average score, forgetting, and the share of units or weights in use.

    Where tasks have different metrics, it has both for every metric. For methods with a memory, how much is kept.
    """
    figures = result.metrics()
    by_metric = figures.get("by_metric", {"": figures})
    metrics = {task.metric.name: task.metric for task in result.tasks}
    parts = []
    for name, of in by_metric.items():
        metric = metrics[name] if name else result.metric
        if metric is not None and of["average_score"] is not None:
            parts.append(_averages(metric, of["average_score"], of["forgetting"]))
    line = "; ".join(parts)
    both, task = (figures[key] for key in ("class_incremental_accuracy", "task_recognised"))
    if both is not None and task is not None:
        line = f"{line}; with no task named {both:.2%}, task recognised {task:.2%}"
    if result.memory is not None:
        line = f"{line}, {_samples(result.memory)} samples of earlier tasks kept"
    capacity = figures["capacity"]
    return line if capacity is None else f"{line}, {share_in_use(capacity)}"


def _averages(metric: Metric, average: float, lost: float | None) -> str:
    """Say the average score, and forgetting; a dash where nothing was learned after the only task."""
    if metric.is_share:
        said = "–" if lost is None else f"{100 * lost:.2f} points"
        return f"average {metric.name} {average:.2%}, forgetting {said}"
    said = "–" if lost is None else readable(lost)
    return f"average {metric.name} {readable(average)} ({metric.direction}), forgetting {said}"


def _what(result: RunResult) -> str:
    """Say what the numbers of a matrix are."""
    return ", ".join(
        f"{metric.name} in %" if metric.is_share else f"{metric.name} ({metric.direction})"
        for metric in dict.fromkeys(task.metric for task in result.tasks)
    )


def _cell(value: float, metric: Metric) -> str:
    return f"{100 * value:.1f}" if metric.is_share else readable(value)


def share_in_use(capacity: Mapping[str, Any]) -> str:
    """Say the share of units in use, or of weights where masks are about weights."""
    if capacity["units"] is None:
        return f"{capacity['weights']:.0%} of the weights in use"
    return f"{capacity['units']:.0%} of the units in use"


def verification_table(verification: Verification) -> Table:
    """Show the findings of :func:`hatrack.experiments.recorded`, task by task."""
    how = "logits, to the bit" if verification.bitwise else "logits, to 1e-5"
    table = Table("task", "recorded", "now", how, "unchanged during the run", box=SIMPLE)
    recognised = any(verdict.recognition is not None for verdict in verification.verdicts)
    for title in ("unnamed, recorded", "now", "recognised") if recognised else ():
        table.add_column(title)
    for verdict in verification.verdicts:
        agrees = Text("agree", _KEPT) if verdict.agrees else Text("differ", _LOST)
        constant = Text("yes", _KEPT) if verdict.constant else Text("no", _FADED)
        found = verdict.recognition
        more: tuple[Text | str, ...] = ()
        if found is not None:
            word = Text("agree", _KEPT) if found.agrees else Text("differ", _LOST)
            before = "–" if found.recorded is None else ACCURACY.say(found.recorded, 2)
            more = (before, ACCURACY.say(found.share, 2), Text("–") if found.recorded is None else word)
        table.add_row(verdict.task, *_both(verdict.metric, verdict.recorded, verdict.score), agrees, constant, *more)
    return table


def reproduction_table(reproduction: Reproduction) -> Table:
    """Compare a run with the same run made again, task by task."""
    recognised = any(task.same_recognition is not None for task in reproduction.tasks)
    table = Table("task", "recorded", "again", "logits, to the bit", *["recognised"] * recognised, box=SIMPLE)
    for task in reproduction.tasks:
        words = [Text("same", _KEPT) if same else Text("differ", _LOST) for same in _sameness(task)]
        table.add_row(task.task, *_both(task.metric, task.recorded, task.again), *words)
    return table


def _sameness(task: TaskAgain) -> list[bool]:
    """Return whether the logits of a task are the same, and, if that was measured, how many samples are recognised."""
    return [task.same_bits, *([] if task.same_recognition is None else [task.same_recognition])]


def _both(metric: Metric, first: float, second: float) -> tuple[str, str]:
    return metric.say(first, 2), metric.say(second, 2)


def _colour(result: RunResult, row: int, task: int) -> str:
    lost = -result.tasks[task].metric.gain(result.scores[row][task].value, result.scores[task][task].value)
    if row == task:
        return "bold"
    return _KEPT if lost <= 0 else _FADED if lost <= 0.02 else _LOST


def _hash_columns(result: RunResult) -> list[list[str]]:
    learned = len(result.scores)
    return [[result.scores[row][task].logits_sha256 for row in range(task, learned)] for task in range(learned)]


def _proof(hashes: Sequence[str]) -> tuple[str, str]:
    if len(hashes) == 1:
        return "new", "dim"
    return ("same", _KEPT) if len(set(hashes)) == 1 else ("diff", _LOST)


def comparison_table(comparison: Comparison) -> Table:
    """Make a row per method, the best first: accuracy, forgetting and forgetting ratio after the last task.

    The score of other metrics stands in the place of the accuracy, with its direction. Where tasks have different
    metrics, there are score and forgetting of each, over its tasks alone, and methods are in the plan's order.
    """
    table = Table(
        "method",
        title=f"{comparison.experiment}, after the last task; mean ± standard deviation over seeds",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
    )
    different = _different_metrics(comparison)
    columns = _columns_by_metric(comparison, different) if different else _columns(comparison)
    unnamed = {method: comparison.spread(method, "class_incremental_accuracy") for method in comparison.methods}
    if any(found is not None for found in unnamed.values()):
        columns.insert(1, ("no task named, %", lambda method: _spread(unnamed[method], True)))
    kept = {
        method: max((run.memory for run in _finished(comparison, method) if run.memory is not None), default=None)
        for method in comparison.methods
    }
    if any(samples is not None for samples in kept.values()):
        columns.append(("samples kept", lambda method: _samples(kept[method])))
    for title in (*(title for title, _ in columns), "seeds"):
        table.add_column(title, justify="right")
    for method in comparison.methods if different else _ranked(comparison):
        finished = len(_finished(comparison, method))
        failed = sum(name == method for name, _ in comparison.failures)
        seeds = f"{finished} of {len(comparison.seeds)}" + (f", {failed} failed" if failed else "")
        table.add_row(method, *(cell(method) for _, cell in columns), Text(seeds))
    seen = learned_test_samples(run for method in comparison.methods for run in _finished(comparison, method))
    if different:
        names = ", ".join(metric.name for metric in different)
        why = (
            f"tasks have different metrics ({names}), of which no mean means anything; the score of every task: "
            "hatrack report FOLDER --format markdown --table accuracy"
        )
        table.caption = joined(seen, why) if seen else why
    elif note := joined(_note(comparison), _conditions(comparison), seen):
        table.caption = note
    return table


def _conditions(comparison: Comparison) -> str:
    """Say in which settings methods differ that are not their own, and whether they can be ranked."""
    finished = [(method, runs[0]) for method in comparison.methods if (runs := _finished(comparison, method))]
    return conditions(finished, [method for method in comparison.methods if method not in REFERENCES])


def _note(comparison: Comparison) -> str:
    """Say where the forgetting ratio says little."""
    finished = {name: _finished(comparison, name) if name in comparison.methods else [] for name in REFERENCES}
    joint, random = ({run.seed: run for run in of} for of in finished.values())
    return weak_ratios(((joint[seed], random[seed]) for seed in joint if seed in random), last=True)


_Column = tuple[str, Callable[[str], str]]
"""Title of a column, and its text for a method."""


def _different_metrics(comparison: Comparison) -> tuple[Metric, ...]:
    """Return the metrics of the tasks in their order where there are several; none otherwise."""
    run = next((run for run in comparison.results.values() if run.metrics().get("by_metric")), None)
    return () if run is None else tuple(dict.fromkeys(task.metric for task in run.tasks))


def _ranked(comparison: Comparison) -> list[str]:
    """Return the methods, the best first, those without a result last."""
    metric = comparison.metric
    scores = {method: comparison.spread(method, "average_score") for method in comparison.methods}

    def rank(method: str) -> tuple[bool, float]:
        found = scores[method]
        return found is None, 0.0 if found is None or metric is None else metric.rank(found.mean)

    return sorted(comparison.methods, key=rank)


def _columns(comparison: Comparison) -> list[_Column]:
    """Return the columns of scores where all tasks have one metric."""
    metric = comparison.metric or ACCURACY
    score, lost = _headings(metric)

    def said(figure: str, percent: bool, form: Callable[[float], str] | None = None) -> Callable[[str], str]:
        return lambda method: _spread(comparison.spread(method, figure), percent, form)

    return [
        (score, said("average_score", metric.is_share)),
        (lost, said("forgetting", metric.is_share)),
        ("forgetting ratio", said("forgetting_ratio", False, "{:.3f}".format)),
    ]


def _columns_by_metric(comparison: Comparison, different: Sequence[Metric]) -> list[_Column]:
    """Return score and forgetting of every metric, over its tasks alone."""

    def said(metric: Metric, figure: str) -> Callable[[str], str]:
        def say(method: str) -> str:
            of = [run.metrics()["by_metric"][metric.name][figure] for run in _finished(comparison, method)]
            values = [value for value in of if value is not None]
            return _spread(spread(values) if values else None, metric.is_share)

        return say

    return [
        (title, said(metric, figure))
        for metric in different
        for title, figure in zip(_headings(metric, metric.name), ("average_score", "forgetting"), strict=True)
    ]


def _finished(comparison: Comparison, method: str) -> list[RunResult]:
    """Return the finished runs of a method."""
    return [run for seed in comparison.seeds if (run := comparison.run(method, seed)) is not None]


def _samples(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def kinds_line(result: RunResult) -> str:
    """Say which tasks of one's own were taken for something else than classes, and how to choose; empty where none was.

    Nothing is said where a setting had chosen.
    """
    if not result.sources or result.config.get("target") is not None:
        return ""
    kinds: dict[str, list[str]] = {}
    for task in result.tasks:
        if task.objective is not None and task.objective["kind"] != Classification.kind:
            kinds.setdefault(task.objective["kind"], []).append(task.name)
    said = [f"{', '.join(names)}: learned as {kind}" for kind, names in kinds.items()]
    return f"{'; '.join(said)} (to choose, `target=classes`, numbers or labels)" if said else ""


def _headings(metric: Metric, of: str = "") -> tuple[str, str]:
    """Return titles of the columns of a metric and of forgetting, and of what it is forgetting where that is said."""
    lost = f"forgetting of {of}" if of else "forgetting"
    if metric.is_share:
        return f"{metric.name}, %", f"{lost}, points"
    return f"{metric.name} ({metric.direction})", lost


def tuning_table(candidates: Sequence[Candidate]) -> Table:
    """Make a row per candidate in their order, the best one marked, and those that tie with it."""
    table = Table("settings", box=SIMPLE)
    metric = next((candidate.metric for candidate in candidates if candidate.score is not None), ACCURACY)
    table.add_column(f"average {metric.name}", justify="right")
    chosen, equals = best(candidates), tied(candidates)
    for candidate in candidates:
        settings = Text(", ".join(f"{key}={value}" for key, value in candidate.settings.items()))
        score = Text("failed" if candidate.error else "–")
        if candidate.score is not None:
            mark = " best" if candidate is chosen else " tied" if candidate in equals else ""
            score = Text(candidate.metric.say(candidate.score, 2) + mark)
        table.add_row(settings, score, style="bold" if candidate is chosen else "")
    return table


def _spread(found: Spread | None, percent: bool, form: Callable[[float], str] | None = None) -> str:
    """Say a mean and its deviation as :meth:`Spread.say`, shares in percent; a dash where there is none."""
    if found is None:
        return "–"
    return found.say((lambda value: f"{100 * value:.2f}") if percent else form)
