"""Results for people to look at."""

from hatrack.report.console import (
    accuracy_table,
    comparison_table,
    forgetting_line,
    kinds_line,
    reproduction_table,
    share_in_use,
    tuning_table,
    verification_table,
)
from hatrack.report.costs import once_table, steps_table

__all__ = [
    "accuracy_table",
    "comparison_table",
    "forgetting_line",
    "kinds_line",
    "once_table",
    "reproduction_table",
    "share_in_use",
    "steps_table",
    "tuning_table",
    "verification_table",
]
