"""The architecture: imports between the modules of the package point down the list only."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import hatrack

ROOT = Path(hatrack.__file__).parent

LAYERS = [
    {"cli"},
    {"report"},
    {"experiments"},
    {"learning"},
    {"train"},
    {"methods"},
    {"models"},
    {"recognition", "compact"},
    {"gating"},
    {"protection", "growth"},
    {"masks"},
    {"units"},
    {"backbones"},
    {"streams"},
    {"objectives"},
    {"data"},
    {"state"},
    {"storage"},
    {"support"},
    {"functional"},
    {"errors"},
]
"""From the top down; a package may import what stands below it."""

MOST_ENTRIES, LONGEST_CHAIN = 23, 14

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield a module's imports from the package, except for type checking, with their lines."""
    pending: list[ast.AST] = [parsed(path)]
    while pending:
        node = pending.pop()
        if only_for_types(node):
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            if node.module == "hatrack":
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif node.module and node.module.startswith("hatrack."):
                yield node.module.removeprefix("hatrack."), node.lineno
        elif isinstance(node, ast.Import):
            yield from (
                (alias.name.removeprefix("hatrack."), node.lineno)
                for alias in node.names
                if alias.name.startswith("hatrack.")
            )
        pending.extend(ast.iter_child_nodes(node))


MODULES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_module_has_a_layer() -> None:
    tops = {name.partition("/")[0] for name in MODULES} - {"__init__", "__main__"}
    assert tops <= set(RANK), f"give a layer to {sorted(tops - set(RANK))}"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("__init__", "__main__")])
def test_imports_point_down(name: str) -> None:
    own = name.partition("/")[0]
    for target, line in imported(MODULES[name]):
        top = target.partition(".")[0]
        if top not in RANK:  # a name of the package itself, such as hatrack.__version__
            assert own == "cli" or top == "__version__", f"{name}:{line} imports {target} from the top of the package"
        elif top != own:
            assert RANK[own] < RANK[top], f"{name}:{line} imports {target}, which stands above or beside it"


@pytest.mark.slow
def test_the_house_has_few_rooms_and_no_long_way_down() -> None:
    assert len(RANK) <= MOST_ENTRIES
    below: dict[str, set[str]] = {name: set() for name in RANK}
    for name, path in MODULES.items():
        own = name.partition("/")[0]
        if own in RANK:
            below[own] |= {target.partition(".")[0] for target, _ in imported(path)} & RANK.keys() - {own}

    def chain(name: str) -> list[str]:
        return [name, *max((chain(other) for other in below[name]), key=len, default=[])]

    longest = max((chain(name) for name in RANK), key=len)
    assert len(longest) <= LONGEST_CHAIN, " → ".join(longest)


def test_global_generators_are_seeded_in_one_place() -> None:
    """``torch.manual_seed`` moves generators of devices that nobody asked for, and none of them comes back."""
    seeding = {"manual_seed", "manual_seed_all", "fork_rng", "set_rng_state"}
    for name, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute) and node.attr in seeding and ast.unparse(node.value).startswith("torch"):
                own = ast.unparse(node) == "torch.Generator().manual_seed"
                undone = (name, node.attr) == ("state/undo", "set_rng_state")
                assert own or undone or name == "support/randomness", f"{name}:{node.lineno}"


@pytest.mark.parametrize("network", [hatrack.HATNetwork, hatrack.WeightMaskedNetwork])
def test_networks_are_made_of_parts_and_not_of_ancestors(network: type) -> None:
    assert len([kind for kind in network.__mro__ if kind.__module__.startswith("hatrack")]) <= 3


@pytest.mark.slow
def test_no_class_name_stands_for_two_things() -> None:
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {kind: where for kind, where in places.items() if len(where) > 1} == {}


TORCHS_OWN = {
    name
    for kind in (nn.Module(), nn.Linear(1, 1), nn.LSTM(1, 1), torch.empty(0), torch.optim.SGD([torch.empty(0)]))
    for name in (*dir(kind), *vars(type(kind)), *getattr(kind, "__dict__", ()))
}
"""Attributes of torch's objects, private ones among them: hooks, version counters, tables of parameters."""

NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
"""What every named tuple offers; an underscore keeps it apart from the fields."""


@pytest.mark.slow
def test_no_file_reads_what_another_keeps_private() -> None:
    def names_defined(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id

    trees = {name: parsed(path) for name, path in MODULES.items()}
    defined = {name: set(names_defined(tree)) for name, tree in trees.items()}
    ours = {each for names in defined.values() for each in names}
    read = [
        f"{name}:{node.lineno} reads {node.attr}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and node.attr in ours - defined[name] - TORCHS_OWN - NAMED_TUPLES
    ]
    assert read == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hatrack.compact.export", "hatrack.compact.export"),
        ("hatrack.experiments.metrics", "hatrack.experiments.metrics"),
        ("hatrack.backbones", "hatrack.backbones"),
        ("hatrack.experiments.statistics", "hatrack.experiments.statistics"),
        ("hatrack.learning.unannounced", "hatrack.learning.unannounced"),
        ("hatrack.integrations", "hatrack.learning.integrations"),
    ],
)
def test_old_paths_lead_to_the_same_modules(old: str, new: str) -> None:
    module = importlib.import_module(new)
    specification = module.__spec__
    assert importlib.import_module(old) is module
    assert module.__spec__ is specification


def test_the_equations_need_nothing_but_torch() -> None:
    modules: set[str] = set()
    for path in (ROOT / "functional").glob("*.py"):
        nodes = [*ast.walk(parsed(path))]
        modules |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        modules |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    own = {name for name in modules if name.startswith("hatrack.functional.")}
    assert len(own) > 5
    assert modules - own <= {"__future__", "enum", "math", "torch", "typing", "collections.abc"}


def test_modules_do_not_import_each_other_in_circles() -> None:
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        dotted = name.replace("/", ".").removesuffix(".__init__")
        targets = {target for target, _ in imported(path)}
        edges[dotted] = {t for t in targets if t.replace(".", "/") in MODULES}  # packages only gather their modules
    done: set[str] = set()

    def visit(node: str, above: tuple[str, ...]) -> None:
        assert node not in above, " → ".join([*above, node])
        if node not in done:
            for target in edges.get(node, ()):
                visit(target, (*above, node))
            done.add(node)

    for node in edges:
        visit(node, ())
