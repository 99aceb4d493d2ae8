"""The layer alone: forward and backward over all time steps, against snnTorch's loop."""

import argparse

import torch
from torch import Tensor

import snnfast

from .measure import alternate, table

BAR = 20.0


def run(args: argparse.Namespace) -> bool:
    """[25, 128, 1000] float32, atan, no recorded membrane."""
    import snntorch

    torch.manual_seed(0)
    T, B, N = args.shape
    current = torch.randn(T, B, N, requires_grad=True)
    grad_spk = torch.rand(T, B, N)
    fused, loop = snnfast.Leaky(beta=0.95), snntorch.Leaky(beta=0.95)

    def ours() -> Tensor:
        spk_rec, _ = fused.unroll(current, record_mem=False)
        return torch.autograd.grad(spk_rec, current, grad_spk)[0]

    def theirs() -> Tensor:
        mem = torch.zeros(B, N)
        spk_rec = []
        for x in current.unbind(0):
            spk, mem = loop(x, mem)
            spk_rec.append(spk)
        return torch.autograd.grad(torch.stack(spk_rec), current, grad_spk)[0]

    target, source = torch.empty_like(grad_spk), torch.rand_like(grad_spk)
    functions = {
        "snnfast, fused": ours,
        "copy of one such tensor into old memory": lambda: target.copy_(source),
        "snnTorch, loop": theirs,
    }
    difference = (ours() - theirs()).abs().max().item()
    print(f"LIF forward + backward, [{T}, {B}, {N}] float32, atan, membrane not recorded")
    print(f"largest difference of the gradients: {difference:.1e}")
    with snnfast.use_backend("fused"):
        ratio = table(alternate(functions, args.seconds), "snnfast, fused")
    return verdict("snnTorch / ours", ratio, BAR)


def verdict(what: str, value: float, bar: float, at_most: bool = False) -> bool:
    """Print whether a bar holds."""
    held = value <= bar if at_most else value >= bar
    figure = f"{value:.2f}, bar <=" if at_most else f"{value:.1f}, bar >="
    print(f"{what}: {figure} {bar:g}: {'holds' if held else 'MISSED'}\n")
    return held
