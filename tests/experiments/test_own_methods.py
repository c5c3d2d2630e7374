"""A method of one's own, ``module:Class``, is run, compared and searched as the package's own are."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hatrack.cli import main
from hatrack.errors import InputError
from hatrack.experiments import EXPERIMENTS, RunRequest
from hatrack.experiments.continuing import require_same_samples
from hatrack.experiments.plan import ComparisonPlan, read_plan
from hatrack.methods import METHODS, Method, find_method
from support.synthetic import synthetic

QUICK = ["--epochs", "1", "--set", "num_tasks=2", "--set", "limit=30", "--quiet"]
OTHERS = """
from hatrack.methods import Method

class Half(Method):
    name = "half"

class Plain:
    pass

number = 3
"""

SETTINGS = """
import enum
from dataclasses import dataclass
from hatrack.methods.l2 import L2Settings
from plugged_in import L2

class Tone(enum.Enum):
    LOUD = "Loud"

@dataclass(frozen=True)
class Required:
    extra: float

@dataclass(frozen=True)
class EitherSettings(L2Settings):
    extra: float | str = 1.0

@dataclass(frozen=True)
class EndlessSettings(L2Settings):
    extra: float = float("inf")

@dataclass(frozen=True)
class WildSettings(L2Settings):
    def __post_init__(self):
        raise ValueError("two\\nlines")

@dataclass(frozen=True)
class TwiceSettings(L2Settings):
    lr: float = 3.0

@dataclass(frozen=True)
class GoodSettings(L2Settings):
    tone: Tone = Tone.LOUD
    extra: float = -1.0

class Nothing(L2):
    settings_type = None

class Plain(L2):
    settings_type = dict

class Open(L2):
    settings_type = Required

class Either(L2):
    settings_type = EitherSettings

class Endless(L2):
    settings_type = EndlessSettings

class Wild(L2):
    settings_type = WildSettings

class Far(L2):
    training = 3

class Twice(L2):
    settings_type = TwiceSettings

class Good(L2):
    settings_type = GoodSettings
