from __future__ import annotations

import copy
import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import hatrack
import hatrack.storage.checkpoint
from hatrack import CheckpointError, GuaranteeError, HATNetwork, InputError
from hatrack.storage.checkpoint import VERSION, Checkpoint, is_damaged, read_checkpoint, write_checkpoint
from support.helpers import NETS, attach, learn, logits, open_task, rounding_announced
from support.marks import slow_but, slow_unless


def tiny() -> HATNetwork:
    torch.manual_seed(0)
    net = HATNetwork(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
    net.add_task("a", 2)
    net.consolidate("a")
    return net


@pytest.mark.parametrize(
    "kind", slow_unless(lambda kind: kind not in ("alexnet", "conv3d", "conv1d", "conv-bn", "residual"), NETS)
)
@pytest.mark.parametrize("hard", [True, False])
def test_a_round_trip_and_on_it_goes(kind: str, hard: bool, tmp_path: Path) -> None:
    net = attach(kind, hard=hard)
    samples = {name: learn(net, name, seed)[0] for seed, name in enumerate(["a", "b.ü"])}
    open_task(net, "unfinished", 2)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(str(tmp_path / "net.hat"), NETS[kind].build())
    assert again.task_names == ("a", "b.ü", "unfinished")
    assert again.task_in_training == "unfinished"
    assert (again.s_max, again.hard, again.compensation) == (net.s_max, net.hard, net.compensation)
    assert again.example_shape == net.example_shape
    assert again.training
    protected = net.protected()
    for name, held in again.protected().items():
        assert torch.equal(held, protected[name])
    for task, x in samples.items():
        assert torch.equal(logits(again, x, task), logits(net, x, task))
        for name, mask in net.masks(task).items():
            assert torch.equal(mask, again.masks(task)[name])
            assert mask.dtype == again.masks(task)[name].dtype
    promised = {task: logits(again, x, task) for task, x in samples.items()}
    again.consolidate("unfinished")
    learn(again, "new", 3)
    if hard:
        assert all(torch.equal(logits(again, x, task), promised[task]) for task, x in samples.items())
    again.save(tmp_path / "net.hat")
    assert hatrack.load(tmp_path / "net.hat", NETS[kind].build()).task_names == (*net.task_names, "new")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", slow_but(["mlp"], ["mlp", "conv-bn"]))
def test_other_types(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    net = attach(kind)
    x, _ = learn(net, "a")
    with rounding_announced(dtype):
        net.to(dtype)
    learn(net, "b", 1)
    net.save(tmp_path / "net.hat")
    again = hatrack.load(tmp_path / "net.hat", NETS[kind].build().to(dtype))
    for task in ("a", "b"):
        assert torch.equal(logits(again, x.to(dtype), task), logits(net, x.to(dtype), task))
    with pytest.raises(CheckpointError, match=rf"has type {dtype} in the file and torch.float32 here"):
        hatrack.load(tmp_path / "net.hat", NETS[kind].build())


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny().save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.hat"
    tiny().save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path, hatrack.models.hat.FORMAT)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        read_checkpoint(path, hatrack.models.hat.FORMAT)


@pytest.mark.slow
def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "net.hat"
    tiny().save(path)
    content = path.read_bytes()
    whole = read_checkpoint(path, hatrack.models.hat.FORMAT)
    harmless = 0
    rng = random.Random(0)
    for position in range(len(content)):
        flips = range(8) if position < 8 else [rng.randrange(8)]
        for bit in flips:
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read = read_checkpoint(path, hatrack.models.hat.FORMAT)
            except CheckpointError:
                continue
            harmless += 1
            assert read.description == whole.description
            assert list(read.tensors) == list(whole.tensors)
            assert all(torch.equal(read.tensors[name], value) for name, value in whole.tensors.items())
    assert harmless < len(content) / 20


def header_of(header: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        text = header if isinstance(header, str) else json.dumps(header)
        path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}, metadata={"hatrack": text}))

    return write


