"""Settings as frozen dataclasses: merged from presets, overridden by ``key=value``, recorded as JSON."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hatrack.errors import InputError
from hatrack.methods import METHODS
from hatrack.objectives import ClassWeights, MetricName, TargetKind
from hatrack.streams import CellFormat, DecimalMark, EvaluationPart, TargetChoice
from hatrack.support.names import unknown_name
from hatrack.support.ranges import require_range, require_usual
from hatrack.support.values import as_json, parse_value, types_of
from hatrack.train import TrainingSettings

__all__ = [
    "SAMPLES",
    "Config",
    "InitialWeights",
    "NetworkSettings",
    "Norm",
    "StreamSettings",
    "changed",
    "read_settings",
]

SettingsT = TypeVar("SettingsT")

OF_DATA = {
    "resize": "at its top (resize = [32, 32])",
    "channels": "at its top (channels = 3)",
    "name": "under [[task]] (name = '...')",
    "path": "under [[task]] (path = '...')",
}
"""Keys of files about data of one's own that are no settings, and where they stand."""

OTHERWISE = {
    **dict.fromkeys(("learning_rate", "step_size", "rate"), "lr"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "max_iter"), "epochs"),
    **dict.fromkeys(("batch", "batchsize", "bs"), "batch_size"),
    **dict.fromkeys(("l2", "decay", "wd"), "weight_decay"),
    **dict.fromkeys(("optim", "solver"), "optimizer"),
    **dict.fromkeys(("hidden_layer_sizes", "hidden_sizes", "layers", "units"), "hidden"),
    **dict.fromkeys(("model", "backbone", "arch", "architecture"), "network"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), "lr_decay"),
    **dict.fromkeys(("patience", "early_stopping"), "lr_patience"),
    **dict.fromkeys(("val_split", "validation_split", "validation_fraction"), "validation"),
    **dict.fromkeys(("test_size", "test_split"), "test_share"),
    **dict.fromkeys(("max_samples", "samples"), "limit"),
    **dict.fromkeys(("tasks", "n_tasks"), "num_tasks"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip"), "clip_norm"),
    **dict.fromkeys(("smax", "scale"), "s_max"),
    **dict.fromkeys(("lambda", "lamb", "regularization"), "strength"),
}
"""Settings by names that other libraries and papers have for them."""


class Norm(enum.Enum):
    """Choice of whether a network that usually has norms has them."""

    BATCH = "batch"
    """Batch norms."""

    NONE = "none"
    """No norms."""


class InitialWeights(enum.Enum):
    """Initial weights of the backbone."""

    XAVIER = "xavier"
    """Xavier-uniform weights and zero biases, as the HAT paper says."""

    HE = "he"
    """He-normal convolutions, Xavier-uniform dense layers and zero biases, as the DWA paper says."""

    TORCH = "torch"
    """torch's defaults, as the HAT authors' code does."""


@dataclass(frozen=True)
class NetworkSettings:
    """The backbone.

    Attributes:
        network: mlp, alexnet, resnet18, vit, or mymodule:build, a function of one's own.
        hidden: width of every dense layer (mlp).
        width: factor on the number of units of every layer (alexnet, resnet18), above 0.
        dropout_early: dropout at the input (mlp), or after the first two convolutions (alexnet).
        dropout_late: dropout after every hidden layer (mlp), or after the later layers (alexnet).
        initialization: xavier, he or torch.
        norm: batch or none (resnet18).
        channels_last: whether pictures lie in memory pixel by pixel inside of the network, which convolutions and
            pooling on a CPU take less time for, with other last bits of results.
    """

    network: str = "mlp"
    hidden: tuple[int, ...] = (2000, 2000)
    width: float = 1.0
    dropout_early: float = 0.2
    dropout_late: float = 0.5
    initialization: InitialWeights = InitialWeights.XAVIER
    norm: Norm = Norm.BATCH
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"hidden must be widths of at least 1, such as 2000,2000, not {self.hidden}")
        require_range(self, "width", above=0)
        require_range(self, "dropout_early", "dropout_late", least=0, below=1)


