"""Settings of the training that a method has of its own: norms that gradients are clipped to, and optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatrack.experiments import EXPERIMENTS
from hatrack.methods import METHODS, Method
from hatrack.methods.proximal import Penalty
from hatrack.train import OptimizerKind, TrainingSettings, fit
from support.toys import TASKS, learn, make

NORMS = {"ewc": 100.0, "lwf": 100.0, "lfl": 200.0, "imm-mode": 1000.0, "pathnet": 1000.0}
"""Those of the HAT authors' code; all others have 10000 there."""


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_clipped_as_in_the_hat_authors_code(name: str) -> None:
    for experiment in ("split-cifar10", "mixture"):
        assert EXPERIMENTS[experiment].config(name).training.clip_norm == NORMS.get(name, 10000.0)
    assert EXPERIMENTS["demo"].config(name).overridden({"clip_norm": 5}).training.clip_norm == 5.0


@pytest.mark.parametrize("name", ["si", "pmask", "wsn"])
def test_methods_whose_settings_go_with_adam_train_with_it(name: str) -> None:
    for experiment in ("demo", "split-mnist", "permuted-mnist"):
        training = EXPERIMENTS[experiment].config(name).training
        assert (training.optimizer, training.lr) == (OptimizerKind.ADAM, 0.001)


def gradients_of_steps(
    method: Method, clip_norm: float, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor]]:
    """Learn a second task; for every step the gradient that the optimizer got, and that of the task's loss alone."""
    seen: list[tuple[Tensor, Tensor]] = []
    last: list[Tensor] = []
    loss_of, before_step = method.loss, method.before_step
    parameters = method.trained_parameters

    def loss(batch: Any) -> Any:
        if torch.is_grad_enabled():
            plain = nn.functional.cross_entropy(method.network(batch.x, batch.tasks[0]), batch.y)
            last[:] = torch.autograd.grad(plain, parameters(), materialize_grads=True)
        return loss_of(batch)

    def before() -> None:
        got = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters()]
        seen.append(tuple(torch.cat([part.flatten() for part in each]) for each in (got, last)))
        before_step()

    monkeypatch.setattr(method, "loss", loss)
    monkeypatch.setattr(method, "before_step", before)
    method.begin_task(TASKS[1])
    for _ in fit(method, TASKS[:2], TrainingSettings(epochs=1, batch_size=16, lr=0.2, clip_norm=clip_norm)):
        pass
    return seen


@pytest.mark.parametrize("name", ["l2", "ewc", "si", "mas", "imm-mean", "imm-mode"])
def test_a_penalty_takes_no_part_in_clipping_unless_it_is_explicit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {}
    for penalty in Penalty:
        method = make(name, "shallow", strength=1000.0 if name == "ewc" else 100.0, penalty=penalty)
        learn(method, TASKS[:1], epochs=2)
        steps = gradients_of_steps(method, 0.3, monkeypatch)
        assert max(float(got.norm()) for got, _ in steps) <= 0.3 * (1 + 1e-5)
        clipped = [task * min(1.0, 0.3 / float(task.norm())) for _, task in steps]
        shares[penalty] = max(float((got - task).norm()) for (got, _), task in zip(steps, clipped, strict=True))
    assert shares[Penalty.PROXIMAL] < 1e-5
    assert shares[Penalty.EXPLICIT] > 1e-2
