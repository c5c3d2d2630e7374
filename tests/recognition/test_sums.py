"""Recognition by sums: the regression against a slow oracle, any order of tasks, forgetting, files, and bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hatrack
from hatrack import GuaranteeError, HATNetwork, InputError, Learner, Scorer, TrainingSettings
from hatrack.masks.sums import TaskSums
from hatrack.recognition import (
    RandomFilters,
    RandomUnits,
    RecogniserCache,
    default_feature_map,
    gather_sums,
    solve_ridge,
)
from support.helpers import CLASSES, NETS, attach, learn, logits, mode

MAP = RandomUnits(units=12, seed=1)

Samples = dict[str, tuple[Tensor, Tensor]]


def drawn(seed: int, samples: int, classes: int = 2, inputs: int = 3, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Samples around one point per class, of float64 so that oracles agree."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    centers = 2 * torch.randn(classes, inputs, generator=generator)
    return centers[y] + spread * torch.randn(samples, inputs, generator=generator), y


TASKS: Samples = {"c": drawn(0, 40), "a": drawn(1, 45, classes=3), "b": drawn(2, 90)}


def sums_of(samples: Samples, classes: dict[str, int] | None = None) -> dict[str, TaskSums]:
    return {
        name: gather_sums(MAP, [(x, y)], int(y.max()) + 1 if classes is None else classes[name])
        for name, (x, y) in samples.items()
    }


def oracle(samples: Samples, strength: float) -> tuple[np.ndarray, float]:
    """Weights and estimated error of the regression, from the samples themselves and with the matrix that fits them."""
    names = sorted(samples)
    counts = {name: int(samples[name][1].max()) + 1 for name in names}
    total, classes = sum(len(y) for _, y in samples.values()), sum(counts.values())
    rows, targets, shares, offset = [], [], [], 0
    for name in names:
        x, y = samples[name]
        rows.append(MAP.features(x)[:, 1:].double().numpy())
        targets.append(np.eye(classes)[offset + y.numpy()])
        shares.append(np.full(len(y), counts[name] / len(y) * total / classes))
        offset += counts[name]
    features, goals, weight = np.concatenate(rows), np.concatenate(targets), np.concatenate(shares)
    mean, level = weight @ features / total, weight @ goals / total
    centred = features - mean
    scale = np.sqrt(weight @ centred**2)
    root = np.sqrt(weight)[:, None]
    left, right = root * centred / scale, root * (goals - level)
    fitted = np.linalg.solve(left.T @ left + strength * np.eye(left.shape[1]), left.T @ right)
    hat = left @ np.linalg.solve(left.T @ left + strength * np.eye(left.shape[1]), left.T)
    residual = ((right - left @ fitted) ** 2).sum()
    error = total * residual / (total - 1 - np.trace(hat)) ** 2 / classes
    inner = fitted / scale[:, None]
    return np.concatenate([(level - mean @ inner)[None], inner]), error


def test_the_regression_is_that_of_the_samples_themselves() -> None:
    found = solve_ridge(sums_of(TASKS))
    weights, error = oracle(TASKS, found.strength)
    np.testing.assert_allclose(found.weights.numpy(), weights, rtol=1e-7, atol=1e-9)
    assert found.variance == pytest.approx(error, rel=1e-8)
    assert found.tasks == ("a", "b", "c")
    assert found.task_of.tolist() == [0, 0, 0, 1, 1, 2, 2]
    errors = {exponent: oracle(TASKS, 10.0**exponent)[1] for exponent in np.arange(-5, 2.1, 1)}
    assert found.variance <= min(errors.values()) * (1 + 1e-9), "the strength has the least estimated error"


def test_many_features_are_solved_with_an_estimated_trace() -> None:
    """Beyond 64 features the trace is estimated from random signs; the exact one is a few parts in a hundred away."""
    of = RandomUnits(units=200, seed=2)
    samples = {name: drawn(seed, 300, inputs=5, spread=1.5) for seed, name in enumerate("ab")}
    sums = {name: gather_sums(of, [each], 2) for name, each in samples.items()}
    found = solve_ridge(sums)
    features = torch.cat([of.features(samples[name][0]) for name in "ab"])[:, 1:].double()
    left = features - features.mean(0)
    left = left[:, left.square().sum(0) > 0]
    left = left / left.square().sum(0).sqrt()
    goals = torch.eye(4).double()[torch.cat([samples["a"][1], 2 + samples["b"][1]])]
    right = goals - goals.mean(0)
    inverse = torch.linalg.inv(left.T @ left + found.strength * torch.eye(left.shape[1]))
    residual = (right - left @ inverse @ left.T @ right).square().sum()
    degrees = 1 + torch.trace(left @ inverse @ left.T)
    assert found.variance == pytest.approx(float(600 * residual / (600 - degrees) ** 2 / 4), rel=0.03)


def test_densities_are_those_of_the_samples_themselves() -> None:
    found = solve_ridge(sums_of(TASKS)).densities
    features = {name: MAP.features(x).double().numpy() for name, (x, _) in TASKS.items()}
    new = MAP.features(torch.randn(6, 3, generator=torch.Generator().manual_seed(4))).double()
    projection = found.projection.numpy()
    covariances, means, counts = [], [], []
    for name in sorted(TASKS):
        y, placed = TASKS[name][1].numpy(), features[name] @ projection
        own = np.stack([placed[y == each].mean(0) for each in range(y.max() + 1)])
        covariances.append((placed - own[y]).T @ (placed - own[y]) / len(y))
        means.append(own)
        counts.append(len(y))
    size = projection.shape[1]
    pooled = sum(n * each for n, each in zip(counts, covariances, strict=True)) / sum(counts)
    share = size / (size + sum(counts))
    pooled = (1 - share) * pooled + share * np.diag(pooled).mean() * np.eye(size)
    expected = []
    for own, each, count in zip(means, covariances, counts, strict=True):
        share = size / (size + count)
        shrunk = (1 - share) * each + share * pooled
        for center in own:
            off = new.numpy() @ projection - center
            distance = np.einsum("nk,kl,nl->n", off, np.linalg.inv(shrunk), off)
            expected.append(-0.5 * (np.linalg.slogdet(shrunk)[1] + distance) * 10 / (10 + size))
    np.testing.assert_allclose(found.log_densities(new).numpy(), np.stack(expected, 1), rtol=1e-6, atol=1e-6)


def test_probabilities_by_hand() -> None:
    found = solve_ridge(sums_of(TASKS))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    features = MAP.features(x).double()
    outputs = features.numpy() @ found.weights.numpy()
    densities = found.densities.log_densities(features).exp().numpy()
    for row, density, said in zip(outputs, densities, found.log_probabilities(x).exp().numpy(), strict=True):
        distances = ((row - found.points.numpy()) ** 2).sum(1)
        likelihood = np.sqrt((1 + distances / (7 * found.variance)) ** (-8 / 2) * density)
        share = likelihood / likelihood.sum()
        expected = [share[:3].sum(), share[3:5].sum(), share[5:].sum()]
        np.testing.assert_allclose(said, expected, rtol=1e-9)
    for task, index in (("a", 0), ("b", 1), ("c", 2)):
        chosen = found.log_probabilities(TASKS[task][0]).argmax(1)
        assert float((chosen == index).double().mean()) > 0.75


def test_a_task_of_the_same_means_is_told_by_its_spread() -> None:
    """No regression that is linear in the features can do that."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = (scale * torch.randn(400, 5, generator=generator) for scale in (0.3, 3.0))
    of, y = RandomUnits(units=1), torch.zeros(400).long()
    found = solve_ridge({"narrow": gather_sums(of, [(narrow, y)], 1), "wide": gather_sums(of, [(wide, y)], 1)})
    for index, x in enumerate((narrow, wide)):
        assert float((found.log_probabilities(x).argmax(1) == index).double().mean()) > 0.9


