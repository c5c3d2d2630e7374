"""Running a run again, and comparing the two."""

from __future__ import annotations

from dataclasses import dataclass

from hatrack.experiments.results import RunResult

__all__ = ["Reproduction", "TaskAgain"]


@dataclass(frozen=True)
class TaskAgain:
    """A task in both runs, after the last task that both have learned.

    Attributes:
        task: its name.
        recorded: accuracy in the recorded run.
        again: accuracy in the new one.
        same_bits: whether the hashes of its test logits are the same after this and every other task.
    """

    task: str
    recorded: float
    again: float
    same_bits: bool


@dataclass(frozen=True)
class Reproduction:
    """Report on a run that was made again.

    Attributes:
        tasks: one entry per task that both have learned.
        differences: what differs between the environments and the data of the two.
    """

    tasks: tuple[TaskAgain, ...]
    differences: tuple[str, ...]

    @classmethod
    def of(cls, recorded: RunResult, again: RunResult) -> Reproduction:
        """Compare a run with one that was made of its settings."""
        learned = min(len(recorded.scores), len(again.scores))
        tasks = []
        for index, task in enumerate(recorded.tasks[:learned]):
            rows = range(index, learned)
            same = all(
                recorded.scores[row][index].logits_sha256 == again.scores[row][index].logits_sha256 for row in rows
            )
            before, now = recorded.scores[learned - 1][index], again.scores[learned - 1][index]
            tasks.append(TaskAgain(task.name, before.accuracy, now.accuracy, same))
        keys = {**again.environment, **recorded.environment}
        differences = [key for key in keys if recorded.environment.get(key) != again.environment.get(key)]
        differences += ["data"] if recorded.data and recorded.data != again.data else []
        return cls(tuple(tasks), tuple(differences))

    @property
    def exact(self) -> bool:
        """Return whether every test logit after every task has the same bits."""
        return all(task.same_bits for task in self.tasks)
