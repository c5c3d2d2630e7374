"""No measured figure stands in README or docs that no recorded file holds."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from support.benchmark_modules import benchmark


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    with benchmark("figures") as module:
        yield module


def test_every_figure_in_readme_and_docs_is_in_a_record(figures: ModuleType) -> None:
    assert list(figures.unfounded(figures.documents())) == []


def test_the_page_of_published_figures_says_what_the_records_say(figures: ModuleType) -> None:
    assert figures.PAGE.read_text(encoding="utf-8") == figures.page()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("HAT reaches 99.91 % here.", "README.md: no record is named for 99.91 %"),
        ("It forgets 0.4 points, 3.1 times less.", "README.md: no record is named for 0.4 points"),
        ("The table lost its figure.", "README.md: 99.09 % is not there any more"),
    ],
)
def test_figures_without_a_record_are_found(figures: ModuleType, text: str, fault: str) -> None:
    assert fault in list(figures.unfounded({"README.md": text}))


def test_figures_that_a_record_no_longer_holds_are_found(figures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "measured", lambda entry, path: figures.Measured(12.345, None, 1))
    faults = list(figures.unfounded(figures.documents()))
    assert "README.md: 99.09 is 12.345 in split-fashion-mnist-hat-seed0.json" in faults


@pytest.mark.parametrize(("number", "value"), [("99.09", 99.094), ("5.02", 5.025), ("5.03", 5.025), ("0.1", 0.06)])
def test_rounding(figures: ModuleType, number: str, value: float) -> None:
    assert figures.is_rounded(number, value)
    assert not figures.is_rounded(number, value + 0.1)
