"""The commands of ``hatrack``."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter
from rich.table import Table
from rich.text import Text

from hatrack import __version__
from hatrack.cli.after import export_command, forget_command, predict_command, rerun_command, verify_command
from hatrack.cli.bench import bench_command
from hatrack.cli.data import data_app
from hatrack.cli.many import compare_command, tune_command
from hatrack.cli.names import LOGGERS
from hatrack.cli.options import (
    DEFAULTS,
    WHOLE,
    ExperimentName,
    InterruptedRun,
    Learning,
    MethodName,
    Quiet,
    Settings,
    make_console,
    say,
    take_device,
    tell,
    warn,
    with_options,
)
from hatrack.cli.reporting import analyse_command, figure_command, report_command, sizes_command
from hatrack.errors import HatrackError, InputError, UnfitDataError, UnsupportedError
from hatrack.support.names import file_name_of

__all__ = ["DEMO_TITLES", "WRONG_INPUT", "app", "main"]

DEMO_TITLES = {
    "sgd": "fine-tuning: new tasks overwrite the old ones",
    "hat": "hard attention: what is learned stays, to the bit",
}
"""Titles of the two tables of the demo, by method."""

WRONG_INPUT = (InputError, UnfitDataError, UnsupportedError)
"""Errors by which a command ends with exit code 2: another command line, or other settings, would help."""

app = App(
    name="hatrack",
    version=__version__,
    help="One network, a hat for every task, nothing forgotten: learn tasks one after the other.\n\n"
    "Start with `hatrack demo`. Exit codes: 0 done; 2 wrong input, such as an unknown name, a setting that does not "
    "fit, a file that is not there, or a network that cannot be protected; 1 failure, such as damaged files, training "
    "that diverged, or a check that did not hold; 130 interrupted.",
    help_format="markdown",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.register_install_completion_command()
app.command(data_app)


_TOO_LARGE = "not enough memory; try a smaller network (--set hidden=...) or smaller batches (--set batch_size=...)"


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
    from hatrack.cli.carrying import carry_out
    from hatrack.experiments import RunRequest
    from hatrack.experiments.folder import RESULT
    from hatrack.report import accuracy_table, forgetting_line

    console = make_console()
    results = {}
    for method in DEMO_TITLES:
        request = RunRequest("demo", method, out=None if out is None else out / method)
        # So small a network gains nothing by a second thread, which waits for a core where others work on them.
        begun = request.out is not None and (request.out / RESULT).exists()
        results[method] = carry_out(request, console, quiet, threads=None if begun else 1)
    for method, title in () if quiet else DEMO_TITLES.items():
        console.print()
        console.print(accuracy_table(results[method], title))
        console.print(forgetting_line(results[method]), highlight=False)
    return 0


@app.command(name="run")
def run_command(
    experiment: ExperimentName = None,
    /,
    *,
    method: MethodName,
    seed: Annotated[int, WHOLE] = 0,
    learning: Learning = DEFAULTS,
    infer: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    settings: Settings = (),
    threads: Annotated[int | None, WHOLE] = None,
    log: Annotated[tuple[str, ...], Parameter(choices=LOGGERS, negative="", consume_multiple=False)] = (),
) -> int:
    """Run a task sequence with a method, and keep the results.

    Finished tasks and epochs are on disk: interrupt it, and the same command goes on from there.

    Parameters
    ----------
    method
        How to learn it; `hatrack list methods` explains them. `mymodule:MyMethod` takes a class of your own.
    seed
        Decides on initial weights, order of samples and tasks, validation split and permutations.
    infer
        Recognise the tasks of test samples, too, after every task, as if nobody named them; for `hat`, `pmask` and
        their kin. Short for `--set infer=true`.
    out
        Folder for the results, by default `runs/EXPERIMENT-METHOD-seedN`.
    settings
        Override a setting, `key=value`, as often as needed: `--set lr=0.01 --set hidden=500,500`. Learning rates are
        those of SGD: with `--set optimizer=adam` goes `--set lr=0.001`.
    threads
        Number of CPU threads; test logits are the same to the bit only with the same number.
    log
        Write losses and accuracies while the run goes on, into a folder of this name in that of the run: `tensorboard`,
        `wandb` (offline, nothing is sent) or `mlflow`; as often as needed. Needs `pip install hatrack[NAME]`.
    """
    from hatrack.cli.carrying import carry_out
    from hatrack.experiments import RunRequest
    from hatrack.report import accuracy_table, forgetting_line
    from hatrack.report.loggers import require_logger
    from hatrack.train.parallel import joined

    for name in log:
        require_logger(name)

    overrides = learning.overrides(settings, infer=infer or None)
    subject = learning.experiment(experiment)
    folder = out or Path("runs") / f"{subject.name}-{file_name_of(method)}-seed{seed}"
    console, where = make_console(), take_device(learning.device)
    with joined(where) as ranks:
        quiet, log_here = learning.quiet or ranks.rank > 0, log if ranks.rank == 0 else ()
        request = RunRequest(
            subject.name, method, seed, folder, learning.data, overrides, where, subject.sources, ranks, subject
        )
        if not quiet:
            warn(request.cautions())
        result = carry_out(request, console, quiet, threads=threads, log=log_here)
    if not quiet:
        console.print(accuracy_table(result))
        console.print(forgetting_line(result), highlight=False)
        say(console, f"kept in {folder}")
    return 0


for _command in (
    *(compare_command, tune_command, report_command, figure_command, export_command, predict_command),
    *(forget_command, sizes_command, analyse_command, verify_command, rerun_command, bench_command),
):
    app.command(_command, name=_command.__name__.removesuffix("_command"))


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
    for name, (entries, kinds) in _lists().items():
        if what in (None, name):
            console.print(_listing(name, kinds, entries))
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
        return _fail(f"{_in_one_line(error)}; see hatrack --help", 2)
    except HatrackError as error:
        return _fail(with_options(str(error)), 2 if isinstance(error, WRONG_INPUT) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more; be silent at exit
        return 1
    except InterruptedRun:
        return _fail("interrupted; the same command goes on from there", 130)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except MemoryError as error:
        return _fail(f"{_TOO_LARGE} ({error})", 1)
    except RuntimeError as error:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            return _fail(f"{_TOO_LARGE} ({error})", 1)
        if "alloc" not in str(error):
            raise  # a fault of hatrack's own: let it be seen whole
        return _fail(_TOO_LARGE, 1)
    except OSError as error:
        return _fail(f"{error.filename or 'the output'}: {error.strerror or error}", 2 if _is_misnamed(error) else 1)


def _lists() -> dict[str, tuple[Iterable[Any], dict[str, str]]]:
    """Return the things to choose from: of every kind its entries, and the attributes that describe them."""
    from hatrack.data import DATASETS
    from hatrack.experiments import EXPERIMENTS
    from hatrack.experiments.backbones import NETWORKS
    from hatrack.methods import METHODS
    from hatrack.report.figures import FIGURES
    from hatrack.report.studies import STUDIES

    return {
        "experiments": (EXPERIMENTS.values(), {"source": "source", "published": "published there"}),
        "methods": (METHODS.values(), {"source": "source"}),
        "networks": (NETWORKS.values(), {"source": "source"}),
        "datasets": (DATASETS.values(), {"licence": "licence"}),
        "figures": (FIGURES.values(), {"source": "source"}),
        "analyses": (STUDIES.values(), {"source": "source"}),
    }


def _listing(title: str, kinds: Mapping[str, str], entries: Iterable[Any]) -> Table:
    """Names that are never cut, each with one line or more on what it is, and on what else is known of it."""
    table = Table(
        box=None, title=title, title_style="bold", title_justify="left", show_header=False, padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for entry in entries:
        said = Text(with_options(entry.description))
        for attribute, kind in kinds.items():
            if other := getattr(entry, attribute):
                said.append(f"\n{kind}: {other}", style="dim")
        table.add_row(entry.name, said)
    return table


def _in_one_line(error: cyclopts.CycloptsError) -> str:
    """Say what is wrong with a command line; of an unknown command with all that there are, not the first few."""
    said = " ".join(str(error).split()).removesuffix(".")
    if isinstance(error, cyclopts.UnknownCommandError) and error.app is not None:
        names = ", ".join(name for name in error.app if not name.startswith("-"))
        said = f"{said.partition(' Available commands:')[0]} Available commands: {names}"
    return said


def _is_misnamed(error: OSError) -> bool:
    """Return whether a path cannot be what it was named as, so that another try would end in the same way."""
    return isinstance(error, (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError))


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line for a person, without the place in the code that Python would add."""
    tell("warning:", "bold yellow", " ".join(str(message).split()))


def _fail(message: str, code: int) -> int:
    tell("error:", "bold red", message)
    return code
