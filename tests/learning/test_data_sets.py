"""Learner of data sets, labels and types as people have them: what they are learned as, and what comes back."""

from __future__ import annotations

import itertools
from collections import UserDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from hatrack import InputError, LabelPrediction, Learner, NumberPrediction, Prediction
from hatrack.learning.datasets import read_data, read_samples
from hatrack.learning.labels import numbered
from hatrack.objectives import TargetKind
from hatrack.train import TrainingSettings
from support.marks import slow_but

BRIEF = TrainingSettings(epochs=1, batch_size=8, lr=0.05)
X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
Y = np.arange(16) % 2
NAMES = ("cat", "dog")
WORDS = np.array(NAMES)[Y]
EXAMPLE = torch.zeros(1, 4)


def learner(dtype: torch.dtype = torch.float32, shape: Any = (4,)) -> Learner:
    torch.manual_seed(0)
    return Learner(nn.Sequential(nn.Linear(4, 12), nn.ReLU()).to(dtype), shape, training=BRIEF, validation=0.0)


def bits(of: Learner) -> list[bytes]:
    return [value.contiguous().numpy().tobytes() for value in of.network.state_dict().values()]


def fitted(data: Any, **more: Any) -> Learner:
    of = learner()
    of.fit("a", data, **more)
    return of


@pytest.fixture(scope="module")
def plain() -> Learner:
    return fitted((X, Y), classes=NAMES)


class Endless(Dataset[Any]):
    """Items for whatever index, as of a data set that draws them; it has a length."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        assert index < len(X), "it is asked for more than there is"
        return X[index], Y[index]


class EndlessSequence(Sequence[Any]):
    """The same, with the iteration of every sequence, which ends with an IndexError alone."""

    __len__ = Endless.__len__
    __getitem__ = Endless.__getitem__  # type: ignore[assignment]


class Stream(IterableDataset[Any]):
    """An iterable data set, which has a length besides."""

    def __len__(self) -> int:
        return len(X)

    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, Y, strict=True)


class Columns(Dataset[Any]):
    """Mappings of columns, as Hugging Face's data sets give them."""

    def __init__(self, as_lists: bool = False) -> None:
        self.as_lists = as_lists

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": X[index].tolist() if self.as_lists else X[index], "label": int(Y[index])}


FORMS: dict[str, Any] = {
    "a data set without an end": Endless,
    "a sequence without an end": EndlessSequence,
    "an iterable data set": Stream,
    "mappings": Columns,
    "mappings of lists": lambda: Columns(as_lists=True),
    "mappings in a loader": lambda: DataLoader(Columns(), batch_size=5),
    "a mapping of columns": lambda: {"pixels": X, "labels": Y},
    "a user's mapping": lambda: UserDict(pixels=X, target=Y.tolist()),
    "a loader": lambda: DataLoader(Endless(), batch_size=5),
    "a generator": lambda: zip(X, Y, strict=True),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "lists of arrays": lambda: (list(X), list(Y)),
    "double precision": lambda: (X.astype(np.float64), Y.astype(np.uint8)),
}


@pytest.mark.parametrize(
    "form", slow_but(["a data set without an end", "a sequence without an end", "mappings"], FORMS)
)
def test_every_form_is_learned_tested_and_answered_alike(form: str, plain: Learner) -> None:
    make = FORMS[form]
    of = fitted(make(), classes=NAMES)
    assert bits(of) == bits(plain)
    assert of.evaluate("a", make()) == plain.evaluate("a", (X, Y))
    data = make()
    said = of.predict(data[0] if isinstance(data, tuple) else data, "a")
    assert torch.equal(said.distribution, plain.predict(X, "a").distribution)  # type: ignore[union-attr]


def test_data_sets_of_samples_alone_are_answered(plain: Learner) -> None:
    said = plain.predict(X, "a").distribution  # type: ignore[union-attr]
    tensors = TensorDataset(torch.from_numpy(X))
    for samples in (
        tensors,
        DataLoader(tensors, batch_size=5),
        DataLoader(torch.from_numpy(X), batch_size=5),  # type: ignore[arg-type]
        [{"pixels": x} for x in X],
        [(x, y) for x, y in zip(X, Y, strict=True)],
        list(torch.from_numpy(X)),
        (x for x in X),
        X.tolist(),
    ):
        assert torch.equal(plain.predict(samples, "a").distribution, said)  # type: ignore[union-attr]
    assert plain.predict(X[:0], "a").classes == ()  # type: ignore[union-attr]


