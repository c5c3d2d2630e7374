"""Settings for every test: one thread per worker, the same examples in every run, integrations only if asked for."""

from __future__ import annotations

import gc
import importlib
import sys

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests; the one that only hands them out starts in less time without torch."""
    if config.option.dist != "no" and not hasattr(config, "workerinput"):
        return
    import torch
    from hypothesis import settings

    import hatrack.gating.partial_gradients
    import hatrack.gating.used_blocks

    torch.set_num_threads(1)
    if not torch.cuda.is_available():  # for which every seed would keep the trace of its stack, thrice
        torch.manual_seed = torch.default_generator.manual_seed
    for module in (hatrack.gating.partial_gradients, hatrack.gating.used_blocks):
        module.PRODUCTS_WORTH = 0
        module.ENTRIES_WORTH = 0  # the small networks of the tests go the way of large ones, too
    settings.register_profile("deep", deadline=None, max_examples=40, derandomize=True)
    settings.register_profile("whole", settings.get_profile("deep"), max_examples=20)
    settings.register_profile("quick", settings.get_profile("deep"), max_examples=5)
    if not config.getoption("--hypothesis-profile"):  # which hypothesis loads by itself, later than this
        settings.load_profile("quick" if "not slow" in config.option.markexpr else "whole")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave integrations out, whatever else ``-m`` chooses, unless it names them."""
    items.sort(key=lambda item: item.path.stem == "test_damage")  # it listens to the interpreter from then on
    if "integration" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("integration")]
        items[:] = [item for item in items if not item.get_closest_marker("integration")]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep tests and imports out of every later garbage collection, and let it look at old objects seldom."""
    if session.items and not session.config.option.collectonly and "torch" in sys.modules:
        importlib.import_module("torch._dynamo")  # which the first optimizer would import, half a million objects
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


@pytest.fixture
def warm_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin with torch imported, for tests of what they do rather than of how they start."""
    from support.warm import start_workers_warm

    start_workers_warm(monkeypatch)
