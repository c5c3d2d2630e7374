"""Models of transformers as they are: batches of a tokenizer go in, a part of the output is picked, the law holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack import HATNetwork, WeightMaskedNetwork
from hatrack.train import TrainingSettings
from support.helpers import mode

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 50, 9


def bert() -> nn.Module:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    return transformers.BertModel(transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, **size))


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(vocab_size=WORDS, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    return transformers.DistilBertModel(config)


def roberta() -> nn.Module:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    return transformers.RobertaModel(transformers.RobertaConfig(vocab_size=WORDS, max_position_embeddings=20, **size))


def sentences(samples: int, seed: int, padded: bool = True) -> Any:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (samples, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (samples, 1), generator=generator) if padded else torch.tensor([[LENGTH]])
    mask = (torch.arange(LENGTH) < lengths).long().expand(samples, LENGTH)
    return transformers.BatchEncoding({"input_ids": ids * mask + (1 - mask), "attention_mask": mask})


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "bert": (bert, "pooler_output"),
    "bert by a function": (bert, lambda output: output.last_hidden_state[:, 0]),
    "distilbert": (distilbert, 0),
    "roberta": (roberta, "last_hidden_state"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_old_tasks_of_a_text_model_answer_as_before(kind: Any, name: str, tmp_path: Path) -> None:
    build, features = MODELS[name]
    torch.manual_seed(0)
    net = kind(build(), sentences(2, 0), features=features)

    def learn(task: str, seed: int) -> Any:
        net.add_task(task, 3)
        optimizer = net.protect(torch.optim.AdamW(net.task_parameters(task), lr=1e-2, weight_decay=0.1))
        for step in range(3):
            net.anneal(step / 2)
            logits = net(sentences(6, seed + step), task)
            target = torch.randint(3, logits.shape[:-1], generator=torch.Generator().manual_seed(step))
            loss = F.cross_entropy(logits.flatten(0, -2), target.flatten()) + 0.1 * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.consolidate(task)
        return sentences(5, seed, padded=True), sentences(5, seed, padded=False)

    batches = learn("first", 10)
    with torch.no_grad(), mode(net, False):
        before = [net(batch, "first") for batch in batches]
        changed = copy.deepcopy(batches[0])
        changed["input_ids"] = torch.where(changed["attention_mask"] == 1, changed["input_ids"], 2)
        if name == "bert":
            assert torch.equal(net(changed, "first"), before[0]), "padding is not read"
    learn("second", 20)
    net.save(tmp_path / "net.hat")
    again = {"features": features} if callable(features) else {}
    for each in (net, hatrack.load(tmp_path / "net.hat", build(), **again)):
        with torch.no_grad(), mode(each, False):
            assert all(torch.equal(each(batch, "first"), said) for batch, said in zip(batches, before, strict=True))
    small = net.extract("first", batches[0])
    assert torch.allclose(small(batches[0]), before[0], rtol=1e-4, atol=1e-5)


def test_a_learner_takes_what_a_tokenizer_gives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = TrainingSettings(epochs=1, batch_size=6)
    learner = hatrack.Learner(bert(), sentences(2, 0), features="pooler_output", training=training, validation=0.0)
    x, y = sentences(12, 1), torch.arange(12) % 2
    learner.fit("a", (x, y.numpy()))
    before = learner.predict(x, "a").distribution
    rows = [({key: value[row] for key, value in x.items()}, int(y[row])) for row in range(12)]
    data_set = torch.utils.data.DataLoader(rows, batch_size=4)  # whose batches are mappings, too
    learner.fit("b", data_set)
    learner.save(tmp_path / "learner")
    again = hatrack.Learner.load(tmp_path / "learner", bert(), training=training, validation=0.0)
    for of in (learner, again):
        assert torch.equal(of.predict(x, "a").distribution[:, :2], before)
        assert of.predict({key: value.tolist() for key, value in x.items()}).tasks
    with pytest.raises(hatrack.InputError, match="lists have different lengths; pad them"):
        learner.predict({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]]}, "a")


def test_a_resized_table_of_embeddings_is_refused_and_can_be_cut_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = HATNetwork(bert(), sentences(2, 0), features="pooler_output")
    net.add_task("a", 2)
    net.consolidate("a")
    x = sentences(3, 1)
    before = net.eval()(x, "a")
    net.backbone.resize_token_embeddings(WORDS + 7, mean_resizing=False)
    doors: tuple[Callable[[], Any], ...] = (
        *(lambda: net(x, "a"), net.check, net.restore, lambda: net.save(tmp_path / "net.hat")),
        *(lambda: net.add_task("b", 2), lambda: net.extract("a")),
    )
    for door in doors:
        with pytest.raises(hatrack.GuaranteeError, match=r"embeddings\.word_embeddings"):
            door()
    table = net.backbone.get_parameter("embeddings.word_embeddings.weight")
    table.data = table.data[:WORDS]
    net.backbone.embeddings.word_embeddings.num_embeddings = WORDS
    assert torch.equal(net(x, "a"), before)
