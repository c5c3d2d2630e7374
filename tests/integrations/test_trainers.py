"""Callbacks for trainers of other packages: what they learn is what a loop by hand learns, and no task is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hatrack.integrations.task_module import TaskModule
from support.three_tasks import (
    BATCH,
    EPOCHS,
    RATE,
    TASKS,
    Net,
    X,
    Y,
    answers,
    assert_differ,
    assert_same,
    by_hand,
    fresh,
    loader,
)

# What these packages warn of is not about this one.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
kinds = pytest.mark.parametrize("kind", ["units", "weights"])

Learn = Callable[..., dict[str, float]]
"""Learns a task: ``(net, task, folder, strength=..., together=..., tests=...)``, and returns the scores."""


def sgd(net: Net, task: str) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.task_parameters(task), lr=RATE)


# ------------------------------------------------------------------------------------------------------- the trainers


def lightning_module(net: Net, task: str, make: Callable[[Net, str], Any] = sgd) -> Any:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0], task), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("loss", F.cross_entropy(self.net(batch[0], task), batch[1]))

        def configure_optimizers(self) -> Any:
            return make(self.net, task)

    return Module()


def lightning_trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    lightning = pytest.importorskip("lightning")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = any(hasattr(each, "best_model_path") for each in callbacks)
    defaults = {"accelerator": "cpu", "max_epochs": EPOCHS, "enable_checkpointing": checkpoints, **quiet}
    return lightning.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings})


def learn_by_lightning(net: Net, task: str, folder: Path, together: int = 1, **settings: Any) -> dict[str, float]:
    pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    callback = LightningTask(net, task, 2, **settings)
    trainer = lightning_trainer(folder, callback, accumulate_grad_batches=together)
    trainer.fit(lightning_module(net, task), loader(task))
    return callback.training.scores


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, task: str) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": X[index], "labels": Y[self.task][index]}


def trainer_of_transformers(net: Net, task: str, folder: Path, callback: Any, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    from hatrack.integrations.transformers import MaskedTrainer, ModelOfTask

    class InOrder(MaskedTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": torch.initial_seed(),  # Trainer sets it, and the task is added afterwards
    }
    arguments = transformers.TrainingArguments(**{**defaults, **settings})
    return InOrder(
        ModelOfTask(net, task, input_name="x"),
        arguments,
        train_dataset=Samples(task),
        eval_dataset=Samples(task),
        callbacks=[callback],
    )


def learn_by_transformers(net: Net, task: str, folder: Path, together: int = 1, **settings: Any) -> dict[str, float]:
    pytest.importorskip("transformers")
    from hatrack.integrations.transformers import TransformersTask

    callback = TransformersTask(net, task, 2, **settings)
    trainer_of_transformers(net, task, folder, callback, gradient_accumulation_steps=together).train()
    return callback.training.scores


def learn_by_accelerate(
    net: Net, task: str, folder: Path, together: int = 1, before: bool = True, **settings: Any
) -> dict[str, float]:
    accelerate = pytest.importorskip("accelerate")
    from hatrack.integrations.accelerate import AcceleratedTask

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=together)
    learning = AcceleratedTask(accelerator, net, task, 2, **settings)
    optimizer = sgd(net, task)
    if before:
        learning.protect(optimizer)
    model, optimizer, batches = accelerator.prepare(TaskModule(net, task), optimizer, loader(task))
    if not before:
        learning.protect(optimizer)
    model.train()
    for _ in range(EPOCHS):
        for x, y in learning.batches(batches):
            with accelerator.accumulate(model):
                learning.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    learning.consolidate()
    return learning.training.scores


def learn_by_accelerate_protected_late(net: Net, task: str, folder: Path, **settings: Any) -> dict[str, float]:
    return learn_by_accelerate(net, task, folder, before=False, **settings)


def skorch_net(net: Net, task: str, *callbacks: Any, **settings: Any) -> Any:
    skorch = pytest.importorskip("skorch")
    defaults = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.SGD,
        "lr": RATE,
        "max_epochs": EPOCHS,
        "batch_size": BATCH,
        "train_split": None,
        "verbose": 0,
    }
    return skorch.NeuralNetClassifier(TaskModule(net, task), callbacks=list(callbacks), **{**defaults, **settings})


def learn_by_skorch(net: Net, task: str, folder: Path, **settings: Any) -> dict[str, float]:
    pytest.importorskip("skorch")
    from hatrack.integrations.skorch import SkorchTask

    callback = SkorchTask(net, task, 2, **settings)
    skorch_net(net, task, callback).fit(X.numpy(), Y[task].numpy())
    return callback.training.scores


TRAINERS: dict[str, Learn] = {
    "lightning": learn_by_lightning,
    "transformers": learn_by_transformers,
    "accelerate": learn_by_accelerate,
    "accelerate, protected after prepare": learn_by_accelerate_protected_late,
    "skorch": learn_by_skorch,
}
trainers = pytest.mark.parametrize("trainer", TRAINERS)

# ---------------------------------------------------------------------------------------------------------- what holds


@kinds
@trainers
def test_three_tasks_are_learned_as_by_hand_and_keep_their_bits(trainer: str, kind: str, tmp_path: Path) -> None:
    net, other, promised = fresh(kind), fresh(kind), {}
    for number, task in enumerate(TASKS):
        torch.manual_seed(number)
        tests = {known: loader(known) for known in TASKS[: number + 1]}
        scores = TRAINERS[trainer](net, task, tmp_path, tests=tests)
        torch.manual_seed(number)
        by_hand(other, task)
        assert_same(net, other)
        promised[task] = answers(net, task)
        for known, before in promised.items():
            assert torch.equal(answers(net, known), before)
            correct = (before.argmax(1) == Y[known]).double().mean()
            assert scores[known] == pytest.approx(float(correct))
        net.check()
    assert net.task_in_training is None


@trainers
def test_the_cost_of_the_mask_counts(trainer: str, tmp_path: Path) -> None:
    """Without it the comparison by hand would not notice that it is missing."""
    net, other = fresh("units"), fresh("units")
    torch.manual_seed(5)
    TRAINERS[trainer](net, "a", tmp_path, strength=0.0)
    torch.manual_seed(5)
    by_hand(other, "a")
    assert_differ(net, other)
    again = fresh("units")
    torch.manual_seed(5)
    by_hand(again, "a", strength=0.0)
    assert_same(net, again)


@pytest.mark.parametrize("trainer", ["lightning", "transformers", "accelerate"])
def test_steps_that_add_up_batches_have_one_scale_and_one_cost(trainer: str, tmp_path: Path) -> None:
    """Four batches of eight and one of four, two by two: the last step is a batch alone."""
    net, other = fresh("units"), fresh("units")
    torch.manual_seed(5)
    TRAINERS[trainer](net, "a", tmp_path, together=2, strength=3.0)
    torch.manual_seed(5)
    by_hand(other, "a", strength=3.0, together=2, mean=trainer == "transformers")
    assert_same(net, other)
