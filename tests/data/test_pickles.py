from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hatrack.data.pickles import load_pickle
from hatrack.errors import DataError
from support.miniatures import array, dictionary, number, numbers, text, texts

VALUES = torch.arange(12, dtype=torch.uint8).reshape(3, 4)


def test_pickle_of_python_2() -> None:
    content = dictionary(
        {"data": array(VALUES), "labels": numbers([1, 300, 0]), "filenames": texts(["a", "b"]), "n": number(7)}
    )
    assert pickle.loads(content, encoding="bytes")[b"labels"] == [1, 300, 0], "the miniature is a pickle"
    loaded = load_pickle(content, "here")
    assert torch.equal(loaded.pop("data"), VALUES)
    assert loaded == {"labels": [1, 300, 0], "filenames": [b"a", b"b"], "n": 7}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickle_of_python_3(protocol: int) -> None:
    content = pickle.dumps({"data": VALUES.numpy(), "labels": [2, 1], "names": ["ä"]}, protocol)
    loaded = load_pickle(content, "here")
    assert torch.equal(loaded.pop("data"), VALUES)
    assert loaded == {"labels": [2, 1], "names": ["ä"]}


def test_result_may_be_written_to() -> None:
    loaded = load_pickle(dictionary({"data": array(VALUES)}), "here")
    loaded["data"].add_(1)
    assert loaded["data"][0, 0] == 1


class Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_ever_run(protocol: int, tmp_path: Path) -> None:
    import os

    mark = tmp_path / "mark"
    for evil in (Evil(os.system, f"touch {mark}"), Evil(eval, f"open({str(mark)!r}, 'w')"), Evil(open, str(mark), "w")):
        with pytest.raises(DataError, match=r"here: not a pickle of plain data \(it asks for \w+\.\w+, which was not"):
            load_pickle(pickle.dumps({"data": evil}, protocol), "here")
    assert not mark.exists()


def entry(value: bytes) -> bytes:
    return dictionary({"data": value})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"", "pickle exhausted", id="empty"),
        pytest.param(b"\x80\x02}r\xff\xff\xff\x7f.", "LONG_BINPUT 2147483647 at byte 3", id="a table of 32 gigabytes"),
        pytest.param(
            b"\x80\x05}K\x00\x96\x00\x00\x00\x00\x10\x00\x00\x00s.", "expected 68719476736 bytes", id="as much at once"
        ),
        pytest.param(b"\x80\x05}K\x00\x96" + bytes([1]) + bytes(7) + b"asu.", "BYTEARRAY8", id="bytes to write to"),
        pytest.param(b"<html>", "not a pickle", id="another format"),
        pytest.param(entry(array(VALUES))[:-20], "not a pickle", id="cut short"),
        pytest.param(entry(array(VALUES))[:-1], "not a pickle", id="without an end"),
        pytest.param(b"\x80\x02]q\x01.", "holds a list", id="no dictionary"),
        pytest.param(b"(S'\\?'\nl.", "holds a list", id="an escape that means nothing"),
        pytest.param(b"\x80\x02cos\nsystem\nU\x04trueq\x01\x85R.", "it asks for os.system", id="a call"),
        pytest.param(b"(S'true'\nios\nsystem\n.", "it asks for os.system", id="a call in the oldest way"),
        pytest.param(entry(b"cnumpy\nfromfile\n"), "it asks for numpy.fromfile", id="another function of numpy"),
        pytest.param(entry(b"cnumpy\nndarray.tofile\n"), "it asks for numpy.ndarray.tofile", id="a method"),
        pytest.param(entry(b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x05rot13\x86R"), "in the encoding", id="a codec"),
        pytest.param(entry(b"c_codecs\nencode\n}U\x01aK\x01sb"), "a function with a state", id="state for a function"),
        pytest.param(entry(b"cnumpy.core.multiarray\n_reconstruct\n}b"), "a function with a state", id="and another"),
        pytest.param(entry(b"cnumpy\nndarray\n}b"), "not a pickle", id="state for a class"),
        pytest.param(entry(b"cnumpy\nndarray\nN}U\x01aK\x01s\x86b"), "not a pickle", id="attributes for a class"),
        pytest.param(entry(b"cnumpy\ndtype\nU\x02f8\x85R"), "an array of type b'f8'", id="floats"),
        pytest.param(entry(b"cnumpy.core.multiarray\n_reconstruct\nK\x01\x85R"), "a type of its own", id="a subclass"),
        pytest.param(entry(b"P7\n"), "persistent", id="a reference to elsewhere"),
        pytest.param(entry(b"\x82\x07"), "not a pickle", id="an extension"),
        pytest.param(dictionary({}).replace(b"(u.", b"(]K\x01u."), "unhashable", id="a list as a key"),
        pytest.param(entry(array(VALUES).replace(b"K\x03K\x04\x86", b"K\x05K\x04\x86")), "of shape", id="wrong shape"),
        pytest.param(entry(array(VALUES).replace(b"tq\x13b\x89", b"tq\x13b\x88")), "C order", id="in another order"),
        pytest.param(entry(array(VALUES[:0])), "holds an empty array", id="nothing"),
        pytest.param(pickle.dumps({"data": np.array([{}])}, 2), "not unsigned bytes", id="objects"),
        pytest.param(pickle.dumps({"data": np.zeros(3)}, 4), "not unsigned bytes", id="floats of Python 3"),
    ],
)
def test_everything_else_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        load_pickle(content, "here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert fault in message
    assert "\n" not in message


def test_stand_ins_cannot_be_changed_by_a_pickle() -> None:
    for evil in (b"cnumpy\nndarray\nN}U\x0c__setstate__Ns\x86b", b"c_codecs\nencode\nN}U\x08__call__Ns\x86b"):
        with pytest.raises(DataError):
            load_pickle(entry(evil), "here")
    assert torch.equal(load_pickle(entry(array(VALUES)), "here")["data"], VALUES)


def test_text_helper_is_what_python_2_wrote() -> None:
    assert pickle.loads(b"\x80\x02" + text("abc") + b".", encoding="latin-1") == "abc"