@settings(max_examples=6)
@given(st.permutations(sorted(TASKS)))
def test_the_order_of_tasks_does_not_matter(order: list[str]) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    expected = solve_ridge(sums_of(TASKS)).log_probabilities(x)
    assert torch.equal(solve_ridge(sums_of({name: TASKS[name] for name in order})).log_probabilities(x), expected)


@given(st.integers(1, 89), st.integers(1, 50))
@settings(max_examples=6)
def test_sums_of_parts_add_up(cut: int, batch: int) -> None:
    """Up to the rounding of features, which are float32 and differ in the last digits for other batches."""
    x, y = TASKS["b"]
    whole = gather_sums(MAP, [(x, y)], 2)
    parts = [gather_sums(MAP, [(x[some], y[some])], 2) for some in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(parts[0].gram + parts[1].gram, whole.gram, rtol=1e-6, atol=1e-5)
    batches = gather_sums(MAP, zip(x.split(batch), y.split(batch), strict=True), 2)
    torch.testing.assert_close(batches.gram, whole.gram, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(batches.targets, whole.targets, rtol=1e-6, atol=1e-5)


def test_a_triangle_is_the_whole_matrix() -> None:
    features = MAP.features(TASKS["a"][0]).double()
    sums = sums_of(TASKS)["a"]
    torch.testing.assert_close(sums.square(), features.T @ features, rtol=1e-12, atol=1e-12)
    assert torch.equal(sums.square(), sums.square().T)
    assert sums.num_bytes == 8 * (16 * 17 // 2 + 16 * 3)


def test_few_samples_count_as_much_as_many() -> None:
    """One-hot outputs of a task with a fiftieth of the samples are small; it must be found all the same."""
    samples = {"small": drawn(0, 20, spread=1.0), "large": drawn(1, 1000, spread=1.0)}
    found = solve_ridge(sums_of(samples))
    for index, (seed, task) in enumerate(((1, "large"), (0, "small"))):
        generator = torch.Generator().manual_seed(seed)
        centers = 2 * torch.randn(2, 3, generator=generator)
        new = centers.repeat(200, 1) + torch.randn(400, 3, generator=torch.Generator().manual_seed(9))
        chosen = found.log_probabilities(new).argmax(1)
        assert float((chosen == index).double().mean()) > 0.75, task


# ------------------------------------------------------------------------------------------------------------ odd input


def test_a_class_without_samples_changes_nothing() -> None:
    usual = solve_ridge(sums_of(TASKS))
    more = solve_ridge(sums_of(TASKS, {"a": 5, "b": 2, "c": 3}))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(more.log_probabilities(x), usual.log_probabilities(x))


def test_fewer_samples_than_features_and_constant_features() -> None:
    samples = {name: (torch.cat([x[:4], torch.full((4, 1), 3.0)], 1), y[:4]) for name, (x, y) in TASKS.items()}
    of = RandomUnits(units=40)
    found = solve_ridge({name: gather_sums(of, [each], 3) for name, each in samples.items()})
    assert found.weights.isfinite().all()
    assert torch.equal(found.weights[4], torch.zeros(7).double()), "the number that is always 3 says nothing"
    for index, name in enumerate(found.tasks):
        assert torch.equal(found.log_probabilities(samples[name][0]).argmax(1), torch.full((4,), index)), name


@pytest.mark.parametrize("samples", [1, 2])
def test_one_task_of_one_class_is_certain(samples: int) -> None:
    found = solve_ridge({"only": gather_sums(MAP, [(torch.ones(samples, 3), torch.zeros(samples).long())], 1)})
    assert found.log_probabilities(torch.randn(2, 3)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_numbers_of_any_scale_tell_tasks(scale: float) -> None:
    samples = {name: (x * torch.tensor([1.0, scale, 1.0]), y) for name, (x, y) in TASKS.items()}
    found = solve_ridge(sums_of(samples))
    for index, name in enumerate(found.tasks):  # chance is 1/3
        assert float((found.log_probabilities(samples[name][0]).argmax(1) == index).double().mean()) > 0.6, name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    x, y = drawn(0, 10)
    spoilt = x.clone()
    spoilt[3, 1] = value
    with pytest.raises(InputError, match=r"1 of 10 samples \(row 3 of this batch\)"):
        gather_sums(MAP, [(spoilt, y)], 2)
    with pytest.raises(InputError, match="no task can be told"):
        solve_ridge(sums_of(TASKS)).log_probabilities(spoilt)


def test_sums_of_different_features_are_refused() -> None:
    other = gather_sums(RandomUnits(units=12, seed=2), [TASKS["a"]], 3)
    with pytest.raises(InputError, match=r"do not add up .*: calibrate all tasks with one feature_map"):
        solve_ridge({"a": other, **sums_of({"b": TASKS["b"]})})
    wide = gather_sums(MAP, [drawn(0, 10, inputs=4)], 2)
    with pytest.raises(InputError, match="of one shape"):
        solve_ridge({"a": wide, **sums_of({"b": TASKS["b"]})})
    with pytest.raises(InputError, match="bring them to that shape"):
        solve_ridge(sums_of(TASKS)).log_probabilities(torch.zeros(2, 4))
    with pytest.raises(InputError, match="no samples"):
        gather_sums(MAP, [], 2)


def test_damaged_sums_are_refused() -> None:
    tensors = sums_of(TASKS)["a"].tensors()
    assert torch.equal(TaskSums.from_tensors(tensors).gram, tensors["gram"])
    for change in ({"gram": tensors["gram"].float()}, {"gram": tensors["gram"][:-1]}, {"targets": tensors["gram"]}):
        with pytest.raises(InputError, match="sums of a task are damaged"):
            TaskSums.from_tensors({**tensors, **change})
    with pytest.raises(InputError, match="gram is missing"):
        TaskSums.from_tensors({name: each for name, each in tensors.items() if name != "gram"})


def test_the_solution_is_kept_until_sums_are_others() -> None:
    cache, sums = RecogniserCache(), sums_of(TASKS)
    first = cache.of(sums)
    assert cache.of(dict(reversed(sums.items()))) is first
    fewer = cache.of({name: sums[name] for name in "ab"})
    assert fewer.tasks == ("a", "b")
    again = cache.of({"a": sums["a"], "b": sums["c"]})
    assert again is not fewer
    cache.drop()
    assert cache.of({"a": sums["a"], "b": sums["c"]}) is not again


# --------------------------------------------------------------------------------------------------------- in networks


def three_tasks(kind: str = "mlp") -> tuple[HATNetwork, Samples]:
    net = attach(kind)
    samples = {}
    for seed, task in enumerate(("a", "b", "c")):
        samples[task] = learn(net, task, seed, steps=3)
        net.calibrate(task, *samples[task])
    return net, samples


def test_tasks_are_recognised_in_one_pass_and_asked_alone() -> None:
    net, samples = three_tasks()
    x = torch.cat([x for x, _ in samples.values()])
    net.infer(x)
    with patch.object(net.masking.attachment, "run", wraps=net.masking.attachment.run) as run:
        inferred = net.infer(x)
    assert run.call_count == 1
    assert inferred.scorer is Scorer.SUMS
    assert inferred.task_names == [task for task, (_, y) in samples.items() for _ in y]
    torch.testing.assert_close(inferred.scores.exp().sum(1), torch.ones(len(x)))
    with mode(net, False), torch.no_grad():
        torch.testing.assert_close(inferred.logits, net(x, inferred.task_names), rtol=1e-4, atol=1e-4)
    assert net.infer(x[:0]).logits.shape == (0, CLASSES)
    assert net.infer(x[:1]).task_names == ["a"]
    with pytest.raises(InputError, match="not a number"):
        net.infer(torch.full_like(x[:2], float("nan")))


def test_old_answers_keep_every_bit() -> None:
    net, samples = three_tasks()
    before = {task: logits(net, x, task) for task, (x, _) in samples.items()}
    for task in samples:
        net.calibrate(task, *samples[task])
    net.infer(samples["a"][0])
    assert all(torch.equal(logits(net, x, task), before[task]) for task, (x, _) in samples.items())


def test_forgetting_a_task_leaves_a_recogniser_that_never_saw_it(tmp_path: Path) -> None:
    net, samples = three_tasks()
    x = torch.cat([x for x, _ in samples.values()])
    net.infer(x)
    kept = {state.name: state.sums for state in net.tasks if state.sums is not None and state.name != "b"}
    gone = net.tasks[1].sums
    assert gone is not None
    net.forget("b")
    assert net.recognisers.of(kept) is not None
    expected = solve_ridge(kept).log_probabilities(x)
    torch.testing.assert_close(net.infer(x).scores.double(), expected, rtol=1e-6, atol=1e-6)
    net.save(tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    assert kept["a"] is not None
    assert kept["a"].gram.numpy().tobytes() in content
    assert gone.gram.numpy().tobytes() not in content
    assert gone.gram[1:9].numpy().tobytes() not in content


def test_nothing_is_left_in_memory_of_a_forgotten_task() -> None:
    net, samples = three_tasks()
    net.infer(samples["a"][0])
    net.forget("b")
    assert "b" not in repr(vars(net.recognisers))


@pytest.mark.slow
def test_files_keep_sums_and_older_ones_do_without(tmp_path: Path) -> None:
    net, samples = three_tasks()
    x, y = samples["c"]
    net.save(tmp_path / "net")
    again = hatrack.load(tmp_path / "net", NETS["mlp"].build())
    assert torch.equal(again.infer(x).scores, net.infer(x).scores)
    other = attach("mlp")
    for task in samples:
        other.add_task(task, CLASSES)
        other.consolidate(task)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.infer(x).scores, net.infer(x).scores)
    for state in net.tasks:
        state.sums = None  # as in a file of an earlier version
    net.renew()
    net.save(tmp_path / "older")
    older = hatrack.load(tmp_path / "older", NETS["mlp"].build())
    assert older.infer(x).scorer is Scorer.DISTANCE
    with pytest.raises(InputError, match=r"'a', 'b', 'c' have no sums .* calibrate\('a', x, y\) anew"):
        older.infer(x, Scorer.SUMS)
    older.calibrate("c", x, y)
    with pytest.raises(InputError, match=r"'a', 'b' have no sums .* calibrate\('a', x, y\) anew"):
        older.infer(x)
    assert older.infer(x, Scorer.DISTANCE).scorer is Scorer.DISTANCE
    other.load_state_dict(older.state_dict())
    assert [state.sums is None for state in other.tasks] == [True, True, False]


def test_sums_are_protected() -> None:
    net, _ = three_tasks()
    sums = net.tasks[0].sums
    assert sums is not None
    sums.gram.add_(1.0)
    with pytest.raises(GuaranteeError, match="task a"):
        net.check()


def test_conversions_copies_and_growth_leave_sums_as_they_are() -> None:
    net, samples = three_tasks()
    x, _ = samples["a"]
    before = net.infer(x).scores
    copied = copy.deepcopy(net)
    assert torch.equal(copied.infer(x).scores, before)
    assert copied.tasks[0].sums is net.tasks[0].sums
    net.grow({"4": 5})
    assert torch.equal(net.infer(x).scores, before)
    net.double()
    assert torch.equal(net.infer(x.double()).scores, before)
    with pytest.warns(UserWarning, match="rounds weights"):
        net.half()
    assert net.tasks[0].sums is copied.tasks[0].sums
    assert net.tasks[0].calibration is not None
    assert net.tasks[0].calibration.centers.dtype == torch.float16


@pytest.mark.slow
def test_one_map_serves_all_tasks() -> None:
    net, samples = three_tasks("conv-bn")
    chosen = RandomFilters(filters=4, size=3)
    with pytest.raises(InputError, match="calibrate all tasks with one feature_map"):
        net.calibrate("a", *samples["a"], feature_map=chosen)
    sums = net.tasks[0].sums
    assert sums is not None
    assert sums.feature_map == default_feature_map((2, 6, 6)).describe()
    for state in net.tasks:
        state.sums = None
    net.renew()
    net.calibrate("b", *samples["b"], feature_map=chosen)
    net.calibrate("a", *samples["a"])
    assert net.tasks[0].sums is not None
    assert net.tasks[0].sums.feature_map == chosen.describe()


def test_a_failed_calibration_changes_nothing() -> None:
    net, samples = three_tasks()
    x, y = samples["a"]
    before, scores = net.tasks[0].sums, net.infer(x).scores
    spoilt = x.clone()
    spoilt[0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not a number"):
        net.calibrate("a", spoilt, y)
    assert net.tasks[0].sums is before
    assert torch.equal(net.infer(x).scores, scores)
    net.check()


def test_a_task_that_was_never_calibrated_is_named() -> None:
    net, samples = three_tasks()
    learn(net, "d", 4, steps=1)
    for scorer in (None, Scorer.SUMS):
        with pytest.raises(InputError, match=r"task 'd' was not calibrated: call calibrate\('d', x, y\)"):
            net.infer(samples["a"][0], scorer)


def test_tokens_have_no_shared_features() -> None:
    backbone = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(24, 16), nn.ReLU())
    net = HATNetwork(backbone, torch.zeros(2, 3, dtype=torch.int64))
    x, y = torch.arange(12).view(4, 3) % 9, torch.arange(4) % 2
    net.add_task("words", 2)
    net.consolidate("words")
    with pytest.raises(InputError, match="one tensor of real numbers"):
        net.calibrate("words", x, y, feature_map=MAP)
    net.calibrate("words", x, y)
    assert net.tasks[0].sums is None
    assert net.infer(x).scorer is Scorer.DISTANCE


@pytest.mark.slow
def test_pictures_of_another_size_are_told_by_distances_and_never_by_sums() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    net = HATNetwork(backbone, torch.zeros(1, 1, 16, 16)).eval()
    pictures = {"small": torch.randn(20, 1, 16, 16), "large": torch.randn(20, 1, 20, 20)}
    for name, x in pictures.items():
        net.add_task(name, 2)
        net.consolidate(name)
        net.calibrate(name, x, torch.arange(20) % 2)
        if name == "small":
            with pytest.raises(InputError, match=r"shape \(1, 20, 20\), and tasks were calibrated on \(1, 16, 16\)"):
                net.infer(pictures["large"])
    with pytest.raises(InputError, match=r"'large' has no sums .* scorer=Scorer\.DISTANCE"):
        net.infer(pictures["large"])
    assert len(net.infer(pictures["large"], Scorer.DISTANCE).task_names) == 20
    with pytest.raises(InputError, match="of one shape"):
        net.calibrate("large", pictures["large"], torch.arange(20) % 2, feature_map=default_feature_map((1, 20, 20)))


@pytest.mark.parametrize("samples", [torch.eye(6)[:2], torch.full((4, 6), 3.0), torch.eye(6)[[0, 0, 1, 1]] * 1e3])
def test_classes_that_do_not_vary_within_are_recognised_all_the_same(samples: torch.Tensor) -> None:
    """Of one sample, or many that are the same, a covariance is nothing but rounding, of either sign."""
    learner = Learner(
        nn.Sequential(nn.Linear(6, 12), nn.ReLU()), (6,), training=TrainingSettings(epochs=1), validation=0
    )
    classes = torch.arange(len(samples)) * 2 // len(samples)
    for task, shift in (("a", 0.0), ("b", 5.0)):
        learner.fit(task, (samples + shift, classes))
    said = learner.predict(torch.cat([samples, samples + 5.0]))
    assert said.tasks == ("a",) * len(samples) + ("b",) * len(samples)