def test_answers_in_an_order_that_nobody_knows_are_refused(plain: Learner) -> None:
    data, draw = Endless(), WeightedRandomSampler([1.0] * 16, 16)
    for loader in (DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=4, sampler=draw)):
        with pytest.raises(InputError, match=r"order that nobody knows: make it with shuffle=False"):
            plain.predict(loader, "a")
        assert 0 <= plain.evaluate("a", loader) <= 1, "pairs of sample and target need no order"
    with pytest.raises(InputError, match=r"drops the last ones: make it with drop_last=False"):
        plain.predict(DataLoader(data, batch_size=5, drop_last=True), "a")
    plain.predict(DataLoader(data, batch_size=4, drop_last=True), "a")
    with pytest.raises(InputError, match=r"never ends"):
        plain.predict(itertools.repeat(X[0]), "a")
    with pytest.raises(InputError, match=r"batch_size must be a whole number of samples, at least 1, not 0"):
        plain.predict(X, "a", batch_size=0)
    with pytest.raises(InputError, match=r"scorer must be one of"):
        plain.predict(X, scorer="distance")  # type: ignore[arg-type]


def test_a_loader_is_read_once_whatever_its_order() -> None:
    reads = 0

    class Counted(Endless):
        def __getitem__(self, index: int) -> Any:
            nonlocal reads
            reads += 1
            return super().__getitem__(index)

    fitted(DataLoader(Counted(), batch_size=4, shuffle=True))
    assert reads == len(X)


# ----------------------------------------------------------------------------------------------------------- labels

LABELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "texts": (WORDS.tolist(), {}),
    "an array of texts": (WORDS, {}),
    "objects that are texts": (WORDS.astype(object), {}),
    "bytes": (WORDS.astype("S"), {}),
    "a column of texts": (WORDS[:, None], {}),
    "texts with names": (WORDS, {"classes": NAMES, "target": "classes"}),
    "truth values": (Y == 1, {"classes": NAMES}),
    "a column of truth values": ((Y == 1)[:, None], {"classes": NAMES, "target": "classes"}),
    "one-hot": (np.eye(2)[Y], {"classes": NAMES, "target": "classes"}),
    "one-hot whole numbers": (np.eye(2, dtype=int)[Y], {"classes": NAMES, "target": "classes"}),
    "a column": (Y[:, None], {"classes": NAMES, "target": "classes"}),
    "floats": (Y.astype(float), {"classes": NAMES, "target": "classes"}),
    "numbers of NumPy": (list(Y), {"classes": NAMES}),
}


@pytest.mark.parametrize("form", slow_but(["an array of texts", "truth values", "one-hot", "a column"], LABELS))
def test_labels_of_every_form_are_classes_and_texts_come_back(form: str, plain: Learner) -> None:
    y, more = LABELS[form]
    of = fitted((X, y), **more)
    assert of.classes == {"a": NAMES}
    assert bits(of) == bits(plain)
    said = of.predict(X, "a")
    assert isinstance(said, Prediction)
    assert set(said.classes) <= set(NAMES)
    expected = float(np.mean(np.array(said.classes) == WORDS))
    for again in (y, Y, WORDS):
        assert of.evaluate("a", (X, again)) == pytest.approx(expected)


def test_texts_in_pairs_loaders_and_files(tmp_path: Path, plain: Learner) -> None:
    pairs = list(zip(torch.from_numpy(X), WORDS.tolist(), strict=True))
    for data in (pairs, DataLoader(pairs, batch_size=3)):  # type: ignore[arg-type]
        of = fitted(data)
        assert bits(of) == bits(plain)
        assert of.evaluate("a", data) == plain.evaluate("a", (X, Y))
    of.save(tmp_path / "learner")
    again = Learner.load(tmp_path / "learner", nn.Sequential(nn.Linear(4, 12), nn.ReLU()))
    assert again.classes == {"a": NAMES}
    assert again.evaluate("a", pairs) == of.evaluate("a", pairs)


def test_classes_without_names_are_named_by_what_they_were() -> None:
    assert fitted((X, Y == 1)).classes["a"] == ("False", "True")
    assert fitted((X, (np.arange(16) % 12).astype(str))).classes["a"] == tuple(map(str, range(12)))
    y, names = numbered(("10", "b", "9", "a"), None, None, "y")
    assert (y.tolist(), names) == ([1, 3, 0, 2], ["9", "10", "a", "b"]), "numbers first, by their size"
    assert fitted((X, Y), classes=[3, np.int64(5)]).classes["a"] == ("3", "5")


def test_numbers_that_may_be_names_are_refused() -> None:
    of = fitted((X, np.array(["1", "2"])[Y]))
    assert of.classes["a"] == ("1", "2")
    assert of.evaluate("a", (X, (Y + 1).astype(str))) == of.evaluate("a", (X, Y)), "names, or numbers from 0"
    with pytest.raises(InputError, match=r"named by other numbers, 1, 2: say which is meant"):
        of.evaluate("a", (X[:4], [1, 1, 1, 1]))
    with pytest.raises(InputError, match=r"named by other numbers"):
        of.evaluate("a", (X, Y + 1))


