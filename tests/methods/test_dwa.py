from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatrack.backbones import AlexNet, ResNet18, ViT
from hatrack.errors import InputError
from hatrack.methods import Batch
from hatrack.methods.complexity import sample_complexity
from hatrack.methods.dwa import DWA
from hatrack.methods.dwa.losses import MaskMagnitude, anchor_loss, anchor_loss_of_code
from hatrack.methods.dwa.masks import MaskForm, MaskGate, Usage
from hatrack.methods.dwa.method import DWASettings, DWAVariant, choose_anchors, positive_anchor, simple_samples
from hatrack.methods.dwa.network import Context, DWABackbone, context_processor
from hatrack.methods.importance import Fisher, fisher_diagonal
from support.toys import IMAGE, IMAGES, TASKS, accuracy, learn, logits, make


def dwa(network: str = "deep", **settings: Any) -> DWA:
    method = make("dwa", network, **settings)
    assert isinstance(method, DWA)
    return method


def backbone(network: nn.Module, shape: tuple[int, ...], embedding: int = 10) -> DWABackbone:
    example, generator = torch.zeros(1, *shape), torch.Generator().manual_seed(0)
    return DWABackbone(network, example, Context.PROCESSOR, embedding, MaskForm.TANH_OF_OUTER, 2**24, generator)


def whole(method: DWA, task: Any = TASKS[0]) -> Batch:
    x, y = task.train.load()
    return Batch(x, y, (task.name,), torch.zeros(len(y), dtype=torch.int64), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "tasks"), [("dropout", TASKS), ("plain", IMAGES)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"mask": MaskForm.OUTER_OF_TANH}, {"context": Context.TASK}, {"variant": DWAVariant.CODE}],
)
def test_it_learns(network: str, tasks: Any, settings: dict[str, Any]) -> None:
    method = dwa(network, **settings)
    learn(method, tasks[:1], epochs=40, lr=0.2)
    assert accuracy(method, tasks[0]) > 0.85


