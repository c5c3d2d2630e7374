"""Dynamic weight allocation beside hat, ewc and sgd: what is forgotten, and are masks of related tasks more alike?

Six tasks of two classes of Fashion-MNIST, on a network of two dense layers. Which tasks are related was said
beforehand, by the kind of clothing: tops are T-shirt|pullover and shirt|coat (other classes); shoes are sandal|ankle
boot twice, and long clothes trouser|dress twice (the same classes, other pictures). Related tasks never follow each
other. Masks made of pictures are alike where the pictures are: the same is measured of the untrained network.

python benchmarks/dwa.py [--seeds 1] [--quick] [--out benchmarks/results/dwa.json]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hatrack.backbones import MLP, build_reproducibly
from hatrack.data import load_dataset
from hatrack.experiments.metrics import average_accuracy, forgetting
from hatrack.methods import METHODS, Method, Setup
from hatrack.methods.dwa import DWA
from hatrack.methods.dwa.analysis import cosine_similarities, relatedness, task_profile
from hatrack.methods.hat import HAT
from hatrack.objectives import Classification
from hatrack.streams import Split, Task, seeded_generator
from hatrack.streams.transforms import Normalise
from hatrack.support.environment import describe_environment
from hatrack.train import TrainingSettings, fit, predict_split, score

HIDDEN, SHAPE = (200, 200), (1, 28, 28)
TASKS = {"tops-1": (0, 2), "shoes-1": (5, 9), "long-1": (1, 3), "tops-2": (6, 4), "shoes-2": (5, 9), "long-2": (1, 3)}
"""Classes of Fashion-MNIST by task; of classes that two tasks have, each gets pictures of its own."""

RELATED = ((0, 3), (1, 4), (2, 5))

RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sgd": ("sgd", {}),
    "ewc": ("ewc", {}),
    "hat": ("hat", {}),
    "dwa": ("dwa", {}),
    "dwa, product of tanh": ("dwa", {"mask": "outer-of-tanh"}),
    "dwa, one-hot context": ("dwa", {"context": "task"}),
    "dwa, its code": ("dwa", {"variant": "code"}),
}
"""Methods and the settings that differ from their defaults."""

SCHEDULES = {"dwa": {"lr": 0.075, "batch_size": 32}}
"""Each method has the learning rate and batch size of its paper; 0.05 and 64 for all but this one."""


def tasks(seed: int, per_task: int) -> list[Task]:
    """The tasks; 15 % of the training pictures are for validation."""
    data = load_dataset("fashion-mnist")
    transform = Normalise(data.mean, data.std)
    made = []
    for number, (name, classes) in enumerate(TASKS.items()):
        again = list(TASKS.values()).index(classes) != number

        def part(x: Tensor, y: Tensor, each: int, purpose: str, classes: Any = classes, again: bool = again) -> Split:
            rows, labels = [], []
            for label, of_data in enumerate(classes):
                found = (y == of_data).nonzero().squeeze(1)
                order = torch.randperm(len(found), generator=seeded_generator(seed, purpose, of_data))
                rows.append(found[order[each : 2 * each] if again else order[:each]])
                labels.append(torch.full((each,), label))
            return Split(x, torch.cat(rows), torch.cat(labels), transform)

        everything = part(data.x_train, data.y_train, per_task // 2, "train")
        train, valid = everything.divided(0.15, seeded_generator(seed, "validation", number))
        test = part(data.x_test, data.y_test, 500, "test")
        names = tuple(data.class_names[label] for label in classes)
        made.append(Task(name, Classification(names), train, valid, test))
    return made


def make(name: str, overrides: Mapping[str, Any], seed: int, stream: list[Task]) -> Method:
    """A method with its own settings, on the network with Xavier weights and without dropout."""
    kind = METHODS[name].settings_type
    enums = {key: type(getattr(kind(), key)) for key in overrides}
    settings = kind(**{key: enums[key](value) for key, value in overrides.items()})
    setup = Setup(
        lambda: build_reproducibly(lambda: MLP(SHAPE, HIDDEN), seed, xavier=True),
        SHAPE,
        seed,
        torch.device("cpu"),
        classes=tuple(task.num_classes for task in stream),
    )
    return METHODS[name](setup, settings)


def similarity(vectors: list[Tensor]) -> dict[str, Any]:
    """Cosines of all pairs, as they are and without what all have in common, and whether related ones are larger."""
    result = {}
    for name, centred in (("cosine", False), ("centred_cosine", True)):
        cosines = cosine_similarities(vectors, centred=centred)
        compared = {key: round(value, 4) for key, value in asdict(relatedness(cosines, RELATED)).items()}
        result[name] = {**compared, "matrix": [[round(value, 3) for value in row] for row in cosines.tolist()]}
    return result


def similarities(method: Method, stream: list[Task]) -> dict[str, Any]:
    """Of what the method makes of each task."""
    if isinstance(method, HAT):
        masks = [torch.cat(list(method.network.masks(task.name).values())).float() for task in stream]
        return {"masks": similarity(masks)}
    if isinstance(method, DWA):
        profiles = [task_profile(method.network, task) for task in stream]
        masks, embeddings = zip(*((profile.masks, profile.embedding) for profile in profiles), strict=True)
        return {"masks": similarity(list(masks)), "embeddings": similarity(list(embeddings))}
    return {}


def untrained(overrides: Mapping[str, Any], seed: int, stream: list[Task]) -> dict[str, Any]:
    """Similarities of the masks that the initial weights make: what the pictures' own likeness accounts for."""
    method = make("dwa", overrides, seed, stream)
    assert isinstance(method, DWA)
    for task in stream:
        method.network.add_task(task.name, task.num_classes, seeded_generator(seed, "head", task.name))
    return similarities(method, stream)


