"""Many runs side by side: what the folder of a comparison holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatrack.errors import CheckpointError, InputError
from hatrack.experiments.folder import RESULT
from hatrack.experiments.plan import PLAN, REFERENCES, ComparisonPlan, read_plan, run_folder
from hatrack.experiments.results import RunResult, read_result
from hatrack.experiments.statistics import Spread, spread
from hatrack.functional import forgetting_ratio
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.support.names import unknown_name

__all__ = ["FAILURE", "FIGURES", "Comparison", "read_failure", "write_failure"]

FAILURE = "failure.json"
"""The file in a run's folder that says why the run failed."""

FIGURES = ("average_accuracy", "forgetting", "backward_transfer", "forgetting_ratio")
"""Figures that a comparison gives for every run, after its last task."""


@dataclass(frozen=True)
class Comparison:
    """A comparison as its folder holds it.

    Attributes:
        plan: which runs belong to it.
        results: the runs that have begun, by method and seed.
        failures: why runs failed, by method and seed; a failed run may have a result up to where it failed.
        environment: what the comparison was started with.
    """

    plan: ComparisonPlan
    results: Mapping[tuple[str, int], RunResult]
    failures: Mapping[tuple[str, int], str]
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """Read the folder of a comparison; nothing is written, and runs may be going on.

        A run whose file is damaged counts as failed.

        Raises:
            InputError: the folder holds no comparison.
            CheckpointError: the plan is damaged, or from a newer version.
        """
        if not (folder / PLAN).exists():
            raise InputError(f"{folder} holds no {PLAN}; give the folder of a comparison (`compare`)")
        plan, environment = read_plan(folder)
        results, failures = {}, {}
        for method in plan.methods:
            for seed in plan.seeds:
                place = run_folder(folder, method, seed)
                failure = read_failure(place)
                if failure is not None:
                    failures[method, seed] = failure
                try:
                    if (place / RESULT).exists():
                        results[method, seed] = read_result(place / RESULT)
                except CheckpointError as error:  # one bad file is no reason to lose sight of the other runs
                    failures[method, seed] = str(error)
        return cls(plan, results, failures, environment)

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.plan.experiment

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the references included."""
        return self.plan.methods

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.plan.seeds

    def run(self, method: str, seed: int) -> RunResult | None:
        """The finished run of a method and seed; None if it is not finished, or failed, or has forgotten a task.

        Raises:
            InputError: the comparison has no such method or seed.
        """
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        if seed not in self.seeds:
            raise unknown_name("seed", str(seed), map(str, self.seeds))
        result = self.results.get((method, seed))
        return result if result is not None and result.is_whole else None

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """Method and seed of every run that is not finished."""
        return tuple((m, s) for m in self.methods for s in self.seeds if self.run(m, s) is None)

    def forgetting_ratio(self, method: str, seed: int) -> tuple[float, ...] | None:
        """The forgetting ratio ``ρ^{≤t}`` after every task t (Eq. 6): the mean over τ ≤ t of ``ρ^{τ≤t}``.

        Joint training and guessing are the runs of the same seed.

        Returns:
            One number per task, t = 1 … T: 0 is as good as joint training, −1 is chance. Not a number where joint
            training is no better than chance on some task. None while one of the three runs is not finished.

        Raises:
            InputError: the comparison has no such method or seed.
        """
        runs = [self.run(name, seed) for name in (method, *REFERENCES)]
        if any(run is None for run in runs):
            return None
        ours, joint, random = (run.matrix("accuracy") for run in runs if run is not None)
        ratios = []
        for t in range(len(ours)):
            parts = [forgetting_ratio(ours[t][tau], random[t][tau], joint[t][tau]) for tau in range(t + 1)]
            ratios.append(math.fsum(parts) / (t + 1))
        return tuple(ratios)

    def spread(self, method: str, figure: str) -> Spread | None:
        """Mean and standard deviation over seeds of a figure after the last task; None if no run has it.

        Args:
            method: name of the method.
            figure: one of :data:`FIGURES`.

        Raises:
            InputError: there is no such method or figure.
        """
        values = self.figures(method, figure).values()
        return spread(list(values)) if values else None

    def figures(self, method: str, figure: str) -> dict[int, float]:
        """A figure after the last task by seed, for the seeds that have it.

        Args:
            method: name of the method.
            figure: one of :data:`FIGURES`.

        Raises:
            InputError: there is no such method or figure.
        """
        if figure not in FIGURES:
            raise unknown_name("figure", figure, FIGURES)
        values = {}
        for seed in self.seeds:
            result = self.run(method, seed)
            if figure == "forgetting_ratio":
                ratios = self.forgetting_ratio(method, seed)
                value = None if ratios is None or math.isnan(ratios[-1]) else ratios[-1]
            else:
                value = None if result is None else result.metrics()[figure]
            if value is not None:
                values[seed] = float(value)
        return values


def read_failure(folder: Path) -> str | None:
    """Return the reason for which the run in a folder failed; None if it did not."""
    path = folder / FAILURE
    if not path.exists():
        return None
    try:
        return str(read_checked_json(path)["error"])
    except (CheckpointError, KeyError):
        return f"it failed, but {path} does not say why"


def write_failure(folder: Path, error: str | None) -> None:
    """Record why a run failed; None takes back what was recorded."""
    if error is None:
        (folder / FAILURE).unlink(missing_ok=True)
    else:
        write_checked_json(folder / FAILURE, {"error": error})
