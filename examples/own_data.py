"""A stream of your own tensors, learned with the trainer that the command line uses.

python examples/own_data.py
"""

import torch

from hatrack.backbones import MLP
from hatrack.methods import METHODS, Setup
from hatrack.streams import Task, TaskStream
from hatrack.train import TrainingSettings, fit, predict_split, score

torch.set_num_threads(1)  # for a network this small more threads only get in each other's way

# Three tasks: on which side of a line, of another line, of a circle?
torch.manual_seed(0)
x = torch.randn(1200, 2)
rules = {"line": x[:, 0] > 0, "slope": x[:, 0] > x[:, 1], "circle": x.norm(dim=1) > 1.2}
stream = TaskStream(
    "shapes",
    tuple(Task.from_tensors(name, x[:800], y[:800].long(), x[800:], y[800:].long()) for name, y in rules.items()),
)


def build_backbone():
    return MLP(stream.input_shape, hidden=(64, 64))


for name in ("sgd", "hat"):
    torch.manual_seed(0)
    setup = Setup(build_backbone, stream.input_shape, seed=0, device=torch.device("cpu"))
    method = METHODS[name](setup, METHODS[name].settings_type())
    for index, task in enumerate(stream):
        method.begin_task(task)
        for _ in fit(method, stream[: index + 1], TrainingSettings(epochs=40, batch_size=32)):
            pass
        method.end_task(task)
    scores = {t.name: score(predict_split(method, t.test, t.name, batch_size=400), t.test.labels) for t in stream}
    print(f"{name}:", ", ".join(f"{task} {result.value:.1%}" for task, result in scores.items()))
