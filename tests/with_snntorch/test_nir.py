"""snnTorch's own NIR exporter and importer, unpatched, take our layer and give layers that convert takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from snntorch_checks import NOT_LAPICQUE, make, neurons
from torch import Tensor, nn

import snnfast.snntorch as snn

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")

from snntorch.export_nir import export_to_nir  # noqa: E402
from snntorch.import_nir import import_from_nir  # noqa: E402

BETA = torch.linspace(0.5, 0.95, 8)


def network(library: Any, name: str = "Leaky", threshold: Tensor | None = None) -> nn.Sequential:
    torch.manual_seed(8)
    threshold = torch.full((8,), 0.9) if threshold is None else threshold
    options: dict[str, Any] = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}

    def layer(beta: Tensor, threshold: Tensor) -> Any:
        alpha = {"alpha": torch.full_like(beta, 0.75)} if name == "Synaptic" else {}
        return make(library, name, **alpha, beta=beta, threshold=threshold, **options)

    return nn.Sequential(
        nn.Linear(6, 8), layer(BETA, threshold), nn.Linear(8, 4), layer(torch.full((4,), 0.8), torch.ones(4))
    )


def imported(graph: Any) -> nn.Module:
    net: nn.Module = import_from_nir(graph)
    return net


def run(net: nn.Module, x: Tensor) -> Tensor:
    state, spikes = None, []
    for step in x:
        out = net(step) if state is None else net(step, state)
        if isinstance(out, tuple):  # nirtorch's executor hands its state on
            out, state = out
        spikes.append(out)
    return torch.stack(spikes)


@NOT_LAPICQUE
def test_export(name: str) -> None:
    threshold = torch.linspace(0.6, 1.2, 8)
    ours, theirs = (
        export_to_nir(network(library, name, threshold), torch.rand(1, 6), ignore_dims=[0])
        for library in (snn, snntorch)
    )
    assert list(ours.nodes) == list(theirs.nodes)
    assert sorted(ours.edges) == sorted(theirs.edges)
    for key, node in theirs.nodes.items():
        assert type(ours.nodes[key]) is type(node)
        for field, value in vars(node).items():
            if isinstance(value, np.ndarray):
                assert_bits_equal(*(torch.as_tensor(v) for v in (getattr(ours.nodes[key], field), value)), field)
    kinds = [type(node).__name__ for node in ours.nodes.values()]
    assert kinds.count("CubaLIF" if name == "Synaptic" else "LIF") == 2
    assert kinds.count("Affine") == 2


@NOT_LAPICQUE
def test_import_and_convert(name: str, tmp_path: Path) -> None:
    graph = export_to_nir(network(snn, name), torch.rand(1, 6), ignore_dims=[0])
    nir.write(tmp_path / "net.nir", graph)
    expected, net = imported(nir.read(tmp_path / "net.nir")), imported(nir.read(tmp_path / "net.nir"))
    assert [type(layer) for layer in neurons(net)] == [getattr(snntorch, name)] * 2
    report = snn.convert(net)
    assert len(report.swapped) == 2
    assert not report.left
    x = torch.rand(9, 3, 6) * 3
    with torch.no_grad():
        spk, spk_expected = run(net, x), run(expected, x)
    assert spk.any()
    assert not spk.all()
    assert_bits_equal(spk, spk_expected.to(spk.dtype))
