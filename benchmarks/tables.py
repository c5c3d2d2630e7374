"""Tables of runs over methods and seeds, which may be stopped at any time and go on where they were.

python benchmarks/tables.py strengths --data DATA [--experiments split-cifar10] [--methods ewc,mas] [--seeds 100]
    [--part 1/2]

The tables are in `benchmarks/tables.toml`. A row of a record is a run of `hatrack run` with the settings that it names;
the record is written after every run, and what it holds is not run again, unless defaults that it was made with have
changed since. Rows of an experiment are on the same data: beside rows on other data nothing is run. Several processes
may work on one table, each on a part of its rows.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recording import write_record

from hatrack import keep_freed_memory
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, RunRequest, prepare, run
from hatrack.experiments.continuing import other_data
from hatrack.experiments.experiment import completed
from hatrack.experiments.results import RunResult
from hatrack.functional import forgetting_ratio
from hatrack.methods import Method
from hatrack.methods.den import DEN
from hatrack.storage.locks import locked
from hatrack.support.environment import describe_environment
from hatrack.support.toml import tomllib

HERE = Path(__file__).parent
TABLES: Mapping[str, Mapping[str, Any]] = tomllib.loads((HERE / "tables.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Row:
    """A run that a table asks for: experiment, method, the method's settings, seed."""

    experiment: str
    method: str
    settings: Mapping[str, Any]
    seed: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Identity among other rows; a strength of 5 and of 5.0 are one."""
        numbers = {key: float(value) if type(value) is int else value for key, value in self.settings.items()}
        chosen = ",".join(f"{key}={value}" for key, value in numbers.items())
        return self.experiment, self.method, self.seed, chosen


def rows_of(table: Mapping[str, Any], arguments: argparse.Namespace) -> Iterator[Row]:
    """Give what is asked for, seed by seed."""
    for seed in arguments.seeds or table["seeds"]:
        for experiment in arguments.experiments or table["experiments"]:
            for method in arguments.methods or table["methods"]:
                for settings in table["methods"][method]:
                    yield Row(experiment, method, settings, seed)


def config_of(row: Row, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a row's run, as they are with the defaults of today."""
    config = EXPERIMENTS[row.experiment].config(row.method).overridden({**common, **row.settings})
    return json.loads(json.dumps(config.flat()))


