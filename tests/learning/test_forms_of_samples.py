"""Learner of nested samples, in all forms in which people have them; what is none of them is refused in one line."""

from __future__ import annotations

import copy
import itertools
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hatrack import HatrackError, InputError, Learner, NumberPrediction, Prediction
from hatrack.learning.samples import require_digits
from hatrack.streams import Task
from hatrack.support.inputs import map_tensors
from hatrack.support.interface import Interface
from hatrack.train import TrainingSettings
from support.doorways import DOORWAYS as BUILT
from support.doorways import WORDS, Doorway, Maps, batch, pooled, tokens
from support.marks import slow_but

BRIEF = TrainingSettings(epochs=1, batch_size=5, lr=0.05)


class Words(nn.Module):
    """A network that takes tokens, a padding mask, vectors beside them and a flag, and gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.beside, self.out = nn.Embedding(WORDS, 16), nn.Linear(3, 16), nn.Linear(16, 12)

    def forward(
        self, ids: Tensor, mask: Tensor, beside: Tensor | None = None, *, pool: bool = True
    ) -> dict[str, Tensor]:
        h = self.table(ids) if beside is None else self.table(ids) + self.beside(beside).unsqueeze(1)
        kept = mask.unsqueeze(-1).to(h)
        tokens = torch.relu(self.out(torch.relu(h))) * kept
        return {"tokens": tokens, "pooled": tokens.sum(1) / kept.sum(1).clamp_min(1)} if pool else {"tokens": tokens}


DOORWAYS = {
    "mapping": Doorway(Words, tokens, {"features": "pooled"}),
    "function": Doorway(Words, tokens, {"features": pooled}),
    "tuple": BUILT["tuple"],
    "sequence first": BUILT["sequence first"],
}
NAMES = ("cat", "dog")


def bits(net: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in net.state_dict().values()]


def axis(door: Doorway) -> int:
    return int(door.options.get("batch_axis", 0))


def learner(door: Doorway, **more: Any) -> Learner:
    torch.manual_seed(0)
    return Learner(door.build(), batch(door, 2), training=BRIEF, validation=0.25, **door.options, **more)


def pairs(x: Any, y: Tensor, door: Doorway) -> list[tuple[Any, Any]]:
    """The samples one by one, without the axis that counts them."""
    return [(map_tensors(lambda t, row=row: t.select(axis(door), row), x), y[row]) for row in range(len(y))]


def joined(samples: list[tuple[Any, Any]], door: Doorway) -> tuple[Any, Tensor]:
    """Collate samples into a batch along the right axis."""
    way = Interface(batch_axis=axis(door))
    grown = [map_tensors(lambda t: t.unsqueeze(axis(door)), x) for x, _ in samples]
    return way.joined(grown), torch.stack([y for _, y in samples])


class Indexed(Dataset[Any]):
    """A map-style data set that never raises IndexError."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index % len(self.items)]


def forms(x: Any, y: Tensor, door: Doorway) -> dict[str, Any]:
    """The same samples in every form."""
    each = pairs(x, y, door)
    return {
        "tensors": (x, y),
        "arrays": (map_tensors(lambda t: t.numpy(), x), y.numpy()),
        "pairs": each,
        "data set": Indexed(each),
        "generator": (pair for pair in each),
        "loader": DataLoader(Indexed(each), batch_size=4, collate_fn=lambda samples: joined(samples, door)),
        "numbers": (x, y.tolist()),
    }


