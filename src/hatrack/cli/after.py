"""The commands for what comes after training: exporting tasks, asking about pictures, and forgetting."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from hatrack.cli.options import Data, make_console, say
from hatrack.errors import InputError
from hatrack.experiments import export_run, forget_in_run, predict_pictures

__all__ = ["export_command", "forget_command", "predict_command"]


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
    if (task is None) != all_tasks:
        raise InputError("say which task to export with --task NAME, or --all-tasks")
    exported = export_run(folder, task, to, data)
    console = make_console()
    say(console, f"wrote {exported.path}: {exported.parameters:,} parameters")
    say(console, f"compared on {exported.samples} test samples: logits within {exported.deviation:.1e} of the largest")
    return 0


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
    make_console().print(table)
    return 0


def forget_command(folder: Path, /, *, task: str) -> int:
    """Forget a task of a run, for good: no file of the run holds anything of it afterwards.

    The other tasks keep every bit of their answers. The network, the test logits and the result are written anew, and
    copies of earlier networks in the folder, too; what was interrupted is finished by the same command. The run can be
    verified, shown and exported as before, but it does not go on. Exit code 1 if other files in the folder name the
    task.

    Parameters
    ----------
    folder
        The folder of a run of `hat`, `pmask` or their kin.
    task
        The task to forget.
    """
    done = forget_in_run(folder, task)
    console = make_console()
    say(console, f"{task} is forgotten; what was interrupted is finished" if done.report is None else str(done.report))
    say(console, f"written anew: {', '.join(path.name for path in done.rewritten)}")
    if done.removed:
        say(console, f"removed: {', '.join(path.name for path in done.removed)}")
    for path in done.remaining:
        say(console, f"{path} is not of the run and still names it; remove it yourself")
    return 1 if done.remaining else 0
