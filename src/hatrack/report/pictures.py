"""Pictures of the inside of a trained network, and of an equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.experiments import Run, RunRequest, prepare
from hatrack.functional import Compensation, annealed_scale, batch_progress, compensated_gate
from hatrack.methods.dwa import DWA
from hatrack.methods.dwa.analysis import cosine_similarities, task_profile
from hatrack.methods.masked import MaskedMethod
from hatrack.models.base import MaskedNetwork
from hatrack.report import charts
from hatrack.report.table import Drawing, Kind, Row, Table

__all__ = ["PICTURES", "dwa_embeddings", "dwa_masks", "gradient", "input_attention", "weight_masks"]


def gradient(request: RunRequest, *, s_max: float = 400.0, batches: int = 100) -> Drawing:
    """Draw the gradient of the gate, summed over an epoch, by the embedding's value (Fig. 2 of the HAT paper).

    Args:
        request: not used; equations need no run.
        s_max: largest scale of the gate.
        batches: steps of the epoch.
    """
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
    columns = (
        Kind.TEXT.column("gate"),
        Kind.NUMBER.column("e"),
        Kind.RATIO.column("gradient"),
    )
    table = Table("gradient", "Gradient of an embedding over an epoch", columns, tuple(rows))
    drawn = Kind.PERCENT.column("gradient", "summed gradient, of its largest")
    chart = charts.scatter(rows, "e", drawn, "embedding e", "gate", order="e", points=False)
    return Drawing(chart, table.title, table)


def input_attention(request: RunRequest) -> Drawing:
    """Draw the input features that each task uses, as pictures of the input's shape (Fig. 10 of the HAT paper)."""
    network, tasks, shape = _masked(request)
    masks = [network.masks(task).get("inputs") for task in tasks]
    if any(mask is None or mask.numel() != torch.Size(shape).numel() for mask in masks):
        raise InputError("the attention of this run is not on single input features; run it with `gate_inputs=true`")
    values = [mask.float().reshape(shape).mean(dim=0) for mask in masks if mask is not None]
    return _pictures(tasks, values, "Input features in use (white) and not (black)")


def weight_masks(request: RunRequest) -> Drawing:
    """Draw the masks of weights in the first dense layer: of every input feature, the share of its weights that is on.

    A last picture shows the share that any task uses.
    """
    network, tasks, shape = _masked(request)
    first = [next(iter(network.masks(task).values())) for task in tasks]
    if first[0].dim() != 2 or first[0].shape[1] != torch.Size(shape).numel():
        raise InputError("the first layer does not read single input features; take an experiment with an mlp")
    union = torch.stack([mask.bool() for mask in first]).any(dim=0)
    values = [mask.float().mean(dim=0).reshape(shape).mean(dim=0) for mask in (*first, union)]
    return _pictures(
        [*tasks, "any task"], values, "Share of each input's weights in use, from none (black) to all (white)"
    )


def dwa_masks(request: RunRequest) -> Drawing:
    """Draw the cosines between the mean masks of tasks, without the part that all have in common."""
    return _similarities(request, "masks")


def dwa_embeddings(request: RunRequest) -> Drawing:
    """Draw the cosines between the mean embeddings of tasks, without the part that all have in common."""
    return _similarities(request, "embedding")


def _similarities(request: RunRequest, what: str) -> Drawing:
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
    one, other = Kind.NUMBER.column("one", "task"), Kind.NUMBER.column("other", "task")
    cosine = Kind.RATIO.column("cosine")
    title = "Mean masks of tasks" if what == "masks" else "Mean embeddings of tasks"
    table = Table(f"dwa-{what}", f"{title}, cosines", (one, other, cosine), rows)
    return Drawing(
        charts.heat_map(rows, other, one, replace(cosine, kind=Kind.PERCENT), bottom=-100.0), table.title, table
    )


def _finished(request: RunRequest) -> Run:
    prepared = prepare(request)
    if not prepared.result.scores:
        raise InputError(f"in {request.out} no task has been learned")
    return prepared


def _masked(request: RunRequest) -> tuple[MaskedNetwork[Any], list[str], tuple[int, ...]]:
    """Return the network of a run, the names of its tasks, and the shape of a sample."""
    prepared = _finished(request)
    if not isinstance(prepared.method, MaskedMethod):
        raise InputError(f"{request.method} has no masks")
    return prepared.method.network, [task.name for task in prepared.result.tasks], prepared.stream.input_shape


def _pictures(names: list[str], values: list[Tensor], title: str) -> Drawing:
    rows = tuple(
        {"picture": name, "row": row, "column": column, "share": round(float(share), 4)}
        for name, picture in zip(names, values, strict=True)
        for row, line in enumerate(picture)
        for column, share in enumerate(line)
    )
    columns = (
        *(
            Kind.TEXT.column("picture"),
            Kind.NUMBER.column("row"),
            Kind.NUMBER.column("column"),
        ),
        Kind.PERCENT.column("share", "in use"),
    )
    return Drawing(charts.pictures(names, values), title, Table("pictures", title, columns, rows))


PICTURES: Mapping[str, Callable[[RunRequest], Drawing]] = MappingProxyType(
    {
        "gradient": gradient,
        "input-attention": input_attention,
        "weight-masks": weight_masks,
        "dwa-masks": dwa_masks,
        "dwa-embeddings": dwa_embeddings,
    }
)
"""Draws every picture, by its name, from the request of a run."""
