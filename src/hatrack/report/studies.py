"""Analyses that train by themselves: runs that differ in one thing, or a look into one trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hatrack.experiments import RunRequest
from hatrack.report import figures, pictures
from hatrack.report.figures import Drawing
from hatrack.report.runs import read_runs

__all__ = ["STUDIES", "Study", "draw", "requests"]


@dataclass(frozen=True)
class Study:
    """An analysis with training of its own.

    Attributes:
        name: what the command line calls it.
        description: what it shows.
        source: which figure of which paper it follows.
        experiment: what is learned if nothing else is asked for.
        methods: how.
        variants: settings of the runs, by key, one mapping per variant.
        figure: name of the figure that is drawn from all the runs, for the first of the methods; None for a picture.
        picture: draws from the request of the first run, if there is no figure.
    """

    name: str
    description: str
    source: str
    experiment: str = "demo"
    methods: tuple[str, ...] = ("hat",)
    variants: tuple[Mapping[str, Any], ...] = field(default=({},))
    figure: str | None = None
    picture: Callable[[RunRequest], Drawing] | None = None


_HAT = "Serrà et al., ICML 2018"
_EPOCHS_OF_COMPRESSION: Mapping[str, Any] = {"num_tasks": 1, "c": 1.5, "embedding": "uniform"}

STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        study.name: study
        for study in (
            Study(
                "sensitivity-s-max",
                "accuracy of HAT by its largest gate scale",
                f"{_HAT}, Fig. 4",
                variants=tuple({"s_max": float(value)} for value in (25, 50, 100, 200, 400, 800)),
                figure="sensitivity",
            ),
            Study(
                "sensitivity-c",
                "accuracy of HAT by the weight of its regulariser",
                f"{_HAT}, Fig. 4",
                variants=tuple({"c": value} for value in (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0)),
                figure="sensitivity",
            ),
            Study(
                "compression",
                "a single task made small: c = 1.5, embeddings from U(0, 2)",
                f"{_HAT}, Fig. 7 and Table 4",
                variants=(_EPOCHS_OF_COMPRESSION,),
                figure="compression",
            ),
            Study(
                "many-tasks",
                "HAT and PNN beyond the eight tasks of the paper: 12 permutations",
                f"{_HAT}, where there are 8",
                experiment="permuted-mnist",
                methods=("hat", "pnn", "random", "joint"),
                variants=({"num_tasks": 12},),
                figure="forgetting-ratio",
            ),
            Study(
                "incremental-cifar",
                "ρ while classes of CIFAR-10 and CIFAR-100 come in, of HAT and others",
                f"{_HAT}, Fig. 9",
                experiment="incremental-cifar",
                methods=("hat", "pnn", "ewc", "sgd", "random", "joint"),
                figure="forgetting-ratio",
            ),
            Study(
                "input-attention",
                "the input features that every task attends to",
                f"{_HAT}, Fig. 10",
                variants=({"gate_inputs": True, "embedding": "uniform"},),
                picture=pictures.input_attention,
            ),
            Study(
                "weight-masks",
                "the masks of PMASK in the first layer, by input",
                "Raskoti and Ghimire (PMASK), the picture of its mask",
                methods=("pmask",),
                picture=pictures.weight_masks,
            ),
            Study(
                "dwa-masks",
                "how alike the mean masks of tasks are",
                "Geilert (DWA)",
                methods=("dwa",),
                picture=pictures.dwa_masks,
            ),
            Study(
                "dwa-embeddings",
                "how alike the mean embeddings of tasks are",
                "Geilert (DWA)",
                methods=("dwa",),
                picture=pictures.dwa_embeddings,
            ),
            Study(
                "gradient",
                "the gradient that an embedding gets over an epoch, with and without compensation; trains nothing",
                f"{_HAT}, Fig. 2",
                methods=(),
                picture=pictures.gradient,
            ),
        )
    }
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
    """The runs of a study, each with a folder of its own in a folder.

    Args:
        study: the study.
        folder: where the runs are kept.
        experiment: what is learned; the study's own if left out.
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
    """The figure of a study whose runs are finished."""
    if study.figure is not None:
        return figures.FIGURES[study.figure].draw(read_runs(folder), study.methods[0])
    assert study.picture is not None
    return study.picture(runs[0] if runs else RunRequest(study.experiment, "hat"))


def _applies(key: str, method: str) -> bool:
    """Whether a variant's setting is one of all methods, or of HAT."""
    return method == "hat" or key == "num_tasks"
