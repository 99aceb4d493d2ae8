"""Breaks the CUDA context of this process, launches a kernel, and prints what that says. For the smoke test."""

import sys

import torch

import snnfast
from snnfast.functional import lif


def main() -> None:
    device = torch.device(sys.argv[1])
    x = torch.rand(4, 64, device=device)
    with snnfast.use_backend("fused"), torch.no_grad():
        lif(x, beta=0.9, record_mem=False)  # leaves memory for the results of the next call
        try:
            x[0][torch.tensor([1 << 40], device=device)]  # out of range: an assertion on the card
            if device.type == "cuda":
                torch.cuda.synchronize()
        except (IndexError, RuntimeError) as error:
            print(f"broken by: {str(error).splitlines()[0]}")
        try:
            lif(x, beta=0.9, record_mem=False)
        except RuntimeError as error:
            print(f"lif: {str(error).splitlines()[0]}")
        else:
            print("lif: no error")


if __name__ == "__main__":
    main()
