"""Two tasks on a network of your own, and the proof that the first one is still there.

python examples/own_network.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack.streams import StreamOptions, build_stream

# Any network that maps a batch to features; hatrack attaches to it from outside.
backbone = nn.Sequential(
    nn.Conv2d(1, 16, 3),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(16 * 13 * 13, 128),
    nn.ReLU(),
)
net = hatrack.HATNetwork(backbone, example_input=torch.zeros(1, 1, 28, 28))
print(net.units, "\n")

# T-shirts and trousers; pullovers and dresses
first, second = build_stream("demo", StreamOptions(seed=0, validation=0.15), num_tasks=2)


def learn(task, epochs=4, batch_size=32):
    net.add_task(task.name, task.num_classes)
    optimizer = net.protect(torch.optim.AdamW(net.parameter_groups(task.name, lr=1e-3), weight_decay=1e-2))
    x, y = task.train.load()
    net.train()
    for _ in range(epochs):
        for progress, rows in hatrack.with_progress(torch.randperm(len(x)).split(batch_size)):
            net.anneal(progress)
            loss = F.cross_entropy(net(x[rows], task.name), y[rows]) + 0.75 * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.consolidate(task.name)


@torch.no_grad()
def logits(task):
    return net.eval()(task.test.load()[0], task.name)


learn(first)
before = logits(first)
learn(second)
after = logits(first)

for task in (first, second):
    print(f"{task.name}: {(logits(task).argmax(1) == task.test.labels).float().mean():.1%}")
print("capacity:", net.capacity())
print("logits of the first task bit-identical after learning the second:", torch.equal(before, after))
assert torch.equal(before, after)
