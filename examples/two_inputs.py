"""Two inputs and several labels per sample: pictures with numbers beside them, and the proof.

python examples/two_inputs.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack.streams import StreamOptions, build_stream


class Both(nn.Module):
    """Takes a picture and some numbers, and mixes what it makes of them."""

    def __init__(self):
        super().__init__()
        self.picture = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU())
        self.numbers = nn.Sequential(nn.Linear(3, 64), nn.ReLU())
        self.mixed = nn.Linear(192, 96)

    def forward(self, picture, numbers):
        return torch.relu(self.mixed(torch.cat([self.picture(picture), self.numbers(numbers)], 1)))


torch.manual_seed(0)
net = hatrack.HATNetwork(Both(), (torch.zeros(1, 1, 28, 28), torch.zeros(1, 3)))  # a tuple: two positional arguments
clothes, _ = build_stream("demo", StreamOptions(seed=0, validation=0.15), num_tasks=2)


def samples(split, seed):
    picture, label = split.load()
    return (picture, torch.randn(len(picture), 3, generator=torch.Generator().manual_seed(seed))), label


def properties(inputs, label):
    """Say of every sample: is it the second garment; is it large; is its first number positive. All may hold."""
    picture, numbers = inputs
    large = (picture > picture.mean()).float().mean((1, 2, 3)) > 0.4
    return torch.stack([label == 1, large, numbers[:, 0] > 0], 1).float()


def product(inputs, label):
    """Return a number to predict: the sum of two of the numbers, negated for the second garment."""
    return ((1 - 2 * label) * (inputs[1][:, 1] + inputs[1][:, 2])).unsqueeze(1)


def learn(task, outputs, target, loss, epochs=12, batch_size=32):
    net.add_task(task, outputs)  # as many outputs of a linear head, for whatever loss
    optimizer = net.protect(torch.optim.AdamW(net.parameter_groups(task, lr=2e-3), weight_decay=1e-2))
    (picture, numbers), label = samples(clothes.train, seed=1)
    net.train()
    for _ in range(epochs):
        for progress, rows in hatrack.with_progress(torch.randperm(len(label)).split(batch_size)):
            batch = (picture[rows], numbers[rows])
            net.anneal(progress)
            cost = loss(net(batch, task), target(batch, label[rows])) + 0.1 * net.regularization()
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
    net.consolidate(task)


@torch.no_grad()
def answer(task):
    return net.eval()(samples(clothes.test, seed=2)[0], task)


inputs, label = samples(clothes.test, seed=2)
learn("properties", 3, properties, F.binary_cross_entropy_with_logits)
before = answer("properties")
learn("product", 1, product, F.mse_loss)

right = ((answer("properties") > 0).float() == properties(inputs, label)).float().mean(0)
print("properties right:", ", ".join(f"{share:.1%}" for share in right))
error = (answer("product") - product(inputs, label)).square().mean() / product(inputs, label).var()
print(f"product: R² {1 - error:.2f}")
print("outputs of the first task bit-identical:", torch.equal(before, answer("properties")))
assert torch.equal(before, answer("properties"))
