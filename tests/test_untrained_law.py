"""The law on drawn networks of which a drawn part is untrained: it never moves, and old tasks keep every bit."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack import Adaptive, Conditioning, Fading, HATNetwork, UnsupportedError, WeightMaskedNetwork
from hatrack.masks import Magnitude, Scores
from support.helpers import CLASSES, assert_poison_harmless, logits, open_task, progress
from support.marks import examples, slow_unless
from support.random_networks import FEATURES, IMAGE, Plan, plans
from support.untrained import untrain_some
from support.zoo import QUICK, ZOO
from support.zoo_models import MODELS

pytestmark = [
    pytest.mark.filterwarnings("ignore:all .* are coupled into a single unit"),
    pytest.mark.filterwarnings("ignore:the first task freezes all that is trained"),
    pytest.mark.filterwarnings("ignore:task .* has switched off all entries"),
]

SAMPLES = 6
RECIPES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum-decay": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1),
}
SHAPES = {"image": IMAGE, "features": FEATURES}
HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]
ATTACH: dict[str, Callable[[nn.Module, Tensor], HATNetwork | WeightMaskedNetwork]] = {
    "cumulative": lambda backbone, x: HATNetwork(backbone, x),
    "per task": lambda backbone, x: HATNetwork(backbone, x, conditioning=Conditioning.PER_TASK),
    "soft": lambda backbone, x: HATNetwork(backbone, x, hard=False),
    "fading": lambda backbone, x: HATNetwork(backbone, x, conditioning=Fading(0.5)),
    "adaptive": lambda backbone, x: HATNetwork(backbone, x, conditioning=Adaptive()),
    "inputs": lambda backbone, x: HATNetwork(backbone, x, gate_inputs=True),
    "pmask": lambda backbone, x: WeightMaskedNetwork(backbone, x),
    "wsn": lambda backbone, x: WeightMaskedNetwork(backbone, x, source=Scores(0.3)),
    "packnet": lambda backbone, x: WeightMaskedNetwork(backbone, x, source=Magnitude()),
}
DRIFTING = ("soft", "fading", "adaptive")
"""Those that promise less than every bit; what is untrained stays all the same."""


def learn(net: HATNetwork | WeightMaskedNetwork, number: int, recipe: str) -> Tensor:
    """Learn a task, and return its samples."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(SAMPLES, *net.example_shape[1:], generator=generator)
    train(net, f"task {number}", x, number, recipe)
    return x


def train(net: HATNetwork | WeightMaskedNetwork, task: str, x: Tensor, seed: int, recipe: str) -> None:
    """Train a task with an optimizer of all parameters, and consolidate it."""
    y = torch.arange(SAMPLES) % CLASSES
    if isinstance(net, HATNetwork):
        open_task(net, task, seed, share=0.2)
    else:
        net.add_task(task, CLASSES, generator=torch.Generator().manual_seed(seed))
    optimizer = net.protect(RECIPES[recipe](list(net.parameters())))
    net.train()
    for step in range(3):
        net.anneal(progress(3 * step))
        optimizer.zero_grad()
        (F.cross_entropy(net(x, task), y) + 0.1 * net.regularization()).backward()
        nn.utils.clip_grad_norm_(net.task_parameters(task), 1.0)
        optimizer.step()
    net.consolidate(task)


