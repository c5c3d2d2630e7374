"""The runs of one experiment that a report is about."""

from __future__ import annotations

import enum
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hatrack.errors import InputError
from hatrack.experiments import Comparison, RunResult, read_result
from hatrack.experiments.folder import RESULT
from hatrack.experiments.metrics import average_score
from hatrack.experiments.plan import PLAN
from hatrack.experiments.request import as_text
from hatrack.experiments.settings import SAMPLES, StreamSettings
from hatrack.functional import forgetting_ratio
from hatrack.objectives import ACCURACY, Metric, common_metric
from hatrack.report.conditions import (
    conditions,
    learned_test_samples,
    times_with_recognition,
    unequal_settings,
    weighted_losses,
)
from hatrack.report.weak_ratios import weak_ratios
from hatrack.streams.own.streams import READ_WITH
from hatrack.support.notebook import html_table

__all__ = ["REFERENCES", "Runs", "in_use", "read_runs"]

REFERENCES: Mapping[str, str] = {
    "joint": "learns all tasks so far at once, with all their data: what there is to reach",
    "independent": "a network of its own for every task: nothing to forget, and nothing shared",
    "random": "guesses, knowing how frequent the classes are, or the mean of the numbers: what there is to lose",
}
"""Methods that are there to compare with, not to win."""

_NAMED = 10
"""Number of runs left out that a note names."""