@pytest.mark.parametrize("name", slow_but(["sequence first"], DOORWAYS))
def test_nested_samples_are_learned_kept_saved_and_told_apart(name: str, tmp_path: Path) -> None:
    door = DOORWAYS[name]
    today, x, y = learner(door), batch(door, 14), torch.arange(14) % 2
    today.fit("a", (x, y), classes=NAMES)
    before = today.predict(x, "a")
    assert isinstance(before, Prediction)
    assert set(before.classes) <= set(NAMES)
    today.fit("b", (batch(door, 13, seed=1), torch.arange(13) % 3))
    today.fit("numbers", (x, torch.randn(14, 2)))
    assert 0.0 <= today.evaluate("a", (x, y)) <= 1.0
    today.save(tmp_path / "learner")
    again = {"features": pooled} if name == "function" else {}
    tomorrow = Learner.load(tmp_path / "learner", door.build(), training=BRIEF, validation=0.25, **again)
    assert isinstance(tomorrow.predict(x, "numbers"), NumberPrediction)
    for of in (today, tomorrow):
        of.fit("c", (batch(door, 12, seed=2), torch.arange(12) % 2))
        now = of.predict(x, "a", batch_size=500)
        assert isinstance(now, Prediction)
        assert torch.equal(now.distribution[:, :2], before.distribution)
        of.forget("numbers")
        assert set(of.predict(x).tasks) <= {"a", "b", "c"}  # type: ignore[union-attr]
        assert of.evaluate("b", (x, y), name_task=False) <= 1.0
    assert torch.equal(today.predict(x, "c").distribution, tomorrow.predict(x, "c").distribution)  # type: ignore[union-attr]


def test_a_function_for_features_is_asked_for_again(tmp_path: Path) -> None:
    learner(DOORWAYS["function"]).save(tmp_path / "learner")
    with pytest.raises(InputError, match=r"learner: its features are picked by a function.*give it, features=\.\.\."):
        Learner.load(tmp_path / "learner", DOORWAYS["function"].build())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mapping", "tuple", "sequence first"])
def test_every_form_of_the_same_samples_teaches_the_same(name: str) -> None:
    door = DOORWAYS[name]
    x, y = batch(door, 14), torch.arange(14) % 2
    said, new = {}, learner(door)
    for form, data in forms(x, y, door).items():
        of = copy.deepcopy(new)
        of.fit("a", data)
        said[form] = bits(of.network)
        again = forms(x, y, door)[form]
        assert of.evaluate("a", again) == of.evaluate("a", (x, y))
    assert len(said) == 7
    assert {form for form, value in said.items() if value != said["tensors"]} == set()


def test_samples_get_the_types_of_the_example_and_any_mapping_serves() -> None:
    door = DOORWAYS["mapping"]
    of, x, y = learner(door), batch(door, 8), torch.arange(8) % 2
    of.fit("a", (x, y))
    before = of.predict(x, "a").distribution  # type: ignore[union-attr]
    arrays = {
        "ids": x["ids"].numpy().astype(np.uint16),
        "mask": x["mask"].tolist(),
        "beside": x["beside"].numpy().astype(">f8"),
        "pool": np.bool_(True),
    }
    for same in (UserDict(x), arrays, dict(x, ids=x["ids"].int(), mask=x["mask"].bool())):
        assert torch.equal(of.predict(same, "a").distribution, before)  # type: ignore[union-attr]
    shorter = {"ids": x["ids"][:, :4], "mask": x["mask"][:, :4]}  # another length
    without = {**shorter, "beside": None, "pool": True}
    assert of.predict(without, "a").distribution.shape == (8, 2)  # type: ignore[union-attr]
    for few, said in (
        (shorter, r"samples leave out 'beside', 'pool', which the network was made with: give it, or None"),
        (
            {**without, "best": x["beside"]},
            r"samples have 'best', and the network was made for 'ids', 'mask'",
        ),
    ):
        with pytest.raises(InputError, match=said):
            of.predict(few, "a")
        with pytest.raises(InputError, match=said.replace("samples", "samples of 'b'")):
            of.fit("b", (few, y))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU())


X = np.random.default_rng(0).standard_normal((20, 4))
Y = np.arange(20) % 2


