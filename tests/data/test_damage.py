"""Files damaged at random: every reader refuses them with an error of hatrack's, and runs nothing of what they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.damage import READERS, ExecutionError, Reader, attempt
from support.marks import examples

POSITION = st.floats(0, 1)
DAMAGE = st.one_of(
    st.tuples(st.just("set"), POSITION, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), POSITION, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("remove"), POSITION, st.integers(1, 40)),
    st.tuples(st.just("cut"), POSITION, st.none()),
    st.tuples(st.just("repeat"), POSITION, st.integers(1, 40)),
)


def damaged(content: bytes, kind: str, position: float, what: bytes | int | None) -> bytes:
    at = round(position * len(content))
    before, after = content[:at], content[at:]
    match kind, what:
        case "set", bytes():
            return before + what + after[len(what) :]
        case "insert", bytes():
            return before + what + after
        case "remove", int():
            return before + after[what:]
        case "repeat", int():
            return before + after[:what] + after
    return before


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name: str) -> None:
    for content in READERS[name].files:
        assert attempt(READERS[name], content) is not None


def test_a_damaged_name_of_a_folder_is_told_in_a_warning() -> None:
    [content] = READERS["own zip"].files
    before, name, after = content.rpartition(b"train/b/")
    assert attempt(READERS["own zip"], before + b"\x01rain/b/" + after) is None
    assert name


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=examples(150))
@given(data=st.data())
def test_damaged_files_are_read_or_refused(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    content = data.draw(st.sampled_from(reader.files))
    for one in data.draw(st.lists(DAMAGE, min_size=1, max_size=3)):
        content = damaged(content, *one)
    attempt(reader, content)


def test_what_a_reader_executes_is_noticed() -> None:
    with pytest.raises(ExecutionError, match=r"os\.system"):
        attempt(Reader(lambda content: __import__("os").system("true"), ()), b"")