@dataclass(frozen=True)
class StreamSettings:
    """The data.

    Attributes:
        validation: share of the training samples that are held out; 0 validates on the training samples themselves.
        limit: at most so many training samples per task, balanced over its classes; none for all.
        num_tasks: number of tasks; none for all of the stream.
        target: for tables and npz of one's own: classes, numbers or labels; none lets the data tell.
        targets: for tables of one's own: names of the columns that hold the targets, joined by commas.
        drop: for tables of one's own: names of columns to leave out, joined by commas; empty for none of them. Names
            with commas, and a column without a name, stand in double quotes.
        delimiter: for tables of one's own: the character between two cells, or tab.
        decimal: for tables of one's own: the character in front of decimals, a point or a comma.
        encoding: for tables of one's own: their encoding, by Python's name, such as cp1252; none for UTF-8, or what a
            mark at the beginning says.
        categories: for tables of one's own: names of columns that hold categories whatever they look like, joined by
            commas.
        separator: for tables of one's own: text between the labels of a cell.
        test_share: for tables and folders of pictures of one's own: share of the samples to test on; none where the
            files say it.
        metric: for data of one's own: accuracy, balanced_accuracy or f1 of classes; r2, mae or rmse of numbers; map, f1
            or exact of labels.
        class_weights: weights of the classes or labels in the loss: balanced, or numbers joined by commas.
        tested_on: test, or validation, to choose settings by the validation samples without a look at the test samples.
        infer: whether the tasks of the test samples are recognised, too, after every task; for methods with masks.
    """

    validation: float = 0.15
    limit: int | None = None
    num_tasks: int | None = None
    target: TargetKind | None = None
    targets: str | None = None
    drop: str | None = None
    delimiter: str | None = None
    decimal: DecimalMark | None = None
    encoding: str | None = None
    categories: str | None = None
    separator: str | None = None
    test_share: float | None = None
    metric: MetricName | None = None
    class_weights: str | None = None
    tested_on: EvaluationPart = EvaluationPart.TEST
    infer: bool = False

    def __post_init__(self) -> None:
        require_range(self, "validation", least=0, below=1)
        require_range(self, "limit", "num_tasks", least=1)
        require_range(self, "test_share", above=0, below=1)
        _ = self.weights  # refuses what are none
        _ = self.choice, self.cells  # refused likewise

    @property
    def weights(self) -> ClassWeights | None:
        """Weights of classes or labels."""
        return None if self.class_weights is None else ClassWeights.read(self.class_weights)

    @property
    def choice(self) -> TargetChoice:
        """Description of the targets of one's own tasks."""
        columns = () if self.targets is None else _names("targets", self.targets)
        drop = () if self.drop == "" else None if self.drop is None else _names("drop", self.drop)
        return TargetChoice(self.target, columns, self.separator, self.metric, drop=drop)

    @property
    def cells(self) -> CellFormat:
        """Description of the cells of one's own tables."""
        delimiter = {"tab": "\t", "\\t": "\t"}.get(self.delimiter or "", self.delimiter)
        if delimiter is not None and len(delimiter) != 1:
            raise InputError(f"delimiter must be a single character, or tab, not {self.delimiter!r}")
        categories = None if self.categories is None else _names("categories", self.categories)
        return CellFormat(delimiter, self.decimal, self.encoding, categories)

    @property
    def about_own(self) -> tuple[str, ...]:
        """Names of the settings made that are about one's own tasks alone."""
        own = (
            "target",
            "targets",
            "drop",
            "delimiter",
            "decimal",
            "encoding",
            "categories",
            "separator",
            "test_share",
            "metric",
        )
        return tuple(name for name in own if getattr(self, name) is not None)


SAMPLES = tuple(
    field.name for field in dataclasses.fields(StreamSettings) if field.name not in ("class_weights", "infer")
)
"""Settings of the data that decide which samples are learned and tested, and so are the same for runs in one table.

Class weights are a way to learn the same samples, and recognition is tested beside what is tested anyway.
"""


