"""The runs that make a comparison, and the file that lists them."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatrack.errors import CheckpointError, InputError
from hatrack.experiments.effects import cautions, keys_in_file, said_of_all
from hatrack.experiments.experiment import Experiment, describe
from hatrack.experiments.folder import PLAN
from hatrack.experiments.recognition import require_recognition
from hatrack.experiments.request import as_text
from hatrack.experiments.settings import SAMPLES, Config, changed
from hatrack.experiments.sources import located, relative_to
from hatrack.methods import METHODS, find_method
from hatrack.storage.checked_json import read_checked_json, write_checked_json
from hatrack.support.names import file_name_of, look_up
from hatrack.support.notebook import html_table

__all__ = ["JOINT", "PLAN", "REFERENCES", "ComparisonPlan", "read_plan", "run_folder", "write_plan"]

JOINT = "joint"
"""Name of joint training."""

REFERENCES = (JOINT, "random")
"""Methods that the forgetting ratio compares with; they are part of every comparison."""

SCHEMA = 1
"""Version of the format of ``comparison.json``."""


@dataclass(frozen=True)
class ComparisonPlan:
    """The runs that make a comparison.

    Attributes:
        experiment: name of the experiment; of one's own tasks, what they are called.
        methods: names of methods; :data:`REFERENCES` come last unless they are named.
        seeds: the seeds.
        common: settings of all runs that differ from the experiment's, by key.
        own: settings of single methods, by method and key.
        sources: for one's own tasks, a ``tasks.toml``, or the files and folders of the tasks; empty for presets.
    """

    experiment: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()

    @classmethod
    def make(
        cls,
        experiment: str,
        methods: Sequence[str],
        seeds: Sequence[int],
        settings: Mapping[str, Any] | None = None,
        sources: Sequence[Path] = (),
    ) -> ComparisonPlan:
        """Check what was asked for, and add the references.

        Args:
            experiment: name of the experiment.
            methods: names of methods.
            seeds: the seeds, 0 or more.
            settings: by ``key`` for all methods, or by ``method.key`` for one; texts are read as the setting's type.
            sources: as for :class:`hatrack.experiments.RunRequest`.

        Raises:
            InputError: an unknown or repeated name, names that would share a folder, no seed, a setting that does not
                exist or does not fit, or one that gives a method other samples than the others.
        """
        for name in methods:
            find_method(name)
        for what, given in (("method", methods), ("seed", seeds)):
            if len(set(given)) != len(given):
                raise InputError(f"a {what} is given twice in {','.join(map(str, given))}")
            if not given:
                raise InputError(f"give at least one {what} (`{what}s`)")
        if min(seeds) < 0:
            raise InputError(f"a seed must be 0 or more, not {min(seeds)}")
        wanted = (*methods, *(name for name in REFERENCES if name not in methods))
        _require_own_folders(wanted)
        described = describe(experiment, sources)
        configs = {method: described.config(method) for method in wanted}
        common, own = _split_settings(settings or {}, configs)
        _require_recognition(configs, common, own)
        plan = cls(experiment, wanted, tuple(seeds), common, own, tuple(path.absolute() for path in sources))
        plan.require_same_samples()
        return plan

    @functools.cached_property
    def described(self) -> Experiment:
        """The experiment.

        Raises:
            InputError: there is none, or the sources cannot be used.
        """
        return describe(self.experiment, self.sources)

    def _repr_html_(self) -> str:
        runs = len(self.methods) * len(self.seeds)
        return html_table(
            f"{self.subject}: {runs} runs, seeds {', '.join(map(str, self.seeds))}",
            ("method", "settings that differ from the experiment's"),
            ((method, ", ".join(f"{k}={v}" for k, v in self.overrides(method).items())) for method in self.methods),
        )

    @property
    def subject(self) -> str:
        """Name of what is learned, with the files of one's own tasks."""
        files = ", ".join(map(str, self.sources))
        return f"{self.experiment} ({files})" if files else self.experiment

    def overrides(self, method: str) -> dict[str, Any]:
        """The settings of a method's runs that differ from the experiment's, by key."""
        return {**self.common, **self.own.get(method, {})}

    def config(self, method: str) -> Config:
        """All settings of a method's runs."""
        return self.described.config(method).overridden(self.overrides(method))

    @property
    def cautions(self) -> tuple[str, ...]:
        """Sentences about settings that have no effect, or are unusual, and of which methods.

        Settings of all methods are not said to be without effect on those that train nothing.
        """
        said = {}
        for method in self.methods:
            keys = (*self.own.get(method, {}), *keys_in_file(self.described, method))
            if find_method(method).trains:
                owner = f"{method}." if {"optimizer", "lr"} & {*self.own.get(method, {})} else ""
                said[method] = cautions(method, self.config(method), (*self.common, *keys), owner=owner)
            elif keys:
                said[method] = cautions(method, self.config(method), keys)
        return said_of_all(said)

    def require_same_samples(self) -> None:
        """Refuse methods that would learn or be tested on different samples, so that a table could not rank them.

        Raises:
            InputError: a setting of the data differs between methods; see :data:`hatrack.experiments.settings.SAMPLES`.
        """
        configs = {method: self.config(method).flat() for method in self.methods}
        for key in SAMPLES:
            holders: dict[str, list[str]] = {}
            for method, flat in configs.items():
                holders.setdefault(as_text(flat[key]), []).append(method)
            if len(holders) > 1:
                said = ", ".join(f"{value} for {' and '.join(methods)}" for value, methods in holders.items())
                singular = min(holders, key=lambda value: len(holders[value]))
                raise InputError(
                    f"{key} decides which samples are learned and tested, and differs: {said}; methods are compared on "
                    f"the same samples, so set it for all methods: `{key}={singular}`"
                )

    def joined(self, earlier: ComparisonPlan) -> ComparisonPlan:
        """The plan of a folder that holds ``earlier`` and shall hold this one, too.

        Raises:
            InputError: it compares something else, or a method with other settings (they are named), or the methods of
                both would have different samples or share a folder.
        """
        if (self.sources or self.experiment) != (earlier.sources or earlier.experiment):
            raise InputError(
                f"the folder holds a comparison on {earlier.subject}, and this one is on {self.subject}; choose "
                "another folder (`out`)"
            )
        for method in self.methods:
            if method not in earlier.methods:
                continue
            if changes := changed(earlier.config(method).flat(), self.config(method).flat()):
                raise InputError(
                    f"the folder holds runs of {method} with other settings: {changes}; choose another folder (`out`)"
                )
        own = {method: self._beside(method, earlier.common) for method in self.methods if method not in earlier.methods}
        methods = dict.fromkeys((*earlier.methods, *self.methods))
        _require_own_folders(methods)
        whole = ComparisonPlan(
            self.experiment,
            (*(name for name in methods if name not in REFERENCES), *(name for name in methods if name in REFERENCES)),
            tuple(sorted({*earlier.seeds, *self.seeds})),
            earlier.common,
            {**earlier.own, **{method: settings for method, settings in own.items() if settings}},
            self.sources,
        )
        try:
            whole.require_same_samples()
        except InputError as error:  # as earlier versions let happen
            raise InputError(f"with what the folder holds, {error}; in another folder (`out`)") from error
        return whole

    def _beside(self, method: str, common: Mapping[str, Any]) -> dict[str, Any]:
        """Return a method's settings where they differ from the common ones."""
        flat = self.config(method).flat()
        keys = {**common, **self.overrides(method)}
        return {key: flat[key] for key in keys if key not in common or flat[key] != common[key]}


