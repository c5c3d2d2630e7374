"""Learner: today, tomorrow from a file, and without the task's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hatrack import CheckpointError, InputError, Learner, Scorer, TrainingError
from hatrack.train import EpochDone, TrainingSettings
from helpers import NETS, easy_task

SHAPE = (2, 6, 6)
TRAINING = TrainingSettings(epochs=8, batch_size=8, lr=0.05)
NAMES = ("tabby", "dog", "eel")


def build() -> nn.Module:
    torch.manual_seed(0)
    return NETS["conv-bn"].build()


def learner() -> Learner:
    return Learner(build(), SHAPE, training=TRAINING, validation=0.0)


def data(seed: int) -> tuple[Tensor, Tensor]:
    return easy_task(SHAPE, seed)


def test_tomorrow_from_the_file_with_the_old_tasks_untouched(tmp_path: Path) -> None:
    today = learner()
    epochs: list[object] = []
    today.fit("pets", data(0), classes=NAMES, watch=lambda event: epochs.append(type(event)))
    assert EpochDone in epochs
    assert today.evaluate("pets", data(0)) > 0.9
    said = today.predict(data(0)[0], "pets")
    assert said.classes[0] in NAMES
    assert said.tasks == ("pets",) * len(data(0)[0])
    assert said.distribution.shape == (24, 3)
    torch.testing.assert_close(said.distribution.sum(1), torch.ones(24))
    today.save(tmp_path / "learner")

    tomorrow = Learner.load(tmp_path / "learner", NETS["conv-bn"].build(), training=TRAINING, validation=0.0)
    tomorrow.fit("tools", data(1))
    assert tomorrow.tasks == ("pets", "tools")
    assert tomorrow.classes["tools"] == ("0", "1", "2")
    assert tomorrow.evaluate("tools", data(1)) > 0.9
    assert torch.equal(tomorrow.predict(data(0)[0], "pets").distribution, said.distribution)
    without = tomorrow.predict(torch.cat([data(0)[0], data(1)[0]]), scorer=Scorer.DISTANCE)
    assert sum(task == "pets" for task in without.tasks[:24]) > 18
    assert tomorrow.evaluate("tools", data(1), name_task=False) <= tomorrow.evaluate("tools", data(1))
    assert "pets is forgotten" in str(tomorrow.forget("pets"))
    tomorrow.save(tmp_path / "later")
    assert b"tabby" not in (tmp_path / "later").read_bytes()
    tomorrow.fit("pets", data(0), classes=NAMES)


def test_a_data_set_of_pairs_serves_as_well() -> None:
    x, y = data(0)
    first, second = learner(), learner()
    first.fit("a", (x, y))
    second.fit("a", torch.utils.data.TensorDataset(x, y))  # type: ignore[arg-type]
    assert torch.equal(first.predict(x, "a").distribution, second.predict(x, "a").distribution)


def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    mine = learner()
    x, y = data(0)
    with pytest.raises(InputError, match="the network expects"):
        mine.fit("a", (x[:, :1], y))
    with pytest.raises(InputError, match="no samples"):
        mine.fit("a", [])
    with pytest.raises(InputError, match="no consolidated task"):
        mine.predict(x)
    mine.fit("a", (x, y))
    with pytest.raises(InputError, match="there is a task 'a' already"):
        mine.fit("a", (x, y))
    before = mine.predict(x, "a").distribution
    mine.training = TrainingSettings(epochs=2, lr=1e30)
    with pytest.raises(TrainingError):
        mine.fit("b", (x, y))
    assert mine.tasks == ("a",)
    assert torch.equal(mine.predict(x, "a").distribution, before)
    mine.save(tmp_path / "learner")
    with pytest.raises(CheckpointError, match="saved with another backbone"):
        Learner.load(tmp_path / "learner", nn.Sequential(nn.Flatten(), nn.Linear(72, 10)))
    wider = NETS["conv-bn"].build()
    wider[9] = nn.Linear(48, 21)  # type: ignore[index]
    wider[10] = nn.BatchNorm1d(21)  # type: ignore[index]
    with pytest.raises(CheckpointError, match="saved with another backbone"):
        Learner.load(tmp_path / "learner", wider)
