"""Every preset can be built, says where it comes from, and carries the settings of its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hatrack.cli import main
from hatrack.data import DATASETS, ImageDataset
from hatrack.experiments import EXPERIMENTS, RunRequest, prepare
from hatrack.methods.hat import InitialEmbedding
from hatrack.streams import STREAMS, StreamOptions, build_stream, registry
from support.toys import strength_of

GREY = 28
COLOUR = 32
PER_CLASS = 8


def blank(name: str) -> ImageDataset:
    """A set with the classes, channels and size of the real one, and eight black images of every class."""
    spec = DATASETS[name]
    labels = torch.arange(len(spec.class_names)).repeat_interleave(PER_CLASS)
    size = GREY if len(spec.mean) == 1 else COLOUR
    images = torch.zeros(len(labels), len(spec.mean), size, size, dtype=torch.uint8)
    return ImageDataset(
        *(name, images, labels, images, labels, spec.class_names, spec.mean, spec.std, "blank"),
        common_form=spec.common_form,
    )


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load_dataset", lambda name, *_, **__: blank(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_can_be_built(name: str) -> None:
    experiment = EXPERIMENTS[name]
    prepared = prepare(RunRequest(name, "hat"))
    assert prepared.config == experiment.config("hat")
    assert len(prepared.stream) == STREAMS[experiment.stream].num_tasks
    assert len(prepared.result.data) == len(STREAMS[experiment.stream].datasets)
    # The first task can be opened, so the backbone suits the samples.
    task = prepared.stream[0]
    prepared.method.begin_task(task)
    x, _ = task.test.load()
    assert prepared.method.predict(x[:2], task.name).shape == (2, task.num_classes)


def test_every_preset_states_its_source_and_the_list_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["list", "experiments"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    own = {"demo", "permuted-fashion-mnist", "rotated-mnist", "mixture-open", "mixture-seven", "incremental-cifar10"}
    for experiment in EXPERIMENTS.values():
        assert experiment.source
        assert bool(experiment.published) == (experiment.name not in own), experiment.name
        for text in (experiment.name, experiment.description, experiment.source, experiment.published):
            assert " ".join(text.split()) in shown
    for name in ("mixture", "incremental-cifar", "permuted-mnist-small", "permuted-mnist-large", "split-mnist"):
        assert re.search("tables?|figure", EXPERIMENTS[name].source)


def test_settings_of_the_papers() -> None:
    def settings(name: str, method: str = "hat") -> tuple[object, ...]:
        config = EXPERIMENTS[name].config(method)
        return config.network.hidden, strength_of(config), config.method.s_max, config.stream.validation

    assert settings("permuted-mnist-small") == ((100, 100), 0.5, 200.0, 0.0)
    assert settings("permuted-mnist") == ((500, 500), 0.5, 400.0, 0.0)
    assert settings("permuted-mnist-large") == ((2000, 2000), 0.5, 400.0, 0.0)
    large = EXPERIMENTS["permuted-mnist-large"].network
    assert (large.dropout_early, large.dropout_late) == (0.2, 0.5)
    for name in ("mixture", "mixture-open", "mixture-seven", "incremental-cifar"):
        config = EXPERIMENTS[name].config("hat")
        assert (config.network.network, strength_of(config), config.method.s_max) == ("alexnet", 0.75, 400.0)
        assert (config.network.dropout_early, config.network.dropout_late) == (0.2, 0.5)
        assert config.stream.validation == (0.1 if name == "incremental-cifar" else 0.15)
        assert (config.training.lr, config.training.batch_size, config.training.epochs) == (0.05, 64, 200)
    for name in ("compression", "compression-cifar100", "feature-selection"):
        method = EXPERIMENTS[name].config("hat").method
        assert (method.c, method.embedding) == (1.5, InitialEmbedding.UNIFORM)
        assert (method.embedding_low, method.embedding_high) == (0.0, 2.0)
        assert method.gate_inputs == (name == "feature-selection")
    dwa = EXPERIMENTS["dwa-mixture"].config("sgd")
    assert (dwa.training.lr, dwa.training.batch_size, dwa.network.dropout_late) == (0.075, 32, 0.0)


def test_the_mixtures_hold_what_they_say() -> None:
    paper, at_hand = (STREAMS[EXPERIMENTS[name].stream] for name in ("mixture", "mixture-open"))
    assert set(paper.datasets) == {
        *("cifar10", "cifar100", "facescrub", "fashion-mnist", "mnist", "notmnist", "svhn", "traffic-signs"),
    }
    assert set(at_hand.datasets) == {"mnist", "fashion-mnist", "notmnist", "cifar10", "traffic-signs", "animals"}
    assert "NOT the paper's" in EXPERIMENTS["mixture-open"].description
    orders = set()
    for seed in range(6):
        stream = build_stream("mixture", StreamOptions(seed))
        assert stream.input_shape == (3, 32, 32)
        assert {task.name: task.num_classes for task in stream} == {
            n: len(DATASETS[n].class_names) for n in paper.datasets
        }
        orders.add(tuple(task.name for task in stream))
    assert len(orders) == 6, "the seed draws the order"


def test_incremental_cifar_is_made_of_consecutive_classes_in_an_order_by_the_seed() -> None:
    streams = [build_stream("incremental-cifar", StreamOptions(seed)) for seed in range(3)]
    assert len({tuple(task.name for task in stream) for stream in streams}) == 3
    assert len({frozenset(task.name for task in stream) for stream in streams}) == 1
    for task in streams[0]:
        kind = task.name.split("-")[0]
        names = DATASETS[kind].class_names
        start = names.index(task.classes[0])
        assert task.classes == names[start : start + len(task.classes)]
        assert task.num_classes == {"cifar10": 2, "cifar100": 20}[kind]


def test_fixed_order_where_the_papers_have_one() -> None:
    for name in ("split-mnist", "split-cifar10", "split-cifar100", "transfer-mnist-fashion"):
        orders = {tuple(task.name for task in build_stream(name, StreamOptions(seed))) for seed in range(4)}
        assert len(orders) == 1


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_the_same_for_the_same_seed(name: str) -> None:
    def everything() -> list[torch.Tensor]:
        stream = build_stream(name, StreamOptions(5, validation=0.25, limit=300), data_dir=Path())
        return [
            part for task in stream for part in (task.train.rows, task.valid.rows, task.test.rows, task.train.labels)
        ]

    torch.manual_seed(1)
    first = everything()
    torch.manual_seed(2)
    assert all(torch.equal(left, right) for left, right in zip(first, everything(), strict=True))
    for task in build_stream(name, StreamOptions(5)):
        for split in (task.train, task.test):
            assert set(split.labels.tolist()) == set(range(task.num_classes)), "labels are those within the task"
