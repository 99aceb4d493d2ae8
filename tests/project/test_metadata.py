"""What the package says of itself: to PyPI, to those who cite it, and to the workflows that build and publish it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import setup
import snnfast

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CLAIMED = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def test_the_citation_is_of_this_version_and_has_what_its_format_requires() -> None:
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert str(CITATION["version"]) == snnfast.__version__
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert set(CITATION["keywords"]) <= set(PROJECT["keywords"])


def test_the_project_has_one_address_everywhere() -> None:
    urls = PROJECT["urls"]
    assert CITATION["repository-code"] == urls["Source"]
    assert CITATION["url"] == urls["Documentation"]
    pages = [*ROOT.glob("*.md"), ROOT / "llms.txt", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*")]
    for page in filter(Path.is_file, pages):
        for found in re.findall(r"https?://(?:github\.com/snnfast|snnfast\.)[^\s)\"'`\\]*", page.read_text()):
            assert found.removesuffix(".git").startswith((urls["Source"], urls["Documentation"])), (
                f"{page.name}: {found}"
            )


def test_the_page_for_assistants_leads_to_pages_of_the_site() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text())
    assert len(links) > 10
    for page in (link.removeprefix(PROJECT["urls"]["Documentation"]) for link in links if link.endswith(".html")):
        sources = [ROOT / "docs" / Path(page).with_suffix(suffix) for suffix in (".md", ".rst")]
        assert any(source.is_file() for source in sources), page


def test_the_pythons_that_are_claimed_are_those_that_are_tested() -> None:
    jobs = workflow("tests")["jobs"]
    tested = {python for job in ("linux", "pythons") for python in jobs[job]["strategy"]["matrix"]["python"]}
    allowed_to_fail = set(re.findall(r"== '([^']+)'", jobs["pythons"]["continue-on-error"]))
    assert set(CLAIMED) == {python for python in tested - allowed_to_fail if not python.endswith("t")}
    assert CLAIMED[0] == PROJECT["requires-python"].removeprefix(">=")


def test_only_a_tag_publishes_and_only_what_was_tried() -> None:
    jobs = workflow("wheels")["jobs"]
    publish = jobs.pop("publish")
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert set(publish["needs"]) == {"try", "sources"}
    assert set(jobs["try"]["needs"]) == set(jobs) - {"try", "sources"}
    assert publish["permissions"] == {"id-token": "write"}
    (upload,) = [step["with"] for step in publish["steps"] if "pypi-publish" in step.get("uses", "")]
    assert upload["attestations"] is True
    assert "password" not in upload


def test_links_and_figures_of_the_page_on_pypi_are_whole_addresses() -> None:
    page, source = setup.page(), PROJECT["urls"]["Source"]
    found = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page)
    assert len(found) > 30
    assert all("".join(target).startswith("https://") for target in found)
    assert f"{source}/raw/main/docs/figures/tutorial5.svg" in page
    assert f"]({source}/blob/main/docs/install.md" in page
    assert "cog" not in page


@pytest.mark.thorough
def test_an_installation_shows_authors_addresses_and_classifiers(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)], cwd=ROOT, check=True, timeout=120
    )
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "show", "-v", "snnfast"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert f"Version: {snnfast.__version__}" in shown
    assert "the snnfast authors" in shown
    for line in (*PROJECT["classifiers"], *PROJECT["urls"].values()):
        assert line in shown, line
