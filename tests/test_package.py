"""Metadata for a package index, and whom to cite; .ci/package builds the package and runs it."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

import hatrack
from hatrack.support.toml import tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module that fills in the metadata; what it inherits from is there while a package is built."""
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin", "hatchling.metadata.plugin.interface"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["hatchling.metadata.plugin.interface"], "MetadataHookInterface", object, raising=False
    )
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_no_link_of_the_readme_is_relative_on_an_index(hook: types.ModuleType) -> None:
    relative = [target for target in targets(README) if not re.match(r"[a-z]+:|#", target)]
    assert len(relative) > 10
    for target in relative:
        assert (ROOT / target.partition("#")[0]).exists(), f"the README links to {target}"
    plain = hook.description(README, "")
    assert targets(plain) == [target for target in targets(README) if target not in relative]
    assert "*What hatrack demo shows" in plain
    with_address = hook.description(README, "https://example.org/hatrack")
    assert len(targets(with_address)) == len(targets(README))
    assert all(re.match(r"https?:", target) for target in targets(with_address))
    assert "hard attention none](https://example.org/hatrack/raw/main/docs/demo.svg)" in with_address


def test_what_is_no_link_stays_as_it_is(hook: types.ModuleType) -> None:
    code = ("`net.masks[0](x)`", "```python\nnet.masks[0](x)\nnet[1](y)\n```", "`[[task]]`")
    for text in ("a [b] (c)", "[x](https://a.b/c)", "[x](#below)", *code):
        for address in ("", "https://example.org"):
            assert hook.description(f"before {text} after", address) == f"before {text} after"
    assert hook.description("`a` [`b`](c.md) `d`", "") == "`a` `b` `d`"
    assert hook.description("[a](b.md) [c](d.md#e)", "") == "a c"


def test_the_address_is_said_once(hook: types.ModuleType) -> None:
    found = hook.addresses("https://example.org/hatrack")
    assert found["Changelog"] == "https://example.org/hatrack/blob/main/CHANGELOG.md"
    assert {"Source", "Documentation", "Issues"} < set(found)
    assert "urls" in PROJECT["dynamic"]


def test_whom_to_cite_agrees_with_the_package() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    said = dict(re.findall(r"^([a-z-]+): (.+)$", text, flags=re.MULTILINE))
    assert said["version"] == PROJECT["version"] == hatrack.__version__
    assert said["license"] == PROJECT["license"]
    own = text.partition("references:")[0]
    assert re.findall(r"^  - name: (.+)$", own, flags=re.MULTILINE) == [author["name"] for author in PROJECT["authors"]]
    keywords = own.partition("keywords:\n")[2]
    assert re.findall(r"^  - (.+)$", keywords, flags=re.MULTILINE) == PROJECT["keywords"]
    assert "doi" not in own, "there is none"


def test_the_readme_installs_what_its_commands_need() -> None:
    consoles = "\n".join(re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL))
    installed = {extra for extras in re.findall(r"-e '\.\[([\w,]+)\]'", consoles) for extra in extras.split(",")}
    assert installed <= set(PROJECT["optional-dependencies"])
    needs = {"onnx": r"hatrack export .*\.onnx", "report": r"hatrack (report|figure|analyse)\b"}
    for extra, command in needs.items():
        first, line = re.search(command, consoles), re.search(rf"-e '\.\[[\w,]*\b{extra}\b", consoles)
        assert first is not None
        assert line is not None, f"the README says nowhere how to install {extra}"
        assert line.start() < first.start(), f"{extra} is installed after it is needed"
    assert not re.search(r"pip install ['\"]?hatrack", README), "there is no such package on an index yet"
