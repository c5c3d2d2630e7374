"""Task and class recognised without a name, by sums: five tasks of two classes, several seeds.

python benchmarks/recognition_of_sums.py FOLDER [--datasets fashion-mnist mnist] [--seeds 0 1 2]
    [--epochs N] [--out benchmarks/results/recognition_of_sums.json]

Networks, and the filters of the shared features, are those of the seed. FOLDER keeps a network per data set and seed,
and `measured.json` what was measured of it; both are made where they are missing, so that an interrupted benchmark goes
on. Calibration is measured on the training samples, the figures on all test samples. HATRACK_DATA points at the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatrack import Learner, Scorer, measure_inference
from hatrack.data import load_dataset
from hatrack.recognition import RandomFilters
from hatrack.storage.atomic import save
from hatrack.streams import StreamOptions, TaskStream, class_stream, consecutive_groups
from hatrack.support.environment import describe_environment
from hatrack.train import TrainingSettings

HIDDEN = 400


def backbone() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())


def stream_of(dataset: str, seed: int) -> TaskStream:
    images = load_dataset(dataset)
    pairs = [(images, group) for group in consecutive_groups(images.class_names, 2)]
    return class_stream(pairs, StreamOptions(seed), name=f"{dataset}-pairs")


def hashes(learner: Learner, stream: TaskStream) -> dict[str, str]:
    """Return the SHA-256 of the logits of 500 test samples of every task that was learned, in evaluation mode."""
    net = learner.network.eval()
    with torch.no_grad():
        answers = {
            task.name: net(task.test.load()[0][:500], task.name) for task in stream if task.name in learner.tasks
        }
    return {name: hashlib.sha256(logits.numpy().tobytes()).hexdigest() for name, logits in answers.items()}


def train(path: Path, stream: TaskStream, seed: int, epochs: int) -> Learner:
    """Learn all tasks of a stream, and save the learner and the hashes of each task's logits right after it."""
    torch.manual_seed(seed)
    training = TrainingSettings(epochs=epochs)
    learner = Learner(backbone(), (1, 28, 28), training=training, validation=0.0, seed=seed)
    first: dict[str, str] = {}
    for task in stream:
        x, y = task.train.load()
        learner.fit(task.name, (x, y), classes=task.classes)
        first[task.name] = hashes(learner, stream)[task.name]
        print(f"{path.stem}: {task.name} learned", flush=True)
    learner.save(path)
    save(path.with_suffix(".logits.json"), json.dumps(first).encode())
    return learner


def calibrate(path: Path, learner: Learner, stream: TaskStream, seed: int) -> list[float]:
    """Calibrate all tasks, save the learner, and return the seconds of one core that each task took."""
    seconds = []
    for task in stream:
        start = time.process_time()
        learner.network.calibrate(task.name, *task.train.load(), feature_map=RandomFilters(seed=seed))
        seconds.append(round(time.process_time() - start, 2))
    learner.save(path)
    save(path.with_suffix(".seconds.json"), json.dumps(seconds).encode())
    return seconds


def measure(folder: Path, dataset: str, seed: int, epochs: int) -> dict[str, Any]:
    path, stream = folder / f"{dataset}-{seed}.hat", stream_of(dataset, seed)
    done = path.with_suffix(".calibrated.hat")
    if done.exists() and done.with_suffix(".seconds.json").exists():
        learner = Learner.load(done, backbone())
        seconds = json.loads(done.with_suffix(".seconds.json").read_text())
    else:
        learner = Learner.load(path, backbone()) if path.exists() else train(path, stream, seed, epochs)
        seconds = calibrate(done, learner, stream, seed)
    first = json.loads(path.with_suffix(".logits.json").read_text())
    net = learner.network
    samples = {task.name: task.test.load() for task in stream}
    start = time.process_time()
    net.infer(samples[stream[0].name][0][:1])
    solving = time.process_time() - start
    found: dict[str, Any] = {
        "dataset": dataset,
        "seed": seed,
        "epochs": epochs,
        "processor_seconds_to_calibrate_a_task": seconds,
        "processor_seconds_to_solve": round(solving, 2),
        "bytes_of_sums": [state.sums.num_bytes for state in net.tasks if state.sums is not None],
        "old_logits_bit_identical": hashes(learner, stream) == first,
    }
    for scorer in (Scorer.SUMS, Scorer.DISTANCE):
        accuracy = measure_inference(net, samples, scorer)
        found[scorer.value] = {name: round(value, 4) for name, value in dataclasses.asdict(accuracy).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datasets", nargs="+", default=["fashion-mnist", "mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kept = arguments.folder / "measured.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in arguments.seeds:
        for dataset in arguments.datasets:
            key = f"{dataset} {seed}"
            if key not in results:
                results[key] = measure(arguments.folder, dataset, seed, arguments.epochs)
                save(kept, json.dumps(results).encode())
                print(key, json.dumps(results[key]), flush=True)
    report = {"results": list(results.values()), "environment": describe_environment(torch.device("cpu"))}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
