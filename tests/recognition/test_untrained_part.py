"""Recognition by features of an untrained part: what these are, that they stay, the laws, and what is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hatrack
from hatrack import HATNetwork, HATSettings, InputError, Scorer, WeightMaskedNetwork
from hatrack.learning.unannounced import UnannouncedLearner
from hatrack.methods import METHODS, Setup
from hatrack.recognition import RandomUnits, UntrainedPart, feature_map_from, solve_ridge
from support.helpers import CLASSES, learn, logits, mode
from support.untrained import Adapted, Encoder, Mean, tokens

PART = UntrainedPart("0", units=10)
WIDTH = 6

Samples = dict[str, tuple[Any, Tensor]]
Network = HATNetwork | WeightMaskedNetwork


class Behind(nn.Module):
    """Layer that is trained, and counts how often it is called, copies included."""

    calls = 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        Behind.calls += 1
        return torch.relu(self.layer(x))


def part() -> nn.Module:
    """A pre-trained part that writes into what it is given, drops, and has a norm with statistics of its own."""
    norm = nn.BatchNorm2d(WIDTH)
    norm.running_mean, norm.running_var = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
    return nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(2, WIDTH, 3), norm, nn.Tanh(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)
    )


def backbone() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Sequential(part(), nn.Flatten()).requires_grad_(False), Behind(16))


def pictures(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, 5, 5, generator=generator) + 0.1 * torch.randn(24, 2, 5, 5, generator=generator)


ATTACH: dict[str, Callable[[nn.Module], Network]] = {
    "hat": lambda of: HATNetwork(of, torch.zeros(2, 2, 5, 5), s_max=100.0),
    "inputs gated": lambda of: HATNetwork(of, torch.zeros(2, 2, 5, 5), s_max=100.0, gate_inputs=True),
    "pmask": lambda of: WeightMaskedNetwork(of, torch.zeros(2, 2, 5, 5)),
}
LABELS = torch.arange(24) % CLASSES
TASKS: Samples = {name: (pictures(seed), LABELS) for seed, name in enumerate("abc")}


def consolidated(kind: str, tasks: str) -> Network:
    """Network whose tasks have learned nothing, which recognition does not depend on."""
    net = ATTACH[kind](backbone())
    for name in tasks:
        net.add_task(name, CLASSES, generator=torch.Generator().manual_seed(0))
        net.consolidate(name)
    return net


def calibrated(kind: str = "hat", tasks: str = "abc") -> Network:
    net = consolidated(kind, "".join(sorted(tasks)))
    for name in tasks:
        net.calibrate(name, *TASKS[name], feature_map=PART)
    return net


def probabilities(net: Network, x: Any) -> Tensor:
    """Logarithms of probabilities in all their digits, float64 ``(N, T)``."""
    recogniser = net.recognisers.of({state.name: state.sums for state in net.tasks if state.sums is not None})
    return recogniser.log_probabilities(recogniser.feature_map.read(x, net.masking))


def features(net: Network, x: Any, of: UntrainedPart = PART) -> Tensor:
    return of.features(of.read(x, net.masking))


# ------------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("kind", ATTACH)
def test_features_are_what_the_part_gives_before_anything_is_attached(kind: str) -> None:
    x, plain = pictures(9), backbone()[0].eval()
    assert float(x.min()) < 0, "which the part would set to zero in place"
    numbers = plain(x.clone())
    expected = RandomUnits(units=10).features(numbers)
    net = consolidated(kind, "ab").train()
    given, state = x.clone(), torch.get_rng_state()
    called, before = Behind.calls, copy.deepcopy(net.state_dict())
    found = features(net, given)
    assert torch.equal(found, expected)
    assert torch.equal(given, x), "the part writes into a copy"
    assert torch.equal(torch.get_rng_state(), state)
    assert Behind.calls == called, "what stands behind the part is not computed"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.backbone[0]._forward_hooks, "no hook is left behind"
    assert torch.equal(features(net, x, UntrainedPart("0", units=0)), nn.functional.pad(numbers, (1, 0), value=1.0))


@pytest.mark.parametrize(("name", "axes", "unit_axis"), [("0.0.3", (2, 3), None), ("0.0.3", (1, 2), -1)])
def test_means_are_taken_over_all_axes_but_that_of_units(name: str, axes: Any, unit_axis: int | None) -> None:
    x, plain = pictures(9), backbone()[0][0][:4].eval()
    of = UntrainedPart(name, unit_axis=unit_axis)
    torch.testing.assert_close(of.read(x, consolidated("hat", "a").masking), plain(x.clone()).mean(axes))


@pytest.mark.parametrize(("numbers", "units"), [(3, 112), (1280, 1520), (2799, 1), (2800, 0), (2801, 2800)])
def test_the_default_keeps_to_the_memory(numbers: int, units: int) -> None:
    of, width = UntrainedPart("0"), numbers if numbers <= 2800 else 0
    assert of.count((numbers,)) == 1 + width + units <= 2801
    assert UntrainedPart("0", units=5).count((numbers,)) == 6 + numbers


@pytest.mark.parametrize("of", [UntrainedPart(""), UntrainedPart("a.b", 7, 1, 3)])
def test_descriptions_are_read(of: UntrainedPart) -> None:
    assert feature_map_from(of.describe()) == of


# ----------------------------------------------------------------------------------------------------------------- laws


@settings(max_examples=2, deadline=None)
@given(st.permutations("abc"))
def test_the_order_of_tasks_does_not_matter(order: list[str]) -> None:
    expected, x = probabilities(calibrated(), pictures(9)), pictures(9)
    torch.testing.assert_close(probabilities(calibrated(tasks="".join(order)), x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["hat", "pmask"])
def test_a_forgotten_task_was_never_seen(kind: str) -> None:
    net, never = calibrated(kind), calibrated(kind, "ac")
    net.forget("b")
    torch.testing.assert_close(probabilities(net, pictures(9)), probabilities(never, pictures(9)), rtol=0, atol=1e-9)


def test_learning_and_growing_leave_every_bit() -> None:
    net = ATTACH["hat"](backbone())
    assert isinstance(net, HATNetwork)
    for seed, name in enumerate("ab"):
        learn(net, name, seed, steps=3)
        net.calibrate(name, *TASKS[name], feature_map=PART)
    x = pictures(9)
    said, found, old = net.infer(x), features(net, x), {name: logits(net, x.clone(), name) for name in "ab"}
    learn(net, "c", 2, steps=3)
    assert torch.equal(features(net, x), found)
    assert all(torch.equal(logits(net, x.clone(), name), old[name]) for name in "ab")
    (group,) = net.units.groups
    net.grow({group.name: 5})
    assert torch.equal(features(net, x), found)
    net.calibrate("c", *TASKS["c"])
    assert net.tasks[2].sums is not None
    assert net.tasks[2].sums.feature_map == PART.describe(), "later tasks take the map of earlier ones"
    net.forget("c")
    assert torch.equal(net.infer(x).scores, said.scores)


@pytest.mark.parametrize("kind", ["hat", "pmask"])
def test_files_and_copies_answer_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    net, x = calibrated(kind), torch.cat([x for x, _ in TASKS.values()])
    expected = net.infer(x)
    assert expected.scorer is Scorer.SUMS
    assert all(expected.task_names[24 * i : 24 * i + 24].count(name) >= 20 for i, name in enumerate(TASKS))
    net.save(tmp_path / "net")
    for again in (hatrack.load(tmp_path / "net", backbone()), copy.deepcopy(net)):
        found = again.infer(x)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.logits, expected.logits)
    with mode(net, False):
        accuracy = hatrack.measure_inference(net, TASKS)
    assert accuracy.task > 0.8


def test_weights_that_something_else_writes_are_put_back() -> None:
    net, x = calibrated(), pictures(9)
    expected = net.infer(x).scores
    with torch.no_grad():
        net.backbone[0][0][1].weight.mul_(2)
        net.backbone[0][0][2].running_mean.add_(1)
    with pytest.raises(hatrack.GuaranteeError, match="running_mean"):
        net.check()
    with pytest.warns(UserWarning, match="put back"):
        assert torch.equal(net.infer(x).scores, expected)


def test_a_task_in_training_does_not_stand_in_the_way() -> None:
    """While frozen weights are moved and cannot be put back, a copy of the network answers."""
    net, x = calibrated(), pictures(9)
    expected = net.infer(x).scores
    net.add_task("d", CLASSES)
    with torch.no_grad():
        net.backbone[0][0][1].weight.mul_(2)
    with pytest.warns(UserWarning, match="frozen entries"):
        assert torch.equal(net.infer(x).scores, expected)


# ------------------------------------------------------------------------------------------------------- other samples


class Padded(nn.Module):
    """Mean of an encoder's tokens, padding left out, and a layer that is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.encoder, self.out = Encoder().requires_grad_(False), nn.Linear(12, 8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1) / mask.sum(1).view(-1, 1, 1)
        return torch.relu(self.out((self.encoder(ids) * weights).sum(1)))


