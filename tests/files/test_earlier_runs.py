"""Runs of methods whose defaults have changed: they are verified, made again and gone on with as they were made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import (
    ComparisonPlan,
    JobDone,
    Reproduction,
    RunRequest,
    RunResult,
    jobs_of,
    prepare,
    read_result,
    recorded_run,
    run,
    verify,
)
from hatrack.experiments.folder import previous
from hatrack.experiments.jobs import carry_out
from hatrack.experiments.results import write_result
from hatrack.experiments.tuning import GridSearch
from hatrack.methods import METHODS
from hatrack.methods.base import Earlier
from hatrack.methods.ewc import EWC, EWCSettings
from support.old_networks import here

FIXTURES = Path(__file__).parents[1] / "fixtures" / "6d62dcc"
SETTINGS = {"hidden": 4, "num_tasks": 3, "limit": 16, "epochs": 2}
OWN: Mapping[str, Mapping[str, Any]] = MappingProxyType({"pmask": {"ewc": 50}})


@pytest.fixture(params=sorted(path.name for path in FIXTURES.iterdir() if path.is_dir()))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def interrupted(method: str, to: Path) -> Path:
    """The folder of a run as it was after its second task of three."""
    shutil.copytree(FIXTURES / method, to)
    for name in ("run.json", "net.hat"):
        previous(to / name).replace(to / name)
    (to / "logits.safetensors").unlink()
    return to


def assert_same_bits_or_said(recorded: RunResult, again: RunResult) -> None:
    """Check that two runs have the same bits where the version that made the first one computed as this one."""
    if {key: recorded.environment[key] for key in here()} == here():
        is_same = again.matrix("logits_sha256") == recorded.matrix("logits_sha256")
        assert is_same is not bool(Reproduction.of(recorded, again).otherwise)


def test_a_run_is_verified(method: str) -> None:
    assert verify(FIXTURES / method).holds


def test_a_run_goes_on_as_it_was_made(method: str, tmp_path: Path) -> None:
    whole, folder = read_result(FIXTURES / method / "run.json"), interrupted(method, tmp_path / "run")
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, **OWN.get(method, {})}.items()]
    command = ["run", "demo", "--method", method, *settings, "--threads", "1", "--out", str(folder), "--quiet"]
    assert main(command) == 0
    assert main(command) == 0  # it is finished now
    again = read_result(folder / "run.json")
    assert (again.status, again.config) == (whole.status, whole.config)
    assert_same_bits_or_said(whole, again)


def test_a_run_is_made_again_as_it_was_made(method: str) -> None:
    recorded, request = recorded_run(FIXTURES / method)
    prepared = prepare(request)
    for _ in run(prepared):
        pass
    assert_same_bits_or_said(recorded, prepared.result)
    assert recorded.config.items() <= prepared.config.flat().items()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.earlier is not None])
def test_earlier_defaults_are_about_settings_and_differ_from_those_of_now(name: str) -> None:
    kind = METHODS[name]
    assert kind.earlier is not None
    now = kind.settings_type()
    for earlier in kind.earlier.versions():
        then = kind.settings_type(**earlier.settings)
        assert all(getattr(now, key) != getattr(then, key) for key in earlier.settings)


@pytest.fixture
def _other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = Earlier({"strength": 3.0}, {"clip_norm": 7.0})
    monkeypatch.setattr(EWC, "earlier", Earlier({"strength": 5.0}, before=oldest))


QUICK: dict[str, Any] = {"hidden": [4], "num_tasks": 2, "limit": 16, "epochs": 1}
THEN = {**QUICK, "strength": 3.0, "clip_norm": 7.0}


def begun(folder: Path, seed: int, settings: Mapping[str, Any], without: tuple[str, ...] = ()) -> None:
    """A finished run, whose record lacks some settings."""
    prepared = prepare(RunRequest("demo", "ewc", seed, out=folder, overrides=settings))
    for _ in run(prepared):
        pass
    recorded = read_result(folder / "run.json")
    for key in without:
        del recorded.config[key]
    write_result(folder / "run.json", recorded)


@pytest.mark.usefixtures("_other_defaults")
def test_what_was_asked_for_is_not_taken_for_a_default(tmp_path: Path) -> None:
    begun(tmp_path / "then", 0, THEN, without=("strength",))
    request = RunRequest("demo", "ewc", out=tmp_path / "then", overrides=QUICK)
    taken_up = prepare(request)
    assert taken_up.config.flat().items() >= {"strength": 3.0, "clip_norm": 7.0}.items()
    clip_norm, strength = EWC.training["clip_norm"], EWCSettings().strength
    assert taken_up.notes[-1] == (
        "an earlier version began this run; going on with its defaults: "
        f"clip_norm (7.0 there, {clip_norm} now), strength (3.0 there, {strength} now)"
    )
    begun(tmp_path / "later", 0, {**QUICK, "strength": 5.0})
    taken_up = prepare(RunRequest("demo", "ewc", out=tmp_path / "later", overrides=QUICK))
    assert taken_up.notes[-1].endswith(f"going on with its defaults: strength (5.0 there, {strength} now)")
    for other in ({"strength": 4.0}, {"lr": 0.5}, {"clip_norm": 8.0}):
        with pytest.raises(InputError, match="holds a run with other settings"):
            prepare(RunRequest("demo", "ewc", out=tmp_path / "then", overrides={**QUICK, **other}))
    only = r"other settings: lr \(0\.1 there, 0\.5 now\); choose"  # defaults are no reason
    with pytest.raises(InputError, match=only):
        prepare(RunRequest("demo", "ewc", out=tmp_path / "then", overrides={**QUICK, "lr": 0.5}))
    begun(tmp_path / "between", 0, {**QUICK, "strength": 3.0})  # of one version as little as of the other
    with pytest.raises(InputError, match=r"other settings: strength \(3.0 there"):
        prepare(RunRequest("demo", "ewc", out=tmp_path / "between", overrides=QUICK))


@pytest.mark.usefixtures("_other_defaults")
def test_a_comparison_goes_on_with_the_defaults_of_its_runs(tmp_path: Path) -> None:
    plan = ComparisonPlan.make("demo", ["ewc"], [0, 1], QUICK)
    begun(tmp_path / "ewc" / "seed0", 0, THEN)
    jobs = [job for job in jobs_of(plan, tmp_path) if job.request.method == "ewc"]
    assert [job.request.overrides for job in jobs] == [THEN] * 2
    assert [event for event in carry_out(jobs[1]) if isinstance(event, JobDone)]
    made = [read_result(tmp_path / "ewc" / f"seed{seed}" / "run.json").config for seed in (0, 1)]
    assert made[0] == made[1]
    other = ComparisonPlan.make("demo", ["ewc"], [0], {**QUICK, "lr": 0.5})
    with pytest.raises(InputError, match=r"other settings: lr \(0\.1 there, 0\.5 now\); choose"):
        jobs_of(other, tmp_path)
    begun(tmp_path / "ewc" / "seed2", 2, QUICK)
    said = r"runs of ewc with the defaults of several versions \(clip_norm was 7.0, strength was 3.0\)"
    with pytest.raises(InputError, match=said):
        jobs_of(ComparisonPlan.make("demo", ["ewc"], [0, 1, 2], QUICK), tmp_path)


@pytest.mark.usefixtures("_other_defaults")
def test_a_search_goes_on_with_the_defaults_of_its_runs(tmp_path: Path) -> None:
    search = GridSearch.make("demo", "ewc", 0, QUICK, {"strength": (1.0, 2.0)})
    begun(tmp_path / "strength=2.0", 0, {**THEN, "strength": 2.0})
    jobs = search.jobs(tmp_path)
    assert {job.request.overrides["clip_norm"] for job in jobs} == {7.0}
    assert {job.request.overrides["strength"] for job in jobs} == {each["strength"] for each in search.candidates()}
