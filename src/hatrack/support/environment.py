"""Environment that a result was made in: versions, processor, device."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from hatrack import __version__

__all__ = ["describe_environment", "deterministic_cuda"]


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
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


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
