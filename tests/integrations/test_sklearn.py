"""A task of a learner as a classifier of scikit-learn, with the real package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone, is_classifier  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.metrics import accuracy_score  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from hatrack import InputError, Learner  # noqa: E402
from hatrack.learning.integrations.sklearn import TaskClassifier  # noqa: E402
from hatrack.train import TrainingSettings  # noqa: E402

pytestmark = pytest.mark.integration

X = np.random.default_rng(0).standard_normal((60, 4))
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)
WORDS = np.array(["low", "mid", "high"])[Y]
GUIDE = Path(__file__).parents[2] / "docs" / "after-training.md"


def learner(epochs: int = 6) -> Learner:
    torch.manual_seed(0)
    training = TrainingSettings(epochs=epochs, batch_size=8, lr=0.1)
    return Learner(nn.Sequential(nn.Linear(4, 32), nn.ReLU()), (4,), training=training, validation=0.0)


@pytest.fixture(scope="module")
def fitted() -> TaskClassifier:
    return TaskClassifier(learner(), "size").fit(X, WORDS)


def test_it_is_found_among_the_integrations() -> None:
    from hatrack.integrations import sklearn as ours  # type: ignore[import-not-found]

    from hatrack import integrations

    assert ours.TaskClassifier is TaskClassifier
    assert integrations.sklearn is ours


def test_it_answers_as_the_learner_does_in_the_classes_of_scikit_learn(fitted: TaskClassifier) -> None:
    assert is_classifier(fitted)
    assert fitted.classes_.tolist() == ["high", "low", "mid"]
    assert fitted.n_features_in_ == 4
    said = fitted.learner_.predict(X, "size")
    shares = fitted.predict_proba(X)
    assert np.array_equal(shares, said.distribution.numpy())  # type: ignore[union-attr]
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert fitted.predict(X).tolist() == list(said.classes)  # type: ignore[union-attr]
    assert fitted.score(X, WORDS) == accuracy_score(WORDS, fitted.predict(X)) > 0.7
    assert fitted.score(X, WORDS) == pytest.approx(fitted.learner_.evaluate("size", (X, WORDS)))


@pytest.mark.parametrize(
    "classes",
    [np.array([3, 7, 20]), np.array([-1.0, 0.0, 1.0]), np.array(["b", "c", "a"], dtype=object), np.array([10, 9, 8])],
)
def test_classes_come_back_as_they_were_given(classes: np.ndarray) -> None:
    of = TaskClassifier(learner(epochs=1), "size").fit(X, classes[Y])
    assert np.array_equal(of.classes_, np.unique(classes))
    assert of.predict(X).dtype == classes.dtype
    assert set(of.predict(X)) <= set(classes)
    truth = TaskClassifier(learner(epochs=1), "sign").fit(X, X[:, 0] > 0)
    assert truth.predict(X).dtype == bool


def test_a_fit_leaves_the_given_learner_alone_and_is_the_same_twice(fitted: TaskClassifier) -> None:
    assert fitted.learner.tasks == ()
    assert fitted.learner_.tasks == ("size",)
    before = fitted.predict_proba(X)
    assert np.array_equal(clone(fitted).fit(X, WORDS).predict_proba(X), before)
    assert np.array_equal(fitted.fit(X, WORDS).predict_proba(X), before)


def test_tasks_in_a_row_leave_the_first_to_the_bit(fitted: TaskClassifier) -> None:
    before = fitted.predict_proba(X)
    second = TaskClassifier(fitted.learner_, "sign").fit(X, X[:, 2] > 0)
    assert second.learner_.tasks == ("size", "sign")
    known = TaskClassifier(second.learner_, "size")  # without a fit
    assert np.array_equal(known.predict_proba(X), before)
    assert known.classes_.tolist() == ["high", "low", "mid"]
    assert known.score(X, WORDS) == fitted.score(X, WORDS)
    with pytest.raises(InputError, match=r"there is a task 'size' already"):
        known.fit(X, WORDS)


def test_parameters_clones_and_not_being_fitted() -> None:
    mine = learner()
    of = TaskClassifier(mine, "size")
    assert of.get_params() == {"learner": mine, "task": "size"}
    assert of.set_params(task="other") is of
    assert of.task == "other"
    twin = clone(of)
    assert twin.task == "other"
    assert isinstance(twin.learner, Learner)
    assert twin.learner is not mine
    for ask in (of.predict, of.predict_proba):
        with pytest.raises(NotFittedError):
            ask(X)
    assert not hasattr(of, "classes_")
    assert "TaskClassifier" in repr(of)


def test_pipelines_cross_validation_and_searches() -> None:
    of = TaskClassifier(learner(), "size")
    pipe = make_pipeline(StandardScaler(), of)
    scores = cross_val_score(pipe, X * 100 + 7, WORDS, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.6
    assert of.learner.tasks == ()
    shares = cross_val_predict(of, X, WORDS, cv=2, method="predict_proba")
    assert shares.shape == (60, 3)
    search = GridSearchCV(of, {"learner": [learner(epochs=1), learner(epochs=6)]}, cv=2, scoring="neg_log_loss")
    search.fit(X, WORDS)
    assert search.best_estimator_.learner_.tasks == ("size",)


def test_pictures_are_samples_as_well() -> None:
    x, y = np.random.default_rng(0).random((12, 3, 5, 5)), np.arange(12) % 2
    backbone = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Flatten())
    of = TaskClassifier(Learner(backbone, (3, 5, 5), training=TrainingSettings(epochs=1)), "a").fit(x, y)
    assert of.predict(x).shape == (12,)


FAULTS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "holes": (np.where(X > 1, np.nan, X), WORDS, ValueError, "NaN"),
    "numbers to predict": (X, X[:, 0], ValueError, "continuous"),
    "other samples": (X[:9], WORDS, ValueError, "inconsistent"),
    "other features": (X[:, :3], WORDS, InputError, "the network expects"),
    "one class of two types": (X, np.array([1, "1"] * 30, dtype=object), ValueError, "Unknown label type"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(fault: str) -> None:
    x, y, kind, said = FAULTS[fault]
    of = TaskClassifier(learner(epochs=1), "size")
    with pytest.raises(kind, match=said):
        of.fit(x, y)
    assert not hasattr(of, "learner_")


def test_a_task_of_numbers_is_no_classifier(fitted: TaskClassifier) -> None:
    mine = learner(epochs=1)
    mine.fit("price", (X, X[:, 0]))
    with pytest.raises(InputError, match=r"predicts numbers or several labels; a classifier is for classes"):
        TaskClassifier(mine, "price").predict(X)
    with pytest.raises(InputError, match=r"the learner must be a hatrack\.Learner, not a str"):
        TaskClassifier("learner", "size").fit(X, WORDS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"3 features, but TaskClassifier is expecting 4"):
        fitted.predict(X[:, :3])


def test_a_fitted_classifier_answers_for_the_task_of_its_fit(fitted: TaskClassifier) -> None:
    second = TaskClassifier(fitted.learner_, "sign").fit(X, X[:, 0] > 0)
    said = second.predict(X)
    second.set_params(task="size")
    assert np.array_equal(second.predict(X), said)
    assert second.classes_.tolist() == [False, True]
    assert TaskClassifier(second.learner_, "size").predict(X).tolist() == fitted.predict(X).tolist()


def test_the_guides_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = GUIDE.read_text(encoding="utf-8").partition("## With scikit-learn")[2].partition("\n## ")[0]
    [program] = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, str(GUIDE), "exec"), names)
    assert names["scores"].mean() > 0.8
    assert names["second"].learner_.tasks == ("small", "large")
