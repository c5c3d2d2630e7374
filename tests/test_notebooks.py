"""Notebooks show plain tables, every text escaped, no styles, and nothing changed by looking."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hatrack
from hatrack import HATNetwork, Learner, WeightMaskedNetwork
from hatrack.experiments import Comparison, ComparisonPlan, RunResult, Status
from hatrack.report.runs import Runs
from hatrack.support.notebook import html_table
from hatrack.train import Score, TrainingSettings
from support.records import of_a_run

EVIL = """<script>alert("&amp;')</script>"""
PLAIN_TAGS = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


class Reader(HTMLParser):
    """Reads texts and cells, and checks that tags are plain and closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in PLAIN_TAGS
        assert attrs == [], "a style is a colour that a dark notebook does not have"
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


class Odd(nn.Module):
    """A layer under a name that is no text of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(EVIL, nn.Linear(4, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(getattr(self, EVIL)(x))


def network(kind: Callable[..., Any] = HATNetwork, tasks: int = 2) -> Any:
    torch.manual_seed(0)
    net = kind(Odd(), torch.zeros(1, 4))
    for index in range(tasks):
        net.add_task(f"{EVIL}{index}", 2)
        if index < tasks - 1:
            net.consolidate(f"{EVIL}{index}")
    return net


@cache
def learner(tasks: bool = True) -> Learner:
    torch.manual_seed(0)
    of = Learner(Odd(), (4,), training=TrainingSettings(epochs=1, batch_size=8))
    if tasks:
        x = torch.randn(16, 4)
        of.fit("pets", (x, torch.arange(16) % 2), classes=(EVIL, "dog"))
        of.fit("price", (x, x[:, 0]))
        of.fit("tags", (x, x[:, :2] > 0), classes=(EVIL, "big"))
    return of


def run(seed: int = 0, method: str = "hat") -> RunResult:
    begun = of_a_run()
    tasks = (replace(begun.tasks[0], name=EVIL), begun.tasks[1])
    scores = (*begun.scores, (Score(0.5, 0.6, "0f" * 32), Score(0.5, 0.7, "0f" * 32)))
    return replace(begun, tasks=tasks, scores=scores, seed=seed, method=method, status=Status.FINISHED)


def plan() -> ComparisonPlan:
    return ComparisonPlan.make("demo", ["hat", "ewc"], [0, 1], {"hat.c": "0.5"})


def comparison() -> Comparison:
    results = {(m, s): run(s, m) for m in ("hat", "joint", "random") for s in (0, 1)}
    return Comparison(plan(), results, {("ewc", 0): EVIL}, {})


SHOWN: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a network": (network, ("HATNetwork around Odd", f"{EVIL}0", "consolidated", "in training", "is in use")),
    "a network of weights": (lambda: network(WeightMaskedNetwork), ("WeightMaskedNetwork", f"{EVIL}1")),
    "an empty network": (lambda: network(tasks=0), ("no task yet",)),
    "units": (lambda: network().units, (EVIL, "1 group, 12 units", "mixing", "protected with", "always")),
    "capacity": (lambda: network().capacity(), (EVIL, "of the units and", "are in use")),
    "capacity of weights": (lambda: network(WeightMaskedNetwork).capacity(), (EVIL, "weights are in use")),
    "room": (lambda: network().plan(), (EVIL, "tasks left")),
    "room without a task": (lambda: network(tasks=0).plan(), ("nothing to guess from yet",)),
    "a learner": (learner, (EVIL, "2 classes", "1 number", "2 labels", "accuracy", "Learner around Odd")),
    "an empty learner": (lambda: learner(tasks=False), ("no task yet",)),
    "a run": (run, (EVIL, "demo · hat · seed 0: 2 of 2 tasks learned, finished", "80.0", "60.0", "forgetting")),
    "a run that has begun": (of_a_run, ("1 of 2 tasks learned, running", "80.0")),
    "a run without a score": (lambda: replace(of_a_run(), scores=()), ("0 of 2 tasks learned",)),
    "a plan": (plan, ("demo: 8 runs, seeds 0, 1", "c=0.5", "ewc")),
    "a comparison": (comparison, (f"ewc, seed 0, failed: {EVIL}", "6 runs finished, 2 to go", "2 of 2", "65.0", "±")),
    "a comparison without runs": (lambda: Comparison(plan(), {}, {}, {}), ("0 runs finished, 8 to go", "0 of 2")),
    "runs": (lambda: Runs.of([run(0), run(1), run(0, "ewc")]), ("demo: 3 runs of 2 tasks", "0, 1", "65.0")),
}


@pytest.mark.parametrize("name", SHOWN)
def test_it_is_a_plain_table_with_every_text_escaped(name: str) -> None:
    make, texts = SHOWN[name]
    shown = Reader(make()._repr_html_())
    for text in texts:
        assert text in shown.text
    for table in shown.tables:
        assert {len(row) for row in table} == {len(table[0])}, "as many cells as titles"


def test_everything_that_notebooks_show_is_among_these() -> None:
    root = Path(hatrack.__file__).parent
    defined = {
        node.name
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(each, ast.FunctionDef) and each.name == "_repr_html_" for each in node.body)
    }
    shown = {kind.__name__ for make, _ in SHOWN.values() for kind in type(make()).__mro__}
    assert len(defined) > 7
    assert defined <= shown


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_looking_changes_nothing_whatever_the_network_is_at(kind: Callable[..., Any]) -> None:
    net = network(kind)
    before, random = [value.clone() for value in net.state_dict().values()], torch.get_rng_state()
    for show in (net, net.capacity(), net.plan()):
        show._repr_html_()
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert net.task_in_training == f"{EVIL}1"
    net.detach()
    assert "detached" in Reader(net._repr_html_()).text


def test_a_learner_says_in_a_line_what_it_knows() -> None:
    assert repr(learner()) == "Learner(Odd: pets (2 classes), price (1 number), tags (2 labels))"
    assert repr(learner(tasks=False)) == "Learner(Odd: no task yet)"


def test_the_story_has_ten_cells_without_outputs_and_leads_to_what_is_there() -> None:
    """Look at the story's cells; .ci/run, where there is a kernel, runs them."""
    path = Path(__file__).parents[1] / "examples" / "story.ipynb"
    story = json.loads(path.read_text(encoding="utf-8"))
    cells = {kind: [c for c in story["cells"] if c["cell_type"] == kind] for kind in ("code", "markdown")}
    assert len(cells["code"]) == 10
    for number, cell in enumerate(cells["code"], 1):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
        assert f"## {number}. " in "".join(cells["markdown"][number - 1]["source"])
    text = "".join(line for cell in cells["markdown"] for line in cell["source"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert all((path.parent / link).exists() for link in links)


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@given(st.lists(st.tuples(TEXTS, TEXTS | st.none()), max_size=5), TEXTS, st.lists(TEXTS, max_size=2))
def test_what_is_read_of_a_table_is_what_was_written(
    rows: list[tuple[str, str | None]], title: str, notes: list[str]
) -> None:
    shown = Reader(html_table(title, ("a", "b"), rows, notes))
    read = shown.tables[0][1:] if rows else []
    assert read == [[a, "–" if b is None else b] for a, b in rows]
    assert shown.text.replace("\n", "").startswith(title)
    assert all(note in shown.text for note in notes)


def test_long_tables_say_how_much_they_leave_out() -> None:
    shown = Reader(html_table("many", ("n",), ((n,) for n in range(1060))))
    assert len(shown.tables[0]) == 61
    assert "and 1,000 more rows" in shown.text
    assert Reader(html_table("none", ("n",), ())).tables == []
