"""Bytes that pictures need in packed parts of data sets, beside other ways to keep every bit.

python benchmarks/packing.py [--data DIR] [--limit 4000] [--out benchmarks/results/packing.json] [NAME ...]

Training pictures as `hatrack data pack` chooses them. Sizes depend on nothing but the libraries; the processor time
does.
"""

from __future__ import annotations

import argparse
import io
import lzma
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image, features
from recording import write_record
from torch import Tensor

from hatrack.data import first_in_turns, load_dataset
from hatrack.data.strips import decode_strips, encode_strips
from hatrack.support.environment import describe_environment

NAMES = ("cifar10", "cifar100", "traffic-signs", "mnist", "fashion-mnist", "notmnist", "animals")
ROW = 40
"""Pictures side by side in a sheet of PNG."""


def png(images: Tensor) -> list[bytes]:
    """Write one sheet of all pictures, ``(N, C, H, W)``; what is missing in the last row is black."""
    count, channels, height, width = images.shape
    rows = -(-count // ROW)
    full = torch.zeros(rows * ROW, channels, height, width, dtype=torch.uint8)
    full[:count] = images
    sheet = full.reshape(rows, ROW, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(rows * height, ROW * width, channels).squeeze(2).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return [file.getvalue()]


WAYS: Mapping[str, Callable[[Tensor], list[bytes]]] = {
    "arrays, deflated": lambda images: [zlib.compress(images.numpy().tobytes(), 9)],
    "arrays, LZMA": lambda images: [lzma.compress(images.numpy().tobytes(), preset=9)],
    "one sheet, PNG": png,
    "each alone, WebP": lambda images: [strip for image in images for strip in encode_strips(image[None])],
    "strips, WebP": encode_strips,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    for name in arguments.names:
        dataset = load_dataset(name, arguments.data, download=False)
        images = dataset.x_train[first_in_turns(dataset.y_train, arguments.limit)]
        sizes, seconds = {}, {}
        for way, encode in WAYS.items():
            begun = time.process_time()
            kept = encode(images)
            seconds[way], sizes[way] = round(time.process_time() - begun, 2), sum(map(len, kept))
        begun = time.process_time()
        count, *shape = images.shape
        again = decode_strips(kept, count, (shape[0], shape[1], shape[2]), name)
        seconds["reading strips"] = round(time.process_time() - begun, 2)
        if not torch.equal(again, images):
            raise SystemExit(f"{name}: strips lost something")
        results[name] = {"origin": dataset.origin, "pixels": images.numel(), "bytes": sizes, "seconds": seconds}
        shares = ", ".join(f"{way} {size / images.numel():.3f}" for way, size in sizes.items())
        print(
            f"{name}: {shares}; packed in {seconds['strips, WebP']} s, read in {seconds['reading strips']} s",
            flush=True,
        )
    if arguments.out:
        about = {"limit": arguments.limit, "webp": features.version("webp"), "environment": describe_environment()}
        write_record(arguments.out, {**about, "data_sets": results}, indent=2)


if __name__ == "__main__":
    main()
