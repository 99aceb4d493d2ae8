"""Surrogates as users write them: some that the kernels can follow, some with a delayed reset only, some never."""

from typing import Any

import torch
from torch import Tensor, nn


def function(forward: Any, backward: Any) -> Any:
    """An ``autograd.Function`` of what it makes of its argument, and of a gradient and the argument."""

    def run(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return forward(z)  # type: ignore[no-any-return]

    methods = {"forward": run, "backward": lambda ctx, grad: backward(grad, *ctx.saved_tensors)}
    return type("Function", (torch.autograd.Function,), {name: staticmethod(f) for name, f in methods.items()})


Steep = function(lambda z: (z > 0).to(z.dtype), lambda grad, z: grad * torch.exp(-2 * z.abs()) * 0.8)
Clipped = function(lambda z: (z > 0).to(z.dtype), lambda grad, z: grad.clamp(-0.3, 0.3))


def steep(z: Tensor) -> Tensor:
    return Steep.apply(z)  # type: ignore[no-any-return]


def clipped(z: Tensor) -> Tensor:
    """Its derivative is not linear in the incoming gradient."""
    return Clipped.apply(z)  # type: ignore[no-any-return]


class _With(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def step_with_gradient_of(soft: Tensor, z: Tensor) -> Tensor:
    """The step, exactly; ``hard + soft - soft.detach()`` would be rounded."""
    return _With.apply(soft, (z > 0).to(z.dtype))  # type: ignore[no-any-return,no-untyped-call]


class PerNeuron(nn.Module):
    """A derivative with a learned number for each of ten neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.2, 1, 10))

    def forward(self, z: Tensor) -> Tensor:
        return step_with_gradient_of(torch.sigmoid(self.slope * z), z)


def neighbours(z: Tensor) -> Tensor:
    """Each neuron's derivative depends on the others of its sample: a soft winner-take-all."""
    return step_with_gradient_of(torch.softmax(z, -1), z)


def over_time(z: Tensor) -> Tensor:
    """The derivative depends on everything that is in the call."""
    return step_with_gradient_of(z / (1 + z.detach().abs().sum()), z)


def by_the_maximum(z: Tensor) -> Tensor:
    return step_with_gradient_of(torch.atan(z / z.detach().abs().max()), z)


def by_the_deviation(z: Tensor) -> Tensor:
    return step_with_gradient_of(torch.atan(z / (z.detach().std(correction=0) + 0.1)), z)


def soft(z: Tensor) -> Tensor:
    return torch.sigmoid(5 * z)


def with_negative_spikes(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype) - (z < -4).to(z.dtype) + 0 * z


def two_dimensional(z: Tensor) -> Tensor:
    if z.dim() != 2:
        raise ValueError("only [B, N]")
    return steep(z)


def not_strict(z: Tensor) -> Tensor:
    return (z >= 0).to(z.dtype) + 0 * z


def in_float32(z: Tensor) -> Tensor:
    return steep(z.float())


def without_a_gradient(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


FAST_BOTH = {"steep": steep, "in_float32": in_float32, "without_a_gradient": without_a_gradient}
FAST_DELAYED = {"PerNeuron": PerNeuron(), "clipped": clipped, "neighbours": neighbours}
STATISTICS = {"over_time": over_time, "by_the_maximum": by_the_maximum, "by_the_deviation": by_the_deviation}
OTHER_SPIKES = {"not_strict": not_strict, "soft": soft, "with_negative_spikes": with_negative_spikes}
SLOW = {**STATISTICS, **OTHER_SPIKES, "two_dimensional": two_dimensional}
