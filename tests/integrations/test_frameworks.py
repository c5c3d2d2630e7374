"""Programs that train, save and load whole models, around a network of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from support.old_task import KINDS, Whole, X, Y, assert_learned, loss_of, says, with_old_task

# What these packages warn of is not about this one.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_lightning_trains_keeps_and_resumes(kind: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return loss_of(self.net, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.net.protect(torch.optim.AdamW(self.net.task_parameters("new"), lr=0.05))

    def fit(net: nn.Module, epochs: int, start: str | None = None) -> Any:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Module(net), DataLoader(TensorDataset(X, Y), batch_size=8), ckpt_path=start)
        return trainer

    net = with_old_task(kind)
    promised, before = says(net), net.tasks[1].head.weight.detach().clone()
    fit(net, 2).save_checkpoint(tmp_path / "half.ckpt")
    assert torch.equal(says(net), promised)

    again = with_old_task(kind, seed=3)
    assert not torch.equal(says(again), promised)
    fit(again, 4, str(tmp_path / "half.ckpt"))
    fit(net, 2)
    for each in (net, again):
        assert_learned(each, before, each.tasks[1].head.weight.detach().clone(), promised)


class Samples(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": X[index], "labels": Y[index]}


@kinds
def test_the_trainer_of_transformers_trains_keeps_and_resumes(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def trainer(net: Any, epochs: int) -> Any:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            save_strategy="epoch",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        optimizer = net.protect(torch.optim.AdamW(net.task_parameters("new"), lr=0.05))
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return transformers.Trainer(Whole(net), arguments, train_dataset=Samples(), optimizers=(optimizer, schedule))

    net = with_old_task(kind)
    promised, before = says(net), net.tasks[1].head.weight.detach().clone()
    trainer(net, 2).train()
    kept = tmp_path / "checkpoint-4"
    assert (kept / "model.safetensors").is_file()
    assert torch.equal(says(net), promised)

    again = with_old_task(kind, seed=3)
    trainer(again, 4).train(resume_from_checkpoint=str(kept))
    for each in (net, again):
        assert_learned(each, before, each.tasks[1].head.weight.detach().clone(), promised)


@kinds
@pytest.mark.parametrize("safe", [True, False])
def test_accelerate_keeps_and_gives_back_a_state(kind: str, safe: bool, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def prepared(net: Any) -> tuple[Any, nn.Module, Any]:
        accelerator = accelerate.Accelerator(cpu=True)
        optimizer = net.protect(torch.optim.AdamW(net.task_parameters("new"), lr=0.05))
        return (accelerator, *accelerator.prepare(Whole(net), optimizer))

    def train(accelerator: Any, whole: nn.Module, optimizer: Any) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            accelerator.backward(whole(X, Y)["loss"])
            optimizer.step()

    net = with_old_task(kind)
    promised, before = says(net), net.tasks[1].head.weight.detach().clone()
    first = prepared(net)
    train(*first)
    first[0].save_state(str(tmp_path / "state"), safe_serialization=safe)
    again = with_old_task(kind, seed=3)
    second = prepared(again)
    second[0].load_state(str(tmp_path / "state"))
    assert torch.equal(says(again), promised)
    assert torch.equal(again.tasks[1].head.weight, net.tasks[1].head.weight)
    train(*second)
    for each in (net, again):
        assert_learned(each, before, each.tasks[1].head.weight.detach().clone(), promised)


@kinds
def test_an_average_with_buffers_keeps_the_old_task(kind: str) -> None:
    net = with_old_task(kind)
    promised, before = says(net), net.tasks[1].head.weight.detach().clone()
    whole = Whole(net)
    average = AveragedModel(whole, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters("new"), lr=0.05))
    for _ in range(5):
        optimizer.zero_grad()
        whole(X, Y)["loss"].backward()
        optimizer.step()
        average.update_parameters(whole)
    for each in (net, average.module.net):
        assert_learned(each, before, each.tasks[1].head.weight.detach().clone(), promised)
