"""Recurrent layers by unit: law, poison, extraction, and what soft gates do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hatrack import HATNetwork
from hatrack.units import Role
from support.helpers import assert_poison_harmless, learn, logits
from support.marks import slow_but

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

INPUTS, WIDTH, TOKENS = 5, 12, 4
Layer = Callable[[], nn.Module]


class Sequences(nn.Module):
    """A dense layer, a recurrent one, and a layer that reads what it returns."""

    def __init__(self, layer: Layer, read: Callable[[nn.Module, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.memory, self.last = nn.Linear(6, INPUTS), layer(), nn.Linear(width, 10)
        self.start, self.begin = nn.Linear(6, WIDTH), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.read(self, x)))


def mean(m: nn.Module, x: Tensor) -> Tensor:
    return m.memory(m.first(x).relu())[0].mean(1)


def time_first(m: nn.Module, x: Tensor) -> Tensor:
    sequence, _ = m.memory(m.first(x).relu().transpose(0, 1))
    return sequence[-1]


def last_states(m: nn.Module, x: Tensor) -> Tensor:
    state = m.memory(m.first(x).relu())[1]
    return torch.cat([each[-1] for each in state], -1) if isinstance(state, tuple) else state[-1]


def both_directions(m: nn.Module, x: Tensor) -> Tensor:
    sequence, (state, _) = m.memory(m.first(x).relu())
    return torch.cat([sequence.mean(1), state[-2], state[-1]], -1)


def packed(m: nn.Module, x: Tensor) -> Tensor:
    lengths = torch.tensor([2, 4]).repeat(len(x))[: len(x)]
    sequence = pack_padded_sequence(m.first(x).relu(), lengths, batch_first=True, enforce_sorted=False)
    outputs, _ = m.memory(sequence)
    assert isinstance(outputs, PackedSequence)
    return pad_packed_sequence(outputs, batch_first=True)[0].sum(1)


def started(m: nn.Module, x: Tensor) -> Tensor:
    return m.memory(m.first(x).relu(), m.start(x[:, 0]).unsqueeze(0))[0].mean(1)


def started_by_a_parameter(m: nn.Module, x: Tensor) -> Tensor:
    state = m.begin.expand(-1, len(x), -1).contiguous()
    return m.memory(input=m.first(x).relu(), hx=(state, torch.zeros_like(state)))[0].mean(1)


def steps(m: nn.Module, x: Tensor) -> Tensor:
    state = None
    for t in range(TOKENS):
        state = m.memory(m.first(x[:, t]).relu(), state)
    return state[0] if isinstance(state, tuple) else state


def steps_from_a_start(m: nn.Module, x: Tensor) -> Tensor:
    state = m.start(x[:, 0]).tanh()
    for t in range(TOKENS):
        state = m.memory(m.first(x[:, t]).relu(), state)
    return state


CASES: dict[str, tuple[Layer, Callable[[nn.Module, Tensor], Tensor], int, int]] = {
    "lstm": (lambda: nn.LSTM(INPUTS, WIDTH, batch_first=True), mean, WIDTH, WIDTH),
    "gru, time first": (lambda: nn.GRU(INPUTS, WIDTH), time_first, WIDTH, WIDTH),
    "rnn": (lambda: nn.RNN(INPUTS, WIDTH, batch_first=True, nonlinearity="relu", bias=False), mean, WIDTH, WIDTH),
    "two layers": (lambda: nn.LSTM(INPUTS, WIDTH, 2, dropout=0.1, batch_first=True), last_states, 2 * WIDTH, 2 * WIDTH),
    "both directions": (
        lambda: nn.LSTM(INPUTS, WIDTH, 2, batch_first=True, bidirectional=True),
        both_directions,
        4 * WIDTH,
        4 * WIDTH,
    ),
    "projection": (
        lambda: nn.LSTM(INPUTS, WIDTH, 2, batch_first=True, proj_size=7, bidirectional=True),
        mean,
        14,
        4 * (WIDTH + 7),
    ),
    "packed": (lambda: nn.GRU(INPUTS, WIDTH, 2, batch_first=True, bidirectional=True), packed, 2 * WIDTH, 4 * WIDTH),
    "a start by units": (lambda: nn.GRU(INPUTS, WIDTH, batch_first=True), started, WIDTH, WIDTH),
    "a learned start": (lambda: nn.LSTM(INPUTS, WIDTH, batch_first=True), started_by_a_parameter, WIDTH, WIDTH),
    "lstm cell": (lambda: nn.LSTMCell(INPUTS, WIDTH), steps, WIDTH, WIDTH),
    "gru cell": (lambda: nn.GRUCell(INPUTS, WIDTH), steps_from_a_start, WIDTH, WIDTH),
    "rnn cell": (lambda: nn.RNNCell(INPUTS, WIDTH), steps, WIDTH, WIDTH),
}


def build(name: str, seed: int = 0) -> nn.Module:
    layer, read, width, _ = CASES[name]
    torch.manual_seed(seed)
    return Sequences(layer, read, width)


@pytest.mark.parametrize("name", slow_but(("lstm", "both directions", "gru cell"), CASES))
def test_old_tasks_keep_every_bit_and_free_entries_may_hold_anything(name: str) -> None:
    net = HATNetwork(build(name), torch.zeros(2, TOKENS, 6))
    count = CASES[name][3]
    assert sum(group.size for group in net.units.groups if "memory" in group.name) == count
    memory = {key: role for key, role in net.units.roles.items() if key.startswith("backbone.memory.")}
    assert all(role is (Role.MIXING if "weight" in key else Role.PER_UNIT) for key, role in memory.items())
    samples, promised = {}, {}
    for number in range(3):
        task = f"task {number}"
        samples[task], _ = learn(net, task, number)
        promised[task] = logits(net, samples[task], task)
        for earlier, kept in promised.items():
            assert torch.equal(logits(net, samples[earlier], earlier), kept), earlier
    assert_poison_harmless(net, samples)


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_extracted_with_its_units_alone(name: str) -> None:
    net = HATNetwork(build(name), torch.zeros(2, TOKENS, 6))
    torch.manual_seed(1)
    net.add_task("a", 3)
    with torch.no_grad():
        net.tasks[0].embedding.copy_(torch.randn(net.units.num_units))
    net.consolidate("a")
    x = torch.randn(8, TOKENS, 6)
    small = net.extract("a", x)
    torch.testing.assert_close(small(x), logits(net, x, "a"), rtol=1e-5, atol=1e-5)
    assert not [group for group in small.summary.whole if "memory" in group], small.summary.whole
    before, after = net.backbone.memory, small.backbone.get_submodule("memory")
    assert type(after) is type(before)
    assert after.hidden_size < before.hidden_size


@pytest.mark.parametrize("name", ["lstm", "projection", "both directions", "gru cell"])
def test_detached_it_is_what_it_was(name: str) -> None:
    x = torch.randn(3, TOKENS, 6)
    backbone = build(name).eval()
    with torch.no_grad():
        plain = backbone(x)
    net = HATNetwork(backbone, x)
    net.add_task("a", 2)
    with torch.no_grad():
        net.tasks[0].embedding.fill_(1.0)
        assert torch.equal(net.eval()(x, "a"), net.tasks[0].head(plain))
        net.detach()
        assert torch.equal(backbone(x), plain)
    assert "forward" not in vars(backbone.memory)


@pytest.mark.parametrize("kind", ["lstm", "gru cell"])
def test_soft_gates_are_those_of_the_state_where_it_is_read(kind: str) -> None:
    net = HATNetwork(build(kind), torch.zeros(2, TOKENS, 6))
    net.add_task("a", 2)
    net.train()
    net.anneal(0.0)
    x = torch.randn(3, TOKENS, 6)
    found = net(x, "a")
    gates = torch.sigmoid(net.tasks[0].embedding / 400.0)
    of = {group.name: gates[group.span] for group in net.units.groups}
    name = next(each for each in of if "memory" in each)
    m, gate, entered = net.backbone, of[name], of["first"]
    twin = nn.LSTMCell(INPUTS, WIDTH) if kind == "lstm" else nn.GRUCell(INPUTS, WIDTH)
    own = m.memory.state_dict()
    twin.load_state_dict({key.removesuffix("_l0"): value for key, value in own.items()})
    state = (torch.zeros(3, WIDTH),) * 2 if kind == "lstm" else m.start(x[:, 0]).tanh()
    seen = []
    for t in range(TOKENS):
        step = m.first(x[:, t]).relu() * entered
        if isinstance(state, tuple):
            state = twin(step, (state[0] * gate, state[1]))
            seen.append(state[0])
        else:
            state = _gru_step(twin, step, state, gate)
            seen.append(state)
    read = torch.stack(seen).mean(0) if kind == "lstm" else seen[-1]
    features = torch.relu(m.last(read * gate)) * of["last"]
    torch.testing.assert_close(found, net.tasks[0].head(features))
    found.sum().backward()
    assert bool((net.tasks[0].embedding.grad[next(g for g in net.units.groups if g.name == name).span] != 0).all())


def _gru_step(twin: nn.GRUCell, x: Tensor, state: Tensor, gate: Tensor) -> Tensor:
    a = (x @ twin.weight_ih.T + twin.bias_ih).chunk(3, -1)
    b = ((state * gate) @ twin.weight_hh.T + twin.bias_hh).chunk(3, -1)
    r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
    return (1 - z) * torch.tanh(a[2] + r * b[2]) + z * state


def test_samples_of_several_tasks_are_answered_task_by_task() -> None:
    net = HATNetwork(build("two layers"), torch.zeros(2, TOKENS, 6))
    for number, task in enumerate(("a", "b")):
        learn(net, task, number)
    x = torch.randn(4, TOKENS, 6)
    mixed = net.eval()(x, ["a", "b", "b", "a"])
    alone = {task: logits(net, x, task) for task in ("a", "b")}
    for row, task in enumerate(["a", "b", "b", "a"]):
        torch.testing.assert_close(mixed[row][..., : alone[task].shape[-1]], alone[task][row])


def test_states_that_are_given_to_units_that_are_off_do_no_harm() -> None:
    net = HATNetwork(build("a start by units"), torch.zeros(2, TOKENS, 6))
    torch.manual_seed(1)
    net.add_task("a", 2)
    net.consolidate("a")
    x = torch.randn(4, TOKENS, 6)
    before = logits(net, x, "a")
    group = next(group for group in net.units.groups if "memory" in group.name)
    off = (~net.tasks[0].mask[group.span]).nonzero().flatten()
    assert len(off)
    with torch.no_grad():
        net.backbone.start.weight[off] = torch.inf
    assert torch.equal(net.eval()(x, "a"), before)