@pytest.mark.slow
def test_arrays_teach_what_tensors_do_in_whatever_order_of_memory() -> None:
    said = []
    for x, y in (
        (torch.from_numpy(X).float(), torch.from_numpy(Y)),
        (X, Y.astype(np.uint8)),
        (np.asfortranarray(X).astype(">f8"), Y.astype(np.int16).tolist()),
        (X[::-1][::-1], Y.astype(np.uint64)),
        (X.tolist(), Y),
    ):
        of = Learner(dense(), (4,), training=BRIEF)
        of.fit("a", (x, y))
        said.append(of.predict(x, "a").distribution)  # type: ignore[union-attr]
    assert all(torch.equal(each, said[0]) for each in said)
    of.fit("constant", (np.concatenate([X[:, :3], np.full((20, 1), 0.1)], 1), Y))
    x = X.astype(np.float32)
    x.flags.writeable = False
    of.fit("scores", (x, X[:, :2]))
    assert of.evaluate("scores", (x, X[:, :2])) <= 1.0


def test_a_loader_gives_batches_and_a_data_set_samples() -> None:
    set_of = TensorDataset(torch.from_numpy(X).float(), torch.from_numpy(Y))
    said = []
    for data in (set_of, DataLoader(set_of, batch_size=7), DataLoader(set_of, batch_size=1)):
        of = Learner(dense(), (4,), training=BRIEF)
        of.fit("a", data)
        said.append(of.predict(X, "a").distribution)  # type: ignore[union-attr]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


def of_batches() -> Iterator[Any]:
    yield from DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8).long()), batch_size=4)


