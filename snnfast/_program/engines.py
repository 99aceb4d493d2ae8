"""The engines that run the codes of a program: the ops of the library, or kernels that NVRTC makes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from snnfast._core.backend import current_backend, use_fused, warn_once
from snnfast._core.pytorch import is_transformed
from snnfast._program import cuda
from snnfast._program.code import Code
from snnfast._program.nvrtc import kernel_of


def takes_kernels(x: Tensor, shape: torch.Size) -> bool:
    """Whether a call with steps of a shape runs by the kernels; says why not, if that was not chosen."""
    if current_backend() == "reference" or x.is_meta:
        return False
    if torch.compiler.is_compiling():
        reason = "where torch.compile traces it"
    elif isinstance(x, FakeTensor) or shape.numel() == 0:  # there is nothing to compute
        return False
    elif is_transformed():
        reason = "under a torch.func transform"
    elif x.is_cuda:  # NVRTC makes the kernels, also where the library has none
        return True
    elif not x.is_cpu:
        reason = f"on {x.device.type}, for which there are no kernels of programs"
    else:
        return use_fused(x)
    say_step_by_step(reason)
    return False


def say_step_by_step(reason: str) -> None:
    if current_backend() == "fused":
        raise RuntimeError(f"backend 'fused' is not available {reason}. A neuron of your own runs step by step there")
    warn_once(
        f"snnfast: a neuron of your own runs step by step {reason}. use_backend('reference') chooses it without this "
        "warning."
    )


class _CpuEngine:
    """Runs codes by the ops of the library."""

    def parameters(self, code: Code, given: Sequence[Tensor]) -> list[Tensor]:
        return code.parameters(given, code.fixed)

    def forward(self, code: Code, like: Tensor, *arguments: Any) -> list[Tensor]:
        *tensors, steps, neurons, samples, keep, bits, normed = arguments
        words, constants = code.words, code.constants
        of_call = steps, neurons, keep, bits, samples, *normed
        found = torch.ops.snnfast.program_forward(like, *tensors, words, constants, *of_call)
        return cast(list[Tensor], found)

    def backward(self, code: Code, like: Tensor, *arguments: Any) -> list[Tensor]:
        *tensors, steps, neurons, samples, normed = arguments
        words, constants = code.words, code.constants
        found = torch.ops.snnfast.program_backward(like, *tensors, words, constants, steps, neurons, samples, *normed)
        return cast(list[Tensor], found)


ENGINES: dict[str, Any] = {"cpu": _CpuEngine(), "cuda": cuda.Engine(kernel_of)}
"""The engine that runs the codes of a program, by the type of the device."""