def raw(header: bytes) -> bytes:
    """A safetensors file without tensors."""
    return len(header).to_bytes(8, "little") + header


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "could not be read"),
    "folder": (lambda path: path.mkdir(), "could not be read"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or not a file that hatrack saved"),
    "random": (lambda path: path.write_bytes(random.Random(0).randbytes(500)), "damaged, or not a file"),
    "text": (lambda path: path.write_text("PK" * 300), "damaged, or not a file"),
    "pickle": (lambda path: torch.save({"x": torch.zeros(2)}, path), "damaged, or not a file"),
    "safetensors": (lambda path: safetensors.torch.save_file({"x": torch.zeros(2)}, path), "hatrack did not save it"),
    "no json": (header_of("nonsense"), "its description cannot be read"),
    "half a character": (
        header_of({"version": VERSION, "sha256": "", "description": "\ud800"}),
        "checksum does not match",
    ),
    "deep": (header_of("[" * 100_000), "its description cannot be read"),
    "no metadata": (lambda path: path.write_bytes(raw(b'{"__metadata__":null}')), "hatrack did not save it"),
    "a list": (header_of([1, 2]), "its description cannot be read"),
    "nothing": (header_of({}), "its description cannot be read"),
    "no text": (header_of({"version": VERSION, "sha256": "", "description": {}}), "its description cannot be read"),
    "newer": (
        header_of({"version": VERSION + 1, "sha256": "", "description": "{}"}),
        r"version \d+ of .* upgrade it",
    ),
    "no version": (header_of({"version": "x", "sha256": "", "description": "{}"}), "version x"),
    "no checksum": (header_of({"version": VERSION, "sha256": "", "description": "{}"}), "checksum does not match"),
    "other format": (
        lambda path: write_checkpoint(path, Checkpoint({}, {"format": "hatrack.Something"})),
        r"holds a hatrack\.Something, not a hatrack\.HATNetwork",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files(case: str, tmp_path: Path) -> None:
    make, message = FOREIGN[case]
    path = tmp_path / "net.hat"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        hatrack.load(path, nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "backbone",
    [
        nn.Sequential(nn.Linear(2, 4), nn.ReLU()),
        nn.Sequential(nn.Linear(5, 3), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 3), nn.Tanh()),
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(2, 3)),
        nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 3).double(), nn.ReLU()),
        nn.Linear(2, 3),
    ],
)
def test_another_backbone_is_refused_and_left_alone(backbone: nn.Module, tmp_path: Path) -> None:
    tiny().save(tmp_path / "net.hat")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match="was saved with another backbone"):
        hatrack.load(tmp_path / "net.hat", backbone)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(module._forward_pre_hooks for module in backbone.modules())
    HATNetwork(backbone, torch.zeros(1, before[next(iter(before))].shape[1], dtype=before[next(iter(before))].dtype))


def test_a_backbone_in_use_is_refused(tmp_path: Path) -> None:
    net = tiny()
    net.save(tmp_path / "net.hat")
    with pytest.raises(InputError, match="already inside"):
        hatrack.load(tmp_path / "net.hat", net.backbone)
    hatrack.load(tmp_path / "net.hat", net.detach())


def test_entries_that_are_not_those_consolidated_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.hat"
    tiny().save(path)
    whole = read_checkpoint(path, hatrack.models.hat.FORMAT)
    tensors = {name: value + 1 if name == "backbone.0.weight" else value for name, value in whole.tensors.items()}
    write_checkpoint(path, Checkpoint(tensors, whole.description))
    with pytest.raises(GuaranteeError, match="not those that its tasks were consolidated with"):
        hatrack.load(path, nn.Sequential(nn.Linear(2, 3), nn.ReLU()))


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/null, which is no folder")
def test_a_path_that_cannot_be_written() -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        tiny().save("/dev/null/net.hat")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.hat"
    net = tiny()
    net.save(path)
    content = path.read_bytes()
    learn_more = copy_of(net)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        learn_more.save(path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("net.hat", content)]


def copy_of(net: HATNetwork) -> HATNetwork:
    net.add_task("b", 2)
    net.consolidate("b")
    return net


def test_a_moved_entry_is_not_saved(tmp_path: Path) -> None:
    net = tiny()
    with torch.no_grad():
        net.backbone[0].weight.add_(1)
    with pytest.raises(GuaranteeError, match=r"backbone\.0\.weight"):
        net.save(tmp_path / "net.hat")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_file_of_an_older_version_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatrack.storage.checkpoint, "VERSION", 1)
    tiny().save(tmp_path / "net.hat")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has version 1 of the format, this hatrack reads version 2"):
        hatrack.load(tmp_path / "net.hat", nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert not is_damaged(tmp_path / "net.hat"), "what is damaged is mended, or made again"


@pytest.mark.parametrize("units", [1, 8, 9])
def test_a_consolidated_task_takes_a_bit_per_unit_a_head_and_norms(units: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Linear(3, units), nn.BatchNorm1d(units), nn.ReLU())  # noqa: E731
    net, sizes = HATNetwork(build(), torch.zeros(2, 3)), []
    for number in range(5):
        net.add_task(f"task {number}", 2)
        net.consolidate(f"task {number}")
        held = sum(v.numel() * v.element_size() for k, v in net.state_dict().items() if k != "_extra_state")
        sizes.append(held)
    head, norm = 4 * (2 * units + 2), 4 * 4 * units + 8
    assert {b - a for a, b in itertools.pairwise(sizes)} == {-(-units // 8) + head + norm + 1}  # and a flag
    net.save(tmp_path / "net.hat")
    tensors = read_checkpoint(tmp_path / "net.hat", "hatrack.HATNetwork").tensors
    of_last = {name: value for name, value in tensors.items() if name.startswith("tasks.4.")}
    assert sum(v.numel() * v.element_size() for v in of_last.values()) == -(-units // 8) + head + norm
    again = hatrack.load(tmp_path / "net.hat", build())
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(net.tasks, again.tasks, strict=True))


def test_a_state_leads_behind_consolidation() -> None:
    net = tiny()
    net.add_task("b", 2)
    other, x = copy.deepcopy(net), torch.randn(4, 2)
    before = logits(net, x, "b")
    other.consolidate("b")
    net.load_state_dict(other.state_dict())
    assert net.task_in_training is None
    assert torch.equal(logits(net, x, "b"), before)
    assert not hasattr(net.tasks[1], "embedding")