def test_truth_values_are_two_classes(plain: Learner) -> None:
    assert plain.evaluate("a", (X, Y == 1)) == plain.evaluate("a", (X, Y))
    three = fitted((X, np.arange(16) % 3))
    for call in (lambda: three.evaluate("a", (X, Y == 1)), lambda: fitted((X, Y == 1), classes=("a", "b", "c"))):
        with pytest.raises(InputError, match=r"are truth values, and there are 3 classes"):
            call()


@pytest.mark.parametrize(
    ("y", "more", "said"),
    [
        (Y, {"classes": ("cat", "cat")}, r"task a: numbers 0 and 1 are both named 'cat'; give every class a name"),
        (X[:, :2] > 0, {"classes": ("cat", "cat")}, r"numbers 0 and 1 are both named 'cat'"),
        (X[:, :2], {"classes": ("cat", "cat")}, r"numbers 0 and 1 are both named 'cat'"),
        (Y, {"classes": "ab"}, r"classes must be a list of names, one for each, not 'ab'"),
        (Y, {"classes": 2}, r"classes must be a list of names, one for each, not 2"),
        (Y, {"classes": (None, "b")}, r"classes must be names, and one is None"),
        (WORDS, {"classes": ("cat", "eel")}, r"targets of 'a': number 1 is 'dog', and the classes are 'cat', 'eel'"),
        (WORDS, {"target": "numbers"}, r"texts, such as 'cat', which name classes and are no numbers"),
        (Y - 1, {}, r"not negative, or say target='numbers'"),
        (Y * 2, {}, r"0\.\.C-1, each occurring; .*or say target='numbers'"),
        (Y + 0.5, {"target": "classes"}, r"must be integers, not torch\.float64 \(16,\), or say target='numbers'"),
        (np.where(Y, np.nan, 0), {"target": "classes"}, r"hold infinite values or NaN"),
        (np.where(Y, np.inf, 0), {"target": "labels"}, r"hold infinite values or NaN"),
        (X[:, :2], {"target": "classes"}, r"one class for every sample"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(y: Any, more: dict[str, Any], said: str) -> None:
    of = learner()
    with pytest.raises(InputError, match=said) as caught:
        of.fit("a", (X, y), **more)
    assert "\n" not in str(caught.value)
    assert of.tasks == ()


def test_numbers_and_several_labels_of_arrays_come_back_as_arrays() -> None:
    of = learner()
    of.fit("size", (X, X[:, 0].astype(np.float64)), classes=("cm",))
    of.fit("tags", (X.tolist(), (X[:, :2] > 0).tolist()), classes=("hot", "big"))
    of.fit("kind", (X, WORDS))
    size, tags, kind = (of.predict(X, task) for task in ("size", "tags", "kind"))
    assert isinstance(size, NumberPrediction)
    assert isinstance(tags, LabelPrediction)
    assert isinstance(kind, Prediction)
    assert list(size.numpy()) == ["cm"]
    assert np.array_equal(size.numpy()["cm"], size.values[:, 0])
    assert np.array_equal(tags.numpy()["big"], tags.probabilities[:, 1])
    assert kind.numpy()["classes"].tolist() == list(kind.classes)
    assert kind.numpy()["tasks"].tolist() == ["kind"] * 16
    assert kind.numpy()["distribution"].shape == (16, 2)


# ------------------------------------------------------------------------------------------------------------ types


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_samples_get_the_type_of_the_network(dtype: torch.dtype) -> None:
    for shape in ((4,), torch.zeros(2, 4, dtype=dtype)):
        of = learner(dtype, shape)
        of.fit("a", (X.astype(np.float64), Y))
        assert of.predict(X.astype(np.float16), "a").distribution.shape == (16, 2)  # type: ignore[union-attr]
        assert of.predict(X).tasks == ("a",) * 16  # type: ignore[union-attr]
    of = learner(shape=np.zeros((2, 4)))  # of double precision, as NumPy's are
    of.fit("a", (X, Y))
    assert bits(of)[0] == bits(fitted((X, Y)))[0]


def test_a_network_of_double_precision_is_read_again(tmp_path: Path) -> None:
    of = learner(torch.float64)
    of.fit("a", (X, Y))
    of.save(tmp_path / "learner")
    again = Learner.load(tmp_path / "learner", nn.Sequential(nn.Linear(4, 12), nn.ReLU()).double())
    said, before = again.predict(X, "a"), of.predict(X, "a")
    assert torch.equal(said.distribution, before.distribution)  # type: ignore[union-attr]


@pytest.mark.slow
def test_pictures_of_bytes_are_learned_as_their_numbers() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (16, 3, 6, 6), dtype=np.uint8)
    said = []
    for x in (pictures, torch.from_numpy(pictures), pictures.astype(np.float32), list(pictures)):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 6), nn.ReLU(), nn.Flatten())
        of = Learner(backbone, (3, 6, 6), training=BRIEF)
        of.fit("a", (x, Y))
        said.append(of.predict(x, "a").distribution)  # type: ignore[union-attr]
    assert all(torch.equal(each, said[0]) for each in said)
    with pytest.raises(InputError, match=r"\(6, 6, 3\), the network expects \(3, 6, 6\): move channels before them"):
        of.fit("b", (pictures.transpose(0, 2, 3, 1), Y))


