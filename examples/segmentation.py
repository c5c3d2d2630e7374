"""A label for every pixel: two tasks of segmentation on one convolutional network, and the proof.

python examples/segmentation.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import hatrack
from hatrack.streams import StreamOptions, build_stream


class Encoder(nn.Module):
    """A small U-Net without its last layer: a map of features in the size of the picture."""

    def __init__(self, width=24):
        super().__init__()
        self.first, self.down = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.up, self.last = nn.ConvTranspose2d(width, width, 2, 2), nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        fine = torch.relu(self.norm(self.first(x)))
        coarse = torch.relu(self.up(torch.relu(self.down(fine))))
        return torch.relu(self.last(torch.cat([fine, coarse], 1)))


torch.manual_seed(0)
net = hatrack.HATNetwork(Encoder(), torch.zeros(1, 1, 28, 28), unit_axis=1)  # heads act on the axis of channels
print(net.units, "\n")
clothes, _ = build_stream("demo", StreamOptions(seed=0, validation=0.15), num_tasks=2)


def garment(x):
    """Label every pixel: background, or dark or bright cloth."""
    grey = (x - x.amin()) / (x.amax() - x.amin())
    return torch.bucketize(grey.squeeze(1), torch.tensor([0.05, 0.6]))


def outline(x):
    """Label every pixel: on the garment's outline, or not."""
    covered = (garment(x) > 0).float().unsqueeze(1)
    return (F.max_pool2d(covered, 3, 1, 1) - covered).squeeze(1).long()


def learn(task, classes, labels, epochs=3, batch_size=32):
    net.add_task(task, classes)
    optimizer = net.protect(torch.optim.AdamW(net.parameter_groups(task, lr=3e-3), weight_decay=1e-2))
    x, _ = clothes.train.load()
    net.train()
    for _ in range(epochs):
        for progress, rows in hatrack.with_progress(torch.randperm(len(x)).split(batch_size)):
            net.anneal(progress)
            loss = F.cross_entropy(net(x[rows], task), labels(x[rows])) + 0.1 * net.regularization()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.consolidate(task)


@torch.no_grad()
def logits(task):
    return net.eval()(clothes.test.load()[0], task)


learn("garment", 3, garment)
before = logits("garment")
learn("outline", 2, outline)

test = clothes.test.load()[0]
for task, labels in (("garment", garment), ("outline", outline)):
    print(f"{task}: {(logits(task).argmax(1) == labels(test)).float().mean():.1%} of the pixels right")
small = net.extract("garment", test[:16])
print(f"the first task by itself: {small.summary.parameters:,} of {small.summary.full_parameters:,} parameters")
print("logits of the first task bit-identical:", torch.equal(before, logits("garment")))
assert torch.equal(before, logits("garment"))
