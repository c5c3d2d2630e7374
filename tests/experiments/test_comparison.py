"""The plan of a comparison, and reading its folder; nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hatrack.errors import CheckpointError, InputError
from hatrack.experiments import (
    EXPERIMENTS,
    Comparison,
    ComparisonPlan,
    Job,
    JobEvent,
    JobFailed,
    compare,
    jobs_of,
)
from hatrack.experiments.comparison import write_failure
from hatrack.experiments.folder import RESULT
from hatrack.experiments.plan import PLAN, read_plan, run_folder, write_plan
from hatrack.experiments.results import RunResult, Status, TaskSummary, write_result
from hatrack.experiments.settings import SAMPLES, StreamSettings
from hatrack.experiments.tuning import GridSearch
from hatrack.methods import METHODS
from hatrack.storage.checked_json import write_checked_json
from hatrack.train import Score


def fake_run(
    folder: Path, method: str, seed: int, rows: list[list[float]], tasks: int | None = None, **config: object
) -> None:
    tasks = len(rows) if tasks is None else tasks
    result = RunResult(
        experiment="demo",
        method=method,
        seed=seed,
        command="",
        config=config,
        tasks=tuple(TaskSummary(f"task{index}", 2, 10, 2, 10) for index in range(tasks)),
        scores=tuple(tuple(Score(0.5, value, "0") for value in row) for row in rows),
        capacity=None,
        epochs=(1,) * len(rows),
        seconds=(1.0,) * len(rows),
        environment={"threads": 1},
        status=Status.FINISHED if len(rows) == tasks else Status.RUNNING,
    )
    write_result(run_folder(folder, method, seed) / RESULT, result)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_plan(tmp_path, ComparisonPlan.make("demo", ["sgd", "hat"], [0, 1]), {})
    for seed in (0, 1):
        fake_run(tmp_path, "joint", seed, [[0.9], [0.8, 1.0]])
        fake_run(tmp_path, "random", seed, [[0.5], [0.5, 0.6]])
    fake_run(tmp_path, "sgd", 0, [[0.9], [0.5, 1.0]])
    fake_run(tmp_path, "sgd", 1, [[0.7], [0.65, 0.8]])
    fake_run(tmp_path, "hat", 0, [[0.9]], tasks=2)
    write_failure(run_folder(tmp_path, "hat", 0), "the loss became nan")
    return tmp_path


def test_forgetting_ratios_worked_by_hand(folder: Path) -> None:
    found = Comparison.read(folder)
    # after task 1: (.9 − .5) / (.9 − .5) − 1 = 0; after task 2: (.5 − .5) / .3 − 1 = −1 and (1 − .6) / .4 − 1 = 0
    assert found.forgetting_ratio("sgd", 0) == pytest.approx((0.0, -0.5))
    # (.2 / .4 − 1) = −.5; (.15 / .3 − 1) = −.5 and (.2 / .4 − 1) = −.5
    assert found.forgetting_ratio("sgd", 1) == pytest.approx((-0.5, -0.5))
    assert found.forgetting_ratio("joint", 0) == pytest.approx((0.0, 0.0))
    assert found.forgetting_ratio("random", 0) == pytest.approx((-1.0, -1.0))
    spread = found.spread("sgd", "forgetting_ratio")
    assert spread is not None
    assert (spread.mean, spread.sd, spread.n) == (pytest.approx(-0.5), pytest.approx(0.0, abs=1e-12), 2)


def test_joint_training_that_learned_nothing_gives_no_ratio(folder: Path) -> None:
    fake_run(folder, "joint", 0, [[0.9], [0.8, 0.6]])
    found = Comparison.read(folder)
    ratio = found.forgetting_ratio("sgd", 0)
    assert ratio is not None
    assert ratio[0] == pytest.approx(0.0)
    assert math.isnan(ratio[1])
    assert found.figures("sgd", "forgetting_ratio") == {1: pytest.approx(-0.5)}


def test_what_is_not_finished_is_not_a_result(folder: Path) -> None:
    found = Comparison.read(folder)
    assert found.run("hat", 0) is None
    assert found.run("hat", 1) is None
    assert found.forgetting_ratio("hat", 0) is None
    assert found.missing == (("hat", 0), ("hat", 1))
    assert found.failures == {("hat", 0): "the loss became nan"}
    assert found.spread("hat", "average_accuracy") is None
    assert found.figures("sgd", "average_accuracy") == {0: 0.75, 1: pytest.approx(0.725)}


def test_unknown_names_are_refused_with_a_suggestion(folder: Path) -> None:
    found = Comparison.read(folder)
    with pytest.raises(InputError, match="did you mean 'sgd'"):
        found.run("sdg", 0)
    with pytest.raises(InputError, match="no seed '7'"):
        found.run("sgd", 7)
    with pytest.raises(InputError, match="did you mean 'forgetting'"):
        found.spread("sgd", "forgeting")
    with pytest.raises(InputError, match=r"\(`compare`\)"):
        Comparison.read(folder / "sgd")


def test_references_are_added_once() -> None:
    assert ComparisonPlan.make("demo", ["sgd"], [0]).methods == ("sgd", "joint", "random")
    assert ComparisonPlan.make("demo", ["joint", "sgd"], [0]).methods == ("joint", "sgd", "random")


def test_what_takes_longest_begins_first_in_every_seed(tmp_path: Path) -> None:
    handed_over: list[str] = []

    class NotToday:
        def execute(self, jobs: Sequence[Job]) -> Generator[JobEvent, None, None]:
            handed_over.extend(job.name for job in jobs)
            yield from (JobFailed(job, "not today") for job in jobs)

    plan = ComparisonPlan.make("demo", ["sgd", "hat"], [3, 0])
    ends = [*compare(plan, tmp_path, jobs_of(plan, tmp_path), NotToday())]
    assert len(ends) == len(handed_over)
    in_turn = ("joint", "sgd", "hat", "random")
    assert handed_over == [f"{method} seed {seed}" for seed in (3, 0) for method in in_turn]
    assert plan.methods == ("sgd", "hat", "joint", "random"), "tables keep the order that was asked for"


def test_settings_are_read_as_their_types() -> None:
    plan = ComparisonPlan.make("demo", ["ewc", "sgd"], [0], {"epochs": "2", "hidden": "30,20", "ewc.strength": "0500"})
    assert plan.common == {"epochs": 2, "hidden": [30, 20]}
    assert plan.own == {"ewc": {"strength": 500.0}}
    assert plan.overrides("ewc") == {"epochs": 2, "hidden": [30, 20], "strength": 500.0}
    assert plan.overrides("sgd") == {"epochs": 2, "hidden": [30, 20]}
    assert plan.config("ewc").method.strength == 500.0


@pytest.mark.parametrize(
    ("methods", "seeds", "settings", "message"),
    [
        (["sdg"], [0], {}, "did you mean 'sgd'"),
        (["sgd", "sgd"], [0], {}, "method is given twice"),
        (["sgd"], [1, 1], {}, "seed is given twice"),
        (["sgd"], [], {}, "at least one seed"),
        (["sgd"], [-1], {}, "0 or more"),
        (["sgd"], [0], {"lrr": "1"}, "did you mean 'lr'"),
        (["sgd", "ewc"], [0], {"strength": "1"}, "`ewc.strength`"),
        (["sgd", "ewc"], [0], {"ewcc.strength": "1"}, "did you mean 'ewc'"),
        (["sgd", "ewc"], [0], {"ewc.strenght": "1"}, "did you mean 'strength'"),
        (["sgd"], [0], {"epochs": "two"}, "whole number"),
    ],
)
def test_what_cannot_be_is_refused(
    methods: list[str], seeds: list[int], settings: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ComparisonPlan.make("demo", methods, seeds, settings)


@pytest.mark.parametrize("key", SAMPLES)
def test_all_methods_have_the_same_samples(key: str) -> None:
    others = {"limit": 50, "num_tasks": 1, "target": "numbers", "decimal": ",", "metric": "mae", "delimiter": ";"}
    others |= {"tested_on": "validation", "validation": 0.5, "test_share": 0.5, "encoding": "cp1252"}
    value = others.get(key, "word")
    with pytest.raises(
        InputError, match=f"^{key} decides which samples.* for hat, .* for sgd and joint.*`{key}={value}`"
    ):
        ComparisonPlan.make("demo", ["hat", "sgd"], [0], {f"hat.{key}": value})
    assert ComparisonPlan.make("demo", ["hat", "sgd"], [0], {key: value}).config("sgd") is not None
    with pytest.raises(InputError, match=f"^{key} decides which samples"):
        GridSearch.make("demo", "hat", 0, {}, {key: [value]})


def test_recognition_and_class_weights_are_of_single_methods() -> None:
    own = {"hat.infer": True, "sgd.class_weights": "balanced"}
    plan = ComparisonPlan.make("demo", ["hat", "sgd"], [0], own)
    assert plan.own == {"hat": {"infer": True}, "sgd": {"class_weights": "balanced"}}
    assert {field.name for field in fields(StreamSettings)} - {*SAMPLES} == {"infer", "class_weights"}


def test_a_file_may_not_give_a_method_other_samples(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    file = tmp_path / "t.toml"
    file.write_text('[[task]]\npath = "t.csv"\nlabel = "label"\ntest_share = 0.5\n[method.hat]\nlimit = 9\n')
    with pytest.raises(InputError, match=r"limit decides .* 9 for hat, none for sgd"):
        ComparisonPlan.make("", ["hat", "sgd"], [0], {}, [file])
    assert ComparisonPlan.make("", ["hat", "sgd"], [0], {"limit": 9}, [file]).config("hat").stream.limit == 9


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_presets_give_all_methods_the_same_samples(experiment: str) -> None:
    ComparisonPlan.make(experiment, list(METHODS), [0])


def test_what_earlier_versions_compared_on_different_samples_is_not_ranked(tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["hat", "sgd"], [0])
    write_plan(tmp_path, replace(plan, own={"hat": {"limit": 50}}), {})
    for method in ("sgd", "joint", "random"):
        fake_run(tmp_path, method, 0, [[0.9]])
    fake_run(tmp_path, "hat", 0, [[0.9]], limit=50)
    with pytest.raises(InputError, match=r"different samples \(limit is 50 and none\)"):
        Comparison.read(tmp_path)
    with pytest.raises(InputError, match=r"with what the folder holds, limit decides"):
        jobs_of(ComparisonPlan.make("demo", ["ewc"], [0]), tmp_path)
    fake_run(tmp_path, "hat", 0, [[0.9]], num_tasks=1)
    assert Comparison.read(tmp_path).missing == (), "how many tasks are learned is told by the tasks"


def test_a_plan_is_written_and_read(tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["ewc", "sgd"], [0, 4], {"epochs": "2", "ewc.strength": "1"})
    write_plan(tmp_path, plan, {"torch": "9"})
    assert read_plan(tmp_path) == (plan, {"torch": "9"})


def test_a_damaged_or_newer_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        Comparison.read(tmp_path)
    write_checked_json(tmp_path / PLAN, {"schema": 2})
    with pytest.raises(CheckpointError, match="upgrade"):
        Comparison.read(tmp_path)
    write_checked_json(tmp_path / PLAN, {"schema": 1, "experiment": "demo"})
    with pytest.raises(CheckpointError, match="damaged"):
        Comparison.read(tmp_path)


def test_methods_and_seeds_are_added_to_a_folder() -> None:
    earlier = ComparisonPlan.make("demo", ["sgd"], [0, 1], {"epochs": "2", "sgd.lr": "0.5"})
    more = ComparisonPlan.make("demo", ["ewc"], [1, 2], {"epochs": "2", "ewc.strength": "7"})
    whole = more.joined(earlier)
    assert whole.methods == ("sgd", "ewc", "joint", "random")
    assert whole.seeds == (0, 1, 2)
    assert whole.own == {"sgd": {"lr": 0.5}, "ewc": {"strength": 7.0}}
    assert [whole.config(name) for name in ("sgd", "ewc")] == [earlier.config("sgd"), more.config("ewc")]


def test_other_settings_in_one_folder_are_refused() -> None:
    earlier = ComparisonPlan.make("demo", ["ewc"], [0], {"epochs": "2", "ewc.strength": "7"})
    with pytest.raises(InputError, match=r"runs of ewc with other settings: strength \(7.0 there, 8.0 now\)"):
        ComparisonPlan.make("demo", ["ewc"], [1], {"epochs": "2", "ewc.strength": "8"}).joined(earlier)
    with pytest.raises(InputError, match=r"epochs \(2 there, 3 now\)"):
        ComparisonPlan.make("demo", ["sgd"], [1], {"epochs": "3"}).joined(earlier)
    with pytest.raises(InputError, match="comparison on demo"):
        ComparisonPlan.make("split-mnist", ["ewc"], [0]).joined(earlier)


@pytest.mark.parametrize("value", ["none", "3"])
def test_a_setting_that_has_no_value_is_kept_when_runs_are_added(value: str) -> None:
    earlier = ComparisonPlan.make("demo", ["sgd"], [0], {"epochs": "2"})
    added = ComparisonPlan.make("demo", ["adahat"], [0], {"epochs": "2", "adahat.embedding_lr_factor": value})
    assert (
        added.config("adahat").flat()
        != ComparisonPlan.make("demo", ["adahat"], [0], {"epochs": "2"}).config("adahat").flat()
    )
    whole = added.joined(earlier)
    assert whole.config("adahat") == added.config("adahat")
    assert added.joined(whole) == whole


def test_tasks_of_ones_own_are_compared_too(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a,b,answer\n" + "1,2,yes\n3,4,no\n" * 20)
    tasks = tmp_path / "tasks.toml"
    tasks.write_text('[[task]]\npath = "one.csv"\nlabel = "answer"\ntest_share = 0.25\n[training]\nepochs = 3\n')
    plan = ComparisonPlan.make("tasks", ["sgd"], [0], {"lr": "0.5"}, [tasks])
    assert plan.config("sgd").training.epochs == 3
    write_plan(tmp_path, plan, {})
    assert read_plan(tmp_path)[0] == plan
    (*_, job) = jobs_of(plan, tmp_path)
    assert Job.from_json(job.to_json()) == job
    assert job.request.sources == (tasks,)
    with pytest.raises(InputError, match="the folder holds a comparison on tasks"):
        ComparisonPlan.make("demo", ["sgd"], [0]).joined(plan)


def test_a_run_that_has_yet_to_learn_a_further_task_is_not_compared(folder: Path) -> None:
    before = Comparison.read(folder)
    assert before.run("sgd", 0) is not None
    fake_run(folder, "joint", 0, [[0.9], [0.8, 1.0], [0.9, 0.9, 0.9]])
    found = Comparison.read(folder)
    assert found.run("joint", 0) is not None
    assert found.run("sgd", 0) is None
    assert found.spread("sgd", "average_accuracy") is None
    assert ("sgd", 0) in found.missing
