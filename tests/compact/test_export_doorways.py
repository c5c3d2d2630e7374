"""Exported tasks of networks with several inputs, other features and heads of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from hatrack import InputError
from hatrack.compact.export import Labels, export_task
from hatrack.support.inputs import tensors_in
from support.doorways import DOORWAYS, KINDS, answer, attach, batch, learn

pytestmark = pytest.mark.slow

LABELS = Labels(("a", "b", "c"))


def sample(name: str, samples: int, seed: int) -> Any:
    """Draw a batch; a padding mask has a gap, since a file takes one of the ways that its truth decides for."""
    x = batch(DOORWAYS[name], samples, seed)
    if isinstance(x, dict):
        x["mask"][:, -1] = 0
    return x


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
@pytest.mark.parametrize("name", ["tuple", "maps", "sequence first"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_say_what_the_network_says(kind: str, name: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    net = attach(kind, DOORWAYS[name])
    learn(net, "a", DOORWAYS[name])
    x, others = sample(name, 6, 3), sample(name, 4, 5)
    exported = export_task(net, "a", tmp_path / f"a{suffix}", x, LABELS)
    assert exported.samples == 6
    expected = answer(net, others, "a")
    if suffix == ".pt2":
        found = torch.export.load(exported.path).module()(others)
    elif suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(exported.path)
        names = [each.name for each in session.get_inputs()]
        feed = {key: value.numpy() for key, value in zip(names, tensors_in(others), strict=True)}
        found = torch.from_numpy(session.run(["logits"], feed)[0])
    else:
        small = net.extract("a", x)
        small.load_state_dict(safetensors.torch.load_file(exported.path))
        found = small(others)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_head_of_the_users_own_is_in_the_file(tmp_path: Path) -> None:
    net = attach("units", DOORWAYS["tuple"])
    learn(net, "a", DOORWAYS["tuple"], nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1)))
    x, others = sample("tuple", 6, 3), sample("tuple", 4, 5)
    export_task(net, "a", tmp_path / "a.pt2", x, LABELS)
    found = torch.export.load(tmp_path / "a.pt2").module()(others)
    assert torch.allclose(found, answer(net, others, "a"), rtol=1e-3, atol=1e-4)


def test_a_head_with_several_outputs_goes_into_no_file(tmp_path: Path) -> None:
    class Two(nn.Linear):
        def forward(self, features: torch.Tensor) -> Any:
            return {"one": super().forward(features), "other": features}

    net = attach("units", DOORWAYS["tuple"])
    learn(net, "a", DOORWAYS["tuple"], Two(12, 2))
    with pytest.raises(InputError, match="gives several outputs; a file holds one tensor"):
        export_task(net, "a", tmp_path / "a.pt2", sample("tuple", 6, 3), LABELS)
