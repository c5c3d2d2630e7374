"""Settings of every type that is taken are read from a file, and from a command, as they were."""

from __future__ import annotations

import enum
import json
from dataclasses import field, make_dataclass
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatrack.errors import InputError
from hatrack.experiments.request import as_text
from hatrack.support.values import as_json, parse_value, require_readable


class Spelling(enum.Enum):
    BIG = "Hard"
    SMALL = "hard"
    OTHER = "Soft Way"


class Number(enum.IntEnum):
    ONE = 1
    TWELVE = 12


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: FLOATS,
    bool: st.booleans(),
    str: st.text(),
    Spelling: st.sampled_from(Spelling),
    Number: st.sampled_from(Number),
    tuple[int, ...]: st.lists(st.integers()).map(tuple),
    tuple[float, ...]: st.lists(FLOATS).map(tuple),
    Optional[float]: st.none() | FLOATS,  # noqa: UP045 - as people write it, too
    int | None: st.none() | st.integers(),
    Spelling | None: st.none() | st.sampled_from(Spelling),
    tuple[float, ...] | None: st.none() | st.lists(FLOATS).map(tuple),
}


@given(st.sampled_from(list(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])))
def test_a_default_of_a_type_that_is_taken_comes_back_from_json(given_: tuple[Any, Any]) -> None:
    kind, value = given_
    require_readable("mine", make_dataclass("Settings", [("extra", kind, field(default=value))], frozen=True))
    found = parse_value("extra", json.loads(json.dumps(as_json(value))), kind)
    assert found == value
    assert type(found) is type(value)


@given(st.sampled_from([k for k in VALUES if k is not int]).flatmap(lambda k: st.tuples(st.just(k), VALUES[k])))
def test_and_from_the_text_that_a_command_has_of_it(given_: tuple[Any, Any]) -> None:
    kind, value = given_
    if value is None or not isinstance(as_json(value), list):
        assert parse_value("extra", as_text(as_json(value)), kind) == value


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        (Literal["a"], "a"),
        (float | str, 1.0),
        (tuple[str, ...], ("a",)),
        (tuple[int, int], (1, 2)),
        (list[int], None),
        (dict, None),
        (Optional[Literal["a"]], None),  # noqa: UP045
        (float, float("inf")),
        (float, float("nan")),
        (float, True),
        (int, 1.5),
        (str, None),
        (str, 3),
        (str | None, "none"),
        (Number, 1),
        (Spelling, "Hard"),
    ],
)
def test_what_would_not_come_back_is_refused_by_its_name(kind: Any, default: Any) -> None:
    with pytest.raises(InputError, match=r"^mine: .*its setting extra .*(cannot|would not) be read") as caught:
        require_readable("mine", make_dataclass("Settings", [("extra", kind, field(default=default))], frozen=True))
    assert "\n" not in str(caught.value)


def test_capitals_matter_only_where_values_differ_by_nothing_else() -> None:
    assert parse_value("extra", "soft way", Spelling) is Spelling.OTHER
    assert parse_value("extra", "Hard", Spelling) is Spelling.BIG
    assert parse_value("extra", "hard", Spelling) is Spelling.SMALL
    with pytest.raises(InputError, match="extra must be one of Hard, hard, Soft Way"):
        parse_value("extra", "HARD", Spelling)
    with pytest.raises(InputError, match="extra must be one of 1, 12"):
        parse_value("extra", True, Number)
