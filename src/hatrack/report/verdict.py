"""The best method of a comparison, its lead, and whether the lead is significant."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments.metrics import Matrix, average_score, forgetting
from hatrack.experiments.statistics import LEAST_SEEDS, Interval, paired_difference
from hatrack.report.runs import Runs
from hatrack.report.sampling import Sampling, drawn_share, error_of_average, error_of_forgetting, sampling_of
from hatrack.report.table import Kind, Table, capitalized, kinds_of
from hatrack.report.tables import summary

__all__ = ["Verdict", "differences", "timing", "unforgotten", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison.

    Attributes:
        best: label of the method with the best score, references aside.
        score: its mean score after the last task.
        second: label of the next; None if there is only one.
        lead: by how much the best is better than the second, over the seeds that both have; None below two seeds.
        points: the difference of their mean scores, above 0 where it is the better one; None
            without a second.
        unforgotten: labels, references aside, of which no output ever changed, in any run.
        most_forgetful: label that lost most, and how much; None where there is one task, after which none was learned.
    """

    best: str
    score: float
    second: str | None
    lead: Interval | None
    points: float | None
    unforgotten: tuple[str, ...]
    most_forgetful: tuple[str, float] | None


def verdict(runs: Runs) -> Verdict:
    """Find the winner.

    Raises:
        InputError: tasks have different metrics, or runs learned with different settings that are not a method's own,
            so that there is none.
    """
    metric = runs.require_metric()
    if runs.unequal_settings:
        raise InputError(
            f"no method is called ahead of another, since runs differ in settings that are not a method's own "
            f"({runs.unequal_settings}); make the runs with the same, or report on each alone"
        )
    ranked = [row for row in summary(runs).rows if row["method"] in runs.competitors]
    best, *others = ranked
    second = others[0] if others else None
    forgetful = max(ranked, key=lambda row: row["forgetting"]) if runs.learned > 1 else None
    return Verdict(
        best=best["method"],
        score=best[runs.average],
        second=None if second is None else second["method"],
        lead=None if second is None else _lead(runs, best["method"], second["method"]),
        points=None if second is None else metric.gain(best[runs.average], second[runs.average]),
        unforgotten=unforgotten(runs),
        most_forgetful=None if forgetful is None else (forgetful["method"], forgetful["forgetting"]),
    )


def unforgotten(runs: Runs) -> tuple[str, ...]:
    """Return the labels, references aside, of which no output ever changed, in any run."""
    competing = (row for row in summary(runs).rows if row["method"] in runs.competitors)
    return tuple(row["method"] for row in competing if row["unchanged"] == row["seeds"])


def differences(runs: Runs) -> Table:
    """Compare every method with the best, over the seeds that both have, with 95 % intervals.

    An interval is never narrower than the test samples allow, as far as that is known, unless every seed drew its own.
    With two seeds there is an interval and no verdict (None). There is none either where seeds are tested on the same
    samples, nothing is known of the error by their choice, and the interval excludes 0. Where all seeds differ by the
    same, a difference does not count as more than luck (False).

    Args:
        runs: the runs; the best has the best score, joint training and guessing aside.
    """
    reference = verdict(runs).best
    rows = []
    metric = runs.require_metric()
    name = metric.name if metric.is_share else f"{metric.name} ({metric.direction})"
    figures = ((runs.average, name), ("forgetting", "forgetting"))[: min(2, runs.learned)]
    for label in runs.labels:
        row: dict[str, Any] = {"method": label}
        for figure, _ in figures:
            interval = _difference(runs, label, reference, figure) if label != reference else None
            if interval is not None:
                row |= {
                    figure: interval.mean,
                    f"{figure}_low": interval.low,
                    f"{figure}_high": interval.high,
                    f"{figure}_significant": interval.is_significant,
                    "pairs": interval.n,
                    "against": reference,
                }
        if len(row) > 1:
            rows.append(row)
    rows.sort(key=lambda row: metric.rank(float(row[runs.average])))
    columns = [Kind.TEXT.column("method"), Kind.TEXT.column("against")]
    kind = kinds_of(metric)[1]
    for figure, title in figures:
        columns += [
            kind.column(figure, f"{title}, difference"),
            kind.column(f"{figure}_low", "from"),
            kind.column(f"{figure}_high", "to"),
            Kind.TEXT.column(f"{figure}_significant", "more than luck"),
        ]
    columns.append(Kind.NUMBER.column("pairs", "seeds"))
    title = f"differences from {reference}, with 95 % intervals"
    note = title
    if any(row["pairs"] < LEAST_SEEDS for row in rows):
        note += f"; with fewer than {LEAST_SEEDS} seeds in common there is no telling whether one is luck"
    if sampling_of((run for _, _, run in runs.each()), runs.learned) is Sampling.UNKNOWN:
        note += f"; the error of {metric.name} by the choice of the test samples is not known"
    return Table("differences", capitalized(title), tuple(columns), tuple(rows), note)


def timing(runs: Runs) -> Table:
    """Measure training time: seconds per method, and against plain fine-tuning (the HAT paper's table 5)."""
    rows = [{key: row[key] for key in ("method", "seconds", "seconds_sd")} for row in summary(runs).rows]
    plain = next((row["seconds"] for row in rows if row["method"] == "sgd"), None)
    for row in rows:
        epochs = [sum(run.epochs) for run in runs.by_label[row["method"]].values()]
        row["epochs"] = sum(epochs) / len(epochs)
        row["times_sgd"] = row["seconds"] / plain if plain else None
    rows.sort(key=lambda row: row["seconds"])
    columns = (
        Kind.TEXT.column("method"),
        Kind.SECONDS.column("seconds", "time"),
        Kind.NUMBER.column("epochs"),
        Kind.RATIO.column("times_sgd", "times sgd"),
    )
    known = columns if plain else columns[:-1]
    return Table("timing", "Training and testing time", known, tuple(rows), runs.note_on_times)


def _lead(runs: Runs, best: str, second: str) -> Interval | None:
    """Return by how much the best is better, whichever the direction of the metric."""
    larger = runs.require_metric().larger_is_better
    return _difference(runs, *((best, second) if larger else (second, best)), runs.average)


def _difference(runs: Runs, label: str, other: str, figure: str) -> Interval | None:
    both = sorted(set(runs.by_label[label]) & set(runs.by_label[other]))
    if len(both) < 2:
        return None
    larger = runs.require_metric().larger_is_better

    def measure(matrix: Matrix) -> float:
        return forgetting(matrix, larger_is_better=larger) if figure == "forgetting" else average_score(matrix)

    def values(of: str) -> list[float]:
        return [measure(runs.by_label[of][seed].matrix("score")[: runs.learned]) for seed in both]

    pairs = [(runs.by_label[label][seed], runs.by_label[other][seed]) for seed in both]
    shares = [drawn_share(run, runs.learned) for pair in pairs for run in pair]
    drawn = [share for share in shares if share is not None]
    if len(drawn) == len(shares):
        return paired_difference(values(label), values(other), drawn=max(drawn))
    error_of = error_of_forgetting if figure == "forgetting" else error_of_average
    errors = [error_of(run, runs.learned) for pair in pairs for run in pair]
    known = [error for error in errors if error is not None]
    # Seeds are tested on the same samples: their errors do not average out.
    each = [math.hypot(*pair) for pair in zip(known[::2], known[1::2], strict=True)] if known == errors else None
    return paired_difference(
        values(label), values(other), sampling_error=None if each is None else statistics.fmean(each)
    )
