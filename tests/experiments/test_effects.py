"""Settings without effect are said to be: every rule against runs with other values, to the bit."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, ComparisonPlan, RunRequest, prepare, run
from hatrack.experiments.effects import RULES, Rule, cautions, without_effect
from hatrack.experiments.settings import NetworkSettings
from hatrack.experiments.tuning import GridSearch
from hatrack.methods import METHODS
from hatrack.train import TrainingSettings

TINY: dict[str, Any] = {"epochs": 2, "hidden": (8,), "limit": 24, "num_tasks": 2, "batch_size": 8}
ALEXNET: dict[str, Any] = {"network": "alexnet", "width": 0.1}
RESNET: dict[str, Any] = {"network": "resnet18", "width": 0.1, "epochs": 1}
COSINE: dict[str, Any] = {"lr_decay": "cosine"}
NETWORK: dict[str, Any] = {"hidden": (9,), "width": 0.5, "dropout_early": 0.4, "dropout_late": 0.4, "norm": "none"}

OF_RANDOM: dict[str, Any] = {
    **{**NETWORK, "network": "vit", "initialization": "he", "channels_last": True},
    **{"epochs": 3, "batch_size": 9, "optimizer": "adam", "lr": 0.2, "lr_decay": "plateau", "lr_factor": 2.0},
    **{"lr_patience": 2, "lr_min": 0.01, "momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.1},
    **{"fresh_statistics": False, "precision": "bfloat16", "captured": True},
}

Case = tuple[str, dict[str, Any], dict[str, Any]]

QUICK: tuple[Case, ...] = (
    ("random", {}, OF_RANDOM),
    ("hat", {}, {"growth_threshold": 0.9, "growth_share": 0.9}),
    ("pmask", {}, {"growth_threshold": 0.9, "growth_share": 0.9}),
    ("hat", {"embedding": "normal", "schedule": "settled"}, {"embedding_low": 0.5, "embedding_high": 1.5}),
    ("hat", {"schedule": "paper"}, {"embedding_low": 0.5, "embedding_high": 1.5}),
    ("ewc", {"strength": 1e5}, {"gamma": 0.5}),
    ("pmask", {}, {"ewc_penalty": "explicit", "ewc_fisher": "true"}),
    ("sgd", COSINE, {"lr_factor": 9.0, "lr_patience": 1, "lr_min": 1.0}),
    *(("sgd", {"optimizer": kind, "lr": 0.001}, {"momentum": 0.9}) for kind in ("adam", "adamw")),
    ("sgd", {}, {"width": 0.5, "norm": "none"}),
)
SLOW: tuple[Case, ...] = (
    ("sgd", {"network": "vit", "epochs": 1, "num_tasks": 1}, NETWORK),
    ("sgd", ALEXNET, {"hidden": (9,), "norm": "none"}),
    ("sgd", RESNET, {"hidden": (9,), "dropout_early": 0.4, "dropout_late": 0.4}),
)
IDLE = (*QUICK, *SLOW)
"""Methods, settings beside which others have no effect, and these with values of their own."""

EFFECTIVE: tuple[Case, ...] = (
    ("random", {}, {"eval_batch_size": 7}),
    ("hat", {"capacity": "grow", "num_tasks": 3}, {"growth_threshold": 0.99}),
    ("hat", {"schedule": "settled"}, {"embedding_low": 1.5}),
    ("hat", {"schedule": "paper", "embedding": "uniform"}, {"embedding_high": 1.5}),
    ("ewc", {"consolidation": "online", "strength": 1e5, "num_tasks": 3}, {"gamma": 0.0}),
    ("pmask", {"ewc": 1e6}, {"ewc_penalty": "explicit"}),
    ("sgd", {}, {"momentum": 0.9}),
    ("sgd", ALEXNET, {"dropout_late": 0.1}),
)
"""The same of settings that no rule takes for idle, though it names them."""


@cache
def logits(method: str, settings: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """Return the digests of all test logits of a tiny run."""
    prepared = prepare(RunRequest("demo", method, overrides=dict(settings)))
    for _ in run(prepared):
        pass
    return tuple(tuple(score.logits_sha256 for score in row) for row in prepared.result.scores)


def same_bits(method: str, beside: dict[str, Any], key: dict[str, Any]) -> bool:
    plain = {**TINY, **beside}
    return logits(method, tuple(plain.items())) == logits(method, tuple({**plain, **key}.items()))


def said(method: str, beside: dict[str, Any], key: dict[str, Any]) -> dict[str, str]:
    return without_effect(method, EXPERIMENTS["demo"].config(method).overridden({**beside, **key}), key)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.keys[0]} {rule.when}")
def test_every_rule_names_settings(rule: Rule) -> None:
    parts = (NetworkSettings, TrainingSettings, *(kind.settings_type for kind in METHODS.values()))
    known = {field.name for part in parts for field in dataclasses.fields(part)}
    assert {*rule.keys} <= known
    assert rule.method is None or rule.method in METHODS
    tried = {key for method, _, idle in IDLE for key in idle if rule.method in (None, method)}
    assert {*rule.keys} <= tried, "every setting of every rule is compared with a run"


@pytest.mark.parametrize(("method", "beside", "key"), IDLE)
def test_what_is_idle_is_said(method: str, beside: dict[str, Any], key: dict[str, Any]) -> None:
    assert {*said(method, beside, key)} == {*key}
    sentences = RunRequest("demo", method, overrides={"limit": 9, **key, **beside}).cautions()
    assert all(" no effect with" in sentence for sentence in sentences)
    assert {word for sentence in sentences for word in sentence.replace(",", "").split()} >= {*key}


@pytest.mark.parametrize(("method", "beside", "key"), EFFECTIVE)
def test_what_has_an_effect_is_not(method: str, beside: dict[str, Any], key: dict[str, Any]) -> None:
    assert not said(method, beside, key)


@pytest.mark.parametrize(
    ("method", "beside", "key"), [*QUICK, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_what_is_idle_changes_no_bit(method: str, beside: dict[str, Any], key: dict[str, Any]) -> None:
    assert same_bits(method, beside, key)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "beside", "key"), EFFECTIVE)
def test_what_is_not_idle_changes_bits(method: str, beside: dict[str, Any], key: dict[str, Any]) -> None:
    assert not same_bits(method, beside, key)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_presets_and_their_grids_are_not_cautioned(experiment: str) -> None:
    for method, kind in METHODS.items():
        config = EXPERIMENTS[experiment].config(method)
        assert cautions(method, config, ()) == ()
        assert not without_effect(method, config, kind.grid)


def test_a_comparison_says_of_which_methods() -> None:
    own = {"momentum": 0.9, "epochs": 2, "hat.growth_share": 0.5, "random.epochs": 1}
    assert ComparisonPlan.make("demo", ["hat", "pmask"], [0], own).cautions == (
        "hat: growth_share has no effect without capacity=grow",
        "pmask: momentum has no effect without optimizer=sgd",
        "random: epochs has no effect with random, which trains nothing",
    )
    assert ComparisonPlan.make("demo", ["hat"], [0], {"width": 0.5, "norm": "none"}).cautions == (
        "width has no effect without network=alexnet or resnet18",
        "norm has no effect without network=resnet18",
    )


def test_a_search_refuses_what_has_no_effect() -> None:
    with pytest.raises(InputError, match="growth_share has no effect without capacity=grow, so that there is nothing"):
        GridSearch.make("demo", "hat", 0, {}, {"growth_share": ["0.25", "0.5"]})
    both = GridSearch.make("demo", "hat", 0, {}, {"capacity": ["grow"], "growth_share": [0.5]})
    assert len(both.candidates()) == 4
    search = GridSearch.make("demo", "sgd", 0, {"width": 0.5, "lr_factor": 2}, {"lr_decay": ["cosine"]})
    assert search.cautions == ("width has no effect without network=alexnet or resnet18",)


def test_adam_at_a_rate_of_sgd_is_said() -> None:
    (sentence,) = RunRequest("demo", "hat", overrides={"optimizer": "adam"}).cautions()
    assert sentence == "lr=0.1 is a rate for SGD; Adam usually takes 0.001: `lr=0.001`"
    assert RunRequest("demo", "hat", overrides={"optimizer": "adamw", "lr": 0.01}).cautions() == ()
    plan = ComparisonPlan.make("demo", ["hat", "sgd"], [0], {"hat.optimizer": "adam"})
    assert plan.cautions == ("hat: lr=0.1 is a rate for SGD; Adam usually takes 0.001: `hat.lr=0.001`",)
    rates = GridSearch.make("demo", "hat", 0, {"optimizer": "adam"}, {"lr": [0.001, 0.05]})
    assert rates.cautions == ()


def test_a_file_of_ones_own_is_read_for_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    file = tmp_path / "t.toml"
    table = '[[task]]\npath = "t.csv"\nlabel = "label"\ntest_share = 0.5\n[network]\nwidth = 0.5\n[method.hat]\n'
    file.write_text(f"{table}growth_share = 0.5\n[method.random]\nepochs = 3\n")
    assert RunRequest("", "hat", sources=(file,)).cautions() == (
        "width has no effect without network=alexnet or resnet18",
        "growth_share has no effect without capacity=grow",
    )
    assert RunRequest("", "random", sources=(file,)).cautions() == (
        "epochs has no effect with random, which trains nothing",
    )


def test_commands_warn_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "limit=20", "--set", "num_tasks=1", "--set", "epochs=2", "--set", "hidden=5"]
    assert main(["run", "demo", "--method", "random", *words, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == "warning: epochs and hidden have no effect with random, which trains nothing\n"
    assert main(["run", "demo", "--method", "random", *words, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    idle = ["--set", "momentum=0.5", "--set", "optimizer=adam", "--dry-run", "--out", str(tmp_path / "many")]
    for command in (["compare", "demo", "--methods", "sgd"], ["tune", "demo", "--method", "ewc"]):
        assert main([*command, *idle]) == 0
        assert capsys.readouterr().err == (
            "warning: momentum has no effect without optimizer=sgd\n"
            "warning: lr=0.1 is a rate for SGD; Adam usually takes 0.001: --set lr=0.001\n"
        )
