"""Try an installed wheel: ``wheel_probe.py CPU CUDA`` fails unless it has these kernels and right numbers, uncompiled.

It runs without the sources, and must find no compiler.
"""

import shutil
import sys

import torch

import snnfast
from snnfast import __main__ as self_check
from snnfast._core import ops

COMPILERS = ("cc", "gcc", "g++", "clang", "c++", "nvcc")


def main(kernels: list[str]) -> None:
    print(f"{sys.version}\ntorch {torch.__version__}, with CUDA {torch.version.cuda}", flush=True)
    assert "site-packages" in snnfast.__file__, f"{snnfast.__file__} is not the installed package"
    assert not [name for name in COMPILERS if shutil.which(name)], "there is a compiler on the path"
    for neuron in ops.NEURONS:
        for op in (f"snnfast::{neuron}_forward", f"snnfast::{neuron}_backward"):
            found = [key for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(op, key)]
            assert found == kernels, f"{op} has kernels for {found}, not for {kernels}"
    self_check.main()


if __name__ == "__main__":
    main(sys.argv[1:])
