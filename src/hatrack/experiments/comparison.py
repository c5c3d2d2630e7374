"""Many runs side by side: the plan of a comparison, and what its folder holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hatrack.atomic import write_atomically
from hatrack.errors import CheckpointError, InputError
from hatrack.experiments.presets import find_experiment
from hatrack.experiments.results import RunResult, Status, read_result
from hatrack.experiments.running import RESULT, RunRequest
from hatrack.experiments.settings import Config
from hatrack.functional import forgetting_ratio
from hatrack.methods import METHODS
from hatrack.names import look_up, unknown_name
from hatrack.statistics import Spread, spread

__all__ = ["FAILURE", "PLAN", "REFERENCES", "Comparison", "Plan", "read_failure", "run_folder", "write_failure"]

PLAN = "comparison.json"
"""The file at the top of the folder, which holds the plan."""

FAILURE = "failure.json"
"""The file in a run's folder that says why the run failed."""

REFERENCES = ("joint", "random")
"""Methods that the forgetting ratio compares with; they are part of every comparison."""

SCHEMA = 1
"""Version of the format of ``comparison.json``."""


@dataclass(frozen=True)
class Plan:
    """Which runs make a comparison.

    Attributes:
        experiment: name of the experiment.
        methods: names of methods; :data:`REFERENCES` come last unless they are named.
        seeds: the seeds.
        common: settings of all runs that differ from the experiment's, by key.
        own: settings of single methods, by method and key.
    """

    experiment: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        experiment: str,
        methods: Sequence[str],
        seeds: Sequence[int],
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Check what was asked for, and add the references.

        Args:
            experiment: name of the experiment.
            methods: names of methods.
            seeds: the seeds, 0 or more.
            settings: by ``key`` for all methods, or by ``method.key`` for one; texts are read as the setting's type.

        Raises:
            InputError: an unknown or repeated name, no seed, or a setting that does not exist or does not fit.
        """
        for name in methods:
            look_up("method", name, METHODS)
        for what, given in (("method", methods), ("seed", seeds)):
            if len(set(given)) != len(given):
                raise InputError(f"a {what} is given twice in {','.join(map(str, given))}")
            if not given:
                raise InputError(f"give at least one {what} with --{what}s")
        if min(seeds) < 0:
            raise InputError(f"a seed must be 0 or more, not {min(seeds)}")
        wanted = (*methods, *(name for name in REFERENCES if name not in methods))
        common, own = _split_settings(settings or {}, wanted)
        plan = cls(experiment, wanted, tuple(seeds), common, own)
        common, own = _canonical(plan)
        return replace(plan, common=common, own=own)

    def overrides(self, method: str) -> dict[str, Any]:
        """The settings of a method's runs that differ from the experiment's, by key."""
        return {**self.common, **self.own.get(method, {})}

    def config(self, method: str) -> Config:
        """All settings of a method's runs."""
        return find_experiment(self.experiment).config(method).overridden(self.overrides(method))

    def requests(self, folder: Path, data: Path | None, device: torch.device) -> tuple[RunRequest, ...]:
        """Every run of the plan, all methods of the first seed first."""
        return tuple(
            RunRequest(
                self.experiment, method, seed, run_folder(folder, method, seed), data, self.overrides(method), device
            )
            for seed in self.seeds
            for method in self.methods
        )

    def joined(self, earlier: Plan) -> Plan:
        """The plan of a folder that holds ``earlier`` and shall hold this one, too.

        Raises:
            InputError: it compares something else, or a method with other settings (they are named).
        """
        if self.experiment != earlier.experiment:
            raise InputError(f"the folder holds a comparison on {earlier.experiment}; choose another folder with --out")
        for method in self.methods:
            if method not in earlier.methods:
                continue
            now, then = self.config(method).flat(), earlier.config(method).flat()
            changes = [f"{key} ({then[key]} there, {now[key]} now)" for key in now if now[key] != then[key]]
            if changes:
                raise InputError(
                    f"the folder holds runs of {method} with other settings: {', '.join(changes)}; "
                    "choose another folder with --out"
                )
        own = {method: self._beside(method, earlier.common) for method in self.methods if method not in earlier.methods}
        methods = dict.fromkeys((*earlier.methods, *self.methods))
        return Plan(
            self.experiment,
            (*(name for name in methods if name not in REFERENCES), *(name for name in methods if name in REFERENCES)),
            tuple(sorted({*earlier.seeds, *self.seeds})),
            earlier.common,
            {**earlier.own, **{method: settings for method, settings in own.items() if settings}},
        )

    def _beside(self, method: str, common: Mapping[str, Any]) -> dict[str, Any]:
        """What a method's settings must be where the common ones are others."""
        flat = self.config(method).flat()
        return {key: flat[key] for key in {**common, **self.overrides(method)} if flat[key] != common.get(key)}

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "experiment": self.experiment,
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "settings": {"common": dict(self.common), "own": {name: dict(own) for name, own in self.own.items()}},
        }


