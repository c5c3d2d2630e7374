"""A result of a run, for tests of what reads and writes such."""

from __future__ import annotations

from hatrack.experiments import RunResult, Status, TaskHistory, TaskSummary
from hatrack.streams import FilesRead, Scaling
from hatrack.train import Score

__all__ = ["of_a_run"]


_FIRST = TaskSummary(
    *("a", 2, 10, 2, 5),
    class_names=("no", "ja, ö"),
    files=FilesRead(17, {"hidden": 2}, {"turned": 1}),
    shape=(3, 4, 5),
    range=(0, 255),
    scaling=Scaling.CHANNELS,
)


def of_a_run() -> RunResult:
    """Two tasks of which one was learned; what is not a number or a text is there, too.

    Of the second one is recorded what was recorded before files, shapes and ranges were.
    """
    return RunResult(
        experiment="demo",
        method="hat",
        seed=0,
        command="hatrack run demo --method hat",
        config={"lr": 0.05, "hidden": [4, 4], "growth": None},
        tasks=(_FIRST, TaskSummary("ö", 2, 10, 2, 5)),
        scores=((Score(0.25, 0.8, "0f" * 32),),),
        capacity={"units": 0.5},
        epochs=(1,),
        seconds=(0.125,),
        environment={"threads": 1, "device": "cpu"},
        status=Status.RUNNING,
        data=("demo: idx files",),
        history=(TaskHistory({"units": 0.5}, (0.7,), (0.6,), (0.5,), (0.5,)),),
        reuse=((1.0,),),
    )