@dataclass(frozen=True)
class Runs:
    """Runs of one experiment with the same number of tasks learned, by label and seed.

    A label is a method's name, with the settings that differ where a method was run with several.

    Attributes:
        by_label: runs by label, then by seed.
        left_out: sentences about runs that are not part of it, and why.
    """

    by_label: Mapping[str, Mapping[int, RunResult]]
    left_out: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, results: Iterable[RunResult]) -> Runs:
        """Sort results.

        Raises:
            InputError: there are none with a task learned, they are of different experiments or numbers of tasks, or
                two are the same.
        """
        everything = [*results]
        learned = [result for result in everything if result.scores]
        forgetful = [result for result in learned if result.forgotten]
        if len(forgetful) < len(learned):  # what has forgotten a task is compared with its like alone
            learned = [result for result in learned if not result.forgotten]
        else:
            forgetful = []
        if not learned:
            begun = ", ".join(f"{result.method}, seed {result.seed}" for result in everything[:3])
            remedy = f"only begun: {begun}; the command that began it goes on with it" if begun else "run one first"
            if everything and all(result.forgotten for result in everything):
                remedy = f"all tasks of {begun} have been forgotten; choose another run"
            raise InputError(f"there is no run in which a task has been learned ({remedy})")
        _require_one([result.experiment for result in learned], "experiments")
        _require_one([f"{len(result.tasks)} tasks" for result in learned], "numbers of tasks")
        _require_same_data([result for result in learned if result.sources])
        _require_one_form([result for result in learned if not result.sources])
        _require_one([_in_short([task.metric.name for task in result.tasks]) for result in learned], "metrics")
        _require_same_samples(learned)
        most = max(len(result.scores) for result in learned)
        left_out = [
            f"{result.method}, seed {result.seed}: {_why_left_out(result, most)}"
            for result in everything
            if len(result.scores) < most or result in forgetful
        ]
        by_label: dict[str, dict[int, RunResult]] = defaultdict(dict)
        complete = [result for result in learned if len(result.scores) == most]
        for label, result in _labelled(complete):
            if result.seed in by_label[label]:
                raise InputError(f"there are two runs of {label} with seed {result.seed}; report on one of them")
            by_label[label][result.seed] = result
        return cls(
            {label: dict(sorted(by_seed.items())) for label, by_seed in by_label.items()},
            tuple(dict.fromkeys(left_out)),
        )

    def _repr_html_(self) -> str:
        metric = self.metric
        rows = []
        for label in self.labels:
            of = self.by_label[label].values()
            mean = sum(average_score(run.matrix("score")[: len(run.scores)]) for run in of) / len(of)
            rows.append(
                (label, ", ".join(map(str, self.by_label[label])), None if metric is None else metric.say(mean))
            )
        average = "average" if metric is None else f"average {metric.name}"
        title = f"{self.any.experiment}: {sum(map(len, self.by_label.values()))} runs of {self.learned} tasks"
        notes = [*filter(None, (self.note_on_conditions, self.note_on_tests)), *self.left_out]
        return html_table(title, ("method", "seeds", average), rows, notes)

    @cached_property
    def metric(self) -> Metric | None:
        """Metric of all tasks; None where they have different ones, of which no mean means anything."""
        return common_metric(tuple(task.metric for task in self.any.tasks[: self.learned]))

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Different metrics of the tasks learned, in the order of the tasks."""
        return tuple(dict.fromkeys(task.metric for task in self.any.tasks[: self.learned]))

    def tasks_of(self, metric: Metric) -> tuple[int, ...]:
        """Return the numbers, from 1, of the tasks learned that have a metric."""
        return tuple(i for i, task in enumerate(self.any.tasks[: self.learned], 1) if task.metric == metric)

    @property
    def average(self) -> str:
        """Key of the average score in tables: that of the accuracy has a name of its own."""
        return "average_accuracy" if self.metric == ACCURACY else "average_score"

    @property
    def learning(self) -> str:
        """Key of the score right after learning in tables, likewise."""
        return "learning_accuracy" if self.metric == ACCURACY else "learning_score"

    def require_metric(self) -> Metric:
        """Return the metric of all tasks, for what averages over them.

        Raises:
            InputError: they have different ones.
        """
        if self.metric is None:
            raise InputError(
                f"{self.different}; the score of every task is in the table accuracy "
                "(`tables.accuracy`) and in the figures matrix and tasks"
            )
        return self.metric

    @property
    def different(self) -> str:
        """Sentence about different metrics, without its end: there are several, of which there is no mean."""
        names = ", ".join(metric.name for metric in self.metrics)
        return f"tasks of these runs have different metrics ({names}), of which no mean means anything"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels: those that compete first, then references, each with the best score first.

        Where tasks have different metrics they are in the order of the alphabet.
        """

        def rank(label: str) -> tuple[bool, float, str]:
            of = self.by_label[label].values()
            if self.metric is None:
                return label in REFERENCES, 0.0, label
            mean = sum(average_score(run.matrix("score")[: len(run.scores)]) for run in of) / len(of)
            return label in REFERENCES, self.metric.rank(mean), label

        return tuple(sorted(self.by_label, key=rank))

    @property
    def competitors(self) -> tuple[str, ...]:
        """Labels of methods that compete; all of them where there is nothing but references."""
        return tuple(label for label in self.labels if label not in REFERENCES) or self.labels

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of any run."""
        return tuple(sorted({seed for by_seed in self.by_label.values() for seed in by_seed}))

    @property
    def any(self) -> RunResult:
        """One of the runs, for the facts that all have in common."""
        return next(iter(next(iter(self.by_label.values())).values()))

    @property
    def learned(self) -> int:
        """Number of tasks learned."""
        return len(self.any.scores)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks; their places ("task 1") where seeds have them in other orders."""
        orders = {tuple(t.name for t in run.tasks) for of in self.by_label.values() for run in of.values()}
        names = next(iter(orders)) if len(orders) == 1 else tuple(f"task {i + 1}" for i in range(len(self.any.tasks)))
        return names[: self.learned]

    @cached_property
    def unequal_settings(self) -> str:
        """Settings, as part of a sentence, by which some competing runs get more to learn with than others.

        It is empty where there are none. Where there are some, no method is called ahead of another.
        """
        return unequal_settings([pair for pair in self._one_of_each if pair[0] in self.competitors])

    @cached_property
    def note_on_conditions(self) -> str:
        """Sentence, without its end, about different conditions of the runs; empty where these are alike."""
        return conditions(self._one_of_each, self.competitors)

    @property
    def note_on_left_out(self) -> str:
        """Sentence, without its end, about the runs that are left out; empty where none is."""
        named = [" ".join(said.split()) for said in self.left_out[:_NAMED]]
        more = [f"{len(self.left_out) - _NAMED} more"] if len(self.left_out) > _NAMED else []
        return f"left out: {'; '.join((*named, *more))}" if named else ""

    @cached_property
    def note_on_tests(self) -> str:
        """Sentence, without its end, about test samples that were learned from; empty where none is known to be."""
        return learned_test_samples(run for _, _, run in self.each())

    @property
    def note_on_losses(self) -> str:
        """Sentence, without its end, about losses that weigh classes; empty where none does."""
        return weighted_losses(self._one_of_each)

    @property
    def note_on_times(self) -> str:
        """Sentence, without its end, about times that have the recognition of tasks in them; empty where none has."""
        return times_with_recognition(self._one_of_each)

    @property
    def _one_of_each(self) -> list[tuple[str, RunResult]]:
        """One run for every label, since those of a label have the same settings."""
        return [(label, next(iter(self.by_label[label].values()))) for label in self.labels]

    def each(self) -> Iterable[tuple[str, int, RunResult]]:
        """Return every run with its label and seed."""
        return ((label, seed, run) for label in self.labels for seed, run in self.by_label[label].items())

    def run(self, label: str, seed: int) -> RunResult | None:
        """Return the run of a label and seed; None if there is none."""
        return self.by_label.get(label, {}).get(seed)

    def weak_ratios(self, *, last: bool = False) -> str:
        """Say on which tasks ρ says little, since joint training is hardly better than guessing; empty where none is.

        Args:
            last: whether this is about ρ after the last task alone.
        """
        joint, random = (self.by_label.get(name, {}) for name in ("joint", "random"))
        return weak_ratios(((joint[seed], random[seed]) for seed in joint if seed in random), last=last)

    def forgetting_ratio(self, label: str, seed: int, after: int) -> float | None:
        """Return ρ^{≤t}, the mean forgetting ratio of tasks 0..t after task t (Eq. 6).

        Args:
            label: label of the runs.
            seed: the seed.
            after: t, from 0.

        Returns:
            The ratio; None without the runs of joint training and of guessing with the same seed, and where joint
            training is no better than guessing.
        """
        run, joint, random = (self.run(name, seed) for name in (label, "joint", "random"))
        if run is None or joint is None or random is None or run.forgotten or self.metric is None:
            return None
        cells = zip(run.scores[after], random.scores[after], joint.scores[after], strict=True)
        ratios = [forgetting_ratio(*(score.value for score in cell)) for cell in cells]
        mean = sum(ratios) / len(ratios)
        return mean if mean == mean else None