@dataclass(frozen=True)
class Comparison:
    """A comparison as its folder holds it.

    Attributes:
        plan: which runs belong to it.
        results: the runs that have begun, by method and seed.
        failures: why runs failed, by method and seed; a failed run may have a result up to where it failed.
        environment: what the comparison was started with.
    """

    plan: Plan
    results: Mapping[tuple[str, int], RunResult]
    failures: Mapping[tuple[str, int], str]
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """Read a folder that ``hatrack compare`` made; nothing is written, and runs may be going on.

        Raises:
            InputError: the folder holds no comparison.
            CheckpointError: a file is damaged, or from a newer version.
        """
        if not (folder / PLAN).exists():
            raise InputError(f"{folder} holds no {PLAN}; give the folder of a comparison (hatrack compare --out)")
        plan, environment = read_plan(folder)
        results, failures = {}, {}
        for method in plan.methods:
            for seed in plan.seeds:
                place = run_folder(folder, method, seed)
                if (place / RESULT).exists():
                    results[method, seed] = read_result(place / RESULT)
                failure = read_failure(place)
                if failure is not None:
                    failures[method, seed] = failure
        return cls(plan, results, failures, environment)

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.plan.experiment

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the references included."""
        return self.plan.methods

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.plan.seeds

    def run(self, method: str, seed: int) -> RunResult | None:
        """The finished run of a method and seed; None if it is not finished, or failed.

        Raises:
            InputError: the comparison has no such method or seed.
        """
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        if seed not in self.seeds:
            raise unknown_name("seed", str(seed), map(str, self.seeds))
        result = self.results.get((method, seed))
        return result if result is not None and result.status is Status.FINISHED else None

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """Method and seed of every run that is not finished."""
        return tuple((m, s) for m in self.methods for s in self.seeds if self.run(m, s) is None)

    def forgetting_ratio(self, method: str, seed: int) -> tuple[float, ...] | None:
        """The forgetting ratio ``ρ^{≤t}`` after every task t (Eq. 6): the mean over τ ≤ t of ``ρ^{τ≤t}``.

        Joint training and guessing are the runs of the same seed.

        Returns:
            One number per task, t = 1 … T: 0 is as good as joint training, −1 is chance. Not a number where joint
            training is no better than chance on some task. None while one of the three runs is not finished.

        Raises:
            InputError: the comparison has no such method or seed.
        """
        runs = [self.run(name, seed) for name in (method, *REFERENCES)]
        if any(run is None for run in runs):
            return None
        ours, joint, random = (run.matrix("accuracy") for run in runs if run is not None)
        ratios = []
        for t in range(len(ours)):
            parts = [forgetting_ratio(ours[t][tau], random[t][tau], joint[t][tau]) for tau in range(t + 1)]
            ratios.append(math.fsum(parts) / (t + 1))
        return tuple(ratios)

    def spread(self, method: str, figure: str) -> Spread | None:
        """Mean and standard deviation over seeds of a figure after the last task; None if no run has it.

        Args:
            method: name of the method.
            figure: ``average_accuracy``, ``forgetting``, ``backward_transfer`` or ``forgetting_ratio``.

        Raises:
            InputError: there is no such method or figure.
        """
        values = self.figures(method, figure).values()
        return spread(list(values)) if values else None

    def figures(self, method: str, figure: str) -> dict[int, float]:
        """A figure after the last task by seed, for the seeds that have it.

        Args:
            method: name of the method.
            figure: ``average_accuracy``, ``forgetting``, ``backward_transfer`` or ``forgetting_ratio``.

        Raises:
            InputError: there is no such method or figure.
        """
        known = ("average_accuracy", "forgetting", "backward_transfer", "forgetting_ratio")
        if figure not in known:
            raise unknown_name("figure", figure, known)
        values = {}
        for seed in self.seeds:
            result = self.run(method, seed)
            if figure == "forgetting_ratio":
                ratios = self.forgetting_ratio(method, seed)
                value = None if ratios is None or math.isnan(ratios[-1]) else ratios[-1]
            else:
                value = None if result is None else result.metrics()[figure]
            if value is not None:
                values[seed] = float(value)
        return values


def run_folder(folder: Path, method: str, seed: int) -> Path:
    """Where a comparison keeps a run."""
    return folder / method / f"seed{seed}"


def read_plan(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan of a folder, and what it was made with.

    Raises:
        CheckpointError: it is missing, damaged, or from a newer version.
    """
    path = folder / PLAN
    try:
        data = json.loads(path.read_bytes())
        if data["schema"] > SCHEMA:
            raise CheckpointError(f"{path} has schema {data['schema']}, this hatrack reads up to {SCHEMA}; upgrade it")
        plan = Plan(
            str(data["experiment"]),
            tuple(map(str, data["methods"])),
            tuple(map(int, data["seeds"])),
            dict(data["settings"]["common"]),
            {str(name): dict(own) for name, own in data["settings"]["own"].items()},
        )
        for method in plan.methods:
            plan.config(method)
        return plan, dict(data["environment"])
    except OSError as error:
        raise CheckpointError(f"{path} could not be read ({error.strerror or error})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged, or not a comparison ({type(error).__name__}: {error})") from error