@pytest.mark.parametrize(("network", "shape"), [("dropout", (4,)), ("plain", IMAGE)])
@pytest.mark.parametrize("context", Context)
def test_mixed_samples_equal_the_samples_one_by_one(network: str, shape: Any, context: Context) -> None:
    method = dwa(network, context=context)
    for task in TASKS[:2]:
        method.network.add_task(task.name, task.num_classes, torch.Generator().manual_seed(1))
    method.train_mode(False)
    x, task_of = torch.randn(6, *shape), torch.tensor([0, 1, 1, 0, 1, 0])
    with torch.no_grad():
        mixed = method.network(x, ["first", "second"], task_of)
        for row, number in enumerate(task_of.tolist()):
            alone = method.network(x[row : row + 1], [("first", "second")[number]])[0]
            torch.testing.assert_close(mixed[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_masks_depend_on_the_sample_or_on_the_task_alone() -> None:
    x = torch.randn(3, 4)
    for context in Context:
        method = dwa(context=context)
        for name in ("first", "second"):
            method.network.add_task(name, 2, torch.Generator())
        embedding = method.network.run(x, ["first"]).embedding
        assert torch.equal(embedding[0], embedding[1]) == (context is Context.TASK)
        other = method.network.run(x, ["second"]).embedding
        assert torch.equal(embedding, other) == (context is Context.PROCESSOR)
    assert embedding.argmax(1).tolist() == [0] * 3
    assert other.argmax(1).tolist() == [1] * 3
    torch.testing.assert_close(embedding.norm(dim=1), torch.full((3,), 10.0))


def test_the_loss_of_the_code_by_its_parts() -> None:
    """λ1 = 10 and α = 1, a sigmoid for masks, sums over a batch of 32, and plasticity as a mean over weights."""
    method = dwa(variant=DWAVariant.CODE)
    learn(method, TASKS[:1], epochs=2, lr=0.01)
    method.begin_task(TASKS[1])
    batch = whole(method, TASKS[1])
    method.begin_epoch(1, 10, batch)
    batch = replace(batch, rows=torch.arange(len(batch.x)))
    usage = Usage(1.0, MaskMagnitude.ABSOLUTE, method.importance)
    result = method.network.run(batch.x, batch.tasks, batch.task_of, usage)
    layers = method.network.backbone.layers()
    masks = {name: layer.masks(result.embedding) for name, layer in layers.items()}
    expected = F.cross_entropy(method.network(batch.x, ["second"]), batch.y)
    for name, mask in masks.items():
        assert float(mask.min().detach()) > 0
        assert float(mask.max().detach()) < 1
        expected = expected + 0.05 * (mask * method.importance[name]).mean()
        expected = expected + 500 * 32 * (1 - mask.flatten(1).mean(1) - 0.2).relu().mean()
    zeta = method._complexity[batch.rows]
    anchors = anchor_loss_of_code(result.embedding, zeta, *method._anchors, 1.0, 1.0)
    torch.testing.assert_close(method.loss(batch).value, expected + 10 * anchors, rtol=1e-4, atol=1e-4)


def test_settings_go_before_the_variants_values() -> None:
    paper, code = DWASettings(), DWASettings(variant=DWAVariant.CODE, margin=7.0)
    assert paper.numbers == (20.0, 0.1, 1.5, MaskMagnitude.POSITIVE, MaskGate.TANH)
    assert code.numbers == (10.0, 0.05, 7.0, MaskMagnitude.ABSOLUTE, MaskGate.SIGMOID)


def test_one_hot_tasks_have_an_end() -> None:
    method = dwa(context=Context.TASK, embedding=2)
    learn(method, TASKS[:2], epochs=1)
    with pytest.raises(InputError, match="embedding=2 tells no more tasks apart"):
        method.begin_task(TASKS[2])


def test_the_processor_is_that_of_the_paper() -> None:
    pictures = context_processor((64, 14, 14), 100)
    kinds = [type(part).__name__ for part in pictures]
    assert kinds == ["Conv2d", "Conv2d", "ReLU", "Flatten", "Linear", "Tanh"]
    shapes = [tuple(parameter.shape) for parameter in pictures.parameters() if parameter.dim() > 1]
    assert shapes == [(32, 64, 1, 1), (128, 32, 3, 3), (100, 128 * 7 * 7)]
    for size in (1, 2, 5, 6):
        assert context_processor((3, size, size), 9)(torch.randn(2, 3, size, size)).shape == (2, 9)
    assert context_processor((20,), 100)(torch.randn(2, 20)).shape == (2, 100)


def test_every_layer_after_the_first_has_masks_of_its_weights_shape() -> None:
    network = backbone(AlexNet((3, 32, 32), width=0.1), (3, 32, 32))
    shapes = [(13, 6, 3, 3), (26, 13, 2, 2), (205, 26 * 4), (205, 205)]
    masks = [layer.masks(torch.randn(2, 10)) for layer in network.layers().values()]
    assert [tuple(mask.shape[1:]) for mask in masks] == shapes
    assert list(network.layers()) == [n for n, _ in network.named_parameters() if n.endswith("layer.weight")]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, network.features) == (2, 205)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ResNet18((3, 32, 32), width=4), "BatchNorm2d 'norm' is neither"),
        (ResNet18((3, 32, 32), width=4, batch_norm=False), "BasicBlock 'stage1block1' is neither"),
        (ViT((3, 32, 32), width=12, depth=1), "a ViT, which is no nn.Sequential"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten()), "Conv2d '0' is neither"),
        (nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), nn.Flatten()), "Conv2d '0' is neither"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(1024, 5)), r"the first layer gives \(3, 5\)"),
        (nn.Sequential(nn.Linear(32, 5), nn.Linear(5, 4)), r"a dense layer reads \(3, 32, 5\) and no vector"),
        (nn.Flatten(), "no nn.Sequential"),
        (nn.Sequential(nn.Flatten()), "no such layer"),
    ],
)
def test_other_networks_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=f"such as the networks mlp and alexnet.*{message}"):
        backbone(network, (3, 32, 32))