def layered() -> nn.Module:
    torch.manual_seed(2)
    return Mean(Encoder().requires_grad_(False), 8)


def sentences(seed: int, nested: bool) -> Any:
    ids = tokens(12, seed) // 5 + 5 * seed
    return {"ids": ids, "mask": torch.ones(12, 5)} if nested else ids


@pytest.mark.parametrize("nested", [False, True])
def test_tokens_and_several_inputs_are_recognised(nested: bool) -> None:
    net = HATNetwork(Padded() if nested else layered(), sentences(0, nested))
    y = torch.arange(12) % CLASSES
    for seed, name in enumerate("ab"):
        net.add_task(name, CLASSES)
        net.consolidate(name)
        net.calibrate(name, sentences(seed, nested), y, feature_map=UntrainedPart("encoder") if seed == 0 else None)
    for seed, name in enumerate("ab"):
        found = net.infer(sentences(seed, nested))
        assert found.scorer is Scorer.SUMS
        assert found.task_names.count(name) >= 10
    short = {"ids": tokens(2)[:, :3], "mask": torch.ones(2, 3)} if nested else tokens(2)[:, :3]
    assert net.infer(short).scores.shape == (2, 2), "features of any length have the same numbers"


def test_a_backbone_that_is_untrained_as_a_whole_is_its_own_part() -> None:
    net = HATNetwork(Mean(Encoder()).requires_grad_(False), tokens(2))
    net.add_task("a", CLASSES)
    net.consolidate("a")
    net.calibrate("a", tokens(12), torch.arange(12) % CLASSES, feature_map=UntrainedPart(""))
    expected = net.backbone(tokens(3, 5))
    assert torch.equal(UntrainedPart("").read(tokens(3, 5), net.masking), expected)


