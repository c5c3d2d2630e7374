"""A task of a learner as a classifier of scikit-learn, for its pipelines, cross-validation and scores."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError(
        "classifiers for scikit-learn need scikit-learn, 1.6 or newer: pip install 'hatrack[sklearn]'"
    ) from error

from hatrack.errors import InputError
from hatrack.learning.learner import Learner
from hatrack.learning.predictions import Prediction

__all__ = ["TaskClassifier"]


class TaskClassifier(ClassifierMixin, BaseEstimator):
    """A task of a :class:`~hatrack.Learner` as a classifier of scikit-learn.

    :meth:`fit` teaches the task to a copy of the learner, ``learner_``, which answers from then on; the learner that
    was given stays as it is. So fitting twice gives the same twice, and a clone knows nothing of what others were
    fitted to, as cross-validation needs it. The next task is taught by a classifier around that copy,
    ``TaskClassifier(first.learner_, "second")``, whose ``learner_`` knows both, the first to the bit as before. A task
    that the learner knows already is answered for without a fit.

    Args:
        learner: the learner, for samples that are one tensor.
        task: name of the task.

    Attributes:
        n_features_in_: size of the samples' second axis, after a fit.
    """

    def __init__(self, learner: Learner, task: str) -> None:
        self.learner = learner
        self.task = task

    def fit(self, X: Any, y: Any) -> TaskClassifier:  # noqa: N803  (scikit-learn's name)
        """Teach the task to a copy of the learner.

        Args:
            X: samples ``(N, ...)``: an array, or what scikit-learn makes one of.
            y: their classes ``(N,)``, of any type that can be sorted.

        Returns:
            The classifier itself.

        Raises:
            InputError: the learner knows the task already, or the samples do not fit its network.
            ValueError: samples or classes are none, as scikit-learn says.
        """
        self._require_learner()
        x, y = validate_data(self, X, y, allow_nd=True, dtype=None, ensure_min_samples=2)
        check_classification_targets(y)
        classes, numbers = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        names = _names_of(classes)
        learner = copy.deepcopy(self.learner)
        learner.fit(self.task, (x, numbers), classes=names, progress=False)
        self._fitted = learner, self.task, classes
        return self

    @property
    def learner_(self) -> Learner:
        """Learner that knows the task: the copy that was fitted, or the one that was given if it knew the task."""
        return self._answering()[0]

    @property
    def classes_(self) -> np.ndarray:
        """The classes as they were given to :meth:`fit`, sorted, ``(C,)``; their names where there was no fit."""
        return self._answering()[2]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the probabilities of the classes, in the order of ``classes_``, ``(N, C)``.

        Args:
            X: samples ``(N, ...)``.

        Raises:
            NotFittedError: there was no fit, and the learner does not know the task.
            InputError: the task is about something else than classes, or samples do not fit the network.
        """
        self._require_learner()
        check_is_fitted(self)
        x = validate_data(self, X, allow_nd=True, dtype=None, reset=False)
        learner, task, _ = self._answering()
        said = learner.predict(x, task)
        if not isinstance(said, Prediction):
            raise InputError(f"task {task!r} predicts numbers or several labels; a classifier is for classes")
        shares: np.ndarray = said.distribution[:, : len(self.classes_)].numpy()
        return shares

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the likeliest class of each sample, ``(N,)``, as it was given to :meth:`fit`.

        Args:
            X: samples ``(N, ...)``.

        Raises:
            NotFittedError, InputError: as for :meth:`predict_proba`.
        """
        shares = self.predict_proba(X)
        classes: np.ndarray = self.classes_[shares.argmax(1)]
        return classes

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "learner_")

    def _require_learner(self) -> None:
        if not isinstance(self.learner, Learner):
            raise InputError(f"the learner must be a hatrack.Learner, not a {type(self.learner).__name__}")

    def _answering(self) -> tuple[Learner, str, np.ndarray]:
        """Return the learner that answers, its task, and the classes: of the last fit, whatever parameters are now.

        Raises:
            AttributeError: the task is not known, which is how scikit-learn tells.
        """
        fitted: tuple[Learner, str, np.ndarray] | None = getattr(self, "_fitted", None)
        if fitted is not None:
            return fitted
        known = getattr(self.learner, "classes", {})
        if self.task not in known:
            raise AttributeError(f"no fit has taught the task {self.task!r}, and the learner does not know it")
        return self.learner, self.task, np.array(known[self.task])


def _names_of(classes: np.ndarray) -> list[str]:
    """Return classes as different texts.

    Raises:
        InputError: two of them are written alike.
    """
    names = [str(each) for each in classes.tolist()]
    alike = [name for name in names if names.count(name) > 1]
    if alike:
        raise InputError(f"two different classes are both written {alike[0]!r}; give them texts that differ")
    return names