def keep_the_law(plan: Plan, kind: str, recipe: str, share: float, seed: int) -> str:
    """Learn three tasks and look at everything after each; returns what became of it, in a word."""
    torch.manual_seed(seed)
    backbone = plan.build()
    names = untrain_some(backbone, share, seed)
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    try:
        net = ATTACH[kind](backbone, torch.zeros(2, *plan.shape))
    except UnsupportedError as error:
        event(f"refused: {str(error).partition(' (at')[0]}")
        return "refused"
    untrained = {name: backbone.get_parameter(name) for name in net.masking.untrained}
    assert set(untrained) <= set(names)
    before = {name: value.detach().clone() for name, value in untrained.items()}
    protected = net.protected()
    assert all(protected[f"backbone.{name}"].all() for name in untrained)
    promised: dict[str, tuple[Tensor, Tensor]] = {}
    for number in range(3):
        x = learn(net, number, recipe)
        promised[f"task {number}"] = x, logits(net, x, f"task {number}")
        if kind not in DRIFTING:  # which promises less
            for task, (asked, kept) in promised.items():
                assert torch.equal(logits(net, asked, task), kept), f"{task} changed after task {number}"
        assert all(torch.equal(value, before[name]) for name, value in untrained.items())
    net.check()
    shared = {name: held for name, held in net.protected().items() if name.startswith("backbone.")}
    free = isinstance(net, HATNetwork) and any(
        not bool(held.all()) for name, held in shared.items() if net.units.roles[name].value != "per-task"
    )
    if free and kind not in DRIFTING:
        assert_poison_harmless(net, {task: x for task, (x, _) in promised.items()})
    if kind not in DRIFTING:
        x, kept = promised["task 1"]
        with torch.no_grad():
            cut = net.extract("task 1", x)(x)
        assert (cut - kept).abs().max() <= 1e-5 * kept.abs().max()
    assert [parameter.requires_grad for parameter in net.detach().parameters()] == flags
    assert not any("train" in vars(module) for module in backbone.modules())
    return "all" if len(untrained) == len(flags) else "some" if untrained else "none"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_untrained_never_moves_and_old_tasks_keep_every_bit(shape: str) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples(40), suppress_health_check=HEALTH)
    @given(
        plan=plans(SHAPES[shape]),
        kind=st.sampled_from(list(ATTACH)),
        recipe=st.sampled_from(list(RECIPES)),
        share=st.sampled_from([0.2, 0.4, 0.6, 2.0]),
        seed=st.integers(0, 99),
    )
    def law(plan: Plan, kind: str, recipe: str, share: float, seed: int) -> None:
        outcome = keep_the_law(plan, kind, recipe, share, seed)
        event(outcome)
        outcomes[outcome] += 1

    law()
    assert outcomes["some"] >= 0.3 * outcomes.total(), outcomes
    assert outcomes["refused"] <= 0.15 * outcomes.total(), outcomes


@pytest.mark.parametrize("name", slow_unless(lambda name: name in QUICK, {**ZOO, **MODELS}))
def test_architectures_of_which_a_part_is_untrained_keep_the_law(name: str) -> None:
    architecture, generator = {**ZOO, **MODELS}[name], torch.Generator().manual_seed(1)
    for seed in range(2):
        torch.manual_seed(0)
        backbone = architecture.build()
        untrain_some(backbone, 0.5, seed)
        net = HATNetwork(backbone, architecture.samples(2, generator))
        before = {n: backbone.get_parameter(n).detach().clone() for n in net.masking.untrained}
        promised: dict[str, tuple[Tensor, Tensor]] = {}
        for number in range(2):
            task, x = f"task {number}", architecture.samples(SAMPLES, generator)
            train(net, task, x, number, "adamw")
            promised[task] = x, logits(net, x, task)
            for earlier, (asked, kept) in promised.items():
                assert torch.equal(logits(net, asked, earlier), kept), earlier
        assert all(torch.equal(backbone.get_parameter(n), value) for n, value in before.items())
        net.check()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_of_which_nothing_is_trained_gives_its_own_features_under_any_mask(shape: str) -> None:
    @settings(max_examples=examples(30), suppress_health_check=HEALTH)
    @given(plan=plans(SHAPES[shape]))
    def law(plan: Plan) -> None:
        torch.manual_seed(0)
        backbone = plan.build().eval().requires_grad_(False)
        plain, x = copy.deepcopy(backbone), torch.randn(4, *plan.shape)
        try:
            net = HATNetwork(backbone, x)
        except UnsupportedError:
            return
        assert not net.units.groups
        assert len(net.masking.attachment.gates) == 1
        with torch.no_grad():
            expected = plain(x)
            given_back = [net.eval().masking.features_of_random_mask(x, seed) for seed in range(2)]
        assert all(torch.equal(features, expected) for features in given_back)
        assert all(torch.equal(v, plain.state_dict()[n]) for n, v in net.train().detach().state_dict().items())

    law()
