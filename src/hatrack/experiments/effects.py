"""Settings that have no effect beside others, as a table of rules, and what to say to whoever made one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hatrack.experiments.experiment import Experiment
from hatrack.experiments.settings import Config, NetworkSettings
from hatrack.methods import find_method
from hatrack.methods.ewc import Consolidation
from hatrack.methods.hat import InitialEmbedding, MaskSchedule
from hatrack.methods.masked import Room
from hatrack.support.names import joined_with_and
from hatrack.train import LearningRateDecay, OptimizerKind, TrainingSettings

__all__ = ["RULES", "Rule", "cautions", "keys_in_file", "said_of_all", "without_effect"]


@dataclass(frozen=True)
class Rule:
    """Settings that change nothing where a condition on the other settings holds.

    Attributes:
        keys: names of the settings.
        when: the condition as the end of a sentence, ``without capacity=grow``.
        holds: whether it holds for all settings of a run; asked only where these have one of the keys.
        method: name of the only method that the rule is about; None for every method with one of the keys.
    """

    keys: tuple[str, ...]
    when: str
    holds: Callable[[Config], bool]
    method: str | None = None


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _starts_normal(config: Config) -> bool:
    """Return whether embeddings of HAT start as N(0, 1), by a setting of their own or by the schedule."""
    if config.method.embedding is None:
        return config.method.schedule is not MaskSchedule.SETTLED
    return config.method.embedding is InitialEmbedding.NORMAL


def _is_other_than(*networks: str) -> Callable[[Config], bool]:
    return lambda config: config.network.network not in networks


RULES: tuple[Rule, ...] = (
    Rule(
        # Its guesses are drawn by the digest of a batch of test samples, so that the size of these batches matters.
        (*(key for key in _names(TrainingSettings) if key != "eval_batch_size"), *_names(NetworkSettings)),
        "with random, which trains nothing",
        lambda config: True,
        method="random",
    ),
    Rule(
        ("growth_threshold", "growth_share"),
        "without capacity=grow",
        lambda config: config.method.capacity is not Room.GROW,
    ),
    Rule(("embedding_low", "embedding_high"), "without embedding=uniform", _starts_normal),
    Rule(
        ("gamma",),
        "without consolidation=online",
        lambda config: config.method.consolidation is not Consolidation.ONLINE,
        method="ewc",
    ),
    Rule(("ewc_penalty", "ewc_fisher"), "without ewc above 0", lambda config: not config.method.ewc),
    Rule(
        ("lr_factor", "lr_patience", "lr_min"),
        "with lr_decay=cosine",
        lambda config: config.training.lr_decay is LearningRateDecay.COSINE,
    ),
    Rule(
        ("momentum",),
        "without optimizer=sgd",
        lambda config: config.training.optimizer is not OptimizerKind.SGD,
    ),
    Rule(("hidden",), "without network=mlp", _is_other_than("mlp")),
    Rule(("dropout_early", "dropout_late"), "without network=mlp or alexnet", _is_other_than("mlp", "alexnet")),
    Rule(("width",), "without network=alexnet or resnet18", _is_other_than("alexnet", "resnet18")),
    Rule(("norm",), "without network=resnet18", _is_other_than("resnet18")),
)
"""Every rule; of a setting the first one counts that holds."""

MOST_FOR_ADAM = 0.01
"""Learning rate above which Adam seldom learns."""


def without_effect(method: str, config: Config, keys: Iterable[str]) -> dict[str, str]:
    """Return which settings have no effect beside the others, and the end of the sentence that says so.

    Args:
        method: name of the method.
        config: all settings.
        keys: names of the settings to look at; what is no setting of the method is left out.
    """
    known, found = config.flat(), {}
    for key in keys:
        for rule in RULES:
            if key in known and key in rule.keys and rule.method in (None, method) and rule.holds(config):
                found[key] = rule.when
                break
    return found


def cautions(method: str, config: Config, keys: Iterable[str], *, owner: str = "") -> tuple[str, ...]:
    """Return sentences for whoever made settings: those without effect, and a learning rate that is not Adam's.

    Args:
        method: name of the method.
        config: all settings.
        keys: names of the settings that somebody made, which may have no effect; the learning rate is looked at
            whoever made it.
        owner: what stands before a setting that is proposed, ``hat.`` where it is to be that method's alone.
    """
    by_reason: dict[str, list[str]] = {}
    for key, when in without_effect(method, config, dict.fromkeys(keys)).items():
        by_reason.setdefault(when, []).append(key)
    said = [
        f"{joined_with_and(found)} {'has' if len(found) == 1 else 'have'} no effect {when}"
        for when, found in by_reason.items()
    ]
    training, trains = config.training, find_method(method).trains
    if trains and training.optimizer is not OptimizerKind.SGD and training.lr > MOST_FOR_ADAM:
        said.append(f"lr={training.lr:g} is a rate for SGD; Adam usually takes 0.001: `{owner}lr=0.001`")
    return tuple(said)


def keys_in_file(experiment: Experiment, method: str) -> tuple[str, ...]:
    """Return the settings that a person's own file makes for a method; none of presets.

    Those for all methods are left out for one that trains nothing, which has to bear them with the others.
    """
    if experiment.own is None:
        return ()
    common = experiment.settings if find_method(method).trains else ()
    return (*common, *experiment.methods.get(method, {}))


def said_of_all(said: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Join the sentences about several methods: each once, and of which methods where it is not about all.

    Args:
        said: sentences by method, for every method that is concerned.
    """
    methods: dict[str, list[str]] = {}
    for method, sentences in said.items():
        for sentence in sentences:
            methods.setdefault(sentence, []).append(method)
    return tuple(
        sentence if len(those) == len(said) else f"{', '.join(those)}: {sentence}"
        for sentence, those in methods.items()
    )
