"""Calibration of a task: statistics by which its samples are recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.masks.calibration import fit_calibration
from hatrack.masks.sums import TaskSums
from hatrack.masks.task_list import StateT
from hatrack.recognition import (
    FeatureMap,
    default_feature_map,
    feature_map_from,
    gather_sums,
    require_vectors,
)
from hatrack.recognition.sums import require_same_map
from hatrack.support.inputs import Inputs, is_numbers

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["calibrate"]


def calibrate(
    net: MaskedNetwork[StateT], name: str, x: Inputs, y: Tensor, batch_size: int, feature_map: FeatureMap | None
) -> None:
    """Measure the calibration of a task on its training data; the caller undoes all of it after an error.

    Args:
        net: the network.
        name: the task.
        x: its training samples.
        y: their classes, int64 ``(N,)``.
        batch_size: samples per pass.
        feature_map: the features of the sums; None for those of the other tasks, or the default.

    Raises:
        InputError: there is no such task, it is not consolidated, samples and classes do not fit, the task has a head
            of its own, or features have further axes; samples are not finite, training would change the features of the
            sums, or other tasks have sums of other features.
        GuaranteeError: protected entries had moved before.
    """
    masking = net.masking
    masking.require_attached()
    state = net.tasks.named(name)
    if not state.consolidated:
        raise InputError(f"task {name!r} is still in training: consolidate it before it is calibrated")
    interface, classes = masking.interface, state.count_classes()
    x = interface.accepted(x)
    if (
        not interface.has_samples(x)
        or y.shape != (interface.samples(x),)
        or not 0 <= int(y.min()) <= int(y.max()) < classes
    ):
        raise InputError(f"calibrating {name!r} takes samples with classes 0 to {classes - 1} each")
    net.protection.put_back()
    net.protection.check()
    with torch.inference_mode(False), torch.no_grad(), masking.evaluating():
        parts = interface.split(x, batch_size)
        for part in parts:
            net.admit(part, [state])
        features = require_vectors(torch.cat([masking.features(part, state) for part in parts]))
        used, logits = masking.used_features(features, state), state.classify(features)
        state.calibration = fit_calibration(used, logits, y.to(logits.device))
        state.sums = _sums(net, state, x, y, batch_size, feature_map)
    net.renew()


def _sums(
    net: MaskedNetwork[StateT], state: StateT, x: Inputs, y: Tensor, batch_size: int, feature_map: FeatureMap | None
) -> TaskSums | None:
    """Return the sums of a task, which go with those of the others.

    None where its samples have no shared features, or, unless features are asked for, another shape than the others'.
    """
    masking, interface = net.masking, net.masking.interface
    others = {other.name: other.sums for other in net.tasks if other is not state and other.sums is not None}
    known = next(iter(others.values()), None) if feature_map is None else None
    chosen = feature_map if known is None else feature_map_from(known.feature_map)
    if feature_map is None and not (is_numbers(x) if chosen is None else chosen.suits(x)):
        return None
    if chosen is None:
        chosen = default_feature_map(x.movedim(interface.batch_axis, 0).shape[1:])
    chosen.require_fixed(x, masking)
    if known is not None and known.sample_shape != tuple(chosen.read(interface.take(x, slice(1)), masking).shape[1:]):
        return None
    parts = zip(interface.split(x, batch_size), torch.split(y, batch_size), strict=True)
    sums = gather_sums(chosen, ((chosen.read(part, masking), labels) for part, labels in parts), state.count_classes())
    require_same_map({**others, state.name: sums})
    return sums
