"""The commands that show runs which are finished: a report, tables, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from hatrack.cli.names import EXPERIMENTS, FIGURES, STUDIES, TABLES
from hatrack.cli.options import (
    WHOLE,
    Data,
    Output,
    Quiet,
    Settings,
    make_console,
    read_overrides,
    require_output,
    say,
    warn,
    write_file,
    write_output,
)
from hatrack.errors import InputError

if TYPE_CHECKING:
    from hatrack.experiments import RunRequest
    from hatrack.report.studies import Study
    from hatrack.report.table import Drawing

__all__ = ["analyse_command", "figure_command", "report_command", "sizes_command"]

_MASKS = "; it is about methods with masks, such as hat"
_NEEDED = {
    "forgetting-ratios": "; run the methods joint and random with the same seeds, too",
    "differences": "; it takes several methods with two seeds in common",
    **dict.fromkeys(("capacity", "usage", "reuse", "compression"), _MASKS),
}
"""Remedies for tables that would be empty: the commands to run first."""


def report_command(
    folder: Path,
    /,
    *more: Path,
    out: Output = None,
    format: Literal["html", "csv", "json", "markdown", "latex"] = "html",  # noqa: A002 - what the option is called
    table: Annotated[str | None, Parameter(choices=TABLES)] = None,
) -> int:
    """Make a report of runs: a page for a browser, or a table.

    The page is one file that needs no network: who won and by how much, accuracy on every task, forgetting, capacity,
    and the proof that nothing was forgotten.

    Parameters
    ----------
    folder
        A run's folder, or one that holds several, such as that of `hatrack compare`; or a result file of any name.
    more
        Further folders or files with runs of the same experiment.
    out
        The file to write; by default report.html. Tables are printed if it is left out.
    format
        `html` for the page; the others write one table.
    table
        Which table, by default the first: summary, forgetting-ratios, differences, curves, accuracy, by-task, learning,
        capacity, usage, reuse, compression, recognition, task-confusion, class-confusion, timing, published, data.
    """
    if format == "html" and table is not None:
        raise InputError(f"--table {table} goes with --format csv, json, markdown or latex; the page has all tables")
    if out is not None:
        require_output(out)
    from hatrack.report import figures
    from hatrack.report.runs import read_runs
    from hatrack.report.writers import WRITERS

    table = table or "summary"
    runs = read_runs(folder, *more)
    if format == "html":
        from hatrack.report.page import html_report

        write_output(out or Path("report.html"), html_report(runs))
        return 0
    found = figures.TABLES[table](runs)
    if not found.rows:
        raise InputError(f"these runs have no data for the table {table}{_NEEDED.get(table, '')}")
    write_output(out, WRITERS[format](found))
    notes = (
        runs.note_on_conditions,
        runs.note_on_tests,
        runs.note_on_left_out,
        runs.note_on_losses,
        runs.note_on_times,
    )
    if format in ("csv", "json") and found.note and any(notes):
        warn([found.note])  # plain values have no place for it
    return 0


def sizes_command(
    folder: Path,
    /,
    *,
    task: str | None = None,
    format: Literal["csv", "json", "markdown", "latex"] = "markdown",  # noqa: A002 - what the option is called
    out: Output = None,
    batch: Annotated[int, WHOLE] = 64,
    repetitions: Annotated[int, WHOLE] = 20,
    data: Data = None,
) -> int:
    """Measure the tasks of a run as networks of their own: parameters, size of the file, and speed.

    Times are of this machine, here and now; the task's own network, the whole one without gates and masks, and the
    masked one take turns.

    Parameters
    ----------
    folder
        The folder of a run of `hat`, `pmask` or their kin.
    task
        The task; all of them if left out.
    format
        How to write the table.
    out
        The file to write; printed if left out.
    batch
        Samples per pass.
    repetitions
        How many passes are timed.
    """
    if out is not None:
        require_output(out)
    from hatrack.experiments import measure_sizes
    from hatrack.report.inside import sizes_table
    from hatrack.report.writers import WRITERS

    sizes = measure_sizes(folder, task, data, batch=batch, repetitions=repetitions)
    write_output(out, WRITERS[format](sizes_table(sizes)))
    return 0


def figure_command(
    name: Annotated[str, Parameter(choices=FIGURES)],
    folder: Path,
    /,
    *more: Path,
    out: Output = None,
    method: str | None = None,
) -> int:
    """Draw a figure of the papers from runs, as SVG, PDF or PNG, with its data beside it.

    Parameters
    ----------
    name
        Which figure; `hatrack list figures` explains them.
    folder
        A run's folder, or one that holds several; or a result file of any name.
    more
        Further folders or files with runs of the same experiment.
    out
        The file to write, by default NAME.svg. Its data goes into a CSV file of the same name.
    method
        For figures about one method (`hatrack list figures` says which): its label; by default hat, or the best one.
        Figures about all methods refuse it.
    """
    target = out or Path(f"{name}.svg")
    require_output(target)
    from hatrack.report import figures
    from hatrack.report.runs import read_runs

    runs = read_runs(folder, *more)
    drawing = figures.FIGURES[name].draw(runs, method)
    say(make_console(), f"wrote {target} and {_save(drawing, target)}")
    return 0


def analyse_command(
    name: Annotated[str, Parameter(choices=STUDIES)],
    /,
    *,
    out: Output = None,
    experiment: Annotated[str | None, Parameter(choices=EXPERIMENTS)] = None,
    seeds: Annotated[int, WHOLE] = 1,
    settings: Settings = (),
    data: Data = None,
    quiet: Quiet = False,
) -> int:
    """Train what a figure of the papers needs, and draw it.

    Every finished task is on disk: interrupt it, and the same command goes on from there.

    Parameters
    ----------
    name
        Which analysis; `hatrack list analyses` explains them.
    out
        Folder for the runs, the figure and its data, by default `runs/NAME`.
    experiment
        What to learn, if not what the analysis learns by itself.
    seeds
        How many seeds, counted from 0.
    settings
        Override a setting of all runs, `key=value`: `--set epochs=5`.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    from hatrack.cli.carrying import carry_out
    from hatrack.experiments.folder import require_folder
    from hatrack.report import studies

    study, overrides = studies.STUDIES[name], read_overrides(settings)
    _require_use(study, experiment=experiment, seeds=seeds, overrides=overrides, data=data)
    folder = require_folder(out or Path("runs") / name)
    console = make_console()
    runs = studies.requests(study, folder, experiment=experiment, seeds=range(seeds), data=data, overrides=overrides)
    cautions = _cautions(study, runs)
    if not quiet:
        warn(cautions)
    for request in runs:
        carry_out(request, console, quiet, label=None if request.out is None else request.out.name)
    target = folder / f"{name}.svg"
    data_file = _save(studies.draw(study, folder, runs), target)
    if not quiet:
        say(console, f"wrote {target} and {data_file}")
    return 0


