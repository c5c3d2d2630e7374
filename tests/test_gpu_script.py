"""The script for a GPU runs without one, and says what it found and what it left out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.benchmark_modules import benchmark

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated"),
]


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    with benchmark("gpu") as module:
        yield module


@pytest.mark.slow
@pytest.mark.parametrize("way", ["momentum", "adamw, bfloat16", "captured", "captured AdamW", "compiled"])
@pytest.mark.parametrize("network", ["dense", "group norms"])
def test_earlier_tasks_keep_their_bits_in_every_way(gpu: ModuleType, network: str, way: str) -> None:
    found = gpu.law(gpu.NETWORKS[network], gpu.WAYS[way], gpu.SMALL, CPU)
    assert found["same_bits"] is True
    assert found["extracted_differ_by"] < 1e-5


@pytest.mark.slow
def test_every_network_can_be_taken(gpu: ModuleType) -> None:
    for build in gpu.NETWORKS.values():
        assert build().eval()(torch.randn(2, 3, 32, 32)).dim() == 2


def test_gates_are_compared_with_exact_ones(gpu: ModuleType) -> None:
    found = dict(gpu.gates(CPU))
    assert len(found) == 5
    for each in found.values():
        assert not each["one_kernel"]
        assert 0 < each["gate"] < 1e-4
        assert 0 < each["gradient"] < 1e-4


def test_what_does_not_work_is_a_finding(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> torch.nn.Module:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(gpu, "NETWORKS", {"broken": broken})
    found = dict(gpu.laws(gpu.SMALL, CPU))
    assert {what: entry["error"] for what, entry in found.items()} == {
        f"broken, {way}": "RuntimeError: no such kernel" for way in gpu.WAYS
    }


@pytest.mark.slow
def test_steps_are_timed_in_every_form(gpu: ModuleType) -> None:
    for how in gpu.FORMS:
        found = gpu.steps_of(gpu.NETWORKS["dense"], (3, 32, 32), how, gpu.SMALL, CPU)
        assert found["plain_ms"] > 0 < found["ratio"]


@pytest.mark.slow
def test_a_run_is_measured_and_one_that_takes_too_long_is_left(gpu: ModuleType, tmp_path: Path) -> None:
    ((seed, whole),) = gpu.runs(gpu.SMALL, CPU, tmp_path, float("inf"))
    assert (seed, whole["whole"], whole["tasks"], len(whole["accuracies"])) == ("seed 0", True, 5, 5)
    assert list(gpu.runs(gpu.SMALL, CPU, tmp_path, 0.0)) == []


@pytest.mark.slow
def test_the_record_says_what_there_was_no_time_for(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["gpu.py", "--data", str(tmp_path), "--device", "cpu", "--small", "--minutes", "0"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "gpu.json")])
    monkeypatch.setattr(gpu, "NETWORKS", {"dense": gpu.NETWORKS["dense"]})
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(gpu, "keep_freed_memory", lambda: None)
    gpu.main()
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["law"]) == ["dense, momentum"]
    assert record["stopped_for_want_of_time"] == [
        "gates, after scale 0.0025",
        "law, after dense, momentum",
        "steps, after 2×2000, as it is",
    ]
    assert record["runs"] == {}
