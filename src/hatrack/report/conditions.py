"""Notes on the conditions of runs: settings, what losses weigh, what is in their times, and what tests are on."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from hatrack.experiments import EXPERIMENTS, RunResult
from hatrack.experiments.request import as_text
from hatrack.experiments.settings import NetworkSettings, StreamSettings
from hatrack.methods import METHODS
from hatrack.report.table import joined
from hatrack.support.names import joined_with_and
from hatrack.train import TrainingSettings

__all__ = [
    "conditions",
    "differing_settings",
    "learned_test_samples",
    "more_epochs",
    "times_with_recognition",
    "unequal_settings",
    "weighted_losses",
]

Labelled = Sequence[tuple[str, RunResult]]
"""Pairs of a label and a run of it; runs of one label have the same settings."""

_COMMON: Mapping[str, Any] = MappingProxyType(
    {
        field.name: value.value if isinstance(value := getattr(part, field.name), enum.Enum) else value
        for part in (StreamSettings(), NetworkSettings(), TrainingSettings())
        for field in dataclasses.fields(part)
    }
)
"""Settings that every method has, with their defaults, which records of before may lack."""

_ADDED = frozenset({"infer"})
"""Settings that add a measurement and change nothing that is learned."""

_CHOSEN = frozenset(
    {
        *("lr", "optimizer", "momentum", "weight_decay", "clip_norm", "class_weights"),
        *("eval_batch_size", "fresh_statistics", "precision", "captured", "channels_last"),
    }
)
"""Settings that may be chosen for each method, as a search does: they give none more data, steps or units."""

_NAMED = 5
"""Number of labels that a sentence names for one value, and of pairs of tasks."""


def conditions(runs: Labelled, competing: Sequence[str]) -> str:
    """Say under which different conditions runs were made, as a sentence without its end; empty where all are alike.

    Args:
        runs: runs with their labels.
        competing: labels of those that would be ranked.
    """
    found = differing_settings(runs)
    if found and unequal_settings([pair for pair in runs if pair[0] in competing]):
        found = f"{found}, so that no method is called ahead of another"
    return joined(found, more_epochs(runs))


def differing_settings(runs: Labelled) -> str:
    """Say in which settings that are not a method's own runs differ; empty where they do not.

    A method's own are the settings that no other has, and what the method or the preset of its experiment sets for it
    alone.

    Args:
        runs: runs with their labels.
    """
    found = _different(runs, without=_ADDED)
    return f"runs differ in settings that are not a method's own ({_said(found)})" if found else ""


def more_epochs(runs: Labelled) -> str:
    """Say which runs made more epochs of a task than ``epochs`` says, as PathNet's two paths do; or nothing."""
    found = {
        label: f"{max(run.epochs)} of {run.config['epochs']}"
        for label, run in runs
        if _trains(run) and run.epochs and "epochs" in run.config and max(run.epochs) > run.config["epochs"]
    }
    return f"more epochs of a task are made than `epochs` says ({_grouped(found)})" if found else ""


def unequal_settings(runs: Labelled) -> str:
    """Say by which settings some runs get more to learn with than others; empty where none does.

    These are those of :func:`differing_settings` but for the learning rate and the like, which may be chosen for each
    method. Methods whose runs differ in them cannot be ranked.

    Args:
        runs: runs that would be ranked, with their labels.
    """
    return _said(_different(runs, without=_ADDED | _CHOSEN))


def weighted_losses(runs: Labelled) -> str:
    """Say which losses weigh classes, which makes them losses of another definition; empty where none does."""
    weights = {label: run.config.get("class_weights") for label, run in runs}
    if not any(weights.values()):
        return ""
    if len(set(weights.values())) == 1:
        return f"losses weigh classes (class_weights={next(iter(weights.values()))})"
    grouped = _grouped({label: "plain" if value is None else str(value) for label, value in weights.items()})
    return f"losses are of different definitions, and not to be compared (class_weights: {grouped})"


def times_with_recognition(runs: Labelled) -> str:
    """Say which times have the recognition of tasks in them; empty where none has."""
    recognised = {label: run.recognition is not None for label, run in runs}
    those = [label for label, does in recognised.items() if does]
    if not those:
        return ""
    whose = "all times have" if len(those) == len(recognised) else f"times of {_listed(those)} have"
    return f"{whose} the recognition of tasks in them (infer=true)"


def learned_test_samples(runs: Iterable[RunResult]) -> str:
    """Say how many test samples of which tasks are training samples of tasks learned; empty where none is known to be.

    Args:
        runs: runs, all with as many tasks learned. Where their seeds drew other test samples, the largest number is
            said.
    """
    found: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for run in runs:
        learned = run.tasks[: len(run.scores)]
        for task in learned:
            for other in learned:
                count = (task.test_seen or {}).get(other.name, 0)
                found.setdefault((task.name, other.name), set()).add((count, task.test))
    said = []
    for (task_name, other_name), counts in found.items():
        count, size = max(counts)
        if count:
            whose = "its own training samples" if task_name == other_name else f"training samples of {other_name}"
            most = "up to " if len(counts) > 1 else ""
            said.append(f"{most}{count:,} of the {size:,} test samples of {task_name} are {whose}")
    if not said:
        return ""
    shown = said if len(said) <= _NAMED + 1 else [*said[:_NAMED], f"{len(said) - _NAMED} more such pairs of tasks"]
    return f"some tests are on samples that were learned from ({', '.join(shown)})"


def _different(runs: Labelled, *, without: frozenset[str]) -> dict[str, dict[str, str]]:
    """Return the settings that differ, in their order, each with its value by label.

    Labels of methods that train nothing are left out, and so are those that have the setting from their method.
    """
    found = {}
    for key in _COMMON.keys() - without:
        values = {
            label: as_text(run.config.get(key, _COMMON[key]))
            for label, run in runs
            if _trains(run) and not _is_own(run, key)
        }
        if len(set(values.values())) > 1:
            found[key] = values
    return {key: found[key] for key in _COMMON if key in found}


def _trains(run: RunResult) -> bool:
    """Return whether the method of a run trains; one of which nothing is known counts as one that does."""
    if run.own_method is not None:
        return run.own_method.trains
    return run.method not in METHODS or METHODS[run.method].trains


def _is_own(run: RunResult, key: str) -> bool:
    """Return whether a setting has the value that the method, or the preset of its experiment, gives it alone.

    What a class of a person's own gives is known of the run: reports do not import it.
    """
    kind, preset = METHODS.get(run.method), EXPERIMENTS.get(run.experiment)
    known = run.own_method if kind is None else kind
    own = {
        **({} if known is None else known.training),
        **({} if preset is None else preset.methods.get(run.method, {})),
    }
    return key in own and run.config.get(key) == own[key]


def _said(found: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(f"{key}: {_grouped(values)}" for key, values in found.items())


def _grouped(values: Mapping[str, str]) -> str:
    """Say which labels have which value: ``12 for hat, ewc, 1 for sgd``."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    return ", ".join(f"{value} for {_listed(those)}" for value, those in labels.items())


def _listed(labels: Iterable[str]) -> str:
    those = [*labels]
    shown = those if len(those) <= _NAMED + 1 else [*those[:_NAMED], f"{len(those) - _NAMED} more"]
    return joined_with_and(shown)
