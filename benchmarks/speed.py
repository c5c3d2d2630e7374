"""Costs of a hundred tasks, of steps in nearly full networks, a whole run, re-testing old tasks and torch.compile.

Ratios of times in one process:

python benchmarks/speed.py tasks|full|settled|run|evaluation|compile|plain|adam|weights [--out FILE]

Times are processor time of the one thread that works, which other processes of a shared machine disturb least; what is
compared takes turns. With `--out` the section is put into that file, beside the others that it holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recording import write_record
from step_time import BATCH, at_third_task, hat_step, plain_step
from torch import Tensor, nn

from hatrack import HATNetwork, WeightMaskedNetwork, keep_freed_memory
from hatrack.backbones import MLP, AlexNet, Dropout, ResNet18
from hatrack.experiments import Run, RunRequest, TaskLearned, prepare, run
from hatrack.masks import Embedding, MaskSource, Scores
from hatrack.methods import ParameterGroup
from hatrack.support.environment import describe_environment
from hatrack.train import BatchDone, OptimizerKind, TrainingSettings
from hatrack.train.optimizers import build_optimizer

SHAPE = (1, 28, 28)


def in_turns(steps: Mapping[str, Callable[[int], Any]], repetitions: int, warm: int = 3) -> dict[str, list[float]]:
    """Seconds of processor time of every step, called with the number of the repetition; some more to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(-warm, repetitions):
        for name, step in steps.items():
            start = time.thread_time()
            step(repetition)
            if repetition >= 0:
                seconds[name].append(time.thread_time() - start)
    return seconds


def against(seconds: Mapping[str, list[float]], reference: str) -> dict[str, Any]:
    """Median times, and medians of the ratios to a reference, turn by turn."""
    return {
        name: {
            "ms": round(1e3 * statistics.median(times), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(times, seconds[reference], strict=True)), 3),
        }
        for name, times in seconds.items()
    }


# ------------------------------------------------------------------------------------------------------ many tasks


def with_tasks(backbone: nn.Module, tasks: int) -> HATNetwork:
    """A network whose last task is in training; each uses the units that a normal embedding turns on."""
    net = HATNetwork(backbone, torch.zeros(1, *SHAPE))
    for number in range(tasks):
        net.add_task("third" if number == tasks - 1 else f"task {number}", num_classes=2)
        if number < tasks - 1:
            net.consolidate(f"task {number}")
    return net


def bytes_of(tensors: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, Tensor))


def many_tasks(repetitions: int) -> dict[str, Any]:
    """A step at tasks 1, 3 and 100, and what a further task takes in memory and in a file."""
    results: dict[str, Any] = {}
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(0, 2, (BATCH,))
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
        "AdamW, weight decay": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2),
    }
    for width, times in ((2000, repetitions), (100, 10 * repetitions)):
        nets = {f"task {n}": with_tasks(MLP(SHAPE, hidden=(width, width), dropout=(0.2, 0.5)), n) for n in (1, 3, 100)}
        for name, make in optimizers.items():
            steps = {}
            for task, net in nets.items():
                optimizer = net.protect(make(net.task_parameters("third")))
                steps[task] = lambda r, net=net, optimizer=optimizer: hat_step(net, optimizer, x, y, (r % 10) / 9)
            results[f"2x{width}, {name}"] = against(in_turns(steps, times), "task 1")
        net = nets["task 100"]
        last = net.tasks[-2]
        own = {id(parameter) for parameter in last.parameters()}
        in_file = {k: v for k, v in net.to_checkpoint().tensors.items() if k.startswith(f"tasks.{len(net.tasks) - 2}.")}
        results[f"2x{width}, bytes of a further task"] = {
            "units": net.units.num_units,
            "mask": bytes_of([last.packed]),
            "head": bytes_of(last.head.parameters()),
            "parameters and buffers": bytes_of([*last.parameters(), *last.buffers(), last.packed]),
            "file": bytes_of(in_file.values()),
            "copy to put back": bytes_of(keeper.saved for p, keeper in net.protection.plan.own if id(p) in own),
        }
        print(json.dumps(results), flush=True)
    return results


# ------------------------------------------------------------------------------------------------- nearly full networks


