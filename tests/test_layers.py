"""The architecture: imports between the modules of the package point down the list only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hatrack

ROOT = Path(hatrack.__file__).parent

LAYERS = [
    {"cli"},
    {"report"},
    {"experiments"},
    {"learner"},
    {"train"},
    {"unannounced"},
    {"methods"},
    {"networks"},
    {"streams"},
    {"data"},
    {"loading", "export"},
    {"network", "weights"},
    {"holding", "holding_weights"},
    {"elastic", "extracting"},
    {"gated", "growing_weights", "mixing"},
    {"growing"},
    {"forgettable"},
    {"masked"},
    {"inference"},
    {"multitask"},
    {"guard", "poison", "growth", "forgetting", "compact"},
    {"watch"},
    {"guarantee", "attachment", "capacity", "plan", "masks", "widening"},
    {"norm", "tasks", "fresh"},
    {"conditioning"},
    {"gates", "protect", "calibration", "sparing"},
    {"units"},
    {"checkpoint", "sealed"},
    {"undo", "signatures", "state_dependence"},
    {"progress"},
    {
        "functional",
        "metrics",
        "movement",
        "heads",
        "layers",
        "atomic",
        "environment",
        "names",
        "modes",
        "compilers",
        "decompositions",
        "statistics",
        "locks",
        "packing",
        "parallel",
        "tryouts",
    },
    {"errors"},
]
"""From the top down; a module may import what stands below it, and its own kind."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield a module's imports from the package, except for type checking, with their lines."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
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


def test_the_equations_need_nothing_but_torch() -> None:
    for path in (ROOT / "functional").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        others = {name for name in modules if not name.startswith("hatrack.functional.")}
        assert others <= {"__future__", "enum", "math", "torch", "typing", "collections.abc"}


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
