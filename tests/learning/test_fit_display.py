"""What is shown while a task is learned: true, monotone, seldom, and only where somebody looks."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hatrack import Learner
from hatrack.errors import InputError, TrainingError
from hatrack.learning.fit_display import SECONDS_BETWEEN, FitDisplay
from hatrack.objectives import ACCURACY
from hatrack.train import BatchDone, EpochDone, TrainingSettings

SIDES = (torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2)


class Recorder:
    """A place that keeps what it is given, and when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shown: list[tuple[float, float, str]] = []
        self.ended: list[str] = []

    def show(self, share: float, text: str) -> None:
        self.shown.append((self.now, share, text))

    def end(self, text: str) -> None:
        self.ended.append(text)


def learner(epochs: int = 3, lr: float = 0.05, validation: float = 0.2) -> Learner:
    torch.manual_seed(0)
    training = TrainingSettings(epochs=epochs, lr=lr)
    return Learner(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (4,), training=training, validation=validation)


@given(
    epochs=st.integers(1, 5),
    stops_at=st.integers(1, 5),
    batches=st.integers(1, 4),
    pause=st.floats(0.001, 1.0),
    best=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_the_share_never_falls_and_pictures_are_seldom(
    epochs: int, stops_at: int, batches: int, pause: float, best: list[bool]
) -> None:
    place = Recorder()
    display = FitDisplay("sides", epochs, ACCURACY, "validation", place, lambda: place.now)
    made = min(epochs, stops_at)
    for epoch in range(1, made + 1):
        for batch in range(1, batches + 1):
            place.now += pause
            display.follow(BatchDone(epoch, batch, batches, None))
        display.follow(EpochDone(epoch, 0.5, 0.5, epoch / 10, 0.1, best[epoch - 1] or epoch == 1))
    display.finish()
    display.end(learned=True)
    shares = [share for _, share, _ in place.shown]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] == 1.0
    moments = [moment for moment, _, _ in place.shown[:-1]]
    assert all(later - earlier >= SECONDS_BETWEEN for earlier, later in pairwise(moments))
    last_best = max(number for number in range(1, made + 1) if best[number - 1] or number == 1)
    [said] = place.ended
    assert f"{made} epoch{'s' * (made > 1)}, validation accuracy {last_best * 10}.0%" in said


def test_nothing_is_written_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    learner().fit("sides", SIDES)
    assert capfd.readouterr() == ("", "")


def test_who_asks_gets_a_line_on_the_error_file(capfd: pytest.CaptureFixture[str]) -> None:
    learner().fit("sides", SIDES, progress=True)
    said, errors = capfd.readouterr()
    assert said == ""
    [line] = errors.splitlines()
    assert line.startswith("sides: learned in ")
    assert ", 3 epochs, validation accuracy " in line


class Terminal(io.StringIO):
    """An error file that somebody looks at; it fails once it is gone."""

    gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Have errors go to a terminal; within the test, since pytest changes files between its phases."""
    found = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_a_terminal_shows_it_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    learner(validation=0.0).fit("sides", SIDES)
    shown = terminal.getvalue()
    assert "epoch 1 of at most 3" in shown
    assert "training accuracy" in shown
    learner().fit("sides", SIDES, progress=False)
    assert terminal.getvalue() == shown


def test_what_the_program_prints_goes_where_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        learner().fit("sides", SIDES, watch=lambda event: print("x" * 100))
    assert printed.getvalue() == ("x" * 100 + "\n") * 6
    assert "learned in" in terminal.getvalue()
    assert "xx" not in terminal.getvalue()


def test_a_terminal_that_goes_away_costs_nothing_but_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    subject = learner()
    subject.fit("sides", SIDES, watch=lambda event: setattr(terminal, "gone", True))
    assert subject.tasks == ("sides",)
    subject.fit("others", SIDES)  # gone from the beginning
    assert subject.tasks == ("sides", "others")


@pytest.mark.slow
def test_an_error_file_that_nobody_reads_costs_nothing_but_the_display() -> None:
    program = (
        "import os, torch; from torch import nn; from hatrack import Learner, TrainingSettings\n"
        "ends = os.pipe(); os.dup2(ends[1], 2); os.close(ends[0]); os.close(ends[1])\n"
        "subject = Learner(nn.Linear(4, 8), (4,), training=TrainingSettings(epochs=1))\n"
        "subject.fit('sides', (torch.randn(40, 4), torch.arange(40) % 2), progress=True)\n"
        "print(subject.tasks)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "('sides',)\n"), done.stderr


@pytest.mark.parametrize("progress", ["False", 0, 1.0])
def test_progress_is_a_truth_value_or_none(progress: Any) -> None:
    subject = learner()
    with pytest.raises(InputError, match="True, False or None"):
        subject.fit("sides", SIDES, progress=progress)
    assert subject.tasks == ()


def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend to be in a notebook; return what its cell shows, the last version of every output."""
    outputs: list[str] = []

    class Handle:
        def __init__(self, output: dict[str, str]) -> None:
            self.number = len(outputs)
            outputs.append(output["text/html"])

        def update(self, output: dict[str, str], *, raw: bool) -> None:
            assert raw
            assert set(output) == {"text/plain", "text/html"}
            outputs[self.number] = output["text/html"]

    def display(output: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        return Handle(output)

    shell = SimpleNamespace(kernel=object())
    fake: Any = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
    return outputs


def test_a_notebook_gets_one_output_per_task(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs = notebook(monkeypatch)
    during: list[str] = []
    subject = learner()
    subject.fit("sides", SIDES, watch=lambda event: during.append(outputs[-1]))
    subject.fit("other", SIDES, watch=lambda event: during.append(outputs[-1]))
    assert capfd.readouterr() == ("", "")
    assert [output.split(":")[0] for output in outputs] == ["sides", "other"]
    assert all("<" not in output for output in outputs)
    assert during[0].startswith('<progress value="')
    assert "sides: epoch 1 of at most 3" in during[0]


def test_what_is_not_learned_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    subject = learner(lr=1e30)
    with pytest.raises(TrainingError):
        subject.fit("sides", SIDES, progress=True)
    assert capfd.readouterr().err.splitlines() == ["sides: not learned, stopped after 0 epochs"]
    assert subject.tasks == ()


def test_looking_changes_no_bit(capfd: pytest.CaptureFixture[str]) -> None:
    looked_at, alone = learner(), learner()
    looked_at.fit("sides", SIDES, progress=True)
    alone.fit("sides", SIDES, progress=False)
    ours, theirs = looked_at.network.state_dict(), alone.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
