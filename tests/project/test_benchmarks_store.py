"""Stored results, and the documents and the chart that show them: no measured figure without a result."""

import re
import shutil
import socket
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks import docs, figures, report, run
from benchmarks.peers.ours import DEFAULT, OURS, PRODUCTS, RECORDED
from benchmarks.peers.snntorch_loop import LOOP
from benchmarks.registry import TUTORIAL5
from benchmarks.runner import COPY, Row

ROOT = report.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALLEST = "lif [1, 1, 10] float32, forward + backward"


def test_documents_and_the_chart_show_what_the_stored_results_hold():
    assert docs.agree()


MEASURED = re.compile(r"\b\d[\d.,]*\s?(ms|µs|us|ns|s|seconds|x|times|GB/s|%)(?!\w)")
# The speed of copy_ itself; how often PyTorch compiles a function.
ELSEWHERE = {"100 %", "8 times"}
EXPECTED = ("benchmarks.md",)  # it says how things are measured


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in EXPECTED], ids=lambda page: page.name)
def test_no_measured_figure_stands_outside_of_what_a_result_gives(page):
    text = re.sub(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->|```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert [match[0] for match in MEASURED.finditer(text) if match[0] not in ELSEWHERE] == []


@pytest.fixture
def documents(tmp_path, monkeypatch) -> Path:
    """README and its chart in a folder of their own."""
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "figures", tmp_path / "docs" / "figures")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.thorough
@pytest.mark.parametrize("file", ["README.md", "docs/figures/tutorial5.svg"])
def test_a_figure_that_no_result_has_is_found_and_written_anew(file, documents, capsys):
    path = documents / file
    right = path.read_text()
    shown = f"{docs.ms(docs.Result(run.RESULTS / f'{figures.SHOWN}.json').seconds(TUTORIAL5.name, RECORDED))} ms"
    path.write_text(right.replace(shown, "9.99 ms"))
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["docs"])
    output = capsys.readouterr()
    assert file in output.out
    assert "docs --update" in output.err
    assert command_line.main(["docs", "--update"]) == 0
    assert figures.texts(path.read_text()) == figures.texts(right)
    assert shown in path.read_text()


def test_figures_are_written_with_three_digits():
    assert [docs.ms(s) for s in (0.1234, 0.01234, 0.001234, 0.0001234)] == ["123", "12.3", "1.23", "0.123"]
    assert [docs.duration(s) for s in (12.34, 0.01234)] == ["12.3 s", "12.3 ms"]
    assert [docs.times(r) for r in (13.4, 9.96, 1.04)] == ["13", "10.0", "1.0"]


def test_a_case_is_measured_stored_read_back_and_compared(tmp_path, capsys):
    file = tmp_path / "run.json"
    command = ["run", "--case", SMALLEST, "--peer", OURS, "--device", "cpu", "--seconds", "0", "--attempts", "1"]
    command_line.main([*command, "--json", str(file)])
    of = docs.Result(file)
    row, copied = of.row(SMALLEST), of.row(SMALLEST, COPY)
    assert row.repeats > 0
    assert row.ratio == 1
    assert row.share_of_copy == pytest.approx(copied.median / row.median)
    content = report.load(file)
    assert content["complete"]
    report.save(tmp_path / "again.json", content["header"], content["rows"])
    assert (tmp_path / "again.json").read_text() == file.read_text()
    capsys.readouterr()
    command_line.main([*command, "--base", str(file)])
    assert f"{OURS}: {SMALLEST}" in capsys.readouterr().out.split("old / new")[1]


def test_gains_are_those_that_users_meet_and_say_so(tmp_path, capsys):
    case = "collection [25, 32] float32, dense: price, forward + backward"
    rows = [
        Row(case, LOOP, median=1.0, varied=1.2),
        Row(case, DEFAULT, median=0.5, varied=0.4, first=0.61),
        Row(case, PRODUCTS, median=0.1),
    ]
    file = tmp_path / "result.json"
    report.save(file, {}, rows)
    of = docs.Result(file)
    assert of.gains == {case: 2.0}
    docs.by_kind(of)
    shown = capsys.readouterr().out
    assert "| most | other sizes in every call |" in shown
    assert "from the 12th call of a shape on" in shown
    assert "first call takes 0.610 CPU seconds" in shown
    assert "| dense | 1 | 2.0 | 2.0 | 2.0 | 3.0 |" in shown


def test_stored_results_have_what_is_shown_and_name_no_host_and_no_path():
    files = sorted(run.RESULTS.glob("*.json"))
    for file in files:
        assert run.name_of(report.load(file)["header"]) == file.stem
        assert docs.Result(file).seconds(TUTORIAL5.name, LOOP) > 0
    for file in run.RESULTS.rglob("*.json"):
        text = file.read_text()
        assert not re.search(r"/(home|root|tmp|usr|work|Users|mnt)/|[A-Z]:\\\\", text), file.name
        assert socket.gethostname() not in text or len(socket.gethostname()) < 4, file.name
    assert figures.SHOWN in {file.stem for file in files}


# ---- what else README shows


def test_images_of_readme_are_there():
    text = re.sub(r"<!-- \[\[\[cog.*?\]\]\] -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    images = re.findall(r'(?:src="|!\[[^]]*\]\()([^")]+)', text)
    assert len(images) == 3
    assert all((ROOT / image).is_file() for image in images)
