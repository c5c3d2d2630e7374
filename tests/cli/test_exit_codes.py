"""Exit codes: 2 for what was asked for and cannot be, whatever it is; 1 for what went wrong; one line for both."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hatrack.cli import main
from hatrack.experiments import RunRequest, own_experiment, prepare, run

QUICK = "--epochs 1 --set hidden=8 --set limit=40 --set num_tasks=2 --quiet"
TABLE = "--set targets=answer --set test_share=0.25"

NETWORKS = """
import sys

import torch
from torch import nn

def leaves(shape):
    sys.exit("no reason")

def misspelt(shape):
    return nn.Linear(shpae, 4)

def reads(shape):
    return torch.load("absent.pt")

def stops(shape):
    raise StopIteration

class Leaving(nn.Module):
    def forward(self, x):
        sys.exit()

def forward_leaves(shape):
    return Leaving()

def broken(shape):
    raise ValueError("no such size")

def misfit(shape):
    return nn.Linear(3, 4)

def maps(shape):
    return nn.Conv2d(1, 2, 3)

def lazy(shape):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU())

class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(784, 6)
    def forward(self, x):
        h = self.dense(x.flatten(1))
        return h * float(h.sum())

def unexplained(shape):
    return Sorted()
"""


def table(path: Path, delimiter: str = ",", header: str = "a,b,answer", seed: int = 0) -> None:
    values = np.random.default_rng(seed).normal(size=(24, 2))
    rows = [[str(a), str(b), "yes" if a > 0 else "no"] for a, b in values]
    path.write_text("\n".join(delimiter.join(row) for row in (header.split(","), *rows)) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a few tables and other files."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("hat", "sgd"):
        assert main(["run", "demo", "--method", name, *shlex.split(QUICK), "--out", str(folder / name)]) == 0
    table(folder / "one.csv")
    table(folder / "two.csv", seed=1)
    table(folder / "semicolons.csv", delimiter=";")
    table(folder / "unnamed.csv", header=",b,answer")
    (folder / "dates.csv").write_text((folder / "one.csv").read_text().replace("no", "2026-01-01"))
    (folder / "commas.csv").write_text((folder / "semicolons.csv").read_text().replace(".", ","))
    (folder / "latin.csv").write_text((folder / "one.csv").read_text().replace("yes", "s\u00ed"), encoding="cp1252")
    zips = (folder / "one.csv").read_text().replace("answer", "answer,zip")
    (folder / "zips.csv").write_text(zips.replace("no", "no,1 A").replace("yes", "yes,2 B"))
    (folder / "deep.toml").write_text("x = " + "[" * 50_000)
    nothing = {"x_train": np.full((4, 2), np.nan), "x_test": np.ones((2, 2))}
    np.savez(folder / "nan.npz", **nothing, y_train=np.arange(4) % 2, y_test=np.arange(2))
    (folder / "file").write_text("text")
    (folder / "a folder").mkdir()
    (folder / "networks_of_mine.py").write_text(NETWORKS)
    (folder / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "failing.py").write_text("absent\n")
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        # files that are not there, or are of another kind
        ("predict hat absent.png --task tshirt-trouser", "absent.png does not exist; name picture files"),
        ("predict hat 'a folder' --task tshirt-trouser", "a folder is a folder; name picture files"),
        ("predict hat file --task tshirt-trouser", "file: is no picture of a kind that can be read"),
        ("run --tasks absent.npz --method sgd", "does not exist"),
        # files that cannot be written where they were asked for
        ("export hat --to file/x.safetensors --task tshirt-trouser", "file is a file, so that there can be no file/x"),
        (
            "report hat --out file/x.html",
            "there can be no file/x.html; give a file in a folder as --out",
        ),
        ("report hat --out 'a folder'", "a folder is a folder; give a file as --out"),
        ("sizes hat --out file/x", "file is a file"),
        ("figure accuracy hat --out file/x.svg", "file is a file"),
        ("run demo --method sgd --out file/x", "file is a file; give a folder as --out"),
        ("run demo --method sgd --out /dev/null/x", "/dev/null is a file"),
        # networks of one's own
        (
            "run demo --method sgd --network networks_of_mine:broken",
            "(1, 28, 28): ValueError: no such size (n",
        ),
        (
            "run demo --method sgd --network sys:exit",
            "sys:exit cannot be made for samples of shape (1, 28, 28): SystemE",
        ),
        (
            "run demo --method sgd --network networks_of_mine:leaves",
            "SystemExit: no reason (networks_of_mine.py line 8)",
        ),
        ("run demo --method sgd --network networks_of_mine:misspelt", "NameError: name 'shpae' is not defined (netw"),
        ("run demo --method sgd --network networks_of_mine:reads", "FileNotFoundError: [Errno 2] No such file or dir"),
        ("run demo --method sgd --network networks_of_mine:stops", "StopIteration (networks_of_mine.py line 17)"),
        (
            "run demo --method sgd --network networks_of_mine:forward_leaves",
            "does not run on samples of shape (1, 28, ",
        ),
        (
            "run demo --method sgd --network leaving:build",
            "leaving cannot be imported: SystemExit: 3 (leaving.py line 2",
        ),
        ("run demo --method sgd --network failing:build", "failing cannot be imported: NameError: name 'absent' is"),
        ("run demo --method sgd --network torch:absent", " more"),
        (
            "run demo --method hat --network networks_of_mine:misfit",
            "does not run on samples of shape (1, 28, 28): R",
        ),
        ("run demo --method sgd --network networks_of_mine:maps", "features (N, F), and gives (1, 2, 26, 26) for one"),
        ("run demo --method hat --network networks_of_mine:unexplained", "would depend on values"),
        (
            f"run one.csv --method sgd {TABLE} --network alexnet",
            "alexnet is for pictures",
        ),
        # settings that do not fit the data, which the message names
        (f"run semicolons.csv --method sgd {TABLE}", "say delimiter = \";\" (--set delimiter=';')"),
        (f"run unnamed.csv --method sgd {TABLE}", 'leave it out by drop = [""] (--set drop=\'""\')'),
        ("run dates.csv --method sgd --set targets=a --set test_share=0.25", "drop the column (--set drop=answer)"),
        (f"run one.csv --method sgd {TABLE} --set delimiter=ab", "delimiter must be a single character, or tab"),
        (f"run one.csv --method sgd {TABLE} --set drop=a,,b", "names of columns joined by commas"),
        (f"run commas.csv --method sgd {TABLE} --set delimiter=';'", 'decimal = "," (--set decimal=,)'),
        (f"run one.csv --method sgd {TABLE} --set decimal=;", "decimal must be one of ., ,"),
        (f"run latin.csv --method sgd {TABLE}", 'say encoding = "cp1252" (--set encoding=cp1252), or save it as UTF-8'),
        (f"run one.csv --method sgd {TABLE} --set encoding=latin-99", "there is no encoding 'latin-99'"),
        (f"run zips.csv --method sgd {TABLE}", 'categories = ["zip"] (--set categories=zip)'),
        (f"run one.csv --method sgd {TABLE} --set categories=answer", "categories are columns of features"),
        ("run nan.npz --method sgd", "x_train holds NaN, infinite or far too large values; clean it first"),
        ("run deep.toml --method sgd", "has brackets or tables within each other, more than 10 deep"),
        ("run --tasks 'a folder' --method sgd", "has no test samples; give test_share (--set test_share=0.2)"),
        ("run demo --method sgd --set delimiter=tab", "this is for tasks of your own"),
        # combinations that mean nothing
        ("report hat --table accuracy", "--table accuracy goes with --format csv, json, markdown or latex"),
        ("report hat --format csv --table differences", "it takes several methods"),
    ],
)
def test_what_cannot_be_is_wrong_input(
    command: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main(shlex.split(command)) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert [path for path in sorted(place.rglob("*")) if path not in before and "__pycache__" not in str(path)] == []


def test_the_remedies_that_messages_name_help(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for command in (
        f"run semicolons.csv --method sgd {TABLE} --set delimiter=';'",
        f"run unnamed.csv --method sgd {TABLE} --set drop='\"\"'",
        f"run commas.csv --method sgd {TABLE} --set delimiter=';' --set decimal=,",
        f"run latin.csv --method sgd {TABLE} --set encoding=cp1252",
        f"run zips.csv --method sgd {TABLE} --set categories=zip",
        "run dates.csv --method sgd --set targets=a --set test_share=0.25 --set drop=answer",
        "run demo --method hat --network networks_of_mine:lazy --set num_tasks=1 --set limit=20",
    ):
        assert main([*shlex.split(command), "--epochs", "1", "--quiet", "--out", f"out {hash(command)}"]) == 0, command
    assert capsys.readouterr() == ("", "")


def test_a_drop_of_nothing_wins_over_the_file(place: Path) -> None:
    toml = place / "dropping.toml"
    toml.write_text('[[task]]\npath = "one.csv"\nlabel = "answer"\ndrop = ["b"]\ntest_share = 0.25\n')
    experiment = own_experiment([toml])
    features = {}
    for drop in (None, "", "a", "a,b"):
        config = experiment.config("sgd").overridden({} if drop is None else {"drop": drop})
        assert config.overridden(config.flat()) == config, "as it is recorded"
        if drop != "a,b":
            features[drop] = experiment.stream_of(config.stream, seed=0, data_dir=None).input_shape
    assert features == {None: (1,), "": (2,), "a": (1,)}


def test_tables_have_folders_of_their_own(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for name in ("one.csv", "two.csv"):
        assert main(["run", name, "--method", "random", *shlex.split(TABLE), "--quiet"]) == 0
        recorded = json.loads((place / "runs" / f"{name[:3]}-random-seed0" / "run.json").read_text())
        assert (recorded["experiment"], recorded["sources"]) == (name[:3], [str(place / name)])
    command = ["run", "two.csv", "--method", "random", *shlex.split(TABLE), "--out", "runs/one-random-seed0"]
    assert main(command) == 2
    both = f"holds a run on {place / 'one.csv'} and this one is on {place / 'two.csv'}; choose another folder (--out)"
    assert both in capsys.readouterr().err
    assert main([*command, "--set", "validation=0"]) == 2
    assert "with other settings: validation" in capsys.readouterr().err
    table(place / "demo.csv")  # the name of a preset, of whose runs reports know more
    assert main(["run", "demo.csv", "--method", "random", *shlex.split(TABLE), "--quiet"]) == 0
    assert (place / "runs" / "own-demo-random-seed0" / "run.json").exists()


def test_runs_from_before_tables_gave_names_go_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = {"targets": "answer", "test_share": "0.25"}
    old = RunRequest("own", "random", out=Path("old"), overrides=words, sources=(Path("one.csv"),))
    assert list(run(prepare(old)))
    assert main(["run", "one.csv", "--method", "random", *shlex.split(TABLE), "--quiet", "--out", "old"]) == 0


def test_runs_without_a_task_learned_say_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", "--method", "sgd", *shlex.split(QUICK), "--set", "lr=1e30", "--out", "begun"]) == 1
    capsys.readouterr()
    for table_ in ([], ["--format", "csv", "--table", "accuracy"]):
        assert main(["report", "begun", *table_]) == 2
        said = capsys.readouterr().err
        assert "no run in which a task has been learned (only begun: sgd, seed 0; the command that began it" in said


def test_what_went_wrong_is_a_failure(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((28, 28), 50).save("fine.png")
    Path("cut.png").write_bytes(Path("fine.png").read_bytes()[:-200])
    assert main(["predict", str(place / "hat"), "fine.png", "--task", "tshirt-trouser"]) == 0
    assert main(["predict", str(place / "hat"), "cut.png", "--task", "tshirt-trouser"]) == 1
    Path("damaged.npz").write_bytes(b"PK\x03\x04")
    assert main(["run", "damaged.npz", "--method", "sgd", "--out", "run"]) == 1