def _require_own_folders(methods: Iterable[str]) -> None:
    """Refuse methods whose runs would be kept in the same folder.

    Raises:
        InputError: two of them would be; they are named.
    """
    first: dict[str, str] = {}
    for method in methods:
        other = first.setdefault(file_name_of(method), method)
        if other != method:
            raise InputError(
                f"runs of {other} and of {method} would be kept in one folder, {file_name_of(method)}; give the module "
                "another name, or compare them in separate folders (`out`)"
            )


def _require_recognition(
    configs: Mapping[str, Config], common: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to recognise tasks with networks that cannot.

    Raises:
        InputError: a method is to recognise tasks and has no masks.
    """
    able = []
    for method in configs:
        with suppress(InputError):
            require_recognition(method)
            able.append(method)
    for method, config in configs.items():
        if config.overridden({**common, **own.get(method, {})}).stream.infer and method not in able:
            which = f"say of which: {', '.join(f'`{name}.infer=true`' for name in able)}" if able else "leave it out"
            raise InputError(f"infer is for methods with masks, and {method}, which is compared too, has none; {which}")


def run_folder(folder: Path, method: str, seed: int) -> Path:
    """Return the folder in which a comparison keeps a run."""
    return folder / file_name_of(method) / f"seed{seed}"


def read_plan(folder: Path) -> tuple[ComparisonPlan, dict[str, Any]]:
    """The plan of a folder, and what it was made with.

    Raises:
        CheckpointError: it is missing, damaged, or from a newer version.
    """
    path = folder / PLAN
    data = read_checked_json(path, SCHEMA, "comparison")
    try:
        plan = ComparisonPlan(
            str(data["experiment"]),
            tuple(map(str, data["methods"])),
            tuple(map(int, data["seeds"])),
            dict(data["settings"]["common"]),
            {str(name): dict(own) for name, own in data["settings"]["own"].items()},
            located(folder, data["sources"], data.get("relative_sources", ())),
        )
        for method in plan.methods:
            if ":" not in method:  # a class of one's own need not be there to read what it has done
                look_up("method", method, METHODS)
        return plan, dict(data["environment"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged, or not a comparison ({type(error).__name__}: {error})") from error


def write_plan(folder: Path, plan: ComparisonPlan, environment: Mapping[str, Any]) -> None:
    """Write ``comparison.json`` atomically, with its checksum.

    Raises:
        CheckpointError: it cannot be written; what was there before is still there.
    """
    content = {
        "schema": SCHEMA,
        "experiment": plan.experiment,
        "sources": [str(path) for path in plan.sources],
        **({"relative_sources": relative_to(folder, plan.sources)} if plan.sources else {}),
        "methods": plan.methods,
        "seeds": plan.seeds,
        "settings": {"common": plan.common, "own": plan.own},
        "environment": environment,
    }
    write_checked_json(folder / PLAN, content)


def _split_settings(
    settings: Mapping[str, Any], configs: Mapping[str, Config]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return settings of all methods, and of single ones, as JSON values: ``0.50`` and ``0.5`` are one setting.

    Args:
        settings: by ``key`` or ``method.key``.
        configs: the experiment's own settings for every method.

    Raises:
        InputError: a setting does not exist or does not fit.
    """
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        # A class of one's own may have dots in its name, so that the first dot need not end it.
        owner = next((method for method in configs if key.startswith(f"{method}.")), None)
        method, dot, name = key.partition(".") if owner is None else (owner, ".", key.removeprefix(f"{owner}."))
        if not dot:
            common[key] = value
            owners = [method for method, config in configs.items() if key in config.flat()]
            if owners and len(owners) < len(configs):
                examples = ", ".join(f"`{method}.{key}`" for method in owners)
                raise InputError(f"{key} is a setting of some methods only; say of which: {examples}")
        elif method in configs:
            own.setdefault(method, {})[name] = value
        else:
            close = difflib.get_close_matches(method, configs, n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise InputError(
                f"`{key}={value}` is about {method!r}, which is not compared{guess}; methods are: {', '.join(configs)}"
            )

    def read(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
        flat = configs[method].overridden(values).flat()
        return {key: flat[key] for key in values}

    return read(next(iter(configs)), common), {method: read(method, values) for method, values in own.items()}