def _names(key: str, text: str) -> tuple[str, ...]:
    """Return names joined by commas, some of them in double quotes."""
    names: list[str] = []
    place = 0
    while not names or text[place - 1 : place] == ",":
        found = _NAME.match(text, place)
        if found is None:
            raise InputError(f"{key} must be names of columns joined by commas, not {text!r}")
        names.append(found[2] if found[1] is None else found[1].replace('""', '"'))
        place = found.end()
    return tuple(names)


_NAME = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"\s](?:[^,]*[^,\s])?))\s*(?:,|$)')
"""Name of a column, in double quotes or as it is, and the comma behind it."""


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        stream: the data.
        network: the backbone.
        training: the schedule.
        method: the method's own settings.

    Raises:
        InputError: a setting of the method has the name of one that every run has.
    """

    stream: StreamSettings
    network: NetworkSettings
    training: TrainingSettings
    method: Any

    def __post_init__(self) -> None:
        common = {key for part in (self.stream, self.network, self.training) for key in types_of(type(part))}
        if twice := [key for key in types_of(type(self.method)) if key in common]:
            raise InputError(
                f"settings of a method need names of their own; {type(self.method).__name__} has some that every run "
                f"has: {', '.join(twice)}"
            )

    def flat(self) -> dict[str, Any]:
        """All settings by key, as JSON values."""
        return {key: as_json(getattr(part, key)) for part in self._parts() for key in types_of(type(part))}

    def overridden(self, values: Mapping[str, Any]) -> Config:
        """A config with some settings replaced.

        Args:
            values: by key; texts are read as the setting's type.

        Raises:
            InputError: there is no such key, or a value does not fit.
        """
        known = [key for part in self._parts() for key in types_of(type(part))]
        for key in values:
            if key not in known:
                if key in OF_DATA:
                    raise InputError(f"{key} belongs into a tasks.toml, {OF_DATA[key]}; it is no setting of a run")
                if owners := [name for name, kind in METHODS.items() if key in types_of(kind.settings_type)]:
                    named = ", ".join(owners)
                    raise InputError(f"{key} is no setting of this method: leave it out, or choose one of {named}")
                raise unknown_name("setting", key, known, OTHERWISE)
        replaced = {}
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            mine = {
                key: parse_value(key, values[key], kind) for key, kind in types_of(type(part)).items() if key in values
            }
            replaced[field.name] = _checked(dataclasses.replace(part, **mine), mine)
        return Config(**replaced)

    def _parts(self) -> Iterable[Any]:
        return (self.stream, self.network, self.training, self.method)


def changed(there: Mapping[str, Any], now: Mapping[str, Any], *earlier: Mapping[str, Any]) -> str:
    """Say which values differ, and how; an empty text if none does.

    Args:
        there: what was recorded, by key.
        now: what is wanted.
        *earlier: the same with the defaults of earlier versions. Where something differs, it is told against those that
            fit best: a run goes on with their defaults once the rest agrees, so that these are no reason to refuse it.
    """

    def differing(wanted: Mapping[str, Any]) -> list[str]:
        return [key for key in {**there, **wanted} if there.get(key) != wanted.get(key)]

    if not differing(now):
        return ""
    nearest = min((wanted for wanted in (now, *earlier) if differing(wanted)), key=lambda one: len(differing(one)))
    return ", ".join(f"{key} ({there.get(key)} there, {nearest.get(key)} now)" for key in differing(nearest))


def read_settings(kind: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """Make one part of the settings, with its defaults where nothing is said.

    Args:
        kind: the data class.
        values: values by key, as texts or JSON values.

    Raises:
        InputError: there is no such key, or a value does not fit.
    """
    kinds = types_of(kind)
    for key in values:
        if key not in kinds:
            raise unknown_name("setting", key, list(kinds), OTHERWISE)
    read = {key: parse_value(key, value, kinds[key]) for key, value in values.items()}
    return _checked(kind(**read), read)


def _checked(part: SettingsT, read: Mapping[str, Any]) -> SettingsT:
    """Return settings that their own ranges let pass, and whose numbers that were read are usual ones."""
    require_usual(part, read)
    return part