def measured(row: Row, common: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """Make a run and return its row of the record; accuracies and forgetting are fractions."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        prepared = prepare(RunRequest(row.experiment, row.method, row.seed, out, data, {**common, **row.settings}))
        for _ in run(prepared):
            pass
        result = prepared.result
    values = [[score.value for score in line] for line in result.scores]
    used = result.history[-1].used
    experiment, method, seed, chosen = row.key
    return {
        "experiment": experiment,
        "method": method,
        "seed": seed,
        "chosen": chosen,
        "average_accuracy": round(statistics.fmean(values[-1]), 4),
        "forgetting": round(statistics.fmean(line[i] - values[-1][i] for i, line in enumerate(values[:-1])), 4),
        "when_learned": [round(line[i], 4) for i, line in enumerate(values)],
        "accuracies": [[round(value, 4) for value in line] for line in values],
        "tasks": [task.name for task in result.tasks],
        "used": round(used[-1], 3) if used else None,
        **layers_of(prepared.method),
        **widened(result),
        **recognised_in(result.metrics()),
        "seconds": round(sum(result.seconds), 1),
        "commit": commit(),
        "data": list(result.data),
        "config": config_of(row, common),
    }


def layers_of(method: Method) -> dict[str, Any]:
    """Return what tasks did to a network whose layers grow: time stamps, and units selected, added and split."""
    if not isinstance(method, DEN):
        return {}
    changes = {task: asdict(changes) for task, changes in method.changes.items()}
    return {"time_stamps": dict(method.network.widths), "changes": changes}


def widened(result: RunResult) -> dict[str, Any]:
    """Return how many parameters tasks share after the first and after the last, where the network was widened."""
    sizes = [history.capacity["parameters"] for history in result.history if history.capacity]
    return {"parameters_at_first": sizes[0], "parameters": sizes[-1]} if sizes and sizes[0] != sizes[-1] else {}


def with_ratios(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the forgetting ratio after every task (Serrà et al., eq. 6) to runs whose joint and random ones are there."""
    known = {key_of(run)[:3]: run["accuracies"] for run in runs if "accuracies" in run and not run["chosen"]}

    def ratios(run: Mapping[str, Any]) -> list[float]:
        references = [known.get((run["experiment"], method, run["seed"])) for method in ("random", "joint")]
        if "accuracies" not in run or None in references:
            return []
        lines = zip(run["accuracies"], *references, strict=True)
        return [round(statistics.fmean(map(forgetting_ratio, *line)), 4) for line in lines]

    return [{**run, **({"forgetting_ratios": found} if (found := ratios(run)) else {})} for run in runs]


def recognised_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the shares of samples whose task, and task and class, were recognised in the end, where that is known."""
    names = ("class_incremental_accuracy", "task_recognised")
    return {name: round(metrics[name], 4) for name in names if metrics[name] is not None}


def commit() -> str:
    """Return the commit that is checked out, or an empty text outside of a repository."""
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def words(text: str) -> list[str]:
    """Return what commas separate."""
    return text.split(",")


def part(text: str) -> tuple[int, int]:
    """Return the number of a part, from 0 on, and that of all parts."""
    number, of = map(int, text.split("/"))
    return number - 1, of


def read(path: Path) -> dict[str, Any]:
    """Return a record as it is on disk, or one without runs."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}


def is_made(record: Mapping[str, Any], row: Row, common: Mapping[str, Any]) -> bool:
    """Return whether a record holds a row, made with the defaults of today as far as it says.

    A setting that came after the record was made has the value there that does what was done then.
    """
    found = [run.get("config") for run in record["runs"] if key_of(run) == row.key]  # none before 2026-11-29
    if not found or found[0] is None:
        return bool(found)
    made = json.loads(json.dumps(completed(row.method, found[0])))
    return in_full(made) == in_full(config_of(row, common))


def in_full(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the numbers that ``none`` stands for and always has.

    ``embedding_lr_factor`` is 1 with SGD, and ``learned_at`` 0 in networks of more than 100 units, as in all tables.
    """
    stands_for_one = config["optimizer"] == "sgd" and config.get("embedding_lr_factor", 1.0) is None
    stands_for_none = "learned_at" in config and config["learned_at"] is None
    return {
        **config,
        **({"embedding_lr_factor": 1.0} if stands_for_one else {}),
        **({"learned_at": 0.0} if stands_for_none else {}),
    }


def require_same_data(path: Path, experiment: str, data: Path) -> None:
    """Refuse to put rows beside those of a record that have seen other data, as far as it says (not before 2026-11-29).

    Raises:
        InputError: a row of the experiment is on other data than there is now.
    """
    now = data_of(experiment, data)
    for made in read(path)["runs"]:
        if made["experiment"] == experiment and (said := other_data(made.get("data", ()), now)):
            raise InputError(
                f"{path} has rows on other data ({said}); give that data (--data), or another folder (--results)"
            )


@functools.cache
def data_of(experiment: str, data: Path) -> tuple[str, ...]:
    """Return the lines about the data that an experiment finds now."""
    return EXPERIMENTS[experiment].find_data(data)


def key_of(made: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """Return the key of a row of a record."""
    return made["experiment"], made["method"], made["seed"], made["chosen"]


def main() -> None:
    """Make the runs that are missing, and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--experiments", type=words, help="joined by commas; all by default")
    parser.add_argument("--methods", type=words, help="joined by commas; all by default")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in words(text)], help="joined by commas")
    parser.add_argument("--part", type=part, default=(0, 1), help="of how many, such as 1/2; all by default")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    table = TABLES[arguments.table]
    path = arguments.results / table["record"]
    number, of = arguments.part
    for row in islice(rows_of(table, arguments), number, None, of):
        common = {**table["set"], **table["experiments"][row.experiment]}
        require_same_data(path, row.experiment, arguments.data)
        if is_made(read(path), row, common):
            continue
        made = measured(row, common, arguments.data)
        print(made, flush=True)
        with locked(arguments.results, patience=60.0):
            require_same_data(path, row.experiment, arguments.data)  # another process may have begun the record
            record = read(path)
            record = {
                "about": table["about"],
                "command": f"python benchmarks/tables.py {arguments.table}",
                "set": {"common": table["set"], **table["experiments"]},
                "environment": {**describe_environment(torch.device("cpu")), "threads": 1},
                "runs": with_ratios([*(run for run in record["runs"] if key_of(run) != row.key), made]),
            }
            write_record(path, record)


if __name__ == "__main__":
    main()
