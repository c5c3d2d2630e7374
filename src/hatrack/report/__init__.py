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

__all__ = [
    "accuracy_table",
    "comparison_table",
    "forgetting_line",
    "kinds_line",
    "reproduction_table",
    "share_in_use",
    "tuning_table",
    "verification_table",
]
