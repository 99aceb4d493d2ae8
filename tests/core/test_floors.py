"""Packages import downward only."""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "snnfast"
FLOORS = (
    ("_core",),
    ("surrogate",),
    ("_unroll", "_images", "_program"),
    ("neurons", "losses"),
    ("snntorch", "spikingjelly", "networks"),
    ("compiler",),
)
DOORS = {"__init__", "__main__", "_version", "functional", "reference"}
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


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
    assert set(installed) == {"snnfast", *(f"snnfast.{name}" for name in FLOOR)}


@pytest.mark.parametrize("package", FLOOR)
def test_a_package_imports_from_floors_below_it(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        for other in imported(path) - {package, "_version"}:
            assert FLOOR.get(other, len(FLOORS)) < FLOOR[package], f"{path.name} imports {other}"
