"""Fine-tuning: go on training, and forget."""

from __future__ import annotations

from hatrack.methods.multi_head import MultiHeadMethod

__all__ = ["SGD"]


class SGD(MultiHeadMethod):
    """Plain training of one network on one task after the other."""

    name = "sgd"
    description = "fine-tuning: one network trained on each task in turn, nothing protected"
    source = "baseline of Serrà et al., ICML 2018"
    capturable = True