def nearly_full(backbone: nn.Module, shape: tuple[int, ...], share: float, tasks: int = 20) -> HATNetwork:
    """A network whose last task is in training; a share of the units is used by the first, parts of it by others."""
    net = HATNetwork(backbone, torch.zeros(1, *shape))
    generator = torch.Generator().manual_seed(0)
    used = torch.rand(net.units.num_units, generator=generator) < share
    for number in range(tasks - 1):
        on = used if number == 0 else used & (torch.rand(len(used), generator=generator) < 0.5)
        net.add_task(f"task {number}", num_classes=2, embedding=torch.where(on, 1.0, -1.0))
        net.consolidate(f"task {number}")
    net.add_task("third", num_classes=2)
    return net


def full(repetitions: int) -> dict[str, Any]:
    """A step at task 20 with most units used against a plain step, and with whole gradients; scales 0 to s_max."""
    results: dict[str, Any] = {}
    shape = (3, 32, 32)
    cases: list[tuple[str, Callable[[], nn.Module], int]] = [
        ("AlexNet-like", lambda: AlexNet(shape), 2048),
        ("ResNet-18", lambda: ResNet18(shape), 512),
    ]
    x, y = torch.randn(BATCH, *shape), torch.randint(0, 2, (BATCH,))
    for name, build, features in cases:
        plain = nn.Sequential(build(), nn.Linear(features, 2))
        first = torch.optim.SGD(plain.parameters(), lr=0.05)
        steps: dict[str, Callable[[int], Any]] = {"plain": lambda _, p=plain, o=first: plain_step(p, o, x, y)}
        for share in (0.8, 0.95):
            net = nearly_full(build(), shape, share)
            optimizer = net.protect(torch.optim.SGD(net.task_parameters("third"), lr=0.05))
            steps[f"{share:.0%} used"] = lambda r, n=net, o=optimizer: hat_step(n, o, x, y, (r % 10) / 9)
            if share == 0.8:
                other = nearly_full(build(), shape, share)
                other.masking.attachment.partial_gradients.clear()
                whole = other.protect(torch.optim.SGD(other.task_parameters("third"), lr=0.05))
                steps["80% used, whole gradients"] = lambda r, n=other, o=whole: hat_step(n, o, x, y, (r % 10) / 9)
        results[f"{name} 32x32x3, SGD"] = against(in_turns(steps, repetitions, warm=2), "plain")
        print(json.dumps(results), flush=True)
    return results


# ----------------------------------------------------------------------------------------------- under a final mask


