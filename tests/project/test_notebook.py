"""The notebook: its cells run from the first to the last, on a tiny setting and without the network."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.thorough
pytest.importorskip("snntorch")
plt = pytest.importorskip("matplotlib.pyplot")
ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "tutorial5.ipynb").read_text())
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}


def test_every_cell_runs(mnist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SNNFAST_DATA", str(mnist))
    monkeypatch.setenv("SNNFAST_QUICK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plt.switch_backend("agg")
    torch.set_num_threads(1)
    cells: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    for name, source in CODE.items():
        exec(compile(source, name, "exec"), cells)
    out = capsys.readouterr().out
    plain, compiled = cells["losses"].values()
    assert len(plain) == 5
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert len(re.findall(r"^snnTorch.*: [\d.]+ ms for a training step, first loss", out, re.MULTILINE)) == 2
    assert re.search(r"^[\d.]+ times as fast$", out, re.MULTILINE)
    assert float(re.search(r"^test accuracy: (\d\.\d{4})$", out, re.MULTILINE)[1]) > 0.5
    assert "Net is compiled\n" in out
    assert "In short: " in out
    assert len(shown) == 2
    assert sum(len(c.get_offsets()) for ax in shown[-1].axes for c in ax.collections) > 0  # the raster has spikes
    plt.close("all")


def test_without_the_package_it_installs_the_source_and_what_that_needs_before(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: installed.extend(command[5:]))
    monkeypatch.delenv("SNNFAST_INSTALL", raising=False)
    exec(CODE["install"], {})
    assert installed.index("torch>=2.11") < installed.index(f"git+{SOURCE}") < installed.index("snntorch")


def test_it_is_stored_without_outputs() -> None:
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
