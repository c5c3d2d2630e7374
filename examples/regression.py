"""Regression from a CSV file: prices of flats, then rents of houses, on one network, and the proof.

python examples/regression.py
"""

import csv
import tempfile
from pathlib import Path

import torch
from torch import nn

import hatrack
from hatrack.objectives import MetricName
from hatrack.train import TrainingSettings

torch.set_num_threads(1)  # for a network this small more threads only get in each other's way
torch.manual_seed(0)


def write_table(path, base, per_room, per_minute):
    """Write homes with their rooms, minutes to the next train, a price, and a rent."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("rooms", "minutes", "price", "rent"))
        for rooms, minutes, luck in torch.randn(600, 3).tolist():
            price = base + per_room * rooms - per_minute * minutes + 3 * luck
            table.writerow((round(4 + rooms, 1), round(15 + 5 * minutes), round(price, 1), round(3 * price)))


def read_table(path, targets):
    """Read features and the columns to predict, as two tensors."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    features = torch.tensor([[float(row["rooms"]) - 4, float(row["minutes"]) / 5 - 3] for row in rows])
    return features, torch.tensor([[float(row[name]) for name in targets] for row in rows])


folder = Path(tempfile.mkdtemp())
write_table(folder / "flats.csv", base=300, per_room=60, per_minute=15)
write_table(folder / "houses.csv", base=500, per_room=20, per_minute=90)

learner = hatrack.Learner(
    nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
    (2,),
    training=TrainingSettings(epochs=30, batch_size=16),
)

x, price = read_table(folder / "flats.csv", ["price"])
learner.fit("flats", (x[:450], price[:450]), classes=["price"])  # floats: numbers to predict
print(f"flats: R² {learner.evaluate('flats', (x[450:], price[450:])):.3f}")
before = learner.predict(x[450:], "flats").values
print(f"a flat like the first one costs {float(before[0]):.0f}, and {float(price[450]):.0f} was paid")

y, both = read_table(folder / "houses.csv", ["price", "rent"])
learner.fit("houses", (y[:450], both[:450]), classes=["price", "rent"], metric=MetricName.MAE)
print(f"houses: mean absolute error {learner.evaluate('houses', (y[450:], both[450:])):.0f} (lower is better)")
print(f"flats afterwards: R² {learner.evaluate('flats', (x[450:], price[450:])):.3f}")

after = learner.predict(x[450:], "flats").values
print("predictions for flats bit-identical:", torch.equal(before, after))
assert torch.equal(before, after)
