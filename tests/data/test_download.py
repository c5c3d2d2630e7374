from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hatrack.data import files
from hatrack.data.files import DataFile, download_file, offline
from hatrack.errors import DataError

CONTENT = bytes(range(256)) * 4000  # a megabyte
FILE = DataFile("archive.zip", hashlib.sha256(CONTENT).hexdigest(), archive=True)


class Server(ThreadingHTTPServer):
    """Serves one file; a test sets how badly."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.send_at_most = [len(CONTENT)] * 9  # bytes after which each answer breaks off
        self.understands_ranges = True
        self.asked: list[str | None] = []
        self.gate: threading.Event | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, *_: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        if self.path != "/archive.zip":
            self.send_error(404)
            return
        content, start = self.server.content, 0
        if wanted and self.server.understands_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.server.gate is not None:
            self.server.gate.wait(10)
        self.wfile.write(content[start : start + self.server.send_at_most.pop(0)])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def fetch(server: Server, folder: Path, **options: object) -> bytes:
    return download_file(FILE, [server.address], folder, dataset="tiny", **options)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def break_off(server: Server, folder: Path, after: int) -> None:
    server.send_at_most.insert(0, after)
    with pytest.raises(DataError, match="download failed"):
        fetch(server, folder)


def test_whole_file_and_nothing_else_is_there_in_the_end(server: Server, folder: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    assert fetch(server, folder, monitor=lambda *what: told.append(what)) == CONTENT
    assert names(folder) == ["archive.zip"]
    assert (folder / "archive.zip").read_bytes() == CONTENT
    assert told[0] == ("archive.zip", 0, len(CONTENT))
    assert told[-1] == ("archive.zip", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(told) > 3


def test_interrupted_download_goes_on_where_it_broke(server: Server, folder: Path) -> None:
    break_off(server, folder, 300_000)
    assert names(folder) == ["archive.zip.part"]
    assert (folder / "archive.zip.part").read_bytes() == CONTENT[:300_000]
    break_off(server, folder, 200_000)
    told: list[int] = []
    assert fetch(server, folder, monitor=lambda name, done, total: told.append(done)) == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]
    assert told[0] == 500_000
    assert names(folder) == ["archive.zip"]


def test_ctrl_c_keeps_what_has_arrived(server: Server, folder: Path) -> None:
    def interrupt(name: str, done: int, total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, folder, monitor=interrupt)
    arrived = (folder / "archive.zip.part").stat().st_size
    assert 100_000 < arrived < len(CONTENT)
    assert fetch(server, folder) == CONTENT
    assert server.asked[1] == f"bytes={arrived}-"


def test_the_next_mirror_goes_on_where_the_first_broke(server: Server, folder: Path) -> None:
    server.send_at_most.insert(0, 300_000)
    mirrors = [server.address, server.address]
    assert download_file(FILE, mirrors, folder, dataset="tiny") == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_server_without_ranges_sends_all_again(server: Server, folder: Path) -> None:
    break_off(server, folder, 300_000)
    server.understands_ranges = False
    assert fetch(server, folder) == CONTENT
    assert server.asked == [None, "bytes=300000-"]


@pytest.mark.parametrize("rubbish", [b"of another file" * 20_000, CONTENT + b"more", CONTENT[:-1] + b"x"])
def test_wrong_part_is_thrown_away_and_all_is_fetched(server: Server, folder: Path, rubbish: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "archive.zip.part").write_bytes(rubbish)
    assert fetch(server, folder) == CONTENT
    assert server.asked == [f"bytes={len(rubbish)}-", None]
    assert names(folder) == ["archive.zip"]


def test_whole_part_needs_no_more_bytes(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "archive.zip.part").write_bytes(CONTENT)
    assert fetch(server, folder) == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]
    assert names(folder) == ["archive.zip"]


def test_wrong_content_leaves_nothing(server: Server, folder: Path) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(DataError, match=r"its content is not that of tiny's archive\.zip"):
        fetch(server, folder)
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="its content is not that of"):
        fetch(server, folder)
    assert names(folder) == []


def test_absent_file_leaves_nothing(server: Server, folder: Path) -> None:
    other = DataFile("other.zip", FILE.sha256, archive=True)
    with pytest.raises(DataError, match=r"other\.zip: download failed \(HTTP Error 404"):
        download_file(other, [server.address], folder, dataset="tiny")
    assert not folder.parent.exists()


def test_endless_file_is_given_up(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 500_000)
    with pytest.raises(DataError, match="sends more than 500000 bytes"):
        fetch(server, folder)
    assert not folder.parent.exists()


def test_full_disk_is_no_fault_of_the_network(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: object, block: bytes) -> None:
        raise files._WriteError(OSError(28, "No space left on device"))

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(DataError, match=r"archive\.zip: cannot be written \(No space left on device\)"):
        fetch(server, folder)


def test_two_at_once_fetch_it_once(server: Server, folder: Path) -> None:
    server.gate = threading.Event()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(server, folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    server.gate.set()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 3
    assert server.asked == [None]
    assert names(folder) == ["archive.zip"]


def test_what_is_there_by_now_is_not_fetched_again_unless_it_is_damaged(server: Server, folder: Path) -> None:
    assert fetch(server, folder) == fetch(server, folder) == CONTENT
    assert server.asked == [None]
    (folder / "archive.zip").write_bytes(CONTENT[:-1])
    assert fetch(server, folder) == CONTENT
    assert server.asked == [None, None]
    assert names(folder) == ["archive.zip"]


@pytest.mark.parametrize(("value", "forbidden"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_offline(value: str, forbidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_OFFLINE", value)
    assert offline() is forbidden
    monkeypatch.delenv("HATRACK_OFFLINE")
    assert not offline()
