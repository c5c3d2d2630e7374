"""Streams of image data sets: some classes at a time, one set after another, or the same images seen in other ways.

The same options give the same stream, whatever is then done with it. Sources: F. Zenke, B. Poole, S. Ganguli,
"Continual learning through synaptic intelligence", ICML 2017 (a few classes at a time); J. Serrà et al., "Overcoming
catastrophic forgetting with hard attention to the task", ICML 2018 (mixture and incremental, in an order by the seed);
I. J. Goodfellow et al., "An empirical investigation of catastrophic forgetting in gradient-based neural networks",
arXiv:1312.6211, 2013 (permutations); D. Lopez-Paz, M. Ranzato, "Gradient episodic memory for continual learning",
NIPS 2017 (rotations).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from hatrack.data import ImageDataset
from hatrack.errors import InputError
from hatrack.objectives import Classification
from hatrack.streams.base import Split, Task, TaskStream, sampled_task
from hatrack.streams.groups import ClassGroup, all_classes, consecutive_groups, shuffled_groups
from hatrack.streams.sampling import StreamOptions
from hatrack.streams.seeding import seeded_generator
from hatrack.streams.transforms import Chain, Normalise, Permute, Rotate, Transform

__all__ = [
    "class_stream",
    "class_task",
    "drawn_angles",
    "first_parts",
    "incremental_stream",
    "mixture_stream",
    "permuted_stream",
    "rotated_stream",
    "shuffled_class_stream",
    "split_stream",
    "transfer_stream",
]

Part = tuple[ImageDataset, ClassGroup]


def split_stream(
    dataset: ImageDataset, groups: Sequence[ClassGroup], options: StreamOptions, *, name: str | None = None
) -> TaskStream:
    """Make one task of each group of classes, in the order of the groups.

    Args:
        dataset: source of the images.
        groups: the classes of each task.
        options: the seed, and which samples to take.
        name: name of the stream, by default ``split-`` and the data set's.

    Raises:
        InputError: a group names no class, one twice or an unknown one; or an option is out of range.
    """
    return class_stream([(dataset, group) for group in groups], options, name=name or f"split-{dataset.name}")


def mixture_stream(
    datasets: Sequence[ImageDataset], options: StreamOptions, *, num_tasks: int | None = None, name: str = "mixture"
) -> TaskStream:
    """Make one task of all classes of each data set, in an order drawn from the seed.

    Args:
        datasets: sources of the images; all of one image shape, see :func:`hatrack.data.as_rgb32`.
        options: the seed, which determines the order too, and which samples to take.
        num_tasks: number of tasks; None takes all. A shorter stream is the beginning of a longer one.
        name: name of the stream.

    Raises:
        InputError: there are not so many tasks, or an option is out of range.
    """
    parts = [(dataset, all_classes(dataset)) for dataset in datasets]
    return class_stream(_drawn(parts, num_tasks, options.seed, name), options, name=name)


def incremental_stream(
    datasets: Sequence[ImageDataset],
    sizes: Sequence[int | Sequence[int]],
    options: StreamOptions,
    *,
    num_tasks: int | None = None,
    name: str = "incremental",
) -> TaskStream:
    """Make tasks of consecutive classes of several data sets, put together in an order drawn from the seed.

    Args:
        datasets: sources of the images; all of one image shape.
        sizes: classes per task, for each data set; or the number of classes of each of its tasks, which may differ.
        options: the seed, which determines the order too, and which samples to take.
        num_tasks: number of tasks; None takes all. A shorter stream is the beginning of a longer one.
        name: name of the stream.

    Raises:
        InputError: there are not so many tasks or classes, a size is below 1, or an option is out of range.
    """
    sized = zip(datasets, sizes, strict=True)
    parts = [(d, group) for d, size in sized for group in consecutive_groups(d.class_names, size, prefix=d.name)]
    return class_stream(_drawn(parts, num_tasks, options.seed, name), options, name=name)


def shuffled_class_stream(
    datasets: Sequence[ImageDataset],
    sizes: Sequence[int],
    options: StreamOptions,
    *,
    num_tasks: int | None = None,
    name: str,
) -> TaskStream:
    """Break tasks at random out of several data sets, and put them in a random order.

    As :func:`incremental_stream`, but the classes of every data set are shuffled before they are grouped.

    Args:
        datasets: sources of the images; all of one image shape.
        sizes: classes per task, for each data set.
        options: the seed, which determines groups and order too, and which samples to take.
        num_tasks: number of tasks; None takes all. A shorter stream is the beginning of a longer one.
        name: name of the stream.

    Raises:
        InputError: there are not so many tasks, a size is below 1, or an option is out of range.
    """
    sized = zip(datasets, sizes, strict=True)
    parts = [(dataset, group) for dataset, size in sized for group in shuffled_groups(dataset, size, options.seed)]
    return class_stream(_drawn(parts, num_tasks, options.seed, name), options, name=name)


def transfer_stream(
    source: ImageDataset, target: ImageDataset, options: StreamOptions, *, name: str | None = None
) -> TaskStream:
    """Make two tasks, all classes of one data set and then all of another: what does the second gain from the first?

    Args:
        source: the data set that is learned first.
        target: the data set that is learned second; of the same image shape.
        options: the seed, and which samples to take. To cut short the target alone, where transfer shows most, make the
            two tasks by :func:`class_task`, each with options of its own.
        name: name of the stream, by default ``SOURCE-to-TARGET``.

    Raises:
        InputError: an option is out of range, or the images differ in shape.
    """
    parts = [(dataset, all_classes(dataset)) for dataset in (source, target)]
    return class_stream(parts, options, name=name or f"{source.name}-to-{target.name}")


def class_stream(parts: Sequence[Part], options: StreamOptions, *, name: str) -> TaskStream:
    """Make one task of each group of classes, of whichever data set it is.

    Args:
        parts: the tasks in their order: a data set and a group of its classes. Images of all have the same shape.
        options: the seed, and which samples to take.
        name: name of the stream.

    Raises:
        InputError: as for :func:`split_stream`; or the images of two data sets differ in shape.
    """
    tasks = [class_task(dataset, group, options, index=index) for index, (dataset, group) in enumerate(parts)]
    return TaskStream(name, tuple(tasks), origins_of(dataset for dataset, _ in parts))


def class_task(
    dataset: ImageDataset,
    group: ClassGroup,
    options: StreamOptions,
    *,
    index: int = 0,
    transform: Transform | None = None,
) -> Task:
    """Make the task of one group of classes.

    Args:
        dataset: source of the images.
        group: its classes.
        options: the seed, and which samples to take.
        index: position of the task in its stream; tasks at different positions draw their samples independently.
        transform: applied to the images on loading, by default the data set's normalisation.

    Raises:
        InputError: the group names no class, one twice or an unknown one; an option is out of range; or the data set
            is a packed part that has fewer samples than its limit asks of the whole.
    """
    different = set(group.classes) & set(range(len(dataset.class_names)))
    if not group.classes or len(different) != len(group.classes):
        raise InputError(
            f"task {group.name}: needs classes of {dataset.name}, each once, "
            f"out of 0..{len(dataset.class_names) - 1}; not {group.classes}"
        )
    if options.limit is not None:
        dataset.require_limit(group.classes, options.limit)
    if transform is None:
        transform = Normalise(dataset.mean, dataset.std)
    classes = tuple(dataset.class_names[label] for label in group.classes)
    train = Split(dataset.x_train, *_rows_of(dataset.y_train, group), transform)
    test = Split(dataset.x_test, *_rows_of(dataset.y_test, group), transform)
    return sampled_task(group.name, Classification(classes), train, test, options, index=index)


def first_parts(parts: list[Part], num_tasks: int | None, name: str) -> list[Part]:
    """Return the first ``num_tasks`` parts of a stream; None takes all.

    Raises:
        InputError: there are not so many.
    """
    if num_tasks is not None and num_tasks > len(parts):
        has = "1 task" if len(parts) == 1 else f"{len(parts)} tasks"
        raise InputError(f"stream {name} has {has}; {num_tasks} cannot be made of its data")
    return parts[:num_tasks]


def origins_of(datasets: Iterable[ImageDataset]) -> tuple[str, ...]:
    """Return the lines that results record about the data, one for each data set."""
    return tuple(dict.fromkeys(f"{dataset.name}: {dataset.origin or 'unknown'}" for dataset in datasets))


def _drawn(parts: list[Part], num_tasks: int | None, seed: int, name: str) -> list[Part]:
    """Return the first ``num_tasks`` of the tasks in an order drawn from the seed."""
    order = torch.randperm(len(parts), generator=seeded_generator(seed, "order"))
    return first_parts([parts[index] for index in order.tolist()], num_tasks, name)


def _rows_of(labels: torch.Tensor, group: ClassGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows whose label is in the group, ascending, and their labels counted within the group."""
    within = torch.full((max(*group.classes, int(labels.max())) + 1,), -1)
    within[list(group.classes)] = torch.arange(len(group.classes))
    renumbered = within[labels]
    rows = (renumbered >= 0).nonzero().flatten()
    return rows, renumbered[rows]