"""


def forget_modules() -> None:
    for name in ("plugged_settings", "plugged_in", "plugged_others", "plugged_broken", "plugged_late", "sgd"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Working directory with modules of one's own, of which one is a copy of the file of plain L2."""
    shutil.copy(str(sys.modules[METHODS["l2"].__module__].__file__), tmp_path / "plugged_in.py")
    (tmp_path / "plugged_others.py").write_text(OTHERS)
    (tmp_path / "plugged_settings.py").write_text(SETTINGS)
    (tmp_path / "plugged_broken.py").write_text("absent\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    forget_modules()


def recorded(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


@pytest.mark.slow
def test_the_file_of_a_method_of_the_package_gives_the_same_bits_as_one_s_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("l2", "plugged_in:L2"):
        assert main(["run", "demo", "--method", name, "--set", "strength=0.5", *QUICK]) == 0
    mine, there = folder / "runs" / "demo-plugged_in-L2-seed0", folder / "runs" / "demo-l2-seed0"
    assert recorded(mine)["method"] == "plugged_in:L2"
    assert recorded(mine)["config"] == recorded(there)["config"]
    assert recorded(mine)["logits_sha256"] == recorded(there)["logits_sha256"]
    assert main(["verify", str(mine)]) == 0
    assert "verified" in capsys.readouterr().out
    assert main(["rerun", str(mine), "--out", "again"]) == 0
    assert "the same to the bit" in capsys.readouterr().out
    assert main(["report", str(mine), "--format", "csv", "--table", "summary"]) == 0
    assert "plugged_in:L2," in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_compare_and_tune_take_it_with_settings_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "demo", "--methods", "plugged_in:L2,l2", "--set", "plugged_in:L2.strength=0.5", *QUICK]
    assert main([*words, "--set", "l2.strength=0.5", "--out", "all"]) == 0
    assert recorded(folder / "all" / "plugged_in-L2" / "seed0")["config"]["strength"] == 0.5
    hashes = [recorded(folder / "all" / name / "seed0")["logits_sha256"] for name in ("plugged_in-L2", "l2")]
    assert hashes[0] == hashes[1]
    assert main(["tune", "demo", "--method", "plugged_in:L2", "--grid", "strength=0.5", *QUICK]) == 0
    assert (folder / "runs" / "tune-demo-plugged_in-L2-seed0").is_dir()
    assert main(["report", "all", "--format", "csv", "--table", "summary"]) == 0
    assert "plugged_in:L2," in capsys.readouterr().out
    (folder / "plugged_in.py").unlink()
    forget_modules()
    plan, _ = read_plan(folder / "all")
    assert plan.methods[0] == "plugged_in:L2", "what a comparison holds is read without the class"
    assert main(["report", "all", "--format", "csv", "--table", "summary"]) == 0
    assert "plugged_in:L2," in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_goes_on_says_so_where_the_file_of_its_method_has_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "demo", "--method", "plugged_in:L2", "--epochs", "1", "--set", "limit=30"]
    assert main([*words, "--set", "num_tasks=1"]) == 0
    file = folder / "plugged_in.py"
    own = recorded(folder / "runs" / "demo-plugged_in-L2-seed0")["own_method"]
    assert own == {
        "training": dict(METHODS["l2"].training),
        "trains": True,
        "source_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    forget_modules()
    file.write_text(file.read_text() + "# changed\n")
    assert "has changed" not in "".join(capsys.readouterr())
    assert main([*words, "--set", "num_tasks=2"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "the file of plugged_in:L2 has changed since this run was begun" in said


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("plugged_in:L3", "there is no class of a method in plugged_in 'L3'; choose one of: AnchoredMethod, L2$"),
        (
            "plugged_absent:L2",
            "method plugged_absent:L2: plugged_absent cannot be imported .*; write mymodule:MyMethod",
        ),
        ("plugged_broken:L2", "plugged_broken cannot be imported: NameError: .*plugged_broken.py line 1"),
        ("plugged_others:Plain", "it is no subclass of hatrack.methods.Method"),
        ("plugged_others:number", "there is no class of a method in plugged_others 'number'; choose one of: Half$"),
        ("plugged_others:Half", "its class does not define .*begin_task.*, description, source"),
        ("./plugged_in:L2", "write plugged_in:L2 from the folder of plugged_in.py"),
        ("lab/plugged_in.py:L2", "write plugged_in:L2 from the folder of plugged_in.py"),
        ("..:L2", "is a path, not the name of a module; write mymodule:MyMethod, where"),
        ("plugged_settings:Nothing", "its settings_type must be a frozen dataclass, not None"),
        ("plugged_settings:Plain", "its settings_type must be a frozen dataclass, not <class 'dict'>"),
        ("plugged_settings:Open", "its setting extra needs a default"),
        ("plugged_settings:Either", "its setting extra is of type float | str, which cannot be read; it may be int"),
        ("plugged_settings:Endless", "the default inf of its setting extra would not be read as it is written"),
        ("plugged_settings:Wild", "its settings cannot be made without arguments: ValueError: two lines"),
        ("plugged_settings:Far", "its training must be settings by name, not 3"),
        (":L2", "the module cannot be imported"),
        ("pmsk", "there is no method 'pmsk', did you mean 'pmask'"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(folder: Path, name: str, fault: str) -> None:
    for ask in (
        lambda: RunRequest("demo", name, out=folder / "run").described().config(name),
        lambda: ComparisonPlan.make("demo", [name], [0]),
        lambda: find_method(name),
    ):
        with pytest.raises(InputError, match=fault) as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert main(["run", "demo", "--method", name, *QUICK]) == 2


def test_records_of_a_class_that_is_absent_are_put_side_by_side() -> None:
    others = [(Path(name), synthetic(name, 0, 2)) for name in ("hat", "sgd")]
    gone = replace(synthetic("sgd", 0, 2), method="plugged_absent:L2")
    require_same_samples([*others, (Path("gone"), gone)])
    other = replace(gone, config={**gone.config, "validation": 0.4})
    with pytest.raises(InputError, match="hat and gone hold runs on different samples"):
        require_same_samples([*others, (Path("gone"), other)])


def test_methods_that_would_share_a_folder_are_not_compared(folder: Path) -> None:
    (folder / "sgd.py").write_text("from plugged_in import L2 as frozen")
    fault = "runs of sgd-frozen and of sgd:frozen would be kept in one folder, sgd-frozen"
    with pytest.raises(InputError, match=fault):
        ComparisonPlan.make("demo", ["sgd-frozen", "sgd:frozen"], [0])
    earlier, later = (ComparisonPlan.make("demo", [name], [0]) for name in ("sgd-frozen", "sgd:frozen"))
    with pytest.raises(InputError, match=fault):
        later.joined(earlier)


@pytest.mark.usefixtures("folder")
def test_settings_of_one_s_own_may_be_negative_and_have_capitals_and_those_of_the_package_still_not() -> None:
    config = EXPERIMENTS["demo"].config("plugged_settings:Good")
    assert config.overridden(config.flat()) == config
    assert config.overridden({"tone": "loud", "extra": "-2.5"}).method == replace(config.method, extra=-2.5)
    with pytest.raises(InputError, match="strength must be a finite number, 0 or more"):
        config.overridden({"strength": -1})
    with pytest.raises(InputError, match="TwiceSettings has some that every run has: lr"):
        EXPERIMENTS["demo"].config("plugged_settings:Twice")


def test_code_of_one_s_own_imports_more_when_it_runs_and_hides_nothing(folder: Path) -> None:
    (folder / "plugged_late.py").write_text("value = 3\n")
    before = [*sys.path]
    find_method("plugged_in:L2")
    assert sys.path == [*before, str(folder)]
    assert importlib.import_module("plugged_late").value == 3
    find_method("plugged_in:L2")
    assert sys.path == [*before, str(folder)]


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_package_are_found_by_both_of_their_names(name: str) -> None:
    kind = METHODS[name]
    assert find_method(name) is find_method(f"{kind.__module__}:{kind.__name__}") is kind
    assert issubclass(kind, Method)
