"""Learning without being told of task switches."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch

from hatrack.backbones import MLP, build_reproducibly
from hatrack.errors import InputError, TrainingError
from hatrack.learning.unannounced import Step, UnannouncedLearner
from hatrack.methods import METHODS, Method, Setup
from hatrack.recognition import RandomUnits
from hatrack.streams import DetectorSettings, Surprise, Task, TaskStream, Unannounced, repeated
from hatrack.support.interface import Interface
from support.marks import slow_but

Y = torch.arange(40) % 2


def rules() -> TaskStream:
    """Three tasks that contradict each other: on which side of a line lies a point?"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 8, generator=generator)
    sides = {"first": x[:, 0] > 0, "second": x[:, 1] - x[:, 0] > 0, "third": x[:, 2] - x[:, 1] > 0}
    return TaskStream(
        "rules",
        tuple(Task.from_tensors(name, x[:600], y[:600].long(), x[600:], y[600:].long()) for name, y in sides.items()),
    )


class Learned(NamedTuple):
    method: Method
    learner: UnannouncedLearner
    steps: list[Step]
    logits: list[torch.Tensor]


def learn(method: str, announced: bool = False, visits: int = 2, steps: int | None = None) -> Learned:
    """Learn the tasks, each of them so often; of the first one the logits are kept every 40 steps once it is done."""
    stream = repeated(rules(), visits)

    def build() -> torch.nn.Module:
        return build_reproducibly(lambda: MLP(stream.input_shape, (200, 200)), 0, xavier=True)

    setup = Setup(build, stream.input_shape, 0, torch.device("cpu"))
    made = METHODS[method](setup, METHODS[method].settings_type())
    learner = UnannouncedLearner(
        made, 2, lambda p: torch.optim.SGD(p, lr=0.2), detector=DetectorSettings(), announced=announced
    )
    batches = Unannounced(stream, passes=10, batch_size=30)
    truth, probe = batches.truth(), stream[0].test.load()[0]
    done, logits = [], []
    for index, (x, y) in enumerate(islice(batches, steps)):
        if announced and index and truth[index] != truth[index - 1]:
            learner.announce()
        done.append(learner.observe(x, y))
        if len(learner.tasks) > 1 and index % 40 == 0:
            made.train_mode(False)
            with torch.no_grad():
                logits.append(made.predict(probe, "found-1"))
    learner.finish()
    return Learned(made, learner, done, logits)


@cache
def learned() -> Learned:
    return learn("hat")


@pytest.mark.slow
@pytest.mark.parametrize("announced", [False, True])
def test_switches_are_noticed_and_known_tasks_recognised(announced: bool) -> None:
    run = learn("hat", announced=True, visits=1) if announced else learned()
    assert run.learner.tasks == ["found-1", "found-2", "found-3"]
    switched = [index for index, step in enumerate(run.steps) if step.surprise is Surprise.SWITCH]
    patience = DetectorSettings().patience
    tasks = (1, 2, 3) if announced else (1, 2, 3, 1, 2, 3)
    assert switched == [0, *(200 * visit + patience - 1 for visit in range(1, len(tasks)))]
    assert [run.steps[index].opened for index in switched] == [True, True, True, False, False, False][: len(tasks)]
    assert [run.steps[index].task for index in switched] == [f"found-{number}" for number in tasks]


@pytest.mark.slow
def test_what_was_learned_answers_for_the_right_task() -> None:
    run = learned()
    for index, task in enumerate(rules()):
        x, y = task.train.load()
        found = run.learner.best_task(x[:100], y[:100])
        assert found == f"found-{index + 1}"
        x, y = task.test.load()
        with torch.no_grad():
            assert float((run.method.predict(x, found).argmax(dim=1) == y).float().mean()) > 0.85


@pytest.mark.slow
def test_a_consolidated_task_is_never_changed() -> None:
    """Its logits stay the same to the bit while other tasks are learned and while it is the task at hand again."""
    kept = learned().logits
    assert len(kept) > 20
    assert all(torch.equal(logits, kept[0]) for logits in kept)


@pytest.mark.parametrize("method", slow_but(["ewc"], ["sgd", "ewc"]))
def test_other_methods_can_be_trained_so(method: str) -> None:
    run = learn(method, steps=220)
    assert run.learner.tasks == ["found-1", "found-2"]
    assert [step.task for step in run.steps[:200]] == ["found-1"] * 200


