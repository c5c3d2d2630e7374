"""Searching a method's settings on one seed, as the HAT paper did for its baselines (appendix B.2)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hatrack.errors import InputError
from hatrack.experiments.comparison import execute_recorded, read_failure
from hatrack.experiments.effects import cautions, keys_in_file, without_effect
from hatrack.experiments.executors import Executor
from hatrack.experiments.experiment import describe
from hatrack.experiments.folder import TUNING, require_alone
from hatrack.experiments.jobs import Job, JobEvent, beside_each_other, require_learnable_by
from hatrack.experiments.request import RunRequest
from hatrack.experiments.settings import SAMPLES, Config, changed
from hatrack.experiments.sources import located, relative_to
from hatrack.methods import find_method
from hatrack.objectives import ACCURACY, Metric
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.storage.locks import locked
from hatrack.streams import EvaluationPart

__all__ = ["Candidate", "GridSearch", "best", "outcomes", "tied", "tune"]

SCHEMA = 1
"""Version of the format of ``tuning.json``."""

_PATIENCE = 5.0


@dataclass(frozen=True)
class GridSearch:
    """Description of a search.

    Attributes:
        experiment: name of the experiment.
        method: name of the method.
        seed: the one seed.
        settings: settings of all runs that differ from the experiment's, by key.
        grid: the values to try, by key; every combination is tried.
        sources: for one's own tasks, what they are made of, as for :class:`hatrack.experiments.RunRequest`.
    """

    experiment: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]]
    sources: tuple[Path, ...] = ()

    @classmethod
    def make(
        cls,
        experiment: str,
        method: str,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        sources: Sequence[Path] = (),
    ) -> GridSearch:
        """Check what was asked for.

        Args:
            experiment: name of the experiment.
            method: name of the method.
            seed: the seed, 0 or more.
            settings: by key; texts are read as the setting's type.
            grid: values by key; the method's own grid if left out. The values as they are without a search are always
                tried first.
            sources: as for :class:`hatrack.experiments.RunRequest`.

        Raises:
            InputError: an unknown name or setting, a value that does not fit, a method without a grid, or one over
                different samples, or over a setting that has no effect beside the others.
        """
        if seed < 0:
            raise InputError(f"the seed must be 0 or more, not {seed}")
        grid = grid or find_method(method).grid
        if not grid:
            raise InputError(f"{method} has no recorded grid; give one (`grid`), such as lr=0.01,0.05,0.1")
        config = describe(experiment, sources).config(method).overridden(settings or {})
        plain = config.flat()
        read: dict[str, tuple[Any, ...]] = {}
        for key, values in grid.items():
            if settings and key in settings:
                raise InputError(f"{key} is searched; leave out `{key}`")
            if key in SAMPLES:
                raise InputError(
                    f"{key} decides which samples are learned and tested, so that its values cannot be ranked; leave "
                    f"it out of the grid, and set it for all runs (`{key}`)"
                )
            tried = [config.overridden({key: value}).flat()[key] for value in values]
            tried.insert(0, plain[key])
            read[key] = tuple(value for at, value in enumerate(tried) if value not in tried[:at])
        search = cls(experiment, method, seed, {key: plain[key] for key in settings or {}}, read, tuple(sources))
        search._require_effect()
        return search

    def configs(self) -> tuple[Config, ...]:
        """All settings of every candidate, in their order."""
        config = describe(self.experiment, self.sources).config(self.method).overridden(self.settings)
        return tuple(config.overridden(each) for each in self.candidates())

    @property
    def chosen_on(self) -> EvaluationPart:
        """Samples by which the best is chosen; the same for all candidates."""
        return self.configs()[0].stream.tested_on

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences about settings that have no effect in any run, or are unusual in all of them."""
        keys = (*self.settings, *keys_in_file(describe(self.experiment, self.sources), self.method))
        found = [cautions(self.method, config, keys) for config in self.configs()]
        return tuple(said for said in found[0] if all(said in each for each in found))

    def _require_effect(self) -> None:
        """Refuse to search a setting that has no effect in any run."""
        found = [without_effect(self.method, config, self.grid) for config in self.configs()]
        for key, when in found[0].items():
            if all(key in each for each in found):
                raise InputError(
                    f"{key} has no effect {when}, so that there is nothing to search; leave it out of the grid (`grid`)"
                )

    def candidates(self) -> tuple[dict[str, Any], ...]:
        """Every combination of the grid, the values without a search first."""
        return tuple(dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))

    def jobs(
        self, folder: Path, *, data: Path | None = None, device: torch.device | None = None, threads: int = 1
    ) -> tuple[Job, ...]:
        """One run per candidate, in their order.

        Args:
            folder: the search's folder.
            data: folder to look for data in first.
            device: where to train; the CPU by default.
            threads: CPU threads of every run.

        Raises:
            InputError: the folder holds another search, or runs with other settings, on other data, or with the
                defaults of several versions; or the method cannot learn the tasks.
            CheckpointError: the folder's record is damaged.
            DataError: a file of one's own tasks cannot be opened.
        """
        _require_same(self, folder)
        subject = describe(self.experiment, self.sources)
        request = RunRequest(
            self.experiment, self.method, self.seed, data=data, sources=self.sources, description=subject
        )
        request = replace(request, device=device or request.device)
        found = [
            Job(replace(request, out=folder / _folder_name(each), overrides={**self.settings, **each}), threads)
            for each in self.candidates()
        ]
        jobs = beside_each_other(found)
        require_learnable_by(jobs)
        return jobs


