from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hatrack.data import ImageDataset
from hatrack.errors import InputError
from hatrack.streams import (
    DetectorSettings,
    LossDetector,
    StreamOptions,
    Surprise,
    TaskStream,
    Unannounced,
    consecutive_groups,
    split_stream,
)

USUAL, SUSPICIOUS, SWITCH = Surprise.USUAL, Surprise.SUSPICIOUS, Surprise.SWITCH


@pytest.fixture
def stream(tiny: ImageDataset) -> TaskStream:
    return split_stream(tiny, consecutive_groups(tiny.class_names, 2)[:2], StreamOptions(0))  # 120 and 70 images


def test_batches_hold_each_tasks_samples_once_per_pass(stream: TaskStream) -> None:
    batches = Unannounced(stream, passes=2, batch_size=10, seed=3)
    seen = list(batches)
    assert len(seen) == len(batches) == len(batches.truth()) == 2 * 12 + 2 * 7
    assert batches.truth() == (0,) * 24 + (1,) * 14
    assert batches.classes == 2
    for index, task in enumerate(stream):
        mine = [batch for batch, truth in zip(seen, batches.truth(), strict=True) if truth == index]
        x, y = task.train.load()
        for part in (mine[: len(mine) // 2], mine[len(mine) // 2 :]):
            xs, ys = torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])
            order = torch.tensor([int((x == one).flatten(1).all(dim=1).nonzero()[0]) for one in xs])
            assert sorted(order.tolist()) == list(range(len(x)))
            assert order.tolist() != list(range(len(x)))
            assert torch.equal(ys, y[order])


def test_batches_depend_on_the_seed_alone(stream: TaskStream) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(iter(Unannounced(stream, batch_size=10, seed=seed)))[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_what_does_not_fill_a_batch_is_left_out(stream: TaskStream) -> None:
    assert len(Unannounced(stream, batch_size=50)) == 2 + 1
    with pytest.raises(InputError, match="70 samples; a batch needs 71"):
        Unannounced(stream, batch_size=71)
    with pytest.raises(InputError, match="at least 1"):
        Unannounced(stream, passes=0)


# --- the detector


def verdicts(losses: list[float], **settings: float) -> list[Surprise]:
    detector = LossDetector(DetectorSettings(**{"warmup": 4, "patience": 3, **settings}))  # type: ignore[arg-type]
    return [detector.observe(loss) for loss in losses]


def test_a_jump_that_stays_is_a_switch_and_one_that_does_not_is_none() -> None:
    calm = [0.5, 0.4, 0.3, 0.3, 0.3]
    assert verdicts([*calm, 2.0, 2.0, 2.0]) == [USUAL] * 5 + [SUSPICIOUS, SUSPICIOUS, SWITCH]
    assert verdicts([*calm, 2.0, 2.0, 0.3, 2.0]) == [USUAL] * 5 + [SUSPICIOUS, SUSPICIOUS, USUAL, SUSPICIOUS]
    assert verdicts([*calm, float("nan")]) == [USUAL] * 5 + [SUSPICIOUS], "a loss that is no number is not usual"


def test_neither_a_falling_loss_nor_the_first_batches_are_suspicious() -> None:
    assert set(verdicts([3.0 * 0.9**n for n in range(100)])) == {USUAL}
    assert set(verdicts([0.1, 5.0, 0.1, 9.0])) == {USUAL}


@given(st.lists(st.floats(0, 3), min_size=1, max_size=10))
def test_mean_and_deviation_are_exact_while_the_memory_lasts(losses: list[float]) -> None:
    detector = LossDetector(DetectorSettings(memory=10, warmup=10))
    for loss in losses:
        detector.observe(loss)
    assert detector.mean == pytest.approx(statistics.fmean(losses), abs=1e-9)
    assert detector.deviation == pytest.approx(statistics.pstdev(losses), abs=1e-6)
    assert detector.limit == pytest.approx(detector.mean + max(4 * detector.deviation, 0.05), abs=1e-9)


def test_memory_fades_by_hand() -> None:
    detector = LossDetector(DetectorSettings(memory=2, warmup=100))
    for loss in (0.0, 2.0, 4.0):
        detector.observe(loss)
    # Means 0, 1, 2.5; variances 0, (0 + 2²/2)/2 = 1, (1 + 3²/2)/2 = 2.75.
    assert (detector.mean, detector.deviation) == (2.5, pytest.approx(2.75**0.5))


def test_suspicious_losses_do_not_become_usual() -> None:
    detector = LossDetector(DetectorSettings(warmup=4, patience=100))
    for loss in [0.3] * 10 + [2.0] * 90:
        detector.observe(loss)
    assert detector.mean == pytest.approx(0.3)


def test_a_known_task_is_resumed_without_warmup() -> None:
    detector = LossDetector(DetectorSettings(patience=1))
    detector.resume(0.2, 0.01)
    assert (detector.mean, detector.deviation) == (0.2, pytest.approx(0.01))
    assert detector.observe(0.24) is USUAL
    assert detector.observe(1.0) is SWITCH
    detector.restart()
    assert detector.observe(1.0) is USUAL


@pytest.mark.parametrize("key", ["memory", "patience", "warmup", "factor", "jump"])
def test_detector_settings_out_of_range(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} must be at least"):
        DetectorSettings(**{key: -1})  # type: ignore[arg-type]