def write_plan(folder: Path, plan: Plan, environment: Mapping[str, Any]) -> None:
    """Write ``comparison.json`` atomically."""
    _write_json(folder / PLAN, {"schema": SCHEMA, **plan.to_json(), "environment": dict(environment)})


def read_failure(folder: Path) -> str | None:
    """Why the run in a folder failed; None if it did not.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FAILURE
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_bytes())["error"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); remove it") from error


def write_failure(folder: Path, error: str | None) -> None:
    """Record why a run failed; None takes back what was recorded."""
    if error is None:
        (folder / FAILURE).unlink(missing_ok=True)
    else:
        _write_json(folder / FAILURE, {"error": error})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def _split_settings(
    settings: Mapping[str, Any], methods: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        method, dot, name = key.partition(".")
        if not dot:
            common[key] = value
        elif method in methods:
            own.setdefault(method, {})[name] = value
        else:
            raise unknown_name(f"method for {key}={value}", method, methods)
    return common, own


def _canonical(plan: Plan) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings as JSON values of their types, so that ``0.50`` and ``0.5`` are one setting."""
    configs = {method: find_experiment(plan.experiment).config(method) for method in plan.methods}
    for key in plan.common:
        owners = [method for method, config in configs.items() if key in config.flat()]
        if owners and len(owners) < len(configs):
            examples = ", ".join(f"--set {method}.{key}=..." for method in owners)
            raise InputError(f"{key} is a setting of some methods only; say of which: {examples}")
    common = configs[plan.methods[0]].overridden(plan.common).flat()
    own = {method: configs[method].overridden(settings).flat() for method, settings in plan.own.items()}
    return (
        {key: common[key] for key in plan.common},
        {method: {key: own[method][key] for key in settings} for method, settings in plan.own.items()},
    )


def pending(requests: Iterable[RunRequest]) -> tuple[RunRequest, ...]:
    """Those of some runs that are not finished."""
    return tuple(request for request in requests if not _is_finished(request))


def _is_finished(request: RunRequest) -> bool:
    if request.out is None or not (request.out / RESULT).exists():
        return False
    try:
        return read_result(request.out / RESULT).status is Status.FINISHED
    except CheckpointError:
        return False  # the run itself will say what is wrong
