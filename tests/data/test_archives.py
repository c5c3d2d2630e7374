from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Sequence

import pytest

from hatrack.data.archives import Limits, read_archive, read_tar_gz, read_zip
from hatrack.errors import DataError
from support.miniatures import tar_gz, zipped

FILES = {"one": b"what one holds" * 50, "two": b"what two holds"}
TAR = tar_gz({**FILES, "three": b"not asked for"}, "set")
WANTED = ("set/one", "set/two")
ZIP = zipped({f"train/a/{name}": content for name, content in FILES.items()} | {"README": b"not asked for"})


def tar(payload: bytes, limit: int = 1 << 20) -> dict[str, bytes]:
    return read_tar_gz(payload, WANTED, limit=limit, origin="here")


def unzip(payload: bytes) -> dict[str, bytes]:
    def choose(names: Sequence[str]) -> list[str]:
        return [name for name in names if name.startswith("train/")]

    return read_zip(payload, choose, Limits(files=2, file_bytes=1000, bytes=1500), origin="here")


def tar_of(*entries: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    return gzip.compress(buffer.getvalue())


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_only_what_is_asked_for_is_read() -> None:
    assert tar(TAR) == {f"set/{name}": content for name, content in FILES.items()}
    assert unzip(ZIP) == {f"train/a/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        pytest.param(b"", "the gzip data is cut short", id="empty"),
        pytest.param(b"<html>", "the gzip data is damaged", id="another format"),
        pytest.param(TAR[: len(TAR) // 2], "the gzip data is cut short", id="cut short"),
        pytest.param(TAR[:-3], "the gzip data is cut short", id="cut in the trailer"),
        pytest.param(TAR[:-8] + bytes(8), "the gzip data is damaged", id="wrong checksum"),
        pytest.param(gzip.compress(b"no tar" * 200), "the tar archive is damaged", id="no tar"),
        pytest.param(gzip.compress(gzip.decompress(TAR)[:1100]), "the tar archive is damaged", id="tar cut short"),
        pytest.param(tar_of(entry("set/one")), "does not hold set/two", id="a file is missing"),
        pytest.param(tar_of(entry("set/one"), entry("set/one")), "set/one is there twice", id="a file twice"),
        pytest.param(tar_of(entry("set/one", tarfile.SYMTYPE, "/etc/passwd")), "is no plain file", id="a link"),
        pytest.param(tar_of(entry("set/one", tarfile.LNKTYPE, "set/two")), "is no plain file", id="a hard link"),
        pytest.param(tar_of(entry("set/one", tarfile.CHRTYPE)), "is no plain file", id="a device"),
        pytest.param(gzip.compress(bytes(5_000_000)), "unpacks to more than 1,048,576 bytes", id="a bomb"),
    ],
)
def test_faulty_tar_is_named_with_its_fault(payload: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        tar(payload)
    assert str(caught.value).startswith("here: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def encrypted() -> bytes:
    """The archive with the bit set that says that a file is encrypted, in both of its headers."""
    payload = bytearray(zipped({"train/a/one": b"1"}))
    payload[6] |= 1
    payload[payload.index(b"PK\x01\x02") + 8] |= 1
    return bytes(payload)


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        pytest.param(b"", "the zip archive is damaged", id="empty"),
        pytest.param(b"<html>", "the zip archive is damaged", id="another format"),
        pytest.param(ZIP[: len(ZIP) // 2], "the zip archive is damaged", id="cut short"),
        pytest.param(ZIP[:-5], "the zip archive is damaged", id="cut at the end"),
        pytest.param(ZIP.replace(ZIP[50:60], bytes(10), 1), "the zip archive is damaged", id="wrong content"),
        pytest.param(zipped({"train/../../evil": b"1"}), "points out of the archive", id="up and out"),
        pytest.param(zipped({"/train/a/evil": b"1"}), "points out of the archive", id="absolute"),
        pytest.param(zipped({"train/a\\..\\evil": b"1"}), "points out of the archive", id="backslashes"),
        pytest.param(zipped({"C:/train/evil": b"1"}), "points out of the archive", id="a drive"),
        pytest.param(zipped({"train/./evil": b"1"}), "points out of the archive", id="a dot"),
        pytest.param(zipped({"train/a/bomb": bytes(5_000_000)}), "unpacks to 5,000,000 bytes", id="a bomb"),
        pytest.param(zipped({f"train/a/{n}": bytes(999) for n in "ab"}), "more than 1,500 bytes", id="two of them"),
        pytest.param(zipped({f"train/a/{n}": b"1" for n in range(3)}), "holds more than 2 images", id="too many"),
        pytest.param(zipped({"train/a/one": b"1" * 99}, zipfile.ZIP_BZIP2), "not read here", id="another packing"),
        pytest.param(encrypted(), "is encrypted", id="encrypted"),
    ],
)
def test_faulty_zip_is_named_with_its_fault(payload: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        unzip(payload)
    assert str(caught.value).startswith("here: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lie_about_the_size_is_noticed() -> None:
    payload = bytearray(zipped({"train/a/bomb": bytes(100_000)}))
    for place in (22, payload.index(b"PK\x01\x02") + 24):
        payload[place : place + 4] = (10).to_bytes(4, "little")
    with pytest.raises(DataError, match="the zip archive is damaged"):
        unzip(bytes(payload))


def test_a_file_that_is_there_twice() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train/a/one", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("train/a/one", b"2")
    with pytest.raises(DataError, match=r"holds .* twice, and it is not clear"):
        unzip(buffer.getvalue())


def test_a_file_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"the zip archive is damaged|points out of the archive"):
        read_archive(zipped({"": b"1"}), lambda names: names, Limits(2, 100, 100), origin="here")
