"""Settings for every test: one thread per worker, and the same examples in every run."""

from __future__ import annotations

import torch
from hypothesis import settings

import hatrack.gating.partial_gradients

torch.set_num_threads(1)
hatrack.gating.partial_gradients.ENTRIES_WORTH = 0  # the small networks of the tests go the way of large ones, too
settings.register_profile("hatrack", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("hatrack")