def test_samples_along_another_axis() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.first, self.second = nn.Linear(4, 5).requires_grad_(False), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.second(self.first(x.transpose(0, 1).mean(1))))

    net = HATNetwork(Turned(), torch.zeros(3, 2, 4), batch_axis=1)
    net.add_task("a", 2)
    net.consolidate("a")
    net.calibrate("a", torch.randn(3, 10, 4), torch.arange(10) % 2, feature_map=UntrainedPart("first"))
    assert net.infer(torch.randn(3, 5, 4)).scores.shape == (5, 1)


@pytest.mark.filterwarnings("ignore:no task used")
def test_streams_without_announced_switches_look_at_the_part() -> None:
    setup = Setup(layered, (), 0, torch.device("cpu"), example=tokens(2))
    method = METHODS["hat"](setup, HATSettings(c=0.1))
    learner = UnannouncedLearner(
        method, 2, partial(torch.optim.SGD, lr=0.05), feature_map=UntrainedPart("encoder", units=4)
    )
    for number in range(8):
        if number == 4:
            learner.announce()
        step = learner.observe(sentences(number // 4, False)[[*range(12)] * 2], torch.arange(24) % 2)
    learner.finish()
    assert learner.tasks == ["found-1", "found-2"]
    assert step.strangeness is not None
    for seed, name in enumerate(learner.tasks):
        assert learner.recognise(sentences(seed, False)).count(name) >= 10


# ------------------------------------------------------------------------------------------------------------- refusals


class Odd(nn.Module):
    """Parts that no recognition can go by, after one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fixed, self.twice, self.never = (nn.Linear(4, 4).requires_grad_(False) for _ in range(3))
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.pair, self.sign = Give(lambda x: (x, x)), Give(torch.view_as_complex)
        self.turned, self.two = Give(lambda x: x.T), Give(lambda x: x.T[:2])
        self.scale = nn.Parameter(torch.ones(4))
        self.scaled, self.behind, self.last = Give(lambda x: x), nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fixed(x)
        self.sign(x.view(len(x), 2, 2))
        self.two(self.turned(x).T)
        x = self.pair(x)[0]
        x = self.twice(self.twice(x))
        x = self.scaled(x * self.scale)
        return self.last(torch.relu(self.behind(self.norm(x))))


class Give(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fixd", "no module of the backbone 'fixd', did you mean 'fixed'"),
        ("never", "module 'never' of the backbone is not called"),
        ("twice", "is called 2 times"),
        ("pair", "no tensor of real numbers .*, but tuple: name a module"),
        ("sign", "no tensor of real numbers .*, but torch.complex64"),
        ("turned", r"gives shape \(4, 3\) for a batch of 3, .*whose first axis counts samples"),
        (
            "scaled",
            r"until module 'scaled' of the backbone has answered, 'scale' is computed with, .*requires_grad_\(False\)",
        ),
        ("norm", "'scale' and 2 more is computed with"),
        ("last", "'scale' and 6 more is computed with"),
        ("", "until the backbone has answered"),
    ],
)
def test_what_does_not_stay_or_is_none_is_refused(name: str, says: str) -> None:
    net = WeightMaskedNetwork(Odd(), torch.zeros(3, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    net.calibrate("a", x, y)
    before = net.tasks[0].sums
    with pytest.raises(InputError, match=says) as error:
        net.calibrate("a", x, y, feature_map=UntrainedPart(name))
    assert "\n" not in str(error.value)
    assert net.tasks[0].sums is before, "a refusal changes nothing"
    net.calibrate("a", x, y, feature_map=UntrainedPart("fixed"))


def test_a_trained_adapter_inside_is_refused() -> None:
    """The adapter runs inside the encoder; what stands before it is good."""
    net = HATNetwork(Mean(Adapted(), 8), tokens(2))
    net.add_task("a", CLASSES)
    net.consolidate("a")
    y = torch.arange(12) % CLASSES
    with pytest.raises(InputError, match=r"'encoder\.into\.weight' and 3 more is computed with"):
        net.calibrate("a", tokens(12), y, feature_map=UntrainedPart("encoder"))
    net.calibrate("a", tokens(12), y, feature_map=UntrainedPart("encoder.down"))


def test_statistics_that_training_moves_are_refused() -> None:
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)).requires_grad_(False)
    net = HATNetwork(nn.Sequential(normed, nn.Linear(5, 6), nn.ReLU()), torch.zeros(3, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    with pytest.raises(
        InputError, match=r"'0\.1\.running_mean' and 1 more is computed with, which training moves: name a module"
    ):
        net.calibrate("a", torch.randn(6, 4), torch.arange(6) % 2, feature_map=UntrainedPart("0"))
    net.calibrate("a", torch.randn(6, 4), torch.arange(6) % 2, feature_map=UntrainedPart("0.0"))


def test_settings_and_methods_that_make_no_sense_are_refused() -> None:
    for settings_, says in (({"units": -1}, "units"), ({"seed": -1}, "seed"), ({"unit_axis": "last"}, "unit_axis")):
        with pytest.raises(InputError, match=says):
            UntrainedPart("0", **settings_)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="module"):
        UntrainedPart(0)  # type: ignore[arg-type]
    net = consolidated("hat", "a")
    for axis in (0, 4, -5):
        with pytest.raises(InputError, match=f"no axis {axis} of units"):
            net.calibrate("a", *TASKS["a"], feature_map=UntrainedPart("0.0.3", unit_axis=axis))
    setup = Setup(backbone, (2, 5, 5), 0, torch.device("cpu"))
    with pytest.raises(InputError, match="sgd has no part that stays untrained"):
        UnannouncedLearner(METHODS["sgd"](setup, METHODS["sgd"].settings_type()), 2, torch.optim.SGD, feature_map=PART)  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_refused() -> None:
    net, x = calibrated(), pictures(9)
    x[3] = float("nan")
    with pytest.raises(InputError, match=r"1 of 24 samples \(row 3"):
        net.infer(x)


def test_the_recogniser_is_that_of_the_sums_alone() -> None:
    """No network is needed to solve them: it is to read samples."""
    net = calibrated()
    sums = {state.name: state.sums for state in net.tasks if state.sums is not None}
    assert solve_ridge(sums).feature_map == PART


def test_the_program_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "after-training.md").read_text(encoding="utf-8")
    (program,) = [each for each in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "UntrainedPart" in each]
    torch.manual_seed(0)
    exec(program, {})
    assert capsys.readouterr().out.count("bags") > 30


class Routed(nn.Module):
    """Frozen layer, to whose input a trained one adds something for some samples or some calls."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.trained = nn.Linear(4, 4)
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x if context is None else x + self.trained(context)
        return self.last(self.frozen(x)).relu()


def test_what_a_call_of_another_kind_computes_with_is_refused_then() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    net = HATNetwork(Routed(), {"x": x[:2], "context": x[:2]})
    net.add_task("a", 2)
    net.consolidate("a")
    net.calibrate("a", {"x": x}, y, feature_map=UntrainedPart("frozen"))
    assert net.infer({"x": x}).scores.shape == (8, 1)
    with pytest.raises(InputError, match=r"'trained\.weight' and 1 more is computed with"):
        net.infer({"x": x, "context": x})


@pytest.mark.parametrize("mixing", ["mean", "norm"])
def test_a_part_that_mixes_samples_is_refused(mixing: str) -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    first = Centred() if mixing == "mean" else nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    part = nn.Sequential(first, nn.Linear(4, 6)).requires_grad_(False)
    net = HATNetwork(nn.Sequential(part, nn.Linear(6, 6), nn.ReLU()), torch.zeros(2, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    with pytest.raises(InputError, match="for a sample depends on the others of its batch"):
        net.calibrate("a", torch.randn(8, 4), torch.arange(8) % 2, feature_map=UntrainedPart("0"))


def test_parameters_in_one_piece_of_memory_are_told_apart() -> None:
    backbone = nn.Sequential(nn.Linear(4, 6).requires_grad_(False), nn.Linear(6, 6), nn.ReLU())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(backbone.parameters()).detach(), backbone.parameters())
    net = HATNetwork(backbone, torch.zeros(2, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    net.calibrate("a", torch.randn(8, 4), torch.arange(8) % 2, feature_map=UntrainedPart("0"))
    with pytest.raises(InputError, match="is computed with"):
        net.calibrate("a", torch.randn(8, 4), torch.arange(8) % 2, feature_map=UntrainedPart("1"))


@pytest.mark.parametrize("setting", [{"units": 2.5}, {"units": 10.0}, {"seed": 0.5}, {"unit_axis": 1.5}])
def test_numbers_must_be_whole(setting: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        UntrainedPart("0", **setting)  # type: ignore[arg-type]
