"""Networks by name, and from a function of the user's own."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hatrack.cli import main
from hatrack.cli.app import app
from hatrack.cli.options import NetworkName
from hatrack.errors import InputError
from hatrack.experiments.backbones import NETWORKS, build_backbone, narrow_builder
from hatrack.experiments.settings import InitialWeights, NetworkSettings, Norm
from hatrack.storage.checked_json import read_checked_json, write_checked_json

OWN = """
from torch import nn

def build(shape):
    assert shape == (1, 28, 28)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU())

def number(shape):
    return 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_own_networks.py").write_text(OWN)
    (tmp_path / "my_broken_networks.py").write_text("def build(shape:\n")
    monkeypatch.chdir(tmp_path)
    return


@pytest.mark.slow
def test_he_differs_from_xavier_in_the_convolutions() -> None:
    def weights(initialization: InitialWeights) -> dict[str, torch.Tensor]:
        settings = NetworkSettings("alexnet", initialization=initialization)
        return dict(build_backbone(settings, (3, 20, 20), 0).state_dict())

    he, again, xavier = (weights(kind) for kind in (InitialWeights.HE, InitialWeights.HE, InitialWeights.XAVIER))
    assert all(torch.equal(he[name], again[name]) for name in he)
    ratio = he["conv3.weight"].std() / xavier["conv3.weight"].std()
    assert float(ratio) == pytest.approx(((128 + 256) / 128) ** 0.5, rel=0.02)  # fan-in + fan-out over fan-in
    assert he["dense5.weight"].abs().max() <= (6 / 4096) ** 0.5


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_maps_images_to_features(name: str) -> None:
    network = build_backbone(NetworkSettings(network=name, hidden=(20,)), (3, 32, 32), 0).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).dim() == 2


def test_names_on_the_command_line_are_those_there_are() -> None:
    assert typing.get_args(NetworkName) == tuple(NETWORKS)
    assert "resnet18" in app.generate_completion(shell="bash")


@pytest.mark.parametrize(("name", "layer", "units"), [("alexnet", "conv3.weight", 64), ("resnet18", "conv.weight", 16)])
def test_a_network_with_a_fourth_of_its_units(name: str, layer: str, units: int) -> None:
    settings = NetworkSettings(network=name, width=0.25)
    assert build_backbone(settings, (3, 32, 32), 0).get_parameter(layer).shape[0] == units
    narrow = narrow_builder(settings, (3, 32, 32))
    assert narrow is not None
    assert narrow(0.5, 0).get_parameter(layer).shape[0] == units // 2


@pytest.mark.slow
def test_norms_can_be_left_out() -> None:
    with_norms = build_backbone(NetworkSettings(network="resnet18"), (3, 32, 32), 0)
    without = build_backbone(NetworkSettings(network="resnet18", norm=Norm.NONE), (3, 32, 32), 0)
    assert any(isinstance(module, nn.BatchNorm2d) for module in with_norms.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in without.modules())


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_pictures_may_lie_pixel_by_pixel(name: str) -> None:
    settings, x = NetworkSettings(network=name, width=0.1, channels_last=True), torch.rand(2, 3, 32, 32)
    network = build_backbone(settings, (3, 32, 32), 0).eval()
    plain = build_backbone(NetworkSettings(network=name, width=0.1), (3, 32, 32), 0).eval()
    layouts = {
        module(torch.rand(2, module.in_channels, 8, 8)).is_contiguous(memory_format=torch.channels_last)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    }
    assert layouts == {True}
    with torch.no_grad():
        assert torch.allclose(network(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("method", ["hat", "wsn", "pathnet"])
def test_a_run_whose_pictures_lie_so_goes_on_and_is_verified(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "demo", "--method", method, "--network", "alexnet", "--epochs", "1", "--quiet", "--limit", "50"]
    words += ["--set", "num_tasks=2", "--set", "width=0.05", "--set", "channels_last=true"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "verified" in capsys.readouterr().out


def test_a_function_of_ones_own_is_run_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "demo", "--method", "hat", "--network", "my_own_networks:build", "--epochs", "1", "--quiet"]
    words += ["--set", "num_tasks=2", "--set", "limit=50", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert main(words) == 0
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "verified" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["sgd", "independent", "random"])
def test_a_run_does_not_go_on_with_a_function_that_computes_something_else(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", "demo", "--method", method, "--network", "my_own_networks:build", "--epochs", "1", "--quiet"]
    words += ["--set", "limit=50", "--out", str(tmp_path / "run")]
    assert main([*words, "--set", "num_tasks=2"]) == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as changed:
        changed.setattr(nn.ReLU, "forward", lambda self, x: x.sin())
        code = main([*words, "--set", "num_tasks=3"])
    if method == "random":  # which has no network
        assert code == 0
        return
    assert code == 2
    assert "otherwise than" in (said := capsys.readouterr().err)
    assert "its code has changed since" in said
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert main([*words, "--set", "num_tasks=3"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_own_networks:biuld", "did you mean 'build'"),
        ("my_own_networks:number", "must return a torch.nn.Module, not a int"),
        ("my_own_network:build", "cannot be imported"),
        ("my_broken_networks:build", "cannot be imported"),
        ("resnet", "did you mean 'resnet18'"),
        (":build", "cannot be imported"),
        ("my_own_networks:", "there is no function"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(NetworkSettings(network=name), (1, 28, 28), 0)


@pytest.mark.parametrize("name", [name for name, spec in NETWORKS.items() if not spec.takes_any])
def test_networks_for_pictures_say_that_they_are(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is for pictures, .* here is 4; take .* \(`network=mlp`\)$"):
        build_backbone(NetworkSettings(network=name), (4,), 0)
    assert build_backbone(NetworkSettings(hidden=(3,)), (4,), 0) is not None


@pytest.mark.parametrize(
    ("since", "settings", "said", "is_said"),
    [
        ("channels_last", ["hidden=600"], "dropout was drawn in another way", True),
        ("channels_last", ["hidden=20"], "dropout was drawn in another way", False),
        ("lr_decay", ["hidden=20", "optimizer=adam"], "steps of Adam were rounded in another way", True),
        ("lr_decay", ["hidden=20"], "steps of Adam were rounded in another way", False),
        ("lr_decay", ["network=alexnet", "width=0.1"], "gates of large inputs were multiplied in another way", True),
        ("lr_decay", ["hidden=20"], "gates of large inputs were multiplied in another way", False),
        ("learned_at", ["hidden=20"], "validation and training under final masks were rounded in another way", True),
        ("learned_at", ["hidden=20", "hard=false"], "training under final masks were rounded in another way", False),
    ],
)
def test_a_run_of_before_something_was_computed_otherwise_says_so(
    since: str, settings: list[str], said: str, is_said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "demo", "--method", "hat", "--epochs", "1", "--threads", "1", "--limit", "50"]
    words += ["--out", str(tmp_path / "run"), *(word for setting in settings for word in ("--set", setting))]
    assert main([*words, "--set", "num_tasks=1"]) == 0
    record = tmp_path / "run" / "run.json"
    content = read_checked_json(record)
    del content["config"][since]  # as earlier versions wrote it
    write_checked_json(record, content)
    capsys.readouterr()
    assert main([*words, "--set", "num_tasks=2"]) == 0
    assert (said in " ".join("".join(capsys.readouterr()).split())) is is_said
