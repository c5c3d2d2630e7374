"""Files of pictures, arrays and tables, and the streams that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hatrack.streams import StreamOptions, Task, own_stream

RANDOM = np.random.default_rng(0)


def pictures(folder: Path, sizes: dict[str, int], shape: tuple[int, ...] = (6, 5), kind: str = "png") -> Path:
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{kind}")
    return folder


def archive(path: Path, **changes: Any) -> Path:
    arrays = {
        "x_train": RANDOM.normal(3, 2, (30, 4)),
        "y_train": np.arange(30) % 3,
        "x_test": RANDOM.normal(3, 2, (9, 4)),
        "y_test": np.arange(9) % 3,
    }
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


def built(*sources: Path, seed: int = 0, **options: Any) -> Task:
    return own_stream(sources).build(StreamOptions(seed, **options))[0]


def notes_of(*sources: Path) -> tuple[str, ...]:
    return own_stream(sources).build(StreamOptions(0)).notes


def from_toml(folder: Path, text: str, seed: int = 0) -> Task:
    (folder / "tasks.toml").write_text(text)
    return built(folder / "tasks.toml", seed=seed)


PICTURES = '[[task]]\npath = "set"\ntest_share = 0.5\nchannels = 3\n'
TABLE = '[[task]]\npath = "a.csv"\nlabel = "kind"\ntest_share = 0.5\n'
ROWS = ["id,kind,size,mass", *(f"{row},{'xy'[row % 2]},{row},{row * row}" for row in range(12))]
