from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.data.mnist import decode_idx, encode_idx, read_idx
from hatrack.errors import DataError, InputError

# Two images of two rows of three, written out by hand.
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255])
DECODED = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 255]]], dtype=torch.uint8)
PACKED = gzip.compress(IMAGES, mtime=0)


@pytest.mark.parametrize("payload", [IMAGES, PACKED], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_reads_plain_and_gzip_whatever_the_name(tmp_path: Path, payload: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(payload)
    assert torch.equal(read_idx(tmp_path / name), DECODED)


def test_result_may_be_written_to() -> None:
    decoded = decode_idx(IMAGES, "here")
    decoded.add_(1)
    assert decoded[0, 0, 0] == 2


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        pytest.param(b"", "not an idx file", id="empty"),
        pytest.param(IMAGES[:3], "not an idx file", id="half a magic"),
        pytest.param(b"\0\1" + IMAGES[2:], "not an idx file", id="wrong magic"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40), "not an idx file", id="another format"),
        pytest.param(IMAGES[:2] + b"\x0d" + IMAGES[3:], "type 0x0d", id="floats"),
        pytest.param(IMAGES[:3] + b"\0" + IMAGES[4:], "no axis", id="no axis"),
        pytest.param(IMAGES[:4] + bytes(4) + b"\xff" * 8, "0 x 4294967295 x 4294967295", id="nothing, on long axes"),
        pytest.param(IMAGES[:10], "cut short within the idx header", id="cut in the header"),
        pytest.param(IMAGES[:-1], "declares 2 x 2 x 3 = 12 values but holds 11", id="cut in the values"),
        pytest.param(IMAGES + b"\0", "declares 2 x 2 x 3 = 12 values but holds 13", id="trailing byte"),
        pytest.param(IMAGES[:7] + b"\3" + IMAGES[8:], "declares 3 x 2 x 3 = 18 values but holds 12", id="wrong count"),
        pytest.param(PACKED[:-9], "cut short", id="gzip cut in the data"),
        pytest.param(PACKED[:-4], "cut short", id="gzip cut in the trailer"),
        pytest.param(PACKED[:5], "cut short", id="gzip cut in the header"),
        pytest.param(PACKED[:-8] + bytes(4) + PACKED[-4:], "gzip data is damaged", id="gzip wrong checksum"),
        pytest.param(PACKED[:10] + b"\xff" * 8 + PACKED[18:], "gzip data is damaged", id="gzip wrong stream"),
        pytest.param(b"\x1f\x8b not gzip at all", "gzip data is damaged", id="gzip in name only"),
    ],
)
def test_faulty_file_is_named_with_its_fault(tmp_path: Path, payload: bytes, fault: str) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(payload)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    message = str(caught.value)
    assert str(path) in message
    assert fault in message
    assert "\n" not in message


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: cannot be read \(No such file"):
        read_idx(tmp_path / "absent")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 2**32))
def test_decoding_inverts_encoding(shape: list[int], seed: int) -> None:
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    decoded = decode_idx(encode_idx(values), "here")
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, values)


def test_encoding_is_byte_exact_even_of_a_view() -> None:
    assert encode_idx(DECODED.mT.contiguous().mT) == IMAGES


@pytest.mark.parametrize("values", [torch.zeros(2), torch.tensor(3, dtype=torch.uint8)], ids=["floats", "no axis"])
def test_encoding_refuses_what_idx_cannot_hold(values: torch.Tensor) -> None:
    with pytest.raises(InputError, match="an idx file holds uint8"):
        encode_idx(values)