def test_making_one_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    dwa("deep")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_curriculum_and_warm_up_follow_the_paper_in_200_epochs_and_shrink_in_fewer() -> None:
    method = dwa("plain")
    method.begin_task(IMAGES[0])
    samples = whole(method, IMAGES[0])
    zeta = sample_complexity(samples.x)

    def plan(epoch: int, epochs: int) -> tuple[list[int] | None, float]:
        planned = method.begin_epoch(epoch, epochs, samples)
        return None if planned.rows is None else planned.rows.tolist(), planned.lr_factor

    for epoch, epochs, threshold in ((1, 200, 0.2), (51, 200, 0.6), (100, 200, 0.992), (1, 20, 0.2), (6, 20, 0.6)):
        assert plan(epoch, epochs)[0] == [row for row, value in enumerate(zeta.tolist()) if value <= threshold]
    assert plan(101, 200)[0] is plan(11, 20)[0] is plan(1, 1)[0] is None
    factors = [plan(epoch, 200)[1] for epoch in (1, 10, 11, 200)]
    assert factors == [1 / 750, 1 / 750, 1.0, 1.0]
    assert [plan(epoch, 20)[1] for epoch in (1, 2)] == [1 / 750, 1.0]
    assert plan(1, 1)[1] == 1.0


def test_anchors_are_made_of_simple_samples() -> None:
    zeta = torch.tensor([0.9, 0.1, 0.39, 0.4, 0.0])
    generator = torch.Generator().manual_seed(0)
    assert sorted(simple_samples(zeta, 0.4, 320, generator).tolist()) == [1, 2, 4]
    assert len(simple_samples(zeta, 0.4, 2, generator)) == 2
    assert simple_samples(zeta, 0.0, 320, generator).tolist() == [4], "the simplest, if none is simple"


