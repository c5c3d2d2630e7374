"""What test samples are taken for where nobody names their task, against loops, and AUROC against counting pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hatrack import InputError, Scorer
from hatrack.recognition import Confusion, Inferred, auroc, measure_confusion


class Told:
    """A network whose samples say, in three numbers, which task and class they are taken for, and their score."""

    def __init__(self, tasks: tuple[str, ...], classes: tuple[int, ...]) -> None:
        self.tasks, self.classes = tasks, classes

    def infer(self, x: Tensor, scorer: Scorer | None = None, *, calibrated: bool = True) -> Inferred:
        chosen = x[:, 0].long()
        scores = torch.nn.functional.one_hot(chosen, len(self.tasks)) * x[:, 2:]
        logits = torch.nn.functional.one_hot(x[:, 1].long(), max(self.classes)).float()
        return Inferred(self.tasks, scores, chosen, logits, Scorer.SUMS)

    def __call__(self, x: Tensor, task: str) -> Tensor:
        raise NotImplementedError


def test_counts_are_those_of_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    names, classes = ("b", "a", "c"), {"a": 2, "b": 3, "c": 1}
    net = Told(("a", "b", "c"), (2, 3, 1))  # in another order than the samples
    samples = {}
    for index, name in enumerate(names):
        task = torch.randint(3, (30 + index,), generator=draw)
        taken = (torch.rand(30 + index, generator=draw) * torch.tensor([2, 3, 1])[task]).long()
        x = torch.stack([task, taken, torch.rand(30 + index, generator=draw)], 1)
        samples[name] = (x, torch.randint(classes[name], (30 + index,), generator=draw))
    found = measure_confusion(net, samples, classes, batch_size=7)
    first = {"b": 0, "a": 3, "c": 5}
    expected = torch.zeros(6, 6, dtype=torch.int64)
    right: dict[str, list[int]] = {name: [0, 0] for name in names}
    for name, (x, labels) in samples.items():
        for (task, taken, _), label in zip(x.tolist(), labels.tolist(), strict=True):
            answered = net.tasks[int(task)]
            expected[first[name] + label, first[answered] + int(taken)] += 1
            right[name][0] += answered == name
            right[name][1] += answered == name and int(taken) == label
    assert torch.equal(found.counts, expected)
    assert found.samples == (30, 31, 32)
    assert found.task_recognised == tuple(right[name][0] / len(samples[name][1]) for name in names)
    assert found.class_incremental == tuple(right[name][1] / len(samples[name][1]) for name in names)
    assert found.of_tasks.sum() == 93
    assert found.of_tasks[0, 1] == expected[:3, 3:5].sum(), "samples of b that are taken for a"
    for index, name in enumerate(names):
        scores = {other: net.infer(x).scores[:, net.tasks.index(name)].tolist() for other, (x, _) in samples.items()}
        others = [score for other in names if other != name for score in scores[other]]
        pairs = [(own > other) + (own == other) / 2 for own in scores[name] for other in others]
        assert found.auroc[index] == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_of_known_scores() -> None:
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert auroc(torch.tensor([0.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert auroc(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5
    assert auroc(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_a_single_task_has_no_curve_and_what_is_missing_is_named() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    assert measure_confusion(Told(("a",), (2,)), {"a": (x, y)}, {"a": 2}).auroc == ()
    with pytest.raises(InputError, match="no samples of 'b'"):
        measure_confusion(Told(("a", "b"), (2, 2)), {"a": (x, y), "b": (x[:0], y[:0])}, {"a": 2, "b": 2})
    with pytest.raises(InputError, match="has the tasks a, b, and not a"):
        measure_confusion(Told(("a", "b"), (2, 2)), {"a": (x, y)}, {"a": 2})
    with pytest.raises(InputError, match="no tasks to measure with"):
        measure_confusion(Told(("a",), (2,)), {}, {})
    with pytest.raises(InputError, match="how many classes has 'a'"):
        measure_confusion(Told(("a",), (2,)), {"a": (x, y)}, {"b": 2})
    for wrong in (2, -1):
        with pytest.raises(InputError, match="classes of 'a' are numbered from 0 to 1"):
            measure_confusion(Told(("a", "b"), (2, 2)), {"a": (x, y + wrong), "b": (x, y)}, {"a": 2, "b": 2})


def test_classes_of_one_name_in_two_tasks_are_two_classes() -> None:
    """Counted by task and class: a sample that is taken for the other task is wrong, whatever the class is called."""
    counts = torch.tensor([[3, 0, 1, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 1, 0, 3]])
    found = Confusion(("first", "second"), (2, 2), counts, (1.0, 1.0))
    assert found.of_tasks.tolist() == [[7, 1], [1, 7]]
    assert found.class_incremental == (7 / 8, 7 / 8)
