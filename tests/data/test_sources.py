from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hatrack.data.files import DataFile, download_file
from hatrack.data.sources import PackagedFiles, PublishedFiles, cache_root
from hatrack.errors import DataError

CONTENTS = {"images": b"what the images are", "labels": b"what the labels are"}
OTHER = b"the other set's file of the same name"
FILES = tuple(DataFile(name, hashlib.sha256(content).hexdigest(), ".gz") for name, content in CONTENTS.items())


def source(*, mirrors: tuple[str, ...] = (), system: tuple[Path, ...] = ()) -> PublishedFiles:
    return PublishedFiles(FILES, ("tiny", "TINY/raw"), mirrors, system, "apt-get install tiny" if system else "")


def put(folder: Path, contents: dict[str, bytes] = CONTENTS, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class CutsShort(BaseHTTPRequestHandler):
    """Promises more bytes than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"too little")

    def log_message(self, *_: object) -> None:
        pass


def serve(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return put(tmp_path / "published", packed=True)


@pytest.fixture
def mirror(published: Path) -> Iterator[str]:
    yield from serve(partial(Quiet, directory=str(published)))


@pytest.fixture
def cutting_mirror() -> Iterator[str]:
    yield from serve(CutsShort)


# --- on this machine


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("folder", ["", "tiny", "TINY/raw"])
def test_found_in_every_folder_of_the_given_directory(tmp_path: Path, folder: str, packed: bool) -> None:
    put(tmp_path / "given" / folder, packed=packed)
    assert source().fetch("tiny", tmp_path / "given", download=False) == CONTENTS


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_DATA", str(tmp_path / "environment"))
    system = tmp_path / "system"
    # The right content is the same everywhere, so the order shows in which wrong files are met before a right one.
    in_order = [tmp_path / "given", tmp_path / "environment", system, tmp_path / "cache" / "hatrack" / "tiny"]
    for place in in_order:
        put(place, {"images": OTHER, "labels": CONTENTS["labels"]})
    with pytest.raises(DataError) as caught:
        source(system=(system,)).fetch("tiny", in_order[0], download=False)
    positions = [str(caught.value).index(f"{place / 'images'}: its content is not") for place in in_order]
    assert positions == sorted(positions)
    for place in reversed(in_order):
        put(place)
        assert source(system=(system,)).fetch("tiny", in_order[0], download=False) == CONTENTS
        put(place, {"images": OTHER})


def test_wrong_file_does_not_hide_a_right_one_nor_reach_the_network(tmp_path: Path) -> None:
    put(tmp_path, {"images": OTHER, "labels": b"\x1f\x8b damaged"})
    put(tmp_path / "TINY" / "raw", packed=True)
    assert source(mirrors=("http://127.0.0.1:9/",)).fetch("tiny", tmp_path) == CONTENTS


def test_files_of_the_other_set_are_refused_and_named(tmp_path: Path) -> None:
    put(tmp_path, {"images": OTHER, "labels": OTHER})
    with pytest.raises(DataError) as caught:
        source().fetch("tiny", tmp_path, download=False)
    message = str(caught.value)
    assert f"{tmp_path / 'images'}: its content is not that of tiny's images" in message
    assert "\n" not in message


def test_file_known_by_its_md5(tmp_path: Path) -> None:
    file = DataFile("images", md5=hashlib.md5(CONTENTS["images"]).hexdigest())
    one = PublishedFiles((file,), ("tiny",), ())
    put(tmp_path, packed=True)
    with pytest.raises(DataError, match="images not found"):
        one.fetch("tiny", tmp_path, download=False)
    put(tmp_path)
    assert one.fetch("tiny", tmp_path, download=False) == {"images": CONTENTS["images"]}
    put(tmp_path, {"images": OTHER})
    with pytest.raises(DataError, match=r"its content is not that of tiny's images \(the MD5 differs\)"):
        one.fetch("tiny", tmp_path, download=False)


def test_file_known_by_no_hash_is_never_right(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(DataError, match="its content is not that of"):
        PublishedFiles((DataFile("images"),), ("tiny",), ()).fetch("tiny", tmp_path, download=False)


def test_archive_stays_packed_and_is_known_by_the_hash_of_the_packed_file(tmp_path: Path, mirror: str) -> None:
    payload = gzip.compress(CONTENTS["images"], mtime=0)
    file = DataFile("images.gz", hashlib.sha256(payload).hexdigest(), archive=True)
    put(tmp_path / "published", {"images.gz": payload})
    for mirrors in ((mirror,), ()):  # from the network, and then from the cache
        assert PublishedFiles((file,), ("tiny",), mirrors).fetch("tiny") == {"images.gz": payload}


def test_missing_file_beside_others_is_named(tmp_path: Path) -> None:
    put(tmp_path, {"images": CONTENTS["images"]})
    with pytest.raises(DataError, match=r"tiny: labels not found in .* \(labels is missing beside images\); put"):
        source().fetch("tiny", tmp_path, download=False)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(CONTENTS["images"])
    (tmp_path / "images.gz").write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"images\.gz: the gzip data is cut short"):
        source().fetch("tiny", tmp_path, download=False)


def test_error_says_how_to_get_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        source(system=(tmp_path / "system",)).fetch("tiny", tmp_path / "given", download=False)
    message = str(caught.value)
    for needed in (
        "tiny: images not found in",
        str(tmp_path / "given"),
        str(tmp_path / "system"),
        "images.gz, labels.gz",
        "`data_dir`",
        "HATRACK_DATA=DIR",
        "apt-get install tiny",
    ):
        assert needed in message
    assert "\n" not in message


def test_empty_environment_variable_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path / "here"))
    monkeypatch.setenv("HATRACK_DATA", "")
    with pytest.raises(DataError, match="not found"):
        source().fetch("tiny", download=False)


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == tmp_path / "cache" / "hatrack"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_root() == tmp_path / "home" / ".cache" / "hatrack"


# --- from the network


def test_downloads_once_into_the_cache(tmp_path: Path, mirror: str, published: Path) -> None:
    cache = tmp_path / "cache" / "hatrack" / "tiny"
    assert source(mirrors=(mirror,)).fetch("tiny") == CONTENTS
    assert sorted(path.name for path in cache.iterdir()) == ["images.gz", "labels.gz"]
    assert (cache / "images.gz").read_bytes() == (published / "images.gz").read_bytes()
    for path in published.iterdir():
        path.unlink()
    assert source(mirrors=(mirror,)).fetch("tiny") == CONTENTS


def test_no_download_when_not_wanted(mirror: str) -> None:
    with pytest.raises(DataError, match="not found"):
        source(mirrors=(mirror,)).fetch("tiny", download=False)


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (gzip.compress(OTHER), "its content is not that of tiny's images"),
        (gzip.compress(CONTENTS["images"])[:-5], "cut short"),
        (b"<html>Sign in to this network</html>", "its content is not that of tiny's images"),
        (None, "HTTP Error 404"),
    ],
    ids=["another file", "cut short", "login page", "absent"],
)
def test_bad_download_leaves_nothing_behind(
    tmp_path: Path, mirror: str, published: Path, payload: bytes | None, fault: str
) -> None:
    (published / "images.gz").unlink() if payload is None else (published / "images.gz").write_bytes(payload)
    with pytest.raises(DataError) as caught:
        source(mirrors=(mirror,)).fetch("tiny")
    assert fault in str(caught.value)
    assert f"{mirror}images.gz" in str(caught.value)
    assert "`data_dir`" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_broken_connection_is_a_data_error(tmp_path: Path, cutting_mirror: str) -> None:
    with pytest.raises(DataError, match=r"download failed \(.*10 of 1000 bytes"):
        download_file(FILES[0], [cutting_mirror], tmp_path / "cache", dataset="tiny")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["images.gz.part"], "to go on from there"


def test_next_mirror_is_tried(tmp_path: Path, cutting_mirror: str, mirror: str) -> None:
    mirrors = ["http://127.0.0.1:9/", cutting_mirror, mirror]
    assert download_file(FILES[0], mirrors, tmp_path / "cache", dataset="tiny") == CONTENTS["images"]


def test_wrong_files_in_the_given_folder_are_told_when_the_download_fails(tmp_path: Path) -> None:
    put(tmp_path / "given", {"images": OTHER})
    with pytest.raises(DataError) as caught:
        source(mirrors=("http://127.0.0.1:9/",)).fetch("tiny", tmp_path / "given")
    assert f"{tmp_path / 'given' / 'images'}: its content is not" in str(caught.value)
    assert "download failed" in str(caught.value)


def test_unwritable_cache(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        source(mirrors=(mirror,)).fetch("tiny")


# --- from the package


def test_missing_or_foreign_packaged_file() -> None:
    with pytest.raises(DataError, match="install hatrack again"):
        PackagedFiles((DataFile("absent", "0" * 64),), "subset").fetch("tiny")
    with pytest.raises(DataError, match="its content is not that of tiny's NOTICE"):
        PackagedFiles((DataFile("NOTICE", "0" * 64),), "subset").fetch("tiny")