@pytest.mark.slow
def test_the_same_batches_give_the_same_steps() -> None:
    torch.manual_seed(7)
    assert learn("hat", steps=250).steps == learned().steps[:250]


def test_cycle_out_of_range() -> None:
    with pytest.raises(InputError, match="cycle must be at least 1"):
        UnannouncedLearner(learn("hat", steps=1).method, 2, lambda p: torch.optim.SGD(p, lr=0.2), cycle=0)


class Halves(torch.nn.Module):
    """A backbone of two inputs, told by name, that gives its features in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 24), torch.nn.Linear(4, 24)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": torch.relu(self.left(left) + self.right(right))}


def nested() -> UnannouncedLearner:
    example = {"left": torch.zeros(1, 4), "right": torch.zeros(1, 4)}
    torch.manual_seed(0)
    backbone = Halves()
    setup = Setup(lambda: backbone, (), 0, torch.device("cpu"), example=example, interface=Interface("out"))
    hat = METHODS["hat"](setup, METHODS["hat"].settings_type())
    return UnannouncedLearner(hat, 2, lambda p: torch.optim.SGD(p, lr=0.2), announced=True)


def test_nested_samples_are_learned_from_and_switched_between() -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    parts = {"left": x[:, :4], "right": x[:, 4:]}
    tasks = [Task.from_tensors(name, parts, y, parts, y) for name, y in (("a", (x[:, 0] > 0).long()), ("b", Y))]
    learner, batches = nested(), Unannounced(TaskStream("s", tuple(tasks)), passes=2, batch_size=10)
    for index, (batch, y) in enumerate(batches):
        assert batch.keys() == parts.keys()
        if index == 8:
            learner.announce()
        learner.observe({name: part.numpy() for name, part in batch.items()}, y.numpy())
    learner.finish()
    assert learner.tasks == ["found-1", "found-2"]
    assert learner.best_task(parts, Y) in learner.tasks


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(4, 8), [0] * 4, "one tensor, and the network was made for a mapping"),
        ({"left": torch.zeros(4, 4), "right": torch.zeros(3, 4)}, [0] * 4, "do not have one number of samples"),
        ({"left": torch.zeros(4, 4), "right": torch.zeros(4, 4)}, [0] * 3, "4 samples need as many classes"),
        ({"left": torch.zeros(4, 4), "right": torch.zeros(4, 4)}, [2] * 4, "classes from 0 to 1, not"),
        ({"left": torch.zeros(4, 4), "right": torch.zeros(4, 4)}, ["a"] * 4, "classes are texts"),
    ],
)
def test_batches_that_do_not_fit_are_refused(x: object, y: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        nested().observe(x, y)  # type: ignore[arg-type]


def test_methods_without_masks_take_one_tensor_alone() -> None:
    setup = Setup(Halves, (), 0, torch.device("cpu"), example={"left": torch.zeros(1, 4)}, interface=Interface("out"))
    with pytest.raises(InputError, match="ewc takes samples of one tensor of real numbers"):
        METHODS["ewc"](setup, METHODS["ewc"].settings_type())


def shifted(*places: float, count: int = 400) -> TaskStream:
    """Tasks of one rule, which one head predicts, whose samples lie elsewhere: the loss tells no switch."""
    tasks = []
    for index, place in enumerate(places):
        x = torch.randn(count, 8, generator=torch.Generator().manual_seed(index))
        y = (x[:, 0] > 0).long()
        x[:, 1:3] += place
        tasks.append(Task.from_tensors(f"at-{index}", x, y, x[:40], y[:40]))
    return TaskStream("shifted", tuple(tasks))


def follow(
    stream: TaskStream, odd: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None, **settings: Any
) -> tuple[UnannouncedLearner, list[Step]]:
    """Learn the tasks; before some batches, by their places, comes an odd one."""

    def build() -> torch.nn.Module:
        return build_reproducibly(lambda: MLP(stream.input_shape, (40,)), 0, xavier=True)

    method = METHODS["hat"](Setup(build, stream.input_shape, 0, torch.device("cpu")), METHODS["hat"].settings_type())
    learner = UnannouncedLearner(method, 2, lambda p: torch.optim.SGD(p, lr=0.05), **settings)
    steps = []
    for index, (x, y) in enumerate(Unannounced(stream, passes=3, batch_size=20)):
        if odd is not None and index in odd:
            steps.append(learner.observe(*odd[index]))
        steps.append(learner.observe(x, y))
    learner.finish()
    return learner, steps


@pytest.mark.slow
def test_a_switch_that_no_loss_shows_is_noticed_by_the_samples() -> None:
    """And a task that comes back is recognised: not opened again, and not trained any further."""
    stream = repeated(shifted(0.0, 4.0), 2)
    blind, _ = follow(stream, strange=None, feature_map=RandomUnits(units=40))
    assert blind.tasks == ["found-1"], "one head predicts both"
    learner, steps = follow(stream, feature_map=RandomUnits(units=40))
    assert learner.tasks == ["found-1", "found-2"]
    switches = [index for index, step in enumerate(steps) if step.surprise is Surprise.SWITCH]
    assert switches == [0, 62, 122, 182], "every switch with the third batch"
    assert [steps[index].task for index in switches] == ["found-1", "found-2", "found-1", "found-2"]
    assert [steps[index].opened for index in switches] == [True, True, False, False]
    x = torch.cat([task.test.load()[0] for task in stream[:2]])
    names = learner.recognise(x)
    assert sum(name == "found-1" for name in names[:40]) > 36
    assert sum(name == "found-2" for name in names[40:]) > 36
    usual = [step.strangeness for step in steps if step.surprise is Surprise.USUAL and step.strangeness is not None]
    assert 0.5 < sum(usual) / len(usual) < 1.5


@pytest.mark.slow
def test_an_odd_batch_before_a_switch_opens_no_task() -> None:
    """It is the first of the three by which the switch is noticed, and not one of the task that comes back."""
    stream = repeated(shifted(0.0, 4.0), 2)
    (odd,) = shifted(-9.0, count=20)
    learner, steps = follow(stream, {180: odd.train.load()}, feature_map=RandomUnits(units=40))
    assert [step.surprise for step in steps[180:183]] == [Surprise.SUSPICIOUS, Surprise.SUSPICIOUS, Surprise.SWITCH]
    assert (steps[182].task, steps[182].opened) == ("found-2", False)
    assert learner.tasks == ["found-1", "found-2"]


@pytest.mark.slow
def test_samples_are_compared_by_classes() -> None:
    """The same samples with other labels are another task, and come back as the first one."""
    first = shifted(0.0)[0]
    x, y = first.train.load()
    other = Task.from_tensors("other", x, 1 - y, x[:40], 1 - y[:40])
    learner, _ = follow(TaskStream("labels", (first, other, replace(first, name="again"))))
    assert learner.tasks == ["found-1", "found-2"]
    assert learner.current == "found-1"


def test_recognising_needs_a_task_and_samples_that_were_looked_at() -> None:
    stream = shifted(0.0, count=40)
    learner, steps = follow(stream, strange=None)
    assert all(step.strangeness is None for step in steps)
    with pytest.raises(InputError, match="leave out strange=None"):
        learner.recognise(stream[0].test.load()[0])
    learner, _ = follow(stream, feature_map=RandomUnits(units=40))
    with pytest.raises(InputError, match=r"samples have the shape \(3,\), and those of the tasks found \(8,\)"):
        learner.recognise(torch.zeros(2, 3))


def test_small_and_constant_batches_are_learned_from() -> None:
    """One sample says nothing of how much others differ, nor do samples that are all the same."""
    generator = torch.Generator().manual_seed(0)
    for x in (torch.randn(12, 1, 8, generator=generator), torch.zeros(12, 3, 8), torch.full((12, 3, 8), 7.0)):
        learner, _ = follow(shifted(0.0, count=40), announced=True)
        for batch in x:
            learner.observe(batch, torch.arange(len(batch)) % 2)
        learner.finish()


def small() -> UnannouncedLearner:
    """A learner that has found a task and is training it."""
    method = METHODS["hat"](
        Setup(lambda: MLP((8,), (20,)), (8,), 0, torch.device("cpu")), METHODS["hat"].settings_type()
    )
    learner = UnannouncedLearner(method, 2, lambda p: torch.optim.SGD(p, lr=0.1), feature_map=RandomUnits(units=20))
    learner.observe(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2)
    return learner


def test_one_sample_batches_open_no_tasks_by_themselves() -> None:
    learner, generator = small(), torch.Generator().manual_seed(1)
    for _ in range(6):
        learner.observe(torch.randn(1, 8, generator=generator), torch.tensor([1]))
    assert learner.tasks == ["found-1"]


def test_a_learner_is_copied_while_nothing_is_trained_alone() -> None:
    learner = small()
    for copied in (copy.deepcopy, copy.copy):
        with pytest.raises(InputError, match="'found-1' is in training: a learner is copied after finish"):
            copied(learner)
    learner.finish()
    assert copy.deepcopy(learner).tasks == ["found-1"]


def test_a_loss_that_is_not_finite_stops() -> None:
    learner, x, y = small(), torch.randn(16, 8), torch.arange(16) % 2
    with torch.no_grad():
        learner.method.trained_parameters()[0].fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss of the batch with task 'found-1' is nan"):
        learner.observe(x, y)


def test_the_first_task_may_be_announced() -> None:
    method = small().method
    learner = UnannouncedLearner(
        METHODS["hat"](method.setup, METHODS["hat"].settings_type()), 2, lambda p: torch.optim.SGD(p, lr=0.1)
    )
    learner.announce()
    for _ in range(5):
        learner.observe(torch.randn(16, 8), torch.arange(16) % 2)
    assert learner.tasks == ["found-1"]


def test_batches_after_the_end_are_told_from_what_is_known() -> None:
    """Ending consolidates the task in training, of which it is then known what is usual."""
    stream = shifted(0.0, 4.0, count=200)
    learner, _ = follow(stream, feature_map=RandomUnits(units=40))
    for x, y in Unannounced(repeated(stream, 2), passes=1, batch_size=20):
        learner.observe(x, y)
    assert learner.tasks == ["found-1", "found-2"]


@pytest.mark.parametrize(("method", "factor"), [("hat", 7.0), ("pmask", 7.0), ("hat", None), ("wsn", None)])
def test_embeddings_learn_faster_where_the_settings_say_so(method: str, factor: float | None) -> None:
    stream = rules()
    setup = Setup(lambda: MLP(stream.input_shape, (20, 20)), stream.input_shape, 0, torch.device("cpu"))
    settings = {} if factor is None else {"embedding_lr_factor": factor}
    made: Any = METHODS[method](setup, METHODS[method].settings_type(**settings))
    optimizers: list[torch.optim.Optimizer] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.SGD(parameters, lr=0.1))
        return optimizers[-1]

    UnannouncedLearner(made, 2, make).observe(*(part[:30] for part in stream[0].train.load()))
    rates = {id(p): group["lr"] for group in optimizers[0].param_groups for p in group["params"]}
    assert rates.keys() == {id(p) for p in made.trained_parameters()}
    embeddings = {id(values) for values in made.network.tasks[0].mask_values}
    expected = 0.1 if factor is None else pytest.approx(0.7)
    assert all(rate == (expected if each in embeddings else 0.1) for each, rate in rates.items())


BATCHES = {
    seed: (torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) + 3 * seed, torch.arange(16) % 2)
    for seed in range(3)
}


class Fault:
    """An interrupt that comes once, before or behind what a method does, and only once this is armed."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str, behind: bool) -> None:
        self.armed = self.came = False
        real = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            broken, self.armed = self.armed, False
            result = None if broken and not behind else real(*args, **kwargs)
            if broken:
                self.came = True
                raise KeyboardInterrupt
            return result

        patch.setattr(owner, name, patched)