def test_negative_anchors_are_those_with_the_highest_loss() -> None:
    method = dwa("plain")
    method.begin_task(IMAGES[0])
    samples = whole(method, IMAGES[0])
    earlier = [torch.randn(100, generator=torch.Generator().manual_seed(seed)).tanh() for seed in range(4)]

    def anchors(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return choose_anchors(method.network, "first", samples.x, samples.y, earlier, 5, generator)

    def loss(embedding: Tensor) -> float:
        method.train_mode(False)
        each = embedding.expand(len(samples.x), -1)
        features = method.network.backbone(samples.x, each)
        return float(F.cross_entropy(method.network.logits(features, ["first"]), samples.y))

    chosen = anchors(0)
    with torch.no_grad():
        method.train_mode(False)
        mean = method.network.run(samples.x, ["first"]).embedding.mean(dim=0)
        torch.testing.assert_close(chosen.positive, mean)
        assert abs(float(chosen.negative @ chosen.positive)) < 1e-4
        losses = [loss(embedding) for embedding in earlier]
        assert torch.equal(chosen.task_negative, earlier[losses.index(max(losses))])
        others = [loss(anchors(0).negative)]
        generator = torch.Generator().manual_seed(0)
        one_of_five = choose_anchors(method.network, "first", samples.x, samples.y, [], 1, generator)
        assert others[0] >= loss(one_of_five.negative) - 1e-6
        assert one_of_five.task_negative is None


def test_the_loss_is_the_sum_of_its_parts() -> None:
    method = dwa("plain", magnitude=MaskMagnitude.ABSOLUTE, plasticity_strength=3.0, allowed=0.0, eta=2.0)
    learn(method, IMAGES[:1], epochs=1)
    method.begin_task(IMAGES[1])
    samples = whole(method, IMAGES[1])
    method.begin_epoch(1, 200, samples)
    method.train_mode(True)
    rows = torch.tensor([3, 8, 5])
    batch = Batch(samples.x[rows], samples.y[rows], ("second",), samples.task_of[rows], 0.0, rows)
    network = method.network
    (layer,) = network.backbone.layers().values()  # type: ignore[union-attr,operator]
    result = network.run(batch.x, ["second"])
    masks = layer.masks(result.embedding)
    (importance,) = method.importance.values()
    assert float(importance.sum()) > 0
    parts = {
        "task": F.cross_entropy(network.logits(result.features, ["second"]), batch.y),
        "plasticity": 3.0 * (importance * (2.0 * masks).abs()).sum((1, 2, 3, 4)).mean(),
        "sparsity": 500.0 * masks.abs().mean((1, 2, 3, 4)).mean(),
    }
    assert parts["sparsity"] > 0
    assert method._anchors is not None
    zeta = sample_complexity(samples.x)[rows]
    anchors = 20.0 * anchor_loss(result.embedding, zeta, *method._anchors, 1.5, 1.0).mean()
    assert anchors > 0
    torch.testing.assert_close(method.loss(batch).value, sum(parts.values()) + anchors)
    validation = Batch(batch.x, batch.y, batch.tasks, batch.task_of, 1.0)
    torch.testing.assert_close(method.loss(validation).value, sum(parts.values()))


@pytest.mark.parametrize(("settings", "first"), [({}, False), ({"anchor_first_task": True}, True)])
def test_the_first_task_has_anchors_only_if_asked_for(settings: dict[str, Any], first: bool) -> None:
    method = dwa(**settings)
    method.begin_task(TASKS[0])
    method.begin_epoch(1, 10, whole(method))
    assert (method._anchors is not None) == first
    method.end_task(TASKS[0])
    method.begin_task(TASKS[1])
    method.begin_epoch(1, 10, whole(method, TASKS[1]))
    assert method._anchors is not None
    assert torch.equal(method._anchors.task_negative, method.positives[0])  # type: ignore[arg-type]


def test_the_importance_is_the_running_mean_of_fisher_diagonals() -> None:
    method = dwa("deep", fisher=Fisher.TRUE)
    diagonals = []
    for number, task in enumerate(TASKS):
        learn(method, TASKS[: number + 1], first=number, epochs=1)
        diagonals.append(fisher_diagonal(method.network, task, Fisher.TRUE))
    assert list(method.importance) == ["masked.0.layer.weight"]
    for name, mean in method.importance.items():
        torch.testing.assert_close(mean, torch.stack([d[name] for d in diagonals]).mean(dim=0))
    assert len(method.positives) == 3


@pytest.mark.slow
def test_the_fisher_diagonal_of_masked_weights_is_that_of_single_samples() -> None:
    method = dwa("plain")
    method.begin_task(IMAGES[0])
    x, y = IMAGES[0].train.load()
    measured = fisher_diagonal(method.network, IMAGES[0], Fisher.TRUE)["masked.0.layer.weight"]
    method.train_mode(False)
    weight = dict(method.network.backbone.named_parameters())["masked.0.layer.weight"]
    expected = torch.zeros_like(weight)
    for row in range(len(x)):
        loss = F.cross_entropy(method.network(x[row : row + 1], ["first"]), y[row : row + 1])
        expected += torch.autograd.grad(loss, weight)[0].square() / len(x)
    torch.testing.assert_close(measured, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("context", Context)
def test_it_goes_on_after_loading_with_importance_and_anchors(context: Context, tmp_path: Path) -> None:
    straight, before, after = (dwa("deep", context=context) for _ in range(3))
    learn(straight, TASKS, epochs=3)
    learn(before, TASKS[:2], epochs=3)
    before.save(tmp_path / "net.hat")
    assert after.load(tmp_path / "net.hat") == ("first", "second")
    learn(after, TASKS, first=2, epochs=3)
    assert torch.equal(logits(after, TASKS[0]), logits(straight, TASKS[0]))
    assert all(torch.equal(after.importance[name], value) for name, value in straight.importance.items())
    assert len(after.positives) == (3 if context is Context.PROCESSOR else 0)
    assert all(torch.equal(a, b) for a, b in zip(after.positives, straight.positives, strict=True))


def test_steps_have_a_bounded_gradient() -> None:
    method = dwa("deep", gradient_norm=0.5)
    method.begin_task(TASKS[0])
    parameters = method.trained_parameters()
    optimizer = method.protect(torch.optim.SGD(parameters, lr=1.0))
    before = [parameter.detach().clone() for parameter in parameters]
    (100 * method.loss(whole(method)).value).backward()
    optimizer.step()
    moved = torch.stack([(p.detach() - b).norm() for p, b in zip(parameters, before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.5, rel=1e-3)


def test_the_positive_anchor_does_not_depend_on_the_mode() -> None:
    method = dwa("dropout")
    method.begin_task(TASKS[0])
    x = TASKS[0].train.load()[0]
    method.train_mode(True)
    one = positive_anchor(method.network, "first", x)
    assert method.network.training
    method.train_mode(False)
    assert torch.equal(positive_anchor(method.network, "first", x), one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding": 1}, "embedding must be at least 2"),
        ({"gradient_norm": 0.0}, "gradient_norm must be above 0"),
        ({"warmup_divisor": 0.5}, "warmup_divisor must be at least 1"),
        ({"curriculum_start": 1.5}, "curriculum_start must be at least 0 and at most 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dwa(**settings)