FAULTS: dict[str, tuple[Any, str]] = {
    "objects": ((X, np.array([0, None] * 10)), r"targets of 'a' are an array of objects \(NoneType, int\)"),
    "texts for samples": ((["a b", "c"] * 10, Y), r"samples of 'a' are texts: turn them into tensors"),
    "objects for samples": ((np.array([[1.0], [1.0, 2.0]] * 10, dtype=object), Y), r"array of objects \(list\)"),
    "dates": ((X.astype("datetime64[s]"), Y), r"of type datetime64\[s\], and must be numbers"),
    "masked": ((np.ma.masked_less(X, 0), Y), r"samples of 'a' have masked values"),
    "ragged": (([[1.0], [1.0, 2.0]], Y), r"have different lengths; pad them"),
    "not finite": ((np.where(X > 1, np.nan, X), Y), r"hold infinite values or NaN"),
    "too large for floats": ((X * 1e300, Y), r"hold numbers beyond the type of the example; scale them first"),
    "digits that floats have not": ((X + 1.7e9, Y), r"vary by 0\.887 around 1\.7e\+09 at \[0\].* float32 keeps too"),
    "another shape": ((X[:, :3], Y), r"have shape \(3,\), the network expects \(4,\)"),
    "further axes": ((X[:, None], Y), r"have shape \(20, 1, 4\), of 3 axes.* made for 2 axes"),
    "a tuple of samples": ((tuple(torch.from_numpy(X)), Y), r"a tuple .* for one tensor; stack a list.*torch\.stack"),
    "a mapping": (({"x": X}, Y), r"are a mapping .* made for one tensor"),
    "classes in a column": ((X, Y[:, None]), r"are whole numbers in one column, \(20, 1\): give y\[:, 0\] for classes"),
    "too few targets": ((X, Y[:9].copy()), r"20 training samples need labels of shape \(20,\), not \(9,\)"),
    "no targets": (torch.from_numpy(X), r"came as a Tensor, without targets: give \(samples, targets\)"),
    "a list of both": ([X, Y], r"item 0 is a ndarray, and must be a pair"),
    "dictionaries": ([{"x": X[0], "z": 0}], r"item 0: a mapping with the keys 'x', 'z' must have one for the targets"),
    "two targets": (
        [{"x": X[0], "y": 0, "label": 1}],
        r"item 0: a mapping with the targets 'y' and 'label' must",
    ),
    "two columns": (
        [{"x": X[0], "id": 7, "label": 1}],
        r"takes one tensor, and a mapping holds 'x', 'id': leave",
    ),
    "parts of a whole": ({"train": (X, Y), "test": (X, Y)}, r"a mapping with the keys 'train', 'test' must have one"),
    "batches of three": (DataLoader(TensorDataset(*[torch.zeros(4, 4)] * 3)), r"item 0 is a list of 3.*one tuple"),
    "batches as samples": (of_batches(), r"of 3 axes, and the network was made for 2 axes"),
    "no batches": (DataLoader(TensorDataset(torch.zeros(4, 4)), batch_size=None), r"DataLoader with batch_size=None"),
    "nothing": ([], r"there are no samples of 'a'"),
    "a number": (3, r"a int holds no samples with targets"),
    "different samples": ([(X[0], 0), (X[0, :2], 1)], r"different shapes, such as \(4,\) and \(2,\)"),
    "different structures": ([(X[0], 0), ({"x": X[0]}, 1)], r"nested in different ways"),
    "texts and numbers in pairs": (
        [(X[0], "cat"), (X[1], 1)],
        r"targets of 'a' are texts for some samples and",
    ),
    "texts and numbers": ((X, ["cat", 1] * 10), r"targets of 'a' are texts, but number 1 is 1, of type int"),
    "texts and holes": ((X, np.array(["cat", None] * 10, dtype=object)), r"but number 1 is None, of type NoneType"),
    "texts for holes": ((X, ["cat", "nan"] * 10), r"targets of 'a', number 1: the label is missing \('nan'\)"),
    "texts alike": ((X, ["cat", "cat "] * 10), r"targets of 'a', number 1: writes a class as 'cat ' that is 'cat'"),
    "several texts": ((X, [["cat"], ["cat", "dog"]] * 10), r"several texts for one sample: give truth values \(N, L\)"),
    "one-hot": ((X, np.eye(2)[Y]), r"every row of .* has a single 1: give y\.argmax\(1\) for classes, or say target="),
    "one-hot truth values": ((X, np.eye(2, dtype=bool)[Y]), r"has a single 1: give y\.argmax\(1\) for classes, or"),
    "without end": (itertools.cycle([(X[0], 0)]), r"itertools\.cycle, which never ends"),
    "a generator that was read": (iter([]), r"there are no samples of 'a'; an iterator gives its items once"),
    "turned samples": (
        DataLoader([{"x": [0.0, 1.0, 2.0, 3.0], "label": 0}] * 2, batch_size=2),  # type: ignore[arg-type]
        r"item 0: samples are a list of 4, one for each number of a sample.*set_format\('torch'\)",
    ),
    "channels last": ((np.zeros((20, 4, 1)), Y), r"of 3 axes"),
    "nested in torch's sense": (
        (torch.nested.nested_tensor([torch.zeros(4), torch.zeros(4)], layout=torch.jagged), Y[:2]),
        r"nested tensors .* pad them",
    ),
    "nested targets": (
        (X[:2], torch.nested.nested_tensor([torch.zeros(4), torch.zeros(4)], layout=torch.jagged)),
        r"nested tensors .* pad them",
    ),
    "complex": (
        (torch.zeros(20, 4).cfloat(), Y),
        r"are complex, torch\.complex64, and the network was made for",
    ),
    "turned targets": (
        DataLoader([(torch.zeros(4), [0.0, 1.0])] * 2, batch_size=2),  # type: ignore[arg-type]
        r"targets of 'a' are a list: let the data set give one tensor",
    ),
    "a picture": ([(object(), 0)], r"a object is neither a tensor nor an array of numbers"),
}


