"""Stored results, the pages and figures that are drawn from them, and the documents that show them."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import blocks, docs, page, plots, report, store, stored, svg
from benchmarks.bars import HELD_OF, PRODUCTS, Found
from benchmarks.peers.ours import NUMBERS, OURS
from benchmarks.peers.snntorch_loop import LOOP
from benchmarks.peers.spikingjelly import PREFIX as JELLY
from benchmarks.registry import NEURONS, Case
from benchmarks.runner import COPY, Row

ROOT = docs.ROOT
CPU = torch.device("cpu")
NAME = "some-processor-2020-01-02"
HEADER = {
    "date": "2020-01-02", "machine": "Some Processor, 2 processors, 2 threads", "threads": 2, "versions": "torch 2.15",
    "commit": "abc", "environment": "default", "peers": {"snntorch": "1.0.0", "norse": "not installed"},
}  # fmt: skip
PARTS = {
    "epoch": [{"seed": 0, "peer": p, "seconds": 30.0, "accuracy": 0.94} for p in (OURS, LOOP)],
    "parity": [
        {"neuron": n, "configurations": 7, "values": 1000, "spikes": 10, "different": 0} for n in NEURONS
    ],
    "held": [
        {"network": n, "peer": p, "held": 1.5, "saved": 2.5} for n in HELD_OF for p in (LOOP, JELLY, NUMBERS, OURS)
    ],
    "products": [
        {"rate": r, "direction": d, "dense": 2e-3, "bits": 1e-3} for r in PRODUCTS for d in ("forward", "gradient")
    ],
    "rounding": [{"surrogate": "atan", "root mean square": 1.2e-3, "largest": 2e-3}],
}  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """As ``store`` would write it, with made-up times."""
    plan = store.plan(CPU)
    rows = []
    for case, peers in plan.items():
        layer = case.ideal_bytes is not None
        for i, peer in enumerate([*dict.fromkeys([OURS, *peers]), *([COPY] if layer else [])]):
            seconds = (1 + i) * 1.25e-3
            row = Row(case.name, peer, "", seconds, seconds, seconds, 9, 1.0 + i, case.neuron_steps, rates=[0.1, 0.2])
            if layer:
                row.bandwidth, row.share_of_copy, row.saved, row.held = 1.25e10, 0.875, 4.25, 0.25
            rows.append(row)
    file = tmp_path / f"{NAME}.json"
    report.save(file, HEADER, plan, rows, [], parts=PARTS)
    return file


def test_a_stored_result_gives_every_passage(result):
    of = stored.Stored(result)
    for name, block in blocks.BLOCKS.items():
        text = block(of)
        assert text.strip() == text, name
        assert "nan" not in text, name
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in lines}) <= 1, name
    assert "| [25, 128, 1000] | 1.25 |" in blocks.floors(of)
    assert "| `Leaky` on a constant current and `Linear` to 10, forward + backward | 10 %, 20 % |" in blocks.events(of)
    assert "0 of 1000 (`Synaptic`)" in blocks.parity(of)


def test_figures_are_written_with_three_digits():
    assert [stored.ms(s) for s in (0.1234, 0.01234, 0.001234, 0.0001234)] == ["123", "12.3", "1.23", "0.123"]
    assert [stored.times(r) for r in (13.4, 9.96, 1.04)] == ["13", "10.0", "1.0"]


def test_what_a_result_lacks_is_an_error_that_names_it(result):
    content = json.loads(result.read_text())
    content["rows"] = [row for row in content["rows"] if row["peer"] != LOOP]
    content["parts"] = {}
    result.write_text(json.dumps(content))
    of = stored.Stored(result)
    with pytest.raises(stored.Missing, match=f"{NAME} has no measurement of snnTorch, loop, tutorial5"):
        blocks.headline(of)
    with pytest.raises(stored.Missing, match="nothing of `held`"):
        blocks.held(of)


def test_a_page_shows_time_bandwidth_share_and_memory(result, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "pages"
    assert command_line.main(["page", str(result), "--out", str(out)]) == 0
    text = (out / f"{NAME}.md").read_text()
    assert "\n# Some, 2 threads, 2 January 2020\n" in text  # for people
    files = re.findall(r"\]\((.*\.svg)\)", text)
    assert files == [f"{NAME}/{name}.svg" for name in ("time", "bandwidth", "share", "memory")]
    for file in files:
        ElementTree.parse(out / file)
    assert all(f"## {title}" in text for title in page.PASSAGES.values())
    assert all(case.name in text for case in store.plan(CPU))


def test_a_page_of_a_run_that_measured_less_shows_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "small.json"
    command = ["run", "--case", "lif [1, 1, 10] float32, forward", "--peer", OURS, "--device", "cpu"]
    command_line.main([*command, "--seconds", "0.05", "--json", str(file)])
    assert command_line.main(["page", str(file), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "small.md").read_text()
    assert "small/share.svg" in text
    assert "small/time.svg" not in text
    assert "## Beside `copy_`" in text
    assert "## Networks" not in text


def test_figures_follow_the_page_and_say_what_they_show(result, tmp_path):
    pytest.importorskip("matplotlib")
    of = stored.Stored(result)
    file = plots.training_step(tmp_path / "step.svg", of)
    text = file.read_text()
    assert "prefers-color-scheme:dark" in text
    assert not any(drawn in text for drawn in svg.COLOURS)  # each was replaced
    assert ">snnTorch<" in text  # as text, not as outlines
    assert svg.description(file) == plots.of_training_step(of)
    again = plots.training_step(tmp_path / "again.svg", of)
    assert again.read_text() == text


def test_the_figure_of_readme_is_sorted(result):
    of = stored.Stored(result)
    seconds = [seconds for *_, seconds in blocks.training_steps(of)]
    assert seconds == sorted(seconds, reverse=True)
    assert re.findall(r"([\d.]+) ms", blocks.figure(of)) == [stored.ms(value) for value in seconds]


def test_store_measures_and_writes_a_result_and_its_page(tmp_path, monkeypatch, digits, capsys):
    pytest.importorskip("matplotlib")
    case = Case("lif", "layer", 2, 1, (16,))
    monkeypatch.setattr(store, "plan", lambda device: {case: [LOOP]})
    monkeypatch.setattr(store, "PAGES", tmp_path / "pages")
    for name in store.PARTS:
        monkeypatch.setitem(store.PARTS, name, lambda args, name=name: Found([], PARTS[name]))
    assert command_line.main(["store", "--out", str(tmp_path), "--seconds", "0", "--threads", "1"]) == 0
    file = next(tmp_path.glob("*.json"))
    assert re.fullmatch(r"[a-z0-9-]+-20\d\d-\d\d-\d\d", file.stem)
    content = json.loads(file.read_text())
    assert content["complete"]
    assert content["parts"] == PARTS
    assert {row["peer"] for row in content["rows"]} == {OURS, LOOP, COPY}
    assert (tmp_path / "pages" / f"{file.stem}.md").is_file()
    assert f"wrote {file}" in capsys.readouterr().out


def test_without_a_command_everything_is_stored():
    assert command_line.parse([]).function is store.run


def test_store_leaves_out_the_epoch_where_there_is_no_mnist_and_says_so(tmp_path, monkeypatch, digits, capsys):
    digits.name = "digits of scikit-learn"
    monkeypatch.setattr(store, "plan", lambda device: {})
    monkeypatch.setattr(store, "PAGES", tmp_path / "pages")
    for name in store.PARTS:
        monkeypatch.setitem(store.PARTS, name, lambda args: Found([], []))
    assert command_line.main(["store", "--out", str(tmp_path)]) == 0
    assert "left out: needs MNIST" in capsys.readouterr().out
    assert set(json.loads(next(tmp_path.glob("*.json")).read_text())["parts"]) == set(store.PARTS) - {"epoch"}


@pytest.mark.parametrize(
    ("processor", "name"),
    [("AMD EPYC 9R14 96-Core Processor", "amd-epyc-9r14"), ("Intel(R) Xeon(R) CPU @ 2.00GHz", "intel-xeon")],
)
def test_a_result_is_named_by_the_processor_and_the_day(processor, name):
    header = {"machine": f"{processor}, 2 processors, 2 threads", "date": "2020-01-02"}
    assert store.name_of(header) == f"{name}-2020-01-02"


@pytest.fixture
def documents(result, tmp_path, monkeypatch) -> Iterator[Path]:
    """A README and docs of their own, which show the made-up result."""
    pytest.importorskip("matplotlib")
    for module, name, value in (
        (docs, "ROOT", tmp_path),
        (docs, "FIGURE", tmp_path / "docs" / "figures" / "tutorial5.svg"),
        (docs, "PAGES", tmp_path / "docs" / "results"),
        (store, "RESULTS", tmp_path),
    ):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"# x\n\n<!-- results: {NAME} headline -->\n<!-- end -->\n\ny\n")
    (tmp_path / "docs" / "a.md").write_text(f"<!-- results: {NAME} held -->\nold\n<!-- end -->\n")
    docs.stored.cache_clear()
    yield tmp_path
    docs.stored.cache_clear()


def test_documents_are_written_from_the_result_and_then_agree_with_it(documents, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["docs"])
    assert command_line.main(["docs", "--update"]) == 0
    assert command_line.main(["docs"]) == 0
    readme = (documents / "README.md").read_text()
    assert "times as fast by one added line" in readme
    assert readme.endswith("<!-- end -->\n\ny\n")
    assert "old" not in (documents / "docs" / "a.md").read_text()
    assert (documents / "docs" / "results" / f"{NAME}.md").is_file()


@pytest.mark.parametrize("file", ["README.md", "docs/a.md", "docs/figures/tutorial5.svg", f"docs/results/{NAME}.md"])
def test_a_figure_that_no_result_has_is_found(file, documents, capsys):
    command_line.main(["docs", "--update"])
    path = documents / file
    path.write_text(
        re.sub(r"\d\.\d+", "9.99", path.read_text(), count=1)
        if "svg" not in file
        else path.read_text().replace("ms", "s")
    )
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["docs"])
    output = capsys.readouterr()
    assert file in output.out
    assert "docs --update" in output.err


def test_another_result_replaces_the_one_that_documents_name(documents, result):
    other = documents / "other-2021-01-01.json"
    other.write_text(result.read_text().replace('"accuracy": 0.94', '"accuracy": 0.95'))
    assert command_line.main(["docs", "--update", str(other)]) == 0
    assert "<!-- results: other-2021-01-01 headline -->" in (documents / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"<!-- results: {NAME} nothing -->\n<!-- end -->\n", "headline"),
        ("<!-- results: x held -->\n<!-- end -->\n", NAME),
    ],
    ids=["passage", "result"],
)
def test_a_passage_or_a_result_that_there_is_not_is_an_error_that_says_what_there_is(text, said, documents, capsys):
    (documents / "docs" / "a.md").write_text(f"{text}\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["docs", "--update"])
    assert said in capsys.readouterr().err


# ---- the repository's own documents


def test_every_figure_of_the_documents_is_in_a_stored_result():
    assert list(docs.different()) == []


MEASURED = re.compile(r"\b\d[\d.,]*\s?(ms|µs|us|ns|s|seconds|x|times|GB/s|%)(?!\w)")
ELSEWHERE = {"100 %", "5 times"}  # copy_ itself; and typical scripts, which are not ours to store


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_no_measured_figure_stands_outside_of_a_passage(name):
    text = re.sub(r"```.*?```", "", docs.MARKED.sub("", (ROOT / name).read_text()), flags=re.DOTALL)
    found = [match[0] for match in MEASURED.finditer(text) if match[0] not in ELSEWHERE]
    assert found == []


def test_stored_results_name_no_host_and_no_path():
    import socket

    for file in store.results().values():
        text = file.read_text()
        assert not re.search(r"/(home|root|tmp|usr|work|Users|mnt)/|[A-Z]:\\\\", text), file.name
        assert socket.gethostname() not in text or len(socket.gethostname()) < 4, file.name


def test_badges_say_what_the_package_says():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    texts = "".join(ElementTree.parse(ROOT / "docs" / "figures" / "badges.svg").getroot().itertext())
    torch_needed = next(name for name in project["dependencies"] if name.startswith("torch"))
    for badge in (project["license"], project["requires-python"], torch_needed.removeprefix("torch")):
        assert badge.replace(">=", "≥ ") in texts


@pytest.mark.needs_extension
def test_the_code_of_readme_runs():
    pytest.importorskip("snntorch")
    torch._dynamo.reset()
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code) == 3
    namespace: dict[str, object] = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["count"].shape == (128, 10)


def test_images_of_readme_are_there():
    readme = (ROOT / "README.md").read_text()
    images = re.findall(r'(?:src="|!\[[^]]*\]\()([^")]+)', readme)
    assert len(images) == 3
    assert all((ROOT / image).is_file() for image in images)
