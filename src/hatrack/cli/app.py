"""The commands of ``hatrack``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import torch
from cyclopts import App, Parameter
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hatrack import __version__
from hatrack.cli.display import RunDisplay
from hatrack.data import DATASETS
from hatrack.environment import deterministic_cuda
from hatrack.errors import HatrackError, InputError
from hatrack.experiments import (
    EXPERIMENTS,
    RunRequest,
    RunResult,
    export_run,
    finished_result,
    predict_pictures,
    prepare,
    read_result,
    run,
    verify,
)
from hatrack.experiments.backbones import NETWORKS
from hatrack.experiments.running import RESULT
from hatrack.methods import METHODS
from hatrack.report import accuracy_table, forgetting_line, verification_table

__all__ = ["DEMO_TITLES", "app", "main"]

DEMO_TITLES = {
    "sgd": "fine-tuning: new tasks overwrite the old ones",
    "hat": "hard attention: what is learned stays, to the bit",
}
"""What the two tables of the demo are called, by method."""

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


def _whole_number(kind: Any, tokens: Sequence[cyclopts.Token]) -> int:
    return int(tokens[0].value)  # cyclopts itself would round 1.5


_TOO_LARGE = "not enough memory; try a smaller network (--set hidden=...) or smaller batches (--set batch_size=...)"
_WHOLE = Parameter(converter=_whole_number)
NetworkName = Literal["mlp", "alexnet", "resnet18", "vit"]  # for completion; any other name may follow
Quiet = Annotated[bool, Parameter(name="--quiet", negative="", help="Print nothing but errors.")]
Data = Annotated[Path | None, Parameter(help="Folder in which data sets are looked for first (or set HATRACK_DATA).")]


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
    console = _console()
    results = {}
    for method in ("sgd", "hat"):
        if out is not None:
            _set_threads(None, out / method)
        request = RunRequest("demo", method, out=None if out is None else out / method)
        results[method] = _carry_out(request, console, quiet)
    if not quiet:
        _show_demo(console, results["sgd"], results["hat"])
    return 0


@app.command(name="run")
def run_command(
    experiment: Annotated[str, Parameter(choices=tuple(EXPERIMENTS))],
    /,
    *,
    method: Annotated[str, Parameter(choices=tuple(METHODS))],
    seed: Annotated[int, _WHOLE] = 0,
    epochs: Annotated[int | None, _WHOLE] = None,
    network: NetworkName | str | None = None,
    out: Path | None = None,
    data: Data = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: Annotated[int | None, _WHOLE] = None,
    quiet: Quiet = False,
) -> int:
    """Run a task sequence with a method, and keep the results.

    Every finished task is on disk: interrupt it, and the same command goes on from there.

    Parameters
    ----------
    experiment
        What to learn; `hatrack list experiments` explains them.
    method
        How to learn it; `hatrack list methods` explains them.
    seed
        Decides on initial weights, order of samples, validation split and permutations.
    epochs
        Largest number of epochs per task; short for `--set epochs=N`.
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
    """
    overrides = _overrides(settings)
    for key, value in (("epochs", epochs), ("network", network)):
        if value is not None and key in overrides:
            raise InputError(f"--{key} and --set {key}=... are the same setting; give one of them")
        if value is not None:
            overrides[key] = value
    folder = out or Path("runs") / f"{experiment}-{method}-seed{seed}"
    _set_threads(threads, folder)
    request = RunRequest(experiment, method, seed, folder, data, overrides, _device(device))
    console = _console()
    result = _carry_out(request, console, quiet)
    if not quiet:
        console.print(accuracy_table(result))
        console.print(forgetting_line(result), highlight=False)
        _say(console, f"kept in {folder}")
    return 0


@app.command(name="list")
def list_command(what: Literal["experiments", "methods", "networks", "datasets"] | None = None, /) -> int:
    """Explain what there is to choose from.

    Parameters
    ----------
    what
        One kind of thing; all of them if left out.
    """
    console = _console()
    tables = {
        "experiments": _named_table(
            "experiments", ("tasks", "source"), ((e.name, e.description, e.source) for e in EXPERIMENTS.values())
        ),
        "methods": _named_table(
            "methods", ("what it does", "source"), ((m.name, m.description, m.source) for m in METHODS.values())
        ),
        "networks": _named_table(
            "networks", ("what it is", "source"), ((n.name, n.description, n.source) for n in NETWORKS.values())
        ),
        "datasets": _named_table(
            "datasets", ("what it holds", "licence"), ((d.name, d.description, d.licence) for d in DATASETS.values())
        ),
    }
    for name, table in tables.items():
        if what in (None, name):
            console.print(table)
    return 0


@app.command(name="verify")
def verify_command(folder: Path, /, *, data: Data = None) -> int:
    """Test a saved network again, and compare with what its run says.

    Where the environment is the recorded one, the test logits must be the same to the bit; elsewhere to 1e-5. Exit code
    1 if they are not.

    Parameters
    ----------
    folder
        The folder of a run.
    """
    console = _console()
    verification = verify(folder, data)
    console.print(verification_table(verification))
    if not verification.bitwise:
        differences = ", ".join(verification.differences)
        console.print(f"compared to 1e-5, not to the bit, since these differ from the run: {differences}")
    console.print("verified" if verification.holds else "[bold]not verified:[/] the network is not the one of the run")
    return 0 if verification.holds else 1


@app.command(name="export")
def export_command(
    folder: Path, /, *, to: Path, task: str | None = None, all_tasks: bool = False, data: Data = None
) -> int:
    """Write a task's own, smaller network to a file that runs without hatrack.

    Before anything is written, the file is run on test samples and compared with the network. Classes and preprocessing
    are in its metadata. `.onnx` needs `pip install hatrack[onnx]`.

    Parameters
    ----------
    folder
        The folder of a run of `hat`.
    to
        The file: `.onnx`, `.pt2` (torch.export) or `.safetensors` (weights alone).
    task
        The task to export.
    all_tasks
        Export all tasks to one `.onnx`, whose second input is the task's number for every sample.
    """
    if (task is None) != all_tasks:
        raise InputError("say which task to export with --task NAME, or --all-tasks")
    exported = export_run(folder, task, to, data)
    console = _console()
    _say(console, f"wrote {exported.path}: {exported.parameters:,} parameters")
    _say(console, f"compared on {exported.samples} test samples: logits within {exported.deviation:.1e} of the largest")
    return 0


@app.command(name="predict")
def predict_command(folder: Path, /, *pictures: Path, task: str | None = None, data: Data = None) -> int:
    """Ask the network of a run what pictures show.

    Parameters
    ----------
    folder
        The folder of a run.
    pictures
        Picture files; they are brought to the size of the run's data.
    task
        The task to ask; if left out, it is recognised for each picture.
    """
    table = Table("picture", "task", "class", "probability", "next", box=SIMPLE)
    for found in predict_pictures(folder, task, pictures, data):
        second = f"{found.classes[1]} {found.probabilities[1]:.1%}" if len(found.classes) > 1 else ""
        cells = (str(found.picture), found.task, found.classes[0], f"{found.probabilities[0]:.1%}", second)
        table.add_row(*map(Text, cells))
    _console().print(table)
    return 0


class _InterruptedRun(KeyboardInterrupt):
    """Ctrl-C while a run was going on whose finished tasks are on disk."""


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
    except _InterruptedRun:
        return _fail("interrupted; finished tasks are kept, and the same command goes on from there", 130)
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


def _carry_out(request: RunRequest, console: Console, quiet: bool) -> RunResult:
    finished = finished_result(request)
    if finished is not None:
        if not quiet:
            _say(console, f"{request.out} is finished; nothing to do")
        return finished
    prepared = prepare(request)
    try:
        with RunDisplay(console, prepared.result, quiet=quiet, label=request.method) as display:
            for event in run(prepared):
                display.show(event)
    except KeyboardInterrupt:
        if request.out is None:
            raise
        raise _InterruptedRun from None
    return prepared.result


def _show_demo(console: Console, plain: RunResult, hat: RunResult) -> None:
    console.print()
    console.print(accuracy_table(plain, DEMO_TITLES["sgd"]))
    console.print(forgetting_line(plain), highlight=False)
    console.print()
    console.print(accuracy_table(hat, DEMO_TITLES["hat"]))
    console.print(forgetting_line(hat), highlight=False)


def _overrides(settings: Iterable[str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting} does not fit: write --set key=value")
        if key in overrides:
            raise InputError(f"--set {key} is given twice")
        overrides[key] = value
    return overrides


def _set_threads(threads: int | None, folder: Path) -> None:
    """Take the number asked for, or the one with which a run in this folder began."""
    if threads is None and (folder / RESULT).exists():
        threads = read_result(folder / RESULT).environment.get("threads")
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads must be at least 1, not {threads}")
        if threads > 4 * (os.cpu_count() or 1):
            raise InputError(f"--threads {threads} is too much for this machine, which has {os.cpu_count()} processors")
        torch.set_num_threads(threads)


def _device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return deterministic_cuda()


def _console() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty())


def _named_table(title: str, columns: tuple[str, str], rows: Iterable[tuple[str, str, str]]) -> Table:
    table = Table("name", *columns, title=title, title_justify="left", title_style="bold", box=SIMPLE)
    for row in rows:
        table.add_row(*row)
    return table


def _say(console: Console, text: str) -> None:
    """Print what may hold a user's own words: as it is, neither markup nor coloured nor folded."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _fail(message: str, code: int) -> int:
    text = Text.assemble(("error:", "bold red"), " ", message)  # not markup: a message may quote what a user typed
    Console(stderr=True).print(text, soft_wrap=True)
    return code


def _first_line(error: cyclopts.CycloptsError) -> str:
    return " ".join(str(error).split()).rstrip(".") + "; see hatrack --help"
