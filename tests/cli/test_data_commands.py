from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from rich import filesize
from rich.console import Console

from hatrack.cli import main
from hatrack.cli.carrying import DownloadDisplay
from hatrack.data import DATASETS, DatasetSpec, FileVariant
from hatrack.data.files import DataFile
from hatrack.data.mnist import decode_mnist, encode_idx
from hatrack.data.sources import PublishedFiles

X, Y = torch.arange(40, dtype=torch.uint8).reshape(10, 2, 2), torch.arange(10, dtype=torch.uint8)
FILES = {
    "train-images-idx3-ubyte": encode_idx(X),
    "train-labels-idx1-ubyte": encode_idx(Y),
    "t10k-images-idx3-ubyte": encode_idx(X[:5]),
    "t10k-labels-idx1-ubyte": encode_idx(Y[:5]),
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def mirror(published: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def tiny_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mirror: str) -> DatasetSpec:
    """MNIST is ten small images for these tests, and nobody's own data is seen."""
    for name in ("HATRACK_DATA", "HATRACK_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "200")
    files = tuple(DataFile(name, hashlib.sha256(content).hexdigest(), ".gz") for name, content in FILES.items())
    variant = FileVariant("idx files", PublishedFiles(files, ("mnist",), (mirror,)), decode_mnist)
    spec = dataclasses.replace(DATASETS["mnist"], variants=(variant,))
    table = {**DATASETS, "mnist": spec}
    for module in ("hatrack.data", "hatrack.data.registry"):
        monkeypatch.setattr(f"{module}.DATASETS", table)
    return spec


def put(folder: Path, names: tuple[str, ...] = tuple(FILES)) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


def row(shown: str, name: str) -> str:
    (line,) = (line for line in shown.splitlines() if line.split()[:1] == [name])
    return " ".join(line.split())


@pytest.mark.slow
def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert row(shown, "mnist") == "mnist missing 127.0.0.1"
    assert row(shown, "svhn") == "svhn missing ufldl.stanford.edu"
    assert row(shown, "facescrub") == "facescrub missing to be put there by hand"
    assert row(shown, "fashion-mnist-subset").endswith("shipped with hatrack")
    assert all(name in shown for name in DATASETS)
    folder = put(tmp_path / "mine" / "mnist")
    assert main(["data", "list", "--data", str(folder.parent)]) == 0
    assert row(capsys.readouterr().out, "mnist").startswith("mnist idx files 123 bytes /")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"something else")
    assert main(["data", "list", "--data", str(folder.parent)]) == 0
    assert row(capsys.readouterr().out, "mnist").startswith("mnist damaged")


def test_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "mine" / "mnist")
    assert main(["data", "path", "mnist", "--data", str(folder.parent)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in FILES]
    assert main(["data", "path", "mnist"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (
        f"put {', '.join(f'{name}.gz' for name in FILES)} (packed or not) into {tmp_path}/cache/hatrack/mnist"
        in shown.err
    )


@pytest.mark.slow
def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "mine" / "mnist")
    assert main(["data", "check", "mnist", "--data", str(folder.parent), "--statistics"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mnist: sound, 10 + 5 images of 10 classes (idx files)",
        "  mean: computed 0.0765; published 0.1307",  # 19.5 / 255
        "  standard deviation: computed 0.0453; published 0.3081",  # sqrt((40² − 1) / 12) / 255
    ]
    assert main(["data", "check"]) == 0, "what is missing is no fault unless it was named"
    assert "mnist: missing" in capsys.readouterr().out
    assert main(["data", "check", "mnist"]) == 1
    assert "mnist: train-images-idx3-ubyte not found in" in capsys.readouterr().out
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"something else")
    assert main(["data", "check", "--data", str(folder.parent)]) == 1
    assert "its content is not that of mnist's t10k-labels-idx1-ubyte (the SHA-256 differs)" in capsys.readouterr().out


def test_fetch_puts_the_files_where_path_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache" / "hatrack" / "mnist"
    assert main(["data", "fetch", "mnist"]) == 0
    shown = capsys.readouterr().out
    assert "downloading train-images-idx3-ubyte.gz (" in shown
    assert shown.endswith(f"mnist: ready, in {cache}\n")
    assert main(["data", "path", "mnist"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(cache / f"{name}.gz") for name in FILES]
    assert main(["data", "fetch", "mnist"]) == 0
    assert capsys.readouterr().out == f"mnist: ready, in {cache}\n", "nothing is downloaded twice"
    assert main(["data", "fetch", "mnist", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_without_network_the_exact_files_and_places_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, published: Path
) -> None:
    monkeypatch.setenv("HATRACK_OFFLINE", "1")
    assert main(["data", "fetch", "mnist"]) == 1
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz" in error
    assert f"into {tmp_path}/cache/hatrack/mnist, or into a folder DIR" in error
    assert "HATRACK_OFFLINE is set" in error
    monkeypatch.delenv("HATRACK_OFFLINE")
    (published / "train-images-idx3-ubyte.gz").unlink()
    assert main(["data", "fetch", "mnist"]) == 1
    error = capsys.readouterr().err
    assert "HTTP Error 404" in error
    assert f"into {tmp_path}/cache/hatrack/mnist, or into a folder DIR" in error
    # what the message says does help
    put(tmp_path / "cache" / "hatrack" / "mnist")
    assert main(["data", "fetch", "mnist"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "needs the names of data sets; choose from mnist"),
        (["fetch", "mnst"], 'Did you mean "mnist"'),
        (["path"], "requires an argument"),
        (["check", "--data", "absent"], "absent does not exist"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_shows_its_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(
        ["run", "split-mnist", "--method", "random", "--out", str(tmp_path / "run"), "--set", "validation=0"]
    ) in (0, 2)
    assert "downloading train-images-idx3-ubyte.gz (" in capsys.readouterr().out


# --- packed parts


def test_pack_and_what_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_mnist: DatasetSpec
) -> None:
    folder, out = put(tmp_path / "mine" / "mnist"), tmp_path / "carried" / "there"
    asked = ["data", "pack", "mnist", "fashion-mnist-subset", "--limit", "10", "--test-limit", "10", "--out", str(out)]
    assert main([*asked, "--data", str(folder.parent)]) == 0
    shown = capsys.readouterr().out.splitlines()
    file = out / "mnist.packed"
    assert shown[0].startswith(f"mnist: 10 + 5 of 10 + 5 pictures, {filesize.decimal(file.stat().st_size)} (")
    assert shown[1].startswith("fashion-mnist-subset: 10 + 10 of 3,000 + 1,000 pictures, ")
    both = filesize.decimal(sum(path.stat().st_size for path in out.iterdir()))
    assert shown[2:] == [f"together {both} in 2 files in {out}"]
    assert sorted(path.name for path in out.iterdir()) == ["fashion-mnist-subset.packed", "mnist.packed"]

    monkeypatch.setenv("HATRACK_OFFLINE", "1")
    found = tiny_mnist.load(out)
    assert torch.equal(found.x_train, X.unsqueeze(1))
    assert torch.equal(found.y_train, Y.long())
    assert main(["data", "path", "mnist", "--data", str(out)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert main(["data", "check", "mnist", "--data", str(out)]) == 0
    assert found.origin.startswith("packed whole: 10 + 5 of idx files (SHA-256 ")
    assert capsys.readouterr().out == f"mnist: sound, 10 + 5 images of 10 classes ({found.origin})\n"
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["data", "check", "mnist", "--data", str(out)]) == 1
    assert f"({file} is damaged" in capsys.readouterr().out


def test_a_run_on_a_packed_part_is_none_on_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_mnist: DatasetSpec
) -> None:
    """Even where the part has all pictures: published files alone are known to be what they are."""
    folder, out, made = put(tmp_path / "mine" / "mnist"), tmp_path / "carried", tmp_path / "runs" / "part"
    assert main(["data", "pack", "mnist", "--out", str(out), "--data", str(folder.parent), "--quiet"]) == 0
    run = ["run", "permuted-mnist", "--method", "random", "--set", "validation=0", "--set", "num_tasks=2", "--quiet"]
    assert main([*run, "--data", str(out), "--out", str(made)]) == 0
    assert main([*run, "--data", str(folder.parent), "--out", str(made.parent / "whole"), "--seed", "1"]) == 0
    origin = tiny_mnist.load(out).origin
    assert json.loads((made / "run.json").read_text())["data"] == [f"mnist: {origin}"]
    for data, differs in ((out, False), (folder.parent, True)):
        assert main(["verify", str(made), "--data", str(data)]) == 0
        assert ("since these differ from the run: data" in capsys.readouterr().out) is differs
    assert main(["report", str(made.parent), "--out", str(tmp_path / "report.html")]) == 2
    assert f"are of different data: mnist: idx files, mnist: {origin}" in capsys.readouterr().err


@pytest.mark.slow
def test_list_shows_packed_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_mnist: DatasetSpec
) -> None:
    folder, out = put(tmp_path / "mine" / "mnist"), tmp_path / "carried"
    assert main(["data", "pack", "mnist", "--out", str(out), "--data", str(folder.parent), "--quiet"]) == 0
    file, said = out / "mnist.packed", tiny_mnist.load(out).origin
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["data", "list", "--data", str(out)]) == 0
    assert row(capsys.readouterr().out, "mnist").startswith(f"mnist {said} {filesize.decimal(file.stat().st_size)}")

    file.write_bytes(file.read_bytes()[:-1])
    assert main(["data", "list", "--data", str(out)]) == 0
    assert row(capsys.readouterr().out, "mnist").startswith("mnist damaged")


def test_fetch_gets_the_whole_and_pack_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_mnist: DatasetSpec
) -> None:
    """Where a part is at hand, too: neither command takes it for what was asked."""
    out = tmp_path / "carried"
    assert main(["data", "pack", "mnist", "--test-limit", "5", "--out", str(out)]) == 0
    assert "downloading train-images-idx3-ubyte.gz (" in capsys.readouterr().out
    for path in (tmp_path / "cache" / "hatrack" / "mnist").iterdir():
        path.unlink()
    assert tiny_mnist.load(out).origin.startswith("packed whole: "), "nothing is downloaded"
    assert main(["data", "fetch", "mnist", "--data", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"mnist: ready, in {tmp_path}/cache/hatrack/mnist\n")
    for path in (tmp_path / "cache" / "hatrack" / "mnist").iterdir():
        path.unlink()
    assert main(["data", "pack", "mnist", "--out", str(out), "--data", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert tiny_mnist.load(out).origin == "idx files", "packed from the download"


def test_an_experiment_stands_for_its_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data", "pack", "mnist", "--experiment", "demo", "--limit", "10", "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"mnist.packed", "fashion-mnist-subset.packed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs the names of data sets or an --experiment; choose from mnist"),
        (["mnst"], 'Did you mean "mnist"'),
        (["--experiment", "dmo"], "demo"),
        (["mnist", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["mnist", "--test-limit", "-1"], "--test-limit must be at least 1, not -1"),
        (["mnist", "--limit", "1.5"], "limit"),
        (["mnist", "--limit", "9"], "training pictures of mnist: 9 are fewer than the 10 classes; take 10 or more"),
    ],
)
def test_what_cannot_be_packed(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "pack", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["data", "pack", "mnist", "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path}/file is a file" in capsys.readouterr().err
    assert main(["data", "pack", "mnist"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["data", "pack", "facescrub", "--out", str(tmp_path / "out")]) == 1
    assert "facescrub: pictures not found" in capsys.readouterr().err


# --- the display


def shown_by(display: DownloadDisplay, console: Console) -> str:
    with display as monitor:
        monitor("a.zip", 50_000_000, 170_498_071)
        monitor("a.zip", 170_498_071, 170_498_071)
        monitor("b.zip", 0, None)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_bar_in_a_terminal_and_a_line_elsewhere() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    bars = shown_by(DownloadDisplay(terminal), terminal)
    assert "170.5/170.5 MB" in bars
    assert "downloading b.zip" in bars
    plain = Console(file=io.StringIO(), width=120)
    assert shown_by(DownloadDisplay(plain), plain).splitlines() == [
        "downloading a.zip (170.5 MB), going on after 50.0 MB",
        "downloading b.zip",
    ]
    for console in (Console(file=io.StringIO(), force_terminal=True), Console(file=io.StringIO())):
        assert shown_by(DownloadDisplay(console, quiet=True), console) == ""
