"""Random step functions: elementwise recurrences in PyTorch's many spellings."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from loop_ops import Masked
from torch import Tensor

import snnfast
from snnfast import surrogate

SURROGATES: list[Any] = [
    surrogate.atan(), surrogate.fast_sigmoid(), surrogate.sigmoid(4), surrogate.straight_through_estimator(),
    surrogate.heaviside(), surrogate.triangular(), surrogate.spike_rate_escape(), surrogate.SFS(), surrogate.LSO(),
    surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs())),
]  # fmt: skip


def _in_place(a: Tensor, b: Tensor) -> Tensor:
    c = a + 0.0 * b  # of the shape of a step
    c += b
    c *= 0.5
    return c


def _masked(a: Tensor, b: Tensor) -> Tensor:
    c = a * 1.5 + 0.0 * b
    c[b + 0.0 * a > 0] = 0.25
    return c


EXACT: list[Callable[[Tensor, Tensor, float], Tensor]] = [
    lambda a, b, k: a + b, lambda a, b, k: a - b, lambda a, b, k: a * b, lambda a, b, k: k * a + b,
    lambda a, b, k: b - a * k, lambda a, b, k: a / (b.abs() + 0.5), lambda a, b, k: (a - b) / 2.0,
    lambda a, b, k: 1 - a, lambda a, b, k: -a, lambda a, b, k: 1 / (1 + a.abs()),
    lambda a, b, k: torch.where(a > b, a, b * k), lambda a, b, k: torch.where(a <= 0.3, a, 0.0),
    lambda a, b, k: a.clamp(-0.5, 0.5), lambda a, b, k: torch.clamp(a, min=b.detach()), lambda a, b, k: F.hardtanh(a),
    lambda a, b, k: F.relu(a) * k, lambda a, b, k: F.leaky_relu(a, 0.1), lambda a, b, k: torch.maximum(a, b),
    lambda a, b, k: torch.min(a, b), lambda a, b, k: torch.maximum(a, a * 1.0), lambda a, b, k: abs(a),
    lambda a, b, k: torch.sign(a) * b, lambda a, b, k: a**2, lambda a, b, k: a**3 / 4,
    lambda a, b, k: torch.floor(a * 4) / 4 + b, lambda a, b, k: torch.round(a * 3) + a - torch.ceil(b),
    lambda a, b, k: a.detach() * b, lambda a, b, k: (a > b).float().to(a.dtype) * b,
    lambda a, b, k: ((a > 0) & (b < k)).to(a.dtype) * k + a, lambda a, b, k: (~(a > 0) | (b == 0)) * a,
    lambda a, b, k: torch.logical_or(a, b < 0) * a + torch.logical_xor(a, b) * torch.logical_and(a, k - b) * b,
    lambda a, b, k: a.masked_fill(b > k, 0.5), lambda a, b, k: torch.heaviside(a.detach(), torch.zeros_like(a)) * b,
    lambda a, b, k: torch.full_like(a, k) * b, lambda a, b, k: a * torch.tensor(0.5), lambda a, b, k: _in_place(a, b),
    lambda a, b, k: _masked(a, b), lambda a, b, k: Masked.apply(a - k) * b,
]  # fmt: skip
ROUNDED: list[Callable[[Tensor, Tensor, float], Tensor]] = [
    lambda a, b, k: torch.exp(-a.abs()) * b,
    lambda a, b, k: torch.log(a.abs() + 1.5),
    lambda a, b, k: torch.sigmoid(a),
    lambda a, b, k: (a.abs() + 0.1).rsqrt() / 4,
    lambda a, b, k: (a.abs() + 0.1).sqrt(),
    lambda a, b, k: 0.8 * a.tanh(),  # no tie with a near 0
    lambda a, b, k: (a.abs() + 0.2) ** 1.5,
]


class RandomStep:
    """``(x, *states, *parameters)`` to outputs and new states, the same for the same seed."""

    def __init__(self, seed: int, exact: bool) -> None:
        made = random.Random(seed)
        self.states, self.parameters, self.outputs = made.randint(1, 3), made.randint(0, 3), made.randint(1, 2)
        count = 1 + self.states + self.parameters
        self.calls = []
        for _ in range(made.randint(2, 14)):
            pool = EXACT if exact or made.random() < 0.8 else ROUNDED
            function = made.choice(pool)
            if made.random() < 0.2:
                chosen = made.choice(SURROGATES[:6] if exact else SURROGATES)
                function = lambda a, b, k, chosen=chosen: snnfast.spike(a - k, chosen)  # noqa: E731
            recent = max(0, count - 4)
            first = made.randrange(recent, count) if made.random() < 0.6 else made.randrange(count)
            self.calls.append((function, first, made.randrange(count), made.choice((0.3, 0.5, 0.9, -0.7))))
            count += 1
        self.results = [made.randrange(max(0, count - 6), count) for _ in range(self.outputs + self.states)]

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        values = list(arguments)
        for function, first, second, k in self.calls:
            values.append(function(values[first], values[second], k))
        results = [values[i] for i in self.results]
        x = arguments[0]
        bounded = [(0.5 * r + 0.0 * x).clamp(-4, 4) for r in results[self.outputs :]]
        return (*(r + 0.0 * x for r in results[: self.outputs]), *bounded)
