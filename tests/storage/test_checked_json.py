"""Damage: whatever happens to a file, it reads as what was written, or as an error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from hatrack import CheckpointError, HATNetwork
from hatrack.errors import NewerFileError
from hatrack.experiments import read_result
from hatrack.experiments.folder import LOGITS_FORMAT
from hatrack.experiments.plan import ComparisonPlan, read_plan, write_plan
from hatrack.experiments.results import write_result
from hatrack.models.hat import FORMAT
from hatrack.storage.checked_json import read_checked_json, with_checksum, write_checked_json
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from support.marks import DEEP, examples
from support.records import of_a_run

Reader = Callable[[Path], Any]


def net_hat(path: Path) -> Reader:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(1, 2), nn.ReLU()), torch.zeros(1, 1))
    net.add_task("ö", 1)
    net.consolidate("ö")
    net.save(path)
    return lambda file: plain(read_checkpoint(file, FORMAT))


def logits(path: Path) -> Reader:
    write_checkpoint(path, Checkpoint({"a": torch.tensor([[0.5, -1.0], [2.0, 0.0]])}, {"format": LOGITS_FORMAT}))
    return lambda file: plain(read_checkpoint(file, LOGITS_FORMAT))


def plain(checkpoint: Checkpoint) -> Any:
    return {name: value.tolist() for name, value in checkpoint.tensors.items()}, checkpoint.description


def run_json(path: Path) -> Reader:
    write_result(path, of_a_run())
    return read_result


def comparison_json(path: Path) -> Reader:
    write_plan(path.parent, ComparisonPlan.make("demo", ["hat"], [0, 1], {"hat.c": "0.5"}), {"threads": 1})
    return lambda file: read_plan(file.parent)


FILES: dict[str, Callable[[Path], Reader]] = {
    "net.hat": net_hat,
    "logits.safetensors": logits,
    "run.json": run_json,
    "comparison.json": comparison_json,
}


@contextmanager
def holding(content: bytes) -> Iterator[None]:
    """Every file has this content: tens of thousands of writes would take a disk minutes."""
    with mock.patch.object(Path, "read_bytes", return_value=content):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_every_flipped_bit_is_noticed_or_changes_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    read = FILES[kind](path)
    content, whole = path.read_bytes(), read(path)
    harmless = tried = 0
    for damaged in flipped(content):
        tried += 1
        with holding(damaged):
            try:
                assert read(path) == whole
            except CheckpointError as error:
                require_named(error, path)
            else:
                harmless += 1
    assert harmless < tried / 80, "padding, an exponent's E, an escape's hexadecimal digit: not much"


def flipped(content: bytes) -> Iterator[bytes]:
    """One bit of every byte, in turn; in a deep run every bit."""
    for position in range(len(content)):
        for bit in range(8) if examples(DEEP) >= DEEP else (position % 8,):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            yield bytes(damaged)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_every_truncation_is_noticed_or_loses_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    read = FILES[kind](path)
    content, whole = path.read_bytes(), read(path)
    for length in range(len(content)):
        with holding(content[:length]):
            if kind.endswith(".json") and length == len(content) - 1:  # the line's end alone
                assert read(path) == whole
                continue
            with pytest.raises(CheckpointError) as caught:
                read(path)
            require_named(caught.value, path)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("foreign", FILES)
def test_foreign_files_are_noticed(kind: str, foreign: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path, other = tmp_path / kind, tmp_path / "other" / foreign
    read = FILES[kind](path)
    FILES[foreign](other)
    with holding(b"\x00" * 100 if kind == foreign else other.read_bytes()), pytest.raises(CheckpointError) as caught:
        read(path)
    require_named(caught.value, path)


@pytest.mark.parametrize("text", ["", "[]", "1", "null", "nonsense", "[" * 100_000, '{"a": NaN}', '{"a": 1e999}', "\0"])
def test_what_is_no_such_json_is_noticed(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged, or not a file of hatrack") as caught:
        read_checked_json(tmp_path / "file")
    require_named(caught.value, tmp_path / "file")


def require_named(error: CheckpointError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


def test_a_changed_digit_is_not_believed(tmp_path: Path) -> None:
    write_result(tmp_path / "run.json", of_a_run())
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace("0.8", "0.9"))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged: its checksum does not match"):
        read_result(tmp_path / "run.json")


def test_a_file_that_was_formatted_anew_is_whole(tmp_path: Path) -> None:
    write_result(tmp_path / "run.json", of_a_run())
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content, sort_keys=True))
    assert read_result(tmp_path / "run.json") == of_a_run()


def test_a_damaged_name_of_the_checksum_does_not_pass_for_none(tmp_path: Path) -> None:
    write_result(tmp_path / "run.json", of_a_run())
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"sha256"', '"sha257"').replace("0.8", "0.9"))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged: its checksum does not match"):
        read_result(tmp_path / "run.json")


def test_a_newer_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    content = of_a_run().to_json()
    write_checked_json(tmp_path / "run.json", {**content, "schema": 3, "of what no version knew": 1})
    with pytest.raises(NewerFileError, match=r"run\.json has schema 3, this hatrack reads up to 2; upgrade it"):
        read_result(tmp_path / "run.json")
    (tmp_path / "run.json").write_text(json.dumps({**with_checksum(content), "schema": 3}))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_result(tmp_path / "run.json")


def test_whatever_json_can_say_is_read_back(tmp_path: Path) -> None:
    content = {"a": [1, -0.0, 1e-300, True, None, 'ü\n"\\'], "b": {"3": [1, 2]}, "c": 2**70, "name": "caf\udce9"}
    write_checked_json(tmp_path / "file", content)
    read = read_checked_json(tmp_path / "file")
    assert read == content
    (tmp_path / "file").read_bytes().decode()  # UTF-8, although a file's name need not be
    assert with_checksum(read) == with_checksum(content)


def test_a_row_of_a_matrix_is_a_line(tmp_path: Path) -> None:
    write_checked_json(
        tmp_path / "file", {"a": [[1, None], [2.5, 3]], "b": {}, "c": {"d": "e"}, "f": [], "g": [{"h": 1}]}
    )
    lines = (tmp_path / "file").read_text().splitlines()
    assert lines[:-2] == [
        *("{", '  "a": [', "    [1, null],", "    [2.5, 3]", "  ],", '  "b": {},', '  "c": {', '    "d": "e"', "  },"),
        *('  "f": [],', '  "g": [', "    {", '      "h": 1', "    }", "  ],"),
    ]
    assert json.loads("".join(lines))["a"] == [[1, None], [2.5, 3]]


def test_a_number_that_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checked_json(tmp_path / "file", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
