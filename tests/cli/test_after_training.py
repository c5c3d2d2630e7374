"""hatrack export and hatrack predict on a run of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import open_run, predict_files
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_export_of_all_tasks(folder: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    out = tmp_path / "all.onnx"
    assert main(["export", str(folder), "--all-tasks", "--to", str(out)]) == 0
    found = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert [task["name"] for task in json.loads(found["tasks"])] == [task.name for task in open_run(folder)[1]]


@pytest.mark.slow
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
        (["predict", "{run}", "a.png", "--out", "./a.png"], 2, "predictions are written as .csv or .json"),
        (
            ["predict", "{run}", "a.csv", "--out", "./a.csv"],
            2,
            "is one of the files that are asked about",
        ),
        (["export", "{run}", "--to", "a.onnx"], 2, "--task NAME, or --all-tasks"),
        (["export", "{run}", "--to", "a.onnx", "--task", "absent"], 2, "there is no task 'absent'"),
        (["export", "absent", "--to", "a.onnx", "--task", "a"], 2, "holds no run.json"),
        (["export", "{run}", "--to", "a.txt", "--task", "{task}"], 2, "exported to .onnx"),
        (["predict", "{run}"], 2, "at least one picture"),
        (["predict", "{run}", "absent.png", "--task", "{task}"], 2, "absent.png does not exist"),
        (["predict", "{run}", "{run}/run.json", "--task", "{task}"], 2, "is no picture"),
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert rows[0]["speedup"] == pytest.approx(rows[0]["plain_milliseconds"] / rows[0]["milliseconds"])
    assert rows[0]["speedup_over_masked"] == pytest.approx(rows[0]["full_milliseconds"] / rows[0]["milliseconds"])
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


def own_run(folder: Path, scale: float, shift: float = 0.0, kind: type = np.float32, bits: int = 8) -> Path:
    """A run that tells dark pictures from bright ones, trained on an array of numbers."""
    random = np.random.default_rng(0)
    y = np.arange(160) % 2
    x = random.integers(0, 60, (160, 8, 8)) + 150 * y[:, None, None]
    x = (x * 2**bits // 256 * scale + shift).astype(kind)
    np.savez(folder / "t.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    (folder / "own.toml").write_text(
        '[[task]]\npath = "t.npz"\n[network]\nhidden = [30, 30]\n[training]\nepochs = 8\nbatch_size = 16\n'
    )
    words = ["run", str(folder / "own.toml"), "--method", "hat", "--out", str(folder / "run"), "--quiet"]
    assert main(words) == 0
    for name, low in (("dark", 0), ("bright", 150)):
        Image.fromarray(random.integers(low, low + 60, (8, 8), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "kind"), [(1, np.uint8), (1, np.int64), (1, np.float64), (1 / 255, np.float32)])
def test_pictures_are_read_in_the_range_of_the_training_data(scale: float, kind: type, tmp_path: Path) -> None:
    run = own_run(tmp_path, scale, kind=kind)
    found = predict_files(run, "t", [tmp_path / "dark.png", tmp_path / "bright.png"])
    assert [each.classes[0] for each in found] == ["0", "1"]
    assert min(each.probabilities[0] for each in found) > 0.6
    values = np.asarray(Image.open(tmp_path / "bright.png"))
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    same = predict_files(run, "t", [tmp_path / "dark.png", tmp_path / "deep.png"])  # a batch of as many
    assert same[1].probabilities == found[1].probabilities


@pytest.mark.parametrize(("scale", "shift", "kind"), [(2 / 255, -1, np.float32), (1 / 300, 0, np.float32), (9, 0, int)])
def test_ranges_that_are_not_certain_are_refused(
    scale: float, shift: float, kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = own_run(tmp_path, scale, shift, kind)
    assert main(["predict", str(run), str(tmp_path / "dark.png"), "--task", "t"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"numbers from {shift:g} to {209 * scale + shift:g} in training" in said


def test_a_picture_far_brighter_than_all_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = own_run(tmp_path, 1, kind=np.uint8, bits=4)  # values up to 13, as of sixteen levels
    assert main(["predict", str(run), str(tmp_path / "bright.png"), "--task", "t"]) == 1
    assert "all samples in training up to 13" in " ".join(capsys.readouterr().err.split())


def test_a_picture_is_read_as_in_training(tmp_path: Path) -> None:
    """Turned, converted and resized alike."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, low in (("a", 0), ("b", 120)):
        (tmp_path / "t" / name).mkdir(parents=True)
        for number in range(12):
            picture = Image.fromarray(random.integers(low, low + 130, (9, 14, 3), dtype=np.uint8))
            picture.save(tmp_path / "t" / name / f"{number}.png", exif=exif)
    (tmp_path / "own.toml").write_text(
        'resize = [5, 4]\nchannels = 1\n[[task]]\npath = "t"\ntest_share = 0.5\n'
        "[network]\nhidden = [9, 9]\n[training]\nepochs = 1\n"
    )
    run = tmp_path / "run"
    assert main(["run", str(tmp_path / "own.toml"), "--method", "hat", "--out", str(run), "--quiet"]) == 0
    prepared, (task,) = open_run(run)
    files = sorted((tmp_path / "t").glob("*/*"))
    found = predict_files(run, "t", files)
    x = torch.cat([task.train.load()[0], task.valid.load()[0], task.test.load()[0]])
    with torch.no_grad():
        expected = torch.softmax(prepared.method.predict(x, "t"), 1).max(1).values
    shares = torch.tensor([each.probabilities[0] for each in found])
    torch.testing.assert_close(shares.sort().values, expected.sort().values)


@pytest.mark.slow
def test_preprocessing_of_numbers_is_written_with_the_network(tmp_path: Path) -> None:
    run = own_run(tmp_path, 1 / 255)
    out = tmp_path / "t.safetensors"
    assert main(["export", str(run), "--task", "t", "--to", str(out)]) == 0
    with safetensors.safe_open(out, "pt") as file:
        described = json.loads(file.metadata()["preprocessing"])
    _, (task,) = open_run(run)
    shape = task.test.source.shape[1:]
    mean, std = (torch.tensor(described[key], dtype=torch.float64).view(shape) for key in ("mean", "std"))
    x = (task.test.source.double() - mean) / std
    torch.testing.assert_close(x.float(), task.test.load()[0])