def in_use(capacity: Mapping[str, Any] | None) -> float | None:
    """Return the share of units in use, or of weights where masks are about weights; None where nothing is known."""
    if capacity is None:
        return None
    share: float = capacity["weights"] if capacity["units"] is None else capacity["units"]
    return share


def read_runs(*places: Path) -> Runs:
    """Read the runs of some places, as runs of one experiment.

    Args:
        places: folders of comparisons or of runs, folders that hold runs at any depth, or result files of any name.

    Raises:
        InputError: a place is not there or holds no run, or the runs do not belong together.
        CheckpointError: a result is damaged.
    """
    results: list[RunResult] = []
    left_out: list[str] = []
    for place in places:
        found, failed = _read_place(place)
        results += found
        left_out += failed
    runs = Runs.of(results)
    return replace(runs, left_out=tuple(dict.fromkeys((*left_out, *runs.left_out))))


def _read_place(place: Path) -> tuple[list[RunResult], list[str]]:
    """Return the runs of a place, and sentences about those that failed."""
    if not place.exists():
        raise InputError(f"{place} does not exist; give the folder of a run, or one that holds several")
    if place.is_file():
        return [read_result(place)], []
    if (place / PLAN).exists():
        comparison = Comparison.read(place)
        if not comparison.results and not comparison.failures:
            raise InputError(f"in {place} no run has been started yet; go on with it (`compare`)")
        failed = [f"{method}, seed {seed}, failed: {why}" for (method, seed), why in comparison.failures.items()]
        return list(comparison.results.values()), failed
    paths = sorted(place.rglob(RESULT))
    if not paths:
        raise InputError(f"{place} holds no {RESULT}; give the folder of a run, or one that holds several")
    return [read_result(path) for path in paths], []


