"""Recognising tasks: scores by hand, one pass, calibration in files and gone with its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import hatrack
from hatrack import GuaranteeError, HATNetwork, InputError, Learner, Scorer, measure_inference
from hatrack.masks.calibration import OWN_SCORERS, Calibration, fit_calibration, raw_score
from hatrack.train import TrainingSettings
from support.helpers import CLASSES, NETS, SAMPLES, attach, learn, logits, mode, open_task
from support.weight_networks import attach as attach_weights
from support.weight_networks import learn as learn_weights

EVERY_SCORER = pytest.mark.parametrize("scorer", Scorer)


def three_tasks(kind: str = "conv-bn", calibrate: bool = True) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    weights = kind == "weights"
    net: Any = attach_weights("wsn", "mlp") if weights else attach(kind)
    samples = {}
    for seed, task in enumerate(("a", "b", "c")):
        samples[task] = learn_weights(net, task, seed, steps=15) if weights else learn(net, task, seed, steps=15)
        if calibrate:
            net.calibrate(task, *samples[task])
    return net, samples


def test_scores_by_hand() -> None:
    answers, features = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [4.0, 2.0]])
    assert raw_score(Scorer.MAX_LOGIT, features, answers, None).tolist() == [3.0, 0.0]
    expected = torch.tensor([torch.e**1 + torch.e**3, 2.0]).log()
    torch.testing.assert_close(raw_score(Scorer.ENERGY, features, answers, None), expected)
    known = Calibration(
        torch.zeros(3), torch.ones(3), torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([1.0, 0.25])
    )
    # nearest centers (0, 0) and (4, 0); differences (1, 0) and (0, 2), in units of the spread (1, 0) and (0, 1)
    score = raw_score(Scorer.DISTANCE, features, answers, known)
    torch.testing.assert_close(score, -torch.tensor([0.5, 0.5]).sqrt())
    with pytest.raises(InputError, match="all of them together"):
        raw_score(Scorer.SUMS, features, answers, known)


@pytest.mark.parametrize("scorer", OWN_SCORERS)
def test_training_samples_have_mean_0_and_deviation_1(scorer: Scorer) -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(50, 7, generator=generator), torch.arange(50) % 4
    answers = torch.randn(50, 5, generator=generator)  # no sample has the last class
    calibration = fit_calibration(features, answers, labels)
    torch.testing.assert_close(calibration.centers[1], features[labels == 1].mean(0))
    score = calibration.normalised(raw_score(scorer, features, answers, calibration), scorer)
    torch.testing.assert_close(score.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(score.std(unbiased=False), torch.tensor(1.0))
    assert torch.isfinite(calibration.centers).all()


@pytest.mark.slow
@EVERY_SCORER
@pytest.mark.parametrize("kind", ["conv-bn", "mlp", "weights"])
def test_tasks_that_lie_apart_are_recognised(kind: str, scorer: Scorer) -> None:
    net, samples = three_tasks(kind)
    accuracy = measure_inference(net, samples, scorer, batch_size=10)
    assert accuracy.task > (0.9 if scorer in (Scorer.DISTANCE, Scorer.SUMS) else 0.5), "chance is 1/3"
    assert accuracy.class_incremental <= min(accuracy.task, accuracy.task_incremental)
    x = torch.cat([x for x, _ in samples.values()])
    inferred = net.infer(x, scorer)
    assert inferred.scores.shape == (3 * SAMPLES, 3)
    with mode(net, False), torch.no_grad():
        expected = net(x, inferred.task_names)
    torch.testing.assert_close(inferred.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_all_tasks_are_asked_in_one_pass_and_answers_are_theirs() -> None:
    net, samples = three_tasks()
    x, _ = samples["b"]
    net.infer(x)
    with patch.object(net.masking.attachment, "run", wraps=net.masking.attachment.run) as run:
        inferred = net.infer(x, Scorer.MAX_LOGIT, calibrated=False)
    assert run.call_count == 1
    for index, task in enumerate(inferred.tasks):
        torch.testing.assert_close(inferred.scores[:, index], logits(net, x, task).amax(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(inferred.chosen, inferred.scores.argmax(1))


@pytest.mark.slow
def test_without_calibration() -> None:
    net, samples = three_tasks(calibrate=False)
    x, _ = samples["a"]
    with pytest.raises(InputError, match="'a' was not calibrated"):
        net.infer(x)
    with pytest.raises(InputError, match="'a' was not calibrated"):
        net.infer(x, Scorer.DISTANCE, calibrated=False)
    assert net.infer(x, Scorer.ENERGY, calibrated=False).tasks == ("a", "b", "c")
    with pytest.raises(InputError, match="no consolidated task"):
        attach("mlp").infer(torch.zeros(1, 6))


def test_what_does_not_fit_is_refused() -> None:
    net, samples = three_tasks(calibrate=False)
    x, y = samples["a"]
    for labels in (y + CLASSES, y[:1], y - 1):
        with pytest.raises(InputError, match="classes 0 to 2"):
            net.calibrate("a", x, labels)
    open_task(net, "d")
    with pytest.raises(InputError, match="still in training"):
        net.calibrate("d", x, y)


@pytest.mark.slow
def test_calibration_is_saved_guarded_and_forgotten(tmp_path: Path) -> None:
    net, samples = three_tasks()
    x, _ = samples["c"]
    net.save(tmp_path / "net")
    again = hatrack.load(tmp_path / "net", NETS["conv-bn"].build())
    assert isinstance(again, HATNetwork)
    for scorer in Scorer:
        assert torch.equal(again.infer(x, scorer).scores, net.infer(x, scorer).scores)
    other = attach("conv-bn")
    for task in ("a", "b", "c"):
        other.add_task(task, CLASSES)
        other.consolidate(task)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.infer(x).scores, net.infer(x).scores)
    center = float(net.tasks[1].calibration.centers[0, 0])
    net.forget("b")
    assert net.infer(x).tasks == ("a", "c")
    assert not any(center in value.flatten().tolist() for value in net.state_dict().values() if torch.is_tensor(value))
    again.tasks[0].calibration.location.add_(1.0)
    with pytest.raises(GuaranteeError, match="task a"):
        again.check()


def test_calibration_outlives_growth() -> None:
    net, samples = three_tasks("mlp")
    x, _ = samples["a"]
    before = net.infer(x, Scorer.DISTANCE).scores
    net.grow({"4": 5})
    torch.testing.assert_close(net.infer(x, Scorer.DISTANCE).scores, before, rtol=1e-3, atol=1e-3)


def test_a_learner_predicts_and_evaluates_by_the_default_score() -> None:
    torch.manual_seed(0)
    learner = Learner(nn.Sequential(nn.Linear(4, 16), nn.ReLU()), (4,), training=TrainingSettings(epochs=1))
    generator = torch.Generator().manual_seed(0)
    samples = {task: 2 * k + 0.1 * torch.randn(40, 4, generator=generator) for k, task in enumerate(("a", "b"))}
    y = torch.arange(40) % 2
    for task, x in samples.items():
        learner.fit(task, (x, y))
    x = torch.cat([*samples.values()])
    assert list(learner.predict(x).tasks) == learner.network.eval().infer(x, Scorer.SUMS).task_names
    with patch.object(type(learner.network), "infer", autospec=True, side_effect=type(learner.network).infer) as infer:
        learner.evaluate("b", (samples["b"], y), name_task=False)
    assert infer.call_args.args[2] is None
