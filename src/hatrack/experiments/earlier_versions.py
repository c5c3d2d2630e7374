"""Differences to what earlier versions computed, with other last bits: told by settings that their records lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hatrack.functional import Compensation
from hatrack.methods.importance import Fisher
from hatrack.support.dropout import ENTRIES_WORTH
from hatrack.train import OptimizerKind

__all__ = ["computed_otherwise"]

_DROPOUT_SINCE = "channels_last"
"""Setting that came with the version that draws dropout in another way, and that earlier records do not have."""

_SLOPE_SINCE = "embedding_lr_factor"
"""Setting of PMASK that came with the version that computes the slope of gates of weights with powers of 2."""

_FUSED_SINCE = "lr_decay"
"""Setting that earlier records do not have. It came with the version in which Adam makes a step in one pass, gates of
large inputs are multiplied with weights, and importance to dense layers is a product."""

_BLOCKS_SINCE = "learned_at"
"""Setting of HAT that came with the version in which layers compute with the part of their weights that a mask uses, in
validation and where training goes on under a final mask."""

_MEASURE_IMPORTANCE = frozenset({"ewc", "mas", "imm-mode", "dwa"})
"""Methods that measure how much weights matter, sample by sample unless their settings say otherwise."""

_IN_BATCHES = frozenset({Fisher.BATCHES.value, Fisher.AUTHORS.value})


def computed_otherwise(method: str, recorded: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what was computed in another way by the version that made a run, so that other bits come out now.

    Args:
        method: the run's method.
        recorded: settings by key, as JSON values, as far as the run's record has them.
        config: all settings of the run.

    Returns:
        Clauses such as ``dropout was drawn in another way``; empty where nothing is known.
    """
    said = []
    if _DROPOUT_SINCE not in recorded and _drops_many(config):
        said.append("dropout was drawn in another way")
    if _FUSED_SINCE not in recorded and config["optimizer"] != OptimizerKind.SGD.value:
        said.append("steps of Adam were rounded in another way")
    if _FUSED_SINCE not in recorded and "gate_inputs" in config and config["network"] != "mlp":
        said.append("gates of large inputs were multiplied in another way")
    if _FUSED_SINCE not in recorded and method in _MEASURE_IMPORTANCE and config.get("fisher") not in _IN_BATCHES:
        said.append("importance of weights was added up in another way")
    if _SLOPE_SINCE not in recorded and "ewc_fisher" in config and config["compensation"] == Compensation.EXACT.value:
        said.append("gradients of embeddings of weights were rounded in another way")
    if _BLOCKS_SINCE not in recorded and _BLOCKS_SINCE in config and config["hard"]:
        said.append("validation and training under final masks were rounded in another way")
    return tuple(said)


def _drops_many(config: Mapping[str, Any]) -> bool:
    """Return whether layers may drop so many entries at once that they are drawn in the way of this version."""
    if config["network"] == "mlp":
        return bool(config["dropout_late"] and config["batch_size"] * max(config["hidden"]) >= ENTRIES_WORTH)
    return config["network"] == "alexnet" and bool(config["dropout_early"] or config["dropout_late"])
