"""The commands of ``hatrack data``: which data sets there are, where they are, whether they are sound, getting them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from cyclopts import App, Parameter
from rich import filesize
from rich.box import SIMPLE
from rich.progress import MofNCompleteColumn
from rich.table import Table

from hatrack.cli import names as known
from hatrack.cli.options import WHOLE, Data, Quiet, make_console, require_output, say, with_options
from hatrack.errors import DataError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from hatrack.data import DatasetSpec, ImageDataset, PackedPart

__all__ = ["data_app"]

data_app = App(
    name="data",
    help="Show, check, fetch and pack data sets.\n\nThey are looked for in `--data DIR`, in `HATRACK_DATA`, in the "
    "system's folders and in the download cache (`XDG_CACHE_HOME/hatrack`). `HATRACK_OFFLINE=1` forbids the network.",
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

    Interrupt it whenever you like: the same command goes on from there. A packed part on this machine does not count.

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
            spec.load(data, monitor=monitor, parts=False)
        if not quiet:
            _, paths = spec.locate(data)
            say(console, f"{spec.name}: ready, in {_common(paths)}")
    return 0


@data_app.command(name="pack")
def pack_command(
    *names: Name,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    experiment: Annotated[str | None, Parameter(choices=known.EXPERIMENTS)] = None,
    limit: Annotated[int | None, WHOLE] = None,
    test_limit: Annotated[int | None, WHOLE] = None,
    data: Data = None,
    quiet: Quiet = False,
) -> int:
    """Write parts of data sets into a folder, small and to the bit, to be carried to another machine.

    There give the folder as `--data`. A part is taken where no whole form of its data set is found, and results say
    that it is one. It holds the first pictures of every class, in parts as equal as the classes allow: the classes take
    turns in their order, each with its next picture in the order of the data set, until there are enough.

    Parameters
    ----------
    names
        The data sets.
    out
        The folder; a part is `NAME.packed` in it.
    experiment
        Pack all data sets of an experiment, too.
    limit
        At most so many training pictures of each data set; all if left out.
    test_limit
        At most so many test pictures of each data set; all if left out.
    """
    from hatrack.cli.carrying import DownloadDisplay
    from hatrack.experiments import describe
    from hatrack.streams import STREAMS

    chosen = dict.fromkeys((*names, *(STREAMS[describe(experiment).stream].datasets if experiment else ())))
    if not chosen:
        raise InputError(
            "hatrack data pack needs the names of data sets or an --experiment; choose from "
            + ", ".join(known.DATASETS)
        )
    from hatrack.data import DATASETS, pack_dataset
    from hatrack.data.packed import SUFFIX

    for option, value in (("--limit", limit), ("--test-limit", test_limit)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    paths = {name: out / f"{name}{SUFFIX}" for name in chosen}
    for path in paths.values():
        require_output(path)
    console = make_console()
    parts = {}
    for name in paths:  # all are chosen before one is written: a limit may be below the classes of the last
        with DownloadDisplay(console, quiet=quiet) as monitor:
            dataset = DATASETS[name].load(data, monitor=monitor, parts=False)
        parts[name] = pack_dataset(dataset, DATASETS[name].licence, limit=limit, test_limit=test_limit)
    for name, path in paths.items():
        part = parts[name]
        _write(path, part, console, quiet)
        if not quiet:
            here = len(part.arrays.y_train), len(part.arrays.y_test)
            pictures = "{:,} + {:,} of {:,} + {:,} pictures".format(
                *here, sum(part.train_counts), sum(part.test_counts)
            )
            share = path.stat().st_size / sum(x.numel() for x in (part.arrays.x_train, part.arrays.x_test))
            say(console, f"{name}: {pictures}, {_size((path,))} ({100 * share:.0f} % of their pixels' bytes)")
    if not quiet:
        files = f"{len(paths)} file{'s' * (len(paths) > 1)}"
        say(console, f"together {_size(tuple(paths.values()))} in {files} in {out}")
    return 0


def _write(path: Path, part: PackedPart, console: Console, quiet: bool) -> None:
    """Write a packed part, with a bar in a terminal."""
    from hatrack.cli.carrying import make_progress
    from hatrack.data import write_packed

    with make_progress(console, quiet, MofNCompleteColumn()) as progress:
        total = len(part.arrays.y_train) + len(part.arrays.y_test)
        bar = progress.add_task(f"packing {part.identity.name}", total=total)
        write_packed(path, part, lambda done: progress.update(bar, completed=done))


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