def _require_use(
    study: Study, *, experiment: str | None, seeds: int, overrides: Mapping[str, str], data: Path | None
) -> None:
    """Refuse options that an analysis would make nothing of.

    Raises:
        InputError: nothing is trained, or one run is drawn, or the analysis itself decides on a setting.
    """
    given = {"--experiment": experiment is not None, "--set": bool(overrides), "--data": data is not None}
    if not study.methods and (
        options := [name for name, is_given in {**given, "--seeds": seeds > 1}.items() if is_given]
    ):
        raise InputError(f"{study.name} draws an equation and trains nothing; leave out {' and '.join(options)}")
    if study.picture is not None and seeds > 1:
        raise InputError(f"{study.name} draws the run of one seed; leave out --seeds")
    for key in overrides:
        values = dict.fromkeys(str(variant[key]) for variant in study.variants if key in variant)
        if values:
            does = "compares runs" if len(values) > 1 else "makes its runs"
            raise InputError(f"{study.name} {does} with {key} = {', '.join(values)}; leave out --set {key}")


def _cautions(study: Study, runs: Sequence[RunRequest]) -> tuple[str, ...]:
    """Look at the settings of all runs of an analysis before the first of them.

    Returns:
        Sentences about settings without effect, and of which methods.

    Raises:
        InputError: a setting does not exist or does not fit, or the picture cannot be drawn of the network.
    """
    from hatrack.experiments.backbones import NETWORKS
    from hatrack.experiments.effects import said_of_all
    from hatrack.methods import find_method

    said: dict[str, tuple[str, ...]] = {}
    for request in runs:
        cautions = request.cautions()
        if find_method(request.method).trains:
            said.setdefault(request.method, cautions)
        network = request.described().config(request.method).overridden(request.overrides).network.network
        if study.picture in _OF_INPUTS and network in NETWORKS and network != "mlp":
            raise InputError(
                f"{study.name} draws single input features, and the first layer of {network} does not read them; take "
                "an experiment with an mlp (`network=mlp`)"
            )
    return said_of_all(said)


_OF_INPUTS = ("input-attention", "weight-masks")
"""Pictures of single input features, which dense layers alone have masks of."""


def _save(drawing: Drawing, target: Path) -> Path:
    """Draw a picture, and write its data beside it; return the file with the data."""
    from hatrack.report import canvas
    from hatrack.report.writers import WRITERS

    canvas.save(drawing.chart, target, drawing.title, drawing.note)
    data = target.with_suffix(".csv")
    write_file(data, WRITERS["csv"](drawing.table))
    return data
