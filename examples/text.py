"""Sentences with a padding mask: two tasks of classes and one of numbers on one transformer, and the proof.

python examples/text.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import hatrack

torch.manual_seed(0)
WORDS, LENGTH = 60, 10


class Reader(nn.Module):
    """A transformer as people have it: keyword arguments in, a mapping out."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, 48), nn.Embedding(LENGTH, 48)
        self.encoder = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
        self.out = nn.Linear(48, 64)

    def forward(self, input_ids, attention_mask):
        hidden = self.table(input_ids) + self.places.weight[: input_ids.shape[1]]
        hidden = self.encoder(hidden, src_key_padding_mask=attention_mask == 0)
        hidden = torch.relu(self.out(hidden))
        mask = attention_mask.unsqueeze(-1)
        return {"tokens": hidden, "sentence": (hidden * mask).sum(1) / mask.sum(1)}


def sentences(count, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=generator)
    words = torch.randint(WORDS, (count, LENGTH), generator=generator)
    return {"input_ids": words, "attention_mask": (torch.arange(LENGTH) < lengths).long()}


def counts(batch, words):
    """Return how many words of each sentence are below a number."""
    return ((batch["input_ids"] < words) * batch["attention_mask"]).sum(1)


net = hatrack.HATNetwork(Reader(), sentences(2, seed=0), features="sentence")
print(net.units, "\n")


def learn(task, targets, loss, head=None, steps=120):
    """Learn a task of two classes, or one with a head of its own."""
    if head is None:
        net.add_task(task, 2)
    else:
        net.add_task(task, head=head)
    optimizer = net.protect(torch.optim.AdamW(net.parameter_groups(task, lr=2e-3), weight_decay=1e-2))
    net.train()
    for progress, seed in hatrack.with_progress(range(steps)):
        batch = sentences(32, seed=1 + seed)
        net.anneal(progress)
        cost = loss(net(batch, task), targets(batch)) + 0.1 * net.regularization()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    net.consolidate(task)


@torch.no_grad()
def answer(task, batch):
    return net.eval()(batch, task)


test = sentences(500, seed=10_000)
learn("many small words", lambda batch: (counts(batch, 20) > 2).long(), F.cross_entropy)
before = answer("many small words", test)
learn("a first word above 30", lambda batch: (batch["input_ids"][:, 0] > 30).long(), F.cross_entropy)
learn(
    "how many words below 40",
    lambda batch: counts(batch, 40).float().unsqueeze(1),
    F.mse_loss,
    head=nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)),
)

classes = answer("many small words", test).argmax(1)
print(f"many small words: {(classes == (counts(test, 20) > 2)).float().mean():.1%} right")
classes = answer("a first word above 30", test).argmax(1)
print(f"a first word above 30: {(classes == (test['input_ids'][:, 0] > 30)).float().mean():.1%} right")
error = (answer("how many words below 40", test).squeeze(1) - counts(test, 40)).abs().mean()
print(f"how many words below 40: wrong by {error:.2f} on average")
print("outputs of the first task bit-identical:", torch.equal(before, answer("many small words", test)))
assert torch.equal(before, answer("many small words", test))
