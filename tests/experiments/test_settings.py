from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest

from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, Config
from hatrack.experiments.settings import OTHERWISE, InitialWeights
from hatrack.functional import Compensation
from hatrack.methods import METHODS
from hatrack.train import OptimizerKind
from support.toys import strength_of


def config(experiment: str = "split-mnist", method: str = "hat") -> Config:
    return EXPERIMENTS[experiment].config(method)


@pytest.mark.parametrize("method", METHODS)
def test_keys_of_all_parts_are_distinct(method: str) -> None:
    parts = config(method=method)
    keys = Counter(f.name for part in (parts.stream, parts.network, parts.training, parts.method) for f in fields(part))
    assert max(keys.values()) == 1
    assert list(keys) == list(parts.flat())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_recorded_makes_the_same_config_again(experiment: str, method: str) -> None:
    recorded = config(experiment, method).flat()
    assert EXPERIMENTS["demo"].config(method).overridden(recorded) == config(experiment, method)


def test_presets_carry_the_papers_settings() -> None:
    split, permuted = config("split-mnist"), config("permuted-mnist")
    assert (split.network.hidden, strength_of(split), split.training.epochs) == ((800, 800), 0.1, 50)
    assert (permuted.network.hidden, strength_of(permuted), permuted.method.s_max) == ((500, 500), 0.5, 400.0)
    assert split.network.dropout_early == permuted.network.dropout_late == split.stream.validation == 0.0
    fashion = config("split-fashion-mnist")
    assert (fashion.network.hidden, fashion.stream.validation, strength_of(fashion)) == ((2000, 2000), 0.15, 0.75)
    assert (fashion.network.dropout_early, fashion.network.dropout_late) == (0.2, 0.5)
    training = fashion.training
    assert (training.lr, training.lr_factor, training.lr_patience, training.lr_min) == (0.05, 3.0, 5, 1e-4)
    assert (training.batch_size, training.epochs, training.clip_norm) == (64, 200, 10000.0)


@pytest.mark.parametrize(
    ("name", "network"),
    [("split-cifar10", "alexnet"), ("split-cifar100", "alexnet"), ("residual-cifar", "resnet18")],
)
def test_cifar_presets_carry_the_papers_schedule(name: str, network: str) -> None:
    settings = config(name)
    assert settings.network.network == network
    assert (settings.network.dropout_early, settings.network.dropout_late) == (0.2, 0.5)
    assert (settings.stream.validation, strength_of(settings), settings.method.s_max) == (0.15, 0.75, 400.0)
    training = settings.training
    assert (training.lr, training.lr_factor, training.lr_patience, training.lr_min) == (0.05, 3.0, 5, 1e-4)
    assert (training.batch_size, training.epochs, training.momentum) == (64, 200, 0.0)


def test_texts_are_read_as_the_settings_type() -> None:
    values = {
        "lr": "1e-3",
        "epochs": "7",
        "hidden": "30,20",
        "optimizer": "adamw",
        "limit": "100",
        "hard": "no",
        "compensation": "float32",
        "initialization": "torch",
    }
    changed = config().overridden(values)
    assert (changed.training.lr, changed.training.epochs, changed.network.hidden) == (1e-3, 7, (30, 20))
    assert (changed.training.optimizer, changed.stream.limit) == (OptimizerKind.ADAMW, 100)
    assert (changed.method.hard, changed.method.compensation) == (False, Compensation.FLOAT32)
    assert changed.network.initialization is InitialWeights.TORCH
    assert changed.overridden({"limit": "none"}).stream.limit is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lrr", "1", "did you mean 'lr'"),
        ("learning_rate", "1", "there is no setting 'learning_rate', did you mean 'lr'?"),
        ("learningrate", "1", "did you mean 'lr'"),
        ("batchsize", "1", "did you mean 'batch_size'"),
        ("num_epochs", "1", "did you mean 'epochs'"),
        ("lr", "fast", "lr must be a finite number"),
        ("lr", "nan", "lr must be a finite number"),
        ("lr", "0", "lr must be above 0"),
        ("lr", "-1", "lr must be above 0, not -1.0"),
        ("epochs", "-1", "epochs must be at least 1, not -1"),
        ("epochs", "none", "epochs must be a whole number$"),
        ("clip_norm", "none", "clip_norm must be a finite number$"),
        ("c", "-1", "c must be a finite number, 0 or more, not -1.0"),
        ("embedding_low", "-1", "embedding_low must be a finite number, 0 or more, not -1.0"),
        ("hidden", "10,-1", "hidden must be widths of at least 1"),
        ("weight_decay", "-0.1", "weight_decay must be a finite number, 0 or more, not -0.1"),
        ("momentum", "1", "momentum must be below 1, not 1.0"),
        ("momentum", "2", "momentum must be below 1, not 2.0"),
        ("epochs", "1.5", "epochs must be a whole number"),
        ("epochs", "0", "epochs must be at least 1"),
        ("batch_size", "0", "batch_size must be at least 1"),
        ("lr_factor", "1", "lr_factor must be above 1"),
        ("hidden", "", "hidden must be widths"),
        ("hidden", "a,b", "whole numbers joined by commas"),
        ("hidden", "10,0", "hidden must be widths"),
        ("width", "0", "width must be above 0"),
        ("optimizer", "lion", "one of sgd, adam, adamw"),
        ("hard", "maybe", "true or false"),
        ("dropout_late", "1", "below 1"),
        ("validation", "1", "below 1"),
        ("limit", "0", "at least 1"),
        ("s_max", "0", "s_max must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(key: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config().overridden({key: value})


def test_other_names_lead_to_settings() -> None:
    known = {key for method in METHODS for key in config(method=method).flat()}
    assert {*OTHERWISE.values()} <= known
    assert not known & {*OTHERWISE}
    with pytest.raises(InputError, match="there is no setting 'lamb'") as caught:
        config(method="hat").overridden({"lamb": 1})
    assert "strength" not in str(caught.value), "hat has none"


def test_a_setting_of_other_methods_is_refused_by_naming_these() -> None:
    with pytest.raises(InputError, match="rotations is no setting of this method: leave it out, or choose one of hat,"):
        config(method="sgd").overridden({"rotations": 4})


def test_a_value_that_does_not_fit_is_told_of_none_where_that_is_one() -> None:
    with pytest.raises(InputError, match=r"embedding_lr_factor must be a finite number, or none$"):
        EXPERIMENTS["demo"].config("pmask").overridden({"embedding_lr_factor": "fast"})
    with pytest.raises(InputError, match=r"lr must be a finite number$"):
        EXPERIMENTS["demo"].config("pmask").overridden({"lr": "fast"})