def settled(repetitions: int) -> dict[str, Any]:
    """Steps under a final mask and validation of 1,000 samples, against a plain network's, by the units that are on."""
    found = {}
    for name, build, shape, features in (
        ("MLP 2x2000", lambda: MLP(SHAPE), SHAPE, 2000),
        ("AlexNet, width 0.5", lambda: AlexNet((3, 32, 32), width=0.5), (3, 32, 32), 1024),
        ("ResNet-18, 16 filters", lambda: ResNet18((3, 32, 32), width=16), (3, 32, 32), 128),
    ):
        x, y, valid = torch.randn(BATCH, *shape), torch.arange(BATCH) % 2, torch.randn(1000, *shape)
        plain = nn.Sequential(build(), nn.Linear(features, 2))
        models: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {"plain": (plain, plain)}
        for share in (0.2, 0.4, 0.6):
            net = HATNetwork(build(), torch.zeros(1, *shape))
            generator = torch.Generator().manual_seed(0)
            on = torch.rand(net.units.num_units, generator=generator) < share
            net.add_task("third", 2, embedding=torch.where(on, 1.0, -1.0))
            net.settle("third")
            models[f"{share:.0%} on"] = net, partial(net, task="third")
        steps: dict[str, Callable[[int], Any]] = {}
        for how, (model, ask) in models.items():
            parameters = model.task_parameters("third") if isinstance(model, HATNetwork) else model.parameters()
            optimizer = torch.optim.SGD(parameters, lr=0.05)
            if isinstance(model, HATNetwork):
                model.protect(optimizer)
            steps[how] = lambda _, ask=ask, o=optimizer, x=x, y=y: plain_step(ask, o, x, y)
        found[f"{name}, steps"] = against(in_turns(steps, repetitions), "plain")
        for model, _ in models.values():
            model.eval()
        asked = {how: partial(validate, model, ask, valid) for how, (model, ask) in models.items()}
        found[f"{name}, validation"] = against(in_turns(asked, repetitions // 4), "plain")
        print(name, found[f"{name}, steps"], found[f"{name}, validation"], flush=True)
    return found


@torch.no_grad()
def validate(model: nn.Module, ask: Callable[[Tensor], Tensor], x: Tensor, repetition: int) -> Tensor:
    with model.validating() if isinstance(model, HATNetwork) else nullcontext():
        return ask(x)


# ------------------------------------------------------------------------------------------------------- whole runs


def bare_loop(prepared: Run) -> Callable[[int, int], float]:
    """Return a function that does so many plain steps on a task's batches, and returns their seconds."""
    training = prepared.config.training
    backbone = prepared.method.setup.build_backbone()
    with torch.no_grad():
        features = backbone(torch.zeros(2, *prepared.stream.input_shape)).shape[1]
    model = nn.Sequential(backbone, nn.Linear(features, max(task.num_classes for task in prepared.stream)))
    optimizer = torch.optim.SGD(model.parameters(), lr=training.lr)

    def steps(task: int, count: int) -> float:
        x, y = prepared.stream[task].train.load()
        model.train()
        start = time.thread_time()
        for number in range(count):
            first = number * training.batch_size % max(1, len(x) - training.batch_size)
            plain_step(model, optimizer, x[first : first + training.batch_size], y[first : first + training.batch_size])
        return time.thread_time() - start

    return steps


def whole_run(experiment: str, method: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A run with everything that belongs to it, written to a folder, against its bare steps; task by task in turns."""
    with tempfile.TemporaryDirectory() as folder:
        request = RunRequest(experiment, method, out=Path(folder) / "run", data=data_folder(), overrides=overrides)
        prepared = prepare(request)
        bare = bare_loop(prepared)
        taken, plain, steps, pending = 0.0, 0.0, 0, 0
        bare(0, 10)
        start = time.thread_time()
        for event in run(prepared):
            pending += isinstance(event, BatchDone)
            if isinstance(event, TaskLearned):
                taken += time.thread_time() - start
                plain += bare(event.index, pending)
                steps, pending = steps + pending, 0
                start = time.thread_time()
        return {
            "command": request.command(),
            "steps": steps,
            "run_s": round(taken, 2),
            "bare_s": round(plain, 2),
            "ratio": round(taken / plain, 3),
        }


def data_folder() -> Path | None:
    return Path(os.environ["HATRACK_DATA"]) if "HATRACK_DATA" in os.environ else None


def whole_runs(repetitions: int) -> dict[str, Any]:
    epochs = max(1, repetitions // 10)
    return {name: whole_run(name, "hat", {"epochs": epochs}) for name in ("split-fashion-mnist",)}


# ------------------------------------------------------------------------------------------------------- evaluation


def with_ten_tasks(backbone: nn.Module, shape: tuple[int, ...], share: float) -> HATNetwork:
    """Ten consolidated tasks, each of which uses a random share of the units."""
    net = HATNetwork(backbone, torch.zeros(1, *shape))
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        on = torch.rand(net.units.num_units, generator=generator) < share
        net.add_task(f"task {number}", 10, embedding=torch.where(on, 1.0, -1.0))
        net.consolidate(f"task {number}")
    return net.eval()


@torch.no_grad()
def evaluation(repetitions: int) -> dict[str, Any]:
    """All ten tasks tested: ten full passes, and by their extracted networks, the extraction included."""
    results: dict[str, Any] = {}
    cases: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int]] = [
        ("MLP 2x2000", lambda: MLP(SHAPE, hidden=(2000, 2000)), SHAPE, 2000),
        ("AlexNet", lambda: AlexNet((3, 32, 32)), (3, 32, 32), 200),
    ]
    for name, build, shape, samples in cases:
        x = torch.randn(samples, *shape)
        for share in (0.25, 0.5):
            net = with_ten_tasks(build(), shape, share)
            size = min(1000, samples)

            def full(_: int, net: HATNetwork = net, x: Tensor = x, size: int = size) -> dict[str, Tensor]:
                return {t: torch.cat([net(part, t) for part in torch.split(x, size)]) for t in net.task_names}

            def extracted(_: int, net: HATNetwork = net, x: Tensor = x, size: int = size) -> dict[str, Tensor]:
                return net.logits_of_tasks(dict.fromkeys(net.task_names, x), batch_size=size)

            def cutting(_: int, net: HATNetwork = net, x: Tensor = x) -> dict[str, Tensor]:
                return net.logits_of_tasks(dict.fromkeys(net.task_names, x[:1]))

            ways = {"full passes": full, "extracted": extracted, "extraction alone": cutting}
            first, again = extracted(0), extracted(0)
            found = against(in_turns(ways, max(1, repetitions // 10), warm=0), "full passes")
            deviation = max(float((first[t] - said).abs().max() / said.abs().max()) for t, said in full(0).items())
            print(name, share, found, flush=True)
            results[f"{name}, {share:.0%} of the units, {samples} samples a task"] = {
                **found,
                "bit_identical_again": all(torch.equal(first[t], again[t]) for t in first),
                "deviation": deviation,
            }
    return results


# ---------------------------------------------------------------------------------------------------- torch.compile


def compiled(repetitions: int) -> dict[str, Any]:
    """Steps with the forward pass compiled without graph breaks, and not compiled."""
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(0, 2, (BATCH,))
    steps = {}
    for name, width in (("2x2000", 2000), ("2x100", 100)):
        for compile_it in (False, True):
            plain: Any = nn.Sequential(MLP(SHAPE, hidden=(width, width), dropout=(0.2, 0.5)), nn.Linear(width, 2))
            net: Any = with_tasks(MLP(SHAPE, hidden=(width, width), dropout=(0.2, 0.5)), 3)
            makers = plain.parameters(), net.task_parameters("third")
            first, second = (torch.optim.SGD(parameters, lr=0.05) for parameters in makers)
            net.protect(second)
            ask = torch.compile(net, fullgraph=True) if compile_it else net
            model = torch.compile(plain, fullgraph=True) if compile_it else plain
            how = "compiled" if compile_it else "as it is"
            steps[f"{name}, plain, {how}"] = lambda r, model=model, first=first: plain_step(model, first, x, y)
            steps[f"{name}, HAT, {how}"] = lambda r, ask=ask, net=net, second=second: compiled_step(
                ask, net, second, x, y, (r % 10) / 9
            )
    return against(in_turns(steps, repetitions), "2x2000, plain, as it is")


def compiled_step(
    ask: Any, net: HATNetwork, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, progress: float
) -> None:
    net.anneal(progress)
    loss = nn.functional.cross_entropy(ask(x, "third"), y) + 0.75 * net.regularization()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def with_torchs_dropout(backbone: nn.Module) -> nn.Module:
    """Return a backbone whose dropout is torch's own."""
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, Dropout):
            backbone.set_submodule(name, nn.Dropout(layer.p))
    return backbone


def from_plain_torch(repetitions: int) -> dict[str, Any]:
    """Compare steps with torch's dropout, with ours, with channels_last, and of the third task of HAT with all that."""
    found = {}
    for name, build, shape, features in (
        ("AlexNet, width 0.25", lambda: AlexNet(width=0.25), (3, 32, 32), 512),
        ("AlexNet, width 0.5", lambda: AlexNet(width=0.5), (3, 32, 32), 1024),
        ("AlexNet", AlexNet, (3, 32, 32), 2048),
        ("MLP 2×2000", lambda: MLP(SHAPE, dropout=(0.2, 0.5)), SHAPE, 2000),
    ):
        x, y = torch.randn(BATCH, *shape), torch.arange(BATCH) % 2

        def plain(backbone: nn.Module, features: int = features, x: Tensor = x, y: Tensor = y) -> Callable[[int], None]:
            model = nn.Sequential(backbone, nn.Linear(features, 2))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            return lambda repetition: plain_step(model, optimizer, x, y)

        steps = {
            "plain, torch's dropout": plain(with_torchs_dropout(build())),
            "plain": plain(build()),
            "plain, channels_last": plain(build().to(memory_format=torch.channels_last)),
        }
        for layout, backbone in (("", build()), (", channels_last", build().to(memory_format=torch.channels_last))):
            net, optimizer = at_third_task(backbone, shape, lambda of: torch.optim.SGD(of, lr=0.05))
            steps[f"hat, third task{layout}"] = lambda repetition, net=net, optimizer=optimizer, x=x, y=y: hat_step(
                net, optimizer, x, y, repetition / repetitions % 1
            )
        found[name] = against(in_turns(steps, repetitions), "plain, torch's dropout")
        print(name, found[name], flush=True)
    return found


# ------------------------------------------------------------------------------------------------------------- Adam


def with_adam(repetitions: int) -> dict[str, Any]:
    """AdamW as torch makes it and as hatrack's trainer does, on plain networks and on HAT's third task."""
    settings = TrainingSettings(optimizer=OptimizerKind.ADAMW, lr=1e-3, weight_decay=1e-2)

    def by_torch(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)

    def by_trainer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return build_optimizer([ParameterGroup(list(parameters))], settings)

    def plain_of(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, repetition: int) -> None:
        plain_step(model, optimizer, x, y)

    found = {}
    builds: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
        "MLP 2×2000": (lambda: MLP(SHAPE), SHAPE, 2000),
        "AlexNet, width 0.5": (lambda: AlexNet(width=0.5), (3, 32, 32), 1024),
    }
    for name, (build, shape, features) in builds.items():
        x, y = torch.rand(BATCH, *shape), torch.randint(0, 2, (BATCH,))
        steps: dict[str, Callable[[int], Any]] = {}
        for maker, make in (("torch's AdamW", by_torch), ("the trainer's", by_trainer)):
            model = nn.Sequential(build(), nn.Linear(features, 2))
            steps[f"plain, {maker}"] = partial(plain_of, model, make(model.parameters()), x, y)
        net, optimizer = at_third_task(build(), shape, by_trainer)
        steps["hat, third task, the trainer's"] = lambda repetition, n=net, o=optimizer, x=x, y=y: hat_step(
            n, o, x, y, repetition / repetitions % 1
        )
        found[name] = against(in_turns(steps, repetitions), "plain, torch's AdamW")
        print(name, found[name], flush=True)
    return found


# -------------------------------------------------------------------------------------------------- masks of weights


def masked_weights(repetitions: int) -> dict[str, Any]:
    """Steps of 2×2000 units in a second task, with masks of weights by embeddings and by scores."""
    sources: Mapping[str, MaskSource] = {"pmask": Embedding(), "wsn": Scores(0.5)}
    found = {}
    for kind, lr in ((OptimizerKind.SGD, 0.05), (OptimizerKind.ADAM, 1e-3)):
        settings = TrainingSettings(optimizer=kind, lr=lr)
        x, y = torch.rand(BATCH, *SHAPE), torch.randint(0, 10, (BATCH,))
        model = nn.Sequential(MLP(SHAPE), nn.Linear(2000, 10))
        plain = build_optimizer([ParameterGroup(list(model.parameters()))], settings)
        steps: dict[str, Callable[[int], Any]] = {"plain": lambda _, m=model, o=plain, x=x, y=y: plain_step(m, o, x, y)}
        for name, source in sources.items():
            net = WeightMaskedNetwork(MLP(SHAPE), torch.zeros(1, *SHAPE), source=source)
            net.add_task("first", 10)
            net.consolidate("first")
            net.add_task("third", 10)
            net.train()
            optimizer = build_optimizer([ParameterGroup(net.task_parameters("third"))], settings, net.protect)
            steps[name] = lambda repetition, n=net, o=optimizer, x=x, y=y: hat_step(n, o, x, y, repetition % 10 / 9)
        found[kind.value] = against(in_turns(steps, repetitions), "plain")
        print(kind.value, found[kind.value], flush=True)
    return found


SECTIONS = {
    "tasks": many_tasks,
    "full": full,
    "settled": settled,
    "run": whole_runs,
    "evaluation": evaluation,
    "compile": compiled,
    "plain": from_plain_torch,
    "adam": with_adam,
    "weights": masked_weights,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    before = os.getloadavg()[0]
    found = SECTIONS[options.section](options.repetitions)
    load = [round(before, 1), round(os.getloadavg()[0], 1)]
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if options.out:
        known = json.loads(options.out.read_text()) if options.out.exists() else {}
        command = f"python benchmarks/speed.py {options.section} --repetitions {options.repetitions}"
        known[options.section] = {
            "command": command,
            "load_before_and_after": load,
            "results": found,
            "environment": describe_environment(),
        }
        write_record(options.out, known, indent=2)


if __name__ == "__main__":
    main()
