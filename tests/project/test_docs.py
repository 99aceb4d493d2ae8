"""The documentation: what its pages say in code is run, and what they point to exists."""

import ast
import doctest
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
LANGUAGES = {"python", "sh", "text", "cpp", "diff", "{toctree}", "{include}", "{eval-rst}"}

SOURCES = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "snnfast").rglob("*.py"))
MODULES = [".".join(path.parts).removesuffix(".__init__") for path in SOURCES if path.name != "__main__"]
PUBLIC = ["snnfast", "snnfast.functional", "snnfast.losses", "snnfast.surrogate", "snnfast.reference"]


@dataclass
class Block:
    line: int  # of its first line of code
    info: str
    code: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, those in lists included."""
    found, lines = [], page.read_text().splitlines()
    i = 0
    while i < len(lines):
        opened = re.match(r"( *)(`{3,}|~{3,})(.*)", lines[i])
        if opened:
            indent, fence, info = opened.groups()
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == fence)
            code = "\n".join(line.removeprefix(indent) for line in lines[i + 1 : end])
            found.append(Block(i + 2, info.strip(), code + "\n"))
            i = end
        i += 1
    return found


def prose(page: Path) -> str:
    """A page without its blocks and code spans."""
    text = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", "", page.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`]*`", lambda span: "`" * len(span[0]), text)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def needed(code: str) -> set[str]:
    """Other libraries that a page imports, some of which need not be there."""
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, flags=re.M))
    if "snnfast.snntorch" in code:
        imported.add("snntorch")
    if "snnfast.nir" in code:
        imported.add("nir")
    return imported & {"snntorch", "spikingjelly", "norse", "nir", "matplotlib"}


def import_or_skip(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    with warnings.catch_warnings(action="ignore"):
        importlib.import_module(library if library != "norse" else "norse.torch")


def run_page(page: Path) -> dict[str, Any]:
    """Run the Python blocks of a page, in order and in one namespace, which is returned."""
    code = [b for b in blocks(page) if b.info == "python"]
    for library in needed("\n".join(b.code for b in code)):
        import_or_skip(library)
    sys.modules["a_page"] = module = ModuleType("a_page")  # torch 2.11 looks there for what a function reads
    namespace = vars(module)
    for block in code:
        # The line numbers of an error are those of the page.
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
    return namespace


@pytest.mark.needs_extension
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.info == "python" for b in blocks(p))], ids=name)
def test_the_code_of_a_page_runs_on_the_kernels(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="snnfast")  # a slow path is not what a page should show
        run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        language, *rest = block.info.split(" ", 1)
        assert language in LANGUAGES, f"{page.name}:{block.line}"
        if language == "python" and rest:
            assert re.fullmatch(r"no-run: \w.{9,}", rest[0]), f"{page.name}:{block.line}: no-run without a reason"


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_docstrings_run(module: str) -> None:
    if "snntorch" in module or module == "snnfast.networks.multistep":
        import_or_skip("snntorch")
    if "snnfast.nir" in module:
        import_or_skip("nir")
    torch.manual_seed(0)
    torch._dynamo.reset()
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(test, clear_globs=False)  # torch.compile takes its own names out of them later
    assert runner.summarize().failed == 0


OWN_NAMES = {
    "snnfast.snntorch": ["Lapicque", "Leaky", "Report", "Synaptic", "convert", "revert"],
    "snnfast.nir": ["export_to_nir", "import_from_nir"],
}
PUBLIC_NAMES = OWN_NAMES | {m: [n for n in vars(sys.modules[m])["__all__"] if n != "__version__"] for m in PUBLIC}


@pytest.mark.parametrize("module", PUBLIC_NAMES)
def test_every_public_name_is_in_the_api_reference(module: str) -> None:
    if module in OWN_NAMES:
        import_or_skip(module.removeprefix("snnfast."))
    pages = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.rst")))
    whole = re.search(rf"automodule:: {module}\n +:members:\n", pages) is not None
    for public in PUBLIC_NAMES[module]:
        made: Any = getattr(importlib.import_module(module), public)
        assert made.__doc__, public
        assert whole or re.search(rf"\b{public}\b", pages), f"{module}.{public} is in no page of docs/api"


def test_messages_that_the_troubleshooting_page_quotes_are_those_of_the_package() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "snnfast").rglob("*.py")))
    source = re.sub(r"""["']\s*\n\s*f?["']""", "", source)  # a message of several lines of code
    quoted = re.findall(r"^\| `([^|]*)` \|", (DOCS / "troubleshooting.md").read_text(), flags=re.M)
    ours = [message for message in quoted if "inplace operation" not in message]
    assert len(ours) >= 12
    for part in (part.strip() for message in ours for part in message.split("...")):
        assert part in source, part


def test_the_readme_is_read_in_a_few_minutes() -> None:
    generated = r"<!-- \[\[\[cog.*?<!-- \[\[\[end\]\]\] -->\n?"
    assert len(re.sub(generated, "", (ROOT / "README.md").read_text(), flags=re.S).splitlines()) <= 150


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_of_the_repository(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.is_relative_to(ROOT), f"{page.name}: {target}"
        assert there.exists(), f"{page.name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page.name}: {target}"


def defined_in(path: Path) -> set[str]:
    """Functions and classes of a file, and methods behind the names of their classes, as its language writes them."""
    return set(python_names(ast.parse(path.read_text()).body)) if path.suffix == ".py" else cpp_names(path.read_text())


def python_names(body: list[ast.stmt]) -> Iterator[str]:
    for found in body:
        if isinstance(found, ast.FunctionDef | ast.ClassDef):
            yield found.name
        if isinstance(found, ast.ClassDef):
            yield from (f"{found.name}.{inner}" for inner in python_names(found.body))


def cpp_names(source: str) -> set[str]:
    """A method is one that stands in the braces of its struct."""
    source = re.sub(r"//.*", "", source)
    functions = [(m[1], m.start()) for m in re.finditer(r"[\w>&*] [&*]?(\w+)\([^;{}]*\)(?: const)? \{", source)]
    names = {name for name, _ in functions}
    for struct in re.finditer(r"^( *)(?:struct|class) (\w+)[^;{]*\{.*?^\1\};", source, flags=re.M | re.S):
        names.add(struct[2])
        names |= {f"{struct[2]}::{name}" for name, at in functions if struct.start() < at < struct.end()}
    return names


def walks(page: str) -> list[tuple[str, list[str]]]:
    """The files that the three paths name, each with the names that follow it in its line."""
    section = page.partition("## Three paths through the code\n")[2].partition("\n## ")[0]
    found: list[tuple[str, list[str]]] = []
    for line in re.findall(r"^\d+\. (.*?)(?=^\S|\Z)", section, flags=re.M | re.S):
        for i, span in enumerate(re.findall(r"`([^`]+)`", line)):
            if "/" in span:
                found.append((span, []))
            else:
                assert i > 0, f"a name without a file: {line}"
                found[-1][1].append(span)
    return found


def unknown(page: str) -> list[str]:
    found = []
    for file, names in walks(page):
        there = ROOT / file
        found += [f"{file}: {n}" for n in names if n not in defined_in(there)] if there.is_file() else [file]
    return found


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_paths_through_the_code_name_files_and_what_is_in_them() -> None:
    assert sum(len(names) for _, names in walks(CONTRIBUTING)) > 40
    assert unknown(CONTRIBUTING) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("snnfast/_unroll/run.py", "snnfast/_unroll/runs.py"),
        ("`what_to_save`", "`what_to_keep`"),
        ("`Recorder.flush`", "`Recorder.flushed`"),
        ("`ForwardBlock::run`", "`ForwardBlock::forward`"),
        ("`share_out`", "`cache_bytes`"),  # which another file has
        ("`forward_loop`", "`step`"),  # which is only called there
    ],
)
def test_a_wrong_file_or_name_in_the_paths_is_found(right: str, wrong: str) -> None:
    assert right in CONTRIBUTING
    assert unknown(CONTRIBUTING.replace(right, wrong)) != []