def permuted_stream(
    dataset: ImageDataset, num_tasks: int, options: StreamOptions, *, name: str | None = None
) -> TaskStream:
    """Make tasks of all classes in which the pixels have another order each time, also in the first.

    The tasks are ``permutation-1``, ``permutation-2``, ...; a longer stream begins with the tasks of a shorter one.

    Args:
        dataset: source of the images; all tasks share them in memory.
        num_tasks: number of tasks, at least 1.
        options: the seed, which determines the permutations too, and which samples to take.
        name: name of the stream, by default ``permuted-`` and the data set's.

    Raises:
        InputError: ``num_tasks`` or an option is out of range.
    """
    pixels = dataset.x_train.shape[-2:].numel()
    orders = [
        torch.randperm(pixels, generator=seeded_generator(options.seed, "permutation", index))
        for index in range(num_tasks)
    ]
    name = name or f"permuted-{dataset.name}"
    return _seen_through([Permute(order) for order in orders], "permutation", dataset, options, name)


def rotated_stream(
    dataset: ImageDataset, angles: Sequence[float], options: StreamOptions, *, name: str | None = None
) -> TaskStream:
    """Make tasks of all classes in which the images are turned by another angle each time.

    The tasks are ``rotation-1``, ``rotation-2``, ...

    Args:
        dataset: source of the images; all tasks share them in memory.
        angles: the angle of each task in degrees, anticlockwise, at least one; see :func:`drawn_angles`.
        options: the seed, and which samples to take.
        name: name of the stream, by default ``rotated-`` and the data set's.

    Raises:
        InputError: there is no angle, or one or an option is out of range.
    """
    name = name or f"rotated-{dataset.name}"
    return _seen_through([Rotate(angle) for angle in angles], "rotation", dataset, options, name)


def drawn_angles(num_tasks: int, seed: int, *, largest: float = 180.0) -> tuple[float, ...]:
    """Draw an angle for every task, uniformly from 0 to ``largest`` degrees; more tasks keep the angles of fewer."""
    draws = (torch.rand((), generator=seeded_generator(seed, "rotation", index)) for index in range(num_tasks))
    return tuple(float(draw) * largest for draw in draws)


def _seen_through(
    views: Sequence[Transform], what: str, dataset: ImageDataset, options: StreamOptions, name: str
) -> TaskStream:
    """Make one task of each view of the images as bytes."""
    everything, normalise = all_classes(dataset).classes, Normalise(dataset.mean, dataset.std)
    tasks = []
    for index, view in enumerate(views):
        group = ClassGroup(f"{what}-{index + 1}", everything)
        # The view first: moving bytes is cheaper than moving floats, and what a rotation uncovers is black.
        tasks.append(class_task(dataset, group, options, index=index, transform=Chain((view, normalise))))
    return TaskStream(name, tuple(tasks), origins_of([dataset]))
