"""The functions of docs/migrate-norse.md, and what its tables say of each case."""

from types import SimpleNamespace
from typing import Any

import pytest
import test_docs
import torch
from torch import Tensor

pytestmark = pytest.mark.needs_extension


@pytest.fixture(scope="module")
def norse() -> SimpleNamespace:
    return SimpleNamespace(**test_docs.run_page(test_docs.DOCS / "migrate-norse.md"))


def run(call: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membranes, and the gradient of the input from a loss on the spikes with a weight of each."""
    x = x.clone().requires_grad_()
    spk, mem = call(x)
    generator = torch.Generator().manual_seed(1)
    (spk * torch.rand(spk.shape, generator=generator, dtype=spk.dtype)).sum().backward()
    assert x.grad is not None
    assert 0 < spk.mean() < 1
    return spk.detach(), mem.detach(), x.grad


def current(scale: float) -> Tensor:
    return scale * torch.rand(60, 4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("rest", [0.0, -0.25])
@pytest.mark.parametrize(
    "method",
    ["super", *(pytest.param(m, marks=pytest.mark.thorough) for m in ("tanh", "circ", "triangle", "heavi_erfc"))],
)
@pytest.mark.parametrize("kind", ["box", "synaptic", "iaf"])
def test_neurons_of_norse(norse: SimpleNamespace, kind: str, method: str, rest: float) -> None:
    p = {"v_th": torch.tensor(0.75), "v_reset": torch.tensor(rest), "method": method, "alpha": torch.tensor(0.5)}
    if kind == "iaf":
        cell = norse.norse.IAFCell(norse.norse.IAFParameters(**p))
    else:
        p |= {"v_leak": torch.tensor(rest), "tau_mem_inv": torch.tensor(128.0)}
        name = "LIFBox" if kind == "box" else "LIF"
        make, parameters = getattr(norse.norse, f"{name}Cell"), getattr(norse.norse, f"{name}Parameters")
        cell = make(parameters(**p), dt=1 / 1024)
    layer, factor = (norse.synaptic_from if kind == "synaptic" else norse.leaky_from)(cell)
    x = current({"box": 15.0, "synaptic": 4.0, "iaf": 0.9}[kind])

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        spk, *_, mem = layer.unroll(factor * x)
        return spk, mem + rest

    # In float64, with parameters that float32 holds exactly: a layer keeps them in float32.
    (spk, *found), (wanted, *expected) = run(ours, x), run(lambda x: norse.over_time(cell, x), x)
    assert torch.equal(spk, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_another_reset_value_of_norse(norse: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="v_reset"):
        norse.leaky_from(norse.norse.LIFBoxCell(norse.norse.LIFBoxParameters(v_reset=torch.tensor(0.2))))