def _why_left_out(result: RunResult, most: int) -> str:
    """Say why a run is left out."""
    if result.forgotten:
        return "a task of it was forgotten" if result.scores else "all that it learned was forgotten"
    return f"{len(result.scores)} of {most} tasks learned"


def _require_one(values: Iterable[str], what: str) -> None:
    different = sorted(set(values))
    if len(different) > 1:
        raise InputError(
            f"a report is about runs that can be compared; these are of different {what}: {', '.join(different)}"
        )


def _in_short(names: Sequence[str]) -> str:
    """Join names, with how often each follows itself: ``3 × F1, accuracy``."""
    counts = [(name, len([*same])) for name, same in itertools.groupby(names)]
    return " + ".join(name if count == 1 else f"{count} × {name}" for name, count in counts)


def _require_same_samples(results: Sequence[RunResult]) -> None:
    """Refuse to rank methods whose settings chose different samples to learn or to test on.

    Runs over several numbers of training samples are one report where every method has made them; labels tell them
    apart then.
    """
    chosen: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    usual = {key: getattr(StreamSettings(), key) for key in SAMPLES if key != "num_tasks"}
    usual = {key: value.value if isinstance(value, enum.Enum) else value for key, value in usual.items()}
    for result in results:  # records of before may lack some
        texts = (f"{key}={as_text(result.config.get(key, value))}" for key, value in usual.items())
        chosen[result.method].add(tuple(texts))
    for key in usual.keys() - {"limit", "validation"}:
        values = {text for own in chosen.values() for texts in own for text in texts if text.startswith(f"{key}=")}
        _require_one(values, "samples")
    for method, own in chosen.items():
        others = next((name for name in chosen if chosen[name] != own), None)
        if others is not None:
            each = [*own, *chosen[others]]
            differing = sorted({line for lines in each for line in lines if any(line not in one for one in each)})
            raise InputError(
                "a report is about runs that can be compared; settings of these chose different samples "
                f"({method}, {others}: {', '.join(differing)}); make the runs with the same, or report on each alone"
            )


def _require_one_form(results: Iterable[RunResult]) -> None:
    """Refuse runs of presets that have seen a data set in different forms, such as a packed part of it and the whole.

    Which data sets a run has seen, and in which order, may depend on its seed. Records of before say nothing of them.
    """
    forms: dict[str, set[str]] = defaultdict(set)
    for line in (line for result in results for line in result.data):
        forms[line.partition(":")[0]].add(line)
    for lines in forms.values():
        _require_one(lines, "data")


def _require_same_data(results: Iterable[RunResult]) -> None:
    """Refuse runs on files of one's own that differ; the first task whose files do is named.

    How they were read is no part of that where one of before says nothing of it.
    """
    lines = [result.data for result in results]
    if not all(READ_WITH in line for of in lines for line in of):
        lines = [tuple(line.partition(READ_WITH)[0] for line in of) for of in lines]
    first, *others = sorted(set(lines)) or [()]
    for other in others:
        differing = next(pair for pair in itertools.zip_longest(first, other, fillvalue="nothing") if len({*pair}) > 1)
        _require_one([_DIGEST.sub(r"\1…", line) for line in differing], "data")


_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""A SHA-256, and the part of it that tells files apart."""


def _labelled(results: Iterable[RunResult]) -> Iterable[tuple[str, RunResult]]:
    by_method: dict[str, list[RunResult]] = defaultdict(list)
    for result in results:
        by_method[result.method].append(result)
    for method, same in by_method.items():
        keys = _varied(run.config for run in same)
        for run in same:
            settings = ", ".join(f"{key}={_short(run.config[key])}" for key in keys if key in run.config)
            yield (f"{method} ({settings})" if settings else method), run


def _varied(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the settings that were recorded with several values; older results lack those that came later."""
    values: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(repr(value))
    return [key for key, of in values.items() if len(of) > 1]


def _short(value: Any) -> str:
    return (
        ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if type(value) is float else str(value)
    )
