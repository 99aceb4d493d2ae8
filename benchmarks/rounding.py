"""What ``membrane_dtype=torch.bfloat16`` does to the gradient, against exact membranes."""

import argparse

import torch
from torch import Tensor

import snnfast

from .bars import ROUNDED, Bar, Found

SHAPE = (25, 128, 1000)


def run(args: argparse.Namespace) -> Found:
    """Error of the gradient of the current on random currents, for each surrogate with a derivative of the membrane."""
    torch.manual_seed(0)
    current = torch.randn(SHAPE, requires_grad=True)
    grad_spk = torch.randn(SHAPE)
    print(f"gradient of the current {list(SHAPE)} with membranes in bfloat16, relative error")
    print(f"{'':20}{'root mean square':>18}{'largest / largest gradient':>30}")
    bars, rows = [], []
    for name in ("atan", "fast_sigmoid", "sigmoid"):
        lif = snnfast.Leaky(beta=0.95, spike_grad=getattr(snnfast.surrogate, name)())
        exact, rounded = (_gradient(lif, current, grad_spk, dtype) for dtype in (None, torch.bfloat16))
        error = rounded - exact
        rms = (error.norm() / exact.norm()).item()
        largest = (error.abs().max() / exact.abs().max()).item()
        print(f"{name:20}{rms:18.2e}{largest:30.2e}")
        rows.append({"surrogate": name, "root mean square": rms, "largest": largest})
        bars.append(Bar(f"{name}: root mean square of the error", rms, ROUNDED))
    print()
    return Found(bars, rows)


def _gradient(lif: snnfast.Leaky, current: Tensor, grad_spk: Tensor, dtype: torch.dtype | None) -> Tensor:
    spk_rec, _ = lif.unroll(current, record_mem=False, membrane_dtype=dtype)
    return torch.autograd.grad(spk_rec, current, grad_spk)[0]
