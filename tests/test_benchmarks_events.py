"""The benchmarks that train on MNIST, and those of spikes as bits. No timing is asserted."""

from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import bars, held, memory_use, mnist, products, runner
from benchmarks.peers import PEERS
from benchmarks.peers.ours import NUMBERS, OURS
from benchmarks.peers.snntorch_loop import LOOP
from benchmarks.registry import PAIR, suites
from benchmarks.workloads import build, make_data

CPU = torch.device("cpu")
TRAINED = [case for case in suites("cpu")["events"] if case.trained]


@pytest.mark.parametrize(("value", "path"), [("/some/data", "/some/data"), ("", None), (None, None)])
def test_folder_of_mnist_comes_from_the_environment(value, path, digits, monkeypatch):
    asked = []
    monkeypatch.setattr(mnist.data, "load", lambda path, device: asked.append(path) or digits)
    monkeypatch.setenv("SNNFAST_DATA", value) if value is not None else monkeypatch.delenv("SNNFAST_DATA", False)
    assert mnist.load() is digits
    assert asked == [path]


@pytest.mark.parametrize("command", [["epoch"], ["raster", "--out", "x.svg"]], ids=["epoch", "raster"])
def test_a_folder_without_mnist_is_an_error_that_names_it_and_a_row_that_says_so(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SNNFAST_DATA", str(tmp_path / "no such folder"))
    with pytest.raises(SystemExit, match="2"):
        command_line.main(command)
    assert f"needs MNIST: no such folder: {tmp_path}" in capsys.readouterr().err
    rows = runner.run_case(replace(TRAINED[0], B=5), [NUMBERS], CPU, 0.0)
    assert all(row.problem.startswith("needs MNIST: no such folder") for row in rows)


def test_an_epoch_trains_both_networks_alike_from_each_seed(digits, capsys):
    pytest.importorskip("snntorch")
    assert command_line.main(["epoch", "--seeds", "2", "--threads", "1"]) == 1  # nothing is learned of random images
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines()[-2:]] == ["holds", "MISSED"]
    assert [output.count(f"seed {seed}  ") for seed in range(3)] == [2, 2, 0]


def test_without_mnist_an_epoch_is_an_error_and_a_trained_network_a_row_that_says_so(digits, capsys):
    digits.name = "digits of scikit-learn"
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["epoch"])
    assert "needs MNIST" in capsys.readouterr().err
    case = replace(TRAINED[0], B=3)
    rows = runner.run_case(case, [NUMBERS], CPU, 0.0)
    assert [row.peer for row in rows] == [OURS, NUMBERS]
    assert all(row.problem.startswith("needs MNIST") for row in rows)


def test_trained_weights_are_those_of_every_implementation_and_stay(digits):
    pytest.importorskip("snntorch")
    case = replace(TRAINED[0], T=3, B=4, hidden=(16, 16))
    data = make_data(case, CPU)
    assert len(data.rates) == 2
    for name in (OURS, NUMBERS, LOOP):
        candidate = build(case, PEERS[name], data)
        candidate.run()
        weights = candidate.given[2:]
        assert all(torch.equal(*pair) for pair in zip(weights, data.weights, strict=True))


@pytest.mark.needs_extension
def test_spikes_as_numbers_are_the_same_and_take_more_memory():
    data = make_data(PAIR, CPU)
    assert 0.02 < data.rates[0] < 0.08
    bits, numbers = (build(PAIR, PEERS[name], data) for name in (OURS, NUMBERS))
    for found, expected in zip(bits.run(), numbers.run(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    kept = [
        memory_use.kept(candidate.forward, candidate.given).held / PAIR.neuron_steps for candidate in (bits, numbers)
    ]
    assert kept[0] <= bars.BARS[PAIR.name][bars.HELD]
    assert kept[1] > 4


@pytest.mark.needs_extension
def test_products_are_measured_at_every_rate_and_judged(monkeypatch, capsys):
    for name, value in {"B": 2, "NEURONS": 70, "OUTPUTS": 33}.items():
        monkeypatch.setattr(products, name, value)
    command_line.main(["products", "--seconds", "0", "--threads", "1"])
    output = capsys.readouterr().out
    assert output.count(": dense / bits") == 2 * len(bars.PRODUCTS) == 12
    assert all(f"{rate:>6.0%}  " in output for rate in bars.PRODUCTS)


@pytest.mark.needs_extension
def test_bytes_held_are_printed_of_each_network_and_judged(monkeypatch, capsys):
    pytest.importorskip("snntorch")
    monkeypatch.setattr(held, "CASES", {name: replace(case, B=2) for name, case in held.CASES.items()})
    assert command_line.main(["held", "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert output.count("holds") == len(held.CASES)
    assert all(line.count(" / ") >= 3 for line in output.splitlines() if line.startswith(tuple(held.CASES)))
