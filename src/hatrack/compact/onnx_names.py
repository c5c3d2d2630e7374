"""Names of values in a graph of ONNX, of which no two may be the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["rename_doors", "unused"]


def rename_doors(graph: Any, inputs: Sequence[str], output: str) -> None:
    """Give the inputs and the output of a graph other names, in place.

    Values inside, which exporters call after operations (``cat``, ``relu``), give way where they have such a name, and
    so does the output where an input has its name.

    Args:
        graph: the graph, an ``onnx.GraphProto`` with one output.
        inputs: new names of its inputs, all different.
        output: new name of its output.
    """
    doors = dict(zip([value.name for value in graph.input], inputs, strict=True))
    doors[graph.output[0].name] = unused(output, inputs)
    taken = {*_names_in(graph), *doors.values()}
    renamed = dict(doors)
    for name in sorted(set(_names_in(graph)) - doors.keys()):
        if name in doors.values():
            renamed[name] = unused(name, taken)
            taken.add(renamed[name])
    _rename(graph, renamed)


def unused(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: the name itself, or with underscores behind it."""
    while name in taken:
        name += "_"
    return name


def _names_in(graph: Any) -> Iterator[str]:
    """Yield the names of all values in a graph and in the graphs of its nodes."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _graphs_of(node):
            yield from _names_in(inner)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            for place, name in enumerate(ends):
                ends[place] = names.get(name, name)
        for inner in _graphs_of(node):
            _rename(inner, names)


def _graphs_of(node: Any) -> Iterator[Any]:
    """Yield the graphs inside of a node, such as the branches of a condition."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
