"""Record of what a method of a person's own says of itself, for reports that do not import it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatrack.experiments.settings import Config, NetworkSettings, StreamSettings
from hatrack.methods import Method, find_method
from hatrack.train import TrainingSettings

__all__ = ["OwnMethod"]


@dataclass(frozen=True)
class OwnMethod:
    """Record of a method of one's own, by what its class says of itself.

    Attributes:
        training: settings of the training that it has other values for than experiments, as JSON values.
        trains: whether there is anything to train.
        source_sha256: SHA-256 of the file that it is defined in, in hexadecimal; None where there is no such file.
    """

    training: Mapping[str, Any]
    trains: bool
    source_sha256: str | None

    @classmethod
    def of(cls, name: str) -> OwnMethod | None:
        """Look at a method; None for those of :data:`hatrack.methods.METHODS`, which reports know.

        Raises:
            InputError: there is no such method.
        """
        if ":" not in name:
            return None
        kind = find_method(name)
        config = Config(StreamSettings(), NetworkSettings(), TrainingSettings(), kind.settings_type())
        flat = config.overridden(kind.training).flat()
        return cls({key: flat[key] for key in kind.training}, bool(kind.trains), _digest_of(kind))

    def is_changed_in(self, now: OwnMethod) -> bool:
        """Return whether the file is another one now, as far as both are known."""
        digests = {self.source_sha256, now.source_sha256}
        return None not in digests and len(digests) == 2

    def to_json(self) -> dict[str, Any]:
        """The entry of ``run.json``."""
        return {"training": dict(self.training), "trains": self.trains, "source_sha256": self.source_sha256}

    @classmethod
    def from_json(cls, content: Any) -> OwnMethod:
        """Read the entry of ``run.json``."""
        digest = content["source_sha256"]
        if not isinstance(content["trains"], bool) or not isinstance(digest, str | None):
            raise TypeError("what is recorded of a method of one's own is of another form")
        return cls(dict(content["training"]), content["trains"], digest)


def _digest_of(kind: type[Method]) -> str | None:
    try:
        file = inspect.getsourcefile(kind)
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, TypeError):  # of a class that was made by hand
        return None
