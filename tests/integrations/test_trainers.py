"""Callbacks for trainers of other packages: what they learn is what a loop by hand learns, and no task is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hatrack.integrations.task_module import TaskModule
from torch import nn
from torch.nn import functional as F

from hatrack.errors import InputError, UnsupportedError
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
    assert_same_bits,
    by_hand,
    fresh,
    loader,
    with_first_task,
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


# ----------------------------------------------------------------------------------------------- checkpoints and resume


class Stop(Exception):  # noqa: N818
    """Raised in the middle of a training."""


@kinds
def test_lightning_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    class Stopping(lightning.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 1:
                raise Stop

    straight, stopped, resumed = (with_first_task(kind) for _ in range(3))
    promised = answers(straight, "a")
    torch.manual_seed(3)
    learn_by_lightning(straight, "b", tmp_path)
    torch.manual_seed(3)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="kept")
    with pytest.raises(Stop):
        lightning_trainer(tmp_path, LightningTask(stopped, "b", 2), keep, Stopping()).fit(
            lightning_module(stopped, "b"), loader("b")
        )
    assert stopped.task_in_training == "b"
    assert torch.equal(answers(stopped, "a"), promised)
    torch.manual_seed(4)
    lightning_trainer(tmp_path, LightningTask(resumed, "b", 2)).fit(
        lightning_module(resumed, "b"), loader("b"), ckpt_path=tmp_path / "kept.ckpt"
    )
    assert_same_bits(resumed, straight)
    assert torch.equal(answers(resumed, "a"), promised)
    other = with_first_task(kind)
    with pytest.raises(InputError, match="of the training of task 'b', not 'c'"):
        lightning_trainer(tmp_path, LightningTask(other, "c", 2)).fit(
            lightning_module(other, "c"), loader("c"), ckpt_path=tmp_path / "kept.ckpt"
        )


def test_lightning_consolidates_the_best_weights_if_asked_to(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    net, other = with_first_task("units"), with_first_task("units")
    torch.manual_seed(3)
    best = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor="loss", mode="max", filename="{epoch}")
    trainer = lightning_trainer(tmp_path, LightningTask(net, "b", 2, restore_best=True), best, num_sanity_val_steps=0)
    trainer.fit(lightning_module(net, "b"), loader("b"), loader("b"))
    assert Path(best.best_model_path).name == "epoch=0.ckpt"
    torch.manual_seed(3)
    by_hand(other, "b", epochs=1)
    assert_same(net, other)
    with pytest.raises(InputError, match="needs a ModelCheckpoint with monitor"):
        lightning_trainer(tmp_path, LightningTask(net, "c", 2, restore_best=True)).fit(
            lightning_module(net, "c"), loader("c")
        )
    assert net.task_names == ("a", "b")


@kinds
def test_transformers_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from hatrack.integrations.transformers import TransformersTask

    class Stopping(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise Stop

    straight, stopped, resumed = (with_first_task(kind) for _ in range(3))
    promised = answers(straight, "a")
    torch.manual_seed(3)
    learn_by_transformers(straight, "b", tmp_path)
    torch.manual_seed(3)
    trainer = trainer_of_transformers(stopped, "b", tmp_path, TransformersTask(stopped, "b", 2), save_strategy="epoch")
    trainer.add_callback(Stopping())
    with pytest.raises(Stop):
        trainer.train()
    assert stopped.task_in_training == "b"
    trainer = trainer_of_transformers(resumed, "b", tmp_path, TransformersTask(resumed, "b", 2), seed=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same_bits(resumed, straight)
    assert torch.equal(answers(resumed, "a"), promised)


def test_transformers_consolidates_the_best_weights(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hatrack.integrations.transformers import TransformersTask

    net, other = with_first_task("units"), with_first_task("units")
    torch.manual_seed(3)
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    best = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of_transformers(net, "b", tmp_path, TransformersTask(net, "b", 2), **settings, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-5")
    torch.manual_seed(3)
    by_hand(other, "b", epochs=1)
    assert_same(net, other)


@kinds
def test_skorch_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    skorch = pytest.importorskip("skorch")
    from hatrack.integrations.skorch import SkorchTask

    class Stopping(skorch.callbacks.Callback):  # type: ignore[misc,name-defined]
        def on_epoch_begin(self, net: Any, **_: Any) -> None:
            if len(net.history) == 2:
                raise Stop

    straight, stopped, resumed = (with_first_task(kind) for _ in range(3))
    promised = answers(straight, "a")
    torch.manual_seed(3)
    learn_by_skorch(straight, "b", tmp_path)
    torch.manual_seed(3)
    kept = skorch.callbacks.Checkpoint(monitor=None, f_pickle=None, dirname=str(tmp_path))
    with pytest.raises(Stop):
        skorch_net(stopped, "b", kept, Stopping(), SkorchTask(stopped, "b", 2)).fit(X.numpy(), Y["b"].numpy())
    assert stopped.task_in_training == "b"
    torch.manual_seed(4)
    load = skorch.callbacks.LoadInitState(skorch.callbacks.Checkpoint(f_pickle=None, dirname=str(tmp_path)))
    again = skorch_net(resumed, "b", load, SkorchTask(resumed, "b", 2), max_epochs=EPOCHS - 1)
    again.fit(X.numpy(), Y["b"].numpy())
    assert_same_bits(resumed, straight)
    assert torch.equal(answers(resumed, "a"), promised)


def test_skorch_consolidates_the_best_weights(tmp_path: Path) -> None:
    skorch = pytest.importorskip("skorch")
    from hatrack.integrations.skorch import SkorchTask

    def first_epoch(net: Any) -> bool:
        return len(net.history) == 1

    def best() -> Any:
        return skorch.callbacks.Checkpoint(monitor=first_epoch, f_pickle=None, dirname=str(tmp_path), load_best=True)

    net, other = with_first_task("units"), with_first_task("units")
    torch.manual_seed(3)
    skorch_net(net, "b", best(), SkorchTask(net, "b", 2)).fit(X.numpy(), Y["b"].numpy())
    torch.manual_seed(3)
    by_hand(other, "b", epochs=1)
    assert_same(net, other)
    with pytest.raises(InputError, match="put it last"):
        skorch_net(net, "c", SkorchTask(net, "c", 2), best()).fit(X.numpy(), Y["c"].numpy())


@kinds
def test_accelerate_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    from hatrack.integrations.accelerate import AcceleratedTask

    def prepared(net: Net) -> Any:
        accelerator = accelerate.Accelerator(cpu=True)
        learning = AcceleratedTask(accelerator, net, "b", 2)
        return accelerator, learning, *accelerator.prepare(TaskModule(net, "b"), learning.protect(sgd(net, "b")))

    def train(epochs: int, accelerator: Any, learning: Any, model: Any, optimizer: Any) -> None:
        model.train()
        for _ in range(epochs):
            for x, y in learning.batches(loader("b")):
                optimizer.zero_grad()
                learning.backward(F.cross_entropy(model(x), y))
                optimizer.step()

    straight, stopped, resumed = (with_first_task(kind) for _ in range(3))
    promised = answers(straight, "a")
    torch.manual_seed(3)
    learn_by_accelerate(straight, "b", tmp_path)
    torch.manual_seed(3)
    parts = prepared(stopped)
    train(1, *parts)
    parts[0].save_state(str(tmp_path / "state"))
    torch.manual_seed(4)
    parts = prepared(resumed)
    parts[0].load_state(str(tmp_path / "state"))
    train(EPOCHS - 1, *parts)
    parts[1].consolidate()
    assert_same_bits(resumed, straight)
    assert torch.equal(answers(resumed, "a"), promised)


# ------------------------------------------------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_lightning_in_mixed_precision_keeps_the_bits(precision: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    net, other = with_first_task("units"), with_first_task("units")
    torch.manual_seed(3)
    promised = answers(net, "a")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if precision == "16-mixed" else None
    plugin = lightning.pytorch.plugins.MixedPrecision(precision, "cpu", scaler)
    lightning_trainer(tmp_path, LightningTask(net, "b", 2), plugins=[plugin]).fit(
        lightning_module(net, "b"), loader("b")
    )
    assert torch.equal(answers(net, "a"), promised)
    torch.manual_seed(3)
    by_hand(other, "b")
    mine, theirs = (each.tasks[1].head.weight for each in (net, other))
    torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)  # and not 1024 times the mask's cost, or none of it
    masks, others = net.masks("b"), other.masks("b")
    assert sum(int((masks[name] != others[name]).sum()) for name in masks) <= 4


@pytest.mark.parametrize("before", [True, False])
def test_accelerate_with_a_scaler_keeps_the_bits_and_learns_as_by_hand(before: bool) -> None:
    """Do what ``mixed_precision="fp16"`` does to optimizers and losses, which needs a GPU for all the rest of it."""
    accelerate = pytest.importorskip("accelerate")
    from hatrack.integrations.accelerate import AcceleratedTask

    net, other = with_first_task("units"), with_first_task("units")
    promised = answers(net, "a")
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.manual_seed(3)
    learning = AcceleratedTask(accelerator, net, "b", 2)
    optimizer = sgd(net, "b")
    if before:
        learning.protect(optimizer)
    model, prepared = accelerator.prepare(TaskModule(net, "b"), optimizer)
    assert prepared.scaler is accelerator.scaler
    if not before:
        learning.protect(prepared)
    model.train()
    for _ in range(EPOCHS):
        for x, y in learning.batches(loader("b")):
            prepared.zero_grad()
            learning.backward(F.cross_entropy(model(x), y))
            prepared.step()
    assert torch.equal(answers(net, "a"), promised)
    learning.consolidate()
    assert torch.equal(answers(net, "a"), promised)
    torch.manual_seed(3)
    by_hand(other, "b")
    assert_same(net, other)


def test_transformers_in_mixed_precision_keeps_the_bits(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hatrack.integrations.transformers import TransformersTask

    net = with_first_task("units")
    promised = answers(net, "a")
    trainer_of_transformers(net, "b", tmp_path, TransformersTask(net, "b", 2), bf16=True).train()
    assert torch.equal(answers(net, "a"), promised)
    assert torch.equal(net.eval()(X, "a"), promised)


def test_accelerate_in_mixed_precision_keeps_the_bits_of_a_network_in_a_module() -> None:
    accelerate = pytest.importorskip("accelerate")
    from hatrack.integrations.accelerate import AcceleratedTask

    net = with_first_task("units")
    promised = answers(net, "a")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    learning = AcceleratedTask(accelerator, net, "b", 2)
    model, optimizer = accelerator.prepare(TaskModule(net, "b"), learning.protect(sgd(net, "b")))
    model.train()
    for x, y in learning.batches(loader("b")):
        optimizer.zero_grad()
        learning.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    learning.consolidate()
    assert torch.equal(net.eval()(X, "a"), promised)
    third = AcceleratedTask(accelerator, net, "c", 2)
    accelerator.prepare(net, third.protect(sgd(net, "c")))
    with pytest.raises(UnsupportedError, match=r"hand over TaskModule\(net, task\)"):
        next(third.batches(loader("c")))
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "error", "what"),
    [
        ({"strategy": "ddp", "devices": 2}, UnsupportedError, "DDPStrategy is not supported"),
        ({"precision": "bf16-true"}, UnsupportedError, "converts weights that old tasks rely on"),
        ({"precision": "64-true"}, UnsupportedError, "converts weights that old tasks rely on"),
        ({"fast_dev_run": True}, InputError, "fast_dev_run would consolidate"),
    ],
)
def test_lightning_refuses_trainers(settings: Any, error: type[Exception], what: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    net = fresh("units")
    trainer = lightning_trainer(tmp_path, **settings)
    with pytest.raises(error, match=what):
        LightningTask(net, "a", 2).setup(trainer, lightning_module(net, "a"), "fit")
    assert net.task_names == ()


def made_before(net: Net, task: str) -> Any:
    return torch.optim.SGD(net.backbone.parameters(), lr=RATE)


def test_lightning_refuses_what_would_not_learn_the_task(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    net, other = fresh("units"), fresh("units")

    def fit(callback: Any, module: Any, batches: Any) -> None:
        lightning_trainer(tmp_path, callback).fit(module, batches)

    with pytest.raises(InputError, match="does not hold this network"):
        fit(LightningTask(other, "a", 2), lightning_module(net, "a"), loader("a"))
    with pytest.raises(InputError, match=r"does not have tasks\.0\..*made before task 'a' was added"):
        fit(LightningTask(net, "a", 2), lightning_module(net, "a", made_before), loader("a"))
    endless = torch.utils.data.DataLoader(Endless(), batch_size=BATCH)
    with pytest.raises(InputError, match="limit_train_batches or max_steps"):
        fit(LightningTask(other, "a", 2), lightning_module(other, "a"), endless)
    replicated = lightning_module(net, "a")
    replicated.net = nn.DataParallel(net)
    with pytest.raises(UnsupportedError, match="replicas that share gates and masks"):
        fit(LightningTask(net, "a", 2), replicated, loader("a"))


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield from zip(X, Y["a"], strict=True)


def test_lightning_anneals_over_the_steps_of_a_stream_without_a_length(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from hatrack.integrations.lightning import LightningTask

    net, seen = fresh("units"), []
    net.masking.anneal = seen.append  # type: ignore[method-assign]
    trainer = lightning_trainer(tmp_path, LightningTask(net, "a", 2), max_epochs=-1, max_steps=5)
    trainer.fit(lightning_module(net, "a"), torch.utils.data.DataLoader(Endless(), batch_size=BATCH))
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_transformers_refuses_what_cannot_hold(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from hatrack.integrations.transformers import MaskedTrainer, ModelOfTask, TransformersTask

    net = fresh("units")

    def arguments(**settings: Any) -> Any:
        return transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, **settings)

    def make(given: Any, kind: Any = MaskedTrainer, **settings: Any) -> Any:
        model = ModelOfTask(net, "a", input_name="x")
        return kind(model, given, train_dataset=Samples("a"), callbacks=[TransformersTask(net, "a", 2)], **settings)

    several = arguments()
    several._n_gpu = 2
    with pytest.raises(UnsupportedError, match=r"torch\.nn\.DataParallel on 2 devices"):
        make(several)
    with pytest.raises(UnsupportedError, match="bf16_full_eval"):
        make(arguments(bf16_full_eval=True))
    assert net.task_names == ()
    early = torch.optim.SGD(net.backbone.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.ConstantLR(early, factor=1.0)
    with pytest.raises(InputError, match="made before task 'a' was added"):
        make(arguments(), optimizers=(early, schedule)).train()
    with pytest.raises(InputError, match="use MaskedTrainer"):
        make(arguments(), transformers.Trainer).train()
    with pytest.raises(InputError, match="takes 'x' alone"):
        ModelOfTask(net, "a", input_name="x")(x=X, attention_mask=X)


def test_accelerate_refuses_optimizers_that_are_not_protected() -> None:
    accelerate = pytest.importorskip("accelerate")
    from hatrack.integrations.accelerate import AcceleratedTask

    net = fresh("units")
    early = torch.optim.SGD(net.backbone.parameters(), lr=RATE)
    learning = AcceleratedTask(accelerate.Accelerator(cpu=True), net, "a", 2)
    with pytest.raises(InputError, match="protect the optimizer before training"):
        next(learning.batches(loader("a")))
    with pytest.raises(InputError, match="made before task 'a' was added"):
        learning.protect(early)


def test_skorch_leaves_an_interrupted_task_open_and_refuses_copies(tmp_path: Path) -> None:
    skorch = pytest.importorskip("skorch")
    from hatrack.integrations.skorch import SkorchTask
    from sklearn.base import clone

    class Interrupting(skorch.callbacks.Callback):  # type: ignore[misc,name-defined]
        def on_batch_begin(self, net: Any, **_: Any) -> None:
            if len(net.history) == 2:
                raise KeyboardInterrupt

    net = fresh("units")
    training = skorch_net(net, "a", Interrupting(), SkorchTask(net, "a", 2))
    with pytest.warns(UserWarning, match="task 'a' stays in training"):
        training.fit(X.numpy(), Y["a"].numpy())
    assert net.task_in_training == "a"
    copied = clone(skorch_net(net, "a", SkorchTask(net, "a", 2)))
    with pytest.raises(InputError, match="does not hold this network"):
        copied.fit(X.numpy(), Y["a"].numpy())
    early = skorch.callbacks.EarlyStopping("train_loss", patience=1, threshold=1.0)
    skorch_net(net, "a", early, SkorchTask(net, "a", 2)).fit(X.numpy(), Y["a"].numpy())
    assert net.task_in_training is None  # stopped early, which is an end
