"""Exported tasks of networks with several inputs: names of inputs, all tasks in one file, and what is no tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hatrack import HATNetwork, InputError, UnsupportedError
from hatrack.compact.export import Labels, export_all_tasks, export_task
from hatrack.compact.onnx_names import rename_doors, unused
from hatrack.support.inputs import constants_in, tensors_in

LABELS = Labels(("a", "b", "c"))


class Table(nn.Module):
    """A network of a table: numbers, and a column of categories whose name is that of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.categories, self.out = nn.Linear(3, 8), nn.Embedding(5, 8), nn.Linear(16, 8)

    def forward(self, relu: Tensor, cat: Tensor, *, double: bool = False, none: Tensor | None = None) -> Tensor:
        h = torch.cat([torch.relu(self.numbers(relu)), self.categories(cat)], 1)
        return torch.relu(self.out(h * 2 if double else h))


class Odd(nn.Module):
    """A network whose inputs have the names that a file gives to what is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 8), nn.Linear(3, 8)

    def forward(self, logits: Tensor, task: Tensor) -> Tensor:
        return torch.relu(self.one(logits) + self.other(task))


class Nested(nn.Module):
    """A network of several inputs by position, some of them in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 8), nn.Linear(3, 8)

    def forward(self, x: Tensor, more: tuple[Tensor, float]) -> Tensor:
        return torch.relu(self.one(x) + self.other(more[0]) * more[1])


def table(samples: int) -> Any:
    return {"relu": torch.randn(samples, 3), "cat": torch.randint(5, (samples,)), "double": True, "none": None}


def odd(samples: int) -> Any:
    return {"logits": torch.randn(samples, 3), "task": torch.randn(samples, 3)}


def nested(samples: int) -> Any:
    return torch.randn(samples, 3), (torch.randn(samples, 3), 0.5)


NETWORKS: dict[str, tuple[Any, Any, tuple[str, ...], str, str, dict[str, Any]]] = {
    "table": (Table, table, ("relu", "cat"), "task", "logits", {"double": True, "none": None}),
    "odd": (Odd, odd, ("logits", "task"), "task_", "logits_", {}),
    "nested": (Nested, nested, ("x0", "x1"), "task", "logits", {"1.1": 0.5}),
}


def network(name: str, tasks: int = 2) -> HATNetwork:
    torch.manual_seed(0)
    build, batch, *_ = NETWORKS[name]
    net = HATNetwork(build(), batch(2))
    for number in range(tasks):
        net.add_task(f"task {number}", 2 + number)
        net.consolidate(f"task {number}")
    return net.eval()


def feed_of(x: Any) -> list[Any]:
    return [tensor.numpy() for tensor in tensors_in(x)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_have_their_names_whatever_operations_are_called(name: str, tmp_path: Path) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    _, batch, names, _, output, constants = NETWORKS[name]
    net, x = network(name), batch(5)
    exported = export_task(net, "task 1", tmp_path / "one.onnx", batch(6), LABELS)
    session = runtime.InferenceSession(exported.path)
    assert tuple(each.name for each in session.get_inputs()) == names
    assert [each.name for each in session.get_outputs()] == [output]
    found = torch.from_numpy(session.run([output], dict(zip(names, feed_of(x), strict=True)))[0])
    assert torch.allclose(found, net(x, "task 1"), rtol=1e-4, atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said.get("constants", "{}")) == constants


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_all_tasks_of_several_inputs_go_into_one_file(name: str, tmp_path: Path) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    _, batch, names, number, output, constants = NETWORKS[name]
    net, x = network(name), batch(5)
    samples = {task: batch(4) for task in net.task_names}
    exported = export_all_tasks(net, tmp_path / "all.onnx", samples, dict.fromkeys(samples, LABELS))
    session = runtime.InferenceSession(exported.path)
    assert tuple(each.name for each in session.get_inputs()) == (*names, number)
    task_of = torch.tensor([0, 1, 1, 0, 1])
    feed = {**dict(zip(names, feed_of(x), strict=True)), number: task_of.numpy()}
    found = torch.from_numpy(session.run([output], feed)[0])
    expected = net(x, [net.task_names[index] for index in task_of])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map.get("constants", "{}")) == constants


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_of_torch_is_called_as_the_network_is(name: str, tmp_path: Path) -> None:
    _, batch, *_, constants = NETWORKS[name]
    net, x = network(name, 1), batch(5)
    export_task(net, "task 0", tmp_path / "one.pt2", batch(6), LABELS)
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "one.pt2", extra_files=extra).module()
    assert torch.allclose(program(x), net(x, "task 0"), rtol=1e-4, atol=1e-5)
    assert json.loads(json.loads(extra["metadata.json"]).get("constants", "{}")) == constants
    if name == "table":
        with pytest.raises((AssertionError, RuntimeError)):
            program({**x, "double": False})


