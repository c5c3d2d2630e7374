"""Results for people to look at."""

from hatrack.report.console import accuracy_table, forgetting_line, share_in_use, verification_table

__all__ = ["accuracy_table", "forgetting_line", "share_in_use", "verification_table"]
