"""Measured figures in README and docs, and the page of published results beside ours: all read from recorded files.

python benchmarks/figures.py [--check]

Writes `docs/results.md` out of `benchmarks/figures.toml`, and says which figures in README and docs no record holds.
With `--check` nothing is written, and the page's being another is an error, too.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hatrack.support.toml import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "results.md"
TABLE: Mapping[str, Any] = tomllib.loads((HERE / "figures.toml").read_text(encoding="utf-8"))

FIGURE = re.compile(r"\d+\.\d+(?: / \d+\.\d+)* ?(?:%|points|times)")
"""Pattern of a measured figure in a text: with decimals, as settings are not, and with its unit."""

WORSE = 1.0
"""From how many units on a figure of ours is marked as worse than the published one; `worse` in an entry is its own."""


@dataclass(frozen=True)
class Measured:
    """A figure over the runs of a record: mean and standard deviation, in the unit in which it is published."""

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


@cache
def record(name: str) -> Any:
    """Return a recorded file."""
    return json.loads((HERE / "results" / name).read_text(encoding="utf-8"))


def values_at(node: Any, path: list[str], where: Mapping[str, Any]) -> Iterator[float]:
    """Give the numbers at a path; of a list of runs, those of all runs of which the conditions hold, and that have it.

    A part of a path may be several keys, joined by bars.
    """
    if not path:
        yield float(node)
    elif isinstance(node, list) and not path[0].lstrip("-").isdigit():
        for each in node:
            if all(each.get(key) == value for key, value in where.items()) and any(
                k in each for k in path[0].split("|")
            ):
                yield from values_at(each, path, where)
    else:
        for key in path[0].split("|"):
            yield from values_at(node[int(key)] if isinstance(node, list) else node[key], path[1:], where)


def measured(entry: Mapping[str, Any], path: str) -> Measured:
    """Return the figure of an entry of the table, over all its records and runs.

    Raises:
        KeyError: a record does not hold it.
    """
    names, where, factor = entry["records"], entry.get("where", {}), entry.get("factor", 100)
    found = [factor * value for name in names for value in values_at(record(name), path.split("/"), where)]
    if not found:
        raise KeyError(f"{', '.join(names)}: no run of {where} has {path}")
    return Measured(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


# ------------------------------------------------------------------------------------------------------ quoted figures


def prose(text: str) -> str:
    """Return a text in one line, without its blocks of code, in which figures are printed by what runs there."""
    return " ".join(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).split())


def is_rounded(number: str, value: float) -> bool:
    """Return whether a number in a text is a value, rounded to the number's decimals."""
    return math.isclose(float(number), value, abs_tol=0.5001 * 10.0 ** -len(number.partition(".")[2]))


def documents() -> dict[str, str]:
    """Return README and the guides, by their paths from the root; the page that is made here is none of them."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths if path != PAGE}


def unfounded(texts: Mapping[str, str]) -> Iterator[str]:
    """Give what is wrong with the figures in texts, a line each: in no record, or another than the record's."""
    for name, text in texts.items():
        figures = list(dict.fromkeys(FIGURE.findall(prose(text))))
        quoted = [entry for entry in TABLE["quoted"] if entry["file"] == name]
        for figure in figures:
            if not any(figure == entry["text"] for entry in quoted):
                yield f"{name}: no record is named for {figure}"
        for entry in quoted:
            if entry["text"] not in figures:
                yield f"{name}: {entry['text']} is not there any more"
            numbers, paths = re.findall(r"\d+\.\d+", entry["text"]), entry.get("paths", ())
            if "published" not in entry and len(numbers) != len(paths):
                yield f"{name}: {entry['text']} has {len(numbers)} numbers and {len(paths)} paths"
            for number, where in zip(numbers, paths, strict=False):
                found = measured(entry, where)
                if not is_rounded(number, found.mean):
                    yield f"{name}: {number} is {found.mean:.3f} in {', '.join(entry['records'])}"


# ------------------------------------------------------------------------------------------------------------ the page

HEAD = """# Published figures and ours

Made by `python benchmarks/figures.py` from the recorded files in `benchmarks/results`, which hold command, versions,
seeds and machine. Where ours is more than one point worse, the difference is **bold**; a figure that was not made says
why. Figures over several seeds are mean ± standard deviation.
"""


def page() -> str:
    """Return the page, in Markdown."""
    parts = [HEAD]
    for section in TABLE["section"]:
        parts.append(f"\n## {section['title']}\n\n{section['about'].strip()}\n")
        parts.append("\n| figure | published | ours | seeds | difference | what differs |\n|---|---|---|---|---|---|\n")
        parts.extend(line(entry) for entry in section["figure"])
    return "".join(parts)


def line(entry: Mapping[str, Any]) -> str:
    """Return a line of a table."""
    published = f"{entry['published']:g}{entry.get('unit', ' %')} ({entry['source']})"
    if "open" in entry:
        return f"| {entry['what']} | {published} | – | – | – | not made: {entry['open']} |\n"
    ours = measured(entry, entry["path"])
    difference = f"{ours.mean - entry['published']:+.2f}"
    if ours.mean < entry["published"] - entry.get("worse", WORSE):
        difference = f"**{difference}**"
    reached = f"{ours}{entry.get('unit', ' %')}"
    return f"| {entry['what']} | {published} | {reached} | {ours.count} | {difference} | {entry['differs']} |\n"


def main() -> int:
    """Write the page and look at all figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    faults = list(unfounded(documents()))
    if not arguments.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        faults.append("docs/results.md is not what the records say: run `python benchmarks/figures.py`")
    print("\n".join(faults) or "every figure is in a record")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
