"""Packages import downward only, and so do the modules of the compiler."""

import ast
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "snnfast"
FLOORS = (
    ("_core",),
    ("surrogate",),
    ("_unroll", "_images", "_program"),
    ("neurons", "losses"),
    ("snntorch", "spikingjelly", "networks", "_activity"),
    ("compiler", "nir"),
)
DOORS = {"__init__", "__main__", "_version", "functional", "reference"}
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


COMPILER = PACKAGE / "compiler"


def imported(path: Path) -> set[str]:
    """The packages, or doors, that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "snnfast":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("snnfast."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_module_has_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == DOORS
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FLOOR)
    installed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(installed) == found


@pytest.mark.parametrize("package", FLOOR)
def test_a_package_imports_from_floors_below_it(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        for other in imported(path) - {package, "_version"}:
            assert FLOOR.get(other, len(FLOORS)) < FLOOR[package], f"{path.name} imports {other}"


def modules_imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of the compiler that one imports, for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("snnfast.compiler."):
            package = str(node.module).removeprefix("snnfast.compiler").strip(".")
            names = {f"{package}.{alias.name}".strip(".") for alias in node.names}
            found |= (names | {package}) & modules if not names <= modules else names
    return found


def test_the_modules_of_the_compiler_import_in_no_circle() -> None:
    paths = {".".join(p.relative_to(COMPILER).with_suffix("").parts): p for p in COMPILER.rglob("*.py")}
    graph = {name.removesuffix(".__init__"): modules_imported(path, set(paths)) for name, path in paths.items()}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
