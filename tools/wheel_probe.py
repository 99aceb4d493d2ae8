"""Try an installed wheel: ``wheel_probe.py CPU CUDA`` fails unless it has these kernels and right numbers, uncompiled.

It runs without the sources, and must find no compiler.
"""

import shutil
import sys

import torch

import snnfast
from snnfast import functional, reference
from snnfast._core import ops

COMPILERS = ("cc", "gcc", "g++", "clang", "c++", "nvcc")
PARAMETERS = {
    "lif": {"beta": 0.9},
    "synaptic": {"alpha": 0.5, "beta": 0.9},
    "lapicque": {"beta": 0.9},
    "alpha": {"alpha": 0.9, "beta": 0.8},
}


def main(kernels: list[str]) -> None:
    print(f"{sys.version}\ntorch {torch.__version__}, with CUDA {torch.version.cuda}", flush=True)
    assert "site-packages" in snnfast.__file__, f"{snnfast.__file__} is not the installed package"
    assert not [name for name in COMPILERS if shutil.which(name)], "there is a compiler on the path"
    for neuron in ops.NEURONS:
        for op in (f"snnfast::{neuron}_forward", f"snnfast::{neuron}_backward"):
            found = [key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(op, key)]
            assert found == kernels, f"{op} has kernels for {found}, not for {kernels}"
    snnfast.show_config()
    for name, parameters in PARAMETERS.items():
        for dtype in (torch.float32, torch.float64):
            compare(name, parameters, dtype)
    print("The CPU kernels have the spikes and states of the reference, and its gradients to rounding.")


def compare(name: str, parameters: dict[str, float], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    current, results = torch.rand(20, 3, 70, dtype=dtype) * 2, []
    for module in (functional, reference):
        x = current.clone().requires_grad_()
        with snnfast.use_backend("fused"):
            outputs = getattr(module, name)(x, **parameters)
        loss = sum(output.square().sum() for output in outputs)
        results.append((outputs, torch.autograd.grad(loss, x)))
    (outputs, gradient), (expected, expected_gradient) = results
    assert 0 < outputs[0].mean() < 1, f"{name}, {dtype}: all spikes are the same"
    assert all(map(torch.equal, outputs, expected)), f"{name}, {dtype}: the kernels differ from the reference"
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1:])
