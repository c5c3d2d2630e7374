"""Two tasks that come back, and nobody says when: switches are noticed by the loss, known tasks are recognised.

python examples/unannounced.py
"""

import torch

from hatrack.backbones import MLP
from hatrack.learning.unannounced import UnannouncedLearner
from hatrack.methods import METHODS, Setup
from hatrack.streams import StreamOptions, Unannounced, build_stream, repeated

torch.set_num_threads(1)  # for a network this small more threads only get in each other's way
torch.manual_seed(0)

stream = repeated(build_stream("demo", StreamOptions(seed=0), num_tasks=2), 2)  # A, B, A, B
batches = Unannounced(stream, passes=4, batch_size=32)

setup = Setup(lambda: MLP(stream.input_shape, (100, 100)), stream.input_shape, seed=0, device=torch.device("cpu"))
hat = METHODS["hat"](setup, METHODS["hat"].settings_type())
learner = UnannouncedLearner(hat, batches.classes, lambda parameters: torch.optim.SGD(parameters, lr=0.1))

current = None
for index, ((x, y), task) in enumerate(zip(batches, batches.truth(), strict=True)):
    step = learner.observe(x, y)
    if step.task != current:
        print(f"batch {index}, really {stream[task].name}: {'opened' if step.opened else 'back to'} {step.task}")
        current = step.task
learner.finish()

for task in stream[:2]:
    x, y = task.test.load()
    found = learner.best_task(*(part[:100] for part in task.train.load()))
    accuracy = (hat.predict(x, found).argmax(dim=1) == y).float().mean()
    print(f"{task.name}: {accuracy:.1%} with {found}")
