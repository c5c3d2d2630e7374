"""The commands that check a run: test its network again, or make it again."""

from __future__ import annotations

from pathlib import Path

from hatrack.cli.carrying import carry_out
from hatrack.cli.display import DownloadDisplay
from hatrack.cli.options import Data, Quiet, make_console, say
from hatrack.errors import InputError
from hatrack.experiments import Reproduction, recorded_run, verify
from hatrack.report import reproduction_table, verification_table

__all__ = ["rerun_command", "verify_command"]


def verify_command(folder: Path, /, *, data: Data = None) -> int:
    """Test a saved network again, and compare with what its run says.

    Where the environment is the recorded one, the test logits must be the same to the bit; elsewhere to 1e-5. Exit code
    1 if they are not.

    Parameters
    ----------
    folder
        The folder of a run.
    """
    console = make_console()
    with DownloadDisplay(console) as monitor:
        verification = verify(folder, data, monitor)
    console.print(verification_table(verification))
    if not verification.bitwise:
        differences = ", ".join(verification.differences)
        console.print(f"compared to 1e-5, not to the bit, since these differ from the run: {differences}")
    console.print("verified" if verification.holds else "[bold]not verified:[/] the network is not the one of the run")
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
    if out is not None and out.resolve() == folder.resolve():
        raise InputError("--out names the run that is to be made again; choose another folder")
    console = make_console()
    recorded, request = recorded_run(folder, data, out)
    if recorded.forgotten:
        raise InputError(f"in {folder} a task was forgotten, so that the run cannot be made again")
    again = carry_out(request, console, quiet, tasks=len(recorded.scores))
    reproduction = Reproduction.of(recorded, again)
    console.print(reproduction_table(reproduction))
    if reproduction.differences:
        say(console, f"the runs differ in their {', '.join(reproduction.differences)}")
    console.print("the same to the bit" if reproduction.exact else "[bold]not the same[/] to the bit")
    return 0 if reproduction.exact else 1