@dataclass(frozen=True)
class Candidate:
    """One combination of settings, and what came of it.

    Attributes:
        settings: by key.
        score: average score after the last task; None if the run is not finished.
        error: why the run failed; None if it did not.
        metric: metric of the score.
    """

    settings: Mapping[str, Any]
    score: float | None
    error: str | None
    metric: Metric = ACCURACY


def tune(search: GridSearch, folder: Path, jobs: Sequence[Job], executor: Executor) -> Generator[JobEvent, None, None]:
    """Carry out the runs of a search that are not finished, and record the outcome.

    Args:
        search: what to search.
        folder: the search's folder, which may hold the same search, interrupted or finished, also with another grid.
        jobs: its jobs, see :meth:`GridSearch.jobs`.
        executor: where to carry them out.

    Yields:
        What happens. Closing the generator stops the workers; finished tasks are kept.

    Raises:
        InputError: the folder holds another search or is in use.
        CheckpointError: the folder's record is damaged.
    """
    with locked(folder, _PATIENCE):
        _require_same(search, folder)
        _write(search, folder, outcomes(search, jobs))  # of an earlier, smaller grid, should this one be stopped
        yield from execute_recorded(jobs, executor)
        _write(search, folder, outcomes(search, jobs))


def outcomes(search: GridSearch, jobs: Sequence[Job]) -> tuple[Candidate, ...]:
    """Read the candidates and their scores from the folders of a search's jobs.

    Raises:
        InputError: the tasks have different metrics.
    """
    found = []
    for candidate, job in zip(search.candidates(), jobs, strict=True):
        result = job.finished()
        if result is None:
            found.append(Candidate(candidate, None, read_failure(job.folder)))
            continue
        if result.metric is None:
            raise InputError(f"settings cannot be searched: {result.metrics()['note']}; search on tasks of one metric")
        found.append(Candidate(candidate, float(result.metrics()["average_score"]), None, result.metric))
    return tuple(found)


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate of the best score, the first of equal ones; None if no run is finished."""
    good = [(c.metric.rank(c.score), index, c) for index, c in enumerate(candidates) if c.score is not None]
    return min(good, key=lambda each: each[:2])[2] if good else None


def tied(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates that have the score of the best, in their order; none where it is the only one."""
    chosen = best(candidates)
    found = tuple(each for each in candidates if chosen is not None and each.score == chosen.score)
    return found if len(found) > 1 else ()


def _require_same(search: GridSearch, folder: Path) -> None:
    require_alone(folder, TUNING)
    path = folder / TUNING
    if not path.exists():
        return
    there, now = read_checked_json(path, SCHEMA, "search"), _identity(search)
    there["sources"] = list(map(str, located(folder, there.get("sources", ()), there.get("relative_sources", ()))))
    if now["sources"] and there.get("sources"):
        del now["experiment"]  # named after its files
    if changes := changed({key: there.get(key) for key in now}, now):
        raise InputError(f"{folder} holds another search: {changes}; choose another folder (`out`)")


def _identity(search: GridSearch) -> dict[str, Any]:
    return {
        "experiment": search.experiment,
        "sources": [str(path.absolute()) for path in search.sources],
        "method": search.method,
        "seed": search.seed,
        "settings": dict(search.settings),
    }


def _write(search: GridSearch, folder: Path, found: Sequence[Candidate]) -> None:
    chosen = best(found)
    write_checked_json(
        folder / TUNING,
        {
            "schema": SCHEMA,
            **_identity(search),
            **({"relative_sources": relative_to(folder, search.sources)} if search.sources else {}),
            "grid": {key: list(values) for key, values in search.grid.items()},
            "candidates": [
                {
                    "settings": dict(c.settings),
                    "average_accuracy": c.score if c.metric == ACCURACY else None,
                    "average_score": c.score,
                    "metric": c.metric.to_json(),
                    "error": c.error,
                }
                for c in found
            ],
            "chosen_on": search.chosen_on.value,
            "best": None if chosen is None else dict(chosen.settings),
            "tied": [dict(c.settings) for c in tied(found)],
        },
    )


def _folder_name(candidate: Mapping[str, Any]) -> str:
    return re.sub(r"[^\w.=,+-]", "_", ",".join(f"{key}={value}" for key, value in candidate.items()))