def test_samples_of_tasks_have_the_same_inputs(tmp_path: Path) -> None:
    net = network("table")
    one, labels = table(4), dict.fromkeys(net.task_names, LABELS)
    for other in ({**table(4), "double": False}, {key: value for key, value in table(4).items() if key != "none"}):
        with pytest.raises(InputError, match="have other inputs, or other values that are no tensors"):
            export_all_tasks(net, tmp_path / "all.onnx", {"task 0": one, "task 1": other}, labels)
    with pytest.raises(InputError, match="two at least, not 1"):
        export_all_tasks(net, tmp_path / "all.onnx", {"task 0": one, "task 1": table(1)}, labels)


def test_places_of_what_is_no_tensor() -> None:
    x, tensor = torch.zeros(1), torch.ones(1)
    assert constants_in(x) == {}
    assert constants_in((x, True, [tensor, {"a": None, "b": [x, "c"]}])) == {"1": True, "2.1.a": None, "2.1.b.1": "c"}


class Recurrent(nn.Module):
    """A recurrent layer somewhere inside, whose weights are masked for a whole batch."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.inside = nn.ModuleDict({"reads": kind(8, 8, batch_first=True)})
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.out(self.inside["reads"](self.enter(x))[0][:, -1]))


class Windows(nn.Module):
    """Windows of a sequence are folded into the axis of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.window, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.window(torch.relu(self.enter(x)).flatten(0, 1)))
        return torch.relu(self.out(h.unflatten(0, (len(x), -1)).mean(1)))


MIXING: dict[str, tuple[Any, str]] = {
    "gru": (lambda: Recurrent(nn.GRU), r"'inside\.reads' \(GRU\)"),
    "lstm": (lambda: Recurrent(nn.LSTM), r"'inside\.reads' \(LSTM\)"),
    "windows": (Windows, r"'window' \(Linear\)"),
}


@pytest.mark.parametrize("kind", MIXING)
def test_the_layer_that_does_not_keep_samples_apart_is_named(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, said = MIXING[kind]
    net = HATNetwork(build(), torch.zeros(2, 6, 4))
    net.add_task("a", 2)
    net.consolidate("a")
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules()]
    with pytest.raises(UnsupportedError, match=rf"not keep samples apart: {said} .*; export its tasks one by one"):
        export_all_tasks(net, tmp_path / "all.onnx", {"a": torch.randn(4, 6, 4)}, {"a": LABELS})
    assert not list(tmp_path.iterdir())
    assert hooks == [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules()]


# ---------------------------------------------------------------------------------------------------------------- names

INSIDE = ("a", "b", "cond", "cat", "relu", "relu_", "then", "w", "logits")


def graph_of() -> Any:
    """Make a graph of two inputs, with constants, a condition, and values whose names a user may have chosen."""
    onnx: Any = pytest.importorskip("onnx")
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    real, weight = onnx.TensorProto.FLOAT, onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [2.0, 3.0])
    branch = lambda name, operation: onnx.helper.make_graph(  # noqa: E731
        [node(operation, ["cat", "relu"], [name])], "inside", [], [info(name, real, ["n", 2])]
    )
    return onnx.helper.make_graph(
        [
            node("Mul", ["a", "w"], ["cat"]),
            node("Relu", ["b"], ["relu"]),
            node("ReduceSum", ["a"], ["relu_"], keepdims=0),
            node("Greater", ["relu_", "zero"], ["cond"]),
            node("If", ["cond"], ["logits"], then_branch=branch("then", "Add"), else_branch=branch("else", "Sub")),
        ],
        "graph",
        [info("a", real, ["n", 2]), info("b", real, ["n", 2])],
        [info("logits", real, ["n", 2])],
        [weight, onnx.helper.make_tensor("zero", real, [], [0.0])],
    )


@pytest.mark.slow
@settings(max_examples=20)
@given(
    names=st.lists(st.sampled_from(INSIDE) | st.text(min_size=1, max_size=3), min_size=2, max_size=2, unique=True),
    output=st.sampled_from(INSIDE),
)
def test_any_names_can_be_given_to_inputs(names: list[str], output: str) -> None:
    onnx: Any = pytest.importorskip("onnx")
    runtime: Any = pytest.importorskip("onnxruntime")
    graph = graph_of()
    rename_doors(graph, names, output)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = runtime.InferenceSession(model.SerializeToString())
    assert [each.name for each in session.get_inputs()] == names
    assert [each.name for each in session.get_outputs()] == [unused(output, names)]
    for sign in (1.0, -1.0):
        a, b = sign * torch.rand(3, 2), torch.randn(3, 2)
        found = torch.from_numpy(session.run(None, dict(zip(names, (a.numpy(), b.numpy()), strict=True)))[0])
        weighted = a * torch.tensor([2.0, 3.0])
        assert torch.allclose(found, weighted + sign * torch.relu(b))
