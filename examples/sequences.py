"""Sequences of different lengths: two tasks on one LSTM that packs them, and the proof.

python examples/sequences.py
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import hatrack

torch.manual_seed(0)
LONGEST = 12


class Reader(nn.Module):
    """Reads both ways, and hands on the last states."""

    def __init__(self, width=32):
        super().__init__()
        self.memory = nn.LSTM(4, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, 48)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (state, _) = self.memory(packed)
        return torch.relu(self.out(torch.cat([state[0], state[1]], 1)))


def sequences(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, LONGEST, 4, generator=generator),
        torch.randint(3, LONGEST + 1, (count,), generator=generator),
    )


# Packing reads the lengths. No layer is used or left out because of them, and we vouch for that.
rules = {Reader: hatrack.units.same_on_every_path()}
net = hatrack.HATNetwork(Reader(), sequences(2, seed=0), rules=rules)
print(net.units, "\n")


def is_rising(batch):
    """Say whether the first number grows from the first step to the last."""
    x, lengths = batch
    return (x[torch.arange(len(x)), lengths - 1, 0] > x[:, 0, 0]).long()


def is_large(batch):
    """Say whether the second numbers sum to more than nothing."""
    x, lengths = batch
    inside = (torch.arange(LONGEST) < lengths.unsqueeze(1)).float()
    return ((x[:, :, 1] * inside).sum(1) > 0).long()


def learn(task, labels, steps=100):
    net.add_task(task, 2)
    optimizer = net.protect(torch.optim.AdamW(net.parameter_groups(task, lr=5e-3), weight_decay=1e-2))
    net.train()
    for progress, seed in hatrack.with_progress(range(steps)):
        batch = sequences(48, seed=1 + seed)
        net.anneal(progress)
        loss = F.cross_entropy(net(batch, task), labels(batch)) + 0.1 * net.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.consolidate(task)


@torch.no_grad()
def logits(task, batch):
    return net.eval()(batch, task)


test = sequences(500, seed=10_000)
learn("rising", is_rising)
before = logits("rising", test)
learn("large", is_large)

for task, labels in (("rising", is_rising), ("large", is_large)):
    print(f"{task}: {(logits(task, test).argmax(1) == labels(test)).float().mean():.1%} right")
print("logits of the first task bit-identical:", torch.equal(before, logits("rising", test)))
assert torch.equal(before, logits("rising", test))
