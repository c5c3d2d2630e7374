"""The commands of ``hatrack``."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import torch
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hatrack import __version__
from hatrack.cli.after import export_command, forget_command, predict_command
from hatrack.cli.carrying import carry_out
from hatrack.cli.checking import rerun_command, verify_command
from hatrack.cli.data import data_app
from hatrack.cli.many import compare_command, tune_command
from hatrack.cli.options import (
    WHOLE,
    Data,
    Device,
    ExperimentName,
    InterruptedRun,
    NetworkName,
    Quiet,
    Settings,
    check_threads,
    make_console,
    read_overrides,
    say,
    take_device,
    what_to_learn,
    with_short_forms,
)
from hatrack.cli.reporting import analyse_command, figure_command, report_command, sizes_command
from hatrack.data import DATASETS
from hatrack.errors import HatrackError, InputError
from hatrack.experiments import (
    EXPERIMENTS,
    RunRequest,
    RunResult,
)
from hatrack.experiments.backbones import NETWORKS
from hatrack.experiments.folder import RESULT, read_recorded
from hatrack.methods import METHODS
from hatrack.report import accuracy_table, forgetting_line
from hatrack.report.figures import FIGURES
from hatrack.report.studies import STUDIES
from hatrack.train.parallel import joined

__all__ = ["DEMO_TITLES", "app", "main"]

DEMO_TITLES = {
    "sgd": "fine-tuning: new tasks overwrite the old ones",
    "hat": "hard attention: what is learned stays, to the bit",
}
"""Titles of the two tables of the demo, by method."""

app = App(
    name="hatrack",
    version=__version__,
    help="One network, a hat for every task, nothing forgotten: learn tasks one after the other.\n\n"
    "Start with `hatrack demo`. Exit codes: 0 done, 2 wrong input, 1 failure, 130 interrupted.",
    help_format="markdown",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.register_install_completion_command()
app.command(data_app)


_TOO_LARGE = "not enough memory; try a smaller network (--set hidden=...) or smaller batches (--set batch_size=...)"
# For completion.


@app.command
def demo(*, out: Path | None = None, quiet: Quiet = False) -> int:
    """See forgetting, and its cure, in a minute.

    Learns five small tasks from Fashion-MNIST (shipped with hatrack), once with plain fine-tuning and once with hard
    attention to the task, and shows the accuracy on every task after every task.

    Parameters
    ----------
    out
        Folder to keep the two runs in; without it nothing is kept.
    """
    console = make_console()
    results = {}
    for method in ("sgd", "hat"):
        if out is not None:
            _set_threads(None, out / method)
        request = RunRequest("demo", method, out=None if out is None else out / method)
        results[method] = carry_out(request, console, quiet)
    if not quiet:
        _show_demo(console, results["sgd"], results["hat"])
    return 0


@app.command(name="run")
def run_command(
    experiment: ExperimentName | str | None = None,
    /,
    *,
    method: Annotated[str, Parameter(choices=tuple(METHODS))],
    seed: Annotated[int, WHOLE] = 0,
    tasks: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)] = (),
    epochs: Annotated[int | None, WHOLE] = None,
    limit: Annotated[int | None, WHOLE] = None,
    network: NetworkName | str | None = None,
    out: Path | None = None,
    data: Data = None,
    settings: Settings = (),
    device: Device = "auto",
    threads: Annotated[int | None, WHOLE] = None,
    log: Literal["tensorboard"] | None = None,
    quiet: Quiet = False,
) -> int:
    """Run a task sequence with a method, and keep the results.

    Finished tasks and epochs are on disk: interrupt it, and the same command goes on from there.

    Parameters
    ----------
    experiment
        What to learn; `hatrack list experiments` explains them. Or a file of your own tasks, `tasks.toml`.
    method
        How to learn it; `hatrack list methods` explains them.
    seed
        Decides on initial weights, order of samples and tasks, validation split and permutations.
    tasks
        Folders of pictures and `.npz` files to learn one after the other, in place of an experiment.
    epochs
        Largest number of epochs per task; short for `--set epochs=N`.
    limit
        At most so many training samples per task, balanced over its classes; short for `--set limit=N`.
    network
        The backbone, if not the experiment's own; short for `--set network=NAME`. `mymodule:build` takes a function of
        your own, which gets the shape of a sample and returns a network that maps a batch to features.
    out
        Folder for the results, by default `runs/EXPERIMENT-METHOD-seedN`.
    settings
        Override a setting, `key=value`, as often as needed: `--set lr=0.01 --set hidden=500,500`.
    device
        Where to train; `auto` takes a GPU if there is one.
    threads
        Number of CPU threads; test logits are the same to the bit only with the same number.
    log
        Write losses and accuracies for TensorBoard while the run goes on, into the folder `tensorboard` of the run.
    """
    overrides = with_short_forms(read_overrides(settings), epochs=epochs, limit=limit, network=network)
    name, sources = what_to_learn(experiment, tasks)
    folder = out or Path("runs") / f"{name}-{method}-seed{seed}"
    _set_threads(threads, folder)
    console, where = make_console(), take_device(device)
    with joined(where) as ranks:
        quiet = quiet or ranks.rank > 0
        request = RunRequest(name, method, seed, folder, data, overrides, where, sources, ranks)
        result = carry_out(request, console, quiet, log=log is not None and ranks.rank == 0)
    if not quiet:
        console.print(accuracy_table(result))
        console.print(forgetting_line(result), highlight=False)
        say(console, f"kept in {folder}")
    return 0


app.command(compare_command, name="compare")
app.command(tune_command, name="tune")
app.command(report_command, name="report")
app.command(figure_command, name="figure")
app.command(export_command, name="export")
app.command(predict_command, name="predict")
app.command(forget_command, name="forget")
app.command(sizes_command, name="sizes")
app.command(analyse_command, name="analyse")
app.command(verify_command, name="verify")
app.command(rerun_command, name="rerun")


@app.command(name="list")
def list_command(
    what: Literal["experiments", "methods", "networks", "datasets", "figures", "analyses"] | None = None, /
) -> int:
    """Explain what there is to choose from.

    Parameters
    ----------
    what
        One kind of thing; all of them if left out.
    """
    console = make_console()
    tables = {
        "experiments": _listing(
            "experiments",
            ("source", "published there"),
            ((e.name, e.description, e.source, e.published) for e in EXPERIMENTS.values()),
        ),
        "methods": _listing("methods", ("source",), ((m.name, m.description, m.source) for m in METHODS.values())),
        "networks": _listing("networks", ("source",), ((n.name, n.description, n.source) for n in NETWORKS.values())),
        "datasets": _listing("datasets", ("licence",), ((d.name, d.description, d.licence) for d in DATASETS.values())),
        "figures": _listing("figures", ("source",), ((f.name, f.description, f.source) for f in FIGURES.values())),
        "analyses": _listing("analyses", ("source",), ((s.name, s.description, s.source) for s in STUDIES.values())),
    }
    for name, table in tables.items():
        if what in (None, name):
            console.print(table)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the words after the program's name; those of the process if left out.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without accents is no reason to fail
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(arguments)
        return code if isinstance(code, int) else 0
    except cyclopts.CycloptsError as error:
        return _fail(_first_line(error), 2)
    except InputError as error:
        return _fail(str(error), 2)
    except HatrackError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more; be silent at exit
        return 1
    except InterruptedRun:
        return _fail("interrupted; the same command goes on from there", 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return _fail(f"{_TOO_LARGE} ({error})", 1)
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise  # a fault of hatrack's own: let it be seen whole
        return _fail(_TOO_LARGE, 1)
    except OSError as error:
        return _fail(f"{error.filename or 'the output'}: {error.strerror or error}", 1)


def _show_demo(console: Console, plain: RunResult, hat: RunResult) -> None:
    console.print()
    console.print(accuracy_table(plain, DEMO_TITLES["sgd"]))
    console.print(forgetting_line(plain), highlight=False)
    console.print()
    console.print(accuracy_table(hat, DEMO_TITLES["hat"]))
    console.print(forgetting_line(hat), highlight=False)


def _set_threads(threads: int | None, folder: Path) -> None:
    """Take the number asked for, or the one with which a run in this folder began."""
    if threads is None and (folder / RESULT).exists():
        threads = read_recorded(folder)[0].environment["threads"]
    if threads is not None:
        torch.set_num_threads(check_threads(threads))


def _listing(title: str, kinds: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Table:
    """Names that are never cut, each with one line or more on what it is, and on what else is known of it."""
    table = Table(
        box=None, title=title, title_style="bold", title_justify="left", show_header=False, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for name, description, *others in rows:
        said = Text(description)
        for kind, other in zip(kinds, others, strict=True):
            if other:
                said.append(f"\n{kind}: {other}", style="dim")
        table.add_row(name, said)
    return table


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line for a person, without the place in the code that Python would add."""
    text = Text.assemble(("warning:", "bold yellow"), " ", " ".join(str(message).split()))
    Console(stderr=True).print(text, soft_wrap=True)


def _fail(message: str, code: int) -> int:
    text = Text.assemble(("error:", "bold red"), " ", message)  # not markup: a message may quote what a user typed
    Console(stderr=True).print(text, soft_wrap=True)
    return code


def _first_line(error: cyclopts.CycloptsError) -> str:
    return " ".join(str(error).split()).rstrip(".") + "; see hatrack --help"
