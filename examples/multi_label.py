"""Several labels per sample, rare ones weighted: what is in a picture, then what its borders look like, and the proof.

python examples/multi_label.py
"""

import torch
from torch import nn

import hatrack
from hatrack.objectives import MetricName
from hatrack.train import TrainingSettings

torch.set_num_threads(1)  # for a network this small more threads only get in each other's way


def pictures(count, seed):
    """Draw noise with a bar across, a bar down and a dot, each or not; the dot is rare."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 8, 8, generator=generator) / 2
    there = torch.rand(count, 3, generator=generator) < torch.tensor([0.5, 0.5, 0.15])
    x[:, 0, 2] += 2 * there[:, :1]
    x[:, 0, :, 5] += 2 * there[:, 1:2]
    x[:, 0, 6, 1] += 4 * there[:, 2]
    return x, there


def bright_sides(x):
    """Label every picture: are its left, and its right, half brighter than usual?"""
    halves = torch.stack([x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))], 1)
    return halves > halves.median(0).values


x, shapes = pictures(700, seed=0)
test, test_shapes = pictures(300, seed=1)
torch.manual_seed(0)
learner = hatrack.Learner(
    nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU()),
    (1, 8, 8),
    training=TrainingSettings(epochs=8, batch_size=16),
)

names = ["across", "down", "dot"]
learner.fit("shapes", (x, shapes), classes=names, class_weights="balanced")  # truth values (N, 3): labels
before = learner.predict(test, "shapes")
print(f"shapes: mean average precision {learner.evaluate('shapes', (test, test_shapes)):.1%}")
wanted = [tuple(name for name, there in zip(names, row, strict=True) if there) for row in test_shapes[:3].tolist()]
for given, right in zip(before.labels[:3], wanted, strict=True):
    print(f"  said {', '.join(given) or 'nothing'}; there is {', '.join(right) or 'nothing'}")

learner.fit("sides", (x, bright_sides(x)), classes=["left", "right"], metric=MetricName.F1)
print(f"sides: F1 {learner.evaluate('sides', (test, bright_sides(test))):.1%}")
print(f"shapes afterwards: mean average precision {learner.evaluate('shapes', (test, test_shapes)):.1%}")

after = learner.predict(test, "shapes")
print("probabilities of shapes bit-identical:", torch.equal(before.probabilities, after.probabilities))
assert torch.equal(before.probabilities, after.probabilities)
