"""Figures of a network at hand: what of it every task uses, how full it is after every task, what tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.report.canvas import VEGA_LITE, Chart, alt, chart_of, dark_cell, digits, save, style

try:
    import vl_convert
except ImportError as error:  # pragma: no cover - the extra is installed wherever tests run
    raise InputError("charts need altair and vl-convert: pip install 'hatrack[report]'") from error

__all__ = ["NetworkPlot", "TasksOfNetwork", "plot_network"]

_WHITE_FROM = next(share for share in range(101) if dark_cell(share / 100, "light"))
"""Smallest percentage whose cell is so dark that its number is white."""


class TasksOfNetwork(Protocol):
    """Network whose figures are drawn: a :class:`~hatrack.HATNetwork` or a :class:`~hatrack.WeightMaskedNetwork`."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of all tasks, in order."""

    @property
    def task_in_training(self) -> str | None:
        """Name of the task that is not consolidated yet, which is not drawn; None if there is none."""

    def masks(self, task: str) -> dict[str, Tensor]:
        """Return the mask of a task by group."""

    def reuse(self) -> Tensor:
        """Return the share of the weights of task i that task j uses too, ``(T, T)``."""


@dataclass(frozen=True)
class NetworkPlot:
    """Three figures side by side, which a notebook shows, without a script and without a request.

    Attributes:
        chart: the altair chart, to be changed or joined with others.
    """

    chart: Chart

    def save(self, path: Path | str) -> None:
        """Write the figures as SVG, PDF or PNG, by the file's ending.

        Raises:
            InputError: the ending is another one, or the file cannot be there.
        """
        save(self.chart, Path(path))

    def to_svg(self) -> str:
        """Return the figures as the text of an SVG file."""
        spec = self.chart.configure(**style()).to_dict()
        drawn: str = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
        return drawn

    def _repr_svg_(self) -> str:
        return self.to_svg()


def plot_network(net: TasksOfNetwork) -> NetworkPlot:
    """Draw what the consolidated tasks of a network use, also as ``net.plot()``.

    The first figure has the share of every layer that each task uses (of units; of weights, where masks are about
    weights; where masks are soft, the mean attention). The second has the share that the tasks so far use together,
    after every task, as in Fig. 8 of the HAT paper. The third has the share of the weights of a task that another one
    uses too, as in Fig. 6.

    Args:
        net: the network, with one consolidated task at least.

    Raises:
        InputError: no task is consolidated, or altair and vl-convert are not installed (``hatrack[report]``).
    """
    names = [name for name in net.task_names if name != net.task_in_training]
    if not names:
        raise InputError("there is nothing to draw yet: consolidate a task first")
    masks = [net.masks(name) for name in names]
    tasks = [f"{number} {name}" for number, name in enumerate(names, 1)]
    used, together = _shares(masks), _shares(_unions(masks))
    groups = list(used)
    layers = [{"x": t, "y": g, "value": used[g][i]} for g in groups for i, t in enumerate(tasks)]
    reused = (100 * net.reuse()).tolist()
    shared = [{"x": b, "y": a, "value": reused[i][j]} for i, a in enumerate(tasks) for j, b in enumerate(tasks)]
    full = [{"x": i + 1, "layer": g, "value": together[g][i]} for g in groups for i in range(len(tasks))]
    figures = (
        _matrix(layers, tasks, groups, ("task", "layer"), "used by each task (%)"),
        _filling(full, groups, "in use after each task (%)"),
        _matrix(shared, tasks, tasks, ("used by task", "weights of task"), "reuse of weights (%)"),
    )
    return NetworkPlot(alt.hconcat(*figures, spacing=28).resolve_scale(color="independent"))


def _unions(masks: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return what the first task uses, the first two, and so on."""
    unions: list[dict[str, Tensor]] = []
    for mask in masks:
        before = unions[-1] if unions else mask
        unions.append({group: torch.maximum(before[group], values) for group, values in mask.items()})
    return unions


def _shares(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """Return the mean of every mask, in percent, by group."""
    return {
        group or "backbone": [digits(100 * float(mask[group].double().mean())) for mask in masks] for group in masks[0]
    }


def _matrix(
    values: list[dict[str, Any]], across: Sequence[str], down: Sequence[str], titles: tuple[str, str], title: str
) -> Chart:
    """Draw a matrix of percentages with its numbers written in."""
    rows = [{**value, "value": digits(value["value"])} for value in values]
    base = chart_of(rows).encode(
        x=alt.X("x:N", sort=list(across), title=titles[0], axis=alt.Axis(labelAngle=-40, labelLimit=160)),
        y=alt.Y("y:N", sort=list(down), title=titles[1], axis=alt.Axis(labelLimit=200)),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", legend=None, scale=alt.Scale(domain=[0, 100], interpolate="rgb")),
        tooltip=[alt.Tooltip("y:N", title=titles[1]), alt.Tooltip("x:N", title=titles[0]), "value:Q"],
    )
    numbers = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format=".0f"),
        color=alt.condition(f"datum.value >= {_WHITE_FROM}", alt.value("white"), alt.value("black")),
    )
    return alt.layer(cells, numbers).properties(width=46 * len(across), height=34 * len(down), title=title)


def _filling(values: list[dict[str, Any]], groups: Sequence[str], title: str) -> Chart:
    """Draw a line per layer over the tasks learned."""
    last = max(value["x"] for value in values)
    return (
        chart_of(values)
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=2)
        .encode(
            x=alt.X("x:O", title="tasks learned", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("layer:N", sort=list(groups), title="layer"),
            tooltip=["layer:N", alt.Tooltip("x:O", title="tasks learned"), "value:Q"],
        )
        .properties(width=max(120, 46 * last), height=150, title=title)
    )
