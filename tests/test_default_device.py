"""Another default device than that of the tensors (``torch.set_default_device``) changes no number."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers import assert_bits_equal
from torch import Tensor, nn

import snnfast
from snnfast import functional

X = torch.rand(40, 8, 12, generator=torch.Generator().manual_seed(0)) * 2
FUNCTIONS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "lif": lambda: functional.lif(X, beta=0.9),
    "synaptic": lambda: functional.synaptic(X, alpha=1, beta=0.9),
    "lapicque": lambda: functional.lapicque(X, R=5, C=2.0),
    "lapicque by beta": lambda: functional.lapicque(X, beta=0.5),
    "alpha": lambda: functional.alpha(X, alpha=0.9, beta=0.5),
    "rleaky": lambda: functional.rleaky(X, beta=0.9, V=0.2),
    "rleaky with weights": lambda: functional.rleaky(X, beta=0.9, recurrent_weight=torch.eye(12, device="cpu")),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_numbers_beside_a_current_elsewhere(name: str, backend: str) -> None:
    expected = FUNCTIONS[name]()
    with torch.device("meta"):
        found = FUNCTIONS[name]()
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)


def test_so_do_second_derivatives_of_weights_and_of_maxima() -> None:
    weight = torch.linspace(-1, 1, 60).view(5, 12).requires_grad_()
    image = torch.rand(2, 3, 3, 12, 12, requires_grad=True)
    net = snnfast.MultiStep(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2))

    def twice() -> list[Tensor]:
        second = []
        for out, leaf in ((functional.lif(X, beta=0.9, weight=weight)[0], weight), (net(image), image)):
            (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
            second += torch.autograd.grad(first.square().sum(), leaf)
        return second

    expected = twice()
    with torch.device("meta"):
        found = twice()
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)


def test_the_package_can_be_imported_under_one() -> None:
    code = """
import torch
with torch.device("meta"):
    import snnfast
print(snnfast.RLeaky(0.9, linear_features=4).unroll(torch.rand(3, 2, 4))[0].device)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "cpu", done.stderr
