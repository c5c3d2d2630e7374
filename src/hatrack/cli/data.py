"""The commands of ``hatrack data``: which data sets there are, where they are, whether they are sound, getting them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from cyclopts import App, Parameter
from rich import filesize
from rich.box import SIMPLE
from rich.table import Table

from hatrack.cli import names as known
from hatrack.cli.options import Data, Quiet, make_console, say, with_options
from hatrack.errors import DataError, InputError

if TYPE_CHECKING:
    from hatrack.data import DatasetSpec, ImageDataset

__all__ = ["data_app"]

data_app = App(
    name="data",
    help="Show, check and fetch data sets.\n\nThey are looked for in `--data DIR`, in `HATRACK_DATA`, in the system's "
    "folders and in the download cache (`XDG_CACHE_HOME/hatrack`). `HATRACK_OFFLINE=1` forbids the network.",
    help_format="markdown",
)

Name = Annotated[str, Parameter(choices=known.DATASETS)]


@data_app.command(name="list")
def list_command(*, data: Data = None) -> int:
    """Show all data sets: where they are, in which form, and where those that are missing come from.

    Published files count as found only if their content has the right hash; for pictures see `hatrack data check`. What
    the sets hold is explained by `hatrack list datasets`.
    """
    from hatrack.data import DATASETS
    from hatrack.data.sources import NotFoundError

    console = make_console()
    table = Table("name", "form", "size", "where", "source", box=SIMPLE)
    for column in table.columns[1:]:
        column.overflow = "fold"
    for spec in DATASETS.values():
        try:
            variant, paths = spec.locate(data)
        except NotFoundError as error:
            table.add_row(spec.name, "", "", "damaged" if error.absence.faults else "missing", _source(spec))
        else:
            table.add_row(spec.name, variant.name, _size(paths), str(_common(paths)), _source(spec))
    console.print(table)
    return 0


@data_app.command(name="path")
def path_command(name: Name, /, *, data: Data = None) -> int:
    """Print where the files of a data set are, one path a line.

    If it is missing, an error says which files to put where.

    Parameters
    ----------
    name
        The data set.
    """
    from hatrack.data import DATASETS

    _, paths = DATASETS[name].locate(data)
    console = make_console()
    for path in paths:
        say(console, str(path))
    return 0


@data_app.command(name="check")
def check_command(*names: Name, data: Data = None, statistics: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Verify and decode data sets. Exit code 1 if one is damaged, or missing though it was named.

    Parameters
    ----------
    names
        The data sets; all of them if left out.
    statistics
        Compute mean and standard deviation of the training images, and show them beside the published ones.
    """
    from hatrack.data import DATASETS
    from hatrack.data.sources import NotFoundError

    console = make_console()
    faults = 0
    for spec in (DATASETS[name] for name in names or DATASETS):
        try:
            dataset = spec.load(data, download=False)
        except DataError as error:
            missing = isinstance(error, NotFoundError) and not error.absence.faults
            faults += bool(names) or not missing
            say(console, f"{spec.name}: missing" if missing and not names else with_options(str(error)))
            continue
        train, test, classes = len(dataset.y_train), len(dataset.y_test), len(dataset.class_names)
        found = f"{train:,} + {test:,} images of {classes} classes"
        say(console, f"{spec.name}: sound, {found} ({dataset.origin})")
        if statistics:
            for line in _statistics(dataset):
                say(console, line)
    return 1 if faults else 0


@data_app.command(name="fetch")
def fetch_command(*names: Name, data: Data = None, quiet: Quiet = False) -> int:
    """Download what is not on this machine, verify it, and prepare it for use.

    Interrupt it whenever you like: the same command goes on from there.

    Parameters
    ----------
    names
        The data sets.
    """
    if not names:
        raise InputError(f"hatrack data fetch needs the names of data sets; choose from {', '.join(known.DATASETS)}")
    from hatrack.cli.carrying import DownloadDisplay
    from hatrack.data import DATASETS

    console = make_console()
    for spec in (DATASETS[name] for name in names):
        with DownloadDisplay(console, quiet=quiet) as monitor:
            spec.load(data, monitor=monitor)
        if not quiet:
            _, paths = spec.locate(data)
            say(console, f"{spec.name}: ready, in {_common(paths)}")
    return 0


def _statistics(dataset: ImageDataset) -> Iterable[str]:
    from hatrack.data import channel_statistics

    measured = channel_statistics(dataset.x_train)
    for what, computed, published in zip(
        ("mean", "standard deviation"), measured, (dataset.mean, dataset.std), strict=True
    ):
        pairs = (", ".join(f"{value:.4f}" for value in values) for values in (computed, published))
        yield "  {}: computed {}; published {}".format(what, *pairs)


def _source(spec: DatasetSpec) -> str:
    from hatrack.data import DATASETS

    addresses = [address for variant in spec.variants for address in variant.addresses]
    hosts = dict.fromkeys(urlsplit(address).hostname or address for address in addresses)
    if not hosts and spec is DATASETS["fashion-mnist-subset"]:
        return "shipped with hatrack"
    return ", ".join(hosts) or "to be put there by hand"


def _common(paths: tuple[Path, ...]) -> Path:
    return paths[0] if len(paths) == 1 else paths[0].parent


def _size(paths: tuple[Path, ...]) -> str:
    if any(path.is_dir() for path in paths):
        return "a folder"
    return filesize.decimal(sum(path.stat().st_size for path in paths))
