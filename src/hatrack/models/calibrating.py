"""Calibration of a task: statistics by which its samples are recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatrack.errors import InputError
from hatrack.masks.calibration import fit_calibration
from hatrack.masks.task_list import StateT

if TYPE_CHECKING:
    from hatrack.models.base import MaskedNetwork

__all__ = ["calibrate"]


def calibrate(net: MaskedNetwork[StateT], name: str, x: Tensor, y: Tensor, batch_size: int) -> None:
    """Measure the calibration of a task on its training data; the caller undoes all of it after an error.

    Args:
        net: the network.
        name: the task.
        x: its training samples ``(N, ...)``.
        y: their classes, int64 ``(N,)``.
        batch_size: samples per pass.

    Raises:
        InputError: there is no such task, it is not consolidated, or samples and classes do not fit.
        GuaranteeError: protected entries had moved before.
    """
    masking = net.masking
    masking.require_attached()
    state = net.tasks.named(name)
    if not state.consolidated:
        raise InputError(f"task {name!r} is still in training: consolidate it before it is calibrated")
    if not len(x) or y.shape != x.shape[:1] or int(y.min()) < 0 or int(y.max()) >= state.num_classes:
        raise InputError(f"calibrating {name!r} takes samples with classes 0 to {state.num_classes - 1} each")
    net.protection.put_back()
    net.protection.check()
    with torch.inference_mode(False), torch.no_grad(), masking.evaluating():
        parts = torch.split(x, batch_size)
        for part in parts:
            net.admit(part, [state])
        features = torch.cat([masking.features(part, state) for part in parts])
        used, logits = masking.used_features(features, state), state.classify(features)
        state.calibration = fit_calibration(used, logits, y.to(logits.device))
    net.renew()
