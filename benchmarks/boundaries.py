"""Task switches that are not announced: how late are they noticed, how often wrongly, and what does it cost?

HAT on two dense layers learns batches without task names: with switches detected from loss and samples, from the loss
alone, and announced (though not to which task). Tested with the task that fits 256 labelled training samples best; and
how many test samples are recognised as that task without a label. The smallest jump of the loss was chosen on seeds
0 and 1 out of .05, .1 and .3; that of the strangeness of samples by one pass over split Fashion-MNIST with seed 0.

python benchmarks/boundaries.py [--seeds 0 1 2] [--streams NAME ...] [--modes MODE ...]
    [--out benchmarks/results/boundaries.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recording import write_record

from hatrack import HATSettings, MaskSchedule
from hatrack.backbones import MLP, build_reproducibly
from hatrack.learning.unannounced import STRANGE, UnannouncedLearner
from hatrack.methods import METHODS, Setup
from hatrack.streams import (
    DetectorSettings,
    StreamOptions,
    Surprise,
    TaskStream,
    Unannounced,
    build_stream,
    in_portions,
    repeated,
)
from hatrack.support.environment import describe_environment

SETTINGS = HATSettings(schedule=MaskSchedule.PAPER)
"""As the records were made; the default, with seed 0 on split Fashion-MNIST, differs by 0.1 points."""

HIDDEN, LR, CYCLE, PASSES, BATCH, LIMIT, PROBE = (200, 200), 0.05, 25, 4, 32, 2000, 256


def split_fashion(seed: int) -> TaskStream:
    return build_stream("split-fashion-mnist", StreamOptions(seed, limit=LIMIT))


def permuted(seed: int) -> TaskStream:
    """Five permutations, which come back in the same order."""
    return repeated(build_stream("permuted-mnist", StreamOptions(seed, limit=LIMIT), num_tasks=5), 2)


def split_fashion_twice(seed: int) -> TaskStream:
    """The five tasks of split Fashion-MNIST, which come back in the same order, each with other samples."""
    return in_portions(split_fashion(seed), 2, seed)


STREAMS = {
    "split-fashion-mnist": split_fashion,
    "split-fashion-mnist, every task in two portions": split_fashion_twice,
    "permuted-mnist, every task twice": permuted,
}
MODES = ("announced", "detected", "by the loss alone")


def judge(switches: list[int], truth: tuple[int, ...]) -> dict[str, Any]:
    """Delays in batches (0: with the first of the new task), switches that were missed, and false alarms."""
    starts = [index for index in range(1, len(truth)) if truth[index] != truth[index - 1]]
    delays, used = [], set()
    for start, end in zip(starts, [*starts[1:], len(truth)], strict=True):
        hit = next((index for index in switches if start <= index < end), None)
        if hit is not None:
            delays.append(hit - start)
            used.add(hit)
    return {
        "switches": len(starts),
        "delays": delays,
        "missed": len(starts) - len(delays),
        "false_alarms": len([index for index in switches if index not in used]),
    }


def learn(stream: TaskStream, seed: int, mode: str, settings: DetectorSettings) -> dict[str, Any]:
    announced = mode == "announced"

    def build() -> torch.nn.Module:
        return build_reproducibly(lambda: MLP(stream.input_shape, HIDDEN), seed, xavier=True)

    method = METHODS["hat"](Setup(build, stream.input_shape, seed, torch.device("cpu")), SETTINGS)
    batches = Unannounced(stream, PASSES, BATCH, seed)
    learner = UnannouncedLearner(
        method,
        batches.classes,
        lambda parameters: torch.optim.SGD(parameters, lr=LR),
        detector=settings,
        strange=None if mode == "by the loss alone" else STRANGE,
        announced=announced,
        cycle=CYCLE,
    )
    truth, steps, started = batches.truth(), [], time.perf_counter()
    for index, (x, y) in enumerate(batches):
        if announced and index and truth[index] != truth[index - 1]:
            learner.announce()
        steps.append(learner.observe(x, y))
    learner.finish()
    seconds = time.perf_counter() - started
    switches = [index for index, step in enumerate(steps) if step.surprise is Surprise.SWITCH and index]
    accuracy, answered_by, recognised = {}, {}, {}
    for task in stream:
        x, y = task.train.load()
        found = learner.best_task(x[:PROBE], y[:PROBE])
        x, y = task.test.load()
        with torch.no_grad():
            accuracy[task.name] = float((method.predict(x, found).argmax(dim=1) == y).float().mean())
        answered_by[task.name] = found
        if mode != "by the loss alone":
            names = learner.recognise(x)
            recognised[task.name] = sum(name == found for name in names) / len(names)
    return {
        **judge(switches, truth),
        "opened": len(learner.tasks),
        "batches": len(steps),
        "accuracy": accuracy,
        "answered_by": answered_by,
        "recognised_without_a_label": recognised,
        "average_accuracy": statistics.fmean(accuracy.values()),
        "seconds": round(seconds, 1),
    }


def write(path: Path | None, settings: DetectorSettings, runs: list[dict[str, Any]]) -> None:
    """Write what was measured so far."""
    choices = {"hidden": HIDDEN, "lr": LR, "cycle": CYCLE, "passes": PASSES, "batch_size": BATCH, "limit": LIMIT}
    result = {
        "settings": {**choices, "detector": dataclasses.asdict(settings), "strange": dataclasses.asdict(STRANGE)},
        "environment": describe_environment(),
        "runs": runs,
    }
    if path is not None:
        write_record(path, result, indent=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=[*STREAMS])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = DetectorSettings()
    runs: list[dict[str, Any]] = []
    for name in arguments.streams:
        for seed in arguments.seeds:
            stream = STREAMS[name](seed)
            for mode in arguments.modes:
                run = learn(stream, seed, mode, settings)
                runs.append({"stream": name, "seed": seed, "switches_are": mode, **run})
                print(
                    f"{name}, seed {seed}, {mode}: "
                    f"{run['average_accuracy']:.2%}, {run['opened']} tasks opened, delays {run['delays']}, "
                    f"{run['missed']} of {run['switches']} missed, {run['false_alarms']} false alarms, "
                    f"{run['seconds']} s",
                    flush=True,
                )
                write(arguments.out, settings, runs)


if __name__ == "__main__":
    main()
