"""Pictures of what is inside a trained network, and of an equation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.experiments import Run, RunRequest, prepare
from hatrack.functional import Compensation, annealed_scale, batch_progress, compensated_gate
from hatrack.masked import MaskedNetwork
from hatrack.methods.dwa import DWA
from hatrack.methods.dwa_analysis import cosine_similarities, task_profile
from hatrack.methods.masked import MaskedMethod
from hatrack.report.figures import Drawing
from hatrack.report.table import Column, Kind, Row, Table

__all__ = ["dwa_embeddings", "dwa_masks", "gradient", "input_attention", "weight_masks"]


def gradient(request: RunRequest, *, s_max: float = 400.0, batches: int = 100) -> Drawing:
    """Fig. 2 of the HAT paper: the gradient of the gate, summed over an epoch of annealing, by the embedding's value.

    Args:
        request: not used; equations need no run.
        s_max: largest scale of the gate.
        batches: steps of the epoch.
    """
    from hatrack.report import charts

    e = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)
    kinds = {
        "s = 1 throughout": (Compensation.NONE, False),
        "annealed": (Compensation.NONE, True),
        "annealed and compensated": (Compensation.EXACT, True),
    }
    rows: list[Row] = []
    for name, (compensation, annealed) in kinds.items():
        total = torch.zeros_like(e)
        for batch in range(batches):
            leaf = e.clone().requires_grad_()
            scale = annealed_scale(batch_progress(batch, batches), s_max) if annealed else 1.0
            compensated_gate(leaf, scale, s_max, compensation).sum().backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            total += leaf.grad
        share = total / total.max()
        rows += [{"gate": name, "e": x, "gradient": y} for x, y in zip(e.tolist(), share.tolist(), strict=True)]
    columns = (Column("gate", "gate"), Column("e", "e", Kind.NUMBER), Column("gradient", "gradient", Kind.RATIO))
    table = Table("gradient", "Gradient of an embedding over an epoch", columns, tuple(rows))
    titles = ("embedding e", "summed gradient (% of its largest)")
    chart = charts.scatter(rows, "e", "gradient", titles, "gate", order="e", points=False)
    return Drawing(chart, table.title, table)


def input_attention(request: RunRequest) -> Drawing:
    """Fig. 10 of the HAT paper: which input features each task uses, as pictures of the input's shape."""
    prepared = _finished(request)
    network = _masked(prepared)
    shape = prepared.stream.input_shape
    tasks = [task.name for task in prepared.result.tasks]
    masks = [network.masks(task).get("inputs") for task in tasks]
    if any(mask is None or mask.numel() != torch.Size(shape).numel() for mask in masks):
        raise InputError("the attention of this run is not on single input features; run it with `gate_inputs=true`")
    values = [mask.float().reshape(shape).mean(dim=0) for mask in masks if mask is not None]
    return _pictures(tasks, values, "Input features in use")


def weight_masks(request: RunRequest) -> Drawing:
    """The masks of weights in the first dense layer: for every input feature, the share of its weights that is on.

    A last picture shows the share that any task uses.
    """
    prepared = _finished(request)
    network = _masked(prepared)
    shape = prepared.stream.input_shape
    tasks = [task.name for task in prepared.result.tasks]
    first = [next(iter(network.masks(task).values())) for task in tasks]
    if first[0].dim() != 2 or first[0].shape[1] != torch.Size(shape).numel():
        raise InputError("the first layer does not read single input features; take an experiment with an mlp")
    union = torch.stack([mask.bool() for mask in first]).any(dim=0)
    values = [mask.float().mean(dim=0).reshape(shape).mean(dim=0) for mask in (*first, union)]
    return _pictures([*tasks, "any task"], values, "Share of each input's weights in use")


def dwa_masks(request: RunRequest) -> Drawing:
    """Cosines between the mean masks of tasks, what all have in common left out."""
    return _similarities(request, "masks")


def dwa_embeddings(request: RunRequest) -> Drawing:
    """Cosines between the mean embeddings of tasks, what all have in common left out."""
    return _similarities(request, "embedding")


def _similarities(request: RunRequest, what: str) -> Drawing:
    from hatrack.report import grids

    prepared = _finished(request)
    method = prepared.method
    if not isinstance(method, DWA):
        raise InputError(f"this is about runs of dwa, not of {request.method}")
    profiles = [task_profile(method.network, task) for task in prepared.stream]
    cosines = cosine_similarities([getattr(profile, what) for profile in profiles], centred=True)
    rows = tuple(
        {"one": i + 1, "other": j + 1, "cosine": float(cosines[i, j])}
        for i in range(len(profiles))
        for j in range(len(profiles))
    )
    one, other = Column("one", "task", Kind.NUMBER), Column("other", "task", Kind.NUMBER)
    cosine = Column("cosine", "cosine", Kind.RATIO)
    title = "Mean masks of tasks" if what == "masks" else "Mean embeddings of tasks"
    table = Table(f"dwa-{what}", f"{title}, cosines", (one, other, cosine), rows)
    return Drawing(grids.heat_map(rows, other, one, cosine, bottom=-100.0), table.title, table)


def _finished(request: RunRequest) -> Run:
    prepared = prepare(request)
    if not prepared.result.scores:
        raise InputError(f"in {request.out} no task has been learned")
    return prepared


def _masked(prepared: Run) -> MaskedNetwork[Any]:
    if not isinstance(prepared.method, MaskedMethod):
        raise InputError(f"{prepared.request.method} has no masks")
    return prepared.method.network


def _pictures(names: list[str], values: list[Tensor], title: str) -> Drawing:
    from hatrack.report import grids

    rows = tuple(
        {"picture": name, "row": row, "column": column, "share": round(float(share), 4)}
        for name, picture in zip(names, values, strict=True)
        for row, line in enumerate(picture)
        for column, share in enumerate(line)
    )
    columns = (
        *(Column("picture", "picture"), Column("row", "row", Kind.NUMBER), Column("column", "column", Kind.NUMBER)),
        Column("share", "in use", Kind.PERCENT),
    )
    return Drawing(grids.pictures(names, values), title, Table("pictures", title, columns, rows))
