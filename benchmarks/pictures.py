"""Pictures drawn from records: ρ over tasks, and single tasks made small; Figs. 3, 7 and 9 of the HAT paper.

python benchmarks/pictures.py [--out docs/report]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatrack.report import charts
from hatrack.report.canvas import save
from hatrack.report.table import Kind, Row, mean_and_sd

RESULTS = Path(__file__).parent / "results"
RATIO = Kind.RATIO.column("forgetting_ratio", "ρ")
ACCURACY = Kind.PERCENT.column("valid_accuracy", "validation accuracy")
ADAM = "optimizer=adam,lr=0.001"


@dataclass(frozen=True)
class Picture:
    """A picture of a record.

    Attributes:
        record: file of the record.
        title: the text above it.
        lines: for every line of the picture, by what it is called there, the method and its settings in the record.
    """

    record: str
    title: str
    lines: Mapping[str, tuple[str, str]]


PICTURES: Mapping[str, Picture] = {
    "mixture": Picture(
        "mixture_seven.json",
        "Seven data sets one after the other, in three orders",
        {
            "hat, Adam": ("hat", f"regularizer=layered-l1,c=3.0,{ADAM}"),
            "hat": ("hat", "regularizer=layered-l1,c=3.0"),
            "wsn": ("wsn", ""),
            "pmask": ("pmask", ""),
            "pathnet": ("pathnet", ""),
            "pnn": ("pnn", ""),
            "ewc": ("ewc", ""),
            "imm-mean": ("imm-mean", ""),
            "lwf": ("lwf", ""),
            "sgd": ("sgd", ""),
        },
    ),
    "incremental-cifar": Picture(
        "incremental_cifar.json",
        "Classes of CIFAR-10 and CIFAR-100 in ten tasks",
        {
            "hat, Adam": ("hat", f"schedule=settled,{ADAM}"),
            "hat": ("hat", "schedule=settled"),
            "ewc": ("ewc", ""),
            "sgd": ("sgd", ""),
        },
    ),
}
"""All pictures, by the name of their file."""


def rows_of(picture: Picture, runs: list[dict[str, Any]]) -> list[Row]:
    """Return a row per line and number of tasks: ρ, its mean and standard deviation over seeds.

    Raises:
        ValueError: the record has no run of a line, or one without ρ.
    """
    rows: list[Row] = []
    for label, line in picture.lines.items():
        ratios = [run.get("forgetting_ratios") for run in runs if (run["method"], run["chosen"]) == line]
        if not ratios or None in ratios:
            raise ValueError(f"{picture.record} has no ρ of {label}: make its runs, and those of joint and random")
        for after, values in enumerate(zip(*ratios, strict=True), start=1):
            rows.append({"method": label, "after": after, **mean_and_sd(RATIO.key, values), "seeds": len(values)})
    return rows


def by_epoch(record: Mapping[str, Any]) -> list[Row]:
    """Return a row per data set and epoch of ``compression.json``: units in use and accuracy, means over seeds.

    Epochs that a training of some seed has not reached are left out.
    """
    rows: list[Row] = []
    for name, found in record["results"].items():
        used, right = ([run["by epoch"][key] for run in found["runs"]] for key in ("used", "valid_accuracy"))
        for epoch, (shares, accuracies) in enumerate(
            zip(zip(*used, strict=False), zip(*right, strict=False), strict=True), start=1
        ):
            mean = 100 * statistics.fmean(shares)
            rows.append({"data": name, "epoch": epoch, "percent": mean, ACCURACY.key: statistics.fmean(accuracies)})
    return rows


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=Path("docs/report"), help="folder for the pictures")
    arguments = parser.parse_args()
    names = {*(picture.record for picture in PICTURES.values()), "compression.json"}
    if missing := [name for name in sorted(names) if not (arguments.results / name).exists()]:
        parser.error(f"{arguments.results} has no {', '.join(missing)}; give the folder of the records (--results)")
    for name, picture in PICTURES.items():
        record = json.loads((arguments.results / picture.record).read_text(encoding="utf-8"))
        rows = rows_of(picture, record["runs"])
        save(charts.curves(rows, RATIO, [*picture.lines]), arguments.out / f"{name}.svg", picture.title)
    record = json.loads((arguments.results / "compression.json").read_text(encoding="utf-8"))
    chart = charts.scatter(
        by_epoch(record), "percent", ACCURACY, "units in use (%)", "data", order="epoch", points=False
    )
    save(chart, arguments.out / "compression.svg", "Single tasks made small, epoch by epoch from right to left")


if __name__ == "__main__":
    main()
