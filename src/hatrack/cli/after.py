"""The commands for what comes after training: verifying, making again, exporting tasks, asking, forgetting."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.cli.options import Data, Output, Quiet, make_console, require_output, say, with_options, write_output
from hatrack.errors import InputError

__all__ = [
    "export_command",
    "forget_command",
    "predict_command",
    "rerun_command",
    "verify_command",
]


def export_command(
    folder: Path, /, *, to: Path, task: str | None = None, all_tasks: bool = False, data: Data = None
) -> int:
    """Write a task's own, smaller network to a file that runs without hatrack.

    Before anything is written, the file is run on test samples and compared with the network. Classes and preprocessing
    are in its metadata. `.onnx` needs `pip install hatrack[onnx]`.

    Parameters
    ----------
    folder
        The folder of a run of `hat`, `pmask` or their kin.
    to
        The file: `.onnx`, `.pt2` (torch.export) or `.safetensors` (weights alone).
    task
        The task to export.
    all_tasks
        Export all tasks of a run of `hat` to one `.onnx`, whose second input is the task's number for every sample.
    """
    from hatrack.experiments import export_run

    if (task is None) != all_tasks:
        raise InputError("say which task to export with --task NAME, or --all-tasks")
    exported = export_run(folder, task, to, data)
    console = make_console()
    say(console, f"wrote {exported.path}: {exported.parameters:,} parameters")
    say(console, f"compared on {exported.samples} test samples: logits within {exported.deviation:.1e} of the largest")
    return 0


def predict_command(
    folder: Path, /, *files: Path, task: str | None = None, out: Output = None, data: Data = None
) -> int:
    """Ask the network of a run about pictures, the rows of tables, or the samples of arrays.

    Prints a line per sample: the task, the class and its probability, and the next one; or the numbers, or the labels.
    Examples: `hatrack predict runs/demo/hat shoe.png --task shirt-sneaker`, `hatrack predict runs/homes-hat-seed0
    new.csv --task homes --out prices.csv`.

    Parameters
    ----------
    folder
        The folder of a run; `run.json` in it names its tasks.
    files
        Picture files, which are brought to the size of the run's data; or tables with the columns of training; or
        arrays `(N, ...)`, as `.npy` or as `x` of an `.npz`.
    task
        The task to ask; if left out, it is recognised for each sample.
    out
        A file for the predictions, `.csv` or `.json`: all classes' probabilities, as shares, and numbers with all
        digits. They are printed, too.
    """
    if out is not None:
        if out.suffix.lower() not in (".csv", ".json"):
            raise InputError(f"--out {out}: predictions are written as .csv or .json")
        require_output(out)
        if any(out.resolve() == file.resolve() for file in files):
            raise InputError(f"--out {out} is one of the files that are asked about, and would be lost: choose another")
    from hatrack.experiments import predict_files

    table = Table("sample", "task", "class", "probability", "next", box=SIMPLE)
    predictions = predict_files(folder, task, files, data)
    for found in predictions:
        first = f"{found.probabilities[0]:.1%}" if found.probabilities else ""
        second = f"{found.classes[1]} {found.probabilities[1]:.1%}" if len(found.probabilities) > 1 else ""
        cells = (found.sample, found.task, found.said, first, second)
        table.add_row(*map(Text, cells))
    make_console().print(table)
    if out is not None:
        from hatrack.report.predictions import predictions_table
        from hatrack.report.writers import WRITERS

        write_output(out, WRITERS[out.suffix.lower().lstrip(".")](predictions_table(predictions)))
    return 0


def forget_command(folder: Path, /, *, task: str, data: Data = None) -> int:
    """Forget a task of a run, for good: no file of the run holds anything of it afterwards.

    The other tasks keep every bit of their answers. The network, the test logits and the result are written anew, and
    copies of earlier networks in the folder, too; what was interrupted is finished by the same command. The run can be
    verified, shown and exported as before, but it does not go on. No data is needed; what `--infer` measured is
    measured again without the task if the data is on this machine, and else not known any more. Curves that `--log`
    wrote in the folder are removed. Exit code 1 if other files in the folder name the task, or curves of the run lie
    elsewhere.

    Parameters
    ----------
    folder
        The folder of a run of `hat`, `pmask` or their kin.
    task
        The task to forget.
    """
    from hatrack.experiments import forget_in_run

    done = forget_in_run(folder, task, data)
    console = make_console()
    say(console, f"{task} is forgotten; what was interrupted is finished" if done.report is None else str(done.report))
    say(console, f"written anew: {', '.join(path.name for path in done.rewritten)}")
    if done.removed:
        say(console, f"removed: {', '.join(path.name for path in done.removed)}")
    if done.recognition is False:
        cause = "no task is left, or their data is not on this machine as it was"
        say(console, f"how well tasks are recognised is not known any more: {cause}")
    for path in done.remaining:
        say(console, f"{path} is not of the run and still names it; remove it yourself")
    for place in done.elsewhere:
        say(console, f"curves of the run may still name it, outside of its folder: {place}; remove them yourself")
    return 1 if done.remaining or done.elsewhere else 0


def verify_command(folder: Path, /, *, data: Data = None) -> int:
    """Test a saved network again, and compare with what its run says.

    Where the environment is the recorded one, the test logits must be the same to the bit; elsewhere to 1e-5. Exit code
    1 if they are not.

    Parameters
    ----------
    folder
        The folder of a run.
    """
    from hatrack.cli.carrying import DownloadDisplay
    from hatrack.experiments import verify
    from hatrack.report import verification_table

    console = make_console()
    with DownloadDisplay(console) as monitor:
        verification = verify(folder, data, monitor)
    console.print(verification_table(verification))
    if not verification.bitwise:
        differences = ", ".join(verification.differences)
        console.print(f"compared to 1e-5, not to the bit, since these differ from the run: {differences}")
    say(console, with_options(verification.verdict))
    return 0 if verification.holds else 1


def rerun_command(folder: Path, /, *, out: Path | None = None, data: Data = None, quiet: Quiet = False) -> int:
    """Make a run again from its record, and compare the two.

    Takes the recorded settings, seed and number of threads. On the same machine with the same versions, every test
    logit after every task must have the same bits; elsewhere it is said what differs. Exit code 1 if any bit differs.

    Parameters
    ----------
    folder
        The folder of a run.
    out
        Folder to keep the new run in; without it nothing is kept.
    """
    from hatrack.cli.carrying import carry_out
    from hatrack.experiments import Reproduction, recorded_run
    from hatrack.experiments.recorded import require_same_origins
    from hatrack.report import reproduction_table

    if out is not None and out.resolve() == folder.resolve():
        raise InputError("--out names the run that is to be made again; choose another folder")
    console = make_console()
    recorded, request = recorded_run(folder, data, out)
    if recorded.forgotten:
        raise InputError(f"in {folder} a task was forgotten, so that the run cannot be made again")
    require_same_origins(folder, recorded, request)
    again = carry_out(request, console, quiet, tasks=len(recorded.scores))
    reproduction = Reproduction.of(recorded, again)
    console.print(reproduction_table(reproduction))
    if reproduction.differences:
        say(console, f"the runs differ in their {', '.join(reproduction.differences)}")
    for said in reproduction.otherwise:
        say(console, f"an earlier version made the recorded run, whose {said}")
    console.print("the same to the bit" if reproduction.exact else "[bold]not the same[/] to the bit")
    return 0 if reproduction.exact else 1
