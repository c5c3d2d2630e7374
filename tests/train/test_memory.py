"""Memory that is freed is at hand for what comes next, in processes that are told to keep it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import hatrack

GNU = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})

FAULTS = """
import resource
from hatrack.support.memory import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not GNU, reason="this C library cannot be told")
def test_a_block_is_found_again_without_a_fault_of_its_pages() -> None:
    def faults(kept: bool) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS.format(kept=kept)], text=True))

    assert faults(kept=True) < 100 < faults(kept=False)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr_names", {}, raising=False)
    assert not hatrack.keep_freed_memory()
