"""The register of the sentences in the package."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "snnfast"
WITHOUT_A_NOUN = re.compile(r"\s*(Of|What|The same|Likewise|Those)\b")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_docstring_begins_with_what_a_thing_is_or_does(path: Path) -> None:
    """A relative clause or a pronoun in place of a noun, as in "What the kernels read", is read twice."""
    statements = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Expr)]
    texts = [(n.lineno, n.value) for n in statements if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert [f"{path}:{line}: {text}" for line, text in texts if WITHOUT_A_NOUN.match(text)] == []
