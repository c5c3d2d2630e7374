"""Adapters of peft around a transformer that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, WeightMaskedNetwork
from support.helpers import progress

# What these packages warn of is not about this one.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

CLASSES = 3
KINDS = {"hat": HATNetwork, "weights": WeightMaskedNetwork}


class Features(nn.Module):
    """The last token of what an adapted encoder gives."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, -1]
        return hidden


def adapted(kind: str, seed: int = 0) -> Features:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32
    )
    settings: dict[str, Any] = {
        "lora": lambda: peft.LoraConfig(r=6, target_modules=["query", "value", "intermediate.dense"], lora_dropout=0.1),
        "lora with biases": lambda: peft.LoraConfig(r=6, target_modules=["query", "value"], bias="all"),
        "ia3": lambda: peft.IA3Config(
            target_modules=["key", "value", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
        ),
    }
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    return Features(peft.get_peft_model(encoder, settings[kind]()))


def sentences(samples: int, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(60, (samples, 7), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def learn(net: HATNetwork | WeightMaskedNetwork, task: str, seed: int) -> None:
    x, y = sentences(12, seed), torch.arange(12) % CLASSES
    net.add_task(task, CLASSES, generator=torch.Generator().manual_seed(seed))
    optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=0.01, weight_decay=0.1))
    net.train()
    for step in range(4):
        net.anneal(progress(3 * step))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, task), y) + 0.1 * net.regularization()).backward()
        optimizer.step()
    net.consolidate(task)


def says(net: nn.Module, x: dict[str, Tensor], task: str) -> Tensor:
    net.eval()
    with torch.no_grad():
        answer: Tensor = net(x, task)
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["lora", "lora with biases", "ia3"])
@pytest.mark.filterwarnings("ignore:the first task freezes all that is trained")
def test_adapted_transformers_keep_the_law(way: str, kind: str, tmp_path: Path) -> None:
    net = KINDS[kind](adapted(way), sentences(2))
    before = {n: p.detach().clone() for n, p in net.backbone.named_parameters() if not p.requires_grad}
    assert len(before) >= 20
    x, promised = sentences(12, 9), {}
    for seed, task in enumerate("abc"):
        learn(net, task, seed)
        promised[task] = says(net, x, task)
        for earlier, kept in promised.items():
            assert torch.equal(says(net, x, earlier), kept)
    assert all(torch.equal(net.backbone.get_parameter(name), value) for name, value in before.items())
    net.check()
    plain = net.extract("b", x)
    assert (plain(x) - promised["b"]).abs().max() <= 1e-5 * promised["b"].abs().max()
    net.save(tmp_path / "net")
    again = hatrack.load(tmp_path / "net", adapted(way, seed=1))
    assert all(torch.equal(says(again, x, task), kept) for task, kept in promised.items())


def test_lora_of_peft_gates_its_own_units_alone() -> None:
    net = HATNetwork(adapted("lora"), sentences(2))
    assert [group.size for group in net.units.groups] == [6] * 6
    assert all(group.name.endswith("lora_A.default") for group in net.units.groups)
    roles = {role.value for name, role in net.units.roles.items() if name.startswith("backbone.")}
    assert roles == {"untrained", "mixing"}


@pytest.mark.filterwarnings("ignore:the first task freezes all that is trained")
def test_scales_of_peft_are_every_tasks_own_under_masks_of_weights() -> None:
    with pytest.warns(UserWarning, match="later tasks learn nothing but their heads"):
        net = HATNetwork(adapted("ia3"), sentences(2))
    assert not net.units.groups
    own = WeightMaskedNetwork(net.detach(), sentences(2))
    learn(own, "a", 0)
    learn(own, "b", 1)
    assert len(own.tasks[0].copies) == 6
    assert not any(map(torch.equal, own.tasks[0].copies, own.tasks[1].copies))


def test_an_untrained_transformer_gives_its_own_features() -> None:
    backbone = adapted("lora").eval()
    backbone.requires_grad_(False)
    x = sentences(4)
    with torch.no_grad():
        expected = backbone(**x)
        net = HATNetwork(backbone, sentences(2)).eval()
        assert torch.equal(net.masking.features_of_random_mask(x, 0), expected)