def announced(method: str = "hat") -> UnannouncedLearner:
    """A learner that takes the next batch for another task's as soon as it is told so."""
    setup = Setup(lambda: build_reproducibly(lambda: MLP((8,), (30,)), 0, xavier=True), (8,), 0, torch.device("cpu"))
    made = METHODS[method](setup, METHODS[method].settings_type())
    return UnannouncedLearner(
        made,
        2,
        lambda p: torch.optim.SGD(p, lr=0.1),
        announced=True,
        detector=DetectorSettings(patience=1),
        feature_map=RandomUnits(units=20),
    )


def told(learner: UnannouncedLearner, seed: int) -> Step:
    learner.announce()
    learner.observe(*BATCHES[seed])
    return learner.observe(*BATCHES[seed])


def logits_of(learner: UnannouncedLearner, tasks: list[str]) -> dict[str, torch.Tensor]:
    learner.method.train_mode(False)
    with torch.no_grad():
        return {task: learner.method.predict(BATCHES[0][0], task) for task in tasks}


def ended(learner: UnannouncedLearner) -> list[str]:
    network: Any = learner.method.network  # type: ignore[attr-defined]
    return [state.name for state in network.tasks.consolidated]


POINTS: dict[str, tuple[Any, str]] = {
    "begin": (lambda learner: learner.method, "begin_task"),
    "optimizer": (lambda learner: learner, "_make_optimizer"),
    "protect": (lambda learner: learner.method, "protect"),
    "step": (lambda learner: torch.optim.SGD, "step"),
    "loss": (lambda learner: learner.method, "loss"),
    "end": (lambda learner: learner.method, "end_task"),
    "consolidate": (lambda learner: type(learner.method.network), "consolidate"),
    "answer": (lambda learner: learner, "loss_of"),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("point", POINTS)
def test_whatever_is_interrupted_goes_on(point: str, behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old tasks keep their bits, and calls that are repeated open and consolidate what they were to."""
    learner = announced()
    owner, name = POINTS[point]
    fault = Fault(monkeypatch, owner(learner), name, behind)
    for seed in (0, 1, 2):
        kept = logits_of(learner, ended(learner))
        fault.armed = True
        learner.announce()
        try:
            step = learner.observe(*BATCHES[seed])
        except KeyboardInterrupt:
            kept = {**logits_of(learner, ended(learner)), **kept}
            assert len(learner.tasks) == seed, "the new task is as if it had not begun"
            step = learner.observe(*BATCHES[seed])
        assert (step.opened, step.task) == (True, f"found-{seed + 1}")
        assert ended(learner) == [f"found-{number}" for number in range(1, seed + 1)]
        now = logits_of(learner, list(kept))
        assert all(torch.equal(now[task], kept[task]) for task in kept)
    kept, fault.armed = logits_of(learner, ended(learner)), True
    with suppress(KeyboardInterrupt):
        learner.finish()
    fault.armed = False
    learner.finish()
    assert fault.came
    assert learner.tasks == ended(learner) == ["found-1", "found-2", "found-3"]
    now = logits_of(learner, list(kept))
    assert all(torch.equal(now[task], kept[task]) for task in kept)


@pytest.mark.parametrize("point", ["end", "consolidate", "answer"])
def test_an_end_that_was_cut_off_leaves_the_bits_of_one_that_was_not(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = announced(), announced()
    owner, name = POINTS[point]
    for learner in (whole, cut):
        told(learner, 0)
    fault = Fault(monkeypatch, owner(cut), name, behind=False)
    whole.finish()
    fault.armed = True
    with pytest.raises(KeyboardInterrupt):
        cut.finish()
    assert cut.observe(*BATCHES[0]).task == "found-1", "the next call ends it, too, and makes no step in it"
    now, expected = (logits_of(learner, ["found-1"])["found-1"] for learner in (cut, whole))
    assert ended(cut) == ["found-1"]
    assert torch.equal(now, expected)


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("point", ["begin", "optimizer", "protect", "end", "consolidate"])
def test_what_was_cut_off_before_its_first_step_leaves_the_bits_of_one_that_never_was(
    point: str, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = announced(), announced()
    owner, name = POINTS[point]
    for learner in (whole, cut):
        told(learner, 0)
    expected = told(whole, 1)
    fault = Fault(monkeypatch, owner(cut), name, behind)
    fault.armed = True
    cut.announce()
    with pytest.raises(KeyboardInterrupt):
        cut.observe(*BATCHES[1])
    cut.observe(*BATCHES[1])
    assert cut.observe(*BATCHES[1]) == expected
    tasks = ["found-1", "found-2"]
    now, wanted = logits_of(cut, tasks), logits_of(whole, tasks)
    assert all(torch.equal(now[task], wanted[task]) for task in tasks)


def test_a_batch_whose_step_was_cut_off_is_learned_from_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = announced(), announced()
    for learner in (whole, cut):
        told(learner, 0)
    fault = Fault(monkeypatch, torch.optim.SGD, "step", behind=False)
    expected = whole.observe(*BATCHES[1])
    fault.armed = True
    with pytest.raises(KeyboardInterrupt):
        cut.observe(*BATCHES[1])
    assert cut.observe(*BATCHES[1]) == expected
    assert torch.equal(logits_of(cut, ["found-1"])["found-1"], logits_of(whole, ["found-1"])["found-1"])


@pytest.mark.parametrize("method", ["den", "independent", "derpp"])
def test_a_task_whose_first_step_was_cut_off_is_opened_anew(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one head, and the method is as one that was never interrupted."""
    whole, cut = announced(method), announced(method)
    fault = Fault(monkeypatch, torch.optim.SGD, "step", behind=False)
    for learner in (whole, cut):
        told(learner, 0)
        if learner is cut:
            learner.announce()
            fault.armed = True
            with pytest.raises(KeyboardInterrupt):
                learner.observe(*BATCHES[1])
            learner.observe(*BATCHES[1])
            learner.observe(*BATCHES[1])
        else:
            told(learner, 1)
        told(learner, 2)
        learner.finish()
    now, expected = (logits_of(learner, ["found-1", "found-2", "found-3"]) for learner in (cut, whole))
    assert all(torch.equal(now[task], expected[task]) for task in expected)


def test_an_interrupt_that_leaves_gradients_off_does_not_keep_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come between the entrance of torch.no_grad and its body."""
    learner = announced()
    told(learner, 0)

    def interrupted(*_: Any) -> None:
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    for call in (lambda: learner.observe(*BATCHES[0]), learner.finish):
        with monkeypatch.context() as patched:
            patched.setattr(learner, "loss_of", interrupted)
            with torch.enable_grad():  # which ends for the tests to come, too
                with pytest.raises(KeyboardInterrupt):
                    call()
                assert torch.is_grad_enabled()
    learner.finish()
    assert ended(learner) == ["found-1"]


@pytest.mark.parametrize("current", [True, False])
@pytest.mark.parametrize("weights", ["embedding", "backbone"])
def test_a_task_that_diverged_is_removed_once_it_is_to_be_ended(weights: str, current: bool) -> None:
    learner = announced()
    told(learner, 0)
    told(learner, 1)
    kept = logits_of(learner, ["found-1"])["found-1"]
    network: Any = learner.method.network  # type: ignore[attr-defined]
    if not current:
        learner.announce()
        assert not learner.observe(*BATCHES[0]).opened, "the first task is back"
    free = network.tasks[1].embedding if weights == "embedding" else next(network.backbone.parameters())
    frozen = network.protected().get(next(n for n, p in network.named_parameters() if p is free))
    with torch.no_grad():
        free[~frozen] = float("nan")
    with pytest.raises(TrainingError, match="task 'found-2' diverged and was removed"):
        learner.finish()
    learner.finish()
    assert learner.tasks == [learner.current] == ended(learner) == ["found-1"]
    assert torch.equal(logits_of(learner, ["found-1"])["found-1"], kept)
    assert told(learner, 2).task == "found-2"
    learner.finish()
    assert ended(learner) == ["found-1", "found-2"]
    assert torch.equal(logits_of(learner, ["found-1"])["found-1"], kept)


@pytest.mark.parametrize("method", ["sgd", "ewc", "sgd-restart", "independent"])
@pytest.mark.parametrize("point", ["begin", "optimizer", "step", "end"])
def test_methods_without_masks_go_on_as_well(point: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = announced(method)
    owner, name = POINTS[point]
    told(learner, 0)
    fault = Fault(monkeypatch, owner(learner), name, behind=True)
    fault.armed = True
    learner.announce()
    with pytest.raises(KeyboardInterrupt):
        learner.observe(*BATCHES[1])
    assert learner.observe(*BATCHES[1]).task == "found-2"
    learner.finish()
    assert learner.tasks == ["found-1", "found-2"]
    assert list(logits_of(learner, learner.tasks)) == learner.tasks
