"""Names that command lines choose from, without the registries, which need torch: help is there at once.

What is kept as a table in the package is read from there; the others are keys of the registries, which a test compares.
"""

from __future__ import annotations

from hatrack.support.toml import read_packaged_toml

__all__ = ["DATASETS", "EXPERIMENTS", "FIGURES", "LOGGERS", "METHODS", "STUDIES", "TABLES"]

EXPERIMENTS = tuple(read_packaged_toml("hatrack", "experiments/presets.toml"))
"""Names of the experiments."""

DATASETS = tuple(read_packaged_toml("hatrack", "data/datasets.toml"))
"""Names of the data sets."""

STUDIES = tuple(read_packaged_toml("hatrack", "report/studies.toml"))
"""Names of the analyses that train by themselves."""

METHODS = (
    *("hat", "adahat", "sgd", "sgd-frozen", "sgd-restart", "joint", "independent", "random"),
    *("l2", "ewc", "imm-mean", "imm-mode", "si", "mas", "cab", "lwf", "lfl"),
    *("pmask", "wsn", "supsup", "packnet", "pnn", "pathnet", "den", "dwa", "er", "derpp", "gem"),
)
"""Names of the methods."""

FIGURES = (
    *("accuracy", "forgetting", "forgetting-ratio", "sensitivity", "usage", "reuse", "compression", "layers"),
    *("tasks", "matrix", "class-incremental", "task-confusion", "class-confusion"),
    *("transfer", "published", "time", "time-by-task", "learning"),
)
"""Names of the figures that are drawn from runs."""

TABLES = (
    *("summary", "forgetting-ratios", "differences", "curves", "accuracy", "by-task", "learning", "capacity"),
    *("usage", "reuse", "compression", "recognition", "task-confusion", "class-confusion"),
    *("timing", "published", "data"),
)
"""Names of the tables of a report."""

LOGGERS = ("tensorboard", "wandb", "mlflow")
"""Names of the loggers of a run."""
