"""Look at an installed snnfast: where it is, what it can do, whether its numbers are right; without the sources."""

import argparse
import platform
import shutil

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import snnfast
from snnfast import _ops, functional, reference
from snnfast.functional import lif

COMPILERS = ("cc", "gcc", "g++", "clang", "c++", "nvcc")
OPS = [f"{neuron.name}_{direction}" for neuron in _ops.NEURONS for direction in ("forward", "backward")]
# Of the neurons, beside beta.
PARAMETERS: dict[str, dict[str, float]] = {"lif": {}, "synaptic": {"alpha": 0.5}, "lapicque": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-cuda", action="store_true", help="torch must be a CUDA build; else it must not be")
    parser.add_argument("--kernels", nargs="+", choices=("CPU", "CUDA"), required=True, help="these, and no others")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, snnfast {snnfast.__version__}", flush=True)
    assert "site-packages" in snnfast.__file__, "this is not the installed package"
    assert not [name for name in COMPILERS if shutil.which(name)], "there is a compiler on the path"
    assert (torch.version.cuda is not None) == args.torch_cuda, f"torch is built with CUDA {torch.version.cuda}"
    registered(args.kernels)
    numbers()
    if "CUDA" in args.kernels:
        fake()
    why(args.kernels)
    print("holds", flush=True)


def registered(kernels: list[str]) -> None:
    for op in OPS:
        for key in ("CPU", "CUDA"):
            there = torch._C._dispatch_has_kernel_for_dispatch_key(f"snnfast::{op}", key)
            assert there == (key in kernels), f"snnfast::{op}: kernel for {key}: {there}"
    print(f"ops registered for {' and '.join(kernels)}")


def numbers() -> None:
    """Spikes and states as the reference has them, and its gradients to rounding."""
    torch.manual_seed(0)
    for name, parameters in PARAMETERS.items():
        for dtype in (torch.float32, torch.float64):
            results = []
            current = torch.rand(20, 3, 70, dtype=dtype) * 2
            for module in (functional, reference):
                x, beta = current.clone().requires_grad_(), torch.full((70,), 0.9, dtype=dtype, requires_grad=True)
                with snnfast.use_backend("fused"):
                    spk, *states = getattr(module, name)(x, beta=beta, **parameters)
                loss = spk.sum() + sum(state.square().sum() for state in states)
                results.append((spk, *states, *torch.autograd.grad(loss, (x, beta))))
            for a, b in zip(results[0][:-2], results[1][:-2], strict=True):
                assert torch.equal(a, b), f"{name}, {dtype}: the kernels differ from the reference"
            assert 0 < results[0][0].mean() < 1, f"{name}, {dtype}: all spikes are the same"
            torch.testing.assert_close(results[0][-2:], results[1][-2:], rtol=1e-4, atol=1e-4)
    print("spikes and states of the CPU kernels as in the reference, gradients to rounding")


def fake() -> None:
    """Shapes on a device that is not there, as torch.compile needs them."""
    backward = torch.version.cuda is not None  # a CPU build of torch has no autograd on cuda at all
    with FakeTensorMode(), snnfast.use_backend("fused"):
        x = torch.empty(9, 3, 10, device="cuda", requires_grad=backward)
        mem = torch.empty(3, 10, device="cuda", requires_grad=backward)
        spk, last = lif(x, mem, beta=0.9, record_mem=False)
        assert (spk.shape, last.shape, spk.device.type) == ((9, 3, 10), (3, 10), "cuda")
        if backward:
            # Not by torch.autograd.grad, whose threads want the device.
            found = spk.grad_fn.apply(torch.empty_like(spk), torch.empty_like(last))
            grads = [grad for grad in found if grad is not None]
            assert [grad.shape for grad in grads] == [(9, 3, 10), (3, 10)]
            assert {grad.device.type for grad in grads} == {"cuda"}
    print(f"fake tensors on cuda run forward{' and backward' if backward else ''}")


def why(kernels: list[str]) -> None:
    """What show_config says of CUDA where it can't run."""
    state = snnfast.config()["fused on cuda"]
    print(f"fused on cuda: {state}")
    if "CUDA" not in kernels:
        assert "built without CUDA: SNNFAST_CUDA=0" in state, state
    elif not torch.cuda.is_available():
        assert "the kernels are built in, but torch sees no CUDA device" in state, state
    else:
        assert state == "yes", state


if __name__ == "__main__":
    main()
