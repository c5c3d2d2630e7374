"""Record of the files that a task was read from: how many, what was done to them, and what was passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FilesRead"]


@dataclass(frozen=True)
class FilesRead:
    """Files that a task was read from.

    Attributes:
        read: number of files whose content became samples.
        passed_over: number of files that lie there and were not read, by the reason, in words that go behind a number.
        conversions: number of files of which something was changed so that they became samples, in such words, too.
    """

    read: int
    passed_over: Mapping[str, int] = field(default_factory=dict)
    conversions: Mapping[str, int] = field(default_factory=dict)

    def say(self) -> str:
        """Say all of it in one line, such as ``12 files read, 3 passed over (3 hidden)``."""
        line = f"{self.read:,} file{'' if self.read == 1 else 's'} read"
        if self.conversions:
            line += f" ({_listed(self.conversions)})"
        line += f", {sum(self.passed_over.values()):,} passed over"
        return f"{line} ({_listed(self.passed_over)})" if self.passed_over else line

    def to_json(self) -> dict[str, Any]:
        """The entry of ``run.json``: ``read``, how many are ``passed_over``, and reasons and conversions if any."""
        return {
            "read": self.read,
            "passed_over": sum(self.passed_over.values()),
            **({"reasons": dict(self.passed_over)} if self.passed_over else {}),
            **({"conversions": dict(self.conversions)} if self.conversions else {}),
        }

    @classmethod
    def from_json(cls, content: Any) -> FilesRead:
        """Make it of what :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is something else.
        """
        reasons, conversions = (_counts(content.get(key, {})) for key in ("reasons", "conversions"))
        if sum(reasons.values()) != content["passed_over"]:
            raise ValueError(f"{content['passed_over']} files passed over are not those of the reasons, {reasons}")
        return cls(_count(content["read"]), reasons, conversions)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {words}" for words, count in counts.items())


def _counts(content: Any) -> dict[str, int]:
    return {str(words): _count(count) for words, count in content.items()}


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of files")
    return value
