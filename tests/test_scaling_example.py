"""The example that estimates large runs: its formulas, and that its figures are measured."""

import re
from collections.abc import Callable
from types import ModuleType

import pytest
from test_examples import Run, example, run  # noqa: F401 - fixtures


def test_the_estimate_follows_its_formulas(example: Callable[[str], ModuleType]) -> None:  # noqa: F811
    scaling = example("scaling")
    measured = scaling.Measured(copied=1e10, neuron_step=1e-9, held=4.25, flops=1e12, reduced=1e9)
    found = scaling.estimate(measured, neurons=1e6, fan_in=100, steps=10, batch=2, processes=4)
    assert found.weights == 1e8
    assert found.ddp == 16e8
    assert found.fsdp == 4e8
    assert found.held == pytest.approx(85e6)
    assert found.neurons == pytest.approx(0.02)
    assert found.products == pytest.approx(0.012)  # 6 * 1e8 weights * 10 steps * 2 samples
    assert found.ddp_sends == pytest.approx(0.6)  # 8e8 bytes, of which 3 of 4 processes have not what one sends
    assert found.fsdp_sends == pytest.approx(0.9)


def test_the_script_measures_and_prints_a_row_for_each_size(run: Run) -> None:  # noqa: F811
    out = run("scaling", "--size", "4096", "--width", "64", "--repeats", "1", "--neurons", "1e6", "1e8")
    held = re.search(r"a neuron-step, forward and backward: \d+\.\d+ ns, \S+ GB/s, (\S+) bytes held", out)
    assert 4 < float(held[1]) < 4.3  # the current, and a membrane every 16 steps
    assert float(re.search(r"^copy_: (\S+) GB/s$", out, re.MULTILINE)[1]) > 0
    assert "all-reduce: 10.0 GB/s, as --bandwidth says" in out
    checked = re.search(r"^check, .*: (\S+) ms forward and backward, estimated (\S+) ms", out, re.MULTILINE)
    assert all(float(ms) > 0 for ms in checked.groups())
    rows = re.findall(r"^ +(1e\+0[68])((?: +\S+){8})$", out, re.MULTILINE)
    assert [neurons for neurons, _ in rows] == ["1e+06", "1e+08"]
    small, large = ([float(cell) for cell in cells.split()] for _, cells in rows)
    assert large == pytest.approx([100 * cell for cell in small], rel=1e-2)
