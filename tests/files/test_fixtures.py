"""The oldest files that are read, and those written before the last change of the architecture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import hatrack
from hatrack import GuaranteeError, HATNetwork
from hatrack.cli import main
from hatrack.errors import NewerFileError
from hatrack.experiments import read_result, verify
from hatrack.experiments.folder import previous
from hatrack.storage.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hatrack.units import heads_always_on
from support.marks import slow_unless
from support.old_networks import NETWORKS, OF_LATER_COMMITS, SAID, here, learn, logits

FIXTURES = Path(__file__).parents[1] / "fixtures"
TASKS = ("first", "second.ü")


@pytest.fixture(params=["65a3182", "c5e342c"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Files of one commit."""
    return FIXTURES / str(request.param)


BEFORE_HEADS = FIXTURES / "6d62dcc"
"""Files of the last commit that read heads of nn.MultiheadAttention as always on."""

OLD_NETWORKS = NETWORKS | OF_LATER_COMMITS

FILES = [
    *((FIXTURES / commit, name) for commit in ("65a3182", "c5e342c") for name in NETWORKS),
    (BEFORE_HEADS, "hat-attention"),
]


def of_file(each: Path | str) -> str:
    return each.name if isinstance(each, Path) else each


EVERY_FILE = pytest.mark.parametrize(("folder", "name"), FILES, ids=of_file)


def require_same(folder: Path, name: str, said: dict[str, Tensor]) -> None:
    """Check logits against the recorded ones: to the bit where these were computed, elsewhere to 1e-5."""
    recorded = safetensors.torch.load_file(folder / SAID)
    with safetensors.safe_open(folder / SAID, "pt") as file:
        there = json.loads(file.metadata()["environment"])
    close = 0.0 if there == here() else 1e-5
    for task, now in said.items():
        torch.testing.assert_close(now, recorded[f"{name} {task}"], rtol=close, atol=close)


@pytest.mark.parametrize(
    ("folder", "name"),
    slow_unless(lambda folder, name: folder.name != "65a3182" and name in ("hat-mlp", "packnet", "pmask"), FILES),
    ids=of_file,
)
def test_a_network_says_what_it_said_and_learns_another_task(folder: Path, name: str, tmp_path: Path) -> None:
    network, path = OLD_NETWORKS[name], tmp_path / "net.hat"
    x = safetensors.torch.load_file(folder / SAID)[name]
    net = hatrack.load(folder / f"{name}.hat", network.build())
    assert (type(net), net.task_names, net.task_in_training) == (network.kind, (*TASKS, "open"), "open")
    kept = read_checkpoint(folder / f"{name}.hat").tensors
    assert {key for key in net.state_dict() if not key.endswith("_extra_state")} == kept.keys()
    said = {task: logits(net, task, x) for task in TASKS}
    require_same(folder, name, said)
    assert all(state.calibration is not None for state in net.tasks if state.consolidated)
    net.save(path)
    for again in (net, hatrack.load(path, network.build())):
        for seed, task in enumerate(("open", "another"), 5):
            learn(again, task, *network.samples(seed))
        again.check()
        if not isinstance(again, HATNetwork) or again.hard:  # outputs under soft masks drift
            assert all(torch.equal(logits(again, task, x), before) for task, before in said.items())


@EVERY_FILE
@pytest.mark.parametrize("tensor", ["packed", "head.weight", "calibration"])
def test_a_change_to_a_consolidated_task_is_noticed(folder: Path, name: str, tensor: str, tmp_path: Path) -> None:
    old = read_checkpoint(folder / f"{name}.hat")
    tensors = {key: value.clone() for key, value in old.tensors.items()}
    changed = next(value for key, value in tensors.items() if key.startswith(f"tasks.0.{tensor}")).view(-1)
    changed[0] = changed[0] ^ 1 if changed.dtype == torch.uint8 else changed[0] + 1
    write_checkpoint(tmp_path / "net.hat", Checkpoint(tensors, old.description))
    with pytest.raises(GuaranteeError, match="not those that its tasks were consolidated with"):
        hatrack.load(tmp_path / "net.hat", OLD_NETWORKS[name].build())


def test_heads_that_were_always_on_stay_so_and_a_new_network_has_units_for_them(tmp_path: Path) -> None:
    network, path = OLD_NETWORKS["hat-attention"], tmp_path / "net.hat"
    old = hatrack.load(BEFORE_HEADS / "hat-attention.hat", network.build())
    assert isinstance(old, HATNetwork)
    assert [group.name for group in old.units.groups] == [
        "lift+layer.self_attn+layer.linear2",
        "layer.linear1",
        "single",
    ]
    old.save(path)
    assert read_checkpoint(path).description["rules_version"] == 1
    new = HATNetwork(network.build(), torch.zeros(2, *network.shape))
    sizes = {group.name: group.size for group in new.units.groups}
    assert sizes["layer.self_attn.heads"] == 2
    assert sizes["single.scores"] == sizes["single.values"] == 8
    assert new.to_checkpoint().description["rules_version"] == 2
    given = HATNetwork(network.build(), torch.zeros(2, *network.shape), rules={nn.MultiheadAttention: heads_always_on})
    assert [*given.units.groups] == [*old.units.groups]
    assert given.to_checkpoint().description["rules_version"] == 1


def test_units_that_a_later_version_found_are_not_guessed(tmp_path: Path) -> None:
    old = read_checkpoint(BEFORE_HEADS / "hat-attention.hat")
    write_checkpoint(tmp_path / "net.hat", Checkpoint(old.tensors, {**old.description, "rules_version": 3}))
    with pytest.raises(NewerFileError, match="found by a newer hatrack than this one; upgrade it"):
        hatrack.load(tmp_path / "net.hat", OLD_NETWORKS["hat-attention"].build())


def test_a_run_is_verified_shown_and_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verification = verify(folder / "run")
    assert verification.holds
    assert set(verification.differences) <= {*verification.result.environment}, "the data are the same"
    assert [len(task.used) for task in verification.result.history] == [1, 1]
    assert main(["report", str(folder / "run"), "--format", "csv"]) == 0
    assert "hat" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    whole, copy = read_result(folder / "run" / "run.json"), tmp_path / "run"
    shutil.copytree(folder / "run", copy)
    for name in ("run.json", "net.hat"):  # as after the first task
        previous(copy / name).replace(copy / name)
    (copy / "logits.safetensors").unlink()
    settings = [f"--set={key}" for key in ("hidden=8", "num_tasks=2", "limit=40", "epochs=1")]
    assert main(["run", "demo", "--method", "hat", *settings, "--threads", "1", "--out", str(copy), "--quiet"]) == 0
    again = read_result(copy / "run.json")
    assert (again.status, again.config, len(again.history)) == (whole.status, whole.config, 2)
    if {key: whole.environment[key] for key in here()} == here():
        assert again.matrix("logits_sha256") == whole.matrix("logits_sha256")
