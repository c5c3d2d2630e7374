"""Calibration of a task: statistics by which its samples are recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.masks.calibration import fit_calibration
from hatrack.masks.task_list import StateT
from hatrack.recognition import require_vectors
from hatrack.support.inputs import Inputs

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["calibrate"]


def calibrate(net: MaskedNetwork[StateT], name: str, x: Inputs, y: Tensor, batch_size: int) -> None:
    """Measure the calibration of a task on its training data; the caller undoes all of it after an error.

    Args:
        net: the network.
        name: the task.
        x: its training samples.
        y: their classes, int64 ``(N,)``.
        batch_size: samples per pass.

    Raises:
        InputError: there is no such task, it is not consolidated, samples and classes do not fit, the task has a head
            of its own, or features have further axes.
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
    net.renew()
