"""hatrack export and hatrack predict on a run of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import open_run
from hatrack.experiments.opening import describe_transform
from hatrack.streams.transforms import Chain, Normalise, Permute

QUICK = ["--epochs", "4", "--set", "limit=100", "--set", "num_tasks=2", "--set", "hidden=24,20", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two small tasks."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["run", "demo", "--method", "hat", *QUICK, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["tasks"][0]["name"])


def test_export(folder: Path, first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "task.safetensors"
    assert main(["export", str(folder), "--task", first, "--to", str(out)]) == 0
    assert "compared on" in capsys.readouterr().out
    _, (task, _) = open_run(folder)
    with safetensors.safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == list(task.classes)
    described = json.loads(metadata["preprocessing"])
    x = task.test.source[task.test.rows[:3]].float()
    shape = (1, -1, 1, 1)
    scaled = (x / described["divide_by"] - torch.tensor(described["mean"]).view(shape)) / torch.tensor(
        described["std"]
    ).view(shape)
    torch.testing.assert_close(scaled, task.test.load()[0][:3])


def test_export_of_all_tasks(folder: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    out = tmp_path / "all.onnx"
    assert main(["export", str(folder), "--all-tasks", "--to", str(out)]) == 0
    found = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert [task["name"] for task in json.loads(found["tasks"])] == [task.name for task in open_run(folder)[1]]


def test_predict(folder: Path, first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared, (task, _) = open_run(folder)
    x, _ = task.test.load()
    with torch.no_grad():
        expected = torch.softmax(prepared.method.predict(x[:2], task.name), 1)
    pictures = []
    for number in range(2):
        pictures.append(str(tmp_path / f"{number}.png"))
        picture = Image.fromarray(task.test.source[task.test.rows[number], 0].numpy())
        picture.convert("RGB").save(pictures[-1])
    capsys.readouterr()
    assert main(["predict", str(folder), *pictures, "--task", first]) == 0
    shown = capsys.readouterr().out
    for row in expected:
        share, index = row.max(0)
        assert task.classes[int(index)] in shown
        assert f"{float(share):.1%}" in shown
    assert main(["predict", str(folder), pictures[0]]) == 0, "without a name the task is recognised"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["export", "{run}", "--to", "a.onnx"], 2, "--task NAME, or --all-tasks"),
        (["export", "{run}", "--to", "a.onnx", "--task", "absent"], 2, "there is no task 'absent'"),
        (["export", "absent", "--to", "a.onnx", "--task", "a"], 2, "holds no run.json"),
        (["export", "{run}", "--to", "a.txt", "--task", "{task}"], 2, "exported to .onnx"),
        (["predict", "{run}"], 2, "at least one picture"),
        (["predict", "{run}", "absent.png", "--task", "{task}"], 1, "could not be read"),
        (["predict", "{run}", "{run}/run.json", "--task", "{task}"], 1, "is no picture"),
        (["predict", "{run}", "absent.png", "--task", "absent"], 2, "there is no task 'absent'"),
    ],
)
def test_what_cannot_be_says_why(
    folder: Path, first: str, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(run=folder, task=first) for word in words]
    assert main(given) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_method_without_masks_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", "demo", "--method", "sgd", *QUICK, "--out", str(out)]) == 0
    assert main(["export", str(out), "--all-tasks", "--to", str(tmp_path / "a.onnx")]) == 2
    assert "made by sgd" in capsys.readouterr().err


def test_masks_of_weights_are_exported_and_asked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["run", "demo", "--method", "pmask", *QUICK, "--out", str(run)]) == 0
    prepared, (task, _) = open_run(run)
    out = tmp_path / "task.pt2"
    assert main(["export", str(run), "--task", task.name, "--to", str(out)]) == 0
    assert "compared on 200 test samples" in capsys.readouterr().out
    x, _ = task.test.load()
    with torch.no_grad():
        found = torch.export.load(out).module()(x[:10])
    torch.testing.assert_close(found, prepared.method.predict(x[:10], task.name).detach())
    assert main(["export", str(run), "--all-tasks", "--to", str(tmp_path / "all.onnx")]) == 2
    assert "whose masks of weights do not mix; export tasks with --task" in " ".join(capsys.readouterr().err.split())
    picture = tmp_path / "picture.png"
    Image.fromarray(task.test.source[task.test.rows[0], 0].numpy()).save(picture)
    assert main(["predict", str(run), str(picture)]) == 0, "without a name the task is recognised"


def test_sizes(folder: Path, first: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "sizes.json"
    assert main(["sizes", str(folder), "--repetitions", "2", "--format", "json", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["task"] for row in rows] == [task.name for task in open_run(folder)[1]]
    exported = tmp_path / "task.safetensors"
    assert main(["export", str(folder), "--task", first, "--to", str(exported)]) == 0
    with safetensors.safe_open(exported, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert rows[0]["file_bytes"] == len(safetensors.torch.save(tensors))
    assert rows[0]["parameters"] == sum(value.numel() for value in tensors.values())
    assert rows[0]["full_parameters"] == 784 * 24 + 24 + 24 * 20 + 20 + 2 * 20 + 2
    assert rows[0]["full_file_bytes"] > 4 * rows[0]["full_parameters"]
    assert rows[0]["speedup"] > 0
    capsys.readouterr()
    assert main(["sizes", str(folder), "--task", first, "--repetitions", "1"]) == 0
    assert first in capsys.readouterr().out
    for words, message in (
        (["--task", "absent"], "there is no task 'absent'"),
        (["--batch", "0"], "batch must be at least 1"),
    ):
        assert main(["sizes", str(folder), *words]) == 2
        assert message in capsys.readouterr().err


def test_transforms_are_described() -> None:
    normalise, permute = Normalise((0.5,), (0.25,)), Permute(torch.tensor([1, 0]))
    assert describe_transform(None) == {}
    assert describe_transform(Chain((normalise, permute))) == {
        "steps": [{"divide_by": 255, "mean": [0.5], "std": [0.25]}, {"permutation": [1, 0]}]
    }
    with pytest.raises(InputError, match="function"):
        describe_transform(lambda x: x)
