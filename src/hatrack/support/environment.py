"""Environment that a result was made in: versions, processor, device."""

from __future__ import annotations

import os
import platform
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from hatrack import __version__

__all__ = ["describe_arithmetic", "describe_environment", "deterministic_cuda"]


def describe_environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe versions, processor and threads, as far as results depend on them.

    Args:
        device: device of the network.

    Returns:
        JSON values; two equal environments give the same bits for the same command.
    """
    device = torch.device(device)
    return {
        "hatrack": __version__,  # of the code, which an editable installation may be ahead of
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": _name_of(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def describe_arithmetic(device: torch.device) -> dict[str, str]:
    """Describe what numbers are computed with, as far as more than the order of sums depends on it.

    Args:
        device: device of the network.

    Returns:
        Version of torch, kind of CPU or name of the GPU, and the digits that products of float32 have there.
    """
    return {
        "torch": torch.__version__,
        "device": _name_of(device),
        "float32": ", ".join(_digits_of_products(device)),
    }


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _digits_of_products(device: torch.device) -> list[str]:
    """Return the precision of products and convolutions of float32 on a device: all digits, TF32 or bfloat16."""
    of_gpu = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
    libraries = of_gpu if device.type == "cuda" else ("mkldnn.matmul", "mkldnn.conv")
    if not hasattr(torch.backends, "fp32_precision"):  # before torch 2.9
        return [torch.get_float32_matmul_precision(), f"cudnn tf32 {torch.backends.cudnn.allow_tf32}"]
    return [f"{name} {attrgetter(name)(torch.backends).fp32_precision}" for name in libraries]


def deterministic_cuda() -> torch.device:
    """Return the GPU after setting torch, for this process, to kernels that give the same bits again."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda")


def _processor() -> str:
    """Return the processor's name, which decides on the instructions that kernels choose."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
