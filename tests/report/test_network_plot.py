"""Figures of a network at hand say what its tasks use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from hatrack import HATNetwork, InputError, WeightMaskedNetwork

NAMES = tuple(f"t{number}" for number in (3, 1, 2, 9, 8, 7, 6, 5, 4, 0, 10))
"""Eleven tasks: the tenth comes after the second, whatever their names and numbers are as texts."""


def network(kind: Any, tasks: int) -> Any:
    torch.manual_seed(0)
    net = kind(nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU()), torch.zeros(1, 5))
    for name in NAMES[:tasks]:
        net.add_task(name, 2)
        net.anneal(1.0)
        net.consolidate(name)
    net.add_task("now", 2)
    return net


def tables(plot: Any) -> list[list[dict[str, Any]]]:
    """The rows behind each figure."""
    drawn = plot.chart.to_dict()
    return [drawn["datasets"][figure["data"]["name"]] for figure in drawn["hconcat"]]


@pytest.mark.parametrize("kind", [HATNetwork, WeightMaskedNetwork])
def test_figures_say_what_the_network_says(kind: Any) -> None:
    net = network(kind, 3)
    used, full, shared = tables(net.plot())
    of_task = {(row["x"], row["y"]): row["value"] for row in used}
    groups = list(net.capacity().groups)
    for number, name in enumerate(NAMES[:3], 1):
        for group in groups:
            share = 100 * float(net.masks(name)[group].double().mean())
            assert of_task[f"{number} {name}", group] == pytest.approx(share, rel=1e-4)
    last = {row["layer"]: row["value"] for row in full if row["x"] == 3}
    assert last == pytest.approx({name: 100 * share for name, share in net.capacity().groups.items()}, rel=1e-4)
    one = {row["layer"]: row["value"] for row in full if row["x"] == 1}
    assert one == pytest.approx({group: of_task[f"1 {NAMES[0]}", group] for group in groups})
    reuse = net.reuse()
    pairs = {(row["y"], row["x"]): row["value"] for row in shared}
    assert pairs[f"1 {NAMES[0]}", f"3 {NAMES[2]}"] == pytest.approx(100 * float(reuse[0, 2]), rel=1e-4)
    assert pairs[f"3 {NAMES[2]}", f"1 {NAMES[0]}"] == pytest.approx(100 * float(reuse[2, 0]), rel=1e-4)


@pytest.mark.slow
def test_tasks_stand_in_their_order_and_a_notebook_gets_a_picture(tmp_path: Path) -> None:
    net = network(HATNetwork, len(NAMES))
    before = [value.clone() for value in net.state_dict().values()]
    plot = net.plot()
    root = ElementTree.fromstring(plot._repr_svg_())
    said = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    names = [f"{number} {name}" for number, name in enumerate(NAMES, 1)]
    assert [text for text in said if text in names][: len(names)] == names
    assert "now" not in " ".join(filter(None, said))
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    plot.save(tmp_path / "net.svg")
    assert "<svg" in (tmp_path / "net.svg").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"written as \.svg"):
        plot.save(tmp_path / "net.txt")


def test_a_network_without_consolidated_tasks_is_refused() -> None:
    with pytest.raises(InputError, match="consolidate a task first"):
        network(HATNetwork, 0).plot()


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import torch, hatrack; from torch import nn\n"
    program += "net = hatrack.HATNetwork(nn.Sequential(nn.Linear(2, 8), nn.ReLU()), torch.zeros(1, 2))\nnet.plot()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].endswith("pip install 'hatrack[report]'")