def run(label: str, seed: int, stream: list[Task], epochs: int) -> dict[str, Any]:
    """Learn all tasks and test after each."""
    name, overrides = RUNS[label]
    method = make(name, overrides, seed, stream)
    training = TrainingSettings(epochs=epochs, **{**METHODS[name].training, **SCHEDULES.get(name, {})})
    started, matrix = time.perf_counter(), []
    for number, task in enumerate(stream):
        method.begin_task(task)
        for _ in fit(method, stream[: number + 1], training):
            pass
        method.end_task(task)
        logits = {t.name: predict_split(method, t.test, t.name, 1000) for t in stream[: number + 1]}
        row = [score(logits[t.name], t.test.labels).value for t in stream[: number + 1]]
        matrix.append([*row, *[None] * (len(stream) - len(row))])
    result: dict[str, Any] = {
        "method": label,
        "seed": seed,
        "settings": dict(overrides),
        "average_accuracy": round(average_accuracy(matrix), 4),
        "forgetting": round(forgetting(matrix), 4),
        "accuracy": matrix,
        "seconds": round(time.perf_counter() - started, 1),
        "similarity": similarities(method, stream),
    }
    if name == "dwa":
        result["similarity_untrained"] = untrained(overrides, seed, stream)
    return result


def show(result: Mapping[str, Any]) -> None:
    """One line on a run."""
    line = f"{result['method']:22} seed {result['seed']}: accuracy {100 * result['average_accuracy']:.2f} %"
    line += f", forgetting {100 * result['forgetting']:.2f} points, {result['seconds']:.0f} s"
    for when in ("similarity", "similarity_untrained"):
        if masks := result.get(when, {}).get("masks"):
            compared = masks["centred_cosine"]
            chance = f"{compared['related']:.2f} against {compared['unrelated']:.2f}, p = {compared['pairings']:.2f}"
            line += f"; masks{' untrained' if when.endswith('untrained') else ''}: {chance}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few pictures and epochs, to see that it works")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    per_task, epochs = (100, 2) if options.quick else (1000, 20)
    results = []
    pictures = {}
    for seed in range(options.seeds):
        stream = tasks(seed, per_task)
        pictures[str(seed)] = similarity([task.test.load()[0].mean(dim=0).flatten() for task in stream])
        for label in RUNS:
            results.append(run(label, seed, stream, epochs))
            show(results[-1])
    if options.out:
        record = {
            "command": f"python benchmarks/dwa.py --seeds {options.seeds}" + (" --quick" if options.quick else ""),
            "settings": {"hidden": HIDDEN, "tasks": TASKS, "related": RELATED, "per_task": per_task, "epochs": epochs},
            "mean_pictures": pictures,
            "results": results,
            "environment": describe_environment(),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False)
        text = re.sub(r"\[[^][{}]*\]", lambda values: " ".join(values[0].split()), text)  # a row in a line
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