@pytest.fixture(scope="module")
def plain() -> Learner:
    of = Learner(dense(), (4,), training=BRIEF)
    of.fit("known", (X, Y))
    return of


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_none_of_these_forms_is_refused_in_one_line(fault: str, plain: Learner) -> None:
    data, said = FAULTS[fault]
    before = bits(plain.network)
    with pytest.raises(InputError, match=said) as caught:
        plain.fit("a", data)
    assert "\n" not in str(caught.value)
    assert plain.tasks == ("known",)
    assert bits(plain.network) == before
    if isinstance(data, tuple) and data[1] is Y and "digits" not in fault:
        with pytest.raises(InputError, match=said.replace("samples of 'a'", "samples").replace("'a'", "")):
            plain.predict(data[0], "known")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (Y - 1, "must be integers 0..C-1"),
        (Y + 1, "test"),
        (Y + 0.5, "must be integers"),
        (Y[:9], "20 samples of 'known' came with 9 targets"),
        (["2"] * 20, "number 0 is '2', and the classes are '0', '1'"),
        (np.eye(3)[Y + 1], "test labels must be integers"),
        (np.where(Y, np.nan, 1.0), "hold infinite values or NaN"),
        (X[:, :2], r"must be one class for every sample, \(N,\), or a 1 in every row alone, not \(20, 2\)"),
    ],
)
def test_targets_that_a_task_does_not_have_are_not_measured_on(targets: Any, said: str, plain: Learner) -> None:
    with pytest.raises(InputError, match=said):
        plain.evaluate("known", (X, targets))


def test_values_that_the_types_of_the_example_have_not_are_refused() -> None:
    of, x = learner(DOORWAYS["mapping"]), batch(DOORWAYS["mapping"], 4)
    y = torch.arange(4) % 2
    for wrong, said in (
        ({"ids": x["ids"] + 0.5}, r"samples of 'a'\['ids'\] are torch\.float32 with values that torch\.int64"),
        ({"ids": x["ids"][0]}, r"\['ids'\] have shape \(6,\), of 1 axes"),
        ({"pool": torch.arange(4)}, r"\['pool'\] differ among the samples"),
        ({"ids": x["ids"][:3]}, r"do not have one number of samples"),
    ):
        with pytest.raises(InputError, match=said):
            of.fit("a", ({**x, **wrong}, y))
    with pytest.raises(InputError, match=r"a tuple .* made for a mapping"):
        of.fit("a", ((x["ids"], x["mask"]), y))
    assert of.tasks == ()


def test_features_of_more_than_one_vector_for_a_sample_are_refused_at_the_door() -> None:
    backbone = Maps()
    with pytest.raises(InputError, match=r"features \(N, F\), and these have shape \(2, 10, 8, 8\): take the mean"):
        Learner(backbone, (2, 8, 8), unit_axis=1)
    Learner(backbone, (2, 8, 8), features=lambda maps: maps.mean((2, 3)))  # the backbone is free again
    for wrong in ((), [], "text"):
        with pytest.raises(HatrackError):
            Learner(dense(), wrong)


def test_tasks_of_nested_samples_can_be_made_without_a_learner() -> None:
    x, y = {"left": torch.randn(6, 3), "right": torch.arange(6)}, torch.arange(6) % 2
    task = Task.from_tensors("t", x, y, x, y, validation=0.5)
    loaded, labels = task.valid.load()
    assert task.input_shape == {"left": (3,), "right": ()}
    assert loaded["right"].dtype == torch.int64
    assert torch.equal(loaded["left"], x["left"][loaded["right"]])
    assert torch.equal(labels, y[loaded["right"]])


def test_digits_are_looked_at_along_the_axis_of_samples() -> None:
    times = torch.arange(40, dtype=torch.float64).view(1, 20, 2) + 1.7e9
    example = torch.zeros(3, 4, 2)
    with pytest.raises(InputError, match=r"vary by .* around 1\.7e\+09"):
        require_digits(times, example, "samples", 1)
    require_digits(times.transpose(0, 1)[:1], example, "samples", 0)
