"""Analyses that train by themselves: runs that differ in one thing, or a look into one trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hatrack.experiments import RunRequest
from hatrack.report.figures import FIGURES
from hatrack.report.runs import read_runs
from hatrack.report.table import Drawing
from hatrack.support.toml import read_packaged_toml

__all__ = ["STUDIES", "Study", "draw", "requests"]


@dataclass(frozen=True)
class Study:
    """An analysis with training of its own.

    Attributes:
        name: its name on the command line.
        description: its content, in one line.
        source: the figure of the paper that it follows.
        experiment: the experiment if no other is asked for.
        methods: names of the methods that are trained.
        variants: settings of the runs, by key, one mapping per variant.
        figure: name of the figure that is drawn from all the runs; None for a picture.
        picture: name of the picture that is drawn from the request of the first run, if there is no figure.
    """

    name: str
    description: str
    source: str
    experiment: str = "demo"
    methods: tuple[str, ...] = ("hat",)
    variants: tuple[Mapping[str, Any], ...] = ({},)
    figure: str | None = None
    picture: str | None = None


def _study(name: str, *, variants: Sequence[Mapping[str, Any]] = ({},), methods: Sequence[str], **row: Any) -> Study:
    """Make a study of a row of ``studies.toml``."""
    return Study(name, methods=tuple(methods), variants=tuple(variants), **row)


STUDIES: Mapping[str, Study] = MappingProxyType(
    {name: _study(name, **row) for name, row in read_packaged_toml("hatrack.report", "studies.toml").items()}
)
"""Every study by its name."""


def requests(
    study: Study,
    folder: Path,
    *,
    experiment: str | None = None,
    seeds: Sequence[int] = (0,),
    data: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[RunRequest]:
    """Describe the runs of a study, each with a folder of its own in a folder.

    Args:
        study: the study.
        folder: folder in which the runs are kept.
        experiment: the experiment; None takes the study's own.
        seeds: a run of each variant for each.
        data: folder to look for data in first.
        overrides: settings of all runs, such as fewer epochs; those of the variants come on top.
    """
    wanted = []
    for method in study.methods:
        for variant in study.variants:
            mine = {key: value for key, value in variant.items() if _applies(key, method)}
            words = "-".join([method, *(f"{key}={value}" for key, value in mine.items())])
            wanted += [
                RunRequest(
                    experiment or study.experiment,
                    method,
                    seed,
                    folder / f"{words}-seed{seed}",
                    data,
                    {**(overrides or {}), **mine},
                )
                for seed in seeds
            ]
    return wanted


def draw(study: Study, folder: Path, runs: Sequence[RunRequest]) -> Drawing:
    """Draw the figure of a study whose runs are finished."""
    if study.figure is not None:
        return FIGURES[study.figure].draw(read_runs(folder))
    from hatrack.report import pictures  # needs altair

    assert study.picture is not None
    return pictures.PICTURES[study.picture](runs[0] if runs else RunRequest(study.experiment, "hat"))


def _applies(key: str, method: str) -> bool:
    """Return whether a variant's setting is one of all methods, or of HAT."""
    return method == "hat" or key == "num_tasks"
