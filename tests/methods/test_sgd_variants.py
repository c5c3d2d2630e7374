from __future__ import annotations

import torch

from support.toys import IMAGES, TASKS, learn, logits, make


def test_frozen_keeps_everything_but_new_heads() -> None:
    method = make("sgd-frozen", "norm")
    learn(method, IMAGES[:1], epochs=2)
    kept = {name: value.clone() for name, value in method.network.state_dict().items()}
    promised = logits(method, IMAGES[0])
    learn(method, IMAGES, first=1, epochs=2)
    now = method.network.state_dict()
    assert all(torch.equal(now[name], value) for name, value in kept.items())
    assert torch.equal(logits(method, IMAGES[0]), promised)


def test_restart_begins_with_the_initial_backbone_and_keeps_heads() -> None:
    method = make("sgd-restart", "shallow")
    initial = {name: value.clone() for name, value in method.network.backbone.state_dict().items()}
    learn(method, TASKS[:1], epochs=2)
    head = method.network.head("first").weight.detach().clone()
    method.begin_task(TASKS[1])
    assert all(torch.equal(value, initial[name]) for name, value in method.network.backbone.state_dict().items())
    assert torch.equal(method.network.head("first").weight, head)
    assert method.network.task_names == ["first", "second"]
