"""Kernels that are written for a GPU, compiled for the processor."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

_LOOP = """
#include <cmath>
using std::exp;
{code}
extern "C" void each(float* out, float** in, int inputs, const float* numbers, long count) {{
    for (long i = 0; i < count; ++i) out[i] = {name}<float>({arguments});
}}
"""


def compiled(code: str, name: str, inputs: int, numbers: int, folder: Path) -> Callable[..., list[float]]:
    """Compile an elementwise function of some inputs, then some numbers, in float32.

    Returns:
        A function of the inputs (lists of one length) and the numbers.
    """
    assert COMPILER is not None
    arguments = ", ".join([*(f"in[{i}][i]" for i in range(inputs)), *(f"numbers[{i}]" for i in range(numbers))])
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(_LOOP.format(code=code, name=name, arguments=arguments))
    flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
    each = ctypes.CDLL(str(library)).each

    def call(columns: Sequence[Sequence[float]], given: Sequence[float]) -> list[float]:
        count = len(columns[0])
        vector = ctypes.c_float * count
        out, held = vector(), [vector(*column) for column in columns]
        pointers = (ctypes.POINTER(ctypes.c_float) * inputs)(
            *(ctypes.cast(h, ctypes.POINTER(ctypes.c_float)) for h in held)
        )
        each(out, pointers, inputs, (ctypes.c_float * numbers)(*given), ctypes.c_long(count))
        return list(out)

    return call
