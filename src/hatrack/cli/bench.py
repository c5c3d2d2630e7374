"""The command that measures what hatrack costs on this machine, for a backbone of the user's own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console

from hatrack.cli.options import (
    WHOLE,
    Device,
    NetworkName,
    Output,
    Quiet,
    Settings,
    check_threads,
    make_console,
    read_overrides,
    require_output,
    say,
    take_device,
    write_file,
)
from hatrack.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hatrack.experiments import CostPlan, Costs

__all__ = ["bench_command"]

_OF_OPTIMIZERS = ("momentum", "weight_decay")
"""Settings that a step's time may depend on, beside those of the network."""


def bench_command(
    *,
    network: NetworkName | str = "alexnet",
    shape: str = "3,32,32",
    batch_size: Annotated[int, WHOLE] = 64,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    settings: Settings = (),
    tasks: Annotated[int, WHOLE] = 2,
    used: float = 0.5,
    repetitions: Annotated[int, WHOLE] = 20,
    device: Device = "auto",
    threads: Annotated[int | None, WHOLE] = None,
    out: Output = None,
    quiet: Quiet = False,
) -> int:
    """Measure what hatrack costs on this machine, for a backbone of your own, before you decide.

    Trains copies of the backbone on made-up samples, in turns: plainly, with a linear head, and with hard attention to
    the task. Says the time and memory of a step of both at the first task and at a later one, and the seconds to
    attach, to add, consolidate and extract a task, and to save. On a GPU it measures both steps as CUDA graphs, too, as
    `--set captured=true` of `hatrack run` makes them. Needs no data; Ctrl-C leaves what is measured by then. Examples:
    `hatrack bench --network mymodule:build --shape 3,64,64 --batch-size 32 --optimizer adamw`, where `mymodule.py` in
    the working directory has `build(shape)`; `hatrack bench --network mlp --shape 1,28,28 --set hidden=800,800`.

    Parameters
    ----------
    network
        The backbone. `mymodule:build` takes a function of your own, which gets the shape of a sample and returns a
        network that maps a batch to features.
    shape
        Shape of one sample, which has real numbers.
    batch_size
        Samples of a step.
    optimizer
        The optimizer of both steps.
    settings
        Override a setting of the network or the optimizer, `key=value`, as often as needed: `--set width=0.5`,
        `--set momentum=0.9 --set weight_decay=0.01`.
    tasks
        How many tasks are consolidated before the later steps.
    used
        Share of the units, drawn at random, that each of these tasks uses.
    repetitions
        Pairs of a plain and a HAT step that are timed; on a GPU pairs of ten of each.
    device
        Where to train; `auto` takes a GPU if there is one.
    threads
        Number of CPU threads; as many as torch takes by itself if left out.
    out
        A file for all figures, as JSON, with the command and a description of this machine.
    """
    overrides, sizes = read_overrides(settings), _sizes(shape)
    for key in ("network", "optimizer", "batch_size"):
        if key in overrides:
            raise InputError(f"give --{key.replace('_', '-')} in the place of --set {key}=...")
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {batch_size}")
    if out is not None:
        require_output(out)
    import torch

    from hatrack.experiments import CostPlan
    from hatrack.experiments.backbones import build_backbone
    from hatrack.experiments.settings import NetworkSettings, read_settings
    from hatrack.support.environment import describe_environment
    from hatrack.train import TrainingSettings

    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    of_optimizer = {key: overrides.pop(key) for key in _OF_OPTIMIZERS if key in overrides}
    training = {"lr": CostPlan().training.lr, "optimizer": optimizer, **of_optimizer}
    plan = CostPlan(tasks, used, repetitions=repetitions, training=read_settings(TrainingSettings, training))
    chosen = read_settings(NetworkSettings, {"network": network, **overrides})
    where = take_device(device)
    backbone = build_backbone(chosen, sizes, 0).to(where)
    batch = torch.randn(batch_size, *sizes, generator=torch.Generator().manual_seed(0)).to(where)

    console, environment = make_console(), describe_environment(where)
    costs, interrupted = _measured(console, quiet, backbone, batch, plan)
    if costs is not None and not quiet:
        _show(console, costs, f"{network}, batches of {batch_size} × {shape}, {optimizer}", environment)
    if costs is not None and out is not None:
        words = {"--network": network, "--shape": shape, "--batch-size": batch_size, "--optimizer": optimizer}
        words |= {"--tasks": tasks, "--used": used, "--repetitions": repetitions}
        words |= {"--device": where.type, "--threads": environment["threads"]}
        line = ["hatrack", "bench", *(str(part) for word in words.items() for part in word)]
        line += [part for setting in settings for part in ("--set", setting)]
        record = {"command": shlex.join(line), "environment": environment, **costs.to_json()}
        write_file(out, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        if not quiet:
            say(console, f"wrote {out}")
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _measured(
    console: Console, quiet: bool, backbone: nn.Module, batch: Tensor, plan: CostPlan
) -> tuple[Costs | None, bool]:
    """Measure, and show how far it is; return what is known in the end, and whether Ctrl-C has ended it."""
    from rich.progress import TextColumn

    from hatrack.cli.carrying import make_progress
    from hatrack.experiments import measuring_costs
    from hatrack.train.capture import as_cuda_graph

    costs, share = None, TextColumn("{task.percentage:>3.0f} %")
    capture = as_cuda_graph if batch.device.type == "cuda" else None
    try:
        with (
            make_progress(console, quiet, share) as progress,
            closing(measuring_costs(backbone, batch, plan, capture)) as measuring,
        ):
            bar = progress.add_task("attaching", total=None)
            for costs in measuring:
                progress.update(bar, description=costs.doing, completed=costs.done, total=costs.total)
    except KeyboardInterrupt:
        return costs, True
    return costs, False


def _show(console: Console, costs: Costs, title: str, environment: Mapping[str, Any]) -> None:
    """Print the tables, the machine, and what the figures mean."""
    from hatrack.report import once_table, steps_table

    if costs.steps:
        console.print(steps_table(costs, title))
    if costs.seconds or costs.missing:
        console.print(once_table(costs))
    machine = environment["processor"] if environment["device"] == "cpu" else environment["device"]
    threads = environment["threads"]
    say(console, f"on {machine}, {threads} CPU thread{'s' * (threads > 1)}, torch {environment['torch']}")
    say(console, f"ratio: median of HAT over plain, pair by pair; memory of a step: {costs.memory}")


def _sizes(shape: str) -> tuple[int, ...]:
    """Read the shape of a sample.

    Raises:
        InputError: it is no row of sizes.
    """
    parts = shape.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise InputError(f"--shape {shape} does not fit: write the sizes of one sample, such as 3,32,32")
    return tuple(map(int, parts))