class Bag(nn.Module):
    """Reads tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 12)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.relu(self.out(self.table(ids).mean(1)))


def test_tokens_are_learned_and_unknown_ones_named() -> None:
    ids = np.random.default_rng(0).integers(0, 20, (16, 5))
    with pytest.raises(InputError, match=r"in place of the shape, torch\.zeros\(2, 5\)\.long\(\)"):
        Learner(Bag(), (5,))
    torch.manual_seed(0)
    of = Learner(Bag(), torch.zeros(2, 5).long(), training=BRIEF)
    of.fit("a", (ids, Y))
    before = of.predict(ids, "a").distribution  # type: ignore[union-attr]
    for same in (ids.astype(np.int32), ids.astype(float), ids.tolist(), torch.from_numpy(ids)):
        assert torch.equal(of.predict(same, "a").distribution, before)  # type: ignore[union-attr]
    for wrong, said in ((ids + 1, r"from 1 to 20, .* fewer rows: table \(20\)"), (ids - 1, r"numbers from -1 to 18")):
        for call in (
            lambda x=wrong: of.fit("b", (x, Y)),
            lambda x=wrong: of.predict(x, "a"),
            lambda x=wrong: of.predict(x),
            lambda x=wrong: of.evaluate("a", (x, Y)),
        ):
            with pytest.raises(InputError, match=said) as caught:
                call()
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"values that torch\.int64, the type in the example, has not"):
        of.predict(ids + 0.5, "a")
    assert of.tasks == ("a",)
    assert torch.equal(of.predict(ids, "a").distribution, before)  # type: ignore[union-attr]


def test_an_index_error_of_the_network_itself_stays_what_it_is() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.odd = Bag(), False

        def forward(self, ids: Tensor) -> Tensor:
            if self.odd:
                raise IndexError("of its own")
            features: Tensor = self.bag(ids)
            return features

    backbone = Picky()
    of = Learner(backbone, torch.zeros(2, 5).long(), training=BRIEF)
    ids = torch.zeros(16, 5).long()
    of.fit("a", (ids, Y))
    backbone.odd = True
    with pytest.raises(Exception, match=r"of its own|expects") as caught:
        of.predict(ids, "a")
    assert "tables" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- structures


def test_inputs_may_be_named_like_targets() -> None:
    example = {"x": torch.zeros(1, 2), "y": torch.zeros(1, 3)}
    whole = {"x": torch.ones(4, 2), "y": torch.zeros(4, 3), "label": torch.arange(4) % 2}
    x, y = read_data(whole, example, 0)
    assert set(x) == {"x", "y"}
    assert isinstance(y, Tensor)
    assert y.tolist() == [0, 1, 0, 1]
    assert set(read_samples(whole, example, 0)) == {"x", "y"}
    rows = [{key: value[row] for key, value in whole.items()} for row in range(4)]
    for again in (rows, DataLoader(rows, batch_size=3)):  # type: ignore[arg-type]
        assert torch.equal(read_samples(again, example, 0)["y"], whole["y"])
        assert torch.equal(read_data(again, example, 0)[0]["x"], whole["x"])


def test_positional_arguments_are_told_from_pairs() -> None:
    one, other, y = torch.ones(4, 2), torch.zeros(4, 3), torch.arange(4)
    example = (one[:1], other[:1])
    for given in (
        TensorDataset(one, other),
        DataLoader(TensorDataset(one, other), batch_size=3),
        [((a, b), c) for a, b, c in zip(one, other, y, strict=True)],
    ):
        collected = read_samples(iter(given) if isinstance(given, list) else given, example, 0)
        assert [torch.equal(a, b) for a, b in zip(collected, (one, other), strict=True)] == [True, True]


def test_kinds_of_targets_that_are_said_are_kept() -> None:
    y, names = numbered(torch.tensor([[True], [False]]), None, TargetKind.LABELS, "y")
    assert (y.dtype, names) == (torch.bool, None)


def test_a_learner_is_made_of_a_module_and_a_share() -> None:
    with pytest.raises(InputError, match=r"the backbone must be a torch\.nn\.Module, not a str"):
        Learner("resnet", (4,))  # type: ignore[arg-type]
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"validation must be a share of the samples"):
            Learner(nn.Linear(4, 4), (4,), validation=share)
