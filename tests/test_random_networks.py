"""The law on networks that nobody chose: drawn graphs, drawn optimizers, drawn conditioning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack import Conditioning, HATNetwork, InputError, UnsupportedError
from support.helpers import CLASSES, assert_poison_harmless, logits, loss_of, mode, open_task, progress
from support.marks import examples
from support.random_networks import FEATURES, IMAGE, Plan, Step, plans

pytestmark = pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit")

SAMPLES = 6
RECIPES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum-decay": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1),
}
SHAPES = {"image": IMAGE, "features": FEATURES}
HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]


def attach(plan: Plan, **options: object) -> HATNetwork | None:
    """The plan's network with gates, or None where it is refused."""
    torch.manual_seed(0)
    try:
        return HATNetwork(plan.build(), torch.zeros(2, *plan.shape), **options)  # type: ignore[arg-type]
    except UnsupportedError as error:
        event(f"refused: {str(error).partition(' (at')[0]}")
        return None


def train_a_task(net: HATNetwork, number: int, recipe: str) -> tuple[Tensor, bool]:
    """Learn a task and consolidate it; returns its samples, and whether any free entry of the backbone moved."""
    generator = torch.Generator().manual_seed(number)
    x, y = torch.randn(SAMPLES, *net.example_shape[1:], generator=generator), torch.arange(SAMPLES) % CLASSES
    task = f"task {number}"
    open_task(net, task, number, share=0.2)
    optimizer = net.protect(RECIPES[recipe](net.task_parameters(task)))
    before = {name: parameter.detach().clone() for name, parameter in net.backbone.named_parameters()}
    net.train()
    for step in range(3):
        net.anneal(progress(3 * step))
        optimizer.zero_grad()
        loss_of(net, task, x, y).backward()
        nn.utils.clip_grad_norm_(net.task_parameters(task), 1.0)
        optimizer.step()
    moved = any(not torch.equal(parameter, before[name]) for name, parameter in net.backbone.named_parameters())
    net.consolidate(task)
    return x, moved


def free_entries(net: HATNetwork) -> int:
    """Return the number of entries of shared parameters that the next task may move."""
    shared = {name for name, _ in net.backbone.named_parameters(prefix="backbone")} - of_every_task(net)
    return sum(int((~held).sum()) for name, held in net.protected().items() if name in shared)


def of_every_task(net: HATNetwork) -> set[str]:
    """Parameters of the backbone of which every task has a copy."""
    return {name for name, role in net.units.roles.items() if role.value == "per-task" and name.startswith("backbone.")}


def keep_the_law(plan: Plan, recipe: str, conditioning: Conditioning, gate_inputs: bool) -> str:
    """Learn three tasks and look at all of them after each; returns what became of it, in a word."""
    net = attach(plan, conditioning=conditioning, gate_inputs=gate_inputs)
    if net is None:
        return "refused"
    samples: dict[str, Tensor] = {}
    promised: dict[str, Tensor] = {}
    moves = []
    for number in range(3):
        free = free_entries(net)
        x, moved = train_a_task(net, number, recipe)
        assert free or not moved
        moves.append(moved)
        samples[f"task {number}"], promised[f"task {number}"] = x, logits(net, x, f"task {number}")
        for task, kept in promised.items():
            assert torch.equal(logits(net, samples[task], task), kept), f"{task} changed after task {number}"
    if not free_entries(net):
        return "full"
    assert_poison_harmless(net, samples)
    return "trained" if all(moves[1:]) else "stuck"


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_old_tasks_keep_every_bit(kind: str) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples(60), suppress_health_check=HEALTH)
    @given(
        plan=plans(SHAPES[kind]),
        recipe=st.sampled_from(list(RECIPES)),
        conditioning=st.sampled_from(Conditioning),
        gate_inputs=st.booleans(),
    )
    def law(plan: Plan, recipe: str, conditioning: Conditioning, gate_inputs: bool) -> None:
        outcome = keep_the_law(plan, recipe, conditioning, gate_inputs)
        event(outcome)
        outcomes[outcome] += 1

    law()
    assert outcomes["trained"] >= 0.8 * outcomes.total(), outcomes
    assert outcomes["refused"] <= 0.1 * outcomes.total(), outcomes


def grow_and_keep(plan: Plan, added: int) -> str:
    """Widen group by group: old outputs stay, and the law holds afterwards; returns what became of it, in a word."""
    net = attach(plan)
    if net is None:
        return "refused"
    x, _ = train_a_task(net, 0, "adamw")
    before, grown = logits(net, x, "task 0"), 0
    for group in net.units.groups:
        kept = logits(net, x, "task 0")
        try:
            net.grow({group.name: added}, generator=torch.Generator().manual_seed(0))
            grown += 1
        except InputError as error:
            event(f"cannot grow: {str(error).partition('): ')[2].partition(',')[0][-40:]}")
            assert torch.equal(logits(net, x, "task 0"), kept)
    # Drawn networks may be deep and logits small differences of large numbers: more than the usual 1e-6.
    assert (logits(net, x, "task 0") - before).abs().max() <= 1e-5 * before.abs().max()
    kept = logits(net, x, "task 0")
    later, _ = train_a_task(net, 1, "momentum-decay")
    assert torch.equal(logits(net, x, "task 0"), kept)
    if free_entries(net):
        assert_poison_harmless(net, {"task 0": x, "task 1": later})
    return "grown" if grown else "stuck"


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_what_grows_keeps_the_law(kind: str) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples(20), suppress_health_check=HEALTH)
    @given(plan=plans(SHAPES[kind], most=6), added=st.integers(1, 4))
    def law(plan: Plan, added: int) -> None:
        outcome = grow_and_keep(plan, added)
        event(outcome)
        outcomes[outcome] += 1

    law()
    assert outcomes["grown"] >= 0.3 * outcomes.total(), outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_with_all_units_on_it_is_the_plain_network(kind: str) -> None:
    @settings(max_examples=examples(40), suppress_health_check=HEALTH)
    @given(plan=plans(SHAPES[kind]))
    def plain(plan: Plan) -> None:
        torch.manual_seed(0)
        backbone = plan.build().eval()
        x = torch.randn(4, *plan.shape)
        state = {name: value.clone() for name, value in backbone.state_dict().items()}
        with torch.no_grad():
            expected = backbone(x)
        try:
            net = HATNetwork(backbone, x)
        except UnsupportedError:
            return
        net.add_task("all", CLASSES)
        with torch.no_grad(), mode(net, False):
            net.tasks[0].embedding.fill_(1.0)
            gated, with_head = net(x, "all"), net.tasks[0].head(expected)
        if any(isinstance(module, nn.MultiheadAttention) for module in backbone.modules()):
            torch.testing.assert_close(gated, with_head)  # without hooks, torch takes a path with other last bits
        else:
            assert torch.equal(gated, with_head)
        detached = net.detach().eval()
        with torch.no_grad():
            assert torch.equal(detached(x), expected)
        assert all(torch.equal(value, state[name]) for name, value in detached.state_dict().items())

    plain()


@settings(max_examples=examples(30), suppress_health_check=HEALTH)
@given(plan=plans(FEATURES))
def test_a_printed_plan_makes_the_network_again(plan: Plan) -> None:
    again = eval(repr(plan), {"Plan": Plan, "Step": Step})
    assert again == plan
    torch.manual_seed(0)
    one = plan.build().state_dict()
    torch.manual_seed(0)
    other = again.build().state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
