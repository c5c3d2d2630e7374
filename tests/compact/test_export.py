"""Exported tasks: what other runtimes say is what the network says, for the whole zoo; else nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional

from hatrack import GuaranteeError, HATNetwork, InputError, UnsupportedError, WeightMaskedNetwork
from hatrack.compact import export as exporting
from hatrack.compact.decompositions import adaptive_maximum, without_adaptive_maxima
from hatrack.compact.export import Labels, export_all_tasks, export_task
from support.architectures import ARCHITECTURES, FOLDED, a_task, assert_close, onnx_says, tasks_of
from support.helpers import attach, learn, logits

LABELS = Labels(("sandal", "boot", "clog"), {"mean": [0.5], "std": [0.25]})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "vit", "nets-conv-bn", "layer-norm-over-images", "vit-module", "words"),
        "grouped-dilated-transposed",
    ],
)
def test_onnx_says_what_the_network_says(name: str, tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    net, x, others = a_task(name)
    exported = export_task(net, "task", tmp_path / "model.onnx", x, LABELS)
    assert exported.samples == len(x)
    assert exported.deviation < 1e-5
    assert_close(onnx_says(exported.path, x=others), logits(net, others, "task"), 1e-4)
    found = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert json.loads(found["classes"]) == list(LABELS.classes)
    assert json.loads(found["preprocessing"]) == LABELS.preprocessing
    assert found["task"] == "task"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nets-residual", "vit"])
def test_pt2_and_safetensors(name: str, tmp_path: Path) -> None:
    net, x, others = a_task(name)
    expected = logits(net, others, "task")
    export_task(net, "task", tmp_path / "model.pt2", x, LABELS)
    extra = {"metadata.json": ""}
    again = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert_close(again(others), expected)
    assert json.loads(json.loads(extra["metadata.json"])["classes"]) == list(LABELS.classes)
    export_task(net, "task", tmp_path / "model.safetensors", x, LABELS)
    compact = net.extract("task", x)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["preprocessing"]) == LABELS.preprocessing
        compact.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    assert_close(compact(others), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nets-conv-bn", "vit"])
def test_one_file_for_all_tasks(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    architecture = ARCHITECTURES[name]
    net = HATNetwork(architecture.build(), architecture.samples(2, generator))
    net.add_task("more", 5)
    net.consolidate("more")
    names = tasks_of(net, 2)
    samples = {task: architecture.samples(6, generator) for task in names}
    labels = {task: Labels(("a",) * net.tasks[index].num_classes) for index, task in enumerate(names)}
    exported = export_all_tasks(net, tmp_path / "all.onnx", samples, labels)
    x, tasks = architecture.samples(9, generator), torch.arange(9) % 3
    found = onnx_says(exported.path, x=x, task=tasks)
    for row, number in enumerate(tasks.tolist()):
        classes = net.tasks[number].num_classes
        assert_close(found[row, :classes], logits(net, x, names[number])[row], 1e-4)
        assert (found[row, classes:] == float("-inf")).all()


def test_nothing_is_written_that_says_something_else(tmp_path: Path) -> None:
    net, x, _ = a_task("nets-mlp")
    wrong = patch.object(exporting, "_pt2", lambda *_: (b"", torch.zeros(len(x), 3)))
    with wrong, pytest.raises(GuaranteeError, match="would not say what the network says on 'task'"):
        export_task(net, "task", tmp_path / "model.pt2", x, LABELS)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    net = attach("mlp")
    x, _ = learn(net, "t")
    with pytest.raises(InputError, match=r"exported to \.onnx, \.pt2, \.safetensors"):
        export_task(net, "t", tmp_path / "model.pickle", x, LABELS)
    with pytest.raises(InputError, match="two at least"):
        export_task(net, "t", tmp_path / "model.pt2", x[:1], LABELS)
    with pytest.raises(InputError, match="together are exported"):
        export_all_tasks(net, tmp_path / "model.pt2", {"t": x}, {"t": LABELS})
    with pytest.raises(InputError, match="missing for t"):
        export_all_tasks(net, tmp_path / "model.onnx", {}, {})
    missing = patch.object(exporting.importlib, "import_module", side_effect=ImportError)
    with missing, pytest.raises(InputError, match=r"install hatrack\[onnx\]"):
        export_task(net, "t", tmp_path / "model.onnx", x, LABELS)
    folded, x, _ = a_task(next(iter(FOLDED)))
    with pytest.raises(UnsupportedError, match="does not keep samples apart"):
        export_all_tasks(folded, tmp_path / "model.onnx", {"task": x}, {"task": LABELS})


class Bessel(nn.Module):
    """An activation that ONNX does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.slow
def test_what_onnx_does_not_know_is_refused_and_goes_to_pt2(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    net = WeightMaskedNetwork(nn.Sequential(nn.Linear(4, 6), Bessel()), torch.zeros(1, 4))
    net.add_task("task", 3)
    net.consolidate("task")
    x = torch.randn(4, 4)
    with pytest.raises(UnsupportedError, match="ONNX has no translation of this network"):
        export_task(net, "task", tmp_path / "model.onnx", x, LABELS)
    assert not list(tmp_path.iterdir())
    export_task(net, "task", tmp_path / "model.pt2", x, LABELS)


class AdaptiveMaxima(nn.Module):
    """Pooling whose windows are of several sizes, over one, two and three axes."""

    def forward(self, x: Tensor) -> Tensor:
        line = functional.adaptive_max_pool1d(x.flatten(2), 4).flatten(1)
        image = functional.adaptive_max_pool2d(x, (2, 3)).flatten(1)
        return torch.cat([line, image, functional.adaptive_max_pool3d(x, (2, 1, 3)).flatten(1)], 1)


@pytest.mark.slow
def test_adaptive_maxima_are_written_out_for_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    x = torch.randn(4, 3, 5, 7)
    content = exporting._onnx(AdaptiveMaxima(), (x[:2],), ("x",), {})
    assert torch.equal(exporting._run_onnx(content, [{"x": x[:1]}, {"x": x[1:]}]), AdaptiveMaxima()(x))


@pytest.mark.parametrize("length", range(1, 9))
def test_windows_of_adaptive_maxima(length: int) -> None:
    for size in range(1, 10):
        x = torch.randn(2, 3, length, length + 2)
        assert torch.equal(adaptive_maximum(x, (size, 2)), functional.adaptive_max_pool2d(x, (size, 2)))


class Places(nn.Module):
    """Pooling that is asked where the maxima are."""

    def forward(self, x: Tensor) -> Tensor:
        maxima, places = functional.adaptive_max_pool2d(x, 2, return_indices=True)
        return functional.max_unpool2d(maxima, places, 2).flatten(1)


def test_places_of_maxima_are_not_made_up() -> None:
    x = torch.randn(2, 3, 4, 4)
    program = torch.export.export(Places(), (x,))
    assert without_adaptive_maxima(program) is program
