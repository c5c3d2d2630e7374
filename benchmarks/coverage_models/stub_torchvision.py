"""A stand-in for torchvision, of which timm and vit-pytorch import transforms that no model uses.

python benchmarks/coverage_models/stub_torchvision.py

writes it into the site-packages of the Python that runs it, if there is no torchvision: the wheel brings CUDA along,
several gigabytes, or asks for another torch than the one installed. Whatever is asked of it is an empty class.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path

STUB = '''\
"""Stand-in for torchvision: every name in it is an empty class, every submodule one like itself."""

import enum
import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0.0.0"


class InterpolationMode(enum.Enum):
    NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC = "nearest", "nearest-exact", "bilinear", "bicubic"
    BOX, HAMMING, LANCZOS = "box", "hamming", "lanczos"


class _Module(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = InterpolationMode if name == "InterpolationMode" else type(name, (), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torchvision.") else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
'''


def write() -> Path | None:
    """Write the stand-in, unless there is a torchvision; return its folder."""
    if importlib.util.find_spec("torchvision") is not None:
        return None
    folder = Path(sysconfig.get_paths()["purelib"]) / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(STUB)
    return folder


if __name__ == "__main__":
    print(write() or "there is a torchvision already")
