"""The code in docs/streams.md runs."""

from __future__ import annotations

import re
from pathlib import Path

from hatrack import streams
from hatrack.learning.unannounced import UnannouncedLearner
from hatrack.streams import TaskStream

GUIDE = (Path(__file__).parents[1] / "docs" / "streams.md").read_text(encoding="utf-8")


def test_the_guide_runs() -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL):
        exec(compile(block, "docs/streams.md", "exec"), names)
    stream, learner = names["stream"], names["learner"]
    assert isinstance(stream, TaskStream)
    assert [task.num_classes for task in stream] == [2, 3, 5]
    assert isinstance(learner, UnannouncedLearner)
    assert learner.tasks


def test_the_guide_names_what_there_is() -> None:
    table = re.findall(r"^\| (`.*?) \|", GUIDE, flags=re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert {name for name in streams.__all__ if name.endswith("_stream")} <= named
    assert named <= set(streams.__all__)
